"""Files of several images that share a series: refused by what tells them apart; what varies in one image is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from pydicom.uid import generate_uid
from scripts.data.intensity import NOTES
from scripts.data.volumes import VolumeReader, load_volume
from scripts.errors import DatasetError

from tests.conftest import save_dicom_series

SLICES = 8
STORED = np.random.default_rng(0).integers(0, 2000, (12, 10, SLICES)).astype(np.uint16)
UIDS = [generate_uid() for _ in range(SLICES)]


def by_turns(*values) -> Callable:
    """A value for the first slice, another for the second, and so on, from the first again."""
    return lambda index: values[index % len(values)]


def refusal(series: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_volume(series)
    return str(caught.value)


# ---- what says that slices are of one image


@pytest.mark.parametrize(
    "value, kinds, said",
    [
        (by_turns(*UIDS[:2]), 2, f"{UIDS[0]} in 4 files (0000.dcm, 0002.dcm and 2 more)"),
        (lambda index: UIDS[index // 4], 2, f"{UIDS[1]} in 4 files (0004.dcm, 0005.dcm and 2 more)"),
        (lambda index: UIDS[index == 7], 2, f"{UIDS[1]} in 1 file (0007.dcm)"),
    ],
    ids=["by turns", "one after the other", "one slice"],
)
def test_slices_of_several_frames_of_reference_are_told(tmp_path, value, kinds, said):
    """In another frame of reference the same position is another place."""
    message = refusal(save_dicom_series(tmp_path / "a", STORED, FrameOfReferenceUID=value))
    assert f"files of {kinds} kinds (by their FrameOfReferenceUID): " in message and said in message
    assert "Move those of each to a folder of their own" in message and str(tmp_path / "a") in message


@pytest.mark.parametrize(
    "keyword, value, kinds",
    [
        ("FrameOfReferenceUID", lambda index: UIDS[index], 8),
        ("StudyInstanceUID", lambda index: UIDS[index], 8),
        ("StudyInstanceUID", lambda index: UIDS[index // 4], 2),
    ],
)
def test_identifiers_by_which_slices_lie_as_they_say_are_only_told(tmp_path, caplog, keyword, value, kinds):
    series = save_dicom_series(tmp_path / "a", STORED, **{keyword: value})

    assert load_volume(series).voxels.shape == STORED.shape
    assert f"the files have {kinds} values of {keyword}, expected one" in caplog.text


MIXED = {
    "echoes": ({"EchoTime": by_turns("2.3", "4.6")}, "EchoTime '2.3' in 4 slices, '4.6' in 4 slices"),
    "three echoes": ({"EchoTime": by_turns("1.2", "2.3", "4.6")}, "EchoTime '1.2' in 3 slices, '2.3' in 3 slices"),
    "echoes, two slices each": (
        {"EchoTime": lambda index: ("2.3", "4.6")[index // 2 % 2]},
        "EchoTime '2.3' in 4 slices, '4.6' in 4 slices",
    ),
    "water and fat": (
        {"ImageType": by_turns(*(["DERIVED", "PRIMARY", "DIXON", each] for each in ("WATER", "FAT")))},
        "ImageType 'DIXON\\WATER' in 4 slices, 'DIXON\\FAT' in 4 slices",
    ),
    "times": (
        {"TemporalPositionIdentifier": by_turns(1, 2)},
        "TemporalPositionIdentifier '1' in 4 slices, '2' in 4 slices",
    ),
    "diffusion": ({"DiffusionBValue": by_turns(0.0, 50.0)}, "DiffusionBValue '0.0' in 4 slices, '50.0' in 4 slices"),
    "real and imaginary": (
        {"ComplexImageComponent": by_turns("REAL", "IMAGINARY")},
        "ComplexImageComponent 'REAL' in 4 slices, 'IMAGINARY' in 4 slices",
    ),
    "echoes, of which a slice states none": (
        {"EchoTime": lambda index: None if index == 3 else ("2.3", "4.6")[index % 2]},
        "EchoTime '2.3' in 4 slices, '4.6' in 3 slices",
    ),
}


@pytest.mark.parametrize("tags, said", MIXED.values(), ids=MIXED)
def test_slices_of_several_volumes_between_one_another_are_told(tmp_path, tags, said):
    message = refusal(save_dicom_series(tmp_path / "a", STORED, **tags))
    assert f"volumes lie between one another, of {said}" in message and str(tmp_path / "a") in message
    assert "Move the files of each to a folder of its own" in message


ONE = {  # elements that vary in good series
    "acquisitions by turns": {"AcquisitionNumber": by_turns(1, 2)},
    "tube voltage and exposure": {"KVP": by_turns("100", "120"), "Exposure": by_turns(90, 91, 95)},
    "times of contents": {
        "ContentTime": lambda index: f"10101{index}",
        "AcquisitionTime": by_turns("101010", "101011"),
    },
    "windows": {"WindowCenter": by_turns(40, 50), "WindowWidth": by_turns(400, 350)},
    "places": {"SliceLocation": lambda index: str(5.0 * index)},
    "trigger times": {"TriggerTime": by_turns("10", "12", "10")},
    "echoes that are rounded": {"EchoTime": by_turns("2.38", "2.39", "2.4")},
    "echoes that are rounded to a digit": {"EchoTime": by_turns("1.1", "1.2")},
    "echoes one after the other": {"EchoTime": lambda index: ("2.3", "4.6")[index // 4]},
    "nothing stated in some": {
        "EchoTime": by_turns("2.3", None),
        "ImageType": by_turns(["ORIGINAL", "PRIMARY", "M"], None, ["ORIGINAL", "PRIMARY"]),
        "TemporalPositionIdentifier": by_turns(1, None),
        "FrameOfReferenceUID": by_turns(UIDS[0], None),
        "StudyInstanceUID": by_turns(UIDS[1], None),
    },
    "slices that were edited": {
        "ImageType": by_turns(["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"])
    },
    "a time for each": {"TemporalPositionIdentifier": lambda index: 1 + 3 * index % SLICES},
}


@pytest.mark.parametrize("tags", ONE.values(), ids=ONE)
def test_what_may_vary_in_one_image_is_read(tmp_path, tags):
    np.testing.assert_array_equal(load_volume(save_dicom_series(tmp_path / "a", STORED, **tags)).voxels, STORED)


@pytest.mark.parametrize("other, said", [(b"2,32", None), (b"4,62", "of EchoTime '2.31' in 4 slices, '4.62' in 4")])
def test_a_comma_in_place_of_the_decimal_point_of_an_echo(tmp_path, other, said):
    series = save_dicom_series(tmp_path / "a", STORED, EchoTime=by_turns("1.11", "2.22"))
    for file in series.iterdir():
        content = file.read_bytes().replace(b"DS\x04\x001.11", b"DS\x04\x002,31")
        file.write_bytes(content.replace(b"DS\x04\x002.22", b"DS\x04\x00" + other))
    if said is None:
        np.testing.assert_array_equal(load_volume(series).voxels, STORED)
    else:
        assert said in refusal(series)


# ---- several slices in one image


def siemens(series: Path, images: int, creator: str = "SIEMENS MR HEADER") -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.private_block(0x0019, creator, create=True).add_new(0x0A, "US", images)
        dataset.save_as(file)
    return series


def test_tiles_are_known_by_their_number(tmp_path):
    message = refusal(siemens(save_dicom_series(tmp_path / "a", STORED), 36))
    assert "as tiles of one image (by Siemens' NumberOfImagesInMosaic): 0000.dcm" in message
    for folder, images, creator in (("b", 1, "SIEMENS MR HEADER"), ("c", 36, "GEMS_ACQU_01")):
        series = siemens(save_dicom_series(tmp_path / folder, STORED), images, creator)
        np.testing.assert_array_equal(load_volume(series).voxels, STORED)


@pytest.mark.parametrize("slices", [1, SLICES])
@pytest.mark.parametrize("kind", [["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "MOSAIC"], ids=["last", "alone"])
def test_tiles_of_a_volume_are_no_slice(tmp_path, slices, kind):
    message = refusal(save_dicom_series(tmp_path / "a", STORED[..., :slices], ImageType=kind))
    assert f"{slices} file" in message and "as tiles of one image (MOSAIC, by the ImageType): 0000.dcm" in message


ODD = {
    "another way of reconstruction": {
        "ImageType": lambda index: ["ORIGINAL", "PRIMARY", "M", *["NORM"] * (index == 4)]
    },
    "two recompressed slices": {"ImageType": lambda index: ["DERIVED", "SECONDARY", ("A", "LOSSY")[index in (2, 5)]]},
    "an echo time": {"EchoTime": lambda index: "81" if index == 3 else "80"},
    "a diffusion": {"DiffusionBValue": lambda index: 799.5 if index == 3 else 800.0},
}


@pytest.mark.parametrize("tags", ODD.values(), ids=ODD)
def test_a_slice_or_two_that_say_another_thing_are_no_other_volume(tmp_path, tags):
    assert load_volume(save_dicom_series(tmp_path / "a", STORED, **tags)).voxels.shape == STORED.shape


# ---- what headers say against the slices that are there: said, not refused

APART = "of 2 slices may be missing"
COUNTED = "its files hold 5 slices, and its headers count 6 ({name})"
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
REMARKS = {
    "every second is missing": (slice(0, 6, 2), {"SpacingBetweenSlices": 5}, APART),
    "two of three are missing": (slice(0, 6, 3), {"SpacingBetweenSlices": 5}, "2 of 3 slices may be missing"),
    "none is missing": (slice(6), {"SpacingBetweenSlices": 5}, None),
    "a distance to the other side": (slice(6), {"SpacingBetweenSlices": -5}, None),
    "a gap in place of a distance": (slice(6), {"SpacingBetweenSlices": 0.5, "SliceThickness": 4.5}, None),
    "slices that touch": (slice(6), {"SpacingBetweenSlices": 0.5}, None),
    "overlapping slices": (slice(6), {"SpacingBetweenSlices": 2.5, "SliceThickness": 4}, APART),
    "no thickness": (slice(6), {"SpacingBetweenSlices": 2.5, "SliceThickness": None}, APART),
    "no whole number of times": (slice(6), {"SpacingBetweenSlices": 2.1}, None),
    "a wider distance": (slice(6), {"SpacingBetweenSlices": 10}, None),
    "several distances": (slice(0, 6, 2), {"SpacingBetweenSlices": by_turns(5, 6)}, None),
    "no distance in one": (slice(0, 6, 2), {"SpacingBetweenSlices": by_turns(5, None)}, None),
    "the last is missing": (slice(5), {"ImagesInAcquisition": 6}, COUNTED.format(name="ImagesInAcquisition")),
    "one of a volume": (slice(5), {"NumberOfSlices": 6}, COUNTED.format(name="NumberOfSlices")),
    "half of a volume": (slice(3), {"NumberOfSlices": 6}, "count 6 (NumberOfSlices)"),
    "all are there": (slice(6), {"ImagesInAcquisition": 6, "NumberOfSlices": 6}, None),
    "more than are counted": (slice(6), {"ImagesInAcquisition": 5}, None),
    "two echoes": (slice(3), {"ImagesInAcquisition": 6}, None),
    "several acquisitions": (slice(5), {"ImagesInAcquisition": 6, "AcquisitionNumber": lambda index: index}, None),
    "other counts": (slice(5), {"ImagesInAcquisition": lambda index: 6 + index}, None),
    "made of others": (slice(5), {"ImagesInAcquisition": 6, "ImageType": ["DERIVED", "SECONDARY"]}, None),
    "a localizer": (slice(5), {"ImageType": LOCALIZER}, "a localizer, by its ImageType"),
}


@pytest.mark.parametrize("taken, tags, said", REMARKS.values(), ids=REMARKS)
def test_what_headers_say_against_the_slices_is_told(tmp_path, caplog, taken, tags, said):
    affine = np.diag([-2.0, -2.0, 5.0 * (taken.step or 1), 1.0])
    series = save_dicom_series(tmp_path / "a", STORED[..., taken], affine, **({"SliceThickness": 5} | tags))
    image = LoadImage(reader=VolumeReader())(series)
    np.testing.assert_array_equal(image, STORED[..., taken])
    notes = image.meta.get(NOTES, "")
    assert said in notes and said in caplog.text if said else not notes and not caplog.text


def halves(first, second):
    """An element of which the slices below the middle have one value, and those above it another."""
    return lambda index: first if index < SLICES // 2 else second


@pytest.mark.parametrize(
    "tags, said",
    [
        (
            {"RescaleIntercept": halves(-1024, 0)},
            "is -1024 in 4 ('0000.dcm', '0001.dcm' and 2 more), 0 in 4 ('0004.dcm',",
        ),
        ({"RescaleIntercept": by_turns(-1000, 0)}, "which differs by 1000 from one slice to the next"),
        ({"RescaleIntercept": lambda index: -1024 - 10 * index}, None),
        ({"RescaleIntercept": -1024}, None),
        ({"RescaleIntercept": halves(-1024, 0), "Modality": "MR"}, None),
        ({"RescaleSlope": 0}, "RescaleSlope is 0 in 8 of 8 slices ('0000.dcm', '0001.dcm' and 6 more), and taken as 1"),
        ({"RescaleSlope": halves(1, 0)}, "RescaleSlope is 0 in 4 of 8 slices ('0004.dcm', '0005.dcm' and 2 more)"),
        ({"RescaleSlope": 0, "Modality": "MR"}, "RescaleSlope is 0 in 8 of 8 slices"),
    ],
)
def test_slopes_and_intercepts_that_may_be_lost_are_told(tmp_path, caplog, tags, said):
    tags = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0} | tags
    notes = load_volume(save_dicom_series(tmp_path / "a", STORED, **tags)).notes
    assert len(notes) == 1 and said in notes[0] and said in caplog.text if said else not notes and not caplog.text


def test_a_slope_of_0_beside_others_is_refused(tmp_path):
    tags = {"RescaleSlope": halves(2.5, 0), "RescaleIntercept": 0}
    message = refusal(save_dicom_series(tmp_path / "a", STORED, **tags))
    assert "RescaleSlope 0 in 4 of 8 slices: '0004.dcm'" in message and "such as 2.5" in message


@pytest.mark.parametrize("taken, said", [(5, COUNTED.format(name="Philips' NumberOfSlicesMR")), (6, None), (3, None)])
def test_slices_that_philips_counts_are_told(tmp_path, taken, said):
    series = save_dicom_series(tmp_path / "a", STORED[..., :taken])
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x18, "SL", 6)
        dataset.save_as(file)
    notes = load_volume(series).notes
    assert len(notes) == 1 and said in notes[0] if said else not notes


def test_what_other_series_of_the_folder_make_up_is_not_missing(tmp_path):
    save_dicom_series(tmp_path, STORED[..., :5], SeriesNumber=1, ImagesInAcquisition=6)
    assert COUNTED.format(name="ImagesInAcquisition") in load_volume(tmp_path).notes[0]
    save_dicom_series(tmp_path, STORED[..., :1], name="other{index}.dcm", SeriesNumber=2, ImagesInAcquisition=6)
    assert not load_volume(tmp_path, series="1").notes
