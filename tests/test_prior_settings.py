"""The settings that a prior's file records, and what inference makes of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import diffusers
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, ScaleIntensityd, ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from scripts.descriptions import describe
from scripts.errors import UnusableFileError
from scripts.prior_settings import configuration_of, overlay_for, record, settings_of_prior, trained_settings

from tests.helpers.workflows import BUNDLE

WINDOW = {"keys": "image", "a_min": -100, "a_max": 200, "b_min": 0, "b_max": 1, "clip": True}
OTHERWISE = {
    "organs": ["spleen", "liver"],
    "backbone_checkpoint": "models/sam2_nano.pt",
    "image_size": 256,
    "intensity": functools.partial(ScaleIntensityd, "image"),
    "scheduler": diffusers.DDIMScheduler(),
}


@pytest.fixture
def prior_file(tmp_path):
    """``prior_file(**settings)``: a file that records them."""

    def write(**settings) -> Path:
        torch.save({"model": {}, "inference": record(settings)}, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return write


def settings(path: Path) -> dict:
    return settings_of_prior(path, BUNDLE, OTHERWISE)


@pytest.mark.parametrize(
    "key, value",
    [
        ("intensity", ScaleIntensityRanged(**WINDOW)),
        ("intensity", ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1, clip=True, relative=False)),
        ("scheduler", diffusers.DDIMScheduler(1000, 0.01, 0.01, prediction_type="sample", clip_sample=False)),
        ("scheduler", diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.01)),
        ("image_size", 96),
        ("organs", ["liver", "left kidney"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_setting_comes_back_as_it_was(prior_file, key, value):
    found = settings(prior_file(**{key: value}))

    assert describe(found[key]) == describe(value)


def test_whole_numbers_that_were_recorded_otherwise_are_whole(prior_file):
    """As trainings did whose configurations had 96.0."""
    found = settings(prior_file(image_size=96.0))["image_size"]
    assert found == 96 and type(found) is int


def test_the_organs_of_the_record_name_the_label_map(prior_file):
    assert settings(prior_file(organs=["aorta", "spleen"]))["label_map"] == {"aorta": 1, "spleen": 2}


@pytest.mark.parametrize("content", [None, {"model": {}}, {"model": {}, "inference": {}}], ids=str)
def test_what_is_not_recorded_is_as_declared(tmp_path, content):
    path = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, path)

    found = settings(path)

    assert found["image_size"] == 256 and found["label_map"] == {"spleen": 1, "liver": 2}
    assert isinstance(found["intensity"], ScaleIntensityd)


def test_a_setting_that_inference_does_not_know_is_left(prior_file):
    assert "colour" not in settings(prior_file(colour="red"))


def test_a_transform_of_another_kind_has_no_record():
    assert record({"intensity": Compose([ScaleIntensityd("image")]), "image_size": 64}) == {"image_size": 64}


@pytest.mark.parametrize(
    "value",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "Lambdad", "keys": "image"},
        {"_target_": "ScaleIntensityRanged", "colour": "red"},
        {"keys": "image"},
    ],
    ids=str,
)
def test_a_file_from_anybody_names_nothing_but_intensities_and_schedulers(tmp_path, value):
    torch.save({"model": {}, "inference": {"intensity": value}}, tmp_path / "model.pt")

    with pytest.raises(UnusableFileError, match="model.pt.*records for `intensity` what no training does"):
        settings(tmp_path / "model.pt")
    with pytest.raises(UnusableFileError):
        configuration_of(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content, said",
    [
        ({"inference": 5}, "`inference` what no training does: 5, expected a group"),
        ({"inference": {"image_size": "$1"}}, r"`image_size` .* '\$1', expected a number"),
        ({"inference": {"image_size": None}}, "`image_size` .* None, expected a number"),
        ({"inference": {"body_fill": -3}}, "`body_fill` .* -3, expected 0 to 1"),
        ({"inference": {"body_fill": float("nan")}}, "`body_fill` .* nan, expected 0 to 1"),
        ({"inference": {"eta": []}}, r"`eta` .* \[\], expected a number"),
        ({"inference": {"encode_batch_size": -3}}, "`encode_batch_size` .* -3, expected a whole number, 1 or more"),
        ({"inference": {"attention_levels": -3}}, "`attention_levels` .* -3, expected a whole number, 0 or more"),
        ({"inference": {"prior_channels": ["a"]}}, r"`prior_channels` .*, expected a list of whole numbers, 1 or more"),
        ({"inference": {"largest_component": 7}}, "`largest_component` .* 7, expected true or false"),
        ({"inference": {"backbone_name": 5}}, "`backbone_name` .* 5, expected a text"),
        ({"inference": {"backbone_checkpoint": -3}}, "`backbone_checkpoint` .* -3, expected"),
        ({"inference": {"backbone_sha256": []}}, r"`backbone_sha256` .* \[\], expected"),
        ({"inference": {"intensity": "@nowhere"}}, "`intensity` .* '@nowhere', expected a group of settings"),
        ({"inference": {"scheduler": 1e9}}, "`scheduler` .*, expected a group of settings"),
        ({"inference": {"organs": "liver"}}, "`organs` .* 'liver', expected a list"),
        ({"inference": {"organs": ["liver", "liver"]}}, "`organs` .*, expected a list of names, each once"),
        ({"inference": {"organs": ["liver", 5]}}, "`organs` .*, expected a list of names, each once"),
        ({"training": 5}, "`training` .* 5, expected a group"),
        ({"training": {"cases": [1]}}, r"`training.cases` .* \[1\], expected digests of each case"),
        ({"training": {"cases": {"a": 5}}}, "`training.cases` .*, expected digests of each case"),
        ({"training": {"modalities": 5}}, "`training.modalities` .* 5, expected a list of texts"),
        ({"training": {"settings": None}}, "`training.settings` .* None, expected a group"),
        ({"training": {"settings": {"trainer_timesteps": "x"}}}, "`training.settings.trainer_timesteps` .*, expected"),
        ({"training": {"intensity": 5}}, "`training.intensity` .* 5, expected a description"),
        ({"organ_volumes": {"liver": 5}}, "`organ_volumes` .*, expected millilitres of each organ"),
        ({"organ_volumes": {"liver": [float("nan"), 1]}}, "`organ_volumes` .*, expected millilitres of each organ"),
    ],
    ids=str,
)
def test_a_record_of_another_kind_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "model.pt"
    torch.save({"model": {}, **content}, path)

    for read in (settings, configuration_of):
        with pytest.raises(UnusableFileError, match=said) as info:
            read(path)
        assert str(path) in str(info.value) and len(str(info.value).splitlines()) == 1


def test_texts_of_a_file_are_texts(prior_file):
    organs = ["$1/0", "@seed", "_target_"]
    path = prior_file(organs=organs, intensity=ScaleIntensityRanged(**{**WINDOW, "keys": "$1/0"}))

    assert settings(path)["label_map"] == {"$1/0": 1, "@seed": 2, "_target_": 3}
    parsed = ConfigParser(configuration_of(path)).get_parsed_content("label_map")
    assert parsed == {"$1/0": 1, "@seed": 2, "_target_": 3}


def test_weights_in_the_bundle_are_recorded_by_their_place_there_and_others_by_their_name(tmp_path):
    inside, outside = BUNDLE / "models/sam2_nano.pt", tmp_path / "someone" / "sam2.pt"

    assert record({"backbone_checkpoint": str(inside)}) == {"backbone_checkpoint": "models/sam2_nano.pt"}
    assert record({"backbone_checkpoint": str(outside)}) == {"backbone_checkpoint": "sam2.pt"}


def test_weights_are_looked_for_in_the_bundle_then_beside_the_prior(prior_file, tmp_path):
    path = prior_file(backbone_checkpoint=str(BUNDLE / "models/sam2_nano.pt"))
    assert settings(path)["backbone_checkpoint"] == str(BUNDLE / "models/sam2_nano.pt")

    path = prior_file(backbone_checkpoint=str(tmp_path / "other.pt"))
    (tmp_path / "other.pt").touch()
    assert settings(path)["backbone_checkpoint"] == str(tmp_path / "other.pt")


def test_the_overlay_says_what_differs_from_the_configuration_and_nothing_else(tmp_path):
    usual = json.loads((BUNDLE / "configs/inference.json").read_text())["prior_settings"]["otherwise"]
    own = {
        "organs": ["spleen"],
        "image_size": 512,
        "dropout": usual["dropout"],
        "backbone_checkpoint": str(tmp_path / "sam2.pt"),
        "intensity": ScaleIntensityRanged(**WINDOW),
        "scheduler": diffusers.DDIMScheduler(
            **{key: value for key, value in usual["scheduler"].items() if key[0] != "_"}
        ),
    }

    assert overlay_for(own, tmp_path / "model.pt") == {
        "prior_file": str(tmp_path / "model.pt"),
        "label_map": {"spleen": 1},
        "image_size": 512,
        "backbone_checkpoint": str(tmp_path / "sam2.pt"),
        "intensity": {"_target_": "ScaleIntensityRanged", **WINDOW},
    }


def test_settings_for_an_evaluation_name_the_backbone_where_it_lies_and_leave_values_to_the_labels(tmp_path):
    folder = tmp_path / "@organs $x"  # a place is data: MONAI must read it as it is
    folder.mkdir()
    (folder / "mine.pt").touch()
    recorded = {"organs": ["spleen"], "backbone_checkpoint": "mine.pt", "slice_context": True}
    torch.save({"model": {}, "inference": recorded}, folder / "model.pt")

    settings = trained_settings(folder / "model.pt")

    read = {key: ConfigParser(settings).get_parsed_content(key) for key in settings}
    assert read == {"backbone_checkpoint": str(folder / "mine.pt"), "slice_context": True}
