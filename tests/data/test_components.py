"""Connected pieces, found a few slices at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from scripts.data.components import Pieces, organ_boxes

LONG = 40  # slices, of which 16 are looked at together


@pytest.mark.parametrize("slowest", range(3))
@pytest.mark.parametrize("share", [0.02, 0.06, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_are_those_that_scipy_finds_in_the_whole_volume(seed, share, slowest):
    labels = np.moveaxis((np.random.default_rng(seed).random((LONG, 11, 9)) < share) * 3, 0, slowest).astype(np.uint8)
    numbers, _ = ndimage.label(labels == 3, np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())[1:]
    largest = np.flatnonzero(sizes == sizes.max()) + 1

    pieces = Pieces(labels, 3)
    pieces.keep_largest()

    assert sorted(pieces.sizes) == sorted(sizes)
    kept = [value for value in largest if np.array_equal(labels > 0, numbers == value)]
    assert len(kept) == 1
    assert pieces.box == ndimage.find_objects(numbers)[kept[0] - 1]


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("share", [0, 0.002, 0.3])
def test_boxes_are_those_that_scipy_finds(order, share):
    random = np.random.default_rng(1)
    labels = (random.random((14, 11, 9)) < share) * random.integers(0, 7, (14, 11, 9), np.uint8)
    labels = labels.transpose(order)[::-1]

    assert organ_boxes(labels, 8) == (ndimage.find_objects(labels, 8) if share else [None] * 8)


def test_pieces_that_touch_at_a_corner_between_slabs_are_one():
    labels = np.zeros((LONG, 4, 4), np.uint8)
    labels[15, 1, 1] = labels[16, 2, 2] = 1

    assert Pieces(labels, 1).sizes.tolist() == [2]


def test_a_piece_that_joins_two_others_many_slices_later_makes_them_one():
    labels = np.zeros((LONG, 3, 9), np.uint8)
    labels[:, 1, 0] = labels[:, 1, 8] = 1
    labels[-1, 1] = 1

    assert Pieces(labels, 1).sizes.tolist() == [2 * LONG + 7]


def test_other_values_are_left_alone():
    labels = np.zeros((LONG, 4, 4), np.uint8)
    labels[:3, 1, 1], labels[30, 1, 1], labels[32, 1, 1] = 1, 1, 2

    Pieces(labels, 1).keep_largest()

    assert labels[30, 1, 1] == 0
    assert labels[32, 1, 1] == 2 and (labels[:3, 1, 1] == 1).all()
