"""NRRD and MetaImage files, whose headers may name others: read where all that is declared is there, and no more."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import itk
import numpy as np
from monai.data import ITKReader
from monai.utils import MetaKeys

from ..errors import DatasetError, count, listed, one_line
from .grids import ENOUGH, check_amount, check_components, check_dimensions
from .itk_grids import check_axes, placed
from .itk_headers import data_files, flag_in, header_fields, is_nrrd, shape_in

_BYTES = {  # of one voxel, by the names of types in either format
    **dict.fromkeys(["met_char", "met_uchar", "signed char", "int8", "int8_t", "uchar", "unsigned char"], 1),
    **dict.fromkeys(["uint8", "uint8_t"], 1),
    **dict.fromkeys(["met_short", "met_ushort", "short", "short int", "signed short", "signed short int"], 2),
    **dict.fromkeys(["int16", "int16_t", "ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"], 2),
    **dict.fromkeys(["met_int", "met_uint", "int", "signed int", "int32", "int32_t", "uint", "unsigned int"], 4),
    **dict.fromkeys(["uint32", "uint32_t", "met_long", "met_ulong", "met_float", "float"], 4),
    **dict.fromkeys(["met_long_long", "met_ulong_long", "longlong", "long long", "long long int", "int64"], 8),
    **dict.fromkeys(["signed long long", "signed long long int", "int64_t", "ulonglong", "unsigned long long"], 8),
    **dict.fromkeys(["unsigned long long int", "uint64", "uint64_t", "met_double", "double"], 8),
}
_SIGNED = {  # those of which ITK, as it is built for Python, has no images, by the same bytes
    1: ("met_char", "signed char", "int8", "int8_t"),
    8: ("met_long_long", "longlong", "long long", "long long int", "int64", "int64_t", "signed long long")
    + ("signed long long int",),
}


def load_itk(path: Path, default_axcodes: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(I, J, K)`` and affine ``(4, 4)`` to RAS+ millimetres.

    Args:
        path: of the file with the header.
        default_axcodes: see :func:`scripts.data.volumes.load_volume`.

    Raises:
        DatasetError: see there; or the header names files outside its own folder, or declares other voxels than there
            are.
        Exception: whatever else reading raises.
    """
    fields = header_fields(path)
    check_axes(path, fields)
    check_components(path, _components(path, fields))
    _check_data(path, fields)
    slope, offset = _numbers(path, fields, "elementtointensityfunctionslope", "elementtointensityfunctionoffset")
    image = _read(path, fields)
    voxels, meta = ITKReader().get_data(image)
    voxels = np.asarray(voxels)  # of ITK's own kind of array, which keeps the image it is a view of
    check_components(path, image.GetNumberOfComponentsPerPixel())
    check_dimensions(path, voxels.shape)
    voxels = voxels.reshape(voxels.shape[:3], order="A")
    if voxels.dtype == np.uint64 and _type_of(path, fields) in _SIGNED[8]:
        voxels = voxels.view(np.int64)  # which `_read` could not ask for
    if slope and (slope, offset) != (1, 0):  # which ITK passes over; 0 means none, as in NIfTI
        voxels = (voxels * np.float64(slope) + offset).astype(np.float32)
    return voxels, placed(path, fields, meta[MetaKeys.AFFINE], default_axcodes)


def _read(path: Path, fields: dict[str, str]) -> Any:
    """The image as ITK has it: integers of 8 and of 64 bits with a sign as others that hold the same bits."""
    # without which ITK knows no MetaImage whose name ends in capitals
    options = {} if is_nrrd(path) else {"imageio": itk.MetaImageIO.New()}
    try:
        return ITKReader().read(path, **options)
    except itk.TemplateTypeError as error:
        kind, dimensions = _type_of(path, fields), len(shape_in(path, fields))
        held = next((held for size, held in ((1, itk.SS), (8, itk.ULL)) if kind in _SIGNED[size]), None)
        if held is None or dimensions != 3:
            raise DatasetError(
                f"'{path}': cannot be read (ITK has no images of {dimensions} dimensions of '{kind}'), expected three "
                "dimensions of integers or of float. Convert it."
            ) from error
    reader = itk.ImageFileReader[itk.Image[held, 3]].New(FileName=str(path))
    if not is_nrrd(path):
        reader.SetImageIO(itk.MetaImageIO.New())
    reader.Update()
    return reader.GetOutput()


def _type_of(path: Path, fields: dict[str, str]) -> str:
    return fields.get("type" if is_nrrd(path) else "elementtype", "").lower()


def _components(path: Path, fields: dict[str, str]) -> int:
    """Values in each voxel."""
    if not is_nrrd(path):
        (channels,) = _numbers(path, fields, "elementnumberofchannels")
        return int(channels)
    kinds, sizes = fields.get("kinds", "").lower().split(), shape_in(path, fields)
    if len(kinds) != len(sizes):
        return 1
    lists = [size for kind, size in zip(kinds, sizes) if kind == "list" and size != 1]
    if lists:
        raise DatasetError(
            f"'{path}': one of its axes is a list of {lists[0]} (kinds '{fields['kinds']}'), expected one volume of "
            "three dimensions. Store each of them as a file of its own."
        )
    return int(np.prod([size for kind, size in zip(kinds, sizes) if kind not in ("domain", "space", "time", "???")]))


def _numbers(path: Path, fields: dict[str, str], *names: str) -> list[float]:
    """Numbers in a MetaImage header: by default 0 for an offset, else 1."""
    values = [fields.get(name, "0" if name.endswith("offset") else "1") for name in names]
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise DatasetError(
            f"'{path}': cannot be read (its header has {listed(values)} for {listed(names)}), expected finite numbers. "
            "Copy or download it again."
        )
    return numbers


# ---- whether the voxels are all there


def _check_data(path: Path, fields: dict[str, str]) -> None:
    """Compares the files with what the header declares, before ITK fills up what is missing with anything.

    Compressed data are read to their end, where their checksum is: ITK stops before.
    """
    files = data_files(path, fields)
    shape = shape_in(path, fields)
    kind = _type_of(path, fields)
    if kind not in _BYTES:
        known = "a numeric type, such as short or float" if is_nrrd(path) else "such as MET_SHORT"
        raise DatasetError(f"'{path}': voxels of type '{kind}', expected {known}. Convert the file.")
    expected = int(np.prod(shape, dtype=object)) * _BYTES[kind]
    orders = {flag_in(path, fields, key) for key in ("binarydatabyteordermsb", "elementbyteordermsb") if key in fields}
    if len(orders) > 1:
        raise DatasetError(
            f"'{path}': its header states two orders of bytes (BinaryDataByteOrderMSB, ElementByteOrderMSB), expected "
            "the same twice. Export the file again."
        )
    encoding = _encoding(path, fields)
    if files and not is_nrrd(path):  # of NRRD, ITK compares the numbers itself
        _check_slices(path, fields, files)
    if len(files) > 1 and expected % len(files):
        raise DatasetError(
            f"'{path}': {len(files)} files of voxels for a shape of {shape}, expected as many in each "
            f"({listed(files, 3)}). Export the file again."
        )
    start = 0 if files else int(fields[""])
    for file in files or [path]:
        found = _available(
            path,
            file,
            start,
            fields=fields,
            encoding=encoding,
            expected=expected // max(1, len(files)),
            voxel=_BYTES[kind],
        )
        place = f" in '{file.name}'" if files else ""
        check_amount(path, found, expected // max(1, len(files)), kind="NRRD or MetaImage file", where=place)


def _check_slices(path: Path, fields: dict[str, str], files: Sequence[Path]) -> None:
    """Refuses a MetaImage list of files that do not hold a slice each: ITK reads a slice from each, and no more."""
    first, *names = fields["elementdatafile"].rstrip().split("\n")
    slices = shape_in(path, fields)[-1]
    said = one_line(first)
    if first.startswith("LIST"):
        if first.split() not in (["LIST"], ["LIST", str(len(shape_in(path, fields)) - 1)]):
            raise DatasetError(
                f"'{path}': its header names the files with its voxels by '{said}', expected 'LIST', and a file for "
                f"each of its {count(slices, 'slice')}. Export the file again, with all voxels in one file."
            )
        if not all(name.strip() for name in names):  # ITK takes an empty line for a name
            raise DatasetError(
                f"'{path}': its header has an empty line among the names of {count(len(files), 'file')}, expected one "
                "name in each line. Remove it."
            )
    elif "%" not in first:
        return
    elif " ".join(first.split()[3:]).startswith("-"):  # of which ITK reads none
        raise DatasetError(
            f"'{path}': its header counts the files with its voxels down ('{said}'), expected upwards. Name them in "
            "their order after 'ElementDataFile = LIST', each on a line."
        )
    if len(files) != slices:
        raise DatasetError(
            f"'{path}': its header names {count(len(files), 'file')} by '{said}' for {count(slices, 'slice')}, "
            "expected a file for each slice. Name one file with all voxels as ElementDataFile without LIST, or export "
            "the file again."
        )


def _available(
    path: Path, file: Path, start: int, *, fields: dict[str, str], encoding: str, expected: int, voxel: int
) -> int:
    """Bytes of voxels in one file, uncompressed, of which ``voxel`` make one."""
    with open(file, "rb") as stream:
        stream.seek(start)
        for _ in range(int(fields.get("line skip", fields.get("lineskip", 0)))):
            if not stream.readline():  # a header may state any number
                break
        skipped = _bytes_before(path, fields, start)
        if encoding == "raw":
            rest = file.stat().st_size - stream.tell()
            # from -1 on counted from the end, whatever stands before
            return min(rest + skipped + 1, expected) if skipped < 0 else rest - skipped
        if encoding == "text":
            return _written_out(path, file, stream) * voxel
        if encoding == "hex":
            return len(b"".join(stream.read().split())) // 2
        if not is_nrrd(path) and skipped > 0:
            stream.seek(skipped, 1)
        found, packed = _decompressed(stream, encoding, at_most=expected + max(0, skipped) + ENOUGH)
    if encoding == "zlib" and found <= expected:
        _check_packed(path, fields, packed, alone=file != path and not skipped)
    return found - (max(0, skipped) if is_nrrd(path) else 0)


def _bytes_before(path: Path, fields: dict[str, str], start: int) -> int:
    """Bytes to leave out before the voxels, or, of those that are not compressed, -1 for all that are too many."""
    if is_nrrd(path):
        return int(fields.get("byte skip", fields.get("byteskip", 0)))
    stated = int(fields.get("headersize", 0))
    if start and stated > 0 and stated != start:  # ITK counts from the beginning of the file, which is the header's own
        raise DatasetError(
            f"'{path}': its header states a size of {stated} bytes (HeaderSize), expected {start}, behind which its "
            "voxels begin. Remove that line, or export the file again."
        )
    return 0 if start and stated > 0 else stated


def _check_packed(path: Path, fields: dict[str, str], packed: int, *, alone: bool) -> None:
    """Compares the size of compressed voxels with the one in a MetaImage header.

    ITK reads as many bytes as that says, and without it a whole file from its beginning, whatever stands there before
    the voxels. Where it cannot decompress these, the voxels are what it found in memory.

    Args:
        path: of the file with the header.
        fields: of it.
        packed: bytes that there are.
        alone: whether the voxels are all that their file holds.
    """
    stated = fields.get("compresseddatasize")
    if stated is None and not alone:
        raise DatasetError(
            f"'{path}': its header does not state how many bytes its compressed voxels take, without which they cannot "
            f"be told from the header, expected 'CompressedDataSize = {packed}'. Write that line into it, before "
            "ElementDataFile, or export the file again."
        )
    if stated is not None and stated.lstrip("0") != str(packed):
        raise DatasetError(
            f"'{path}': its header states {stated} bytes of compressed voxels (CompressedDataSize), of which there are "
            f"{packed}. Its header may be damaged: copy or download it again."
        )


def _written_out(path: Path, file: Path, stream: BinaryIO) -> int:
    """Counts the numbers of a text."""
    content = stream.read()
    if not is_nrrd(path) and content and not content[-1:].isspace():  # in which ITK does not find the last number
        raise DatasetError(
            f"'{path}': the voxels, written out as text, end within a line in '{file.name}', expected a line break "
            "behind the last. Add one, or export the file again: the end may be missing."
        )
    texts = content.replace(b",", b" ").split()
    try:
        return len(np.array(texts, dtype=float))
    except ValueError as error:
        raise DatasetError(
            f"'{path}': its voxels are written out as text, of which a part is no number ({error}). Copy or export the "
            "file again."
        ) from error


def _decompressed(stream: BinaryIO, encoding: str, at_most: int) -> tuple[int, int]:
    """Counts what is compressed in a stream, and, of zlib, in how many bytes; compares its checksum.

    Of more than ``at_most`` bytes, which are too many, the rest is not looked at: it may be a thousand times as long as
    the file.
    """
    found, packed = 0, 0
    if encoding == "gzip":
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while found <= at_most and (piece := unpacked.read(1 << 20)):
                found += len(piece)
        return found, packed
    unpacker = zlib.decompressobj(47)  # zlib's own form, which MetaIO writes, or gzip's
    while not unpacker.eof and found <= at_most:
        piece = stream.read(1 << 16)
        if not piece:
            raise EOFError("compressed data end before their end mark")
        found, packed = found + len(unpacker.decompress(piece)), packed + len(piece)
    return found, packed - len(unpacker.unused_data)


def _encoding(path: Path, fields: dict[str, str]) -> str:
    """One of raw, text, hex, gzip and zlib."""
    if not is_nrrd(path):
        if not flag_in(path, fields, "binarydata", otherwise=True):
            return "text"
        return "zlib" if flag_in(path, fields, "compresseddata") else "raw"
    stated = fields.get("encoding", "").lower()
    known = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}  # ITK has none of bzip2
    known |= dict.fromkeys(["text", "txt", "ascii"], "text") | {"hex": "hex"}
    if stated not in known:
        raise DatasetError(f"'{path}': encoding '{stated}', expected raw or gzip. Convert the file.")
    return known[stated]
