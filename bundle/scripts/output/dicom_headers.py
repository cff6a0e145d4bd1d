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
from pydicom.charset import convert_encodings, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import DSfloat

from ..data.dicom_grid import decimals
from ..errors import DatasetError, listed, one_line, printable

UTF_8 = "ISO_IR 192"
_NONE_STATED = ([""], ["ISO_IR 6"], ["ISO 2022 IR 6"])  # which have letters of ASCII alone
# which are led to from another set, in front of them
_LED_TO = ("ISO 2022 IR 58", "ISO 2022 IR 87", "ISO 2022 IR 149", "ISO 2022 IR 159")
_OTHERWISE_WRITTEN = {"UTF-8": UTF_8, "UTF8": UTF_8, "UTF_8": UTF_8, "GB2312": "GBK"}
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
_LONGEST = {"SH": 16, "LO": 64, "PN": 64, "LT": 10240}  # characters, of names in each way of writing
_MOST_PARTS = 5  # of a name: family, given and middle name, prefix and suffix
_LONGEST_DECIMAL = 16
# what a segmentation copies beside all of the patient's group
_OF_STUDY = ("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName", "AdmissionID")
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_LINES, _PARAGRAPHS = ("LO", "SH", "CS", "PN"), ("ST", "LT", "UT")  # texts without and with line breaks
_BREAKS = "\r\n\f\t"  # in a paragraph: carriage return, line feed, form feed and tabulator
_TEXTS = (*_LINES, *_PARAGRAPHS)
# by which ISO 2022 goes from one character set to another; of some pydicom leaves them in the text
_DESIGNATION = re.compile(r"\x1b(?:\$[@B]|\$?[()*+\-./][0-9A-Z])")


def mend_headers(headers: Mapping[Path, pydicom.Dataset], distance: float | None = None) -> list[str]:
    """Changes headers, in place, to what a segmentation may copy; what was changed, for the log.

    Args:
        headers: of the files of one series, without pixels.
        distance: of the slices in millimetres, for those that do not say how thick they are.
    """
    changes: dict[str, None] = {}
    for file, header in headers.items():
        changes |= dict.fromkeys(_mended(file, header))
        if distance is not None:
            changes |= dict.fromkeys(_made_thick(header, distance))
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
    yield from _meant_character_set(header)
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
            if getattr(held, "VR", "DS") != "DS" or numbers is None or _is_miswritten(held.value):
                del header[keyword]
                if numbers is not None:
                    texts = [DSfloat(number, auto_format=True) for number in numbers]
                    setattr(header, keyword, texts if len(texts) > 1 else texts[0])
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


def _made_thick(header: pydicom.Dataset, distance: float) -> Iterator[str]:
    """Fills in a thickness that may be empty by the standard, and is needed to tell how far slices are apart."""
    thickness = header.get("SliceThickness")
    if "PerFrameFunctionalGroupsSequence" not in header and not (thickness and thickness > 0):
        header.SliceThickness = DSfloat(distance, auto_format=True)
        yield f"SliceThickness {_shown('' if thickness is None else thickness)} is {distance:g}, the slices' distance"


def _meant_character_set(header: pydicom.Dataset) -> Iterator[str]:
    """Corrects which character set a header states, before any text of it is read by that."""
    try:
        stated = _texts_of(header.get("SpecificCharacterSet"))
    except Exception:  # of any kind: it cannot be read, and is left out
        return
    meant = [_character_set(each) for each in stated]
    meant = ["", *meant] if meant[0] in _LED_TO else meant
    if meant != stated:
        yield f"SpecificCharacterSet {_shown(stated)} is {listed(meant)}"
    unknown = [each for each in meant if each not in python_encoding]
    beyond = [each for each in _undecoded_texts(header) if not each.isascii()]
    beyond = beyond if unknown or meant in _NONE_STATED else []
    if is_utf_8 := bool(beyond) and all(map(_is_utf_8, beyond)):
        meant = [UTF_8]
    if unknown:
        read = "texts are read as UTF-8" if is_utf_8 else "read as the default one"
        yield f"SpecificCharacterSet '{listed(unknown)}' is not known, and {read}"
    elif is_utf_8:
        yield "texts are read as UTF-8, which no SpecificCharacterSet says"
    elif beyond:
        yield "texts with letters that no SpecificCharacterSet names are read as ISO_IR 100"
    if meant != stated:
        _read_by(header, meant)


def _read_by(dataset: pydicom.Dataset, character_set: list[str]) -> None:
    """Has texts that were not looked at yet, here and in the items of sequences, read by a character set."""
    dataset.SpecificCharacterSet = character_set
    dataset.set_original_encoding(*dataset.original_encoding, convert_encodings(character_set))
    for tag in list(dataset.keys()):
        held = dataset.get_item(tag)
        if not held.is_raw and held.VR == "SQ":
            for item in held.value:
                if "SpecificCharacterSet" not in item:
                    _read_by(item, character_set)
                    del item.SpecificCharacterSet


def _undecoded_texts(header: pydicom.Dataset) -> Iterator[bytes]:
    for tag in list(header.keys()):
        held = header.get_item(tag)
        kind = held.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        if held.is_raw and kind in _TEXTS and isinstance(held.value, bytes):
            yield held.value


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _to_unicode(header: pydicom.Dataset) -> Iterator[str]:
    """Decodes all texts, which then are written in UTF-8, whatever the series was written in."""
    extended = any("2022" in each for each in _texts_of(header.get("SpecificCharacterSet")))
    header.decode()
    for element in header.iterall():
        if element.VR in _TEXTS and "\ufffd" in str(element.value):
            yield f"{element.keyword or element.tag} has lost characters that its SpecificCharacterSet does not have"
        if element.VR in _TEXTS and element.value:
            texts = _texts_of(element.value)
            plain = [_DESIGNATION.sub("", each) for each in texts]
            if plain != texts and not extended:
                yield f"{element.keyword or element.tag} is in a character set that SpecificCharacterSet does not name"
            if element.VR == "PN" or plain != texts:
                element.value = plain if len(plain) > 1 else plain[0]
    header.SpecificCharacterSet = UTF_8


def _character_set(stated: str) -> str:
    """The standard's name of a character set that is written with other signs between, in small letters, or as one that
    is led to by escapes where it cannot be, or the other way round.
    """
    name = stated.strip().upper()
    if found := re.fullmatch(r"ISO[ _-]*(2022)?[ _-]*IR[ _-]*(\d+)", name):
        forms = [f"ISO_IR {found[2]}", f"ISO 2022 IR {found[2]}"][:: -1 if found[1] else 1]
        return next((each for each in forms if each in python_encoding), forms[0])
    return name if name in python_encoding else _OTHERWISE_WRITTEN.get(name, stated)


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
    if element.VR == "PN":
        parts = [_of_five(part) for part in parts]
    return "=".join(part[:longest] for part in parts[:3])  # letters of one script, of another, and by sound


def _of_five(name: str) -> str:
    """A name of no more parts than there may be."""
    *first, last = name.split("^", _MOST_PARTS - 1)
    return "^".join([*first, last.replace("^", " ")])


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


def _is_miswritten(value: Any) -> bool:
    """Of one number, or of any of several: a comma in place of the point, or more digits than there may be."""
    values = value if isinstance(value, (list, MultiValue)) else [value]
    texts = [each.decode("latin-1") if isinstance(each, bytes) else each for each in values]
    texts = [getattr(each, "original_string", each) for each in texts]
    parts = [part.strip("\0 ") for each in texts if isinstance(each, str) for part in each.split("\\")]
    return any("," in part or len(part) > _LONGEST_DECIMAL for part in parts)


def _shown(value: Any) -> str:
    return f"'{one_line(value.decode('latin-1') if isinstance(value, bytes) else value)}'"
