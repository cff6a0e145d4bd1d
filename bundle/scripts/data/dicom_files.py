"""Which files are DICOM, and what kind of image they say they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom

_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of elements, at the beginning of a file without preamble


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
