"""Connected pieces of an organ in a label map, found a few slices at a time.

A volume in which every voxel holds the number of its piece takes four to eight times the label map. Here such numbers
exist for some slices only, and what is kept is which of them touch in the next ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

ANY_CORNER = np.ones((3, 3, 3))  # voxels that touch at a corner belong together

_SLICES = 16  # looked at together


def organ_boxes(labels: np.ndarray, organs: int) -> list[tuple[slice, ...] | None]:
    """``scipy.ndimage.find_objects``, which takes ten times as long where the first axis is not the slowest in memory,
    as in a label map that is stored from left to right; and only where there is anything at all.

    Args:
        labels: of integers from 0, a view of a label map; its memory may lie in any order.
        organs: K, the highest value that is looked for.

    Returns:
        For each value 1...K the smallest box that holds it, or None.
    """
    order = np.argsort([-abs(stride) for stride in labels.strides], kind="stable")
    part, first = labels.transpose(order), []
    for axis in range(part.ndim):
        held = np.flatnonzero(part.any(tuple(other for other in range(part.ndim) if other != axis)))
        if not len(held):
            return [None] * organs
        first.append(int(held[0]))
        part = part[(slice(None),) * axis + (slice(first[-1], int(held[-1]) + 1),)]
    boxes: list[tuple[slice, ...] | None] = []
    for box in ndimage.find_objects(part, organs):
        sides = [slice(side.start + start, side.stop + start) for side, start in zip(box or (), first)]
        boxes.append(tuple(sides[axis] for axis in np.argsort(order)) if box else None)
    return boxes


class Pieces:
    """The pieces of one value, of voxels that touch at a corner at least.

    Args:
        labels: ``(I, J, K)`` of integers, a view of a label map; its memory may lie in any order.
        value: that is there.

    Attributes:
        sizes: voxels of each piece.
        box: of the largest piece, within ``labels``; of several as large, of one of them.
    """

    def __init__(self, labels: np.ndarray, value: int) -> None:
        self.value = value
        self._axis = int(np.argmax(np.abs(labels.strides)))
        self._planes = np.moveaxis(labels, self._axis, 0)
        sizes, boxes, touching, last, number = [], [], [np.empty((2, 0), int)], None, 0
        for start, part in self._parts():
            pieces, count = ndimage.label(part == value, ANY_CORNER)
            sizes.append(np.bincount(pieces.ravel(), minlength=count + 1)[1:])
            boxes += [_bounds(box, start) for box in ndimage.find_objects(pieces, count)]
            first = np.where(pieces[0], pieces[0].astype(int) + number, 0)
            if last is not None:
                touching.append(_touching(last, first))
            last = np.where(pieces[-1], pieces[-1].astype(int) + number, 0)
            number += count
        pairs = np.concatenate(touching, 1) - 1
        graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), (number, number))
        _, self._piece = connected_components(graph, directed=False)
        self.sizes = np.bincount(self._piece, np.concatenate(sizes)).astype(int)
        self._largest = int(self.sizes.argmax())
        bounds = np.array(boxes)[self._piece == self._largest]
        sides = [slice(*side) for side in zip(bounds[:, 0].min(0).tolist(), bounds[:, 1].max(0).tolist())]
        sides.insert(self._axis, sides.pop(0))
        self.box = tuple(sides)

    def keep_largest(self) -> None:
        """Sets the voxels of all other pieces to 0."""
        if len(self.sizes) == 1:
            return
        number = 0
        for _, part in self._parts():
            pieces, count = ndimage.label(part == self.value, ANY_CORNER)
            others = np.concatenate([[False], self._piece[number : number + count] != self._largest])
            part[others[pieces]] = 0
            number += count

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self._planes), _SLICES):
            yield start, self._planes[start : start + _SLICES]


def _bounds(box: Sequence[slice], start: int) -> np.ndarray:
    """Where a box begins and ends along each axis, ``(2, 3)``, if its slices are counted from ``start``."""
    return np.array([[side.start for side in box], [side.stop for side in box]]) + [start, 0, 0]


def _touching(last: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Pairs ``(2, n)`` of numbers above 0 that touch, of a slice and of the next one."""
    around, (height, width) = np.pad(last, 1), last.shape
    largest = int(first.max()) + 1
    pairs = [np.empty(0, int)]
    for row in range(3):
        for column in range(3):
            before = around[row : row + height, column : column + width]
            both = (before > 0) & (first > 0)
            pairs.append(before[both] * largest + first[both])  # as one number each
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), largest))
