"""Settings that name nothing are errors, wherever they come from, and options without effect are told."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from scripts.arguments import given_options
from scripts.errors import UnknownSettingError, user_error
from scripts.overrides import declared_settings, refuse_unknown, without_effect

from tests.helpers.workflows import BUNDLE, CONFIGS, command_line, new_workflow

FOLDER = BUNDLE / "configs"
TRAIN, EVALUATE = ["train.json"], ["train.json", "evaluate.json"]
LISTS = [
    *(
        ["inference.json", *overlays]
        for overlays in ([], ["mr.json"], ["automedsam.json"], ["paper.json", "btcv.json"])
    ),
    *([*TRAIN, *overlays] for overlays in ([], ["paper.json", "btcv.json", "splits/btcv_seed0.json"], ["chaos.json"])),
    *([*TRAIN, each] for each in ("automedsam.json", "beyond_paper.json", "folder.json", "pretrain_prior.json")),
    [*TRAIN, "backbones/small.json", "multi_gpu_train.json"],
    [*EVALUATE, "sf_uda.json", "sf_uda_demo.json"],
    [*EVALUATE, "multi_gpu_train.json", "multi_gpu_evaluate.json"],
    ["pretrain_nano.json"],
    ["pretrain_anatomy.json"],
    ["pretrain_anatomy.json", "pretrain_encoder.json"],
]


def merged(*files: str, **more) -> dict:
    return {**ConfigParser.load_config_files([str(FOLDER / name) for name in files]), **more}


@pytest.fixture(scope="module")
def declared() -> set[str]:
    return declared_settings(FOLDER)


@pytest.mark.parametrize("files", LISTS, ids=" ".join)
def test_the_bundles_own_files_name_what_there_is(files, declared):
    refuse_unknown(merged(*files), declared)


@pytest.mark.parametrize(
    "given, nearest",
    [
        ({"iteration": 100}, "iterations"),
        ({"learningrate": 0.1}, "learning_rate"),
        ({"use_highres": True}, "use_high_res"),
        ({"train_case": ["a"]}, "train_cases"),
    ],
    ids=str,
)
def test_a_misspelt_setting_is_refused_with_the_nearest_names(declared, given, nearest):
    (name,) = given
    with pytest.raises(UnknownSettingError, match=rf"nothing refers to: {name}\. Nearest: .*{nearest}") as info:
        refuse_unknown(merged(*TRAIN, **given), declared)

    assert "\n" not in str(info.value)


def test_a_misspelt_part_of_a_group_is_refused(declared):
    config = merged(*TRAIN)
    config["train"]["optimiser"] = {"_target_": "torch.optim.SGD"}

    with pytest.raises(UnknownSettingError, match="refers to: train#optimiser. Nearest: train#optimizer"):
        refuse_unknown(config, declared)


def test_what_an_overlay_adds_is_fine_where_something_refers_to_it(declared):
    refuse_unknown(merged(*TRAIN, halves=2, learning_rate="$0.1 / @halves", _note="for later"), declared)


def test_an_overlay_declares_nothing_wherever_it_lies(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"iteration": 100}))

    assert "iteration" not in declared_settings(tmp_path)
    with pytest.raises(UnknownSettingError, match="iteration"):
        refuse_unknown({"iteration": 100}, declared_settings(tmp_path))


def test_what_tracking_adds_is_known(declared):
    parser = ConfigParser(merged(*TRAIN))
    settings = {**DEFAULT_EXP_MGMT_SETTINGS["mlflow"]}
    settings["configs"] = {**settings["configs"], "save_execute_config": False}
    ConfigWorkflow.patch_bundle_tracking(parser, settings)

    refuse_unknown(parser.get(), declared)


@pytest.mark.parametrize("command", CONFIGS)
@pytest.mark.parametrize("place", ["option", "overlay"])
def test_every_command_refuses_before_it_looks_at_anything_else(tmp_path, command, place):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"seeed": 3} if place == "overlay" else {}))
    workflow = new_workflow(command, overlay, **({"seeed": 3} if place == "option" else {}))

    with pytest.raises(Exception) as info:
        workflow.initialize()

    found = user_error(info.value)
    assert isinstance(found, UnknownSettingError) and "Nearest: seed" in str(found)


def test_the_command_ends_with_one_line_and_the_exit_code_of_wrong_use(tmp_path):
    arguments = ["-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json", "--iteration", "100"]

    result = command_line([*arguments, "--output_dir", str(tmp_path)], BUNDLE)

    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2
    assert last.startswith("error: ") and "iteration" in last and "iterations" in last
    assert "Traceback" not in result.stderr


# ---- options without effect


@pytest.mark.parametrize(
    "files, step, options, idle",
    [
        (TRAIN, "run", ["batch_size", "train#trainer#max_epochs", "config_file", "seed"], []),
        (TRAIN, "run", ["backbone_name", "device", "loss#segmentation", "output_dir"], []),
        (TRAIN, "run", ["test_cases"], ["test_cases"]),
        (EVALUATE, "run", ["neighbours", "batch_size", "test_cases"], ["batch_size"]),
        (EVALUATE, "run", ["train#optimizer#lr"], ["train#optimizer#lr"]),
        (["inference.json"], "run", ["quality#max_jump", "train_cases", "input"], ["train_cases"]),
    ],
    ids=str,
)
def test_an_option_on_which_no_step_depends_is_told(files, step, options, idle):
    assert without_effect(merged(*files), ("initialize", step, "finalize"), options) == idle


def test_the_number_of_phantoms_says_nothing_of_other_data():
    config = merged(*TRAIN, dataset_dir="/data/mine", test_cases=["b"])

    assert without_effect(config, ("initialize", "run"), ["phantoms", "dataset_dir"]) == ["phantoms"]


def test_options_are_those_of_the_command_line(monkeypatch):
    words = ["run", "training", "--batch-size=3", "--train#optimizer#lr", "0.1", "--seed", "1", "--", "--trace"]
    monkeypatch.setattr(sys, "argv", ["monai.bundle", *words])
    assert given_options() == ["batch_size", "train#optimizer#lr", "seed"]

    monkeypatch.setattr(sys, "argv", ["pytest", "--maxfail", "3"])
    assert given_options() == []


def test_a_run_says_which_of_its_options_have_no_effect(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "training", "--test_cases", "['a']", "--seed", "1"])
    workflow = new_workflow("training", test_cases=["a"], initialize=[{"_target_": "scripts.overrides.check"}])

    with caplog.at_level(logging.WARNING, "scripts.overrides"):
        workflow.initialize()

    (message,) = (record.getMessage() for record in caplog.records if record.name == "scripts.overrides")
    assert message == "Without effect, since nothing in `run training` depends on it: --test_cases."
