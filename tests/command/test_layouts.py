"""Folders with labelled scans as people have them, read by their names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scripts.command.layouts import layout_of
from scripts.errors import DatasetError
from scripts.prepare.configs import modality_named
from scripts.prepare.folder import prepare_folder

from tests.conftest import ORGAN_VALUES, save_volume, simple_image, simple_label
from tests.helpers.archives import overlay_of


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


LAYOUTS = {
    "images beside labels": (
        [f"{kind}/{case}.nii.gz" for kind in ("images", "labels") for case in ("p1", "p2", "10")],
        ("images/{case}.nii.gz", "labels/{case}.nii.gz", ["10", "p1", "p2"]),
    ),
    "one case": (["images/a.nii.gz", "labels/a.nii.gz"], ("images/{case}.nii.gz", "labels/{case}.nii.gz", ["a"])),
    "nnU-Net": (
        [f"imagesTr/liver_{n:03d}_0000.nii.gz" for n in (1, 2)] + [f"labelsTr/liver_{n:03d}.nii.gz" for n in (1, 2)],
        ("imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz", ["liver_001", "liver_002"]),
    ),
    "BTCV's names": (
        [f"{kind}/{kind}{n:04d}.nii.gz" for kind in ("img", "label") for n in (1, 2)],
        ("img/img{case}.nii.gz", "label/label{case}.nii.gz", ["0001", "0002"]),
    ),
    "images without a label": (
        ["images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz"],
        ("images/{case}.nii.gz", "labels/{case}.nii.gz", ["a"]),
    ),
    "a label without an image, and an atlas": (
        [*(f"images/{case}.nii.gz" for case in "abcd"), *(f"labels/{case}.nii.gz" for case in [*"abcde", "atlas"])],
        ("images/{case}.nii.gz", "labels/{case}.nii.gz", ["a", "b", "c", "d"]),
    ),
    "other formats": (
        ["Images/a.nrrd", "Images/b.nrrd", "Masks/a_mask.mha", "Masks/b_mask.mha"],
        ("Images/{case}.nrrd", "Masks/{case}_mask.mha", ["a", "b"]),
    ),
    "DICOM series": (
        ["images/a/1.dcm", "images/b/1.dcm", "labels/a.nii.gz", "labels/b.nii.gz"],
        ("images/{case}", "labels/{case}.nii.gz", ["a", "b"]),
    ),
    "images of several formats": (
        ["images/a.nii.gz", "images/b.nrrd", "images/c.MHA", *(f"labels/{case}.nii.gz" for case in "abc")],
        ("images/{case}.*", "labels/{case}.nii.gz", ["a", "b", "c"]),
    ),
    "labels of several formats": (
        ["img/img1.nii", "img/img2.nii", "img/img3.nii", "label/label1.nii.gz", "label/label2.nii"],
        ("img/img{case}.nii", "label/label{case}.*", ["1", "2"]),
    ),
    "several formats in one folder": (
        ["a.nii.gz", "b.mha", "a_seg.nii.gz", "b_seg.nrrd"],
        ("{case}.*", "{case}_seg.*", ["a", "b"]),
    ),
    "a folder a case": (
        [f"{case}/{name}.nii.gz" for case in ("a", "b") for name in ("image", "label", "notes")],
        ("{case}/image.nii.gz", "{case}/label.nii.gz", ["a", "b"]),
    ),
    "in one folder": (
        [f"{kind}_{case}.nii.gz" for kind in ("image", "label") for case in "ab"],
        ("image_{case}.nii.gz", "label_{case}.nii.gz", ["a", "b"]),
    ),
    "labels by their ending": (
        ["a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz"],
        ("{case}.nii.gz", "{case}_seg.nii.gz", ["a", "b"]),
    ),
    "BIDS": (
        [
            *(f"sub-{n}/ses-1/anat/sub-{n}_ses-1_T2w.{end}" for n in ("01", "02") for end in ("nii.gz", "json")),
            *(f"derivatives/manual/sub-{n}/ses-1/anat/sub-{n}_ses-1_desc-x_dseg.nii.gz" for n in ("01", "02")),
            *("sub-03/ses-1/anat/sub-03_ses-1_T2w.nii.gz", "dataset_description.json", "participants.tsv", "README"),
        ],
        (
            "sub-{case}/ses-1/anat/sub-{case}_ses-1_T2w.nii.gz",
            "derivatives/manual/sub-{case}/ses-1/anat/sub-{case}_ses-1_desc-x_dseg.nii.gz",
            ["01", "02"],
        ),
    ),
    "LiTS": (
        [f"{kind}-{n}.nii" for kind in ("volume", "segmentation") for n in (0, 1)],
        ("volume-{case}.nii", "segmentation-{case}.nii", ["0", "1"]),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_known_by_its_names(tmp_path, name):
    files, (image, label, cases) = LAYOUTS[name]

    found = layout_of(touch(tmp_path, *files))

    assert (found.image, found.label, sorted(found.cases)) == (image, label, cases)


def test_masks_of_the_shipped_organs_are_taken_by_their_names(tmp_path):
    masks = ("liver", "kidney_left", "kidney_right", "aorta")
    files = [f"s{n}/segmentations/{mask}.nii.gz" for n in (1, 2) for mask in masks]

    found = layout_of(touch(tmp_path, "s1/ct.nii.gz", "s2/ct.nii.gz", *files))

    assert (found.image, found.label, found.modality) == (
        "{case}/ct.nii.gz",
        "{case}/segmentations/{organ}.nii.gz",
        "ct",
    )
    assert found.label_map == {"right kidney": "kidney_right", "left kidney": "kidney_left", "liver": "liver"}
    assert found.text.endswith(
        "Of the masks, kidney_right, kidney_left, liver are used, and not aorta: --label_map names others."
    )
    assert "aorta" not in layout_of(tmp_path, organs_given=True).text


TWICE = '{"labels": {"liver": 1, "liver": 4}}'


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[1]", TWICE], ids=["empty", "cut off", "too deep", "a list", "a name twice"]
)
def test_a_dataset_json_that_cannot_be_read_is_not_passed_over(tmp_path, content):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text(content)

    with pytest.raises(DatasetError, match="dataset.json' (cannot be read|holds a list)"):
        layout_of(tmp_path)


def test_nnunets_dataset_json_names_organs_and_modality(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "Spleen": 3, "pancreas": 1, "kidney_left": "2"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "T2_MRI"}}))

    found = layout_of(tmp_path)

    # in the order of the label values, so that these come back in label maps
    assert list(found.label_map.items()) == [("pancreas", 1), ("left kidney", 2), ("spleen", 3)]
    assert found.modality == "mr"


@pytest.mark.parametrize("name", ["background", "Background", "BG", "clear_label"])
def test_what_is_nowhere_may_have_the_value_0(tmp_path, name):
    assert layout_of(nnunet(tmp_path, {name: 0, "liver": 1})).label_map == {"liver": 1}


def test_labels_for_validation_are_said_to_be_left_out(tmp_path, caplog):
    """As AMOS22 has them."""
    touch(tmp_path, *(f"{kind}Tr/amos_{case}.nii.gz" for kind in ("images", "labels") for case in "12"))
    touch(tmp_path, *(f"{kind}Va/amos_{case}.nii.gz" for kind in ("images", "labels") for case in "34"))

    layout = layout_of(tmp_path, organs_given=True)

    assert (layout.image, len(layout.cases)) == ("imagesTr/{case}.nii.gz", 2)
    assert "Left out: 2 labels in 'imagesVa' with 'labelsVa'" in caplog.text
    assert "--image 'imagesVa/{case}.nii.gz' --label 'labelsVa/{case}.nii.gz'" in caplog.text


def test_a_decathlon_task_is_left_to_its_own_command(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "a", "label": "b"}]}))

    assert layout_of(tmp_path).image is None


def test_what_is_listed_for_validation_is_told(tmp_path):
    pair = {"image": "a", "label": "b"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [pair, pair]}))

    assert layout_of(tmp_path).text == "dataset.json lists 1 labelled volume for training, 2 for validation."


@pytest.mark.parametrize("name", ["0", "", "Hintergrund", "soft tissue", "no label", "bckg"])
def test_whatever_the_value_0_is_called_it_is_the_background(tmp_path, caplog, name):
    assert layout_of(nnunet(tmp_path, {name: 0, "liver": 1})).label_map == {"liver": 1}
    assert f"calls the value 0 '{name}': taken for the background" in caplog.text


def test_names_that_stand_twice_elsewhere_than_in_labels_do_not_matter(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text('{"name": "x", "name": "y", "labels": {"liver": 1}}')

    assert layout_of(tmp_path).label_map == {"liver": 1}


def nnunet(folder: Path, labels: object, **about) -> Path:
    touch(folder, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **about}))
    return folder


@pytest.mark.parametrize(
    "labels, said",
    [
        ({"background": 0, "liver": 1, "ignore": 2}, "has the label 'ignore' (2), voxels that nobody has labelled"),
        ({"background": 0, "liver": 0, "spleen": 4}, 'has the value 0 for liver, expected "background"'),
        ({"right_kidney": 2, "kidney_right": 3}, "names one organ twice: right_kidney, kidney_right"),
        ({"Liver": 1, "liver ": 2, "spleen": 3}, "names one organ twice: Liver, liver "),
    ],
    ids=["ignored voxels", "nothing", "two names of an organ", "capitals"],
)
def test_labels_that_cannot_be_meant_so_are_refused_unless_organs_are_given(tmp_path, labels, said):
    nnunet(tmp_path, labels)

    with pytest.raises(DatasetError) as caught:
        layout_of(tmp_path)

    assert said in str(caught.value) and "--label_map \"{'spleen': 1" in str(caught.value)
    assert layout_of(tmp_path, organs_given=True).label_map is None


@pytest.mark.parametrize(
    "labels, said",
    [
        ({"background": 0, "whole_tumor": [1, 2, 3], "core": 3}, "'whole_tumor' is [1, 2, 3] there"),
        ({"0": "background", "1": "spleen"}, "'0' is \"background\" there"),
        ({"background": 0, "spleen": None}, "'spleen' is null there"),
    ],
    ids=["regions", "the Decathlon's order", "nothing"],
)
def test_names_that_are_not_read_are_said(tmp_path, caplog, labels, said):
    assert layout_of(nnunet(tmp_path, labels)).label_map is None
    assert said in caplog.text and "unless --label_map names them" in caplog.text


MODALITIES = {
    "MRI T1 contrast, reconstructed": "mr",
    "T2_MRI": "mr",
    "T1w FLAIR t1gd": "mr",
    "mp-MRI": "mr",
    "CT": "ct",
    "portal-venous CT": "ct",
    "SPECT": None,
    "PET": None,
    "PET/CT": None,
    "CT MR": None,
    "fact, spectral, octet": None,
    "noNorm": None,
}


@pytest.mark.parametrize("text", MODALITIES)
def test_modalities_are_words(tmp_path, text):
    folder = nnunet(tmp_path, {"background": 0, "liver": 1}, channel_names={"0": text})
    assert layout_of(folder).modality == modality_named(text) == MODALITIES[text]


def test_masks_are_not_asked_for_names_where_organs_are_given(tmp_path):
    touch(tmp_path, "s1/ct.nii.gz", "s1/segmentations/aorta.nii.gz")

    with pytest.raises(DatasetError, match="Choose from aorta"):
        layout_of(tmp_path)
    assert layout_of(tmp_path, organs_given=True).label == "{case}/segmentations/{organ}.nii.gz"


PREPARED = json.dumps({"image_pattern": "image/{case}.nii.gz", "train_cases": ["a"], "prior_file": "run/model.pt"})


@pytest.mark.parametrize("left_out, below", [(True, "out"), (False, "out"), (False, "images/out")])
@pytest.mark.parametrize("name", ["other formats", "a folder a case", "in one folder", "images beside labels"])
def test_what_the_command_wrote_itself_is_no_source(tmp_path, name, left_out, below):
    files, (image, label, cases) = LAYOUTS[name]
    touch(tmp_path, *files)
    below = below.replace("images/", image.split("/")[0].replace("{case}", "a") + "/") if "/" in image else below
    for case in cases:
        touch(tmp_path / below, f"image/{case}.nii.gz", f"label/{case}.nii.gz", f"run/evaluation/{case}_seg.nii.gz")
    if not left_out:
        (tmp_path / below / "overlay.json").write_text(PREPARED)

    found = layout_of(tmp_path, leave_out=tmp_path / below if left_out else None)

    assert (found.image, found.label, sorted(found.cases)) == (image, label, cases)


def test_images_that_results_would_go_to_are_named(tmp_path):
    touch(tmp_path, *LAYOUTS["images beside labels"][0])
    with pytest.raises(DatasetError, match="'images' is not looked into: results go there"):
        layout_of(tmp_path, leave_out=tmp_path / "images")


@pytest.mark.parametrize(
    "files, said",
    [
        ([], "The folder is empty"),
        (["scans.zip", "a.nii.gz"], "There are, for example: a.nii.gz, scans.zip"),
        (["images/a.nii.gz", "labels/a.nii.gz", "labels/a.nrrd"], "No images with labels of their names"),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"],
            "Where images have several channels, as _0000 and _0001, one is chosen",
        ),
        (["images/a.nii.gz", "labels/b.nii.gz"], 'Say where they are: --image "images/{case}.nii.gz"'),
        (["images/a.nii.gz", "labels/b.nii.gz"], "rename labels that are called otherwise than their images"),
        (["a/image.nii.gz", "a/aorta.nii.gz"], '--label "{case}/{organ}.nii.gz" for a mask an organ'),
        (
            [f"{case}/{name}.nii.gz" for case in "ab" for name in ("ct", "mr", "label")],
            "can be read in 2 ways. Choose one: --image '{case}/ct.nii.gz'",
        ),
        (
            [
                "derivatives/sub-1/anat/sub-1_dseg.nii.gz",
                *(f"sub-1/anat/sub-1_{kind}.nii.gz" for kind in ("T1w", "T2w")),
            ],
            "--image 'sub-{case}/anat/sub-{case}_T2w.nii.gz' --label 'derivatives/sub-{case}/anat/sub-{case}_dseg.nii",
        ),
    ],
    ids=[
        "empty",
        "something else",
        "two labels a case",
        "two channels",
        "other names",
        "to rename",
        "masks",
        "two images a case",
        "BIDS",
    ],
)
def test_what_does_not_fit_in_one_way_is_asked_for(tmp_path, files, said):
    with pytest.raises(DatasetError) as caught:
        layout_of(touch(tmp_path, *files))

    assert said in str(caught.value)


def save_masks(folder: Path, case: str = "s1") -> Path:
    save_volume(folder / case / "ct.nii.gz", simple_image(simple_label()))
    for organ, value in ORGAN_VALUES.items():
        mask = simple_label() == value
        save_volume(folder / case / f"segmentations/{organ.replace(' ', '_')}.nii.gz", mask.astype("uint8"))
    return folder


def named(folder: Path, *cases: str, image: str = "image", label: str = "label") -> Path:
    """Folders of cases, each ``case:ending of the image:ending of the label``."""
    for each in cases:
        case, of_image, of_label = each.split(":")
        touch(folder, f"{case}/{image}{of_image}", f"{case}/{label}{of_label}")
    return folder


ENDINGS = {
    "two formats": (["a:.nii.gz:.nii.gz", "b:.nii:.nii"], "{case}/image.*", "{case}/label.*"),
    "images of two formats": (["a:.nii:.nii", "b:.mha:.nii"], "{case}/image.*", "{case}/label.nii"),
    "labels of two formats": (["a:.nii:.nii", "b:.nii:.nii.gz"], "{case}/image.nii", "{case}/label.*"),
    "one format": (["a:.nii:.nii", "b:.nii:.nii"], "{case}/image.nii", "{case}/label.nii"),
}


@pytest.mark.parametrize("cases, image, label", ENDINGS.values(), ids=ENDINGS)
def test_cases_of_several_formats_are_all_taken(tmp_path, caplog, cases, image, label):
    layout = layout_of(named(tmp_path, *cases))

    assert (layout.image, layout.label, sorted(layout.cases)) == (image, label, ["a", "b"])
    assert not caplog.text


def test_patterns_without_an_ending_tell_the_modality(tmp_path):
    assert layout_of(named(tmp_path, "a:.nii:.nii", "b:.mha:.nii", image="ct")).modality == "ct"


def test_labelled_cases_that_are_left_out_are_named(tmp_path, caplog):
    named(tmp_path, "a:.nii:.nii", "b:.nii:.nii", "c:.nii.gz:.nii.gz")
    touch(tmp_path, "a/image.nii.gz", "a/t1.nii", "d/scan.nii", "d/seg.nii")

    layout = layout_of(tmp_path)

    assert (layout.image, list(layout.cases)) == ("{case}/image.nii", ["a", "b"])
    assert "Left out, since '{case}/image.nii' with '{case}/label.nii' does not name them" in caplog.text
    assert ": c/image, d/scan. " in caplog.text


def test_organs_whose_mask_a_case_lacks_are_named(tmp_path, caplog):
    cases = {"s1": ("liver", "spleen", "kidney_left", "heart"), "s2": ("liver", "spleen"), "s3": ("liver", "heart")}
    for case, organs in cases.items():
        touch(tmp_path, f"{case}/ct.nii.gz", *(f"{case}/segmentations/{organ}.nii.gz" for organ in organs))

    assert layout_of(tmp_path).label_map == {"liver": "liver"}
    assert "spleen, whose mask is not there of s3" in caplog.text
    assert "left kidney, whose mask is not there of s2, s3" in caplog.text

    for case in ("s2", "s3"):
        (tmp_path / case / "segmentations" / "liver.nii.gz").unlink()
    with pytest.raises(DatasetError, match="in all cases .*liver, whose mask is not there of s2, s3"):
        layout_of(tmp_path)


MASKS = {"image": "{case}/ct.nii.gz", "label": "{case}/segmentations/{organ}.nii.gz"}


def test_masks_may_be_of_any_format(tmp_path):
    folder = touch(tmp_path, *(f"{case}/{name}.nii" for case in "ab" for name in ("ct", "segmentations/liver")))

    found = layout_of(folder)

    assert (found.image, found.label, found.label_map) == (
        "{case}/ct.nii",
        "{case}/segmentations/{organ}.nii",
        {"liver": "liver"},
    )


def test_masks_become_label_maps(tmp_path):
    import nibabel as nib

    save_masks(tmp_path / "data")
    masks = {"liver": "liver", "right kidney": "right_kidney"}

    prepare_folder(str(tmp_path / "data"), output=str(tmp_path / "out"), label_map=masks, **MASKS)

    label = nib.load(tmp_path / "out/label/s1.nii.gz").get_fdata()
    assert ((label == 1) == (simple_label() == ORGAN_VALUES["liver"])).all()
    assert ((label == 2) == (simple_label() == ORGAN_VALUES["right kidney"])).all()
    assert overlay_of(tmp_path / "out")["label_map"] == {"liver": 1, "right kidney": 2}


def write_mask(masks: Path, voxels: np.ndarray) -> None:
    save_volume(masks / "liver.nii.gz", voxels.astype("float32"))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda masks: (masks / "liver.nii.gz").unlink(), "the mask of liver is not there"),
        (lambda masks: write_mask(masks, simple_label()[:-1] > 0), "on another grid"),
        (lambda masks: write_mask(masks, 255 * (simple_label() > 0)), "overlaps the mask of spleen"),
        (lambda masks: write_mask(masks, simple_label()), "mask of liver has the values 1, 2, 3, 4"),
        (lambda masks: write_mask(masks, -1 * (simple_label() == 4)), "has the values -1 beside 0"),
        (lambda masks: write_mask(masks, simple_label() * 0.1), "the values 0.1"),
    ],
    ids=["missing", "another grid", "overlap", "several values", "below 0", "fractions"],
)
def test_masks_that_do_not_fit_together_are_refused(tmp_path, change, said):
    save_masks(tmp_path / "data")
    change(tmp_path / "data/s1/segmentations")

    with pytest.raises(DatasetError, match=said):
        prepare_folder(
            str(tmp_path / "data"),
            output=str(tmp_path / "out"),
            label_map={"spleen": "spleen", "liver": "liver"},
            **MASKS,
        )
