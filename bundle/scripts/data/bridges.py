"""Pieces of a segmentation that hang on an organ by a thin bridge: mostly something that looks like it and touches it.

What is as grey as a liver and lies against it, such as a colon full of stool, is called liver where the organ's edge
cannot be seen, and is then no component of its own. But the place where the two touch is thin beside either. So an
organ is taken apart where it is thin, as a watershed of the distance to its surface does, with the maxima that stay
after a morphological reconstruction from a share of that distance (the h-maxima of its logarithm) as markers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

THIN = 0.6  # of the thickness of the piece that it leads to: a bridge is thinner than that
SMALL = 0.4  # of the largest piece's voxels: what is cut off is smaller than that

_CELLS = 48  # along the side of a cube as large as the organ's box: the grid on which it is taken apart
_FACES = ndimage.generate_binary_structure(3, 1)  # pieces that touch at an edge or a corner alone are apart


def bridged(organ: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """What hangs on an organ by a bridge.

    Args:
        organ: ``(I, J, K)`` bool, its smallest box.
        spacing: of the voxels in mm.

    Returns:
        Where there is something to cut off, ``(I, J, K)`` bool.
    """
    extent = np.multiply(organ.shape, spacing)
    steps = np.maximum(1, extent.prod() ** (1 / 3) / _CELLS // np.asarray(spacing)).astype(int)
    coarse = organ[tuple(slice(step // 2, None, step) for step in steps)]
    if not coarse.any():
        return np.zeros_like(organ)
    depth = ndimage.distance_transform_edt(np.pad(coarse, 1), sampling=steps * spacing)[1:-1, 1:-1, 1:-1]
    summits = local_maxima(reconstruction(THIN * depth, depth, footprint=_FACES), footprint=_FACES) & coarse
    markers, count = ndimage.label(summits, _FACES)
    if count < 2:
        return np.zeros_like(organ)
    pieces = watershed(-depth, markers, mask=coarse)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    small = sizes < SMALL * sizes.max()
    if not small[1:].any():
        return np.zeros_like(organ)
    cut = small[pieces]
    # voxels between those that were looked at go with the nearest of the organ's
    nearest = ndimage.distance_transform_edt(
        ~coarse, sampling=steps * spacing, return_distances=False, return_indices=True
    )
    cells = [
        np.minimum(np.arange(size) // step, limit - 1) for size, step, limit in zip(organ.shape, steps, coarse.shape)
    ]
    return organ & cut[tuple(nearest)][np.ix_(*cells)]
