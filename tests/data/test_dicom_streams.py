"""Compressed DICOM holds the voxels of its uncompressed twin, or is refused for what its stream says of itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import itk
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError

from tests.conftest import save_dicom_series
from tests.data.test_dicom_frames import STORED as FRAMES
from tests.data.test_dicom_frames import enhanced

SHAPE = (40, 36, 3)
SLOPES = np.add.outer(np.add.outer(np.arange(40) * 30, np.arange(36) * 25), np.arange(3) * 100)  # 0 ... 2245
STORED = SLOPES.astype(np.uint16)
SIGNED = (SLOPES - 1024).astype(np.int16)
BYTES = (SLOPES // 10).astype(np.uint8)
CT = {"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
TWELVE = {"BitsStored": 12, "HighBit": 11}

Encoder = Callable[[np.ndarray], bytes]


def by_itk(kind: str) -> Encoder:
    """A stream as GDCM writes it: "JPEG", which is without loss there, or "JPEG2000"."""

    def encode(plane: np.ndarray) -> bytes:
        writer = itk.GDCMImageIO.New(UseCompression=True)
        writer.SetCompressionType(getattr(itk.GDCMImageIOEnums, f"Compression_{kind}"))
        file = Path(encode.folder, "encoded.dcm")
        itk.imwrite(itk.image_from_array(plane), str(file), imageio=writer, compression=True)
        return next(generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=1))

    return encode


def by_pillow(kind: str, **options) -> Encoder:
    def encode(plane: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(plane).save(stream, kind, **options)
        return stream.getvalue()

    return encode


def by_pydicom(syntax: str, **options) -> Encoder:
    def encode(plane: np.ndarray) -> bytes:
        dataset = pydicom.dcmread(next(save_dicom_series(encode.folder / "plain", plane.T[..., None]).iterdir()))
        dataset.compress(syntax, generate_instance_uid=False, **options)
        return next(generate_frames(dataset.PixelData, number_of_frames=1))

    return encode


JP2, J2K = by_pillow("JPEG2000"), by_pillow("JPEG2000", no_jp2=True)
LOSSLESS = by_itk("JPEG")
LS, RUNS = by_pydicom(JPEGLSLossless), by_pydicom(RLELossless)


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    """Encoders that write files do so in a folder of the test's own."""
    for encode in (JP2, J2K, LOSSLESS, LS, RUNS, ITK_2000, NEAR):
        encode.folder = tmp_path / "encoders"
    (tmp_path / "encoders").mkdir()


ITK_2000, NEAR = by_itk("JPEG2000"), by_pydicom(JPEGLSNearLossless, jls_error=2)


def compressed(
    folder: Path, stored: np.ndarray, syntax: str, encode: Encoder, *, fragments=1, copies=1, **tags
) -> Path:
    """A series whose pixels are streams of an encoder, each in so many fragments, and so many of them in a file."""
    series = save_dicom_series(folder, stored, **(CT | tags))
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        stream = encode(np.ascontiguousarray(dataset.pixel_array))
        dataset.PixelData = encapsulate([stream] * copies, fragments_per_frame=fragments, has_bot=False)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.save_as(file, enforce_file_format=True)
    return series


def called(series: Path, syntax: str) -> Path:
    """The same files, under the name of another transfer syntax."""
    for file in series.iterdir():
        own = pydicom.dcmread(file).file_meta.TransferSyntaxUID
        length = len(own) + len(own) % 2
        content = file.read_bytes()
        assert content.count(own.encode()) == 1 and len(syntax) <= length
        file.write_bytes(content.replace(own.encode().ljust(length, b"\0"), syntax.encode().ljust(length, b"\0")))
    return series


def refusal(series: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_volume(series)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ALIKE = {
    "JPEG without loss": (STORED, JPEGLosslessSV1, LOSSLESS, {}),
    "JPEG without loss, of any prediction": (STORED, JPEGLossless, LOSSLESS, {}),
    "JPEG without loss, 12 bits": (STORED, JPEGLosslessSV1, LOSSLESS, TWELVE),
    "JPEG without loss, 8 bits": (BYTES, JPEGLosslessSV1, LOSSLESS, {}),
    "JPEG without loss, as it is displayed": (
        STORED,
        JPEGLosslessSV1,
        LOSSLESS,
        {"PhotometricInterpretation": "MONOCHROME1"},
    ),
    "JPEG 2000": (STORED, JPEG2000Lossless, J2K, {}),
    "JPEG 2000, a file in itself": (STORED, JPEG2000Lossless, JP2, {}),
    "JPEG 2000, as lossy files may be": (STORED, JPEG2000, J2K, {}),
    "JPEG 2000, 12 bits": (STORED, JPEG2000Lossless, J2K, TWELVE),
    "JPEG 2000, signed": (SIGNED, JPEG2000Lossless, ITK_2000, {}),
    "JPEG 2000, 8 bits": (BYTES, JPEG2000Lossless, J2K, {}),
    "JPEG 2000, with a number for padding": (STORED, JPEG2000Lossless, J2K, {"PixelPaddingValue": 0}),
    "JPEG-LS": (STORED, JPEGLSLossless, LS, {}),
    "JPEG-LS, signed": (SIGNED, JPEGLSLossless, LS, {}),
    "RLE": (STORED, RLELossless, RUNS, {}),
}


@pytest.mark.parametrize("stored, syntax, encode, tags", ALIKE.values(), ids=ALIKE)
def test_compressed_voxels_are_those_of_the_uncompressed_twin(tmp_path, stored, syntax, encode, tags):
    series = compressed(tmp_path / "a", stored, syntax, encode, **tags)
    np.testing.assert_array_equal(load_volume(series).voxels, stored)


@pytest.mark.parametrize(
    "syntax, encode, pieces", [(JPEGLosslessSV1, LOSSLESS, 3), (JPEG2000Lossless, JP2, 60), (JPEGLSLossless, LS, 60)]
)
def test_a_frame_may_be_in_pieces(tmp_path, syntax, encode, pieces):
    """Even in such small ones that what a stream says of itself is in several."""
    series = compressed(tmp_path / "a", STORED, syntax, encode, fragments=pieces)
    np.testing.assert_array_equal(load_volume(series).voxels, STORED)


def in_one_file(folder: Path, syntax: str, encode: Encoder, write: Callable, frames: int) -> Path:
    """:data:`FRAMES` in one file; ``write`` puts their streams into it."""
    series = enhanced(folder, range(frames), shared=None)
    dataset = pydicom.dcmread(series / "0000.dcm")
    write(dataset, [encode(np.ascontiguousarray(FRAMES[..., index].T)) for index in range(frames)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(series / "0000.dcm", enforce_file_format=True)
    return series


def pieces(number: int, table: bool) -> Callable:
    def write(dataset: Dataset, streams: list[bytes]) -> None:
        dataset.PixelData = encapsulate(streams, fragments_per_frame=number, has_bot=table)

    return write


def with_long_table(dataset: Dataset, streams: list[bytes]) -> None:
    extended = encapsulate_extended(streams)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = extended


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    "write",
    [pieces(1, True), pieces(1, False), pieces(3, True), pieces(3, False), with_long_table],
    ids=["a table", "no table", "pieces", "pieces without a table", "a table of long numbers"],
)
@pytest.mark.parametrize("name", ["JPEG without loss", "JPEG 2000", "JPEG-LS"])
def test_frames_may_be_in_pieces_and_lie_where_any_table_says(tmp_path, name, write, frames):
    _, syntax, encode, _ = ALIKE[name]
    series = in_one_file(tmp_path / "a", syntax, encode, write, frames)
    np.testing.assert_array_equal(load_volume(series).voxels, FRAMES[..., :frames])


def without_the_last(dataset: Dataset, streams: list[bytes]) -> None:
    dataset.PixelData = encapsulate(streams[:-1])


@pytest.mark.parametrize(
    "name, write, said",
    [
        ("RLE", pieces(2, False), "are in pieces, of which nothing says where each of 3 frames begins"),
        ("RLE", without_the_last, "holds 2 pieces of pixels for 3 frames"),
        ("JPEG 2000", without_the_last, "holds 2 pieces of pixels for 3 frames"),
    ],
)
def test_frames_that_are_not_to_be_told_apart_or_missing_are_refused(tmp_path, name, write, said):
    _, syntax, encode, _ = ALIKE[name]
    assert said in refusal(in_one_file(tmp_path / "a", syntax, encode, write, 3))


@pytest.mark.parametrize(
    "stored, syntax, encode, apart",
    [
        (BYTES, JPEGBaseline8Bit, by_pillow("JPEG", quality=95), 6),
        (STORED, JPEG2000, by_pillow("JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[90]), 20),
        (STORED, JPEGLSNearLossless, NEAR, 2),
    ],
    ids=["JPEG", "JPEG 2000", "JPEG-LS"],
)
def test_with_loss_they_are_near(tmp_path, stored, syntax, encode, apart):
    voxels = load_volume(compressed(tmp_path / "a", stored, syntax, encode)).voxels
    assert 0 < np.abs(voxels.astype(int) - stored).max() <= apart


HTJ2K_STREAM = (  # by OpenJPH, of the image that the test makes
    "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh"
    "=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000djJ9dlfVEbNB#u|bN~Rr0206e69C8o2Xp|U{sISd0KfnfKmZefqWA!UbO2DH{s3cC0K"
    "fnh5C8>G5JLE>Z~}Dzq$CpQz##$bwgA8YD<A+Ch(tt0MCZV#r>DYr07wKu5ClQ~{e&QU_7H*Wx&Z&#"
)


def test_high_throughput_jpeg_2000_is_read(tmp_path):
    image = np.add.outer(37 * np.arange(16), 11 * np.arange(16)).astype(np.uint16)  # (rows, columns)
    series = compressed(
        tmp_path / "a",
        image.T[..., None],
        HTJ2KLossless,
        lambda plane: base64.b85decode(HTJ2K_STREAM),
        SliceThickness=2,
    )
    np.testing.assert_array_equal(load_volume(series).voxels[..., 0], image.T)


COLOURS = by_pillow("JPEG")
WRONG = {
    "two frames for one, JPEG": (STORED, JPEGLosslessSV1, LOSSLESS, {"copies": 2}, "holds 2 frames in place of 1"),
    "two frames for one, JPEG 2000": (STORED, JPEG2000Lossless, J2K, {"copies": 2}, "holds 2 frames in place of 1"),
    "two frames for one, JPEG-LS": (STORED, JPEGLSLossless, LS, {"copies": 2}, "holds 2 frames in place of 1"),
    "two frames for one, RLE": (STORED, RLELossless, RUNS, {"copies": 2}, "holds 2 frames in place of 1"),
    "colours, JPEG": (BYTES, JPEGBaseline8Bit, lambda plane: COLOURS(np.stack([plane] * 3, -1)), {}, "as 3 x 8 bits"),
    "colours, JPEG 2000": (BYTES, JPEG2000Lossless, lambda plane: JP2(np.stack([plane] * 3, -1)), {}, "as 3 x 8 bits"),
    "16 bits for 8, JPEG": (
        BYTES,
        JPEGLosslessSV1,
        lambda plane: LOSSLESS(plane * np.uint16(200)),
        {},
        "as 1 x 16 bits",
    ),
    "16 bits for 8, JPEG 2000": (
        BYTES,
        JPEG2000Lossless,
        lambda plane: J2K(plane * np.uint16(200)),
        {},
        "as 1 x 16 bits",
    ),
    "16 bits for 8, JPEG-LS": (BYTES, JPEGLSLossless, lambda plane: LS(plane * np.uint16(200)), {}, "as 1 x 16 bits"),
    "16 bits for 8, RLE": (BYTES, RLELossless, lambda plane: RUNS(plane * np.uint16(200)), {}, "as 1 x 16 bits"),
    "signs where none are declared, JPEG 2000": (
        STORED,
        JPEG2000Lossless,
        lambda plane: ITK_2000(plane.astype(np.int16) - 1024),
        {},
        "compressed as numbers below 0 as well, its header declares numbers from 0 on (PixelRepresentation)",
    ),
    "another size": (STORED, JPEG2000Lossless, lambda plane: J2K(plane[:20]), {}, "cannot be decoded"),
    "nothing known": (STORED, JPEG2000Lossless, lambda plane: b"what is this" * 9, {}, "cannot be decoded"),
    "the stream of another": (STORED, JPEGLSLossless, J2K, {}, "cannot be decoded"),
    "a stream cut off": (STORED, JPEG2000Lossless, lambda plane: J2K(plane)[:200], {}, "cannot be decoded"),
    "a film": (STORED, "1.2.840.10008.1.2.4.100", J2K, {}, "MPEG2 Main Profile / Main Level; "),
}


@pytest.mark.parametrize("stored, syntax, encode, options, said", WRONG.values(), ids=WRONG)
def test_a_stream_that_is_another_than_the_header_says_is_refused(tmp_path, stored, syntax, encode, options, said):
    message = refusal(compressed(tmp_path / "a", stored, syntax, encode, **options))
    assert said in message and str(tmp_path / "a") in message and ".dcm'" in message
    assert ("for which there is no decoder here" in message) == (syntax == "1.2.840.10008.1.2.4.100")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, JPEGBaseline8Bit])
def test_pixels_that_are_called_compressed_and_are_not_are_refused(tmp_path, syntax):
    series = save_dicom_series(tmp_path / "a", STORED, **CT)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = UID("1.3.6.1.4.1.99999.1.2.3")  # of nobody
        dataset.save_as(file, implicit_vr=False, little_endian=True)
    assert "are not compressed, as its transfer syntax says that they are" in refusal(called(series, syntax))


@pytest.mark.parametrize("encode", [J2K, lambda plane: plane.tobytes()], ids=["compressed", "in one piece"])
def test_pixels_that_are_called_uncompressed_and_are_not_are_refused(tmp_path, encode):
    """Of pixels in one piece, the marks before them would push all others aside."""
    noise = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    series = called(compressed(tmp_path / "a", noise, JPEG2000Lossless, encode), ExplicitVRLittleEndian)
    assert "are in pieces, as only compressed ones are" in refusal(series)
