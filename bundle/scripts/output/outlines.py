"""Outlines of masks as polygons of few points, for the report: scikit-image's, of many masks at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def approximate_polygons(contours: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """``skimage.measure.approximate_polygon`` of each contour, with the same points.

    That goes through one contour after the other, and in each through one stretch after the other, of a few points
    each; here every stretch of every contour is looked at together, which halves them all at once (Douglas and
    Peucker's method, breadth first).

    Args:
        contours: each ``(n, 2)``, of 2 points at least.
        tolerance: the largest distance of a point that is left out to what stands in its place.

    Returns:
        For each contour ``(m, 2)``, of its own points.
    """
    if not contours:
        return []
    points = np.concatenate(contours)
    ends = np.cumsum([len(contour) for contour in contours])
    first, last = np.concatenate([[0], ends[:-1]]), ends - 1
    kept = np.zeros(len(points), bool)
    kept[first], kept[last] = True, True
    while True:
        between = last - first - 1
        first, last, between = (each[between > 0] for each in (first, last, between))
        if not len(first):
            break
        begins = np.cumsum(between) - between
        stretch = np.repeat(np.arange(len(first)), between)
        inside = np.arange(len(stretch)) - begins[stretch] + first[stretch] + 1
        distances = _distances(points[inside], *(points[end][stretch] for end in (first, last)))
        farthest = np.maximum.reduceat(distances, begins)
        places = np.flatnonzero((distances == farthest[stretch]) & (farthest[stretch] > tolerance))
        halved, one = np.unique(stretch[places], return_index=True)  # the first of several as far
        middle = inside[places[one]]
        kept[middle] = True
        first, last = np.concatenate([first[halved], middle]), np.concatenate([middle, last[halved]])
    return [contour[part] for contour, part in zip(contours, np.split(kept, ends[:-1]))]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points to the line from a start to an end, where they lie beside it, or else to the nearer of the two; all
    ``(n, 2)``. As scikit-image calculates them, to the last digit.
    """
    along = end - start
    angle = -np.arctan2(along[:, 0], along[:, 1])
    sine, cosine = np.sin(angle), np.cos(angle)
    to_line = np.abs(points[:, 0] * cosine + points[:, 1] * sine - (start[:, 1] * sine + start[:, 0] * cosine))
    (rows, columns), (rows_end, columns_end) = (points - start).T, (points - end).T
    beside = (rows * along[:, 0] + columns * along[:, 1] > 0) & (
        -rows_end * along[:, 0] - columns_end * along[:, 1] > 0
    )
    to_ends = np.minimum(np.sqrt(columns**2 + rows**2), np.sqrt(columns_end**2 + rows_end**2))
    return np.where(beside, to_line, to_ends)
