"""Before intensities are scaled: what is no image is taken out of their range, and a range that is odd is said.

Scaling by percentiles begins at the darkest voxel. One voxel of -32768, or a border of padding, would then leave all
organs in a sliver of the range; so would numbers that are no Hounsfield units in a window of Hounsfield units.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from monai.utils import ImageMetaKey
from scipy import ndimage
from torch import Tensor

from ..errors import DatasetError
from .hounsfield import as_tensor, extremes, hounsfield_units, is_single, no_hounsfield_units, sample

MODALITIES = ("ct", "mr")
NOTES = "notes"  # in the meta of an image: what is odd about it, a line each
STATED = "stated_modality"  # there: the Modality that the series it was read from states; empty where none does

_BINS = 2000
_ROUNDS = 4  # one outlier may hide another
# shares of voxels that outliers of different values may be; more of them are part of the image
_MOST_ODD, _MOST_ODD_ABOVE = 1e-3, 0.1
_SATURATED = 2.5e-3  # share of bright voxels that the usual upper percentile, 99.5, does not leave out by itself
_BORDER = 0.25  # share of the border at one value that makes it padding
# how wide a gap must be to set values apart, relative to the range of the others
_GAP_BELOW, _GAP_BELOW_FROM_ZERO, _GAP_BELOW_FROM_NEGATIVE, _GAP_ABOVE = 0.5, 1.0, 0.05, 1.0

_FAR = 1e30  # between values: far below the largest number of single precision, with which some programs pad
# share of voxels at each end that may be anything, and the part of the range that all others fill at least
_ENDS, _FILLED = 0.02, 0.1

MODALITY = "modality"  # in the meta of an image: which scaling was chosen for it

logger = logging.getLogger(__name__)


class ScaleByModalityd(MapTransform):
    """Scales CT in its window and MR by its own percentiles, for folders in which both may lie.

    Args:
        keys: images ``(1, I, J, K)``.
        ct: the transform of CT, such as that of configs/ct.json.
        mr: the transform of MR, such as that of configs/mr.json.
        modality: ``"ct"`` or ``"mr"`` where all images are of one; None asks each, see :func:`modality_in`.

    Raises:
        DatasetError: an image that says nothing of its modality.
    """

    def __init__(
        self, keys: KeysCollection, *, ct: MapTransform, mr: MapTransform, modality: str | None = None
    ) -> None:
        super().__init__(keys)
        if modality not in (None, *MODALITIES):
            raise DatasetError(f"modality is '{modality}', expected ct or mr. Choose how intensities are scaled.")
        self.transforms, self.modality = dict(zip(MODALITIES, (ct, mr))), modality

    def of(self, image: Any) -> MapTransform:
        """The transform that this image needs."""
        meta = getattr(image, "meta", {})
        modality = self.modality or meta.get(MODALITY)
        if modality is None:
            path = meta.get(ImageMetaKey.FILENAME_OR_OBJ)
            modality = meta[MODALITY] = modality_in(image, path, stated=meta.get(STATED))
        return self.transforms[modality]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.of(result[key])({key: result[key]})[key]
        return result


def modality_in(image: Any, path: Any = None, *, stated: str | None = None) -> str:
    """``"ct"`` or ``"mr"``: what an image is, as far as it says so.

    DICOM states it. Of other formats only one thing is safe to conclude: what has the air, the fat and the organs of
    Hounsfield units, and nothing that speaks against them, is CT. The numbers of MR mean nothing by themselves, and CT
    stored without its offset looks like them.

    Args:
        image: its voxels.
        path: of its file or series, for the message.
        stated: the Modality that the DICOM series states that it was read from, of which several may lie in one folder;
            None, or empty, in other formats.

    Raises:
        DatasetError: it does not say, or it is neither.
    """
    if stated:
        if stated.lower() in MODALITIES:
            return stated.lower()
        raise DatasetError(
            f"'{path}': its Modality is {stated}, expected CT or MR. If its intensities are like those of one of them, "
            "say so with --modality ct or --modality mr."
        )
    if hounsfield_units(image) and no_hounsfield_units(image) is None:
        return "ct"
    values = as_tensor(image)
    if values.min() == values.max():
        raise DatasetError(
            f"'{path}': all voxels are {values.min().item():g}, expected an image. Export it again, or leave the case "
            "out."
        )
    raise DatasetError(
        f"'{path}': values from {values.min().item():g} to {values.max().item():g} do not say whether it is MR or CT, "
        "and each is scaled in its own way. Say which: --modality mr, or --modality ct."
    )


def chosen(intensity: Any, image: Any) -> Any:
    """The transform that scales an image, where it is chosen for each."""
    return intensity.of(image) if isinstance(intensity, ScaleByModalityd) else intensity


class LeaveOutPaddingd(MapTransform):
    """Puts padding and outliers to the ends of the range of all other voxels; without any, images stay as they are.

    What counts as such lies apart from all other values by a wide gap: a single value, or a few voxels. Zero, the usual
    background of MR, is held apart only if the gap is as wide as the range of the others.

    Where a window is stated, as for CT, no voxel moves it; but what surrounds the slices at one value brighter than its
    lower end, such as 0 where a program knew of no air, becomes as dark as air is.

    Args:
        keys: images ``(1, I, J, K)``, slices along the last axis.
        intensity: the transform that scales them.
    """

    def __init__(self, keys: KeysCollection, intensity: Any = None) -> None:
        super().__init__(keys)
        self.intensity = intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            transform = chosen(self.intensity, result[key])
            if isinstance(transform, ScaleIntensityRanged):
                result[key] = _in_air(result[key], transform.scaler.a_min)
            else:
                result[key] = self._without(result[key])
            if isinstance(transform, ScaleIntensityRangePercentilesd):
                _say_if_hardly_filled(result[key], transform.scaler.lower / 100, transform.scaler.upper / 100)
        return result

    def _without(self, image: Tensor) -> Tensor:
        values = as_tensor(image)
        found = _outliers(values, None)
        if found is None:
            return image
        below, above, padding = (torch.zeros(values.shape, dtype=torch.bool) for _ in range(3))
        ranges: list[tuple[float, float, int]] = []
        while found is not None and len(ranges) < _ROUNDS:
            left_out = below | above | padding
            odd_below, odd_above = ~left_out & (values < found.low), ~left_out & (values > found.high)
            kept = values[~(left_out | odd_below | odd_above)]
            if kept.min() == kept.max():  # what is left of two values is no range
                break
            odd = values[odd_below | odd_above]
            ranges.append((odd.min().item(), odd.max().item(), odd.numel()))
            below |= odd_below
            if found.is_padding:
                padding |= odd_above
            else:
                above |= odd_above
            found = _outliers(values, below | above | padding)
        if not ranges:
            return image
        kept, replaced = values[~(below | above | padding)], values.clone()
        # a few bright voxels stay the brightest, by which no percentile moves
        few = above.float().mean() < _SATURATED
        replaced[below | padding] = kept.min()
        replaced[above] = kept.max() if few else _percentile(kept, 0.995)
        texts = [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high, _ in ranges]
        share = 100 * sum(number for *_, number in ranges) / values.numel()
        remark(
            image,
            f"{share:.2g} % of its voxels are {' and '.join(texts)}, far from all others "
            f"({kept.min().item():g} to {kept.max().item():g}): taken for padding or errors, and left out of the range",
        )
        return _like(image, replaced)


def _in_air(image: Tensor, low: float) -> Tensor:
    """The image with air for what surrounds its slices at one brighter value.

    Args:
        image: ``(1, I, J, K)``.
        low: the number that air is shown as.
    """
    values = as_tensor(image)
    border = torch.cat([edge.flatten() for edge in (values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1])])
    bright = border[border > low]
    if not len(bright):
        return image
    value = bright.mode().values.item()
    if (bright == value).sum() < _BORDER * len(border):
        return image
    replaced, changed, dark = values.clone(), 0, at_most(low, image.dtype)
    for index in range(values.shape[-1]):
        pieces, _ = ndimage.label((values[0, ..., index] == value).numpy())
        outer = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
        around = torch.from_numpy(np.isin(pieces, outer[outer > 0]))
        replaced[0, ..., index][around] = dark
        changed += int(around.sum())
    remark(
        image,
        f"{100 * changed / values.numel():.2g} % of its voxels, around its slices, are {value:g}: taken for padding, "
        "and shown as air",
    )
    return _like(image, replaced)


def at_most(value: float, dtype: torch.dtype) -> float:
    """The whole number below a value, or the lowest that a type of integers has where it has none as low."""
    whole = math.floor(value)
    return float(whole if dtype.is_floating_point else max(whole, torch.iinfo(dtype).min))


def _like(image: Tensor, values: Tensor) -> Tensor:
    """Other voxels in the place of an image's."""
    result = values.to(image.dtype)
    if not isinstance(image, MetaTensor):
        return result
    return MetaTensor(result, meta=image.meta, applied_operations=image.applied_operations)


class CheckUnitsd(MapTransform):
    """Says where the numbers of an image are not those that its scaling is made for.

    Args:
        keys: images, as they are stored.
        intensity: the transform that scales them. In a window that begins below 0, which is one of CT, they are to be
            Hounsfield units; scaled by their own percentiles, as MR is, they are not.

    Raises:
        DatasetError: a window without width.
    """

    def __init__(self, keys: KeysCollection, intensity: Any) -> None:
        super().__init__(keys)
        if isinstance(intensity, ScaleIntensityRanged) and not intensity.scaler.a_min < intensity.scaler.a_max:
            raise DatasetError(
                f"intensity scales {intensity.scaler.a_min} ... {intensity.scaler.a_max} (a_min, a_max), which is no "
                "range. Set a_max above a_min."
            )
        self.intensity = intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            problem, values, intensity = None, as_tensor(data[key]), chosen(self.intensity, data[key])
            low, high = extremes(values)
            if low == high:
                problem = f"all voxels are {low:g}: there is no image in it"
            elif isinstance(intensity, ScaleIntensityRanged) and intensity.scaler.a_min < 0:
                problem = no_hounsfield_units(data[key])
            elif isinstance(intensity, ScaleIntensityRangePercentilesd):
                problem = hounsfield_units(data[key])
            if problem:
                remark(data[key], problem)
        return dict(data)


def remark(image: Any, text: str) -> None:
    """Says what is odd about an image, in the log, and in its meta for the records of a run."""
    meta = getattr(image, "meta", {})
    logger.warning("'%s': %s.", meta.get(ImageMetaKey.FILENAME_OR_OBJ, "an image"), text)
    if hasattr(image, "meta"):
        image.meta[NOTES] = "\n".join(filter(None, [image.meta.get(NOTES, ""), text]))


def _say_if_hardly_filled(image: Tensor, lower: float, upper: float) -> None:
    """Says it where almost all voxels lie in a sliver of the range by which they are scaled, by what does not lie apart
    from them enough to be left out.
    """
    values = sample(as_tensor(image)).flatten()
    shares = (lower, _ENDS, 1 - _ENDS, upper)
    low, from_, to, high = (_percentile(values, share).double() for share in shares)  # differences of int16 may not fit
    filled = (to - from_) / (high - low)
    if filled < _FILLED:  # of a constant image it is NaN
        remark(
            image,
            f"{100 - 200 * _ENDS:g} % of its voxels lie in {100 * filled.item():.2g} % of the range by which it is "
            f"scaled, {low.item():g} to {high.item():g}: its label map may be wrong. Is there noise, or padding of "
            "many values? Export the original series",
        )


class _Range(NamedTuple):
    """Between which values an image lies, and whether what lies above it is padding."""

    low: float
    high: float
    is_padding: bool


class _Spread(NamedTuple):
    """Where values lie, in bins of one width from the lowest to the highest; of ``F`` bins that hold any."""

    low: float
    high: float
    width: float
    filled: Tensor  # (F,): which bins
    gaps: Tensor  # (F - 1,): empty bins behind each filled one, but for the last
    shares: Tensor  # (F,): of all values, up to and with each filled bin


def _outliers(values: Tensor, left_out: Tensor | None) -> _Range | None:
    """The range of an image; None if nothing lies apart from it."""
    kept = values.reshape(-1).float() if left_out is None else values[~left_out].float()
    low, high = kept.min().item(), kept.max().item()
    if not low < high or not math.isfinite(high - low):
        return None
    if high - low > _FAR:  # a range that single precision cannot hold, or hardly
        kept = kept.double()
    counts = torch.histc(kept, _BINS, low, high)
    filled = torch.nonzero(counts).flatten()
    spread = _Spread(
        low,
        high,
        width=(high - low) / _BINS,
        filled=filled,
        gaps=filled.diff() - 1,
        shares=counts[filled].cumsum(0) / kept.numel(),
    )
    if not len(spread.gaps):
        return None
    return _apart_below(kept, spread) or _apart_above(kept, spread, values)


def _apart_below(kept: Tensor, spread: _Spread) -> _Range | None:
    """The range without what lies below it: the lowest value alone, whatever its share, or a few voxels."""
    low, high, width, filled, gaps, shares = spread
    top = filled[torch.searchsorted(shares, 0.995).clamp(max=len(filled) - 1)].item()
    for index in torch.nonzero(gaps > 0).flatten().tolist():
        single = index == 0 and is_single(kept, low, low + width)
        if not single and shares[index] > _MOST_ODD:
            break
        others = max(top - filled[index + 1].item(), 1) * width
        gap = gaps[index].item() * width
        needed = _GAP_BELOW
        if single and low == 0:
            needed = _GAP_BELOW_FROM_ZERO
        elif low < 0 <= low + filled[index + 1].item() * width + width:
            needed = _GAP_BELOW_FROM_NEGATIVE
        if gap >= needed * others:
            return _Range(low + (filled[index + 1].item() - 0.5) * width, high, is_padding=False)
    return None


def _apart_above(kept: Tensor, spread: _Spread, values: Tensor) -> _Range | None:
    """The range without what lies above it: the highest value alone, or a few voxels."""
    low, high, width, filled, gaps, shares = spread
    for index in reversed(torch.nonzero(gaps > 0).flatten().tolist()):
        share = 1 - shares[index].item()
        single = index == len(gaps) - 1 and is_single(kept, high - width, high)
        if not single and share > _MOST_ODD_ABOVE:
            break
        others = max(filled[index].item() - filled[0].item() + 1, 1) * width
        if gaps[index].item() * width >= _GAP_ABOVE * others:
            padded = single and _is_border(values, high)
            return _Range(low, low + (filled[index].item() + 1.5) * width, is_padding=padded)
    return None


def _is_border(values: Tensor, value: float) -> bool:
    """Whether much of the border of an image ``(1, I, J, K)`` is of one value."""
    faces = [values.select(axis, place) for axis in range(1, values.ndim) for place in (0, -1)]
    equal = sum(int((face == value).sum()) for face in faces)
    return equal >= _BORDER * sum(face.numel() for face in faces)


def _percentile(kept: Tensor, share: float) -> Tensor:
    return kept.flatten().kthvalue(max(1, int(share * kept.numel()))).values
