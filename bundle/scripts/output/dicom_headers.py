"""The headers of a series as a segmentation needs them: in one character set, with what writers got wrong mended.

Scanners and archives write what the standard forbids: sexes in small letters, dates of a year alone, times with colons,
decimal commas, character sets that do not exist. A segmentation copies patient and study from there, and must be right
by itself. Everything here happens to copies of the headers; the series stays as it is.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VM
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)

from ..data.dicom_grid import decimals
from ..errors import DatasetError, listed, one_line, printable

UTF_8 = "ISO_IR 192"
# of one slice a file; what is stored under another class alike, such as a scanner's own, counts as one by its modality
PLAIN_CLASSES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage, SecondaryCaptureImageStorage)

_SEXES = {**dict.fromkeys(["M", "MALE"], "M"), **dict.fromkeys(["F", "FEMALE", "W"], "F"), "O": "O", "OTHER": "O"}
_DECIMALS = (
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PatientSize",
    "PatientWeight",
)
_LONGEST = {"SH": 16, "LO": 64, "PN": 64}  # characters, of names in each way of writing
# what a segmentation copies beside all of the patient's group
_OF_STUDY = ("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName", "AdmissionID")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_LINES, _PARAGRAPHS = ("LO", "SH", "CS", "PN"), ("ST", "LT", "UT")  # texts without and with line breaks
_BREAKS = "\r\n\f\t"  # in a paragraph: carriage return, line feed, form feed and tabulator
_TEXTS = (*_LINES, *_PARAGRAPHS)
# by which ISO 2022 goes from one character set to another; of some pydicom leaves them in the text
_DESIGNATION = re.compile(r"\x1b(?:\$[@B]|\$?[()*+\-./][0-9A-Z])")


def mend_headers(headers: Mapping[Path, pydicom.Dataset]) -> list[str]:
    """Changes headers, in place, to what a segmentation may copy; what was changed, for the log.

    Args:
        headers: of the files of one series, without pixels.
    """
    changes: dict[str, None] = {}
    for file, header in headers.items():
        changes |= dict.fromkeys(_mended(file, header))
    return list(changes)


def plain_classes(headers: Mapping[Path, pydicom.Dataset]) -> dict[str, str]:
    """Gives slices the class of their modality where they have one that a segmentation cannot refer to by its rules.

    Returns:
        The classes that they had, by their SOPInstanceUID; see :func:`restore_classes`.
    """
    had = {}
    by_modality = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
    for header in headers.values():
        if "NumberOfFrames" not in header and header.get("SOPClassUID") not in PLAIN_CLASSES:
            had[str(header.SOPInstanceUID)] = str(header.SOPClassUID)
            header.SOPClassUID = by_modality.get(header.get("Modality"), SecondaryCaptureImageStorage)
    return had


def restore_classes(segmentation: pydicom.Dataset, had: Mapping[str, str]) -> None:
    """Makes every reference in a segmentation name the class that the slice itself has."""
    for element in segmentation.iterall() if had else ():
        for item in element.value if element.VR == "SQ" else ():
            instance = str(item.get("ReferencedSOPInstanceUID", ""))
            if instance in had:
                item.ReferencedSOPClassUID = had[instance]


def text(value: Any, length: int) -> str:
    """A text that DICOM's short texts can hold: on one line, without backslashes, which separate values there."""
    value = " ".join(map(str, value)) if isinstance(value, (list, tuple, MultiValue)) else str(value)
    return one_line(value).replace("\\", "/").strip()[:length]


def _mended(file: Path, header: pydicom.Dataset) -> Iterator[str]:
    yield from _without_unreadable(header)
    yield from _to_unicode(header)
    for element in list(header):
        keyword, value = element.keyword, element.value
        if element.VR in _TEXTS and keyword and not all(_is_shown(element.VR, each) for each in _texts_of(value)):
            mended = [_shown_as(element.VR, each) for each in _texts_of(value)]
            setattr(header, keyword, mended if len(mended) > 1 else mended[0])
            yield f"{keyword} {_shown(value)} is {listed(mended)}"
        is_copied = element.tag.group == 0x10 or keyword in _OF_STUDY
        if is_copied and element.VR in _LONGEST and keyword and dictionary_VM(element.tag) == "1":
            yield from _changed(header, keyword, header[keyword].value, _fitting(header[keyword]))
            if len(str(header[keyword].value)) > _LONGEST[element.VR] and _is_identifier(keyword):
                yield f"{keyword} is kept, though it has more than {_LONGEST[element.VR]} characters"
        elif keyword in _UIDS and value and not UID(str(value)).is_valid:  # another one would part it from its series
            yield f"{keyword} {_shown(value)} is kept, though it is no valid UID"
        elif element.VR == "DA" and keyword:
            yield from _changed(header, keyword, value, _date(value))
        elif element.VR == "TM" and keyword:
            yield from _changed(header, keyword, value, _time(value))
        elif element.VR == "AS" and keyword:
            yield from _changed(header, keyword, value, _age(value))
    if "PatientSex" in header:
        sex = str(header.PatientSex or "")
        yield from _changed(header, "PatientSex", sex, _SEXES.get(sex.strip().upper(), ""))
    for keyword in _DECIMALS:
        if keyword in header:
            try:
                numbers = decimals(file, header, keyword)
            except DatasetError:  # not needed, or the volume would not have been read
                numbers = None
            held = header.get_item(keyword)
            if getattr(held, "VR", "DS") != "DS" or numbers is None or _has_comma(held.value):
                del header[keyword]
                if numbers is not None:
                    setattr(header, keyword, numbers if len(numbers) > 1 else numbers[0])
                if held.value not in (None, "", b""):
                    yield f"{keyword} {_shown(held.value)} is {numbers}"
    frames = str(header.get("NumberOfFrames", "many"))
    if frames in ("1", "None", "") and "PerFrameFunctionalGroupsSequence" not in header:
        del header.NumberOfFrames  # which makes a file with one slice one of many


def _without_unreadable(header: pydicom.Dataset) -> Iterator[str]:
    """Takes out what pydicom cannot make a value of, such as an element of a kind that there is not."""
    for tag in list(header.keys()):
        try:
            for item in header[tag].value if header[tag].VR == "SQ" else ():
                list(item.iterall())
        except Exception as error:  # of any kind: such an element is damaged, whatever pydicom trips over in it
            del header[tag]
            yield f"the element {tag} is left out ({type(error).__name__})"


def _to_unicode(header: pydicom.Dataset) -> Iterator[str]:
    """Decodes all texts, which then are written in UTF-8, whatever the series was written in."""
    if "SpecificCharacterSet" in header:
        stated = _texts_of(header.SpecificCharacterSet)
        meant = [_character_set(each) for each in stated]
        if meant != stated:
            header.SpecificCharacterSet = meant
            yield f"SpecificCharacterSet {_shown(stated)} is {listed(meant)}"
        if unknown := [each for each in meant if each not in python_encoding]:
            yield f"SpecificCharacterSet '{listed(unknown)}' is not known, and read as the default one"
    header.decode()
    for element in header.iterall():
        if element.VR in _TEXTS and "\ufffd" in str(element.value):
            yield f"{element.keyword or element.tag} has lost characters that its SpecificCharacterSet does not have"
        if element.VR in _TEXTS and element.value:
            plain = [_DESIGNATION.sub("", each) for each in _texts_of(element.value)]
            if element.VR == "PN" or plain != _texts_of(element.value):
                element.value = plain if len(plain) > 1 else plain[0]
    header.SpecificCharacterSet = UTF_8


def _character_set(stated: str) -> str:
    """The standard's name of a character set that is written with other signs between, or in small letters."""
    if found := re.fullmatch(r"\s*ISO[ _-]*(2022)?[ _-]*IR[ _-]*(\d+)\s*", stated, re.IGNORECASE):
        return f"ISO 2022 IR {found[2]}" if found[1] else f"ISO_IR {found[2]}"
    return stated


def _texts_of(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, (list, MultiValue)) else [value or ""])]


def _shown_as(kind: str, value: str) -> str:
    if kind in _LINES:
        return one_line(value).replace("\\", "/")
    return "".join(each if each in _BREAKS else printable(each) for each in value)


def _is_shown(kind: str, value: str) -> bool:
    """Whether a text is one that its kind may hold: with line breaks in a paragraph alone."""
    return value.isprintable() if kind in _LINES else _shown_as(kind, value) == value


def _fitting(element: pydicom.DataElement) -> str:
    """The text of an element that has one value by the standard, no longer than it may be. An identifier stays as long
    as it is: cut off or empty, it would part the SEG from its patient or its study.
    """
    parts = "/".join(_texts_of(element.value)).split("=" if element.VR == "PN" else "\0")
    longest = None if _is_identifier(element.keyword) else _LONGEST[element.VR]
    return "=".join(part[:longest] for part in parts[:3])  # letters of one script, of another, and by sound


def _is_identifier(keyword: str) -> bool:
    return keyword.endswith(("ID", "Number"))


def _changed(header: pydicom.Dataset, keyword: str, old: Any, new: str) -> Iterator[str]:
    old = "" if old is None else "\\".join(_texts_of(old))
    if old != new:
        setattr(header, keyword, new)
        yield f"{keyword} {_shown(old)} is {new or 'empty'}"


def _date(value: Any) -> str:
    """A date as eight digits; empty if it is none, such as a year alone."""
    digits = re.sub(r"[.\-/ ]", "", str(value or ""))
    try:
        datetime.datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return ""
    return digits if len(digits) == 8 else ""


def _time(value: Any) -> str:
    """A time as digits, with what may follow after a point; empty if it is none."""
    digits = str(value or "").strip().replace(":", "")
    found = re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?(\.\d{1,6})?", digits)
    return digits if found and ("." not in digits or len(digits.split(".")[0]) == 6) else ""


def _age(value: Any) -> str:
    """An age as three digits and a letter; empty if it is none."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", str(value or "").strip().upper())
    return f"{found[1]:0>3}{found[2]}" if found else ""


def _has_comma(value: Any) -> bool:
    """Of one number, or of any of several."""
    values = value if isinstance(value, (list, MultiValue)) else [value]
    return any((b"," if isinstance(each, bytes) else ",") in each for each in values if isinstance(each, (bytes, str)))


def _shown(value: Any) -> str:
    return f"'{one_line(value.decode('latin-1') if isinstance(value, bytes) else value)}'"
