"""Prompts drawn from a true mask, as the rows of SAM and SAM2 have them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

PROMPTS = ("points", "click", "box")

_INSIDE, _CORNERS = 1, (2, 3)  # SAM's labels of points


def prompt_points(
    mask: np.ndarray, prompt: str, count: int = 1, generator: np.random.Generator | None = None
) -> tuple[list[list[int]], list[int]]:
    """Points as (x, y) in voxels of the mask, and SAM's label of each.

    Args:
        mask: ``(H, W)`` bool, with at least one voxel inside.
        prompt: ``"points"``, drawn among the voxels inside, each at most once; ``"click"``, the voxel farthest from
            the outline; ``"box"``, two corners.
        count: how many points are drawn, fewer if the mask has fewer voxels.
        generator: that draws them.

    Raises:
        ValueError: an unknown prompt, or an empty mask.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got '{prompt}'.")
    rows, columns = mask.nonzero()
    if not len(rows):
        raise ValueError("Expected a mask with at least one voxel inside, got an empty one.")
    if prompt == "box":
        return [[int(columns.min()), int(rows.min())], [int(columns.max()), int(rows.max())]], list(_CORNERS)
    if prompt == "click":
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        return [[int(column), int(row)]], [_INSIDE]
    generator = generator or np.random.default_rng()
    drawn = generator.choice(len(rows), min(count, len(rows)), replace=False)
    return [[int(columns[index]), int(rows[index])] for index in drawn], [_INSIDE] * len(drawn)
