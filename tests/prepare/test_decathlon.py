"""Preparing a data set in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.errors import DatasetError, user_error
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


@pytest.mark.parametrize("number", [1, "3D", "broken"])
def test_an_image_of_one_channel_among_others_is_refused_before_anything_is_written(spleen, tmp_path, number):
    odd = spleen / "imagesTr/spleen_10.nii.gz"
    for path in (spleen / "imagesTr").iterdir():
        voxels = np.asarray(nib.load(path).dataobj)
        if path != odd:
            save_volume(path, np.stack([voxels, voxels + 500], -1))
        elif number == 1:
            save_volume(path, voxels[..., None])
        elif number == "broken":
            path.write_bytes(b"broken")

    what = "cannot be read" if number == "broken" else "has one channel"
    with pytest.raises(DatasetError, match=f"dataset.json': '{odd}' {what}, and '.*' has 2 .*, expected all of them"):
        prepare_decathlon(spleen, tmp_path / "out", channel=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", '{"labels": {"background": 0, "spleen": 1}, "numTraining": 3}', "[]"])
def test_another_json_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)

    with pytest.raises(
        DatasetError, match="dataset.json'(: not in the Decathlon's format| cannot be read| holds a list)"
    ):
        prepare_decathlon(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["0", "", "soft tissue"])
def test_whatever_the_value_0_is_called_it_is_the_background(spleen, tmp_path, caplog, name):
    prepare_decathlon(listing(spleen, labels={"0": name, "1": "spleen"}), tmp_path / "out")

    assert f"calls the value 0 '{name}': taken for the background" in caplog.text


def test_a_label_that_stands_twice_is_told_and_another_name_does_not_matter(spleen, tmp_path):
    path = spleen / "dataset.json"
    whole = path.read_text()
    path.write_text('{"name": "x", "name": "y", ' + whole.lstrip()[1:])
    prepare_decathlon(spleen, tmp_path / "out")

    path.write_text(whole.replace('"labels": {', '"labels": {"1": "liver", ', 1))
    with pytest.raises(DatasetError, match="cannot be read .'1' stands twice in 'labels'"):
        prepare_decathlon(spleen, tmp_path / "other")


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


@pytest.fixture
def mr(spleen) -> Path:
    """The same volumes with numbers of MR."""
    for path in (spleen / "imagesTr").iterdir():
        save_volume(path, np.abs(np.asarray(nib.load(path).dataobj)))
    return spleen


SAID = {
    "by the file": ({"0": "CT"}, None, "ct"),
    "by words of the file": ({"0": "MRI T1 contrast, reconstructed"}, None, "mr"),
    "by the user": ({"0": "SPECT"}, "mr", "mr"),
    "by the user against the file": ({"0": "CT"}, "mr", "mr"),
    "by the user alone": (None, "mr", "mr"),
    "by their Hounsfield units": (None, None, "ct"),
}


@pytest.mark.parametrize("names, modality, expected", SAID.values(), ids=SAID)
def test_the_modality_is_what_somebody_says(spleen, tmp_path, names, modality, expected):
    listing(spleen, modality=names)

    said = prepare_decathlon(spleen, tmp_path / "out", modality=modality)

    window = overlay_of(tmp_path / "out")["intensity"]["_target_"]
    assert window == {"ct": "ScaleIntensityRanged", "mr": "ScaleIntensityRangePercentilesd"}[expected]
    assert f"as in configs/{expected}.json" in said
    # these are Hounsfield units
    assert ("look like Hounsfield units" in said) == (expected == "mr")
    assert ("says that the images are CT" in said) == (modality == "mr" and names == {"0": "CT"})


@pytest.mark.parametrize(
    "names, modality, said",
    [
        ({"0": "SPECT"}, None, "is {'0': 'SPECT'}, expected CT or MR. .* --modality ct, or --modality mr"),
        ({"0": "PET", "1": "CT"}, None, "expected CT or MR"),
        ("octet", None, "is octet, expected CT or MR"),
        (None, None, "do not say whether it is MR or CT.*--modality mr, or --modality ct"),
        ({"0": "CT"}, "pet", "--modality is 'pet', expected ct or mr"),
    ],
    ids=["another", "two", "a part of a word", "nobody says it", "wrong use"],
)
def test_a_modality_that_nobody_says_is_asked_for(mr, tmp_path, names, modality, said):
    listing(mr, modality=names)
    with pytest.raises(DatasetError, match=said):
        prepare_decathlon(mr, tmp_path / "out", modality=modality)


def test_mr_that_is_called_ct_is_said(mr, tmp_path):
    assert "are no Hounsfield units" in prepare_decathlon(mr, tmp_path / "out", modality="ct")


def test_the_channel_that_is_chosen_has_its_own_modality(spleen, tmp_path):
    for path in (spleen / "imagesTr").iterdir():
        voxels = np.asarray(nib.load(path).dataobj)
        save_volume(path, np.stack([voxels, voxels], -1))
    listing(spleen, modality={"0": "PET", "1": "CT"})

    assert "configs/ct.json" in prepare_decathlon(spleen, tmp_path / "out", channel=1)
    with pytest.raises(DatasetError, match="is PET, expected CT or MR"):
        prepare_decathlon(spleen, tmp_path / "other", channel=0)


def test_values_of_no_organ_are_named(spleen, tmp_path):
    path = spleen / "labelsTr/spleen_2.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).copy()
    voxels[0, 0, 0] = 7
    save_volume(path, voxels)

    with pytest.raises(DatasetError) as info:
        prepare_decathlon(spleen, tmp_path / "out")
    said = 'Name them in the "labels" of dataset.json if they are organs to segment, in --background_values if not.'
    assert said in str(user_error(info.value))
    prepare_decathlon(spleen, tmp_path / "out", background_values=[0, 7])

    assert overlay_of(tmp_path / "out")["background_values"] == [0, 7]


def test_organs_are_in_the_order_of_their_label_values(spleen, tmp_path):
    listing(spleen, labels={"10": "aorta", "0": "background", "2": "liver", "1": "spleen"})
    prepare_decathlon(spleen, tmp_path / "out")

    assert list(overlay_of(tmp_path / "out")["label_map"].items()) == [("spleen", 1), ("liver", 2), ("aorta", 10)]


def test_two_values_of_one_name_are_refused(spleen, tmp_path):
    listing(spleen, labels={"0": "background", "1": "kidney", "2": "kidney"})
    with pytest.raises(DatasetError, match="names two values alike"):
        prepare_decathlon(spleen, tmp_path / "out")


def test_an_organ_of_the_value_0_is_refused(spleen, tmp_path):
    listing(spleen, labels={"0": "spleen", "1": "liver"})
    with pytest.raises(DatasetError, match="has the value 0 for spleen, expected"):
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


def test_what_monai_lists_for_validation_is_evaluated(spleen, tmp_path):
    """Without a label, or of a file that trains, it is none."""
    content = json.loads((spleen / "dataset.json").read_text())
    first, second, third = content["training"]
    alone, odd = {"image": "imagesTr/a.nii.gz"}, "imagesTr/a.nii.gz"
    listing(spleen, training=[first, second], validation=[third, third, first, alone, odd])

    said = prepare_decathlon(spleen, tmp_path / "out")

    overlay = overlay_of(tmp_path / "out")
    assert (overlay["train_cases"], overlay["test_cases"]) == (["spleen_10", "spleen_2"], ["spleen_12"])
    assert 'Left out of "validation": 4 entries without an image and a label of its own that are there.' in said
    prepare_decathlon(spleen, tmp_path / "named", train_cases=["spleen_12"])
    assert overlay_of(tmp_path / "named")["test_cases"] == ["spleen_10", "spleen_2"]


def test_a_file_is_the_same_however_validation_spells_it_and_one_that_is_not_there_is_told(spleen, tmp_path):
    content = json.loads((spleen / "dataset.json").read_text())
    first, second, third = content["training"]
    spelt = {key: str((spleen / name).resolve()) for key, name in first.items()}
    gone = {key: name.replace("spleen", "gone") for key, name in third.items()}
    listing(spleen, training=[first, second], validation=[spelt, gone, third])

    said = prepare_decathlon(spleen, tmp_path / "out")

    assert overlay_of(tmp_path / "out")["test_cases"] == ["spleen_12"]
    assert 'Left out of "validation": 2 entries' in said


def test_names_of_validation_change_none_of_a_case_that_trains(spleen, tmp_path):
    content = json.loads((spleen / "dataset.json").read_text())
    first, second, third = content["training"]
    alike = {key: name.replace("Tr/", "Val/").replace("spleen_12", "spleen_2") for key, name in third.items()}
    for key, name in alike.items():
        (spleen / name).parent.mkdir(exist_ok=True)
        (spleen / third[key]).rename(spleen / name)
    listing(spleen, training=[first, second], validation=[alike])

    prepare_decathlon(spleen, tmp_path / "out")

    overlay = overlay_of(tmp_path / "out")
    assert (overlay["train_cases"], overlay["test_cases"]) == (["spleen_10", "spleen_2"], ["validation_spleen_2"])


def test_an_organ_that_no_label_holds_is_told(spleen, tmp_path):
    listing(spleen, labels={"0": "background", "1": "spleen", "2": "liver"})

    assert "Warning: no label holds liver." in prepare_decathlon(spleen, tmp_path / "out")
