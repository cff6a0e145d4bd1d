"""One DICOM series as a volume: which files make it up, where each slice lies, and whether they fill a box evenly.

pydicom reads the headers, since all of this has to be checked here: MONAI's ITKReader takes the first of several
series, and its PydicomReader sorts by instance number and averages the distances between slices, whether some are
missing or not. Pixels are read by :mod:`scripts.data.dicom_pixels`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from nibabel.affines import apply_affine

from ..errors import DatasetError, count, listed
from .dicom_pixels import TAGS, Rescale, check_header, frames_of, read_frames

DISTANCE_TOLERANCE = 0.05  # of the usual distance between slices: above rounding in headers, below a missing slice
PLACE_TOLERANCE = 0.5  # of a voxel, by which a slice may lie beside its place in an even grid
DIRECTION_TOLERANCE = 1e-3  # of direction cosines, and relatively of pixel spacings

_TAGS = [
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "SOPClassUID"),
    *("RescaleSlope", "RescaleIntercept", "PatientID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime"),
    *TAGS,
]
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of elements, at the beginning of a file without preamble
_NO_IMAGE = ("SEG", "RTDOSE")  # modalities with pixels that are not the patient's image
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_Headers = dict[Path, pydicom.Dataset]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Slice:
    """A slice: where it is stored, and where it lies in DICOM's millimetres, which are LPS+.

    Where it lies is None as long as :func:`_stacked` has not refused slices whose headers do not say it.
    """

    file: Path
    frame: int
    header: pydicom.Dataset
    position: np.ndarray | Any  # (3,): of the first pixel
    axes: np.ndarray | Any  # (2, 3): unit vectors to the next column, to the next row
    spacing: np.ndarray | Any  # (2,): between rows, between columns
    thickness: float | None
    rescale: Rescale

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def height(self) -> float:
        """Position along the normal."""
        return float(np.cross(self.axes[0], self.axes[1]) @ self.position)

    @property
    def is_localizer(self) -> bool:
        return _is_localizer(self.header)

    def __str__(self) -> str:
        return f"'{self.file.name}'" + (f" frame {self.frame + 1}" if self.header.get("NumberOfFrames") else "")


def is_dicom_file(path: Path) -> bool:
    """By its suffix, its preamble, or what it begins with; DICOMDIR is an index, not a slice.

    Many archives give no suffix, and some files have no preamble either.
    """
    if not path.is_file() or path.name == "DICOMDIR" or path.name.startswith("."):
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with open(path, "rb") as file:
        start = file.read(132)
        if start[128:] == b"DICM":
            return True
        if start[:2] not in _FIRST_GROUPS:
            return False
        file.seek(0)
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=["SOPClassUID", "Rows"])
        except Exception:  # of any kind: bytes that happen to begin like an element
            return False
    return "SOPClassUID" in header and "Rows" in header


def modality_of(path: str | Path) -> str | None:
    """The Modality that an image states, such as ``"CT"``, by the first of its DICOM files; None in other formats."""
    path = Path(path)
    file = next(dicom_files(path), None) if path.is_dir() else path if path.is_file() and is_dicom_file(path) else None
    if file is None:
        return None
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=["Modality"])
    return str(header.get("Modality") or "").strip() or None


def dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM files in a folder itself, in order of name."""
    return (path for path in sorted(folder.iterdir()) if is_dicom_file(path))


def load_series(path: Path, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads the slices of one series.

    Args:
        path: a folder with the slices, or one file.
        series: see :func:`scripts.data.volumes.load_volume`.

    Returns:
        Voxels ``(columns, rows, slices)`` in real units, slices in the order of their positions, and the affine
        ``(4, 4)`` to millimetres, RAS+.

    Raises:
        DatasetError: see :func:`scripts.data.volumes.load_volume`.
    """
    where, slices, affine = _find_slices(path, series)
    return _read_pixels(where, slices), _LPS_TO_RAS @ affine


def series_slices(path: Path, series: str | None = None) -> tuple[list[tuple[Path, int]], np.ndarray]:
    """Where the slices of a series are stored, in the order in which :func:`load_series` stacks them.

    Args:
        path: a folder with the slices, or one file.
        series: see :func:`scripts.data.volumes.load_volume`.

    Returns:
        File and frame (from 0) of each slice, and the affine ``(4, 4)`` of the voxels, as of :func:`load_series`.

    Raises:
        DatasetError: see :func:`scripts.data.volumes.load_volume`.
    """
    _, slices, affine = _find_slices(path, series)
    return [(each.file, each.frame) for each in slices], _LPS_TO_RAS @ affine


def _find_slices(path: Path, series: str | None) -> tuple[str, list[_Slice], np.ndarray]:
    """A name for messages, the slices of one series in the order of their positions, and the affine to LPS+."""
    _check_links(path)
    headers = {file: _read_header(file) for file in ([path] if path.is_file() else dicom_files(path))}
    if not headers:
        raise DatasetError(
            f"'{path}': no DICOM file in this folder, expected the slices of one series. Give the folder that holds "
            "them, or an image file."
        )
    headers = _chosen_series(path, headers, series)
    where = f"'{path}', series {_name(headers)}"
    for file, header in headers.items():
        check_header(where, file, header)
    return where, *_stacked(where, [each for file, header in headers.items() for each in _slices_of(file, header)])


def _check_links(folder: Path) -> None:
    """Refuses a folder in which a link leads nowhere: it may be a slice, and of the last one nothing tells that it is
    missing.
    """
    entries = folder.iterdir() if folder.is_dir() else ()
    broken = sorted(each for each in entries if each.is_symlink() and not each.exists() and each.name[0] != ".")
    if broken:
        raise DatasetError(
            f"'{folder}': {count(len(broken), 'link')} to files that are not there: "
            f"{listed(file.name for file in broken)}. Expected every slice. Restore the files, or remove the links."
        )


def _read_header(file: Path) -> pydicom.Dataset:
    # forced: many archives hold files without a preamble
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
    if not any(tag in header for tag in ("SOPClassUID", "SeriesInstanceUID", "Rows")):
        raise DatasetError(
            f"'{file}': no DICOM file, although it is named like one. Copy or download it again, or move it elsewhere."
        )
    return header


# ---- which series


def _chosen_series(path: Path, headers: _Headers, series: str | None) -> _Headers:
    """The headers of the one series that is there or that is asked for."""
    groups: dict[str, _Headers] = {}
    for file, header in headers.items():
        groups.setdefault(str(header.get("SeriesInstanceUID") or ""), {})[file] = header
    candidates = list(groups.values())
    if series:
        images = [group for group in candidates if all(map(_is_image, group.values()))]
        named = [group for group in images if series.casefold() in _names(group)]
        candidates = named or [group for group in images if series.casefold() in _description(group).casefold()]
    if len(candidates) != 1:
        found = f"{count(len(groups), 'DICOM series', 'DICOM series')} in one folder, expected one"
        if series:
            found = f"{len(candidates) or 'none'} of the DICOM series in it match series '{series}', expected one"
        lines = "".join(f"\n     - {_summary(group)}" for group in groups.values())
        raise DatasetError(
            f"'{path}': {found}. Set --series to the UID, number, modality or description of one of them, or move each "
            f"to a folder of its own:{lines}"
        )
    (chosen,) = candidates
    others = {file: header for file, header in chosen.items() if not _is_image(header)}
    if others:
        kinds = sorted({str(header.get("Modality", "of no modality")) for header in others.values()})
        raise DatasetError(
            f"'{path}', series {_name(chosen)}: {count(len(others), 'file')} without an image ({listed(kinds)}): "
            f"{listed(file.name for file in others)}. Expected image slices only. Move the others elsewhere."
        )
    patients = {str(header.get("PatientID") or "") for header in chosen.values()} - {""}
    if len(patients) > 1:
        raise DatasetError(
            f"'{path}', series {_name(chosen)}: slices of {len(patients)} patients (by their PatientID), expected one. "
            "Move those of each to a folder of their own, or export the series again."
        )
    colour = [file.name for file, header in chosen.items() if (header.get("SamplesPerPixel") or 1) != 1]
    if colour:
        raise DatasetError(
            f"'{path}', series {_name(chosen)}: colour in {count(len(colour), 'file')}: {listed(colour)}. Expected one "
            "real number a voxel. Convert them to greyscale, or take the original series."
        )
    return chosen


def _is_image(header: pydicom.Dataset) -> bool:
    return "Rows" in header and "Columns" in header and header.get("Modality") not in _NO_IMAGE


def _is_localizer(header: pydicom.Dataset) -> bool:
    return "LOCALIZER" in (header.get("ImageType") or ())


def _first(headers: _Headers) -> pydicom.Dataset:
    return next(iter(headers.values()))


def _description(headers: _Headers) -> str:
    return str(_first(headers).get("SeriesDescription") or "")


def _names(headers: _Headers) -> set[str]:
    """What may name a series as a whole, in lower case."""
    tags = ("SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription")
    return {str(_first(headers).get(tag)).casefold() for tag in tags if _first(headers).get(tag) is not None}


def _name(headers: _Headers) -> str:
    return f"'{_description(headers)}' ({_first(headers).get('SeriesInstanceUID') or 'no UID'})"


def _summary(headers: _Headers) -> str:
    header = _first(headers)
    number = header.get("SeriesNumber")
    slices = sum(frames_of(file, each) for file, each in headers.items() if _is_image(each))
    kind = " (localizer)" if any(map(_is_localizer, headers.values())) else ""
    return (
        f"{_name(headers)}, number {'unknown' if number is None else number}, {header.get('Modality', 'no modality')}, "
        + (count(slices, "slice") + kind if slices else "no image")
    )


# ---- where the slices lie


def _slices_of(file: Path, header: pydicom.Dataset) -> Iterator[_Slice]:
    """The slice of a file, or one for each frame: enhanced DICOM keeps positions and the like by frame, or shared."""
    frames = frames_of(file, header)
    by_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()

    def numbers(frame: int, group: str, tag: str, *shape: int) -> np.ndarray | None:
        holder = header if frames == 1 or tag != "ImagePositionPatient" else None
        for groups in (*by_frame[frame : frame + 1], *shared):
            if groups.get(group) and tag in groups[group][0]:
                holder = groups[group][0]
                break
        found = None if holder is None else decimals(file, holder, tag)
        return np.array(found, float).reshape(shape) if found is not None and len(found) == np.prod(shape) else None

    for frame in range(frames):
        measures, rescale = "PixelMeasuresSequence", "PixelValueTransformationSequence"
        thickness = numbers(frame, measures, "SpacingBetweenSlices", 1)
        if thickness is None or not thickness[0]:
            thickness = numbers(frame, measures, "SliceThickness", 1)
        slope, intercept = (numbers(frame, rescale, tag, 1) for tag in ("RescaleSlope", "RescaleIntercept"))
        yield _Slice(
            file,
            frame,
            header,
            numbers(frame, "PlanePositionSequence", "ImagePositionPatient", 3),
            numbers(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 2, 3),
            numbers(frame, measures, "PixelSpacing", 2),
            abs(float(thickness[0])) if thickness is not None and thickness[0] else None,
            # a slope of 0, which would make all voxels alike, is how some programs write that there is none
            Rescale(
                float(slope[0]) if slope is not None and slope[0] else 1.0,
                0.0 if intercept is None else float(intercept[0]),
            ),
        )


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


def _stacked(where: str, slices: Sequence[_Slice]) -> tuple[list[_Slice], np.ndarray]:
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


def _check_alike(where: str, slices: Sequence[_Slice], what: str, key: Callable[[_Slice], Any]) -> None:
    first = key(slices[0])
    if all(np.allclose(key(each), first, rtol=DIRECTION_TOLERANCE, atol=DIRECTION_TOLERANCE) for each in slices):
        return
    values: dict[tuple, list[_Slice]] = {}
    for each in slices:
        values.setdefault(tuple(np.round(np.ravel(key(each)), 3).tolist()), []).append(each)
    texts = [f"{list(value)} in {count(len(held), 'slice')} such as {held[0]}" for value, held in values.items()]
    localizers = "; there are localizers among them" if any(each.is_localizer for each in slices) else ""
    raise DatasetError(
        f"{where}: slices of {len(values)} different {what}: {listed(texts, 4)}. Expected the slices of one "
        f"volume{localizers}. Move the slices of each volume to a folder of their own."
    )


def _check_distances(where: str, slices: Sequence[_Slice]) -> None:
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


def _what_differs(slices: Sequence[_Slice]) -> str:
    """By which element the volumes that share a series can be told apart, if by any."""
    for tag in ("EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "ImageType"):
        values = Counter(str(each.header.get(tag)) for each in slices)
        if 1 < len(values) <= len(slices) // 2:
            return f", but there are several volumes in this series, of {tag} {listed(values, 4)}"
    return ""


def _check_places(where: str, slices: Sequence[_Slice], affine: np.ndarray) -> None:
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


# ---- pixels


def _read_pixels(where: str, slices: Sequence[_Slice]) -> np.ndarray:
    """Voxels ``(columns, rows, slices)``; integers of 16 bits where these will do, else of 32, or float32."""
    rows, columns = slices[0].shape
    voxels = np.empty((columns, rows, len(slices)), np.int16, order="F")
    rescales: dict[Path, dict[int, Rescale]] = {}
    for each in slices:
        rescales.setdefault(each.file, {})[each.frame] = each.rescale
    file, padded = None, None
    frames: Any = None
    padding: dict[int, np.ndarray] = {}
    for index, each in enumerate(slices):
        if each.file != file:
            file, by_frame = each.file, rescales[each.file]
            frames, padded = read_frames(where, file, [by_frame[frame] for frame in sorted(by_frame)])
        plane = frames[each.frame].T
        if padded is not None and padded[each.frame].any():
            padding[index] = padded[each.frame].T
        if plane.dtype.kind == "f":
            voxels = voxels.astype(np.float32, copy=False)
        elif voxels.dtype == np.int16 and not -(2**15) <= plane.min() <= plane.max() < 2**15:
            voxels = voxels.astype(np.int32)
        voxels[..., index] = plane
    return _without_bright_padding(where, voxels, padding) if padding else voxels


def _without_bright_padding(where: str, voxels: np.ndarray, padding: Mapping[int, np.ndarray]) -> np.ndarray:
    """The same voxels; padding that is brighter than all of the image becomes as dark as its darkest voxel.

    Padding is stored as a number that no voxel has, commonly far below them. Where it is far above, it would look like
    metal, and take the range of intensities for itself.
    """
    inside = [
        voxels[..., index][~padding[index]] if index in padding else voxels[..., index]
        for index in range(voxels.shape[2])
    ]
    inside = [plane for plane in inside if plane.size]
    if not inside:
        raise DatasetError(f"{where}: nothing but padding (PixelPaddingValue), expected an image. Export it again.")
    low, high = min(plane.min() for plane in inside), max(plane.max() for plane in inside)
    found = max(voxels[..., index][mask].max() for index, mask in padding.items())
    if found <= high:
        return voxels
    for index, mask in padding.items():
        voxels[..., index][mask] = low
    logger.warning("%s: its padding of %g, brighter than the image, is read as %g.", where, found, low)
    return (
        voxels.astype(np.int16, order="F") if voxels.dtype == np.int32 and -(2**15) <= low <= high < 2**15 else voxels
    )
