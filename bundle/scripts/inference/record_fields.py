"""What the record of a case must hold, wherever it was kept: anybody may have written into the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import NoneType
from typing import Any

from ..data.datalists import is_path
from ..errors import one_line

EARLIER_FILES = "earlier_files"  # of a case that is not done: what an earlier result of it has left, by kind

# what the fields of a case's record are, where they are there, and of what else there may be nothing is asked
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(["image", "status", "error", "lost_dicom_seg", "modality"], str),
    **dict.fromkeys(["input", "configuration"], (str, NoneType)),
    **dict.fromkeys(["files", EARLIER_FILES, "quality", "corrections"], dict),
    **dict.fromkeys(["shape", "warnings"], list),
    "seconds": (int, float),
}
_FILES = (str, NoneType)


def check_record(case: str, record: Mapping[str, Any]) -> None:
    """Compares the fields of a case's record that are used with what they must be.

    Raises:
        TypeError: one is something else.
    """
    check_kind(f"case '{case}'", record, Mapping)
    for field, kind in _KINDS.items():
        if field in record:
            check_kind(f"{field} of case '{case}'", record[field], kind)
    if not is_path(record.get("image", "")):
        raise TypeError(f"image of case '{case}' is {record['image']!r}, which no file can be called")
    for files in ("files", EARLIER_FILES):
        for kind, name in record.get(files, {}).items():
            check_kind(f"{files}.{kind} of case '{case}'", name, _FILES)
    for note in record.get("warnings", []):
        check_kind(f"warnings of case '{case}'", note, str)
    organs, flags = (record.get("quality", {}).get(part, empty) for part, empty in (("organs", {}), ("flags", [])))
    check_kind(f"quality.organs of case '{case}'", organs, dict)
    check_kind(f"quality.flags of case '{case}'", flags, list)
    for each in (*organs.values(), *flags):
        check_kind(f"quality of case '{case}'", each, dict)


def check_kind(what: str, found: Any, kind: type | tuple[type, ...]) -> None:
    """Compares something found in a record with what it must be.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(found, kind):
        raise TypeError(f"{what} is {one_line(repr(found))[:80]}")


def names_only_results(record: Mapping[str, Any]) -> bool:
    """Whether the files of a case's record are in the output folder: anybody may have written another path there."""
    names = [name for field in ("files", EARLIER_FILES) for name in record.get(field, {}).values() if name is not None]
    return all(not PurePath(name).is_absolute() and ".." not in PurePath(name).parts for name in names)
