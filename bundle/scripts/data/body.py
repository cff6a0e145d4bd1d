"""Where the body lies in a scan's slices, and slices without the air around it.

The network sees slices stretched to one size. Where a body fills half of a wide field of view its organs are half as
large there as in other scans, and a network that knows them in one size alone loses them. Not in the paper, which
stretches whole slices.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform
from monai.utils import ImageMetaKey, TraceKeys
from scipy import ndimage
from torch import Tensor

from .stored import scaled

DARK = 0.08  # of the range of intensities: air and noise lie below
LARGE = 0.25  # of the area of a slice's largest piece: smaller ones, such as tables and arms, are no part of a body
MARGIN = 0.02  # of the body's extent, on each side
ABSENT = -1024.0  # the logit that SAM2 gives to an object that is not there

logger = logging.getLogger(__name__)

_SLICES = 24  # looked at, evenly spaced
_SIDE = 256  # of the slices that are looked at, or a little more


class CropToBodyd(MapTransform, InvertibleTransform):
    """Crops volumes in plane to the body, where it fills little of the field of view; others stay as they are.

    The part keeps the shape of the field, and lies within it. What is outside of it is background once this is undone.

    Args:
        keys: volumes ``(C, H, W, slices)`` of one grid.
        fill: the share of the field's height or width, whichever is larger, from which on nothing is cropped; 0 crops
            nothing.
        organs: K; of results in floating point with more channels than that, 1...K are the organs' logits.
        source_key: the image, in [0, 1] or with a note in its meta by which :func:`.stored.scaled` makes it so.
    """

    def __init__(self, keys: KeysCollection, *, fill: float, organs: int, source_key: str = "image") -> None:
        super().__init__(keys)
        self.fill, self.organs, self.source_key = fill, organs, source_key
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image = result[self.source_key]
        part = field_of_body(image, self.fill)
        if [side.stop - side.start for side in part] != list(image.shape[1:3]):
            name = getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "an image")
            rows, columns = (f"{side.start}...{side.stop - 1} of {size}" for side, size in zip(part, image.shape[1:3]))
            logger.info("'%s': slices are cropped to the body, rows %s, columns %s.", name, rows, columns)
        for key in self.key_iterator(result):
            result[key] = self.crop(result[key], part)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            cropped = self.crop.pop_transform(result[key])[TraceKeys.EXTRA_INFO]["cropped"]
            result[key] = self._put_back(result[key], [int(each) for each in cropped])
        return result

    def _put_back(self, part: MetaTensor, cropped: list[int]) -> MetaTensor:
        """A result on the grid that was cropped by so many voxels at the start and the end of each axis."""
        if not any(cropped):
            return part
        channels, *shape = part.shape
        starts, ends = cropped[::2], cropped[1::2]
        height, width, slices = (size + start + end for size, start, end in zip(shape, starts, ends))
        # each slice lies together in memory, as it does in the results of an inferer
        whole = part.as_tensor().new_zeros((channels, slices, height, width)).permute(0, 2, 3, 1)
        if channels > self.organs and part.is_floating_point():
            whole[1 : 1 + self.organs] = ABSENT
        inside = tuple(slice(start, start + size) for start, size in zip(starts, shape))
        whole[(slice(None), *inside)] = part.as_tensor()
        result = MetaTensor(whole).copy_meta_from(part)
        shift = np.eye(4)
        shift[:3, 3] = [-start for start in starts]
        result.affine = part.affine @ torch.from_numpy(shift).to(part.affine)
        return result


def field_of_body(image: Tensor, fill: float) -> tuple[slice, slice]:
    """The rows and columns of a volume's slices that hold the body, in the field's shape.

    Args:
        image: ``(1, H, W, slices)``, see :class:`CropToBodyd`.
        fill: see there.
    """
    height, width, count = image.shape[1:]
    whole = slice(0, height), slice(0, width)
    if not fill:
        return whole
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SLICES)).round().astype(int)).tolist()
    voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
    planes = scaled(voxels[0, ..., chosen], image).permute(2, 0, 1)
    step = max(1, min(height, width) // _SIDE)
    planes = F.avg_pool2d(F.avg_pool2d(planes[:, None], step, ceil_mode=True), 3, 1, 1, count_include_pad=False)[:, 0]
    body = np.zeros(planes.shape[1:], bool)
    for plane in (planes > DARK).numpy():
        body |= _large_pieces(plane)
    if not body.any():
        return whole
    sides = [np.flatnonzero(body.any(axis))[[0, -1]] * step + [0, step] for axis in (1, 0)]
    share = (1 + 2 * MARGIN) * max((end - start) / size for (start, end), size in zip(sides, (height, width)))
    if share >= fill:
        return whole
    rows, columns = (_window(start, end, share, size) for (start, end), size in zip(sides, (height, width)))
    return rows, columns


def _large_pieces(mask: np.ndarray) -> np.ndarray:
    """The pieces of a slice ``(H, W)`` that are not much smaller than its largest one."""
    pieces, count = ndimage.label(mask)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= LARGE * areas.max())[pieces] & mask


def _window(start: int, end: int, share: float, size: int) -> slice:
    """A share of an axis, about the middle of a body and within the field."""
    length = min(size, int(np.ceil(share * size)))
    first = min(max((int(start) + int(end) - length) // 2, 0), size - length)
    return slice(first, first + length)
