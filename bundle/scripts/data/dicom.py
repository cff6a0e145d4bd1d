"""One DICOM series as a volume: which files make it up, where each slice lies, and whether they fill a box evenly.

pydicom reads the headers, since all of this has to be checked here: MONAI's ITKReader takes the first of several
series, and its PydicomReader sorts by instance number and averages the distances between slices, whether some are
missing or not. :mod:`scripts.data.dicom_series` chooses among several series, :mod:`scripts.data.dicom_grid` finds
where slices lie, and :mod:`scripts.data.dicom_pixels` reads their pixels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom

from ..errors import DatasetError, count, listed
from .dicom_files import check_deflated, dicom_files, is_dicom_file, is_index
from .dicom_grid import Slice, slices_of, stacked
from .dicom_pixels import TAGS, Frames, Rescale, check_header, read_frames
from .dicom_remarks import COUNTS, remarks
from .dicom_series import Headers, chosen_series, is_image, other_objects, series_meant, title, without_images
from .file_names import IMAGE_SUFFIXES, original_of, without_added

_TAGS: list[Any] = [
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "SOPClassUID"),
    *("RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence", "PatientID", "PatientName"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("StudyInstanceUID", "FrameOfReferenceUID", "EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber"),
    *("TriggerTime", "ComplexImageComponent", "DiffusionBValue"),
    *("InConcatenationTotalNumber", "InConcatenationNumber", "ConcatenationUID"),
    *(0x00190010, 0x0019100A),  # in which Siemens says how many slices lie side by side in an image
    *TAGS,
    *COUNTS,
]
_CHOICE: list[Any] = [  # by what a series is chosen
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "SOPClassUID", "Rows", "Columns")
]
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Series:
    """The slices of one series.

    Attributes:
        where: what messages call it.
        slices: in the order of their positions.
        affine: ``(4, 4)``, to millimetres, RAS+.
        headers: of all series in the folder.
    """

    where: str
    slices: list[Slice]
    affine: np.ndarray
    headers: Headers


class SeriesVolume(NamedTuple):
    """A series as a volume.

    Attributes:
        voxels: ``(columns, rows, slices)`` in real units, slices in the order of their positions.
        affine: ``(4, 4)``, to millimetres, RAS+.
        notes: what is odd about the series, which is said.
        modality: that it states, such as ``"CT"``; None where it states none.
    """

    voxels: np.ndarray
    affine: np.ndarray
    notes: list[str]
    modality: str | None


def load_series(path: Path, series: str | None = None) -> SeriesVolume:
    """Reads the slices of one series.

    Args:
        path: a folder with the slices, or one file.
        series: see :func:`scripts.data.volumes.load_volume`.

    Raises:
        DatasetError: see :func:`scripts.data.volumes.load_volume`.
    """
    found = _find_series(path, series)
    if no_image := without_images(found.headers):
        logger.info("'%s': beside the images there is %s.", path, listed(no_image))
    others = sum(map(is_image, found.headers.values())) - len({each.file for each in found.slices})
    notes = remarks(found.slices, others)
    for note in notes:
        logger.warning("%s: %s", found.where, note)
    modalities = (str(each.header.get("Modality") or "").strip() for each in found.slices)  # one, where they state it
    return SeriesVolume(
        _read_pixels(found.where, found.slices), found.affine, notes, next(filter(None, modalities), None)
    )


def series_of(path: str | Path, series: str | None = None) -> str | None:
    """The UID of the series that an image is of, by the headers of its files alone: of the one that :func:`load_series`
    reads, if it reads any; None in other formats, and where none is meant, or several are.

    Args:
        path: a folder with slices, or one file.
        series: see :func:`scripts.data.volumes.load_volume`.
    """
    path = Path(path)
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return None
    files = dicom_files(path) if path.is_dir() else filter(is_dicom_file, [path])
    headers = ((file, _read_header(file, _CHOICE)) for file in files)
    # without a choice there is but one series with images, and the first of its files tells which
    one = dict(headers) if series else dict(islice(((file, each) for file, each in headers if is_image(each)), 1))
    meant = series_meant(one, series)
    if len(meant) != 1:
        return None
    return str(next(iter(meant[0].values())).get("SeriesInstanceUID") or "").strip() or None


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
    found = _find_series(path, series)
    return [(each.file, each.frame) for each in found.slices], found.affine


def without_volume(path: Path) -> str | None:
    """Why a folder, or a file, is left out where others are taken: its files, such as reports or pages of text, cannot
    be parts of a volume. None where one may be, or where something is amiss, of which reading it has words.

    Args:
        path: with DICOM files, or one.
    """
    files = [path] if path.is_file() else dicom_files(path)
    try:
        kinds = other_objects((file, _read_header(file)) for file in files)
        if not kinds:
            return None
        _check_links(path)
        _check_lost_slices(path)
    except Exception:  # pydicom fails in many ways on what is damaged
        return None
    return f"'{path}': DICOM that holds no volume ({listed(kinds)}), expected slices of an image. Give their folder."


def _find_series(path: Path, series: str | None) -> _Series:
    _check_links(path)
    _check_lost_slices(path)
    headers = {file: _read_header(file) for file in ([path] if path.is_file() else dicom_files(path))}
    if not headers:
        raise DatasetError(
            f"'{path}': no DICOM file in this folder, expected the slices of one series. Give the folder that holds "
            "them, or an image file."
        )
    everything, headers = headers, chosen_series(path, headers, series)
    where = f"'{path}', series {title(headers)}"
    _check_parts(where, headers)
    for file, header in headers.items():
        check_header(where, file, header)
    slices, affine = stacked(where, [each for file, header in headers.items() for each in slices_of(file, header)])
    return _Series(where, slices, _LPS_TO_RAS @ affine, everything)


def _check_parts(where: str, headers: Headers) -> None:
    """Refuses an object that is stored in parts (a concatenation) of which some are not there: of the first or last,
    nothing else would tell that it is missing.
    """
    parts: dict[str, list[pydicom.Dataset]] = {}
    for header in headers.values():
        parts.setdefault(str(header.get("ConcatenationUID")), []).append(header)
    for found in parts.values():
        total = max((int(each.get("InConcatenationTotalNumber") or 0) for each in found), default=0)
        numbers = {int(each.get("InConcatenationNumber") or 0) for each in found}
        if total > len(numbers):
            raise DatasetError(
                f"{where}: {len(numbers)} of the {total} parts (InConcatenationTotalNumber) that its frames are stored "
                "in, expected all. Put the files of all parts into one folder, and give the folder."
            )


def _check_links(folder: Path) -> None:
    """Refuses a folder in which a link leads nowhere, or to a pipe or a device: it may be a slice, and of the last one
    nothing tells that it is missing.
    """
    entries = list(folder.iterdir()) if folder.is_dir() else []
    broken = sorted(each for each in entries if each.is_symlink() and not each.exists() and each.name[0] != ".")
    if broken:
        raise DatasetError(
            f"'{folder}': {count(len(broken), 'link')} to files that are not there: "
            f"{listed(file.name for file in broken)}. Expected every slice. Restore the files, or remove the links."
        )
    special = sorted(each.name for each in entries if each.name[0] != "." and not (each.is_file() or each.is_dir()))
    if special:
        raise DatasetError(
            f"'{folder}': {listed(special)} {'is no file' if len(special) == 1 else 'are no files'}, but a pipe, a "
            "socket or a device. Expected every slice. Copy the content into files, or move them elsewhere."
        )


def _check_lost_slices(folder: Path) -> None:
    """Refuses a folder in which a file is named like the slices and is none: cut off, empty, or compressed.

    Of the last slice nothing else would tell that it is missing. Names of hexadecimal digits, or hashes, have no more
    than their ending in common, often none: of these, text such as a README is no lost slice, nor is a LOCKFILE, whose
    name has no digit where all slices' names have one.
    """
    files = [each for each in sorted(folder.iterdir()) if each.name[0] != "."] if folder.is_dir() else []
    slices = {each for each in files if is_dicom_file(each)}
    others = [each for each in files if each not in slices and each.is_file() and not is_index(each)]
    others = [each for each in others if original_of(each) not in slices]
    shapes = {_shape(each.name) for each in slices if re.search("[0-9]", each.name)}
    if all(re.search("[0-9]", each.name) for each in slices):  # which LOCKFILE and VERSION have not
        others = [each for each in others if re.search("[0-9]|^[a-f]+$", Path(without_added(each.name)).stem)]
    endings = {_ending(each.name) for each in slices}
    lost = [
        each for each in others if _shape(each.name) in shapes or (_ending(each.name) in endings and not _is_text(each))
    ]
    if lost:
        raise DatasetError(
            f"'{folder}': {count(len(lost), 'file')} named like the slices beside, but without DICOM in them: "
            f"{listed(file.name for file in lost)}. Expected every slice. Copy them again, extract what is compressed, "
            "or move them elsewhere."
        )


def _shape(name: str) -> str:
    """The name of a file without its numbers, and without what copying and compressing add."""
    return re.sub("[0-9]+", "#", without_added(name))


def _ending(name: str) -> str:
    """What follows the last point in the name of a file; nothing where that is a number, as in a UID."""
    return re.sub(r"^\.[0-9]+$", "", Path(without_added(name)).suffix)


def _is_text(file: Path) -> bool:
    """Whether a file begins with text; an empty one is none."""
    with open(file, "rb") as stream:
        start = stream.read(512)
    return bool(start) and not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", start)


def _read_header(file: Path, tags: list[Any] = _TAGS) -> pydicom.Dataset:
    check_deflated(file)
    # forced: many archives hold files without a preamble
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
    if not any(tag in header for tag in ("SOPClassUID", "SeriesInstanceUID", "Rows")):
        raise DatasetError(
            f"'{file}': no DICOM file, although it is named like one. Copy or download it again, or move it elsewhere."
        )
    return header


def _read_pixels(where: str, slices: Sequence[Slice]) -> np.ndarray:
    """Voxels ``(columns, rows, slices)``; integers of 16 bits where these will do, else of 32 or 64, or float32."""
    rows, columns = slices[0].shape
    voxels = np.empty((columns, rows, len(slices)), np.int16, order="F")
    rescales: dict[Path, dict[int, Rescale]] = {}
    for each in slices:
        rescales.setdefault(each.file, {})[each.frame] = each.rescale
    file, frames = None, Frames(voxels)
    padding: dict[int, np.ndarray] = {}
    cut: list[str] = []
    for index, each in enumerate(slices):
        if each.file != file:
            file, by_frame = each.file, rescales[each.file]
            frames = read_frames(where, file, [by_frame[frame] for frame in sorted(by_frame)])
            cut += [file.name] * frames.is_cut
        plane = frames.values[each.frame].T
        if frames.padded is not None and frames.padded[each.frame].any():
            padding[index] = frames.padded[each.frame].T
        if plane.dtype.kind == "f":
            voxels = voxels.astype(np.float32, copy=False)
        elif voxels.dtype.kind == "i":
            voxels = voxels.astype(np.promote_types(voxels.dtype, _integers_for(plane.min(), plane.max())), copy=False)
        voxels[..., index] = plane
    if cut:
        logger.warning(
            "%s: pixels in %s have more bits than their headers declare (HighBit): %s. These bits are left out, as "
            "overlays are; if they belong to the numbers, export the series again.",
            *(where, count(len(cut), "file"), listed(cut, 4)),
        )
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
    return voxels.astype(_integers_for(low, high), order="F", copy=False) if voxels.dtype.kind == "i" else voxels


def _integers_for(low: int, high: int) -> type[np.signedinteger]:
    """The shortest that hold these, of 16 bits or more."""
    return next(
        kind for kind in (np.int16, np.int32, np.int64) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
    )
