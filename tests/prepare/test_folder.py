"""Preparing a user's own images and labels, in whatever format, for training and evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import find_cases
from scripts.errors import DatasetError, MissingFileError, user_error
from scripts.prepare.folder import prepare_folder
from scripts.prepare.words import FOLDER, in_words_of

from tests.conftest import save_dicom_series, save_volume, simple_image, simple_label
from tests.helpers.archives import AXIAL, canonical, overlay_of, train_and_evaluate
from tests.helpers.workflows import ORGANS


def test_nifti_files_stay_where_they_are(tiny_dataset, tmp_path):
    (tiny_dataset / "label_d.nii.gz").unlink()
    organs = {"spleen": 1, "liver": 4}

    report = prepare_folder(
        tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map=organs
    )

    overlay = overlay_of(tmp_path / "mine")
    assert overlay["dataset_dir"] == str(tiny_dataset)
    assert (overlay["train_cases"], overlay["test_cases"]) == (["a", "b", "c"], [])
    assert (overlay["label_map"], overlay["background_values"]) == (organs, [0, 2, 3])
    assert "Left out, since they have no label: d." in report and "none is left to evaluate on" in report
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["overlay.json"]


def test_labels_beside_the_images_are_no_images(tiny_dataset, tmp_path):
    for label in tiny_dataset.glob("label_*"):
        label.rename(tiny_dataset / label.name.replace("label_", "image_").replace(".nii", "_seg.nii"))

    report = prepare_folder(tiny_dataset, "{case}.nii.gz", "{case}_seg.nii.gz", tmp_path / "mine")

    assert overlay_of(tmp_path / "mine")["train_cases"] == ["image_a", "image_b", "image_c"]
    assert "Left out" not in report


def test_label_values_without_a_name_are_organs(tiny_dataset, tmp_path):
    report = prepare_folder(
        tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", train_cases=["d"], modality="mr"
    )

    overlay = overlay_of(tmp_path / "mine")
    assert overlay["label_map"] == {f"organ {value}": value for value in (1, 2, 3, 4)}
    assert (overlay["train_cases"], overlay["test_cases"]) == (["d"], ["a", "b", "c"])
    assert overlay["intensity"]["_target_"] == "ScaleIntensityRangePercentilesd"
    assert "look like Hounsfield units" in report


PATTERNS = ("image_{case}.nii.gz", "label_{case}.nii.gz")
BACKGROUND = {
    "what label_map does not name": ({"spleen": 1}, None, {"spleen": 1}, [0, 2, 3, 4]),
    "all that is named": ({"spleen": 1}, [0, 2, 3, 4], {"spleen": 1}, [0, 2, 3, 4]),
    "without 0": ({"spleen": 1, "liver": 4}, (2, 3), {"spleen": 1, "liver": 4}, [0, 2, 3]),
    "of organs without names": (None, [0, 2, 3], {"organ 1": 1, "organ 4": 4}, [0, 2, 3]),
    "a single value": (None, 3, {"organ 1": 1, "organ 2": 2, "organ 4": 4}, [0, 3]),
}


@pytest.mark.parametrize("organs, values, named, background", BACKGROUND.values(), ids=BACKGROUND)
def test_values_of_no_organ(tiny_dataset, tmp_path, organs, values, named, background):
    prepare_folder(tiny_dataset, *PATTERNS, tmp_path / "mine", label_map=organs, background_values=values)

    overlay = overlay_of(tmp_path / "mine")
    assert (overlay["label_map"], overlay["background_values"]) == (named, background)


@pytest.mark.parametrize(
    "values, said",
    [
        ([0, 2], "3.*--label_map"),
        ("seven", "--background_values is 'seven', expected label values"),
        ([0, True], "--background_values is .0, True., expected"),
        ([0, 1, 2, 3], "contradict"),
    ],
    ids=["too few", "a text", "no number", "an organ"],
)
def test_values_of_no_organ_that_cannot_be_meant_so(tiny_dataset, tmp_path, values, said):
    organs = {"spleen": 1, "liver": 4}
    with pytest.raises(DatasetError, match=said):
        prepare_folder(tiny_dataset, *PATTERNS, tmp_path / "mine", label_map=organs, background_values=values)


FOREIGN = {
    "ten times": (lambda label: 10 * label, "10, 20, 30, 40"),
    "negated": (lambda label: -label, "-4, -3, -2, -1"),
}


@pytest.mark.parametrize("change, values", FOREIGN.values(), ids=FOREIGN)
def test_a_label_of_another_label_map_is_refused(tiny_dataset, tmp_path, change, values):
    label = change(simple_label().astype(np.int16)).astype(np.int16)
    save_volume(tiny_dataset / "label_c.nii.gz", label)
    organs = {"spleen": 1, "liver": 4}

    with pytest.raises(
        DatasetError, match=f"1 label of another label map.*label_c.nii.gz' holds {values}; expected some"
    ):
        prepare_folder(tiny_dataset, *PATTERNS, tmp_path / "mine", label_map=organs)
    stated = [0, 2, 3, *np.unique(label).tolist()]
    prepare_folder(tiny_dataset, *PATTERNS, tmp_path / "mine", label_map=organs, background_values=stated)


@pytest.mark.parametrize("value", [2, -1, 255])
def test_a_label_with_other_organs_alone_is_said(tiny_dataset, tmp_path, caplog, value):
    """Of a part of the body where none of these organs is, or that nobody has labelled."""
    label = np.where(simple_label() == 2, value, 0).astype(np.int16)
    save_volume(tiny_dataset / "label_c.nii.gz", label)

    prepare_folder(tiny_dataset, *PATTERNS, tmp_path / "mine", label_map={"spleen": 1, "liver": 4})

    shown = ", ".join(map(str, sorted({0, value})))
    assert f"label_c.nii.gz': no voxel of any organ, only the values {shown}" in caplog.text
    assert "Is it of another label map?" in caplog.text


def test_masks_have_no_values_of_no_organ(tmp_path):
    with pytest.raises(DatasetError, match="names masks .*--background_values is .0, 7."):
        prepare_folder(
            tmp_path,
            "{case}/ct.nii",
            "{case}/{organ}.nii",
            tmp_path / "mine",
            label_map={"a": "a"},
            background_values=[0, 7],
        )


MASKS = ("{case}/ct.nii.gz", "{case}/{organ}.nii.gz")
ABSENT = {
    "a mask that a case lacks": ({"spleen": "spleen", "liver": "liver"}, "b/liver.nii.gz': the mask of liver is not"),
    "a misspelt mask": ({"spleen": "spleen", "liver": "livre"}, "a/livre.nii.gz': the mask of liver is not there"),
    "misspelt masks alone": ({"spleen": "splen", "liver": "livre"}, "None of 3 images has a label"),
}


def save_masks(folder: Path) -> Path:
    """Case b lacks the mask of the liver, and case c has none of the liver and the spleen."""
    for case, masks in {"a": ("spleen", "liver", "aorta"), "b": ("spleen", "aorta"), "c": ("aorta",)}.items():
        save_volume(folder / case / "ct.nii.gz", simple_image(simple_label()))
        for value, mask in enumerate(masks, 1):
            save_volume(folder / case / f"{mask}.nii.gz", (simple_label() == value).astype(np.uint8))
    return folder


@pytest.mark.parametrize("turn", [1, -1], ids=["one order", "the other"])
@pytest.mark.parametrize("organs, said", ABSENT.values(), ids=ABSENT)
def test_whichever_mask_is_absent_it_is_an_error_that_names_those_that_are_there(tmp_path, organs, said, turn):
    organs = dict(list(organs.items())[::turn])
    with pytest.raises(DatasetError) as error:
        prepare_folder(save_masks(tmp_path / "data"), *MASKS, tmp_path / "mine", label_map=organs)

    assert said in str(error.value)
    assert re.search("Masks that are there of case [ab]: aorta, (liver, )?spleen[.]", str(error.value))


@pytest.mark.parametrize("turn", [1, -1], ids=["one order", "the other"])
def test_a_case_without_any_of_the_masks_has_no_label(tmp_path, turn):
    (save_masks(tmp_path / "data") / "b/ct.nii.gz").unlink()
    organs = dict(list({"spleen": "spleen", "liver": "liver"}.items())[::turn])

    report = prepare_folder(tmp_path / "data", *MASKS, tmp_path / "mine", label_map=organs)

    assert "Left out, since they have no label: c." in report
    assert "Left out, since they are labels without an image: b." in report
    assert overlay_of(tmp_path / "mine")["label_map"] == {organ: value for value, organ in enumerate(organs, 1)}


@pytest.mark.parametrize("below", ["out", "another"])
def test_what_was_prepared_within_the_folder_is_none_of_its_cases(tmp_path, below):
    for case in "ab":
        (tmp_path / case).mkdir()
        itk.imwrite(itk.image_from_array(simple_image(simple_label())), str(tmp_path / case / "image.nrrd"))
        itk.imwrite(itk.image_from_array(simple_label()), str(tmp_path / case / "label.nrrd"))
    patterns = ("{case}/image.*", "{case}/label.*")
    prepare_folder(tmp_path, *patterns, tmp_path / below)

    report = prepare_folder(tmp_path, *patterns, tmp_path / "out")

    overlay = overlay_of(tmp_path / "out")
    assert [*overlay["train_cases"], *overlay["test_cases"]] == ["a", "b"] and "Left out" not in report


def test_files_are_not_converted_among_their_sources(tmp_path):
    for name, voxels in (("image", simple_image(simple_label())), ("label", simple_label())):
        itk.imwrite(itk.image_from_array(voxels), str(tmp_path / f"{name}_a.nrrd"))

    with pytest.raises(DatasetError, match="is the folder that is read, and files are converted"):
        prepare_folder(tmp_path, "image_{case}.nrrd", "label_{case}.nrrd", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image_a.nrrd", "label_a.nrrd"]


def test_an_overlay_that_was_edited_is_kept(tiny_dataset, tmp_path):
    arguments = (tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")
    prepare_folder(*arguments)
    edited = tmp_path / "mine/overlay.json"
    edited.write_text(edited.read_text().replace("organ 1", "spleen"))

    with pytest.raises(DatasetError, match="overlay.json'.*--overwrite True"):
        prepare_folder(*arguments)
    assert "spleen" in edited.read_text()


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd"])
def test_an_overlay_that_was_moved_with_its_folder_says_the_new_places(tiny_dataset, tmp_path, kind, edited):
    for path in tiny_dataset.iterdir() if kind == ".nrrd" else ():
        voxels = np.asanyarray(nib.load(path).dataobj).T
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(voxels)), str(path).replace(".nii.gz", kind))
    arguments = (tiny_dataset, f"image_{{case}}{kind}", f"label_{{case}}{kind}")
    prepare_folder(*arguments, tmp_path / "old")
    before = (tmp_path / "old/overlay.json").read_text()
    moved = (tmp_path / "old").rename(tmp_path / "a new one") / "overlay.json"

    if edited:
        moved.write_text(before.replace("organ 1", "spleen"))
        with pytest.raises(DatasetError, match="overlay.json'.*--overwrite True"):
            prepare_folder(*arguments, moved.parent)
    else:
        assert "overlay.json" in prepare_folder(*arguments, moved.parent)
        assert moved.read_text() == before.replace(f"{tmp_path}/old", f"{tmp_path}/a new one")
        assert json.loads(moved.read_text())["dataset_dir"] == str(tiny_dataset if kind != ".nrrd" else moved.parent)


@pytest.mark.parametrize(
    "image, label, options, found",
    [
        ("image_{case}.nii.gz", "seg_{case}.nii.gz", {}, "None of 4 images has a label.*seg_a.nii.gz"),
        ("scan_{case}.nii.gz", "label_{case}.nii.gz", {}, "'scan_{case}.nii.gz'.*Set the folder.*or --image to"),
        ("image_{case}.nii.gz", "label_a.nii.gz", {}, "expected it once at least"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": "spleen"}, "--label_map is 'spleen'"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": {"spleen": None}}, "value of spleen is None"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": {"spleen": [[1]]}}, r"value of spleen is \[1\]"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": {" ": 1}}, "an organ without a name"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": {"spleen": 0}}, "has the value 0 for spleen"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"label_map": {"a": 1, "b": [2, 0]}}, "has the value 0 for b"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"train_cases": ["e"]}, "--train_cases names e, .*a, b, c, d"),
        ("image_{case}.nii.gz", "label_{case}.nii.gz", {"modality": "pet"}, "expected ct or mr"),
        ("label_{case}.nii.gz", "image_{case}.nii.gz", {}, "Does --label name the images"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tiny_dataset, tmp_path, image, label, options, found):
    with pytest.raises((DatasetError, FileNotFoundError), match=found):
        prepare_folder(tiny_dataset, image, label, tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name, found", [("nowhere", "is not there"), ("image_a.nii.gz", "is a file, not a folder")])
def test_a_folder_that_is_none_is_told_in_the_words_of_the_command(tiny_dataset, tmp_path, name, found):
    with pytest.raises((DatasetError, MissingFileError)) as info:
        prepare_folder(tiny_dataset / name, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")
    assert str(info.value) == f"The data set folder '{tiny_dataset / name}' {found}. Correct the path of the folder."


@pytest.mark.parametrize(
    "text, expected",
    [
        ("'/data/label_map/x.nii.gz': correct label_map.", "'/data/label_map/x.nii.gz': correct --label_map."),
        ("'--dataset_dir/a b' is not there: --dataset_dir", "'--dataset_dir/a b' is not there: the folder"),
        ("'it's label_map/x', or label_map", "'it's label_map/x', or --label_map"),
        ("There are, for example: label_map/a.nii, image_pattern.txt.", None),
        ("the cases' label_map, 'image_pattern'", "the cases' --label_map, 'image_pattern'"),
        ("label_map is {'label_map': 1}. Set --image_pattern.", "--label_map is {'label_map': 1}. Set --image."),
    ],
)
def test_names_of_a_users_own_are_left_as_they_are(text, expected):
    with pytest.raises(DatasetError) as info, in_words_of(FOLDER):
        raise DatasetError(text)
    assert str(user_error(info.value)) == (expected or text)  # which is what the program prints


def test_the_path_of_a_message_is_that_of_the_file(tiny_dataset, tmp_path, write_volume):
    folder = tiny_dataset.rename(tmp_path / "label_map")
    write_volume(folder / "label_b.nii.gz", simple_label()[1:])

    with pytest.raises(DatasetError, match=f"'{folder}/label_b.nii.gz': shape"):
        prepare_folder(folder, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")


def test_labels_on_another_grid_are_refused(tiny_dataset, tmp_path, write_volume):
    write_volume(tiny_dataset / "label_b.nii.gz", simple_label()[1:])

    with pytest.raises(DatasetError, match=r"label_b.nii.gz': shape \(39, 36, 8\)"):
        prepare_folder(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")


def test_files_that_do_not_say_where_they_lie_take_the_axes_that_are_told(tiny_dataset, tmp_path):
    for path in tiny_dataset.iterdir():
        image = nib.load(path)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, path)
    arguments = (tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")

    with pytest.raises(DatasetError, match="image_a.nii.gz"):
        prepare_folder(*arguments, label_map={"spleen": 1})
    prepare_folder(*arguments, label_map={"spleen": 1}, default_axcodes="RAS")

    assert overlay_of(tmp_path / "mine")["default_axcodes"] == "RAS"


def test_one_of_several_dicom_series_is_converted(tmp_path):
    label = simple_label()[::-1, ::-1]
    scout = np.zeros((20, 20, 3), np.int16)
    for name, array in (("portal", simple_image(label)), ("scout", scout)):
        save_dicom_series(tmp_path / "data/a", array, AXIAL, name + "{index}.dcm", SeriesDescription=name)
    save_volume(tmp_path / "data/a.nii.gz", label, AXIAL)
    arguments = (tmp_path / "data", "{case}", "{case}.nii.gz", tmp_path / "out")

    with pytest.raises(DatasetError, match="(?s)2 DICOM series.*--series.*portal.*scout"):
        prepare_folder(*arguments)
    prepare_folder(*arguments, series="portal")

    assert nib.load(tmp_path / "out/image/a.nii.gz").shape == label.shape


@pytest.mark.parametrize("series, words", [("CT", "a_min"), ("MR", "Percentiles")])
def test_intensities_are_scaled_as_those_of_the_series_that_is_chosen(tmp_path, series, words):
    label = simple_label()[::-1, ::-1]
    for modality in ("CT", "MR"):
        save_dicom_series(tmp_path / "data/a", simple_image(label), AXIAL, modality + "{index}", Modality=modality)
    save_volume(tmp_path / "data/a.nii.gz", label, AXIAL)

    prepare_folder(tmp_path / "data", "{case}", "{case}.nii.gz", tmp_path / "out", modality="auto", series=series)

    assert words in json.dumps(overlay_of(tmp_path / "out")["intensity"])


@pytest.mark.parametrize(
    "voxels, found",
    [
        (np.zeros_like(simple_label()), "hold only 0"),
        (simple_label() * np.float32(1.5), "label voxels are no integers"),
        (np.where(simple_label() == 1, np.nan, simple_label()).astype(np.float32), "label voxels are no integers"),
    ],
)
def test_labels_without_organs_are_refused(tmp_path, voxels, found):
    save_volume(tmp_path / "image_a.nii.gz", simple_image(simple_label()))
    save_volume(tmp_path / "label_a.nii.gz", voxels)

    with pytest.raises(DatasetError, match=found):
        prepare_folder(tmp_path, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")


def test_volumes_on_a_sheared_grid_are_those_of_its_voxels(tmp_path):
    leaning = np.diag([2.0, 2.0, 5.0, 1.0])
    leaning[1, 2] = -3  # whereby slices are no further apart
    for name, voxels in (("image", simple_image(simple_label())), ("label", simple_label())):
        save_volume(tmp_path / f"{name}_a.nii.gz", voxels, leaning)

    report = prepare_folder(
        tmp_path, *PATTERNS, tmp_path / "mine", label_map={"liver": 4}, background_values=[0, 1, 2, 3]
    )

    assert f"{16 * 16 * 6 * 0.02:.1f}" in report


def test_kidneys_on_the_wrong_side_are_noticed(tiny_dataset, tmp_path):
    swapped = {"right kidney": 3, "left kidney": 2}

    report = prepare_folder(
        tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map=swapped
    )

    assert report.count("right kidney is not to the right of left kidney") == 4


def save_nrrd(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # NRRD's space is LPS+, as DICOM's
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(turned[:3, 3])
    image.SetDirection(itk.matrix_from_array(turned[:3, :3] / spacing))
    itk.imwrite(image, path)


def test_dicom_series_and_nrrd_labels_train_and_evaluate(tmp_path, backbone_file):
    for seed, case in enumerate(("a", "b", "c", "d")):
        save_dicom_series(tmp_path / f"mine/{case}/CT", simple_image(simple_label(), seed)[::-1, ::-1], AXIAL)
        save_nrrd(tmp_path / f"mine/{case}/seg.nrrd", simple_label()[::-1, ::-1], AXIAL)
    organs = {organ: value for value, organ in enumerate(ORGANS, 1)}

    prepare_folder(tmp_path / "mine", "{case}/CT", "{case}/seg.nrrd", tmp_path / "out", label_map=organs)
    metrics = train_and_evaluate(tmp_path, backbone_file, tmp_path / "out/overlay.json")

    np.testing.assert_array_equal(
        canonical(tmp_path / "out/image/b.nii.gz").get_fdata(), simple_image(simple_label(), 1)
    )
    np.testing.assert_array_equal(canonical(tmp_path / "out/label/b.nii.gz").get_fdata(), simple_label())
    assert (metrics["organs"], metrics["cases"]) == (ORGANS, ["d"])


def test_each_case_may_have_files_of_another_format(tmp_path):
    label = simple_label()
    save_dicom_series(tmp_path / "mine/a/CT", simple_image(label, 0)[::-1, ::-1], AXIAL)
    save_nrrd(tmp_path / "mine/a/seg.nrrd", label[::-1, ::-1], AXIAL)
    for seed, case, suffix in ((1, "b", ".nii.gz"), (2, "c", ".nii")):
        save_volume(tmp_path / f"mine/{case}/CT{suffix}", simple_image(label, seed))
        save_volume(tmp_path / f"mine/{case}/seg.nii.gz", label.astype(np.uint8))

    prepare_folder(tmp_path / "mine", "{case}/CT.*", "{case}/seg", tmp_path / "out", label_map={"spleen": 1})

    overlay = overlay_of(tmp_path / "out")
    assert (overlay["train_cases"], overlay["image_pattern"]) == (["a", "b", "c"], "image/{case}.nii.gz")
    for seed, case in enumerate("abc"):
        np.testing.assert_array_equal(
            canonical(tmp_path / f"out/image/{case}.nii.gz").get_fdata(), simple_image(label, seed)
        )


def test_nifti_files_with_either_ending_stay_where_they_are(tiny_dataset, tmp_path):
    nib.save(nib.load(tiny_dataset / "image_b.nii.gz"), tiny_dataset / "image_b.nii")
    (tiny_dataset / "image_b.nii.gz").unlink()

    prepare_folder(tiny_dataset, "image_{case}", "label_{case}.*", tmp_path / "mine", label_map={"spleen": 1})

    overlay = overlay_of(tmp_path / "mine")
    patterns = (overlay["image_pattern"], overlay["label_pattern"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["overlay.json"]
    items = find_cases(tiny_dataset, *patterns, cases=overlay["train_cases"])
    assert [Path(item["image"]).name for item in items] == ["image_a.nii.gz", "image_b.nii", "image_c.nii.gz"]


def test_cases_to_train_on_show_every_organ(tiny_dataset, tmp_path):
    for case, values in (("a", []), ("b", [1, 2, 3]), ("c", [1, 2, 3]), ("d", [4])):
        label = simple_label()
        save_volume(tiny_dataset / f"label_{case}.nii.gz", np.where(np.isin(label, values), label, 0).astype(np.uint8))
    arguments = (tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")

    prepare_folder(*arguments, label_map={organ: value for value, organ in enumerate(ORGANS, 1)})

    assert overlay_of(tmp_path / "mine")["train_cases"] == ["b", "c", "d"]
    with pytest.raises(DatasetError, match="--train_cases names a, whose labels hold no organ"):
        prepare_folder(*arguments, label_map={"spleen": 1}, train_cases=["a", "b"])


def test_other_names_of_kidneys_are_looked_at_too(tiny_dataset, tmp_path):
    values = {"Kidney_Right": 3, "kidney left": 2, "spleen": 1, "liver": 4}  # exchanged

    report = prepare_folder(
        tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map=values
    )

    assert overlay_of(tmp_path / "mine")["label_map"] == {"right kidney": 3, "left kidney": 2, "spleen": 1, "liver": 4}
    assert "'Kidney_Right' is called right kidney, 'kidney left' is called left kidney" in report
    assert "right kidney is not to the right of left kidney" in report


def test_labels_without_an_image_are_named(tiny_dataset, tmp_path):
    (tiny_dataset / "image_d.nii.gz").unlink()

    report = prepare_folder(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")

    assert "Left out, since they are labels without an image: d." in report


def test_a_folder_too_high_is_read_one_deeper(tiny_dataset, tmp_path):
    above = tiny_dataset.parent

    prepare_folder(above, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map={"liver": 4})

    assert overlay_of(tmp_path / "mine")["dataset_dir"] == str(tiny_dataset)


def test_a_label_map_of_other_values_is_refused(tiny_dataset, tmp_path):
    with pytest.raises(
        DatasetError, match=r"No label holds a value of --label_map, \{'liver': 9\}; they hold 0, 1, 2, 3"
    ):
        prepare_folder(
            tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map={"liver": 9}
        )

    assert not (tmp_path / "mine").exists()


def test_a_value_that_cannot_be_read_is_named_and_not_expected(tiny_dataset, tmp_path, write_volume):
    label = simple_label().astype(np.float64)
    label[0, 0, 0] = 2**40 + 4
    write_volume(tiny_dataset / "label_b.nii.gz", label)

    with pytest.raises(DatasetError, match=r"label_b.nii.gz': label values 1099511627780 are not told") as info:
        prepare_folder(
            tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map={"spleen": 1}
        )
    assert str(info.value).count("10995116277") == 1


def test_values_that_are_integers_but_for_rounding_are_the_nearest(tiny_dataset, tmp_path, write_volume):
    for case in "abcd":
        write_volume(tiny_dataset / f"label_{case}.nii.gz", simple_label() * (1 - 1e-9))  # as a scale factor may

    prepare_folder(
        tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine", label_map={"spleen": 1}
    )

    assert overlay_of(tmp_path / "mine")["background_values"] == [0, 2, 3, 4]


def test_a_label_that_was_saved_over_its_image_is_refused(tiny_dataset, tmp_path, write_volume):
    write_volume(tiny_dataset / "image_c.nii.gz", simple_label().astype(np.float32))

    with pytest.raises(DatasetError, match="image_c.nii.gz': the image of case c holds .*label_c.nii.gz'"):
        prepare_folder(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_one_scan_under_two_names_is_told(tiny_dataset, tmp_path, caplog):
    nib.save(nib.load(tiny_dataset / "image_a.nii.gz"), tiny_dataset / "image_c.nii.gz")

    prepare_folder(tiny_dataset, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "mine")

    assert "In the prepared data the images of a and c hold the same voxels" in caplog.text
