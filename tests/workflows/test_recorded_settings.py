"""What a training, an evaluation and an inference record of their settings: everything that changes their results.

Each setting is changed in turn. One that is new stands in neither list, and fails here until somebody has decided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from scripts.descriptions import describe
from scripts.entries import entry_at, has_entry

from tests.conftest import save_dataset
from tests.helpers.workflows import BUNDLE, SETTINGS, nano_checkpoint, new_workflow, write_overlay

ORGANS = SETTINGS["label_map"]
SWAPPED = {**ORGANS, "spleen": ORGANS["liver"], "liver": ORGANS["spleen"]}
WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 275, "b_min": 0, "b_max": 1}
SCHEDULER = {
    **{"_target_": "diffusers.DDIMScheduler", "num_train_timesteps": 500, "beta_schedule": "linear"},
    **{"beta_start": 0.01, "beta_end": 0.01, "prediction_type": "sample", "clip_sample": False},
    "timestep_spacing": "trailing",
}

# of the prior and the images: in trainings and in all that use them
COMMON = {
    "series": "portal",
    "default_axcodes": "LAS",
    "trusted_form": "sform",
    "intensity": WINDOW,
    "image_size": 96,
    "body_fill": 0.5,
    "body_air": True,
    "decoder_token": "single",
    "slice_context": True,
    "use_high_res": True,
    "joint_prior": True,
    "prior_channels": [16, 32],
    "attention_levels": 2,
    "dropout": 0.5,
    "scheduler": SCHEDULER,
    "seed": 1,
}
TRAINING = {
    **COMMON,
    "train_cases": ["b", "a"],
    "label_map": SWAPPED,
    "background_values": [0, 9],
    "organs": ["liver", "right kidney", "left kidney", "spleen"],
    "iterations_per_epoch": 3,
    "batch_size": 2,
    "learning_rate": 0.01,
    "learning_rate_factor": "$lambda progress: 1 - progress",
    "lambda_prior": 0.5,
    "lambda_seg": 0.5,
    "lambda_names": 0.5,
    "named_memories": True,
    "names_encoder": True,
    "object_weight": 0.5,
    "absent_share": 0.5,
    "variants": 2,
    "organ_contrast": {"liver": [0.5, 1.0]},
    "random_contrasts": 0.5,
    "names_learned": 0.5,
    "ema_decay": 0.5,
    "max_grad_norm": None,
    "training_timesteps": [999],
    "trainer_class": "scripts.automedsam.network.AutoMedSAMTrainer",
    "train#augmentation#transforms#1#prob": 0.5,
    "train#optimizer#weight_decay": 0.1,
    "loss#segmentation": "focal_dice",
}
INFERENCE = {
    **COMMON,
    "organs": ["liver", "right kidney", "left kidney", "spleen"],
    "named_memories": True,
    "names_encoder": True,
    "inference_steps": 3,
    "eta": 1.0,
    "memory_samples": 2,
    "neighbours": 2,
    "no_3d": True,
    "names_smoothing": 0.2,
    "ended_after": 2,
    "skip_absent": False,
    "window_margin": 1,
    "views": [[5, 1]],
    "largest_component": True,
    "solid_organs": ["liver"],
    "organ_codes": {"spleen": "10200004"},
    "amp": True,
    "inferer_class": "scripts.automedsam.network.SliceInferer",
    "quality#max_jump": 0.3,
}
EVALUATION = {key: value for key, value in INFERENCE.items() if key not in ("organ_codes", "quality#max_jump")} | {
    **{"label_map": SWAPPED, "surface_tolerance": 1.0},
    **{"prior_file": "/somewhere/else.pt", "background_values": [0, 9]},
}
# where things are and what they are called, how fast it goes, and what is written beside the results; the content of
# files counts by its own digest
PLACES = {
    *(
        "bundle_root",
        "dataset_dir",
        "output_dir",
        "run_dir",
        "prior_file",
        "start_from",
        "cache_dir",
        "image_pattern",
        "label_pattern",
    ),
    *("experiment_name", "run_name", "device", "num_workers", "encode_batch_size", "resume"),
    *("report", "report_pixels", "report_slices", "report_megabytes"),
    *("backbone_checkpoint", "backbone_sha256", "backbone_name"),
}
# a training takes up any number of iterations, and its prior is not changed by how it is used
NO_TRAINING = PLACES | {"iterations", "snapshots", "test_cases", "inference_steps", "eta", "memory_samples", "amp"}
NO_TRAINING |= {"largest_component", "solid_organs", "phantoms"}  # files count by their content
# what each case records for itself, or its own files show
NO_INFERENCE = PLACES | {
    *(
        "input",
        "output",
        "volume_device",
        "share",
        "overwrite",
        "dicom_seg",
        "probabilities",
        "uncertainty",
        "uncertainty_calibration",
        "orientation_file",
    ),
    *("label_map", "corrections", "correction_reach"),
}
NO_EVALUATION = (
    PLACES
    | NO_TRAINING
    | set(TRAINING)
    | {*("evaluation_dir", "report_figures", "volume_device", "allow_training_cases")}
)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    backbone = nano_checkpoint(folder / "backbone.pt")
    settings = {"prior_channels": [16, 16], "organ_contrast": {}, "iterations": 4}
    overlay = write_overlay(folder / "run", save_dataset(folder / "data"), backbone, **settings)
    torch.save({}, folder / "run" / "model.pt")
    return overlay


def recorded(command: str, overlay: Path, **changes) -> dict:
    parser = new_workflow(command, overlay, **changes).parser
    place = {"training": "train#identity", "inferring": "settings", "evaluating": "validate#report#settings"}[command]
    return json.loads(json.dumps(describe(parser.get_parsed_content(place))))


@pytest.fixture(scope="module")
def usual(overlay) -> dict[str, dict]:
    return {command: recorded(command, overlay) for command in ("training", "inferring", "evaluating")}


CHANGES = [
    *(("training", key, value) for key, value in TRAINING.items()),
    *(("inferring", key, value) for key, value in INFERENCE.items()),
    *(("evaluating", key, value) for key, value in EVALUATION.items()),
]


@pytest.mark.parametrize("command, setting, value", CHANGES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_setting_that_changes_results_changes_the_record(usual, overlay, command, setting, value):
    changes = {setting: value}
    if setting == "organ_contrast":
        changes["train#augmentation#transforms#0#factor_ranges"] = value
    without = usual[command]
    if setting == "names_encoder":  # there is one where there is a head
        changes["named_memories"], without = True, recorded(command, overlay, named_memories=True)
    if setting == "window_margin":  # there are windows where slices have no neighbours
        changes["neighbours"], without = 0, recorded(command, overlay, neighbours=0)
    assert recorded(command, overlay, **changes) != without


def plain_settings(*names: str) -> set[str]:
    """Settings of configurations that are values, and not objects or parts of the workflow."""
    content: dict = {}
    for name in names:
        content |= json.loads((BUNDLE / "configs" / name).read_text())
    parts = {"imports", "initialize", "run", "finalize", "train", "validate", "settings", "network", "handlers"}
    parts |= {"training", "evaluating", "inferring"}
    return {
        key
        for key, value in content.items()
        if key not in parts and not (isinstance(value, dict) and "_target_" in value)
    } | ({"intensity", "scheduler"} & content.keys())


@pytest.mark.parametrize(
    "names, changing, others",
    [
        (["train.json"], TRAINING, NO_TRAINING),
        (["inference.json"], INFERENCE, NO_INFERENCE),
        (["train.json", "evaluate.json"], EVALUATION, NO_EVALUATION),
    ],
    ids=["training", "inferring", "evaluating"],
)
def test_of_every_setting_it_is_known_whether_it_changes_results(names, changing, others):
    assert plain_settings(*names) - set(changing) - others == set()


def test_where_things_are_changes_no_record(usual, overlay, tmp_path):
    moved = tmp_path / "moved"
    save_dataset(moved)

    assert recorded("training", overlay, dataset_dir=str(moved), output_dir=str(tmp_path)) == usual["training"]
    assert recorded("inferring", overlay, output=str(tmp_path), encode_batch_size=2) == usual["inferring"]


@pytest.mark.parametrize("kind", ["image", "label"])
def test_another_content_of_a_training_file_is_another_training(usual, overlay, tmp_path, kind):
    changed = save_dataset(tmp_path / "data")
    (changed / f"{kind}_a.nii.gz").write_bytes((changed / f"{kind}_c.nii.gz").read_bytes() + b"\0" * 512)

    files = recorded("training", overlay, dataset_dir=str(changed))["files"]

    assert {case for case in files if files[case] != usual["training"]["files"][case]} == {"a"}


def test_other_weights_of_the_backbone_are_another_training(usual, overlay, tmp_path):
    other = nano_checkpoint(tmp_path / "other.pt", seed=1)

    for command in usual:
        assert recorded(command, overlay, backbone_checkpoint=str(other)) != usual[command]


def test_a_schedule_of_rates_that_depends_on_the_end_is_told_by_it(overlay):
    falling = {"learning_rate_factor": "$lambda progress: 1 - progress"}
    shorter, longer = (recorded("training", overlay, iterations=each, **falling) for each in (4, 400))

    assert shorter != longer
    assert recorded("training", overlay, iterations=400) == recorded("training", overlay)


# ---- pretrainings, whose data take minutes to paint: by what their configurations refer to

# of these no weight depends on any: places, how much is done at once, and what the file says for inference
OF_NO_PRETRAINING = {
    *("output_dir", "run_dir", "patients_dir", "checkpoint_file", "prior_file", "bundle_root", "resume", "snapshots"),
    *("device", "num_workers", "encode_batch_size", "handlers", "train", "amp"),
    *("body_fill", "body_air", "intensity", "largest_component", "solid_organs", "random_contrasts"),
}


# how the engine hands on what each iteration gives
FIXED_IN_PRETRAINING = {"trainer#decollate"}


def referred_to(config: dict, start: str) -> set[str]:
    """Names that an entry refers to, and whatever these refer to."""
    seen, left = set(), [start]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            parts = name.split("#")
            text = json.dumps(entry_at(config, parts) if has_entry(config, parts) else None)
            left += {each.replace("::", "#") for each in re.findall(r"@([A-Za-z_]\w*(?:(?:::|#)\w+)*)", text)}
    return seen


def parts_of(name: str) -> set[str]:
    """``a#b#c``, and what it is a part of: ``a#b`` and ``a``."""
    words = name.split("#")
    return {"#".join(words[: count + 1]) for count in range(len(words))}


def numbers_within(value: object, name: str) -> Iterator[str]:
    """Ids of the numbers and switches in a part of a configuration, at any depth."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_within(each, f"{name}#{key}")
    elif isinstance(value, bool | int | float):
        yield name


@pytest.mark.parametrize(
    "files, identity",
    [
        (["train", "pretrain_prior"], "train#identity"),
        (["pretrain_anatomy"], "identity"),
        (["pretrain_anatomy", "pretrain_encoder"], "identity"),
        (["pretrain_anatomy", "pretrain_memories"], "identity"),
        (["pretrain_nano"], "identity"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_every_setting_that_a_pretraining_depends_on_is_in_its_identity(files, identity):
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{each}.json") for each in files])
    config = parser.get()
    steps = [key for key in ("initialize", "run", "training", "pretraining") if key in config]
    reached = {name.split("#")[0] for step in steps for name in referred_to(config, step)} - {*steps}
    settings = {key for key in reached & config.keys() if "_target_" not in str(config[key])}

    within = {name for key in reached - settings for name in numbers_within(config.get(key), key)}
    recorded = referred_to(config, identity)

    assert len(settings) > 10
    assert settings - recorded - OF_NO_PRETRAINING == set()
    known = recorded | OF_NO_PRETRAINING
    assert {name for name in within if known.isdisjoint(parts_of(name))} - FIXED_IN_PRETRAINING == set()
