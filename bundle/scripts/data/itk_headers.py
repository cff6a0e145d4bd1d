"""The headers of NRRD and MetaImage files, and the files with voxels that they name."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import DatasetError, one_line
from .file_names import NRRD_SUFFIXES

_KEYS = (  # by which MetaIO reads an image, in these capitals alone
    *("ObjectType", "ObjectSubType", "NDims"),
    *("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
    *("CompressedData", "CompressedDataSize"),
    *("Offset", "Position", "Origin", "ImagePosition", "TransformMatrix", "Rotation", "Orientation"),
    *("CenterOfRotation", "AnatomicalOrientation", "DistanceUnits", "ElementSpacing", "ElementSize"),
    *("DimSize", "HeaderSize", "Modality", "SequenceID", "ElementMin", "ElementMax", "ElementNumberOfChannels"),
    *("ElementNBits", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"),
    *("ElementType", "ElementDataFile"),
)
_SPELLINGS = {key.lower(): key for key in _KEYS}
_FLAGS = {**dict.fromkeys(["true", "t", "1"], True), **dict.fromkeys(["false", "f", "0"], False)}  # of a MetaImage
_HEADER_BYTES = 1 << 20  # a header that is longer is none
OWN = ":"  # which no name of a field begins with


def header_fields(path: Path) -> dict[str, str]:
    """Names, in lower case, and values of an NRRD or MetaImage header; ``""`` holds the bytes that it takes.

    What NRRD has as ``key:=value`` is no field of its own, and has :data:`OWN` before its name.
    """
    separator = b":" if is_nrrd(path) else b"="
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while raw := file.readline(_HEADER_BYTES):
            if file.tell() > _HEADER_BYTES:
                raise DatasetError(f"'{path}': its header has no end. Export the file again.")
            if separator == b":" and not raw.strip():  # NRRD: the data follow
                break
            name, _, value = (part.decode("latin-1").strip() for part in raw.partition(separator))
            key = name.lower()
            if separator == b":" and value.startswith("="):  # of somebody's own, whatever it is called
                fields[OWN + key] = value[1:]
                continue
            if separator == b":" and key == "data file" and value.upper().startswith("LIST"):
                fields[key] = value + "\n" + file.read(_HEADER_BYTES).decode("latin-1")  # names follow to the end
                break
            if separator == b"=" and _SPELLINGS.get(key, name) != name:  # which ITK passes over
                raise DatasetError(
                    f"'{path}': its header has '{one_line(name)}', expected '{_SPELLINGS[key]}' in these capitals, by "
                    "which alone programs know it. Correct it, or export the file again."
                )
            if separator == b"=" and fields.get(key, value) != value and key != "comment":
                raise DatasetError(f"'{path}': its header states {name} twice, differently. Export the file again.")
            fields[key] = value
            if key == "elementdatafile":  # MetaImage: the data follow, or the names of files
                if value.upper().startswith("LIST"):
                    fields[key] = value + "\n" + file.read(_HEADER_BYTES).decode("latin-1")
                break
        fields[""] = str(file.tell())
    return fields


def data_files(path: Path, fields: dict[str, str]) -> list[Path]:
    """The files with the voxels of a header; none where they follow the header itself.

    Raises:
        DatasetError: one that is not a regular file in or below the header's folder.
    """
    stated = fields.get("data file" if is_nrrd(path) else "elementdatafile")
    if stated is None and is_nrrd(path):
        stated = fields.get("datafile")
    if stated is None:
        if is_nrrd(path) and path.suffix.lower() == ".nrrd":
            return []
        raise DatasetError(f"'{path}': its header names no file with the voxels. Export the file again.")
    if not is_nrrd(path) and stated.upper() == "LOCAL":
        return []
    names = list(_names(path, stated))
    if not names:
        raise DatasetError(f"'{path}': its header announces a list of files, but names none. Export the file again.")
    files = []
    for name in names:
        file = path.parent / name
        inside = not Path(name).is_absolute() and path.parent.resolve() in file.resolve().parents
        if not inside:
            raise DatasetError(
                f"'{path}': its header names '{name}' as the file with its voxels, expected one in its own folder. "
                "Copy both files into one folder, and correct the name."
            )
        if not file.exists():
            raise DatasetError(f"'{path}': the file with its voxels, '{file}', is not there. Copy it as well.")
        if not stat.S_ISREG(file.stat().st_mode):
            raise DatasetError(
                f"'{path}': its voxels are to be read from '{file}', which is no file. Correct the name."
            )
        files.append(file)
    return files


def _names(path: Path, stated: str) -> Iterator[str]:
    """The files that a header names: one, a list, or a pattern with numbers."""
    first, *others = stated.split("\n")
    if first.upper().startswith("LIST"):
        yield from (name.strip() for name in others if name.strip())
        return
    parts = first.split()
    if "%" in first and len(parts) >= 4:
        try:
            low, high, step = (int(part) for part in parts[1:4])
            numbers = range(low, high + (1 if step > 0 else -1), step)
            if numbers[100_000:] or not re.fullmatch(r"[^%]*%0?\d{0,3}[du][^%]*", parts[0]):
                raise ValueError
            if len(parts) > (5 if is_nrrd(path) else 4):  # of more MetaIO leaves the voxels as they are in memory
                raise ValueError
        except ValueError as error:
            raise DatasetError(
                f"'{path}': its header names the files with its voxels by '{first}', expected a pattern such as "
                "'slice%03d.raw 1 40 1'. Export the file again."
            ) from error
        yield from (parts[0] % number for number in numbers)
        return
    yield first


def shape_in(path: Path, fields: dict[str, str]) -> tuple[int, ...]:
    stated = fields.get("sizes" if is_nrrd(path) else "dimsize", "")
    sizes = stated.split()
    if not sizes or not all(re.fullmatch(r"0*[1-9][0-9]{0,9}", size) for size in sizes):
        raise DatasetError(
            f"'{path}': cannot be read (the sizes in its header are '{stated}'), expected a complete NRRD or MetaImage "
            "file, with a whole number for each axis. Copy or download it again."
        )
    return tuple(map(int, sizes))


def flag_in(path: Path, fields: dict[str, str], name: str, *, otherwise: bool = False) -> bool:
    """Whether a MetaImage header says True; ITK takes everything that it does not know for False."""
    stated = fields.get(name, str(otherwise)).lower()
    if stated not in _FLAGS:
        raise DatasetError(f"'{path}': its header has '{stated}' for {name}, expected True or False. Correct it.")
    return _FLAGS[stated]


def is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith(NRRD_SUFFIXES)
