"""Which files are DICOM, and which of them are copies of others."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ..errors import DatasetError
from .file_names import IMAGE_SUFFIXES, original_of

NO_IMAGE = ("SEG", "RTDOSE")  # modalities with pixels that are not the patient's image
MOST_INFLATED = 1 << 30  # bytes of one file
_META = 4096  # bytes that hold the first group of any file
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of elements, at the beginning of a file without preamble

# what is odd in a file is said here, by its name, which pydicom's own warnings, and the stacks in its log, do not tell
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom\b")


def is_dicom_file(path: Path) -> bool:
    """By its suffix, its preamble, or what it begins with; DICOMDIR is an index, not a slice.

    Many archives give no suffix, and some files have no preamble either.
    """
    if not path.is_file() or is_index(path) or path.name.startswith("."):
        return False
    return path.suffix.lower() == ".dcm" or holds_dicom(path)


def holds_dicom(path: Path) -> bool:
    """The same by its content alone."""
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


def is_index(path: Path) -> bool:
    """Whether a file is the index of a medium; Linux shows names on a CD in small letters."""
    return path.name.upper() == "DICOMDIR"


def check_deflated(file: Path) -> None:
    """Refuses a file that inflates beyond any series, before pydicom makes all of it at once.

    Raises:
        DatasetError: it inflates to more than a gibibyte, or does not say where it begins to.
    """
    with open(file, "rb") as stream:
        start = stream.read(_META)
        if DeflatedExplicitVRLittleEndian.encode() not in start:
            return
        if start[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
            raise DatasetError(f"'{file}': deflated, without the length of its first group. Export the series again.")
        stream.seek(144 + int.from_bytes(start[140:144], "little"))
        unpacker, found = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while found <= MOST_INFLATED and not unpacker.eof and (piece := stream.read(1 << 16)):
            found += len(unpacker.decompress(piece))
    if found > MOST_INFLATED:
        raise DatasetError(
            f"'{file}': deflated, and more than {MOST_INFLATED >> 20:,} MiB when it is inflated. Export the series "
            "uncompressed."
        )


def is_copy(file: Path) -> bool:
    """Whether a file is by its name a copy of one beside, and not by its content another slice."""
    original = original_of(file)
    if original is None or original.name.lower().endswith(IMAGE_SUFFIXES):
        return original is not None
    tags = ["SOPInstanceUID"]
    try:
        own, other = (
            pydicom.dcmread(each, stop_before_pixels=True, force=True, specific_tags=tags).get(tags[0])
            for each in (file, original)
        )
    except Exception:  # pydicom fails in many ways on what is no DICOM
        return True
    return not (own and other and own != other)


def dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM files in a folder itself, in order of name, without copies of those beside, as dcmodify leaves."""
    return (path for path in sorted(folder.iterdir()) if is_dicom_file(path) and not is_copy(path))
