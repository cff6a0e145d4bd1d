"""Preparing a data set in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.errors import DatasetError
from scripts.prepare.decathlon import prepare_decathlon

from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers.archives import overlay_of


@pytest.fixture
def spleen(tmp_path) -> Path:
    """Three volumes in the Decathlon's layout."""
    folder = tmp_path / "Task09_Spleen"
    for seed, case in enumerate(("2", "10", "12")):
        label = simple_label()
        save_volume(folder / f"imagesTr/spleen_{case}.nii.gz", simple_image(label, seed))
        save_volume(folder / f"labelsTr/spleen_{case}.nii.gz", (label == 1).astype(np.uint8))
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [
            {"image": f"./imagesTr/spleen_{case}.nii.gz", "label": f"./labelsTr/spleen_{case}.nii.gz"}
            for case in ("10", "2", "12")
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_a_decathlon_task_is_named_by_patterns(spleen, tmp_path):
    prepare_decathlon(spleen / "dataset.json", tmp_path / "out", train_cases=["spleen_2"])

    overlay = overlay_of(tmp_path / "out")
    assert overlay["dataset_dir"] == str(spleen)
    assert (overlay["image_pattern"], overlay["label_pattern"]) == ("imagesTr/{case}.nii.gz", "labelsTr/{case}.nii.gz")
    assert (overlay["train_cases"], overlay["test_cases"]) == (["spleen_2"], ["spleen_10", "spleen_12"])
    assert overlay["label_map"] == {"spleen": 1}


def test_files_that_no_pattern_names_are_copied(spleen, tmp_path):
    path = spleen / "dataset.json"
    for case in ("2", "10", "12"):
        image = spleen / f"imagesTr/spleen_{case}.nii.gz"
        image.rename(image.with_name(f"spleen_{case}_0000.nii.gz"))
        path.write_text(path.read_text().replace(f"imagesTr/{image.name}", f"imagesTr/spleen_{case}_0000.nii.gz"))

    prepare_decathlon(path, tmp_path / "out")

    for case in ("2", "10", "12"):
        copied = tmp_path / f"out/image/spleen_{case}.nii.gz"
        assert copied.read_bytes() == (spleen / f"imagesTr/spleen_{case}_0000.nii.gz").read_bytes()


def test_of_several_channels_one_is_chosen(spleen, tmp_path):
    for path in (spleen / "imagesTr").iterdir():
        voxels = np.asarray(nib.load(path).dataobj)
        save_volume(path, np.stack([voxels, voxels + 500], -1))

    with pytest.raises(DatasetError, match="has 2 channels .*--channel 0 ... 1"):
        prepare_decathlon(spleen, tmp_path / "out")
    prepare_decathlon(spleen, tmp_path / "out", channel=1)

    chosen = nib.load(tmp_path / "out/image/spleen_10.nii.gz").get_fdata()
    np.testing.assert_array_equal(chosen, nib.load(spleen / "imagesTr/spleen_10.nii.gz").get_fdata()[..., 1])


@pytest.mark.parametrize("content", ["{", '{"labels": {"background": 0, "spleen": 1}, "numTraining": 3}', "[]"])
def test_another_json_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)

    with pytest.raises(DatasetError, match="not in the Decathlon's format"):
        prepare_decathlon(tmp_path, tmp_path / "out")


def listing(folder: Path, **changes) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_a_list_that_leads_out_of_its_folder_is_read_with_a_word(spleen, tmp_path):
    outside = tmp_path / "elsewhere"
    (spleen / "imagesTr").rename(outside)
    entries = json.loads((spleen / "dataset.json").read_text())["training"]
    moved = [{**entry, "image": f"../elsewhere/{Path(entry['image']).name}"} for entry in entries]

    said = prepare_decathlon(listing(spleen, training=moved), tmp_path / "out")

    assert f"Read from outside the folder of dataset.json: '{outside}/spleen_10.nii.gz'" in said
    listing(spleen, training=entries)
    outside.rename(spleen / "imagesTr")
    assert "outside" not in prepare_decathlon(spleen, tmp_path / "other")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../../../../etc/passwd"])
def test_a_list_that_names_what_is_no_image_is_refused(spleen, tmp_path, name):
    listing(spleen, training=[{"image": name, "label": "./labelsTr/spleen_2.nii.gz"}])
    with pytest.raises(DatasetError, match="etc/passwd': no image in a supported format"):
        prepare_decathlon(spleen, tmp_path / "out")


@pytest.mark.parametrize("again", ["./imagesTr/spleen_10.nii.gz", "imagesTr/../imagesTr/spleen_10.nii.gz"])
def test_a_volume_that_is_listed_twice_is_refused(spleen, tmp_path, again):
    entries = json.loads((spleen / "dataset.json").read_text())["training"]
    listing(spleen, training=[*entries, {**entries[0], "image": again}])
    with pytest.raises(DatasetError, match=r"lists '.*imagesTr/spleen_10.nii.gz', '.*' more than once"):
        prepare_decathlon(spleen, tmp_path / "out")


def test_a_label_without_a_name_is_refused(spleen, tmp_path):
    listing(spleen, labels={"0": "background", "1": None})
    with pytest.raises(DatasetError, match="not in the Decathlon's format"):
        prepare_decathlon(spleen, tmp_path / "out")


def test_no_organ_begins_a_line_of_the_report(spleen, tmp_path):
    said = prepare_decathlon(listing(spleen, labels={"0": "background", "1": "a\nb"}), tmp_path / "out")
    assert "a\\nb (ml)" in said


def test_images_of_nnunets_first_version_are_listed_without_their_channel(spleen, tmp_path):
    for case in ("2", "10", "12"):
        image = spleen / f"imagesTr/spleen_{case}.nii.gz"
        image.rename(image.with_name(f"spleen_{case}_0000.nii.gz"))

    prepare_decathlon(spleen / "dataset.json", tmp_path / "out")

    images = sorted(path.name for path in (tmp_path / "out/image").iterdir())
    assert images == ["spleen_10.nii.gz", "spleen_12.nii.gz", "spleen_2.nii.gz"]
