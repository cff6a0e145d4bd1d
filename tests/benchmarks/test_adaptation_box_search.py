"""DFG's search for a box: which boxes it asks for, where it stops, and what it needs of features."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.adaptation.box_search import (
    SearchSettings,
    bounding_box,
    grow_by_affinity,
    largest_component,
    run_searches,
    search,
)

SIZE = 128
SETTINGS = SearchSettings().scaled(SIZE)


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


ORGAN = rectangle(40, 80, 30, 90)
CORE = rectangle(55, 67, 50, 62)
LEFT_HALF = rectangle(40, 80, 30, 60)


def kinds(*masks: np.ndarray) -> np.ndarray:
    """Features of unit length: one axis for each mask, another for the rest."""
    return np.stack([*masks, ~np.any(masks, axis=0)]).astype(np.float32)


def spread(features: np.ndarray) -> np.ndarray:
    """The same with a little of something else in every pixel, as real features have."""
    other = 0.2 * np.random.default_rng(0).choice([-1, 1], (1, SIZE, SIZE)).astype(np.float32)
    return np.concatenate([features, other]) / np.sqrt(1.04)


def within(box) -> np.ndarray:
    left, top, right, bottom = box
    return rectangle(top, bottom + 1, left, right + 1)


def run(probability, target, foundation, organ=ORGAN):
    """The mask and the boxes of one search, with a foundation model that finds what a box shows of the organ."""
    boxes = []

    def segment(asked):
        boxes.extend(box for _, box in asked)
        return [organ & within(box) for _, box in asked]

    return run_searches({0: search(probability, target, foundation, SETTINGS)}, segment)[0], boxes


def test_the_box_grows_from_the_surest_pixels_to_the_whole_organ():
    mask, boxes = run(np.where(CORE, 0.99, np.where(ORGAN, 0.6, 0.01)), kinds(ORGAN), kinds(ORGAN))

    assert boxes[0] == bounding_box(CORE, SETTINGS.margin)
    assert bounding_box(ORGAN, SETTINGS.margin) in boxes
    np.testing.assert_array_equal(mask, ORGAN)


@pytest.mark.parametrize(
    "foundation, reached", [(kinds(ORGAN), True), (kinds(LEFT_HALF, ORGAN & ~LEFT_HALF), False)], ids=["one", "two"]
)
def test_foundation_features_reach_what_dispersed_target_features_do_not(foundation, reached):
    """The adapted model sees two halves as different things; the second stage crosses that border, if it may."""
    dispersed = kinds(LEFT_HALF, ORGAN & ~LEFT_HALF)

    mask, _ = run(np.where(CORE & LEFT_HALF, 0.99, 0.01), dispersed, spread(foundation))

    # pixels of the other half that the margin alone shows do not count
    assert mask[40:80, 30:60].all()
    assert mask[40:80, 70:90].any() == reached == mask[40:80, 70:90].all()


def test_an_organ_that_is_not_surely_there_gets_no_box():
    mask, boxes = run(np.where(ORGAN, 0.7, 0.0), kinds(ORGAN), kinds(ORGAN))

    assert mask is None and not boxes


def test_masks_that_never_settle_give_none():
    drawn = iter(np.random.default_rng(0).random((100, 4)))

    def segment(asked):
        top, left, height, width = (30 * next(drawn)).astype(int)
        return [rectangle(top, top + 20 + height, left, left + 20 + width)]

    searches = {0: search(np.where(CORE, 0.99, 0.0), kinds(ORGAN), kinds(ORGAN), SETTINGS)}

    assert run_searches(searches, segment)[0] is None


def test_searches_side_by_side_get_their_own_masks():
    other = rectangle(90, 120, 95, 125)
    probabilities = {"a": np.where(CORE, 0.99, 0.0), "b": np.where(other, 0.99, 0.0)}
    organs = {"a": ORGAN, "b": other}
    searches = {
        key: search(each, kinds(organs[key]), kinds(organs[key]), SETTINGS) for key, each in probabilities.items()
    }
    calls = []

    def segment(asked):
        calls.append(len(asked))
        return [organs[key] & within(box) for key, box in asked]

    masks = run_searches(searches, segment)

    assert calls[0] == 2
    for key, organ in organs.items():
        np.testing.assert_array_equal(masks[key], organ)


def test_growth_joins_near_pixels_with_similar_features_alone():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 14, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=0)
    region = rng.random((14, 12)) < 0.05
    expected = region.copy()
    for row, column in np.argwhere(region):
        for other in np.ndindex(region.shape):
            near = (other[0] - row) ** 2 + (other[1] - column) ** 2 < 9
            expected[other] |= near and features[:, row, column] @ features[(slice(None), *other)] > 0.9

    grown = grow_by_affinity(region, features, least=0.9, radius=3)

    assert expected.sum() > region.sum()
    np.testing.assert_array_equal(grown, expected)


def test_the_largest_component_is_kept_without_holes():
    ring = ORGAN & ~CORE

    np.testing.assert_array_equal(largest_component(ring | rectangle(0, 5, 0, 5)), ORGAN)
    assert not largest_component(np.zeros((4, 4), bool)).any()
