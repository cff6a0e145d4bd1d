"""What headers say against the volume that the files of a series make: it is read as it is, and this is said of it.

Slices that are missing between others are refused where distances tell of them. Where every second one is missing, or
the last, only what headers count tells, and that is not always meant so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pydicom

from ..errors import DatasetError, count, listed
from .dicom_grid import DISTANCE_TOLERANCE, Slice, decimals
from .dicom_series import private_number

COUNTS = (  # of a header, for all that is said here
    *("SpacingBetweenSlices", "NumberOfSlices", "ImagesInAcquisition", "AcquisitionNumber", "ImageType"),
    *(0x20010010, 0x20011018),
)
_JUMP = 900  # Hounsfield units: what is added to stored values, and may be lost, is 1000 or 1024
_PHILIPS = ("Philips Imaging DD 001", 0x2001, 0x18)


def remarks(slices: Sequence[Slice], others: int) -> list[str]:
    """What is odd about a volume.

    Args:
        slices: in the order of their positions.
        others: how many more files with images lie beside, which what headers count may hold too.
    """
    found = [*_apart(slices), *(_missing(slices, others) if len(slices) > 1 else ()), *_rescaled(slices)]
    if all(each.is_localizer for each in slices):
        found.insert(0, "a localizer, by its ImageType: made to plan other series. Is it the one that you mean?")
    return found


def _apart(slices: Sequence[Slice]) -> Iterator[str]:
    """By the distance that is the same in all slices and smaller than theirs, by a whole number of times.

    Slices that touch one another leave nothing out, as where those of a scan were made thicker, and some writers state
    the gap between slices, and no distance.
    """
    numbers = np.abs([_stated(each, "SpacingBetweenSlices") for each in slices])
    if len(slices) < 2 or not numbers.all() or np.ptp(numbers) > DISTANCE_TOLERANCE * numbers.min():
        return
    measured = (slices[-1].height - slices[0].height) / (len(slices) - 1)
    times, tolerance = measured / numbers.mean(), DISTANCE_TOLERANCE * measured
    whole = round(times)
    thickness = abs(_stated(slices[0], "SliceThickness"))
    is_gap = numbers.mean() < thickness and abs(numbers.mean() + thickness - measured) <= tolerance
    if is_gap or thickness > measured - tolerance:
        return
    if whole > 1 and abs(times - whole) <= DISTANCE_TOLERANCE * whole:
        yield (
            f"its slices lie {measured:.6g} mm apart, and its headers say {numbers.mean():.6g} mm "
            f"(SpacingBetweenSlices): {whole - 1} of {whole} slices may be missing. If so, export it again, completely."
        )


def _rescaled(slices: Sequence[Slice]) -> Iterator[str]:
    """By slopes of 0, and by intercepts of CT of which some are another program's, or lost."""
    without = [each for each in slices if each.has_no_slope]
    if without:
        yield (
            f"RescaleSlope is 0 in {len(without)} of {count(len(slices), 'slice')} ({listed(without, 2)}), and taken "
            "as 1: its numbers may be of another unit. If so, export it again."
        )
    jump = np.abs(np.diff([each.rescale.intercept for each in slices])).max(initial=0.0)
    if jump < _JUMP or all(each.header.get("Modality") != "CT" for each in slices):
        return
    held: dict[float, list[Slice]] = {}
    for each in slices:
        held.setdefault(each.rescale.intercept, []).append(each)
    texts = [f"{value:g} in {len(those)} ({listed(those, 2)})" for value, those in held.items()]
    yield (
        f"the RescaleIntercept of its {count(len(slices), 'slice')} is {listed(texts, 4)}, which differs by {jump:g} "
        "from one slice to the next: some may be no Hounsfield units, and its label map wrong. If so, export it again."
    )


def _stated(each: Slice, keyword: str) -> float:
    """A number of a header; 0 where it states none, or something else: without it there is no remark."""
    try:
        return (decimals(each.file, each.header, keyword) or [0.0])[0]
    except DatasetError:
        return 0.0


def _missing(slices: Sequence[Slice], others: int) -> Iterator[str]:
    """By counts that are the same in all slices and larger than what is there.

    An acquisition may be of several echoes, phases or stacks, each a series of its own: what is a whole multiple says
    nothing, nor does what other files make up, nor the acquisition that a series was made from.
    """
    if any("NumberOfFrames" in each.header for each in slices):
        return
    there = len(slices)
    for name, values in (
        ("NumberOfSlices", [_number(each.header, "NumberOfSlices") for each in slices]),
        ("Philips' NumberOfSlicesMR", [private_number(each.header, *_PHILIPS) for each in slices]),
        ("ImagesInAcquisition", [_in_acquisition(each.header) for each in slices]),
    ):
        stated = values[0]
        if not stated or len(set(values)) > 1 or stated <= there + others:
            continue
        if name == "ImagesInAcquisition" and len({_number(each.header, "AcquisitionNumber") for each in slices}) > 1:
            continue
        if name == "NumberOfSlices" or stated % there:
            yield (
                f"its files hold {count(there, 'slice')}, and its headers count {stated} ({name}). If some are "
                "missing, export it again, completely."
            )
            return


def _in_acquisition(header: pydicom.Dataset) -> int | None:
    kind = header.get("ImageType") or ()
    return None if "DERIVED" in kind or "SECONDARY" in kind else _number(header, "ImagesInAcquisition")


def _number(header: pydicom.Dataset, keyword: str) -> int | None:
    with suppress(TypeError, ValueError, OverflowError):  # no number in place of one: nothing else depends on it
        return int(header.get(keyword))
    return None
