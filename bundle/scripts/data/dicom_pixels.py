"""The pixels of DICOM slices, in real units as their headers say.

What is not compressed is decoded here, the rest by ITK, in a process of its own: see
:mod:`scripts.data.dicom_decoder`. Its rescaling is taken where it is the header's; for what ITK leaves out or decides
by itself (tables in place of a slope, inverted greys), it gets a copy of the file without these, and what the header
says is applied here. Headers are checked before any pixel is touched: a decoder that is told of a thousand million
frames, or of colours that are not there, hangs or ends its process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ..errors import DatasetError, one_line
from .dicom_decoder import DecodingError, FileRefusedError, decode
from .dicom_streams import DECODED, check_streams, in_one_piece_each

DEFLATED = DeflatedExplicitVRLittleEndian  # the file as a whole, which pydicom undoes
UNCOMPRESSED = (None, ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DEFLATED)
TAGS = (  # of a header, for all that is decided here
    *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Modality", "RescaleType"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence"),
)
_WHOLE = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_FLOATS = ("FloatPixelData", "DoubleFloatPixelData")  # which a file has in place of PixelData
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_MOST_DEFLATED = 1032  # times smaller: no more is possible
_MOST_COMPRESSED = 100_000  # times smaller: an empty slice shrinks far less
_QUANTITIES = ("CT", "PT")  # modalities whose numbers mean the same however they are displayed


@dataclass(frozen=True)
class Rescale:
    """How stored values become real ones, by a slope and an intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Real values: integers as long as slope and intercept are, else single precision."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return stored
        whole = self.slope.is_integer() and self.intercept.is_integer()
        bound = abs(self.slope) * max(abs(int(stored.min())), abs(int(stored.max()))) + abs(self.intercept)
        if whole and bound < 2**31:
            return stored.astype(np.int32) * int(self.slope) + int(self.intercept)
        with np.errstate(over="ignore"):
            return (stored * np.float64(self.slope) + self.intercept).astype(np.float32)


def frames_of(file: Path, header: pydicom.Dataset) -> int:
    """How many frames a file says that it has, 1 where it says nothing.

    Raises:
        DatasetError: no whole number above 0.
    """
    stated: Any = "infinite"
    try:
        stated = header.get("NumberOfFrames")
        frames = 1 if stated in (None, "") else int(stated)
        whole = stated in (None, "") or float(stated) == frames
    except (TypeError, ValueError, OverflowError):
        frames, whole = 0, False
    if frames < 1 or not whole:
        raise DatasetError(
            f"'{file}': NumberOfFrames {one_line(stated)}, expected a whole number above 0. Export it again."
        )
    return frames


def check_header(where: str, file: Path, header: pydicom.Dataset) -> None:
    """Refuses pixels that a header declares in a way that nothing can decode, or more than the file can hold.

    Args:
        where: names the series in messages.
        file: with the pixels.
        header: with :data:`TAGS`.

    Raises:
        DatasetError: naming the element.
    """
    for keyword in _WHOLE:
        if not isinstance(header.get(keyword, 0), (int, type(None))):
            raise DatasetError(
                f"{where}: '{file.name}' has the {keyword} {header.get(keyword)!r}, expected a whole number. Its "
                "header may be damaged: copy or export the series again."
            )
    photometric = str(header.get("PhotometricInterpretation") or _GREYS[1])
    if photometric not in _GREYS:
        raise DatasetError(
            f"{where}: '{file.name}' is stored in colours ({one_line(photometric)}), expected one real number a voxel "
            "(MONOCHROME2). Convert the series to greyscale, or take the original one."
        )
    bits = header.get("BitsAllocated")
    if bits not in (8, 16, 32):
        raise DatasetError(
            f"{where}: '{file.name}' has {bits or 'no'} bits a pixel (BitsAllocated), expected 8, 16 or 32. Convert "
            "the series to NIfTI."
        )
    stored = header.get("BitsStored") or bits
    high = header.get("HighBit")
    high = stored - 1 if high is None else high
    if not 0 < stored <= high + 1 <= bits:
        raise DatasetError(
            f"{where}: '{file.name}' has BitsStored {stored} and HighBit {high} of BitsAllocated {bits}, which "
            "contradict each other. Export the series again."
        )
    rows, columns = header.Rows, header.Columns
    if not rows or not columns:
        raise DatasetError(f"{where}: '{file.name}' has {rows} rows and {columns} columns, expected some of both.")
    frames = frames_of(file, header)
    expected, size = int(rows) * int(columns) * frames * bits // 8, file.stat().st_size
    size *= _MOST_DEFLATED if _syntax(header) == DEFLATED else 1
    plain = _syntax(header) in UNCOMPRESSED
    if frames > size or (not plain and expected > size * _MOST_COMPRESSED):
        raise DatasetError(
            f"{where}: '{file.name}' declares {frames} frames of {rows} x {columns} pixels, which a file of {size:,} "
            "bytes cannot hold. Copy or export the series again."
        )
    if plain and expected > size:
        raise DatasetError(
            f"{where}: incomplete pixel data in '{file.name}', expected {expected} bytes in a file of {size}. Copy or "
            "export the series again."
        )


class Frames(NamedTuple):
    """Frames ``(frames, rows, columns)`` of one file.

    Attributes:
        values: in real units.
        padded: which pixels are padding, if any.
        is_cut: whether pixels had more bits than their header declares, which are not in the values.
    """

    values: np.ndarray
    padded: np.ndarray | None = None
    is_cut: bool = False


def read_frames(where: str, file: Path, rescales: Sequence[Rescale]) -> Frames:
    """The frames of one file.

    Args:
        where: names the series in messages.
        file: whose header was checked by :func:`check_header`.
        rescales: of each frame.

    Raises:
        DatasetError: pixels that are missing, cannot be decoded, or are others than the header declares.
    """
    with open(file, "rb") as stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        if file.stat().st_size == stream.tell() and _syntax(header) != DEFLATED:
            raise DatasetError(f"{where}: no pixel data in '{file.name}'. Copy or export the series again.")
    whole = _syntax(header) not in DECODED or check_streams(where, file, header, len(rescales))
    table = _table(where, file, header)
    inverted = str(header.get("PhotometricInterpretation")) == _GREYS[0]
    by_itk = _syntax(header) not in UNCOMPRESSED
    padding = header.get("PixelPaddingValue")
    alike = len(set(rescales)) == 1
    if by_itk and whole and table is None and not inverted and padding in (None, "") and alike:
        try:
            frames, known = _decoded(where, file.name, file, header)
            if known == rescales[0]:
                return Frames(frames)
        except DatasetError:  # of RLE there is another decoder
            if _syntax(header) != RLELossless:
                raise
    stored = _decoded_plainly(where, file, header, whole) if by_itk else _stored(where, file)
    padded = _padding(header, stored)
    values = _meant(header, stored)
    if table is not None:
        first, entries = table
        values = entries[np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)]
    elif alike:
        values = rescales[0](values)
    else:  # as in PET
        values = np.stack([rescale(plane) for rescale, plane in zip(rescales, values, strict=True)])
    return Frames(values, padded, _has_more_bits(header, stored, padded))


def _syntax(header: pydicom.Dataset) -> Any:
    return getattr(header, "file_meta", pydicom.Dataset()).get("TransferSyntaxUID")


def _byte_order(dataset: pydicom.Dataset) -> str:
    """The order in which pydicom found numbers: a file need not state it, where it states no transfer syntax."""
    return ">" if dataset.original_encoding[1] is False else "<"


# ---- stored values, of all bits that are allocated


def _stored(where: str, file: Path) -> np.ndarray:
    """Of what is not compressed."""
    header = pydicom.dcmread(file, force=True, specific_tags=["PixelData", *_FLOATS, *TAGS])
    data = header.get("PixelData")
    if data is None and (floats := [each for each in _FLOATS if each in header]):
        raise DatasetError(
            f"{where}: the pixels of '{file.name}' are {floats[0]}, as those of parametric maps are, expected whole "
            "numbers (PixelData). Take the images that the map was made of, or convert it to NIfTI."
        )
    if data is not None and header["PixelData"].is_undefined_length:  # as only compressed pixels have it
        raise DatasetError(
            f"{where}: the pixels of '{file.name}' are in pieces, as only compressed ones are, and its transfer syntax "
            "says that they are not. Export the series again."
        )
    shape = (frames_of(file, header), int(header.Rows), int(header.Columns))
    kind = f"{_byte_order(header)}u{header.BitsAllocated // 8}"
    expected, row = int(np.prod(shape, dtype=object)) * header.BitsAllocated // 8, shape[2] * header.BitsAllocated // 8
    if data is None or len(data) < expected:
        raise DatasetError(
            f"{where}: {'no' if not data else 'incomplete'} pixel data in '{file.name}', expected {expected} bytes. "
            "Copy or export the series again."
        )
    if len(data) - expected >= max(row, 2):  # one byte makes an odd length even; a row or more is part of an image
        raise DatasetError(
            f"{where}: more pixel data in '{file.name}' than its header declares, {len(data)} bytes in place of "
            f"{expected}. Its header may be damaged: copy or export the series again."
        )
    if header.BitsAllocated == 8 and _byte_order(header) == ">" and header["PixelData"].VR == "OW":
        data = np.frombuffer(data[: len(data) // 2 * 2], "u2").byteswap()  # two pixels make a word
    return np.frombuffer(data, kind, count=expected // (header.BitsAllocated // 8)).reshape(shape)


class RefusedPixelsError(DatasetError):
    """Pixels that ITK looked at and refused."""


def _decoded(where: str, name: str, file: Path, header: pydicom.Dataset) -> tuple[np.ndarray, Rescale]:
    """What ITK makes of a file, and by which slope and intercept."""
    shape = (frames_of(file, header), int(header.Rows), int(header.Columns))
    try:
        values, *rescale = decode(file, int(np.prod(shape, dtype=object)), int(header.BitsAllocated))
        if values.shape != shape:
            raise DecodingError(f"they hold {values.shape} frames, rows and columns, its header says {shape}")
    except DecodingError as error:
        stored = one_line(getattr(_syntax(header), "name", "nothing known"))
        expected = "expected a complete file. Copy it again, or convert the series to NIfTI."
        if _syntax(header) not in (*DECODED, *UNCOMPRESSED):
            expected = "for which there is no decoder here. Export the series uncompressed, or convert it to NIfTI."
        raise (RefusedPixelsError if isinstance(error, FileRefusedError) else DatasetError)(
            f"{where}: the pixels of '{name}' cannot be decoded (stored as {stored}; {error}), {expected}"
        ) from None
    return values, Rescale(*rescale)


def _decoded_plainly(where: str, file: Path, header: pydicom.Dataset, whole: bool) -> np.ndarray:
    """Stored values of a compressed file, as ITK decodes them when its header asks for nothing more, and each frame is
    in one piece: ``whole`` says whether they are.
    """
    plain = pydicom.dcmread(file, force=True)
    pieces = None
    if not whole:
        try:
            in_one_piece_each(where, file, plain, frames_of(file, header))
        except DatasetError as error:  # of some kinds of streams, ITK finds where frames begin
            pieces = error
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue"):
        if keyword in plain:
            delattr(plain, keyword)
    for groups in (
        plain,
        *plain.get("SharedFunctionalGroupsSequence", ()),
        *plain.get("PerFrameFunctionalGroupsSequence", ()),
    ):
        for keyword in ("PixelValueTransformationSequence", "RealWorldValueMappingSequence"):
            if keyword in groups:
                delattr(groups, keyword)
    plain.PhotometricInterpretation = _GREYS[1]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "plain.dcm")
        plain.save_as(copy)
        try:
            values, known = _decoded(where, file.name, copy, header)
        except RefusedPixelsError as refused:
            if pieces is not None:
                raise pieces from None
            if _syntax(header) != RLELossless:
                raise
            try:
                return _run_lengths(file, header)
            # what pydicom raises for a stream that is damaged indeed
            except (RuntimeError, ValueError, StopIteration):
                raise refused from None
        if known != Rescale():
            raise DatasetError(
                f"{where}: the pixels of '{file.name}' come from its decoder with a slope of {known.slope:g} and an "
                f"intercept of {known.intercept:g} that its header does not have. Convert the series to NIfTI."
            )
        return (
            np.array(values).astype(f"i{header.BitsAllocated // 8}", copy=False).view(f"u{header.BitsAllocated // 8}")
        )


def _run_lengths(file: Path, header: pydicom.Dataset) -> np.ndarray:
    """Stored values of RLE by pydicom's own decoder, in Python: ITK refuses some that hardly compress."""
    frames = pixel_array(file, raw=True, decoding_plugin="pydicom")
    shape = (frames_of(file, header), int(header.Rows), int(header.Columns))
    return frames.reshape(shape).view(f"u{header.BitsAllocated // 8}")


def _meant(header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """The numbers that stored bits mean: overlays in other bits off, signs extended, inverted greys turned back."""
    bits, allocated = int(header.get("BitsStored") or header.BitsAllocated), int(header.BitsAllocated)
    high = header.get("HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    signed = bool(header.get("PixelRepresentation"))
    above = allocated - bits - shift
    values = stored.astype(f"{'i' if signed else 'u'}{allocated // 8}", copy=False)
    if above:
        values = np.left_shift(values, above)
    if above or shift:
        values = np.right_shift(values, above + shift)  # of signed numbers, which keeps the sign
    inverted = str(header.get("PhotometricInterpretation")) == _GREYS[0]
    if inverted and header.get("Modality") not in _QUANTITIES and header.get("RescaleType") != "HU":
        values = (-1 if signed else 2**bits - 1) - values.astype(np.int64)
    return values


def _has_more_bits(header: pydicom.Dataset, stored: np.ndarray, padded: np.ndarray | None) -> bool:
    """Whether pixels have bits above those that are declared, other than padding, signs and overlays that are named."""
    allocated, high = int(header.BitsAllocated), header.get("HighBit")
    beyond = 1 + (int(header.get("BitsStored") or allocated) - 1 if high is None else int(high))
    overlays = [(group, 0x0102) for group in range(0x6000, 0x6020, 2)]  # in which bit
    named = any(each in header and header[each].value for each in overlays)
    if beyond == allocated or named:
        return False
    above = stored >> beyond
    odd = above != 0
    if header.get("PixelRepresentation"):
        odd &= above != 2 ** (allocated - beyond) - 1
    return bool((odd if padded is None else odd & ~padded).any())


def _padding(header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where there is no image, but a number that says so."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    allocated = int(header.BitsAllocated)
    mask = 2**allocated - 1
    # writers do not agree on the sign of this element
    padded = stored == (value & mask)
    if isinstance(limit, int):
        kind = f"{'i' if header.get('PixelRepresentation') else 'u'}{allocated // 8}"
        ends = [int(np.array(end & mask, f"u{allocated // 8}").view(kind)) for end in (value, limit)]
        values = stored.astype(kind, copy=False)
        padded |= (values >= min(ends)) & (values <= max(ends))
    return padded if padded.any() else None


def _table(where: str, file: Path, header: pydicom.Dataset) -> tuple[int, np.ndarray] | None:
    """The first stored value of a modality's table, and its entries."""
    sequence = header.get("ModalityLUTSequence")
    if not sequence:
        return None
    item = sequence[0]
    try:
        number, first, bits = (int(value) for value in item.LUTDescriptor)
        number = number or 2**16
        data = item["LUTData"].value
        entries = (
            np.frombuffer(data, f"{_byte_order(header)}u2")
            if isinstance(data, bytes)
            else np.atleast_1d(np.array(data))
        )
        if header.get("PixelRepresentation") and first >= 2**15:
            first -= 2**16
        if not 0 < number == len(entries) or bits > 16:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{where}: the table of values (ModalityLUTSequence) of '{file.name}' is damaged, expected as many entries "
            "as it declares. Export the series again, or convert it to NIfTI."
        ) from error
    return first, entries.astype(np.int32)
