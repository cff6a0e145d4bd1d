"""Where the body lies in a scan's slices, and slices in which it is about as large as in others.

The network sees slices stretched to one size. Where a body fills half of a wide field of view its organs are half as
large there as in other scans, and where a narrow field ends in the body they are larger; where one side of a field is
twice the other they are distorted. A network that knows them in about one size and shape loses them. Not in the paper,
which stretches whole slices.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform, Pad
from monai.utils import ImageMetaKey, TraceKeys
from nibabel.affines import voxel_sizes
from scipy import ndimage
from torch import Tensor

from .grids import beyond, part_on
from .intensity import at_most
from .stored import WINDOW, scaled

DARK = 0.08  # of the range of intensities: air and noise lie below
LARGE = 0.25  # of the area of a slice's largest piece: smaller ones, such as tables and arms, are no part of a body
MARGIN = 0.02  # of the body's extent, on each side
LONG = 1.4  # times the shorter side of a field, in mm: one whose longer side is more is not stretched to a square
CUT = 0.1  # of each of two opposite borders, over all slices: where more of it lies in the body, the field ends there
# mm: a field that ends in the body, and has no side as long, is shown as if it were so wide
NARROW, USUAL = 310.0, 340.0
WIDTH = 1.5  # of a field, as much as a body measures from front to back: where that is less than USUAL
ABSENT = -1024.0  # the logit that SAM2 gives to an object that is not there

logger = logging.getLogger(__name__)

_SLICES = 24  # looked at, evenly spaced
_SIDE = 256  # of the slices that are looked at, or a little more


class CropToBodyd(MapTransform, InvertibleTransform):
    """Shows volumes in plane as the network knows bodies: cropped where the body fills little of the field of view, and
    with ``air`` where the field is narrow or long; all others stay as they are. See :func:`field_of_body`.

    What is outside of it is background once this is undone.

    Args:
        keys: volumes ``(C, H, W, slices)`` of one grid; beyond the field the image is as dark as air, and others are 0.
        fill: the share of the field's height or width, whichever is larger, from which on nothing is cropped; 0 takes
            the field as it is.
        organs: K; of results in floating point with more channels than that, 1...K are the organs' logits.
        air: whether narrow and long fields are put into air: for a network that knows whole bodies, and not for one
            that was trained on such fields as they are.
        source_key: the image, in [0, 1] or with a note in its meta by which :func:`.stored.scaled` makes it so.
    """

    def __init__(
        self, keys: KeysCollection, *, fill: float, organs: int, air: bool = False, source_key: str = "image"
    ) -> None:
        super().__init__(keys)
        self.fill, self.organs, self.air, self.source_key = fill, organs, air, source_key
        self.crop, self.pad = Crop(), Pad()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image = result[self.source_key]
        field = field_of_body(image, self.fill, air=self.air)
        sizes = image.shape[1:3]
        inside = tuple(slice(max(side.start, 0), min(side.stop, size)) for side, size in zip(field, sizes))
        air = beyond(field, sizes)
        if field != (slice(0, sizes[0]), slice(0, sizes[1])):
            name = getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "an image")
            rows, columns = (f"{side.start}...{side.stop - 1} of {size}" for side, size in zip(field, sizes))
            what = "put into air about a narrow or long field" if np.any(air) else "cropped to the body"
            logger.info("'%s': slices are %s, rows %s, columns %s.", name, what, rows, columns)
        for key in self.key_iterator(result):
            result[key] = self.crop(result[key], inside)
            if np.any(air):
                value = darkest(image) if key == self.source_key else 0
                around = [(0, 0), *air, (0, 0)]
                result[key] = self.pad(result[key], to_pad=around, mode="constant", value=value)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            if result[key].applied_operations[-1][TraceKeys.CLASS_NAME] == Pad.__name__:
                result[key] = self.pad.inverse(result[key])
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


def field_of_body(image: Tensor, fill: float, *, air: bool = False) -> tuple[slice, slice]:
    """The rows and columns of a volume's slices that the network is to see, which may lie beyond the field.

    A body that fills little of the field is cropped to, in the field's shape. With ``air``, a field whose sides differ
    much becomes a square about the body: stretched to the network's square slice, the body would be as wide as high.
    And where the field ends in the body and is narrow, air is added until it is as wide as others are, or what is left
    of the body would be stretched to the size of a whole one.

    Args:
        image: ``(1, H, W, slices)``, with its affine; see :class:`CropToBodyd`.
        fill, air: see there.
    """
    sizes, count = image.shape[1:3], image.shape[3]
    whole = slice(0, sizes[0]), slice(0, sizes[1])
    if not fill:
        return whole
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SLICES)).round().astype(int)).tolist()
    voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
    planes = scaled(voxels[0, ..., chosen], image).permute(2, 0, 1)
    step = max(1, min(sizes) // _SIDE)
    planes = F.avg_pool2d(F.avg_pool2d(planes[:, None], step, ceil_mode=True), 3, 1, 1, count_include_pad=False)[:, 0]
    bodies = [body for body in map(_large_pieces, (planes > DARK).numpy()) if body.any()]
    if not bodies:
        return whole
    body = np.logical_or.reduce(bodies)
    spacing = voxel_sizes(np.asarray(image.affine, float))[:2] if isinstance(image, MetaTensor) else np.ones(2)
    extents = [np.flatnonzero(body.any(axis))[[0, -1]] * step + [0, step] for axis in (1, 0)]
    share = (1 + 2 * MARGIN) * max((end - start) / size for (start, end), size in zip(extents, sizes))
    lengths = np.multiply(sizes, spacing) * (share if share < fill else 1)
    if air and lengths.max() > LONG * lengths.min():
        across = (1 + 2 * MARGIN) * max(np.diff(extents)[:, 0] * spacing)
        lengths = np.full(2, max(across, lengths.min()))
    if air and lengths.max() < NARROW:
        front, sides = _ends_at(bodies)
        # what a body measures from front to back says how wide it is: a child's narrow field may hold nearly all of it
        usual = USUAL if front else min(USUAL, WIDTH * float(np.diff(extents[0])[0] * spacing[0]))
        if (front or sides) and usual > lengths.max():
            lengths = np.full(2, usual)
    counts = np.ceil(np.round(lengths / spacing, 6)).astype(int).tolist()
    rows, columns = (_window(start, end, length, size) for (start, end), length, size in zip(extents, counts, sizes))
    return rows, columns


def _ends_at(bodies: Sequence[np.ndarray]) -> tuple[bool, bool]:
    """Whether the field ends in bodies ``(H, W)``, both in front and at the back; and both to the left and right."""
    borders = np.mean([[edge.mean() for edge in (each[0], each[-1], each[:, 0], each[:, -1])] for each in bodies], 0)
    return bool(borders[:2].min() > CUT), bool(borders[2:].min() > CUT)


def darkest(image: Tensor) -> float:
    """A number that an image holds, or may hold, that is 0 once it is scaled: air's."""
    noted = getattr(image, "meta", {}).get(WINDOW)
    if noted is None:
        return 0.0
    return at_most(float(torch.as_tensor(noted).flatten()[0]), image.dtype)


def on_grid(image: MetaTensor, grid: MetaTensor) -> MetaTensor:
    """The part of an image that lies on a grid along the same axes, in whatever order and direction; air was perhaps
    added to it. Over the same memory.

    Args:
        image: ``(1, H, W, slices)``.
        grid: ``(C, I, J, K)``.
    """
    affine, onto = (np.asarray(each.affine, float) for each in (grid, image))
    part = part_on(affine, grid.shape[1:], onto, image.shape[1:])
    if [each.stop - each.start for each in part] == list(image.shape[1:]):
        return image
    shift = np.eye(4)
    shift[:3, 3] = [each.start for each in part]
    inside = MetaTensor(image.as_tensor()[(slice(None), *part)]).copy_meta_from(image)
    inside.affine = image.affine @ torch.from_numpy(shift).to(image.affine)
    return inside


def _large_pieces(mask: np.ndarray) -> np.ndarray:
    """The pieces of a slice ``(H, W)`` that are not much smaller than its largest one."""
    pieces, count = ndimage.label(mask)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= LARGE * areas.max())[pieces] & mask


def _window(start: int, end: int, length: int, size: int) -> slice:
    """So many voxels of an axis about the middle of a body, within the field, or around it where it is shorter."""
    inside = min(max((int(start) + int(end) - length) // 2, 0), size - length)
    first = inside if length <= size else (size - length) // 2
    return slice(first, first + length)
