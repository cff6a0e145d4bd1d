"""Where the slices of a DICOM series lie, and whether they fill a box evenly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from nibabel.affines import apply_affine
from pydicom.multival import MultiValue

from ..errors import DatasetError, count, listed
from .dicom_pixels import Rescale, frames_of
from .dicom_series import is_localizer

DISTANCE_TOLERANCE = 0.05  # of the usual distance between slices: above rounding in headers, below a missing slice
PLACE_TOLERANCE = 0.5  # of a voxel, by which a slice may lie beside its place in an even grid
DIRECTION_TOLERANCE = 1e-3  # of direction cosines, and relatively of pixel spacings
# by which volumes that share a series can be told apart: elements of files, and of frames in these groups
_APART = (
    *((None, tag) for tag in ("EchoTime", "TemporalPositionIdentifier", "ImageType", "ComplexImageComponent")),
    *((None, "DiffusionBValue"), ("MRDiffusionSequence", "DiffusionBValue"), ("MREchoSequence", "EffectiveEchoTime")),
    *(("FrameContentSequence", tag) for tag in ("StackID", "TemporalPositionIndex")),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    *(("MRImageFrameTypeSequence", tag) for tag in ("ComplexImageComponent", "FrameType")),
    *((f"{modality}ImageFrameTypeSequence", "FrameType") for modality in ("CT", "PET")),
)
_OF_FILES = {tag for sequence, tag in _APART if sequence is None}
# the same, where each slice of one volume may have its own, as of slices that are acquired by turns
_OWN = (
    *((None, tag) for tag in ("AcquisitionNumber", "TriggerTime")),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)
_TIMES = {"EchoTime": 0.1, "EffectiveEchoTime": 0.1, "TemporalPositionTimeOffset": 1e-3}  # what is one, by rounding
_TYPES = ("ImageType", "FrameType")  # whose first two values say how an image was made, not of what


@dataclass(frozen=True)
class Slice:
    """A slice: where it is stored, and where it lies in DICOM's millimetres, which are LPS+.

    Where it lies is None as long as :func:`stacked` has not refused slices whose headers do not say it.
    """

    file: Path
    frame: int
    header: pydicom.Dataset
    position: np.ndarray | Any  # (3,): of the first pixel
    axes: np.ndarray | Any  # (2, 3): unit vectors to the next column, to the next row
    spacing: np.ndarray | Any  # (2,): between rows, between columns
    thickness: float | None
    rescale: Rescale
    is_rescaled: bool  # by its header, which may well say so with a slope of 1
    has_no_slope: bool  # but a 0 in place of one
    kinds: Mapping[str, str]  # what it says for :data:`_APART` and :data:`_OWN`

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def height(self) -> float:
        """Position along the normal."""
        return float(np.cross(self.axes[0], self.axes[1]) @ self.position)

    @property
    def is_localizer(self) -> bool:
        return is_localizer(self.header)

    def __str__(self) -> str:
        return f"'{self.file.name}'" + (f" frame {self.frame + 1}" if self.header.get("NumberOfFrames") else "")


def slices_of(file: Path, header: pydicom.Dataset) -> Iterator[Slice]:
    """The slice of a file, or one for each frame: enhanced DICOM keeps positions and the like by frame, or shared."""
    frames = frames_of(file, header)
    by_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    if by_frame and len(by_frame) != frames:
        raise DatasetError(
            f"'{file}': NumberOfFrames {frames}, and {count(len(by_frame), 'item')} in its "
            "PerFrameFunctionalGroupsSequence, expected as many. Copy or export the series again."
        )
    shared = header.get("SharedFunctionalGroupsSequence") or ()

    def numbers(frame: int, group: str, tag: str, *shape: int) -> np.ndarray | None:
        holder = header if frames == 1 or tag != "ImagePositionPatient" else None
        for groups in (*by_frame[frame : frame + 1], *shared):
            if groups.get(group) and tag in groups[group][0]:
                holder = groups[group][0]
                break
        found = None if holder is None else decimals(file, holder, tag)
        if found is not None and len(found) != np.prod(shape) and tag.startswith("Rescale"):
            raise DatasetError(f"'{file}': {tag} is {listed(found, 3)}, expected one number. Export the series again.")
        return np.array(found, float).reshape(shape) if found is not None and len(found) == np.prod(shape) else None

    for frame in range(frames):
        measures, rescale = "PixelMeasuresSequence", "PixelValueTransformationSequence"
        thickness = numbers(frame, measures, "SpacingBetweenSlices", 1)
        if thickness is None or not thickness[0]:
            thickness = numbers(frame, measures, "SliceThickness", 1)
        slope, intercept = (numbers(frame, rescale, tag, 1) for tag in ("RescaleSlope", "RescaleIntercept"))
        stated = any(each is not None for each in (slope, intercept)) or bool(header.get("ModalityLUTSequence"))
        mapped = None if stated else _in_hounsfield(file, header, (*by_frame[frame : frame + 1], *shared, header))
        # a slope of 0, which would make all voxels alike, is how some programs write that there is none
        own = Rescale(
            float(slope[0]) if slope is not None and slope[0] else 1.0,
            0.0 if intercept is None else float(intercept[0]),
        )
        yield Slice(
            file=file,
            frame=frame,
            header=header,
            position=numbers(frame, "PlanePositionSequence", "ImagePositionPatient", 3),
            axes=numbers(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 2, 3),
            spacing=numbers(frame, measures, "PixelSpacing", 2),
            thickness=abs(float(thickness[0])) if thickness is not None and thickness[0] else None,
            rescale=mapped or own,
            is_rescaled=stated or mapped is not None,
            has_no_slope=slope is not None and not slope[0],
            kinds=_kinds(header, by_frame[frame : frame + 1]),
        )


def _kinds(header: pydicom.Dataset, groups: Sequence[pydicom.Dataset]) -> dict[str, str]:
    """What a slice says for each element of :data:`_APART` and :data:`_OWN`, a frame before its file."""
    kinds: dict[str, str] = {}
    for group, tag in (*_APART, *_OWN):
        for item in [header] if group is None else [item for each in groups for item in (each.get(group) or ())[:1]]:
            try:
                value = item.get(tag)
            except (TypeError, ValueError, OverflowError):  # no number in place of one: no volume is known by it
                continue
            values = value if isinstance(value, (list, MultiValue)) else [value]
            if text := "\\".join(str(each) for each in values if each is not None):
                kinds[tag] = text
    return kinds


def _in_hounsfield(file: Path, header: pydicom.Dataset, holders: Sequence[pydicom.Dataset]) -> Rescale | None:
    """The slope and intercept of a CT that states them as a mapping to real values alone; None where none does."""
    if header.get("Modality") != "CT":  # elsewhere these are quantities of which the stored values are as good
        return None
    for mapping in (item for holder in holders for item in holder.get("RealWorldValueMappingSequence") or ()):
        unit = (mapping.get("MeasurementUnitsCodeSequence") or [pydicom.Dataset()])[0]
        if unit.get("CodeValue") == "[hnsf'U]" or mapping.get("LUTLabel") == "HU":
            slope, intercept = (
                decimals(file, mapping, f"RealWorldValue{each}") or () for each in ("Slope", "Intercept")
            )
            if len(slope) == len(intercept) == 1 and slope[0]:
                return Rescale(float(slope[0]), float(intercept[0]))
    return None


def decimals(file: Path, dataset: pydicom.Dataset, keyword: str) -> list[float] | None:
    """The numbers of an element, also where a comma stands in place of the decimal point; None where there are none.

    Raises:
        DatasetError: no numbers.
    """
    if keyword not in dataset:
        return None
    try:
        value = dataset.get(keyword)
    except (TypeError, ValueError):  # which pydicom finds when it is asked for the value, and keeps the bytes
        value = dataset.get_item(keyword).value
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip("\0 ").split("\\")
    values = [value] if isinstance(value, (str, int, float)) else list(value or ())
    if not values or values == [""]:
        return None
    try:
        numbers = [float(each.replace(",", ".") if isinstance(each, str) else each) for each in values]
    except (TypeError, ValueError):
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise DatasetError(
            f"'{file}': {keyword} is {listed(values, 3)}, expected finite numbers. Export the series again."
        )
    return numbers


def stacked(where: str, slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Slices in the order of their positions, and the affine ``(4, 4)`` from (column, row, slice) to LPS+.

    File names and instance numbers do not say where a slice lies; only its position does.
    """
    for tag, attribute in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "axes"),
        ("PixelSpacing", "spacing"),
    ):
        without = [each for each in slices if getattr(each, attribute) is None]
        if without:
            raise DatasetError(
                f"{where}: no {tag} in {count(len(without), 'slice')}: {listed(without)}. Expected it in each; nothing "
                "else says where a slice lies. Export the original series, without these."
            )
    for each in slices:
        if (each.spacing <= 0).any():  # negative, it would turn the image round
            raise DatasetError(
                f"{where}: PixelSpacing {each.spacing.tolist()} in {each}, expected millimetres above 0. Export the "
                "original series."
            )
    _check_rescaled(where, slices)
    _check_alike(where, slices, "sizes", lambda each: each.shape)
    _check_alike(where, slices, "pixel spacings", lambda each: each.spacing)
    _check_alike(where, slices, "directions", lambda each: each.axes)
    axes = slices[0].axes
    if not np.allclose(axes @ axes.T, np.eye(2), atol=0.01):
        raise DatasetError(
            f"{where}: ImageOrientationPatient {axes.ravel().tolist()}, expected two perpendicular directions of "
            "length 1. Export the original series."
        )
    slices = sorted(slices, key=lambda each: each.height)
    first, last = slices[0], slices[-1]
    if len(slices) > 1:
        _check_distances(where, slices)
        _check_mixture(where, slices)
        step = (last.position - first.position) / (len(slices) - 1)
    elif first.thickness:
        step = first.thickness * np.cross(axes[0], axes[1])
    else:
        raise DatasetError(
            f"{where}: one slice, without SliceThickness. Expected several slices, or one that says how thick it is. "
            "Give the folder that holds the whole series."
        )
    affine = np.eye(4)
    # the position of neighbouring columns differs along the first direction, by the second of the spacings
    affine[:3] = np.column_stack([axes[0] * first.spacing[1], axes[1] * first.spacing[0], step, first.position])
    _check_places(where, slices, affine)
    return slices, affine


def _check_rescaled(where: str, slices: Sequence[Slice]) -> None:
    """Slices may have slopes of their own, as in PET, but where some have none at all, or 0, these have lost it."""
    without = [each for each in slices if not each.is_rescaled]
    if without and any(each.rescale != Rescale() or each.header.get("ModalityLUTSequence") for each in slices):
        raise DatasetError(
            f"{where}: no RescaleSlope and RescaleIntercept in {len(without)} of {count(len(slices), 'slice')}: "
            f"{listed(without, 4)}. Expected them in all slices, or in none. Export the series again."
        )
    slopes = {each.rescale.slope for each in slices if not each.has_no_slope} - {1.0}
    if slopes and (without := [each for each in slices if each.has_no_slope]):
        raise DatasetError(
            f"{where}: RescaleSlope 0 in {len(without)} of {count(len(slices), 'slice')}: {listed(without, 4)}. "
            f"Expected another number, as in the others, such as {min(slopes):g}. Export the series again."
        )


def _check_alike(where: str, slices: Sequence[Slice], what: str, key: Callable[[Slice], Any]) -> None:
    first = key(slices[0])
    if all(np.allclose(key(each), first, rtol=DIRECTION_TOLERANCE, atol=DIRECTION_TOLERANCE) for each in slices):
        return
    values: dict[tuple, list[Slice]] = {}
    for each in slices:
        values.setdefault(tuple(np.round(np.ravel(key(each)), 3).tolist()), []).append(each)
    texts = [f"{list(value)} in {count(len(held), 'slice')} such as {held[0]}" for value, held in values.items()]
    localizers = "; there are localizers among them" if any(each.is_localizer for each in slices) else ""
    raise DatasetError(
        f"{where}: slices of {len(values)} different {what}: {listed(texts, 4)}. Expected the slices of one "
        f"volume{localizers}. Move the slices of each volume to a folder of their own."
    )


def _check_distances(where: str, slices: Sequence[Slice]) -> None:
    """Slices, in order, must follow one another at one distance."""
    heights = np.array([each.height for each in slices])
    distances = np.diff(heights)
    moved = np.sort(distances[distances > 1e-3])
    usual = float(moved[(len(moved) - 1) // 2]) if len(moved) else 0.0

    def between(index: int) -> str:
        return f"{heights[index]:.6g} mm ({slices[index]}) and {heights[index + 1]:.6g} mm ({slices[index + 1]})"

    repeated = np.flatnonzero(distances <= max(1e-3, DISTANCE_TOLERANCE * usual)).tolist()
    if repeated:
        raise DatasetError(
            f"{where}: {count(len(repeated), 'slice')} at the position of another: "
            f"{listed(map(between, repeated), 4)}. Expected one slice at each position{_what_differs(slices)}. Remove "
            "the copies, or move each volume to a folder of its own."
        )
    uneven = np.flatnonzero(np.abs(distances - usual) > DISTANCE_TOLERANCE * usual).tolist()
    if uneven:
        steps = distances[uneven] / usual
        whole = np.rint(steps)
        if (whole > 1).all() and (np.abs(steps - whole) <= DISTANCE_TOLERANCE * whole).all():
            missing = int((whole - 1).sum())
            raise DatasetError(
                f"{where}: {count(missing, 'slice')} missing, {usual:.6g} mm being the distance of the others: between "
                f"{listed(map(between, uneven), 4)}. Expected a series without gaps. Export it again, completely."
            )
        raise DatasetError(
            f"{where}: slices at uneven distances, {distances.min():.6g} to {distances.max():.6g} mm, such as between "
            f"{listed(map(between, uneven), 4)}. Expected one distance, such as the usual {usual:.6g} mm. Resample the "
            "series, or export the original one."
        )


def _check_mixture(where: str, slices: Sequence[Slice]) -> None:
    """Refuses slices of several volumes that lie between one another, in order, as if they were one."""
    for tag in dict.fromkeys(tag for _, tag in _APART):
        values = [each.kinds.get(tag, "") for each in slices]
        if tag in _TYPES:
            values = ["\\".join(value.split("\\")[2:]) for value in values]
        values = [value for value in values if value]  # what is not stated contradicts nothing
        values = _rounded(values, _TIMES[tag]) if tag in _TIMES else values
        counts = Counter(values)
        runs = 1 + sum(value != following for value, following in pairwise(values))
        # of files, volumes have about as many slices each, and a slice or two that say another thing are none
        alike = tag not in _OF_FILES or 2 * min(counts.values(), default=0) >= max(counts.values(), default=0)
        if 1 < len(counts) < runs and len(counts) <= len(values) // 2 and alike:
            texts = [f"'{value}' in {count(number, 'slice')}" for value, number in counts.items()]
            raise DatasetError(
                f"{where}: slices of {len(counts)} volumes lie between one another, of {tag} {listed(texts, 4)}. "
                "Expected one volume. Move the files of each to a folder of its own, or export each as a series of its "
                "own."
            )


def _rounded(texts: Sequence[str], tolerance: float) -> list[str]:
    """The same numbers, of which those that lie together, as far as this from the next, are the first of them."""
    try:
        numbers = [float(text.replace(",", ".")) for text in texts]
    except ValueError:
        return list(texts)
    first: dict[float, float] = {}
    for below, number in pairwise([-np.inf, *sorted(set(numbers))]):
        first[number] = first[below] if number - below <= tolerance + 1e-9 else number
    return [f"{first[number]:g}" for number in numbers]


def _what_differs(slices: Sequence[Slice]) -> str:
    """By which element the volumes that share a series can be told apart, if by any."""
    for tag in dict.fromkeys(tag for _, tag in (*_APART, *_OWN)):
        values = [each.kinds.get(tag, "None") for each in slices]
        if 1 < len(set(values)) <= len(slices) // 2:
            return f", but there are several volumes in this series, of {tag} {listed(dict.fromkeys(values), 4)}"
    return ""


def _check_places(where: str, slices: Sequence[Slice], affine: np.ndarray) -> None:
    """Every slice must lie where the affine puts it."""
    places = apply_affine(affine, [[0, 0, index] for index in range(len(slices))])
    shifts = np.linalg.solve(affine[:3, :3], (np.stack([each.position for each in slices]) - places).T)  # in voxels
    beside = np.flatnonzero((np.abs(shifts) > PLACE_TOLERANCE).any(0)).tolist()
    if beside:
        raise DatasetError(
            f"{where}: {count(len(beside), 'slice')} shifted against the others: "
            f"{listed((slices[index] for index in beside), 4)}, by up to {np.abs(shifts).max():.3g} voxels. Expected "
            "slices one above the other, or shifted evenly. Resample the series, or export the original one."
        )
