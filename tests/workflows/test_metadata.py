"""What the bundle says about itself: metadata against the network, and the configs against one another."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from monai.bundle import ConfigParser
from scripts.data.grids import AXCODES
from scripts.prior_settings import configuration_of, trained_settings

from tests.helpers.workflows import BUNDLE, METADATA_SCHEMA

CONFIGS = BUNDLE / "configs"

REQUIRED_BY_SCHEMA = [
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
]
REQUIRED_BY_MODEL_ZOO = ["name", "changelog", "references"]

# what training and inference both declare, and cannot declare in one place: MONAI finds a file that a value refers to
# ("%configs/train.json::prior") from the working directory alone, where --bundle_root and a copy of one file end
DIFFERING = {
    "dataset_dir": "inference reads its input",
    "prior_file": "training writes its own, inference reads the one that ships",
    "run_name": "names in MLflow",
    "device": "processes that share cases have one each",
    "reader": "inference refuses what is not finite case by case",
    "initialize": "what each begins with",
    "run": "what each does",
}
OF_PRIOR = "$@prior_settings["  # inference takes what a prior's file records


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


@pytest.fixture(scope="module")
def metadata() -> dict:
    return read("metadata.json")


@pytest.fixture(scope="module")
def image_format(metadata) -> dict:
    return metadata["network_data_format"]["inputs"]["image"]


@pytest.fixture(scope="module")
def prediction_format(metadata) -> dict:
    return metadata["network_data_format"]["outputs"]["pred"]


# ---- metadata


@pytest.mark.parametrize("key", REQUIRED_BY_SCHEMA + REQUIRED_BY_MODEL_ZOO)
def test_required_keys_are_there(metadata, key):
    assert key in metadata


def test_the_changelog_holds_the_present_version(metadata):
    assert metadata["version"] in metadata["changelog"]


def test_metadata_follows_the_published_schema(metadata):
    if not METADATA_SCHEMA.is_file():
        pytest.skip(f"no copy of {metadata['schema']} at {METADATA_SCHEMA}: set DIFFUSAM_METADATA_SCHEMA to one")

    jsonschema.validate(metadata, json.loads(METADATA_SCHEMA.read_text()))


def test_channels_of_the_network_are_defined_one_by_one(image_format, prediction_format):
    for described in (image_format, prediction_format):
        assert list(described["channel_def"]) == [str(channel) for channel in range(described["num_channels"])]


def test_dice_are_those_of_the_model_that_ships_on_the_page_of_results(metadata):
    lines = (BUNDLE.parent / "docs/results/anatomy.md").read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith("| CHAOS, no label: **the model that ships**"))
    names = [*read("inference.json")["prior_settings"]["otherwise"]["organs"], "mean"]
    dice = dict(zip(names, re.findall(r"0\.\d{3}", line), strict=True))

    told = {key: value for key, value in metadata["eval_metrics"].items() if key != "data"}
    assert told == {f"{name.replace(' ', '_')}_dice": float(value) for name, value in dice.items()}


def test_every_file_of_weights_that_ships_has_its_licence_told():
    text = (BUNDLE / "docs/data_license.txt").read_text("utf-8")
    shipped = [line.split()[-1] for line in (BUNDLE / "models/sha256sums.txt").read_text().splitlines()]

    weights = [name for name in shipped if name.endswith(".pt")]
    assert len(weights) == 3 and all(f"models/{Path(name).name}" in text for name in weights)


def test_required_packages_are_installed(metadata):
    for package in metadata["required_packages_version"]:
        importlib.metadata.version(package)  # raises PackageNotFoundError


def test_channels_after_the_background_are_the_organs(prediction_format):
    background, *organs = prediction_format["channel_def"].values()

    assert background == "background"
    assert organs == list(read("train.json")["label_map"])
    assert organs == read("inference.json")["prior_settings"]["otherwise"]["organs"]


def test_organs_have_the_order_of_the_channels_in_every_overlay(prediction_format):
    organs = list(prediction_format["channel_def"].values())[1:]
    overlays = [path for path in CONFIGS.glob("*.json") if isinstance(read(path.name).get("label_map"), dict)]

    assert all(list(read(path.name)["label_map"]) == organs for path in overlays)


def test_the_declared_image_size_is_the_configs(image_format, prediction_format):
    size = read("inference.json")["prior_settings"]["otherwise"]["image_size"]

    assert image_format["spatial_shape"] == prediction_format["spatial_shape"] == [size, size]


def inference_parser(*overlays: str) -> ConfigParser:
    """The configuration of inference, without a backbone's checkpoint."""
    names = ["inference.json", *overlays]
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / name) for name in names]))
    parser["bundle_root"] = str(CONFIGS.parent)
    parser["backbone_checkpoint"] = None
    return parser


@pytest.mark.parametrize("overlays", [[], ["automedsam.json"]], ids=["DiffuSAM", "AutoMedSAM"])
def test_the_network_has_the_declared_shapes_without_its_checkpoint(image_format, prediction_format, overlays):
    network = inference_parser(*overlays).get_parsed_content("network_def").eval()

    with torch.no_grad():
        prediction = network(torch.rand(1, image_format["num_channels"], *image_format["spatial_shape"]))

    assert prediction.shape == (1, prediction_format["num_channels"], *prediction_format["spatial_shape"])
    assert str(prediction.dtype) == f"torch.{prediction_format['dtype']}"


def test_the_prior_has_the_declared_channels(metadata):
    """The second network: what ``memory_data_format`` says of the memories of the default backbone."""
    parser = inference_parser()
    described = metadata["memory_data_format"]
    memory, organ = described["inputs"]["memory"], described["inputs"]["organ"]

    backbone, prior = parser.get_parsed_content("backbone"), parser.get_parsed_content("prior")

    assert memory["num_channels"] == described["outputs"]["memory"]["num_channels"] == prior.memory_channels
    assert memory["spatial_shape"] == [backbone.embedding_size, backbone.embedding_size]
    assert organ["value_range"] == [0, prior.organs - 1]


def test_automedsams_prompts_have_the_declared_shapes(metadata):
    """What ``automedsam_data_format`` says of the class prompt encoder beside the default backbone."""
    parser = inference_parser("automedsam.json")
    described = metadata["automedsam_data_format"]
    embedding, organ = described["inputs"]["embedding"], described["inputs"]["organ"]
    backbone, encoder = parser.get_parsed_content("backbone"), parser.get_parsed_content("prior").eval()

    with torch.no_grad():
        features = torch.rand(1, embedding["num_channels"], *embedding["spatial_shape"])
        prompts = encoder(features, torch.tensor(organ["value_range"][1:]))

    assert embedding["num_channels"] == backbone.embedding_channels
    assert embedding["spatial_shape"] == [backbone.embedding_size, backbone.embedding_size]
    assert organ["value_range"] == [0, encoder.organs - 1]
    for output, prompt in zip(described["outputs"].values(), prompts, strict=True):
        assert prompt.shape == (1, output["num_channels"], *output["spatial_shape"])
        assert str(prompt.dtype) == f"torch.{output['dtype']}"


# ---- configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_configs_are_json_indented_by_four_spaces(path):
    text = path.read_text()

    assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"


def test_what_training_and_inference_both_declare_is_the_same():
    training, inference = read("train.json"), read("inference.json")
    differing = {
        key
        for key in training.keys() & inference.keys()
        if training[key] != inference[key] and not str(inference[key]).startswith(OF_PRIOR)
    }

    assert differing == {*DIFFERING}


def test_inference_takes_from_a_prior_exactly_what_training_records():
    inference = read("inference.json")
    taken = {key for key, value in inference.items() if str(value).startswith(OF_PRIOR)} - {"label_map"}

    assert (
        {*read("train.json")["train"]["inference"]} == {*inference["prior_settings"]["otherwise"]} == taken | {"organs"}
    )
    assert all(inference[key] == f"{OF_PRIOR}'{key}']" for key in taken)


# the prior that ships shows each slice between its neighbours, and was trained at one diffusion time
SHIPPED = {"slice_context", "inference_steps", "largest_component", "encode_batch_size"}


def test_the_prior_that_ships_is_of_the_defaults_but_for_what_it_was_pretrained_with():
    training, shipped = read("train.json"), read("inference.json")["prior_settings"]["otherwise"]
    pretrained = read("pretrain_prior.json")
    plain = {**training, "organs": list(training["label_map"])}
    built = {key: {"_mode_": "callable", **plain[key]} for key in ("intensity", "scheduler")}

    # priors that do not say how their slices were cropped were trained on whole ones
    assert shipped.pop("body_fill") == 0 and training["body_fill"] == 0.8
    recorded = torch.load(BUNDLE / "models" / "model.pt", map_location="cpu", weights_only=True)["inference"]
    assert recorded["body_fill"] == training["body_fill"]
    # it has seen whole bodies alone, which a file that was written before does not say itself
    assert pretrained["body_air"] and not shipped["body_air"] and "body_air" not in recorded
    assert configuration_of(BUNDLE / "models" / "model.pt")["body_air"]
    assert trained_settings(BUNDLE / "models" / "model.pt")["body_air"]
    assert {key for key, value in shipped.items() if (plain | built)[key] != value} == SHIPPED
    assert all(shipped[key] == pretrained[key] for key in SHIPPED - {"encode_batch_size"})


def test_the_papers_recipe_leaves_nothing_of_the_network_or_its_training_to_the_defaults():
    told = {*read("paper.json")}
    recipe = {*read("train.json")["train"]["inference"]} - {"organs"} | {"label_map", "train_cases", "test_cases"}
    recipe |= {"iterations", "batch_size", "learning_rate", "learning_rate_factor", "lambda_prior", "lambda_seg"}
    recipe |= {"variants", "absent_share", "object_weight", "ema_decay", "training_timesteps", "start_from"}

    assert recipe - told == set()


# settings that name a file to be read; in an inference these two do as well, which others write
READ = {"start_from", "start_file", "backbone_checkpoint"}
READ_BY_INFERENCE = {"prior_file", "orientation_file"}


def settings_in_models(content: object, key: str = "") -> set[str]:
    """Names of the settings, at any depth, whose value lies in the folder of what ships."""
    if isinstance(content, dict):
        return set().union(*(settings_in_models(value, name) for name, value in content.items()))
    if isinstance(content, list):
        return set().union(*(settings_in_models(value, key) for value in content))
    return {key} if "models/" in str(content) else set()


def test_no_training_or_pretraining_writes_over_what_ships():
    assert read("inference.json")["prior_file"] == read("train.json")["start_from"]
    assert read("train.json")["prior_file"] == "$@output_dir + '/model.pt'"
    found = {path: settings_in_models(json.loads(path.read_text())) for path in CONFIGS.rglob("*.json")}
    written = {
        path.name: keys - READ - (READ_BY_INFERENCE if path.name == "inference.json" else set())
        for path, keys in found.items()
        if path.name != "metadata.json"
    }
    assert any(found.values()) and not any(written.values()), written


@pytest.mark.parametrize("key", ["neighbours", "no_3d"])
def test_evaluation_and_inference_agree(key):
    assert read("inference.json")[key] == read("evaluate.json")[key]


def test_evaluation_and_inference_prepare_images_alike():
    evaluation = read("evaluate.json")["validate"]["preprocessing"]["transforms"]
    inference = read("inference.json")["preprocessing"]["transforms"]

    # they differ in the name of the case and in the label, which come before anything is done to the image
    assert evaluation[1]["_target_"] == "scripts.data.transforms.NameByCased"
    assert evaluation[2] == "@map_label"
    # inference keeps volumes as they are stored: with the same result, which tests/data/test_stored.py shows
    assert evaluation[0]["_target_"] == "LoadImaged" and evaluation[3]["_target_"] == "Orientationd"
    assert inference[0]["_target_"] == "scripts.data.stored.LoadOrientedd"
    assert inference[0]["axcodes"] == evaluation[3]["axcodes"]
    assert evaluation[4:-2] == inference[1:-2]
    assert evaluation[-2] == {"_target_": "scripts.data.transforms.InSlabsd", "transform": "@intensity"}
    assert inference[-2] == {"_target_": "scripts.data.stored.ScaleLaterd", "transform": "@intensity"}
    assert evaluation[-1] == inference[-1] and inference[-1]["_target_"] == "scripts.data.body.CropToBodyd"


def axes_in(content: object) -> list[str]:
    """The axes that transforms at any depth turn images to."""
    if isinstance(content, dict):
        own = [content["axcodes"]] if "axcodes" in content else []
        return own + [each for value in content.values() for each in axes_in(value)]
    return [each for value in content for each in axes_in(value)] if isinstance(content, list) else []


def test_images_lie_as_corrections_are_placed_in_every_configuration():
    """The configurations name the axes, for MONAI's own transform; points of corrections go by those in the code."""
    found = {path.name: axes for path in CONFIGS.glob("*.json") if (axes := axes_in(json.loads(path.read_text())))}

    assert found.keys() == {"train.json", "evaluate.json", "inference.json"}
    assert {axes for each in found.values() for axes in each} == {AXCODES}


def test_training_and_evaluation_prepare_images_alike():
    def image_steps(transforms: list) -> list[str]:
        # what is applied a few slices at a time is what counts
        steps = [step if isinstance(step, str) else step.get("transform", step) for step in transforms]
        names = [step if isinstance(step, str) else step["_target_"] for step in steps]
        # at inference slices are resized by the inferer, a few at a time; the other steps change no image
        others = ("Resized", "scripts.data.transforms.ResizeLabeld", "scripts.inference.trained_with.CheckModalityd")
        others += ("scripts.data.transforms.NameByCased",)
        return [name for name in names if name not in ("@map_label", *others)]

    training = read("train.json")["train"]["preprocessing"]["transforms"]
    evaluation = read("evaluate.json")["validate"]["preprocessing"]["transforms"]

    assert image_steps(training) == image_steps(evaluation)
