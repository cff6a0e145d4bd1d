"""What a volume says of a solid organ that no slice does: that it is one piece, and of one grey.

A network that sees slices takes a lung for a liver that is black with iron, where the liver itself is not in the slice
to compare with; what touches an organ and looks like it, for a part of it; and in one slice between two that hold an
organ, nothing. Spleen, liver and kidneys are of one piece, which nothing thin holds together, and even across a poor
coil their grey varies by less than a factor of two or three. Of hollow organs none of that is true. Not in the paper.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..errors import SettingError, listed
from .body import on_grid
from .bridges import bridged
from .components import Pieces, organ_boxes
from .grids import seen_on
from .stored import scaled

DARK, BRIGHT = 0.5, 3.0  # of the organ's median: what is darker or brighter is none of it
BLACK = 0.05  # of the range of greys: an organ darker than that, as one full of iron, counts as so grey
AROUND = 8.0  # mm to either side in a slice, over which greys are averaged
OVERLAP = 1 / 3  # of an organ's largest area, that two slices share where it has not ended in the one between them
SPARED = 0.95  # of the voxels that experts have drawn: an organ of which less would stay is not solid

_SLICES = 16  # looked at together

logger = logging.getLogger(__name__)


def solid_among(organs: Sequence[str], cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of the organs that are solid by labels that experts have drawn: they would stay as they are.

    Args:
        organs: names of the values 1...K.
        cases: training cases as they are preprocessed, ``"image"`` and ``"label"`` of one grid. An organ that is in
            none of them is not solid.
    """
    drawn, spared = np.zeros(len(organs)), np.zeros(len(organs))
    keep = KeepSolidOrgansd("label", organs, solid=organs)
    for case in cases:
        label = case["label"]
        stored = MetaTensor(label.as_tensor().cpu().short(), meta=label.meta)
        drawn += _voxels(stored, len(organs))
        spared += _voxels(keep({"image": case["image"], "label": stored})["label"], len(organs))
    solid = [organ for organ, of, left in zip(organs, drawn, spared) if of and left >= SPARED * of]
    logger.info("Solid, by the training labels: %s.", listed(solid) if solid else "no organ")
    return solid


def _voxels(labels: torch.Tensor, organs: int) -> np.ndarray:
    return np.bincount(labels.numpy().ravel(), minlength=organs + 1)[1 : organs + 1]


class KeepSolidOrgansd(MapTransform):
    """Takes away from solid organs what is darker than :data:`DARK` of their median grey or brighter than
    :data:`BRIGHT` of it (of :data:`BLACK` at least), on an average of what lies around; then all but the largest
    piece; then what hangs on it by a bridge (:func:`.bridges.bridged`). A single slice without the organ is filled
    before, between two in which it overlaps by more than :data:`OVERLAP`.

    Args:
        keys: label maps ``(1, I, J, K)`` of integers; changed in place.
        organs: names of the values 1...K.
        solid: those of them that are solid.
        image_key: the image ``(1, H, W, slices)`` in [0, 1], or with a note in its meta by which
            :func:`.stored.scaled` makes it so; on the grid of the label maps or a part of it, its axes in any order.

    Raises:
        SettingError: ``solid`` names something else.
    """

    def __init__(
        self, keys: KeysCollection, organs: Sequence[str], *, solid: Sequence[str], image_key: str = "image"
    ) -> None:
        super().__init__(keys)
        if unknown := [organ for organ in solid if organ not in organs]:
            raise SettingError(
                f"`solid_organs` names {_quoted(unknown)}, expected some of the organs {_quoted(organs)}. Correct it."
            )
        self.values = [organs.index(organ) + 1 for organ in solid]
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            volume: MetaTensor = result[key]
            image = on_grid(result[self.image_key], volume)
            onto = np.asarray(image.affine, float)
            (labels,) = volume.as_tensor().numpy()
            seen = seen_on(labels, np.asarray(volume.affine, float), onto, image.shape[1:])
            boxes = organ_boxes(seen, max(self.values, default=0))
            for value in self.values:
                if (box := boxes[value - 1]) is not None:
                    _keep_solid(seen[box], value, image.as_tensor()[(0, *box)].cpu(), image)
        return result


def _keep_solid(labels: np.ndarray, value: int, stored: torch.Tensor, image: MetaTensor) -> None:
    """What :class:`KeepSolidOrgansd` says of one organ, within its box; see :func:`_other_greys`."""
    spacing = voxel_sizes(np.asarray(image.affine, float))
    labels[_other_greys(labels == value, stored, image, spacing)] = 0
    labels[_missed(labels == value) & (labels == 0)] = value
    if not (labels == value).any():
        return
    pieces = Pieces(labels, value)
    pieces.keep_largest()
    labels = labels[pieces.box]
    labels[bridged(labels == value, spacing)] = 0


def _other_greys(organ: np.ndarray, stored: torch.Tensor, image: MetaTensor, spacing: np.ndarray) -> np.ndarray:
    """Where an organ ``(H, W, slices)`` is too dark or too bright to be it.

    Args:
        organ: bool.
        stored: the image where the organ is, as it is stored.
        image: the whole of it, for :func:`.stored.scaled`.
        spacing: of the voxels in mm.
    """
    held = torch.from_numpy(organ)
    median = float(scaled(stored[held], image).median())
    sizes = [2 * int(AROUND / step) + 1 for step in spacing[:2]]
    other = np.zeros_like(organ)
    for start in range(0, organ.shape[2], _SLICES):  # some at a time: copies of the whole would be large
        part = (..., slice(start, start + _SLICES))
        inside = organ[part].astype(np.float32)
        grey = inside * scaled(stored[part], image).numpy()
        around, share = (ndimage.uniform_filter(each, (*sizes, 1), mode="constant") for each in (grey, inside))
        mean = around / np.maximum(share, np.finfo(np.float32).tiny)
        other[part] = organ[part] & ((mean < DARK * median) | (mean > BRIGHT * max(median, BLACK)))
    return other


def _missed(organ: np.ndarray) -> np.ndarray:
    """What lies between, in shape, where an organ ``(H, W, slices)`` is in two slices and not in the one between."""
    missed = np.zeros_like(organ)
    areas = organ.sum((0, 1))
    there = areas > 0
    for index in np.flatnonzero(~there[1:-1] & there[:-2] & there[2:]) + 1:
        before, after = organ[..., index - 1], organ[..., index + 1]
        if (before & after).sum() > OVERLAP * areas.max():
            missed[..., index] = _depth(before) + _depth(after) > 0
    return missed


def _depth(mask: np.ndarray) -> np.ndarray:
    """Distance from the edge in pixels, which an organ has at the ends of its box, too; negative outside."""
    mask = np.pad(mask, 1)
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return depth[1:-1, 1:-1]


def _quoted(names: Sequence[str]) -> str:
    return listed(f"'{name}'" for name in names)
