"""Datalists: which files a config means, and every way in which they can be unusable, with what the user is told."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import DatasetError, check_output, find_cases, inference_inputs
from scripts.data.dataset_check import CaseSummary, check_dataset, check_disjoint, voxel_problem
from scripts.data.label_values import label_values
from scripts.data.volumes import VolumeReader

PATTERNS = ("image_{case}.nii.gz", "label_{case}.nii.gz")
LABEL_MAP = {"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 4}


@pytest.fixture
def items(tiny_dataset):
    return find_cases(tiny_dataset, *PATTERNS)


@pytest.fixture
def label(items):
    """The label array that every case of the data set has."""
    return np.asarray(nib.load(items[0]["label"]).dataobj)


def cases_of(items) -> list[str]:
    return [item["case"] for item in items]


def touch(folder, *names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def problems(items, label_map=LABEL_MAP, **kwargs) -> str:
    """The message with which the check of unusable data ends."""
    with pytest.raises(DatasetError) as caught:
        check_dataset(items, label_map, **kwargs)
    return str(caught.value)


# ---- find_cases


def test_all_cases_with_an_image_are_found(tiny_dataset):
    assert find_cases(tiny_dataset, *PATTERNS)[0] == {
        "image": str(tiny_dataset / "image_a.nii.gz"),
        "label": str(tiny_dataset / "label_a.nii.gz"),
        "case": "a",
    }
    assert cases_of(find_cases(tiny_dataset, *PATTERNS)) == ["a", "b", "c", "d"]


def test_without_a_label_pattern_there_are_no_labels(tiny_dataset):
    assert all(set(item) == {"image", "case"} for item in find_cases(tiny_dataset, PATTERNS[0]))


def test_cases_are_sorted_naturally(tmp_path):
    touch(tmp_path, "img10.nii.gz", "img2.nii.gz", "img1.nii.gz", "img1b.nii.gz")
    assert cases_of(find_cases(tmp_path, "img{case}.nii.gz")) == ["1", "1b", "2", "10"]


def test_patterns_may_name_folders(tmp_path):
    touch(tmp_path, "img/img0001.nii.gz", "label/label0001.nii.gz")
    (item,) = find_cases(tmp_path, "img/img{case}.nii.gz", "label/label{case}.nii.gz")
    assert item["label"] == str(tmp_path / "label" / "label0001.nii.gz")


def test_special_characters_of_a_pattern_are_literal(tmp_path):
    touch(tmp_path, "ct[1]_a.nii.gz", "ct1_b.nii.gz")
    assert cases_of(find_cases(tmp_path, "ct[1]_{case}.nii.gz")) == ["a"]


def test_labels_beside_the_images_are_no_images(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz")
    assert cases_of(find_cases(tmp_path, "{case}.nii.gz", "{case}_seg.nii.gz")) == ["a"]


@pytest.mark.parametrize("ending", ["", ".*"])
def test_endings_that_a_pattern_leaves_open_may_differ(tmp_path, ending):
    """As folders of several studies do: a case a folder, of any format; what is no volume is none."""
    touch(tmp_path, "p1/T2.nii.gz", "p2/T2.nrrd", "p3/T2.NII", "p10/T2/1.dcm", "p4/T2.txt", "p5/T2w.nii.gz", "a.nii")
    items = find_cases(tmp_path, "{case}/T2" + ending)
    assert cases_of(items) == ["p1", "p2", "p3", "p10"]
    names = [str(Path(item["image"]).relative_to(tmp_path)) for item in items]
    assert names == ["p1/T2.nii.gz", "p2/T2.nrrd", "p3/T2.NII", "p10/T2"]


@pytest.mark.parametrize("ending", ["", ".*"])
@pytest.mark.parametrize("stray", ["notes.txt", "p1.json", "p3.raw", "p4.zraw", "p5.img", "p5.img.gz", "README", "p1"])
def test_what_is_no_volume_is_no_case_of_an_open_ending(tmp_path, ending, stray):
    touch(tmp_path, "images/p1.nii.gz", "images/p2/1.dcm", "images/p3.mhd", "images/p4.mhd", "images/p5.hdr")
    (tmp_path / "images" / stray).write_text("no image")

    items = find_cases(tmp_path, "images/{case}" + ending)

    names = {item["case"]: Path(item["image"]).name for item in items}
    assert names == {"p1": "p1.nii.gz", "p2": "p2", "p3": "p3.mhd", "p4": "p4.mhd", "p5": "p5.hdr"}


def test_a_dicom_file_without_an_ending_is_a_case_of_a_pattern_without_one(tmp_path, write_dicom_series):
    write_dicom_series(tmp_path, np.zeros((4, 4, 2), np.int16), name="p{index}")
    (tmp_path / "p2").symlink_to(tmp_path / "gone")  # which is to be said

    assert cases_of(find_cases(tmp_path, "{case}", cases=["p0", "p1"])) == ["p0", "p1"]
    with pytest.raises(FileNotFoundError, match="p2"):
        find_cases(tmp_path, "{case}")


@pytest.mark.parametrize("ending", ["", ".*"])
def test_labels_beside_the_images_are_told_by_what_follows_their_name(tmp_path, ending):
    touch(tmp_path, "a.nii.gz", "a_seg.nrrd", "b.mha", "b_seg.nii.gz", "a.b.nii")
    touch(tmp_path, "a.b_seg.nii.gz")
    items = find_cases(tmp_path, "{case}" + ending, "{case}_seg" + ending)
    assert [(item["case"], Path(item["label"]).name) for item in items] == [
        ("a", "a_seg.nrrd"),
        ("a.b", "a.b_seg.nii.gz"),
        ("b", "b_seg.nii.gz"),
    ]


def test_two_files_that_an_open_ending_may_mean_are_named(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nrrd", "b.nii.gz")
    with pytest.raises(DatasetError, match="a.nii.gz', '.*a.nrrd' of case 'a': expected one. Give the pattern the end"):
        find_cases(tmp_path, "{case}.*")
    assert cases_of(find_cases(tmp_path, "{case}.nii.gz")) == ["a", "b"]


def test_a_missing_file_with_an_open_ending_is_named_by_its_pattern(tmp_path):
    touch(tmp_path, "p1/image.nii.gz", "p1/label.mha", "p2/image.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"p2/label\.\*'"):
        find_cases(tmp_path, "{case}/image.*", "{case}/label.*")


def test_excluded_cases_are_left_out(tiny_dataset):
    assert cases_of(find_cases(tiny_dataset, *PATTERNS, exclude=["b", "elsewhere"])) == ["a", "c", "d"]


def test_listed_cases_keep_their_order_and_ignore_the_exclusion(tiny_dataset):
    assert cases_of(find_cases(tiny_dataset, *PATTERNS, cases=["c", "a"], exclude=["a"])) == ["c", "a"]


def test_cases_may_be_integers(tmp_path):
    touch(tmp_path, "image_7.nii.gz", "image_8.nii.gz")
    assert cases_of(find_cases(tmp_path, PATTERNS[0], cases=[8, 7])) == ["8", "7"]
    assert cases_of(find_cases(tmp_path, PATTERNS[0], exclude=[8])) == ["7"]


def test_pattern_without_a_case_is_refused(tiny_dataset):
    with pytest.raises(DatasetError, match="image_pattern is .*expected it once at least"):
        find_cases(tiny_dataset, "image.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", "", ".*"])
def test_a_case_that_a_pattern_names_several_times_is_the_same_each_time(tmp_path, ending):
    touch(tmp_path, *(f"sub-{case}/ses-1/sub-{name}_T2w.nii.gz" for case, name in (("01", "01"), ("1.2", "1.2"))))
    touch(tmp_path, "sub-02/ses-1/sub-01_T2w.nii.gz", "sub-/ses-1/sub-_T2w.nii.gz", "sub-03/ses-2/sub-03_T2w.nii.gz")
    assert cases_of(find_cases(tmp_path, f"sub-{{case}}/ses-1/sub-{{case}}_T2w{ending}")) == ["01", "1.2"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((5, PATTERNS[0]), "dataset_dir is 5, expected the path of a folder"),
        (("data", 5), "image_pattern is 5, expected a text"),
        (("data", PATTERNS[0], 1), "label_pattern is 1, expected a text"),
    ],
)
def test_what_is_no_text_is_no_path(arguments, said):
    with pytest.raises(DatasetError, match=said):
        find_cases(*arguments)


def test_equal_patterns_are_refused(tiny_dataset):
    with pytest.raises(DatasetError, match="both 'image_{case}.nii.gz'.*Set --label_pattern"):
        find_cases(tiny_dataset, PATTERNS[0], PATTERNS[0])


def test_missing_folder_says_how_to_set_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find_cases(tmp_path / "up" / ".." / "nowhere", *PATTERNS)
    message = str(caught.value)
    assert f"'{tmp_path / 'nowhere'}' is not there" in message
    assert "--dataset_dir" in message and "docs/README.md says where to get BTCV and CHAOS" in message
    assert "leave out --dataset_dir" in message


def test_file_in_place_of_the_folder_is_named(tmp_path):
    touch(tmp_path, "btcv.zip")
    with pytest.raises(FileNotFoundError, match="btcv.zip' is a file, not a folder"):
        find_cases(tmp_path / "btcv.zip", *PATTERNS)


def test_empty_folder_is_named_with_the_pattern(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find_cases(tmp_path, *PATTERNS)
    message = str(caught.value)
    assert f"'{tmp_path}'" in message and "'image_{case}.nii.gz'" in message
    assert "folder is empty" in message and "--image_pattern" in message


def test_folder_of_another_layout_shows_what_is_there(tiny_dataset):
    with pytest.raises(FileNotFoundError, match=r"for example: image_a\.nii\.gz, image_b\.nii\.gz"):
        find_cases(tiny_dataset, "img/img{case}.nii.gz")


def test_all_missing_files_of_listed_cases_are_named(tiny_dataset):
    (tiny_dataset / "label_b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        find_cases(tiny_dataset, *PATTERNS, cases=["a", "b", "z"])
    message = str(caught.value)
    assert all(f"'{tiny_dataset / name}.nii.gz'" in message for name in ("label_b", "image_z", "label_z"))
    assert "image_a" not in message
    assert "Cases that have an image: a, b, c, d." in message and "train_cases" in message


def test_missing_label_of_a_found_case_is_named(tiny_dataset):
    (tiny_dataset / "label_b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="label_b.nii.gz' .case 'b'"):
        find_cases(tiny_dataset, *PATTERNS)


def test_number_that_lost_its_zeros_is_recognised(tmp_path):
    touch(tmp_path, "img0001.nii.gz")
    with pytest.raises(FileNotFoundError, match='did you mean "0001"'):
        find_cases(tmp_path, "img{case}.nii.gz", cases=[1])


def test_a_data_set_one_folder_too_deep_is_found_and_said(tiny_dataset, caplog):
    deeper = find_cases(tiny_dataset.parent, "image_{case}.nii.gz", "label_{case}.nii.gz")

    assert deeper == find_cases(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz")
    assert f"'{tiny_dataset}', one folder deeper than '{tiny_dataset.parent}'" in caplog.text


def test_two_data_sets_one_folder_too_deep_are_not_guessed_between(tiny_dataset):
    shutil.copytree(tiny_dataset, tiny_dataset.parent / "other")

    with pytest.raises(FileNotFoundError, match="No image in"):
        find_cases(tiny_dataset.parent, "image_{case}.nii.gz")


# ---- label_values


def test_organs_are_numbered_in_the_order_of_the_map():
    assert label_values({"liver": [6], "spleen": 1}) == ([6, 1, 0], [1, 2, 0])


def test_several_values_of_an_organ_share_its_channel():
    assert label_values({"spleen": 1, "kidneys": [2, 3]}, [0, 4]) == ([1, 2, 3, 0, 4], [1, 2, 2, 0, 0])


@pytest.mark.parametrize(
    ("label_map", "background", "expected"),
    [
        ({}, [0], "names no organ"),
        ({"spleen": []}, [0], "names no value for spleen"),
        ({"spleen": 1, "liver": 1}, [0], "1 means spleen and liver"),
        ({"spleen": 1}, [0, 1], "1 means spleen and background"),
        ({"spleen": 1.5}, [0], "value of spleen is 1.5; expected an integer"),
        ("spleen", [0], "label_map is 'spleen'; expected organ: value pairs"),
        ({"spleen": "1"}, [0], "value of spleen is '1'; expected an integer"),
    ],
)
def test_ambiguous_label_map_is_refused(label_map, background, expected):
    with pytest.raises(DatasetError, match=expected):
        label_values(label_map, background)


# ---- check_dataset: data that can be used


def test_summary_counts_what_was_drawn(items):
    # sides of the boxes in conftest.py: 6 x 8 x 4, 6 x 6 x 6 twice, 16 x 16 x 6
    voxels = {"spleen": 192, "right kidney": 216, "left kidney": 216, "liver": 1536}
    assert check_dataset(items[:1], LABEL_MAP) == [CaseSummary("a", (40, 36, 8), (2.0, 2.0, 5.0), voxels)]


@pytest.mark.parametrize("voxels, said", [(1, True), (29, True), (30, False), (0, False)])
def test_an_organ_of_a_few_voxels_in_one_case_is_said(items, label, write_volume, caplog, voxels, said):
    label.flat[np.flatnonzero(label == 1)[voxels:]] = 0
    write_volume(items[0]["label"], label)

    check_dataset(items, LABEL_MAP)

    assert ("Organs of a few voxels: a: spleen" in caplog.text) is said


def test_summaries_follow_the_items(items):
    assert [summary.case for summary in check_dataset(items[::-1], LABEL_MAP)] == ["d", "c", "b", "a"]


def test_voxels_of_all_values_of_an_organ_are_added(items):
    (summary,) = check_dataset(items[:1], {"kidneys": [2, 3]}, background_values=[0, 1, 4])
    assert summary.voxels == {"kidneys": 432}


def test_images_without_labels_have_no_voxel_counts(tiny_dataset):
    (summary,) = check_dataset(find_cases(tiny_dataset, PATTERNS[0], cases=["a"]), LABEL_MAP, purpose="inference")
    assert summary.voxels == {}


def test_summary_cannot_be_changed(items):
    (summary,) = check_dataset(items[:1], LABEL_MAP)
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.case = "z"


def test_trailing_dimensions_of_one_are_dropped(items, label, write_volume):
    write_volume(items[0]["label"], label[..., None, None])
    (summary,) = check_dataset(items[:1], LABEL_MAP)
    assert summary.shape == (40, 36, 8)


def test_volume_of_one_slice_is_a_volume(items, label, write_volume):
    for key, voxels in (("image", label + 1), ("label", label)):
        write_volume(items[0][key], voxels[..., 3:4])
    (summary,) = check_dataset(items[:1], LABEL_MAP)
    assert summary.shape == (40, 36, 1)


def test_integers_stored_as_floats_are_labels(items, label, write_volume):
    write_volume(items[0]["label"], label.astype(np.float64))
    (summary,) = check_dataset(items[:1], LABEL_MAP)
    assert summary.voxels["spleen"] == 192


def test_rounding_in_an_affine_is_no_difference(items, label, write_volume):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[0, 3] = 1e-3
    write_volume(items[0]["label"], label, affine)
    assert check_dataset(items[:1], LABEL_MAP)


def test_oblique_volume_has_its_spacing_along_its_own_axes(items, label, write_volume):
    turn = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for key, voxels in (("image", label + 1), ("label", label)):
        write_volume(items[0][key], voxels, turn @ np.diag([2.0, 3.0, 5.0, 1.0]))
    (summary,) = check_dataset(items[:1], LABEL_MAP)
    assert summary.spacing == pytest.approx((2.0, 3.0, 5.0), rel=1e-6)


def test_dicom_folder_is_checked_as_one_image(tmp_path, write_dicom_series):
    folder = write_dicom_series(tmp_path / "series", np.zeros((5, 6, 3), np.int16), np.diag([-1.5, -2.5, 4.0, 1.0]))
    (summary,) = check_dataset(inference_inputs(folder), LABEL_MAP, purpose="inference")
    assert (summary.shape, summary.spacing) == ((5, 6, 3), (1.5, 2.5, 4.0))


def test_images_are_checked_as_the_reader_reads_them(tmp_path, write_dicom_series):
    for number in (1, 2):
        voxels = np.zeros((5, 6, 3 + number), np.int16)
        folder = write_dicom_series(tmp_path / "study", voxels, name=f"{number}_{{index}}.dcm", SeriesNumber=number)
    items = inference_inputs(folder)
    (summary,) = check_dataset(items, LABEL_MAP, purpose="inference", reader=VolumeReader(series="2"))
    assert summary.shape == (5, 6, 5)
    assert "2 DICOM series in one folder" in problems(items)


# ---- check_dataset: data that cannot


def test_truncated_file_is_named(items):
    path = items[1]["image"]
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    message = problems(items)
    assert f"'{path}': cannot be read" in message and "copy or download it again" in message
    assert message.startswith("1 problem in the training data:")


def test_truncated_uncompressed_file_is_named(tmp_path, write_volume):
    path = write_volume(tmp_path / "scan.nii", np.zeros((8, 8, 8), np.int16))
    path.write_bytes(path.read_bytes()[:800])
    assert f"'{path}': cannot be read" in problems(inference_inputs(path))


def test_file_that_is_no_nifti_is_named(items):
    with open(items[0]["label"], "w") as file:
        file.write("<html>please log in</html>")
    message = problems(items)
    assert f"'{items[0]['label']}': cannot be read" in message and "expected a complete NIfTI file" in message


def test_unreadable_file_of_another_format_is_named(tmp_path):
    touch(tmp_path, "scan.nrrd")
    message = problems(inference_inputs(tmp_path))
    assert "scan.nrrd': cannot be read" in message and "expected a complete NRRD or MetaImage file" in message


def test_file_that_vanished_is_named(items):
    item = items[0] | {"image": "/nowhere/image.nii.gz"}
    assert "'/nowhere/image.nii.gz': the file is not there. Restore it" in problems([item])


@pytest.mark.parametrize("shape", [(40, 36), (40, 36, 8, 2)])
def test_image_without_three_dimensions_is_named(items, write_volume, shape):
    write_volume(items[0]["image"], np.zeros(shape, np.int16))
    message = problems(items)
    assert f"'{items[0]['image']}': {len(shape)} dimensions, shape {shape}" in message
    assert "expected one volume of three dimensions" in message and "file of its own" in message


def test_colour_image_is_named(items):
    colour = np.zeros((40, 36, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, np.diag([2.0, 2.0, 5.0, 1.0])), items[0]["image"])
    message = problems(items)
    assert f"'{items[0]['image']}': voxels of type" in message and "greyscale" in message


def test_nan_and_infinite_voxels_are_counted(items, write_volume):
    image = np.zeros((40, 36, 8), np.float32)
    image[0, 0, :3] = np.nan
    image[1, 1, :2] = np.inf
    write_volume(items[0]["image"], image)
    message = problems(items)
    assert f"'{items[0]['image']}': 5 of 11520 voxels are NaN or infinite" in message  # 40 x 36 x 8 = 11520
    assert "replace those voxels" in message


@pytest.mark.parametrize(
    "rows",
    [{"srow_z": 0.0}, {"srow_x": [2, 0, 2, 0], "srow_z": 0.0}, {"srow_x": np.nan}],
    ids=["singular", "axes in one plane", "not finite"],
)
def test_unusable_affine_is_named(items, label, rows):
    header = nib.Nifti1Image(label, np.diag([2.0, 2.0, 5.0, 1.0])).header
    for row, value in rows.items():
        header[row] = value
    nib.Nifti1Image(label, None, header).to_filename(items[0]["image"])
    message = problems(items)
    assert f"'{items[0]['image']}': its affine" in message and "cannot be inverted or is not finite" in message
    assert "set its affine" in message


def test_label_of_another_shape_is_named(items, label, write_volume):
    write_volume(items[0]["label"], label[..., :7])
    message = problems(items)
    assert f"'{items[0]['label']}': shape (40, 36, 7), expected (40, 36, 8) as in '{items[0]['image']}'" in message
    assert "ResampleToMatch" in message


def test_label_of_another_affine_is_named_with_the_distance(items, label, write_volume):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:2, 3] = 3, 4  # 5 mm away
    write_volume(items[0]["label"], label, affine)
    message = problems(items)
    # 0.05 of the smallest spacing, 2 mm
    assert f"'{items[0]['label']}': its affine puts voxels up to 5 mm away" in message and "at most 0.1 mm" in message
    assert "ResampleToMatch" in message


def test_label_with_a_flipped_axis_is_named(items, label, write_volume):
    write_volume(items[0]["label"], label, np.diag([-2.0, 2.0, 5.0, 1.0]))
    assert "its affine puts voxels up to 156 mm away" in problems(items)  # corner 39 is at -78 mm instead of 78 mm


def test_fractional_label_values_are_counted(items, label, write_volume):
    blurred = label.astype(np.float32)
    blurred[0, 0, :4] = 0.5
    write_volume(items[0]["label"], blurred)
    message = problems(items)
    assert f"'{items[0]['label']}': 4 of 11520 label voxels are no integers" in message
    assert "nearest-neighbour" in message


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_an_image_that_is_its_label_is_named(items, label, write_volume, kind, purpose):
    write_volume(items[1]["image"], label.astype(kind))
    message = problems(items, purpose=purpose)
    named = f"the image of case {items[1]['case']} holds the voxels of its label '{items[1]['label']}'"
    assert f"'{items[1]['image']}': {named}, expected intensities" in message
    assert message.startswith("1 problem")


def test_an_image_of_one_value_is_called_so_and_no_label(items, label, write_volume):
    for key in ("image", "label"):
        write_volume(items[1][key], np.zeros_like(label))
    message = problems(items)
    assert "all voxels are 0, expected an image" in message and "voxels of its label" not in message


def test_unknown_label_values_are_listed(items, label, write_volume):
    label = label.copy()
    label[0, 0, :2] = 9, 7
    write_volume(items[0]["label"], label)
    message = problems(items)
    assert f"'{items[0]['label']}': label values 7, 9 have no meaning here; expected 0, 1, 2, 3, 4" in message
    assert "background_values" in message


@pytest.mark.parametrize("background", [(0, 2**40 + 4), (0,)])
def test_label_values_that_single_precision_rounds_are_shown_as_they_are(items, label, write_volume, background):
    label = label.astype(np.float64)
    label[0, 0, :2] = 2**40 + 4, 2**24
    write_volume(items[0]["label"], label)
    message = problems(items, background_values=(*background, 2**24))
    assert f"'{items[0]['label']}': label values 1099511627780 are not told from others in single precision" in message
    assert "expected integers from -16,777,216 to 16,777,216" in message and "have no meaning" not in message


@pytest.mark.parametrize("kind", [np.int32, np.float64])
def test_label_values_without_meaning_are_shown_with_all_digits(items, label, write_volume, kind):
    label = label.astype(kind)
    label[0, 0, 0] = 2**24 - 1
    write_volume(items[0]["label"], label)
    assert "label values 16777215 have no meaning here; expected 0, 1, 2, 3, 4" in problems(items)


def test_label_without_any_organ_is_named(items, label, write_volume):
    write_volume(items[0]["label"], np.zeros_like(label))
    message = problems(items)
    assert f"'{items[0]['label']}': no voxel of any organ, only the values 0" in message
    assert "spleen 1" in message and "leave the case out" in message


def test_label_without_any_organ_may_be_evaluated(items, label, write_volume):
    write_volume(items[0]["label"], np.zeros_like(label))
    (summary,) = check_dataset(items[:1], LABEL_MAP, purpose="evaluation")
    assert set(summary.voxels.values()) == {0}


def test_no_volume_at_all_is_too_few():
    message = problems([])
    assert "Fewer than one training volume: found 0, expected at least 1" in message and "train_cases" in message


def test_minimum_and_purpose_are_named(items):
    assert "Fewer than 5 evaluation volumes: found 4" in problems(items, minimum=5, purpose="evaluation")


def test_file_listed_twice_is_named(tiny_dataset):
    message = problems(find_cases(tiny_dataset, PATTERNS[0], cases=["a", "b", "a"]), purpose="inference")
    assert f"'{tiny_dataset / 'image_a.nii.gz'}': listed 2 times" in message and "Remove the repetition" in message


def test_label_shared_by_two_cases_is_named(items):
    message = problems([items[0], items[1] | {"label": items[0]["label"]}])
    assert f"'{items[0]['label']}': listed 2 times" in message


def test_one_error_holds_every_problem(items, label, write_volume):
    write_volume(items[0]["image"], np.full((40, 36, 8), np.nan, np.float32))
    write_volume(items[1]["label"], np.full_like(label, 9))
    write_volume(items[2]["image"], np.zeros((40, 36), np.int16))
    message = problems(items, minimum=5)
    # too few; NaN; unknown value 9; no organ; two dimensions
    assert message.startswith("5 problems in the training data:\n  1. ")
    assert all(items[number][key] in message for number, key in ((0, "image"), (1, "label"), (2, "image")))


# ---- check_disjoint


def test_disjoint_lists_pass(items):
    check_disjoint(items[:2], items[2:])


def test_cases_in_both_lists_are_named(items):
    with pytest.raises(DatasetError, match="2 cases both trained and tested on: b, c .*Remove them from train_cases"):
        check_disjoint(items[:3], items[1:])


@pytest.mark.parametrize("linked", [slice(0, 2), slice(2, 4)], ids=["trained on", "tested on"])
def test_a_link_to_an_image_is_that_image(items, tmp_path, linked):
    lists = [*items[:2], *items[:2]]
    for place in range(4)[linked]:
        link = tmp_path / f"{place}.nii.gz"
        link.symlink_to(lists[place]["image"])
        lists[place] = {**lists[place], "image": str(link)}
    with pytest.raises(DatasetError, match="2 cases both trained and tested on: a, b"):
        check_disjoint(lists[:2], lists[2:])


def test_equal_names_in_two_data_sets_are_two_cases(tmp_path):
    touch(tmp_path, "ct/image_1.nii.gz", "mr/image_1.nii.gz")
    check_disjoint(*(find_cases(tmp_path / modality, PATTERNS[0]) for modality in ("ct", "mr")))


@pytest.mark.parametrize("purpose, refused", [("training", True), ("evaluation", False)])
def test_an_organ_in_no_training_volume_is_named(items, label, write_volume, purpose, refused):
    for item in items:
        write_volume(Path(item["label"]), np.where(label == 1, 0, label).astype(np.uint8))
    if refused:
        assert f"spleen: in no label of {len(items)} training volumes" in problems(items, purpose=purpose)
    else:
        check_dataset(items, LABEL_MAP, purpose=purpose)


def test_an_organ_of_one_voxel_is_questioned(items, label, write_volume, caplog):
    for number, item in enumerate(items):
        voxels = np.where(label == 1, 0, label).astype(np.uint8)
        voxels[4, 4, 2] = number == 0
        write_volume(Path(item["label"]), voxels)
    check_dataset(items, LABEL_MAP)
    assert "spleen: only 1 voxel in all training labels" in caplog.text


def test_an_image_of_one_value_is_named(items, write_volume):
    write_volume(Path(items[0]["image"]), np.full((40, 36, 8), 40, np.int16))
    for purpose in ("training", "prepared"):  # which is to be trained on
        assert f"'{items[0]['image']}': all voxels are 40, expected an image" in problems(items, purpose=purpose)
    check_dataset(items, LABEL_MAP, purpose="evaluation")


@pytest.mark.parametrize("case", ["sub/../a", "../a", "/etc/a", "", "..", "a\0"])
def test_cases_that_are_named_like_paths_are_refused(tiny_dataset, case):
    with pytest.raises(DatasetError, match="expected names that files can have"):
        find_cases(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", cases=[case])


# ---- inference_inputs


def test_file_is_one_input(tiny_dataset):
    path = tiny_dataset / "image_a.nii.gz"
    assert inference_inputs(path) == [{"image": str(path), "case": "image_a"}]


def test_folder_is_every_supported_image_in_it(tmp_path):
    touch(tmp_path, "b10.nii", "b2.nii.gz", "c.nrrd", "a.mha", "d.mhd", "d.raw", "e.nhdr", "e.raw.gz")
    touch(tmp_path, "notes.txt", ".hidden.nii.gz", "deeper/f.nii.gz")
    assert cases_of(inference_inputs(tmp_path)) == ["a", "b2", "b10", "c", "d", "deeper_f", "e"]


def test_dots_inside_a_name_stay(tmp_path):
    touch(tmp_path, "patient.1.2.nii.gz")
    assert cases_of(inference_inputs(tmp_path)) == ["patient.1.2"]


def test_glob_pattern_selects_inputs(tiny_dataset):
    assert cases_of(inference_inputs(str(tiny_dataset / "image_[bc].*"))) == ["image_b", "image_c"]


def test_folder_of_dicom_slices_is_one_input(tmp_path):
    touch(tmp_path, "series/1.dcm", "series/2.dcm")
    assert inference_inputs(tmp_path / "series") == [{"image": str(tmp_path / "series"), "case": "series"}]


def test_dicom_slices_need_no_suffix(tmp_path):
    touch(tmp_path, "series/IM0001", "series/DICOMDIR")
    (tmp_path / "series" / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert cases_of(inference_inputs(tmp_path / "series")) == ["series"]


def test_folder_of_dicom_folders_is_one_input_each(tmp_path):
    touch(tmp_path, "patient10/1.dcm", "patient2/1.dcm", "1.2.840.7/1.dcm", "1.2.840.8/1.dcm", "scan.nii.gz")
    cases = ["1.2.840.7", "1.2.840.8", "patient2", "patient10", "scan"]
    assert cases_of(inference_inputs(tmp_path)) == cases


def test_dicom_file_is_one_input(tmp_path):
    touch(tmp_path, "series/multiframe.dcm")
    assert cases_of(inference_inputs(tmp_path / "series" / "multiframe.dcm")) == ["multiframe"]


def test_working_folder_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "series/1.dcm")
    monkeypatch.chdir(tmp_path / "series")
    assert inference_inputs(".") == [{"image": str(tmp_path / "series"), "case": "series"}]


def test_dicom_slices_beside_image_files_are_one_input_more(tmp_path, write_dicom_series):
    for folder in ("in", "in/p2"):
        touch(tmp_path, f"{folder}/a.nii.gz", f"{folder}/in.nrrd")
        write_dicom_series(tmp_path / folder, np.zeros((4, 5, 3), np.int16))
    found = {item["case"]: item["image"] for item in inference_inputs(tmp_path / "in")}
    assert found == {
        **{"a": f"{tmp_path}/in/a.nii.gz", "in": f"{tmp_path}/in", "in.nrrd": f"{tmp_path}/in/in.nrrd"},
        **{"p2": f"{tmp_path}/in/p2", "p2_a": f"{tmp_path}/in/p2/a.nii.gz", "p2_in": f"{tmp_path}/in/p2/in.nrrd"},
    }


@pytest.mark.parametrize("pattern", ["", "*"])
def test_files_of_one_name_are_told_apart_by_their_suffixes(tmp_path, pattern):
    touch(tmp_path, "x.nii", "x.nii.gz", "x.nrrd", "x.mgz", "x.hdr", "x.img", "y.nii.gz", "x_1.nii", "x/1.dcm", "z.NII")
    cases = ["x", "x.hdr", "x.mgz", "x.nii", "x.nii.gz", "x.nrrd", "x_1", "y", "z"]
    assert sorted(cases_of(inference_inputs(str(tmp_path / pattern)))) == cases


def test_missing_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.nii.gz' is not there.*Set --input"):
        inference_inputs(tmp_path / "nowhere.nii.gz")


def test_empty_input_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no image in the input folder '{tmp_path}'. The folder is empty"):
        inference_inputs(tmp_path)


def test_pattern_without_match_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No image matches the input pattern"):
        inference_inputs(tmp_path / "*.nii.gz")


def test_file_of_another_format_is_named(tmp_path):
    touch(tmp_path, "scan.png")
    with pytest.raises(DatasetError, match="scan.png' is no image in a supported format.*Convert it"):
        inference_inputs(tmp_path / "scan.png")


@pytest.mark.parametrize("other", ["SCAN", "scan\u00e9|scane\u0301", "stra\u00dfe|STRASSE"])
def test_names_that_some_systems_take_for_one_are_said_and_there_refused(tmp_path, other, monkeypatch, caplog):
    names = other.split("|") if "|" in other else ["scan", other]
    save_json(tmp_path / "list.json", [{"image": f"{index}.nii.gz", "case": name} for index, name in enumerate(names)])

    assert [item["case"] for item in inference_inputs(tmp_path / "list.json")] == names
    assert "differ by capitals, or by how accents are written, alone" in caplog.text
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(DatasetError, match="On this system their results would overwrite each other"):
        inference_inputs(tmp_path / "list.json")


def test_names_that_are_one_nowhere_are_not_said(tmp_path, caplog):
    touch(tmp_path, "scan1.nii.gz", "scan2.nii.gz", "sc\u00e4n1.nii.gz")
    assert len(inference_inputs(tmp_path)) == 3 and "capitals" not in caplog.text


def test_inputs_of_one_name_are_refused(tmp_path):
    touch(tmp_path, "p1/T1.nii.gz", "p2/T1.nii.gz")
    with pytest.raises(DatasetError, match="same name.*p1/T1.nii.gz.*rename them"):
        inference_inputs(str(tmp_path / "*" / "T1.nii.gz"))


def save_json(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [
        ["a.nii.gz", "deeper/b.nii.gz"],
        [{"image": "a.nii.gz"}, {"image": "deeper/b.nii.gz", "label": "b_seg.nii.gz"}],
        {"test": ["a.nii.gz", "deeper/b.nii.gz"], "training": [{"image": "c.nii.gz"}]},
        {"testing": ["a.nii.gz", {"image": "deeper/b.nii.gz"}], "validation": []},
        {"name": "mine", "modality": {"0": "CT"}, "scans": ["a.nii.gz", "deeper/b.nii.gz"]},
    ],
    ids=["paths", "entries", "Decathlon", "testing", "one list"],
)
def test_json_file_lists_inputs_relative_to_itself(tmp_path, content):
    inputs = inference_inputs(save_json(tmp_path / "dataset.json", content))
    assert inputs == [
        {"image": str(tmp_path / "a.nii.gz"), "case": "a"},
        {"image": str(tmp_path / "deeper" / "b.nii.gz"), "case": "b"},
    ]


def test_listed_inputs_keep_their_order_and_may_be_series_or_absolute(tmp_path):
    touch(tmp_path, "patient1.2/1.dcm")
    path = save_json(tmp_path / "list.json", ["z10.nii", "./patient1.2", str(tmp_path / "x.mha")])
    assert cases_of(inference_inputs(path)) == ["z10", "patient1.2", "x"]


def test_listed_inputs_may_have_names_of_their_own(tmp_path):
    entries = [{"image": f"{case}/T1.nii.gz", "case": case} for case in ("p1", "p2")]
    assert cases_of(inference_inputs(save_json(tmp_path / "list.json", entries))) == ["p1", "p2"]


@pytest.mark.parametrize("name", ["../p1", "p1/T1", "..", ""])
def test_names_that_would_lead_elsewhere_are_refused(tmp_path, name):
    path = save_json(tmp_path / "list.json", [{"image": "a.nii.gz", "case": name}])
    with pytest.raises(DatasetError, match="expected names that files can have"):
        inference_inputs(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"training": ["a.nii.gz"], "validation": ["b.nii.gz"]}, "has the keys training, validation"),
        ("a.nii.gz", "holds a str"),
        ({"test": [{"label": "a.nii.gz"}]}, r'has the entry {"label": "a.nii.gz"}'),
        ([["a.nii.gz"]], r'has the entry {"image": \["a.nii.gz"\]}'),
    ],
    ids=["no test list", "no list", "no image", "several images"],
)
def test_json_file_without_a_list_of_images_is_refused(tmp_path, content, found):
    with pytest.raises(DatasetError, match=f"list.json' {found}.*expected a list of paths"):
        inference_inputs(save_json(tmp_path / "list.json", content))


@pytest.mark.parametrize(
    "content, found",
    [
        ("[" * 100_000, "is no JSON .it is nested too deeply"),
        ('{"a":' * 100_000, "is no JSON .it is nested too deeply"),
        ('["\\ud800.nii"]', r"Cases are named .ud800; expected names that files can have"),
        ('[{"image": "a.nii", "case": "\\ud800"}]', r"Cases are named .ud800; expected"),
        ('[{"image": "a.nii", "case": ["x"]}]', "has the entry"),
        ('[{"image": "a.nii", "case": {"a": 1}}]', "has the entry"),
        ('[{"image": "a.nii", "case": true}]', "has the entry"),
        ('[""]', 'has the entry {"image": ""}'),
        ('[{"image": "a.nii", "image": "b.nii"}]', "is no JSON .'image' stands twice in one object"),
        ('{"test": ["a.nii"], "test": ["b.nii"]}', "is no JSON .'test' stands twice in one object"),
        ('[{"image": "a.nii", "case": NaN}]', "is no JSON .NaN is no number"),
        ('[{"image": "a.nii", "case": -Infinity}]', "is no JSON .-Infinity is no number"),
        ('[{"image": "a.nii", "case": " "}]', "expected names that files can have"),
    ],
    ids=lambda value: value[:40],
)
def test_hostile_lists_are_refused_in_words(tmp_path, content, found):
    (tmp_path / "a.nii").touch()
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DatasetError, match=found):
        inference_inputs(tmp_path / "list.json")


@pytest.mark.parametrize("case, name", [("null", "a"), ("7", "7"), ('"x"', "x")])
def test_a_listed_case_without_a_name_has_that_of_its_file(tmp_path, case, name):
    (tmp_path / "a.nii").touch()
    (tmp_path / "list.json").write_text(f'[{{"image": "a.nii", "case": {case}}}]')
    assert [item["case"] for item in inference_inputs(tmp_path / "list.json")] == [name]


def test_the_mark_of_windows_in_front_of_a_list_is_no_part_of_it(tmp_path):
    (tmp_path / "list.json").write_text('\ufeff["a.nii"]', encoding="utf-8")
    assert cases_of(inference_inputs(tmp_path / "list.json")) == ["a"]


@pytest.mark.parametrize("name", ["pipe", "pipe.json"])
def test_an_input_that_is_no_file_is_called_so(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.json")

    with pytest.raises(FileNotFoundError, match=f"{name}' is a pipe, a device or a link to nothing"):
        inference_inputs(tmp_path / name)


@pytest.mark.parametrize(
    "voxels, said",
    [
        (np.float64([0, 1e300]), "1 of 8 voxels are beyond 3.4e38"),
        (np.float64([0, -3.5e38]), "1 of 8 voxels are beyond 3.4e38"),
        (np.float64([0, -np.inf]), "1 of 8 voxels are NaN or infinite"),
        (np.float32([0, np.nan]), "1 of 8 voxels are NaN or infinite"),
        (np.uint64([0, 2**63]), "1 of 8 voxels are beyond 9,007,199,254,740,992"),
        (np.int64([0, -(2**60)]), "1 of 8 voxels are beyond"),
        (np.int64([0, 2**53]), None),
        (np.float64([0, 3e38]), None),
        (np.uint64([0, 4095]), None),
    ],
)
def test_voxels_that_single_precision_cannot_hold_are_refused(tmp_path, voxels, said):
    image = np.zeros((2, 2, 2), voxels.dtype)
    image[0, 0, 0] = voxels[1]
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(image, np.eye(4), dtype=voxels.dtype), path)

    problem = voxel_problem(path, VolumeReader().load(path))

    assert problem is None if said is None else said in problem


def test_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "list.json").write_text("['a.nii.gz']")
    with pytest.raises(DatasetError, match="list.json' is no JSON.*expected a list of paths"):
        inference_inputs(tmp_path / "list.json")


def test_empty_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="list.json' is empty"):
        inference_inputs(save_json(tmp_path / "list.json", {"test": [], "training": ["a.nii.gz"]}))


def test_inputs_listed_twice_are_refused(tmp_path):
    with pytest.raises(DatasetError, match='same name.*"case" of its own'):
        inference_inputs(save_json(tmp_path / "list.json", ["a.nii.gz", "a.nii.gz"]))


@pytest.mark.parametrize("pattern", ["", "*.nii.gz"], ids=["folder", "pattern"])
def test_results_among_the_images_are_refused(tiny_dataset, pattern):
    path = tiny_dataset / pattern
    with pytest.raises(DatasetError, match="is the one that the images are read from.*--output to another"):
        check_output(path, inference_inputs(path), tiny_dataset / "." / "")


def test_results_in_the_folder_of_a_series_are_refused(tmp_path):
    touch(tmp_path, "series/1.dcm")
    with pytest.raises(DatasetError, match="is the one that the images are read from"):
        check_output(tmp_path, inference_inputs(tmp_path), tmp_path / "series")


def test_results_beside_a_single_file_or_in_another_folder_are_fine(tiny_dataset):
    path = tiny_dataset / "image_a.nii.gz"
    check_output(path, inference_inputs(path), tiny_dataset)
    check_output(tiny_dataset, inference_inputs(tiny_dataset), tiny_dataset / "results")
