"""What a compressed DICOM file says of its frames in their own streams, compared with what its header says.

A decoder goes by the stream, and by as much of it as the header asks for: of a stream in colours it hands over the
first rows of all three as if they were one, of 16 bits the lower 8, and what follows the frames that the header
declares it leaves out, without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom.encaps import encapsulate, generate_frames, parse_fragments
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEG2000MCLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ..errors import DatasetError, count

DECODED = (  # transfer syntaxes for which there are decoders
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    *(JPEG2000Lossless, JPEG2000, JPEG2000MCLossless, JPEG2000MC, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K),
    RLELossless,
)
_JPEG, _JPEG_2000 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"  # what streams begin with
_BOX = b"\0\0\0\x0c"  # what a JP2 file begins with, which holds a stream of JPEG 2000
_RUNS = b"\0\0\0\x40\0\0\0"  # of RLE behind the number of segments: the first begins behind 64 bytes
_FRAMES = {bytes([each]) for each in (*range(0xC0, 0xD0), 0xF7)} - {b"\xc4", b"\xc8", b"\xcc"}  # markers of JPEG
_SEARCHED = 1 << 16  # bytes in which a stream says what it holds, behind whatever tables, comments and boxes


class Stream(NamedTuple):
    """What a stream says of itself."""

    bits: int
    components: int
    signed: bool | None = None  # None where streams of its kind do not say it


def check_streams(where: str, file: Path, header: pydicom.Dataset, frames: int) -> bool:
    """Refuses compressed pixels that are other ones than the header declares.

    Args:
        where: names the series in messages.
        file: compressed, by its transfer syntax.
        header: of it.
        frames: that it declares.

    Returns:
        Whether ITK can tell one frame from the next: all in one piece each, and where they lie, if at all, said in the
        usual table. See :func:`in_one_piece_each`.

    Raises:
        DatasetError: pixels that are not compressed after all; other bits, signs or colours than are declared, or more
            frames.
    """
    remedy = "Export the series again, uncompressed, or convert it to NIfTI."
    with open(file, "rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        stream.seek(8, 1)  # tag, type
        if stream.read(4) != b"\xff\xff\xff\xff":
            raise DatasetError(
                f"{where}: the pixels of '{file.name}' are not compressed, as its transfer syntax says that they are. "
                "Export the series again."
            )
        try:
            _, places = parse_fragments(stream)
        except ValueError as error:
            raise DatasetError(
                f"{where}: the pixels of '{file.name}' cannot be decoded ({error}), expected a complete file. Copy it "
                "again."
            ) from error
        found = list(_streams(stream, places[1:]))  # the first holds the places of frames
    if len(found) > frames:
        raise DatasetError(
            f"{where}: '{file.name}' holds {count(len(found), 'frame')} in place of {frames}, which its header "
            f"declares. {remedy}"
        )
    for each in found:
        if each.components != 1 or each.bits > header.BitsAllocated:
            raise DatasetError(
                f"{where}: the pixels of '{file.name}' are compressed as {each.components} x {each.bits} bits, its "
                f"header declares 1 x {header.BitsAllocated}. {remedy}"
            )
        # numbers without a sign are read as the header says
        if each.signed and not header.get("PixelRepresentation"):
            raise DatasetError(
                f"{where}: the pixels of '{file.name}' are compressed as numbers below 0 as well, its header declares "
                f"numbers from 0 on (PixelRepresentation). {remedy}"
            )
    return "ExtendedOffsetTable" not in header and (frames == 1 or len(places) == frames + 1)


def in_one_piece_each(where: str, file: Path, dataset: pydicom.Dataset, frames: int) -> None:
    """Puts the pieces of each frame together, in place, for ITK, which takes each for a frame where there are several.

    Args:
        where: names the series in messages.
        file: compressed.
        dataset: of it, with its pixels.
        frames: that it declares.

    Raises:
        DatasetError: nothing says where frames begin, or there are others than declared.
    """
    try:
        found = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    except (ValueError, EOFError, struct.error):
        found = []
    fragments = parse_fragments(dataset.PixelData)[0] - 1  # without the table of places
    if fragments < frames:
        raise DatasetError(
            f"{where}: '{file.name}' holds {count(fragments, 'piece')} of pixels for {count(frames, 'frame')}, "
            "expected one or more for each. Copy or export the series again."
        )
    if len(found) != frames or not all(found):
        raise DatasetError(
            f"{where}: the pixels of '{file.name}' are in pieces, of which nothing says where each of {frames} frames "
            "begins. Export the series again, uncompressed, or convert it to NIfTI."
        )
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.PixelData = encapsulate(found)


def _streams(file: BinaryIO, places: list[int]) -> Iterator[Stream]:
    """The streams that begin in fragments at these places; a frame may go on in further ones."""
    for index in range(len(places)):
        start = _content(file, places[index:])
        if start[:3] == _JPEG:
            if found := _jpeg(start):
                yield found
        elif start[:4] in (_JPEG_2000, _BOX):
            size = start.find(_JPEG_2000) + 2
            if size > 1 and len(start) > size + 40:  # behind its length, capabilities and eight numbers of 4 bytes
                depth = start[size + 40]  # less 1, and whether there are signs in its highest bit
                yield Stream(
                    (depth & 0x7F) + 1, int.from_bytes(start[size + 38 : size + 40], "big"), signed=depth > 0x7F
                )
        elif start[1:8] == _RUNS and 1 <= start[0] <= 15:  # a segment for each byte of a pixel
            yield Stream(8 * start[0], 1)


def _content(file: BinaryIO, places: list[int]) -> bytes:
    """What stands in these fragments, one after another, up to :data:`_SEARCHED` bytes."""
    content = b""
    for place in places:
        file.seek(place + 4)
        length = int.from_bytes(file.read(4), "little")
        content += file.read(min(length, _SEARCHED - len(content)))
        if len(content) >= _SEARCHED:
            break
    return content


def _jpeg(content: bytes) -> Stream | None:
    """Of a JPEG or JPEG-LS stream, whose frame is described behind tables and comments of any length."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker, length = content[place + 1 : place + 2], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == b"\xff":  # filling
            place += 1
        elif marker in _FRAMES:
            return Stream(content[place + 4], content[place + 9]) if len(content) > place + 9 else None
        elif length < 2:  # damage, of which the decoder says more
            return None
        else:
            place += 2 + length
    return None
