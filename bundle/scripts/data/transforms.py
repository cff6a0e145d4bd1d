"""Transforms MONAI does not have: reproducible augmentation variants, names of cases, labels that shrink in place."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, RandomizableTransform, Resize, ScaleIntensityRanged, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from torch import Tensor

from ..descriptions import describe as describe  # noqa: F401  it notes what transforms are built with
from ..errors import SettingError
from .components import Pieces, organ_boxes
from .intensity import chosen

_SAME_SHARE = 1e-4  # of a voxel's place: what two labels have of it differs by rounding alone


class AugmentedVariant(Transform):
    """Applies random transforms reproducibly: the same seed, case and variant give the same result, in any order.

    The embedding cache holds a fixed number of augmented variants of each volume; this is what tells them apart.

    Args:
        transform: MONAI's random (and other) transforms over a dictionary.
        seed: of the whole set of variants.
    """

    def __init__(self, transform: Compose, seed: int = 0) -> None:
        self.transform, self.seed = transform, seed

    def __call__(self, data: Mapping[Hashable, Any], case: str = "", variant: int = 0) -> dict[Hashable, Any]:
        """Variant 0 is the volume as it is; 1, 2, ... are augmented."""
        if variant == 0:
            return dict(data)
        entropy = [self.seed, variant, *os.fsencode(case)]  # names of files are not always UTF-8
        self.transform.set_random_state(seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        return dict(self.transform(data))


class NameByCased(MapTransform):
    """Writes the name of the case into the images' ``meta``, so that results are named after it.

    Files of two cases may have one name, as in ``a01/ct.nii.gz`` and ``a02/ct.nii.gz``; cases never do.

    Args:
        keys: MetaTensors.
        case_key: of the name.
    """

    def __init__(self, keys: KeysCollection, case_key: str = "case") -> None:
        super().__init__(keys)
        self.case_key = case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key].meta["case"] = result[self.case_key]
        return result


class ResizeLabeld(MapTransform):
    """Resizes label maps to where MONAI's ``Resized`` puts the image, also where they shrink.

    Where a side is halved, each new voxel lies right between two old ones, and nearest neighbours would always take the
    same one: the label would move by half a voxel against its image. A smaller label map holds in each voxel the label
    that has the most of its place, the lowest where several have as much, which is the background where it is among
    them. A larger one has nearest neighbours.

    Args:
        keys: label maps ``(1, H, W, slices)`` of integers.
        spatial_size: as of ``Resized``; slices stay as many as they are.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int]) -> None:
        super().__init__(keys)
        self.nearest = Resize(spatial_size, mode="nearest-exact")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            resized = self.nearest(result[key])
            if any(new < old for new, old in zip(resized.shape[1:3], result[key].shape[1:3])):
                planes = convert_to_tensor(result[key], track_meta=False)[0].permute(2, 0, 1)
                shrunk = shrink_labels(planes, resized.shape[1:3]).permute(1, 2, 0)[None]
                resized = convert_to_dst_type(shrunk, resized)[0]
            result[key] = resized
        return result


def shrink_labels(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Label maps ``(slices, H, W)`` in another size: in each pixel the label that has the most of its place."""
    best = torch.zeros((len(planes), *size), dtype=torch.float32)
    labels = torch.zeros((len(planes), *size), dtype=planes.dtype)
    for value in planes.unique().tolist():  # from the background on: a later one must have more
        mask = (planes == value).float()[:, None]
        share = F.interpolate(mask, tuple(size), mode="bilinear", antialias=True)[:, 0]
        more = share > best + _SAME_SHARE
        best[more], labels[more] = share[more], value
    return labels


class InSlabsd(MapTransform):
    """Applies a transform of intensities to float32 volumes, a few slices at a time where it can.

    MONAI's scaling makes three copies of what it scales: of whole volumes these would be the most memory that
    inference ever takes.

    Args:
        transform: over a dictionary, which keeps shapes. One that looks at each voxel by itself, which is
            ``ScaleIntensityRanged``, is given a few slices at a time; any other the whole volume.
        slices: at a time, along the last axis.
    """

    def __init__(self, transform: MapTransform, slices: int = 16) -> None:
        super().__init__(transform.keys)
        self.transform, self.slices = transform, slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            transform = chosen(self.transform, result[key])
            if not isinstance(transform, ScaleIntensityRanged):
                result[key] = convert_to_dst_type(result[key], result[key], dtype=torch.float32)[0]
                result[key] = transform({**result})[key]
                continue
            stored = convert_to_tensor(result[key], track_meta=False)
            scaled = torch.empty_like(stored, dtype=torch.float32)
            for into, slab in zip(scaled.split(self.slices, -1), stored.split(self.slices, -1)):
                into.copy_(transform({**data, key: slab.float()})[key])
            result[key] = convert_to_dst_type(scaled, result[key], dtype=torch.float32)[0]
        return result


class KeepLargestComponentsd(MapTransform):
    """MONAI's ``KeepLargestConnectedComponentd`` of label maps, each organ looked at within its bounding box alone, and
    there a few slices at a time.

    Args:
        keys: label maps ``(1, ...)`` of integers; changed in place, as by MONAI's transform.
        organs: K; values 1...K are organs, of each of which the largest component of full connectivity stays.
    """

    def __init__(self, keys: KeysCollection, organs: int) -> None:
        super().__init__(keys)
        self.organs = organs

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            (labels,) = (volume.as_tensor() if isinstance(volume, MetaTensor) else volume).numpy()
            for value, box in enumerate(organ_boxes(labels, self.organs), 1):
                if box is not None:
                    Pieces(labels[box], value).keep_largest()
        return result


class RandInPlaneDeformd(RandomizableTransform, MapTransform):
    """Smooth random deformation of axial slices, varying slowly from slice to slice; slices stay where they are.

    MONAI's elastic transforms deform either single slices, which tears volumes apart, or volumes isotropically, which
    for slices 5 mm apart mixes neighbours.

    Args:
        keys: volumes ``(C, H, W, slices)`` of one shape.
        prob: probability to deform at all.
        magnitude: standard deviation of the displacement, as a share of the slice's side.
        cells: control points of the displacement along each side.
        mode: interpolation for each key, "bilinear" or "nearest".
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        *,
        magnitude: float = 0.02,
        cells: int = 6,
        mode: Sequence[str] | str = "bilinear",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.magnitude, self.cells = magnitude, cells
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self._coarse: np.ndarray | None = None

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            self._coarse = self.R.normal(0.0, 2 * self.magnitude, (1, 2, 3, self.cells, self.cells))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        result = dict(data)
        if not self._do_transform:
            return result
        _, height, width, slices = result[self.keys[0]].shape
        coarse = torch.as_tensor(self._coarse, dtype=torch.float32)
        fine = F.interpolate(coarse, (slices, self.cells, self.cells), mode="trilinear", align_corners=True)
        fine = F.interpolate(fine[0].transpose(0, 1), (height, width), mode="bicubic", align_corners=True)
        identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)
        grid = identity + fine.permute(0, 2, 3, 1)
        for key, mode in self.key_iterator(result, self.mode):
            volume = convert_to_tensor(result[key], dtype=torch.float32, track_meta=False).permute(3, 0, 1, 2)
            deformed = F.grid_sample(volume, grid, mode=mode, padding_mode="zeros", align_corners=False)
            result[key] = convert_to_dst_type(deformed.permute(1, 2, 3, 0).contiguous(), result[key])[0]
        return result


class RandOrganContrastd(RandomizableTransform, MapTransform):
    """Brightens or darkens chosen organs, each by a random factor of its own.

    Gamma and noise change an image as a whole, but disease, contrast agent and sequence change organs one by one: a
    liver that stores iron is black in T2, and none of three training volumes may show it. Uses the training labels
    only.

    Args:
        keys: images ``(1, H, W, slices)`` in [0, 1].
        organs: names, in the order of the label values 1, 2, ...
        factor_ranges: for each organ that varies, the smallest and largest factor, drawn log-uniformly; organs that
            are not named stay as they are.
        label_key: label of the images' shape, 0 background.
        prob: probability for each organ.

    Raises:
        ValueError: a range that is not 0 < low <= high, or an organ that is not among ``organs``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        organs: Sequence[str],
        *,
        factor_ranges: Mapping[str, Sequence[float]],
        label_key: str = "label",
        prob: float = 0.5,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        for organ, factor_range in factor_ranges.items():
            if organ not in organs:
                raise SettingError(f"factor_ranges names '{organ}', but the organs are {list(organs)}.")
            if len(factor_range) != 2 or not 0 < factor_range[0] <= factor_range[1]:
                raise SettingError(
                    f"factor_ranges['{organ}'] must be [low, high], 0 < low <= high, got {factor_range}."
                )
        self.label_key, self.organ_prob = label_key, prob
        self.factor_ranges = {list(organs).index(organ) + 1: tuple(pair) for organ, pair in factor_ranges.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if not self.factor_ranges:
            return result
        label = convert_to_tensor(result[self.label_key], dtype=torch.float32, track_meta=False)
        factor = torch.ones_like(label)
        for value, factor_range in self.factor_ranges.items():
            chosen, drawn = self.R.random_sample() < self.organ_prob, self.R.uniform(*np.log(factor_range))
            if chosen:
                factor[label == value] = float(np.exp(drawn))
        # labels are sharp, organs are not: without a soft edge a bright rim stays around a darkened organ
        factor = F.avg_pool2d(factor.permute(3, 0, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
        factor = factor.permute(1, 2, 3, 0)
        for key in self.key_iterator(result):
            image = convert_to_tensor(result[key], dtype=torch.float32, track_meta=False)
            result[key] = convert_to_dst_type((image * factor).clamp(0, 1), result[key])[0]
        return result
