"""Outlines of few points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scripts.output.outlines import approximate_polygons
from skimage.measure import approximate_polygon, find_contours


@pytest.mark.parametrize("tolerance", [0.05, 0.35, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_points_are_those_that_scikit_image_keeps(seed, tolerance):
    draw = np.random.default_rng(seed)
    mask = np.pad(gaussian_filter(draw.normal(size=(70, 60)), draw.uniform(0.5, 4)) > 0, 1)
    contours = [contour * [0.7, 1.3] for contour in find_contours(mask.astype(np.uint8), 0.5)]

    found = approximate_polygons(contours, tolerance)

    assert len(found) == len(contours) > 2
    for polygon, contour in zip(found, contours):
        np.testing.assert_array_equal(polygon, approximate_polygon(contour, tolerance))


def test_of_nothing_comes_nothing():
    assert approximate_polygons([], 1.0) == []
