"""Which of the DICOM series in a folder is meant, and whether its files are image slices of one patient."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pydicom
from pydicom.uid import (
    UID,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
)

from ..errors import DatasetError, count, listed, one_line
from .dicom_files import NO_IMAGE
from .dicom_pixels import frames_of

_SIEMENS = ("SIEMENS MR HEADER", 0x0019, 0x0A)  # where it says how many slices lie side by side in an image
_IMAGE_CLASS = "Image Storage"  # in the standard's names of the classes of images
_CAPTURES = (  # what somebody saw on a screen or on paper
    *(SecondaryCaptureImageStorage, MultiFrameSingleBitSecondaryCaptureImageStorage),
    *(MultiFrameGrayscaleByteSecondaryCaptureImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage),
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_PLACES = (  # elements that say where an image lies
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)

Headers = dict[Path, pydicom.Dataset]

logger = logging.getLogger(__name__)


def series_meant(headers: Headers, series: str | None) -> list[Headers]:
    """The headers of each series that may be meant: of the one with images that is there, or of those that what is
    asked for names. Other than one are none that can be read.
    """
    groups = _by_series(headers)
    if not series:
        with_images = [group for group in groups if any(map(is_image, group.values()))]
        return with_images if len(with_images) == 1 else groups
    images = [group for group in groups if all(map(is_image, group.values()))]
    named = [group for group in images if series.casefold() in _names(group)]
    return named or [group for group in images if series.casefold() in _description(group).casefold()]


def chosen_series(path: Path, headers: Headers, series: str | None) -> Headers:
    """The headers of the one series with images that is there, or of the one that is asked for."""
    candidates = series_meant(headers, series)
    if len(candidates) != 1:
        groups = _by_series(headers)
        found = f"{count(len(groups), 'DICOM series', 'DICOM series')} in one folder, expected one"
        if series:
            found = f"{len(candidates) or 'none'} of the DICOM series in it match series '{series}', expected one"
        lines = "".join(f"\n     - {_summary(group)}" for group in groups)
        raise DatasetError(
            f"'{path}': {found}. Set --series to the UID, number, modality or description of one of them, or move each "
            f"to a folder of its own:{lines}"
        )
    (chosen,) = candidates
    others = {file: header for file, header in chosen.items() if not is_image(header)}
    if others:
        kinds = sorted({str(header.get("Modality", "of no modality")) for header in others.values()})
        raise DatasetError(
            f"'{path}', series {title(chosen)}: {count(len(others), 'file')} without an image ({listed(kinds)}): "
            f"{listed(file.name for file in others)}. Expected image slices only. Move the others elsewhere."
        )
    _check_kinds(f"'{path}', series {title(chosen)}", chosen)
    _check_tiles(f"'{path}', series {title(chosen)}", chosen)
    _check_patients(f"'{path}', series {title(chosen)}", chosen)
    colour = [file.name for file, header in chosen.items() if (header.get("SamplesPerPixel") or 1) != 1]
    if colour:
        raise DatasetError(
            f"'{path}', series {title(chosen)}: colour in {count(len(colour), 'file')}: {listed(colour)}. Expected one "
            "real number a voxel. Convert them to greyscale, or take the original series."
        )
    return chosen


def without_images(headers: Headers) -> list[str]:
    """The series in a folder that hold no image, such as reports, as messages call them."""
    return [_summary(group) for group in _by_series(headers) if not any(map(is_image, group.values()))]


def other_objects(headers: Iterable[tuple[Path, pydicom.Dataset]]) -> list[str]:
    """What files are of which none can be a part of a volume, such as reports, in the standard's words; nothing where
    one may be: then no further header is asked for.

    Args:
        headers: files, and what they say.
    """
    names, grey_pages = set(), 0
    for file, header in headers:
        sop_class = str(header.get("SOPClassUID") or "")
        if not _is_other_object(sop_class) and header.get("Modality") not in NO_IMAGE:
            if sop_class not in _CAPTURES or any(keyword in header for keyword in _PLACES):
                return []
            grey_pages += frames_of(file, header) if (header.get("SamplesPerPixel") or 1) == 1 else 0
            if grey_pages > 1:  # one is a page of text, several may be a volume that has lost its places
                return []
        names.add(_class_name(sop_class) if sop_class else str(header.Modality))
    return sorted(names)


def _by_series(headers: Headers) -> list[Headers]:
    groups: dict[str, Headers] = {}
    for file, header in headers.items():
        groups.setdefault(str(header.get("SeriesInstanceUID") or ""), {})[file] = header
    return list(groups.values())


def private_number(header: pydicom.Dataset, creator: str, group: int, element: int) -> int | None:
    """A whole number that a manufacturer keeps in an element of its own."""
    try:
        value = header.private_block(group, creator)[element].value
        return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _check_kinds(where: str, headers: Headers) -> None:
    """A series is of one modality and of one kind of object: a picture of a report may fit in where a slice would. So
    may a slice of another frame of reference, in which positions mean other places. Where each file has one of its own,
    whoever made the files anonymous gave it to them, which is only said, as are several studies.
    """
    kinds = (("SOPClassUID", _class_name), ("Modality", str), ("StudyInstanceUID", str), ("FrameOfReferenceUID", str))
    for keyword, name in kinds:
        groups: dict[str, list[str]] = {}
        for file, header in headers.items():
            if value := header.get(keyword):
                groups.setdefault(str(value), []).append(file.name)
        own = 1 < len(groups) == sum(map(len, groups.values()))
        if len(groups) > 1 and (keyword == "StudyInstanceUID" or (keyword == "FrameOfReferenceUID" and own)):
            logger.warning(
                "%s: the files have %d values of %s, expected one. They are read as one image, by their series.",
                *(where, len(groups), keyword),
            )
        elif len(groups) > 1:
            texts = [
                f"{name(value)} in {count(len(files), 'file')} ({listed(files, 2)})" for value, files in groups.items()
            ]
            raise DatasetError(
                f"{where}: files of {len(groups)} kinds (by their {keyword}): {listed(texts, 4)}. Expected the slices "
                "of one image. Move those of each to a folder of their own."
            )


def _check_tiles(where: str, headers: Headers) -> None:
    """Refuses what Siemens calls a mosaic: the slices of a volume, side by side in one image."""
    by_type = [file.name for file, header in headers.items() if "MOSAIC" in (header.get("ImageType") or ())]
    tiled = by_type or [file.name for file, header in headers.items() if (private_number(header, *_SIEMENS) or 0) > 1]
    said_by = "MOSAIC, by the ImageType" if by_type else "by Siemens' NumberOfImagesInMosaic"
    if tiled:
        raise DatasetError(
            f"{where}: {count(len(tiled), 'file')} with the slices of a volume side by side, as tiles of one image "
            f"({said_by}): {listed(tiled, 4)}. Expected one slice an image. Convert the series to "
            "NIfTI, by dcm2niix for example, or export it as single slices."
        )


def _check_patients(where: str, headers: Headers) -> None:
    """By their names where none has an ID; of one ID, a name may well be spelled in two ways."""
    for keyword in ("PatientID", "PatientName"):
        patients = {str(header.get(keyword) or "") for header in headers.values()} - {""}
        if len(patients) > 1:
            raise DatasetError(
                f"{where}: slices of {len(patients)} patients (by their {keyword}), expected one. Move those of each "
                "to a folder of their own, or export the series again."
            )
        if patients:
            return


def is_image(header: pydicom.Dataset) -> bool:
    """Whether a file holds what may be a slice, or several, and no report, plan, dose or segmentation."""
    return (
        "Rows" in header
        and "Columns" in header
        and header.get("Modality") not in NO_IMAGE
        and not _is_other_object(str(header.get("SOPClassUID") or ""))
    )


def _is_other_object(sop_class: str) -> bool:
    """Whether the standard knows a class, such as that of reports or plans, and calls it no image."""
    name = _class_name(sop_class)
    return name != sop_class and _IMAGE_CLASS not in name and sop_class != ParametricMapStorage


def _class_name(sop_class: str) -> str:
    """What the standard calls a class; of others, the UID itself."""
    return UID(sop_class).name


def is_localizer(header: pydicom.Dataset) -> bool:
    return "LOCALIZER" in (header.get("ImageType") or ())


def _first(headers: Headers) -> pydicom.Dataset:
    return next(iter(headers.values()))


def _description(headers: Headers) -> str:
    return str(_first(headers).get("SeriesDescription") or "")


def _names(headers: Headers) -> set[str]:
    """What may name a series as a whole, in lower case."""
    tags = ("SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription")
    return {str(_first(headers).get(tag)).casefold() for tag in tags if _first(headers).get(tag) is not None}


def title(headers: Headers) -> str:
    """A series in messages: its description and UID."""
    return one_line(f"'{_description(headers)}' ({_first(headers).get('SeriesInstanceUID') or 'no UID'})")


def _summary(headers: Headers) -> str:
    header = _first(headers)
    number, modality = header.get("SeriesNumber"), one_line(header.get("Modality", "no modality"))
    slices = sum(frames_of(file, each) for file, each in headers.items() if is_image(each))
    kind = " (localizer)" if any(map(is_localizer, headers.values())) else ""
    return f"{title(headers)}, number {'unknown' if number is None else one_line(number)}, {modality}, " + (
        count(slices, "slice") + kind if slices else "no image"
    )
