"""The pixels of DICOM: the numbers that the header says, or a refusal before a decoder hangs or ends the program."""

from __future__ import annotations

import io
import time
from pathlib import Path

import itk
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from scripts.data import dicom_files
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError

from tests.conftest import save_dicom_series

SHAPE = (40, 36, 4)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
HU[:4] = -1000
CT = {"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def read(folder: Path) -> np.ndarray:
    return load_volume(folder).voxels


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_volume(folder)
    return str(caught.value)


def ct(folder: Path, stored: np.ndarray | None = None, syntax: str | None = None, **tags) -> Path:
    """A CT series, of which all files are compressed or written otherwise."""
    series = save_dicom_series(folder, (HU + 1024).astype(np.uint16) if stored is None else stored, **(CT | tags))
    for file in series.iterdir() if syntax else ():
        dataset = pydicom.dcmread(file)
        if syntax in (RLELossless, JPEGLSLossless):
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            list(dataset.iterall())  # numbers, no longer bytes in the other order
            dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(file, enforce_file_format=True)
    return series


SYNTAXES = [
    *(None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
    *(RLELossless, JPEGLSLossless),
]
each_syntax = pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name if uid else "explicit")


@each_syntax
def test_hounsfield_units_are_the_same_in_every_transfer_syntax(tmp_path, syntax):
    np.testing.assert_array_equal(read(ct(tmp_path / "a", syntax=syntax)), HU)


def test_a_file_that_inflates_for_ever_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_files, "MOST_INFLATED", 1000)
    with pytest.raises(DatasetError, match="deflated, and more than 0 MiB when it is inflated"):
        read(ct(tmp_path / "a", syntax=DeflatedExplicitVRLittleEndian))


@each_syntax
def test_ct_means_the_same_numbers_however_it_is_displayed(tmp_path, syntax):
    np.testing.assert_array_equal(read(ct(tmp_path / "a", syntax=syntax, PhotometricInterpretation="MONOCHROME1")), HU)


@each_syntax
def test_padding_far_above_the_image_becomes_its_darkest_voxel(tmp_path, syntax):
    stored = (HU + 1024).astype(np.uint16)
    stored[:4] = 63536
    voxels = read(ct(tmp_path / "a", stored, syntax, PixelPaddingValue=63536))
    np.testing.assert_array_equal(voxels[4:], HU[4:])
    assert (voxels[:4] == HU[4:].min()).all() and voxels.dtype == np.int16


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_bytes_that_are_exchanged_in_pairs_are_put_back(tmp_path, vr, photometric):
    """Pixels of 8 bits where numbers begin with their higher byte: exchanged as words, and not as bytes."""
    stored = np.abs(HU // 8).astype(np.uint8)
    series = ct(tmp_path / "a", stored, RescaleIntercept=0, PhotometricInterpretation=photometric)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        pixels = np.frombuffer(dataset.PixelData, "<u2" if vr == "OW" else "u1")
        dataset["PixelData"].VR, dataset.PixelData = vr, pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        list(dataset.iterall())
        dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
        dataset.save_as(file, enforce_file_format=True)
    np.testing.assert_array_equal(read(series), stored)


@pytest.mark.parametrize("signed", [False, True])
def test_run_lengths_that_itk_refuses_are_read(tmp_path, signed):
    """Noise of a few pixels, whose run lengths take more room than the pixels."""
    noise = np.random.default_rng(1).integers(-1000, 1000, (9, 8, 2)).astype(np.int16)
    stored, intercept = (noise, 0) if signed else ((noise + 1024).astype(np.uint16), -1024)
    np.testing.assert_array_equal(read(ct(tmp_path / "a", stored, RLELossless, RescaleIntercept=intercept)), noise)


def test_run_lengths_that_are_cut_off_are_one_line_and_no_stack_in_a_log(tmp_path, caplog, capfd):
    noise = np.random.default_rng(1).integers(0, 4000, (90, 80, 1)).astype(np.uint16)
    series = ct(tmp_path / "a", noise, RLELossless)
    dataset = pydicom.dcmread(series / "0000.dcm")
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([stream[: len(stream) // 4 * 2]])
    dataset.save_as(series / "0000.dcm")
    assert "cannot be decoded (stored as RLE Lossless" in refusal(series)
    assert not caplog.text and not "".join(capfd.readouterr())


def test_padding_below_the_image_stays_as_it_is(tmp_path):
    stored = HU.copy()
    stored[:4] = -2000
    np.testing.assert_array_equal(
        read(ct(tmp_path / "a", stored, RescaleIntercept=0, PixelPaddingValue=-2000))[:4], np.full((4, 36, 4), -2000)
    )


@pytest.mark.parametrize("ends", [(60000, 60010), (60010, 60000)])
def test_a_range_of_padding_is_padding_with_both_its_ends(tmp_path, ends):
    stored = (HU + 1024).astype(np.uint16)
    stored[0], stored[1], stored[2] = 60000, 60005, 60010
    voxels = read(ct(tmp_path / "a", stored, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1]))
    assert voxels.max() == HU[3:].max()


@each_syntax
@pytest.mark.parametrize("first, vr", [(0, "US"), (24, "US"), (24, "OW")])
def test_a_table_in_place_of_a_slope_is_applied(tmp_path, syntax, first, vr):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, first, 16])
    table.ModalityLUTType = "HU"
    entries = list(range(0, 8192, 2))
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    table.add_new("LUTData", vr, entries if vr == "US" else np.array(entries, f"{order}u2").tobytes())
    tags = {"RescaleSlope": None, "RescaleIntercept": None, "ModalityLUTSequence": [table]}

    voxels = read(ct(tmp_path / "a", syntax=syntax, **tags))

    np.testing.assert_array_equal(voxels, 2 * np.clip(HU + 1024 - first, 0, 4095))


def test_a_table_of_signed_values_may_begin_below_0(tmp_path):
    """Which its descriptor says without a sign, as the standard has it of its other numbers."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 2**16 - 500, 16])
    table.add_new("LUTData", "US", list(range(0, 8192, 2)))
    tags = {"RescaleSlope": None, "RescaleIntercept": None, "ModalityLUTSequence": [table]}
    np.testing.assert_array_equal(read(ct(tmp_path / "a", HU, **tags)), 2 * np.clip(HU + 500, 0, 4095))


def test_a_damaged_table_is_refused(tmp_path):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "US", [1, 2, 3])
    assert "ModalityLUTSequence" in refusal(ct(tmp_path / "a", ModalityLUTSequence=[table]))


WIDE = {  # beyond what integers of 32 bits and a sign hold
    "no slope": {"RescaleSlope": None, "RescaleIntercept": None},
    "a slope of 1": {"RescaleIntercept": 0},
    "inverted": {"RescaleIntercept": 0, "Modality": "MR", "PhotometricInterpretation": "MONOCHROME1"},
    "an offset": {"RescaleIntercept": -1024},
    "a fraction": {"RescaleSlope": 0.5, "RescaleIntercept": 0},
}


@pytest.mark.parametrize("start", [None, "preamble", "nothing"])
@pytest.mark.parametrize("tags", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 2**32 - 1])
def test_numbers_of_32_bits_without_a_sign_stay_above_0(tmp_path, start, tags, value):
    """In either order of bytes, which :func:`other_order` tells more of."""
    stored = (HU + 1024).astype(np.uint32)
    stored[:4, :, 1:] = value
    order = ">" if start else "<"
    series = ct(
        tmp_path / "a", stored, PixelData=lambda index: stored[..., index].T.astype(f"{order}u4").tobytes(), **tags
    )

    voxels = read(other_order(series, start) if start else series)

    meant = stored.astype(np.int64)
    meant = 2**32 - 1 - meant if "PhotometricInterpretation" in tags else meant
    slope, intercept = tags.get("RescaleSlope", 1) or 1, tags.get("RescaleIntercept") or 0
    np.testing.assert_array_equal(voxels, (meant * slope + intercept).astype(voxels.dtype))
    assert voxels.dtype.kind == "i" or (slope, intercept) != (1, 0)


def test_padding_of_all_bits_of_32_becomes_the_darkest_voxel(tmp_path):
    stored = (HU + 1024).astype(np.uint32)
    stored[:4] = 2**32 - 1
    series = ct(tmp_path / "a", stored, RescaleIntercept=0)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.add_new("PixelPaddingValue", "SS", -1)
        dataset.save_as(file)

    voxels = read(series)

    np.testing.assert_array_equal(voxels[4:], HU[4:] + 1024)
    assert (voxels[:4] == HU[4:].min() + 1024).all() and voxels.dtype == np.int16


# ---- numbers that begin with their higher byte, in files that do not say so


def other_order(series: Path, start: str) -> Path:
    """The same files with their numbers in the other order, pixels being so already.

    Args:
        series: of files in explicit little endian.
        start: of each file: "nothing", "preamble", with a transfer syntax, or "no syntax", a preamble without one.
    """
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        list(dataset.iterall())  # numbers, no longer bytes
        dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=False)
        del dataset.file_meta, dataset.preamble
        content = io.BytesIO()
        dataset.save_as(content, implicit_vr=False, little_endian=False, enforce_file_format=False)
        syntax = ExplicitVRBigEndian.encode().ljust(20, b"\0")
        group = b"\2\0\x12\0UI\4\x001.2\0" if start == "no syntax" else b"\2\0\x10\0UI\x14\0" + syntax
        head = bytes(128) + b"DICM\2\0\0\0UL\4\0" + len(group).to_bytes(4, "little") + group
        file.write_bytes((b"" if start == "nothing" else head) + content.getvalue())
    return series


@pytest.mark.parametrize("start", ["nothing", "no syntax", "preamble"])
@pytest.mark.parametrize("kind", ["u1 as bytes", "u1 as words", "u2", "i2", "u4", "i4"])
def test_the_other_order_of_bytes_need_not_be_stated(tmp_path, kind, start):
    dtype = np.dtype(kind[:2])
    stored = (np.abs(HU // 8) if dtype.itemsize == 1 else HU + 1024).astype(dtype)

    def pixels(index: int) -> bytes:
        plane = stored[..., index].T
        return (
            np.frombuffer(plane.tobytes(), "u2").byteswap()
            if kind == "u1 as words"
            else plane.astype(dtype.newbyteorder(">"))
        ).tobytes()

    series = ct(tmp_path / "a", stored, RescaleIntercept=-24, PixelData=pixels)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset["PixelData"].VR = "OB" if kind == "u1 as bytes" else "OW"
        dataset.save_as(file)
    np.testing.assert_array_equal(read(other_order(series, start)), stored.astype(int) - 24)


@pytest.mark.parametrize("start", ["nothing", "no syntax", "preamble"])
def test_nor_that_of_a_table(tmp_path, start):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", np.arange(0, 8192, 2).astype(">u2").tobytes())
    tags = {"RescaleSlope": None, "RescaleIntercept": None, "ModalityLUTSequence": [table]}
    stored = (HU + 1024).astype(np.uint16)
    series = ct(tmp_path / "a", stored, PixelData=lambda index: stored[..., index].T.astype(">u2").tobytes(), **tags)
    np.testing.assert_array_equal(read(other_order(series, start)), 2 * stored.astype(int))


# ---- frames


def sequence(**values) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def frames(folder: Path, place: str, sop: str, syntax: str | None = None) -> Path:
    """All slices in one file, with the rescale at one of three places."""
    count = SHAPE[2]
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
    values = {"PixelValueTransformationSequence": sequence(**rescale)}
    shared = sequence(
        PixelMeasuresSequence=sequence(PixelSpacing=[2, 2], SliceThickness=5),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        **(values if place == "shared" else {}),
    )
    by_frame = [
        sequence(
            PlanePositionSequence=sequence(ImagePositionPatient=[0, 0, 5 * index]),
            **(values if place == "frame" else {}),
        )[0]
        for index in range(count)
    ]
    nothing = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"]
    tags = CT | {"SOPClassUID": sop, "RescaleSlope": None, "RescaleIntercept": None} | dict.fromkeys(nothing)
    if place == "top":
        tags |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
    stored = (HU + 1024).astype(np.uint16)
    series = save_dicom_series(folder, stored[..., :1], **tags)
    file = next(series.iterdir())
    dataset = pydicom.dcmread(file)
    dataset.NumberOfFrames = count
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = shared, by_frame
    dataset.PixelData = np.moveaxis(stored, -1, 0).transpose(0, 2, 1).tobytes()
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(file, enforce_file_format=True)
    return series


ENHANCED_CT, MULTIFRAME_SC, ENHANCED_PET = (
    *("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7.3", "1.2.840.10008.5.1.4.1.1.130"),
)


@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["explicit", "RLE"])
@pytest.mark.parametrize("sop", [ENHANCED_CT, MULTIFRAME_SC, ENHANCED_PET])
@pytest.mark.parametrize("place", ["frame", "shared", "top"])
def test_the_rescale_of_frames_is_applied_wherever_it_stands(tmp_path, place, sop, syntax):
    np.testing.assert_array_equal(read(frames(tmp_path / "a", place, sop, syntax)), HU)


# ---- what ITK reads rightly is read alike


@pytest.mark.parametrize(
    "stored, tags",
    {
        "8 bits": (np.abs(HU // 8).astype(np.uint8), {}),
        "12 bits": ((HU + 1024).astype(np.uint16), {"BitsStored": 12, "HighBit": 11}),
        "signed": (HU, {"RescaleIntercept": 0}),
        "32 bits": (HU.astype(np.int32), {"RescaleIntercept": 0}),
        "a fraction": (HU, {"RescaleSlope": 0.37, "RescaleIntercept": -3.25}),
        "a large slope": (HU, {"RescaleSlope": 1000}),
        "no slope": (HU, {"RescaleSlope": None, "RescaleIntercept": None}),
        "a slope of 0": (HU, {"RescaleSlope": 0}),
        "overlays in upper bits": (
            ((HU + 1024).clip(0, 4095) | 0x4000).astype(np.uint16),
            {"BitsStored": 12, "HighBit": 11},
        ),
        "signs that are not extended": ((HU & 0xFFF).astype(np.int16), {"BitsStored": 12, "HighBit": 11}),
    }.values(),
)
def test_the_same_numbers_as_of_itk(tmp_path, stored, tags):
    series = ct(tmp_path / "a", stored, **tags)
    files = sorted(series.iterdir())

    voxels = read(series)

    expected = np.stack([itk.array_from_image(itk.imread(str(file)))[0].T for file in files], -1)
    expected = expected.astype(np.float32) if expected.dtype.kind == "f" else expected
    np.testing.assert_array_equal(voxels, expected)
    assert (voxels.dtype.kind == "f") == (expected.dtype.kind == "f")


TWELVE = {"BitsStored": 12, "HighBit": 11}
BELOW = (HU + 1024).clip(0, 4095).astype(np.uint16)
SIGNED = HU.clip(-2048, 2047)
MORE_BITS = {  # whether they are told
    "none": (BELOW, TWELVE, False),
    "numbers above": (BELOW + np.uint16(4096), TWELVE, True),
    "numbers above, of 8 bits": ((BELOW // 16).astype(np.uint8), {"BitsStored": 7, "HighBit": 6}, True),
    "signs that are extended": (SIGNED, TWELVE, False),
    "signs that are not": ((SIGNED & 0xFFF).astype(np.int16), TWELVE, False),
    "numbers above and below": (SIGNED * np.int16(4), TWELVE, True),
    "an overlay that is named": (BELOW | np.uint16(0x4000), TWELVE | {"OverlayBitPosition": 14}, False),
    "an overlay that is not": (BELOW | np.uint16(0x4000), TWELVE, True),
    "padding": (np.where(HU == -1000, 63536, BELOW).astype(np.uint16), TWELVE | {"PixelPaddingValue": 63536}, False),
}


@pytest.mark.parametrize("stored, tags, told", MORE_BITS.values(), ids=MORE_BITS)
def test_bits_that_are_not_declared_are_told_once(tmp_path, caplog, stored, tags, told):
    position = tags.get("OverlayBitPosition")
    series = ct(tmp_path / "a", stored, **{key: value for key, value in tags.items() if key != "OverlayBitPosition"})
    for file in series.iterdir() if position else ():
        dataset = pydicom.dcmread(file)
        dataset.add_new((0x6000, 0x0102), "US", position)
        dataset.save_as(file)

    read(series)

    said = f"pixels in {SHAPE[2]} files have more bits than their headers declare (HighBit): 0000.dcm"
    assert caplog.text.count("more bits than") == caplog.text.count(said) == told


# ---- refused before a decoder is asked


POISONS = {
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    "colours": ({"PhotometricInterpretation": "YBR_FULL"}, "colours"),
    "three million frames": ({"NumberOfFrames": 3_000_000}, "3000000 frames"),
    "two thousand million frames": ({"NumberOfFrames": 2_000_000_000}, "2000000000 frames"),
    "frames below 0": ({"NumberOfFrames": -1}, "NumberOfFrames"),
    "65535 rows": ({"Rows": 65535, "Columns": 65535}, "incomplete pixel data"),
    "no rows": ({"Rows": 0}, "0 rows"),
    "1 bit": ({"BitsAllocated": 1}, "BitsAllocated"),
    "64 bits": ({"BitsAllocated": 64}, "BitsAllocated"),
    "more bits stored than there are": ({"BitsStored": 24}, "contradict each other"),
    "a plane more": ({"PixelData": bytes(3 * HU[..., 0].nbytes)}, "more pixel data"),
    "half a plane": ({"PixelData": bytes(HU[..., 0].nbytes // 2)}, "incomplete pixel data"),
    "no orientation": ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient"),
    "no spacing": ({"PixelSpacing": [0, 0]}, "PixelSpacing"),
}


@pytest.mark.parametrize("tags, said", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among others"])
def test_headers_are_checked_before_pixels(tmp_path, tags, said, alone):
    series = ct(tmp_path / "a")
    file = series / "0002.dcm"
    dataset = pydicom.dcmread(file)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)
    for other in series.iterdir() if alone else ():
        if other != file:
            other.unlink()

    start = time.monotonic()
    message = refusal(series)

    assert time.monotonic() - start < 5 and str(series) in message
    assert said in message or "different" in message  # from the sizes of the others


def test_a_compressed_file_cannot_hold_any_number_of_pixels(tmp_path):
    series = ct(tmp_path / "a", syntax=RLELossless)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(file)
    assert "cannot hold" in refusal(series)


# ---- numbers in headers


def test_a_comma_in_place_of_the_decimal_point_is_one(tmp_path):
    series = ct(tmp_path / "a")
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.PixelSpacing
        dataset.add_new("PixelSpacing", "LO", ["0,75", "0,75"])
        dataset.save_as(file)
    assert load_volume(series).spacing == pytest.approx((0.75, 0.75, 5))


def test_what_is_no_number_is_named(tmp_path):
    series = ct(tmp_path / "a")
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.PixelSpacing
        dataset.add_new("PixelSpacing", "LO", ["wide", "wide"])
        dataset.save_as(file)
    assert "PixelSpacing is wide, wide, expected finite numbers" in refusal(series)


@pytest.mark.parametrize("spacing", [[-2, 2], [2, -2], [0, 2]])
def test_a_spacing_that_is_not_above_0_is_refused(tmp_path, spacing):
    """Negative, it would put left where right is."""
    assert "expected millimetres above 0" in refusal(ct(tmp_path / "a", PixelSpacing=spacing))


def test_slices_of_several_patients_are_no_volume(tmp_path):
    series = ct(tmp_path / "a", PatientID=lambda index: "AB"[index // 2])
    assert "slices of 2 patients" in refusal(series)


def test_slices_that_do_not_all_say_whose_they_are_are_read(tmp_path):
    series = ct(tmp_path / "a", PatientID=lambda index: "A" if index else "")
    assert read(series).shape == SHAPE


def test_patients_without_an_id_are_told_by_their_names(tmp_path):
    series = ct(tmp_path / "a", PatientName=lambda index: f"{'AB'[index // 2]}^X")
    assert "slices of 2 patients (by their PatientName)" in refusal(series)
    series = ct(tmp_path / "b", PatientID="1", PatientName=lambda index: f"{'Aa'[index // 2]}^X")
    assert read(series).shape == SHAPE


# ---- objects that are no slices, where one would fit


def beside(series: Path, **tags) -> Path:
    """A copy of a slice, with other elements, one place after the last."""
    dataset = pydicom.dcmread(series / "0000.dcm")
    tags |= {"SOPInstanceUID": generate_uid(), "ImagePositionPatient": [0, 0, 5 * SHAPE[2]]}
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(series / "other.dcm")
    return series


@pytest.mark.parametrize(
    "number, modality",
    [("88.11", "SR"), ("11.1", "PR"), ("88.59", "KO"), ("481.3", "RTSTRUCT"), ("66.4", "CT"), ("481.2", "CT")],
)
def test_what_the_standard_calls_no_image_is_no_slice_though_it_has_pixels(tmp_path, number, modality):
    series = beside(ct(tmp_path / "a"), SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}", Modality=modality)
    assert f"1 file without an image ({modality}): other.dcm" in refusal(series)


@pytest.mark.parametrize(
    "keyword, kind, said",
    [
        ("FloatPixelData", "f4", "are FloatPixelData, as those of parametric maps are"),
        ("DoubleFloatPixelData", "f8", "has 64 bits a pixel (BitsAllocated)"),
    ],
)
def test_a_map_of_fractions_is_called_one(tmp_path, keyword, kind, said):
    series = ct(tmp_path / "a", SOPClassUID="1.2.840.10008.5.1.4.1.1.30")
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        setattr(dataset, keyword, dataset.pixel_array.astype(kind).tobytes())
        del dataset.PixelData
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (8 * int(kind[1]), None, None)
        dataset.save_as(file)
    assert said in refusal(series)


@pytest.mark.parametrize(
    "tags, said",
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SOPClassUID): CT Image Storage in 4 files (0000.dcm, 0001.dcm"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.30"}, "Parametric Map Storage in 1 file (other.dcm)"),
        ({"Modality": "OT"}, "(by their Modality): CT in 4 files (0000.dcm, 0001.dcm"),
    ],
    ids=["a screen's picture", "a map", "another modality"],
)
def test_a_series_is_of_one_kind(tmp_path, tags, said):
    message = refusal(beside(ct(tmp_path / "a"), **tags))
    assert "files of 2 kinds" in message and said in message and "Move those of each" in message


def test_a_series_of_a_scanners_own_class_is_read(tmp_path):
    np.testing.assert_array_equal(read(ct(tmp_path / "a", SOPClassUID="1.3.12.2.1107.5.9.1")), HU)


@pytest.mark.parametrize("written", [b"1.5 ", b"inf ", b"nan ", b"one ", b"-1  ", b"0   "])
def test_a_number_of_frames_that_is_none_is_refused(tmp_path, written):
    series = ct(tmp_path / "a", NumberOfFrames=7777)
    for file in series.iterdir():
        file.write_bytes(file.read_bytes().replace(b"IS\x04\x007777", b"IS\x04\x00" + written))
    assert "expected a whole number above 0" in refusal(series)


# ---- slopes that are lost, doubled, or elsewhere


def test_slices_that_have_lost_their_slope_are_refused(tmp_path):
    lost = {"RescaleSlope": lambda index: 1 if index else None, "RescaleIntercept": lambda index: -9 if index else None}
    series = ct(tmp_path / "a", **lost)
    assert f"no RescaleSlope and RescaleIntercept in 1 of {SHAPE[2]} slices: '0000.dcm'" in refusal(series)


def test_a_slope_that_changes_nothing_may_be_left_out(tmp_path):
    nothing = {"RescaleSlope": lambda index: 1 if index else None, "RescaleIntercept": None}
    np.testing.assert_array_equal(read(ct(tmp_path / "a", **nothing)), HU + 1024)


def test_each_slice_has_its_own_slope(tmp_path):
    series = ct(tmp_path / "a", Modality="PT", RescaleSlope=lambda index: index + 1, RescaleIntercept=0)
    np.testing.assert_array_equal(read(series), (HU + 1024) * np.arange(1, SHAPE[2] + 1))


def test_values_that_a_slope_takes_beyond_32_bits_are_kept(tmp_path):
    voxels = read(ct(tmp_path / "a", RescaleSlope=2_000_000, RescaleIntercept=0))
    np.testing.assert_array_equal(voxels, ((HU + 1024) * 2e6).astype(np.float32))


def test_two_slopes_are_refused(tmp_path):
    assert "RescaleSlope is 1.0, 2.0, expected one number" in refusal(ct(tmp_path / "a", RescaleSlope=[1, 2]))


@each_syntax
@pytest.mark.parametrize("unit", ["code", "label"])
def test_a_ct_that_states_hounsfield_units_as_a_mapping_alone(tmp_path, unit, syntax):
    mapping = sequence(RealWorldValueSlope=1.0, RealWorldValueIntercept=-1024.0)
    if unit == "code":
        mapping[0].MeasurementUnitsCodeSequence = sequence(CodeValue="[hnsf'U]")
    else:
        mapping[0].LUTLabel = "HU"
    other = sequence(RealWorldValueSlope=3.0, RealWorldValueIntercept=7.0, LUTLabel="mg/cm3")
    tags = {"RescaleSlope": None, "RescaleIntercept": None, "RealWorldValueMappingSequence": [*other, *mapping]}
    np.testing.assert_array_equal(read(ct(tmp_path / "a", syntax=syntax, **tags)), HU)


@pytest.mark.parametrize(
    "mapping",
    [
        {"RealWorldValueSlope": 3.0, "RealWorldValueIntercept": 7.0, "LUTLabel": "mg/cm3"},
        {"LUTLabel": "HU"},
        {"RealWorldValueSlope": 3.0, "LUTLabel": "HU"},
        {"RealWorldValueSlope": 0.0, "RealWorldValueIntercept": 7.0, "LUTLabel": "HU"},
    ],
    ids=["another quantity", "no numbers", "no intercept", "a slope of 0"],
)
def test_a_mapping_that_does_not_lead_to_hounsfield_units_is_not_applied(tmp_path, mapping):
    tags = {"RescaleSlope": None, "RescaleIntercept": None, "RealWorldValueMappingSequence": sequence(**mapping)}
    np.testing.assert_array_equal(read(ct(tmp_path / "a", **tags)), HU + 1024)
