"""Settings that name nothing are errors, wherever they come from, and options without effect are told."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from scripts.arguments import AS_TYPED, RUNS, given_options, refuse_no_run, refuse_nothing, refuse_twice
from scripts.errors import MissingFileError, UnknownSettingError, configuration_error, user_error
from scripts.overrides import (
    _reached,
    _referred,
    declared_kinds,
    declared_settings,
    declared_whole_numbers,
    refuse_dangling,
    refuse_no_device,
    refuse_no_start,
    refuse_other_kinds,
    refuse_other_values,
    refuse_twins,
    refuse_unknown,
    without_effect,
)
from scripts.shell import as_step, config_files
from scripts.unused_options import unused, unused_components

from tests.helpers.workflows import BUNDLE, CONFIGS, command_line, new_workflow, write_overlay, write_prior

FOLDER = BUNDLE / "configs"
STEPS = ("initialize", "run", "finalize")
TRAIN, EVALUATE = ["train.json"], ["train.json", "evaluate.json"]
LISTS = [
    *(
        ["inference.json", *overlays]
        for overlays in ([], ["mr.json"], ["automedsam.json"], ["paper.json", "btcv.json"])
    ),
    *([*TRAIN, *overlays] for overlays in ([], ["paper.json", "btcv.json", "splits/btcv_seed0.json"], ["chaos.json"])),
    *(
        [*TRAIN, each]
        for each in ("automedsam.json", "beyond_paper.json", "few_shot.json", "folder.json", "pretrain_prior.json")
    ),
    [*TRAIN, "backbones/small.json", "multi_gpu_train.json"],
    [*EVALUATE, "sf_uda.json", "sf_uda_demo.json"],
    [*EVALUATE, "multi_gpu_train.json", "multi_gpu_evaluate.json"],
    ["pretrain_nano.json"],
    ["pretrain_anatomy.json"],
    ["pretrain_anatomy.json", "pretrain_memories.json"],
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


TWINS = {
    "twins.json": '{"seed": 1, "seed": 2}',
    "deeper.json": '{"label_map": {"seed": 1, "liver": 2, "seed": 3}}',
    "in_a_list.json": '{"handlers": [{"seed": 1, "seed": 1}]}',
    "twins.yaml": "seed: 1\nseed: 2\n",
}


@pytest.mark.parametrize("name", TWINS)
def test_a_key_that_stands_twice_in_a_file_is_refused(monkeypatch, tmp_path, name):
    (tmp_path / name).write_text(TWINS[name])
    files = str([str(FOLDER / "train.json"), str(tmp_path / name)])
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "training", "--config_file", files])
    workflow = new_workflow("training", initialize=[{"_target_": "scripts.overrides.check"}])

    with pytest.raises(Exception) as info:
        workflow.initialize()
    assert f"{name}' has 'seed' twice in one group" in str(user_error(info.value))


def test_names_of_several_groups_stand_once_in_each(tmp_path):
    (tmp_path / "once.json").write_text('{"seed": 1, "a": {"seed": 1, "b": {"a": 1}}, "c": {"seed": NaN}}')
    refuse_twins([str(tmp_path / "once.json"), *(str(path) for path in FOLDER.rglob("*.json"))])


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


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_the_configurations_do_not_have_is_refused_with_those_that_have_it(name):
    for files in RUNS[name]:
        content = merged(*(Path(each).name for each in config_files(files.strip('"'))))
        refuse_no_run(content, name)
        refuse_no_run(content, "run")
    having = [path for path in FOLDER.glob("*.json") if json.loads(path.read_text()).get(name) == "%run"]
    assert all(f"configs/{path.name}" in " ".join(RUNS[name]) for path in having) and having

    with pytest.raises(UnknownSettingError) as info:
        refuse_no_run(merged("metadata.json"), name)
    assert str(info.value) == (
        f"The configurations that are given have no '{name}' to run. Give --config_file {' or '.join(RUNS[name])}."
    )
    with pytest.raises(UnknownSettingError, match=rf"no '{name[:-1]}' to run\. Nearest: {name}"):
        refuse_no_run(merged(*TRAIN), name[:-1])


def test_the_command_of_another_configuration_ends_with_one_line():
    result = command_line(
        ["-m", "monai.bundle", "run", "evaluating", "--config_file", "configs/inference.json"], BUNDLE
    )

    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2
    assert last.startswith("error: ") and "['configs/train.json','configs/evaluate.json']" in last


# ---- references to nothing


@pytest.mark.parametrize("files", LISTS, ids=" ".join)
def test_the_bundles_own_files_refer_to_what_there_is(files):
    parser = ConfigParser(merged(*files))
    parser.resolve_macro_and_relative_ids()
    refuse_dangling(parser.get(), STEPS)


@pytest.mark.parametrize(
    "value, said",
    [
        ("@nowhere", "seed refers to @nowhere, which there is not. Correct it"),
        ("@batchsize", "seed refers to @batchsize, which there is not. Nearest: .*batch_size"),
        ("$2 * @nowhere", "seed refers to @nowhere"),
        ({"a": ["@train#nowhere"]}, "seed refers to @train#nowhere"),
        ("@iterations#0", "seed refers to @iterations#0"),
    ],
    ids=str,
)
def test_a_reference_to_nothing_is_refused_with_the_nearest_names(value, said):
    with pytest.raises(UnknownSettingError, match=said):
        refuse_dangling(merged(*TRAIN, seed=value), STEPS)


def test_texts_the_metadata_and_parts_that_are_null_are_no_references_to_nothing():
    own = {"_text": "a@b", "_version": "$@_meta_#version", "_none": None, "_of_none": "@_none", "_first": "@_list#0"}
    refuse_dangling({"_meta_": {"authors": "@nobody"}, "_list": [1], **own, "run": [f"@{name}" for name in own]}, STEPS)


def test_what_no_step_needs_may_refer_to_nothing():
    refuse_dangling(merged(*TRAIN, _later="@nowhere"), STEPS)


def test_it_is_said_which_file_or_option_a_reference_is_in(tmp_path):
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"seed": "@nowhere"}))
    options = {"config_file": f"['{FOLDER / 'train.json'}','{overlay}']"}

    with pytest.raises(UnknownSettingError, match=f"^'{overlay}': seed refers to @nowhere"):
        refuse_dangling(merged(*TRAIN, seed="@nowhere"), STEPS, options)
    with pytest.raises(UnknownSettingError, match="^--seed refers to @nowhere"):
        refuse_dangling(merged(*TRAIN, seed="@nowhere"), STEPS, {**options, "seed": "@nowhere"})


# what MONAI reads without a word, and only trips over while it evaluates
BROKEN = {
    "a reference to nothing": {"image_size": "@nowhere"},
    "one deep inside": {"evaluator#amp": "@nowhere"},
    "no Python": {"image_size": "$1 +"},
    "a name that is not there": {"image_size": "$nowhere"},
    "a division by zero": {"image_size": "$1 / 0"},
    "a module that is not there": {"prior": {"_target_": "scripts.nowhere.Nothing"}},
    "a class that is not there": {"prior": {"_target_": "scripts.networks.diffusam.Nothing"}},
    "a wrong argument": {"backbone#wrong": 1},
    "a circle": {"image_size": "@backbone_name", "backbone_name": "@image_size"},
    "itself": {"image_size": "@image_size"},
    "a setting that there is not": {"image_siz": 64},
    "an unknown backbone": {"backbone_name": "sam9"},
    "a negative size": {"image_size": -64},
    "a size that is a text": {"image_size": "large"},
    "a size that is a list": {"image_size": [64]},
    "no organs": {"organs": []},
    "organs that are a number": {"organs": 4},
    "no prior": {"prior_file": "/nowhere/model.pt"},
    "a prior that is null": {"prior_file": None},
    "a number that is a list": {"dropout": [0.1]},
    "a list that is a number": {"prior_channels": 64},
    "a group that is a list": {"label_map": ["spleen"]},
    "channels that are a text": {"prior_channels": "many"},
    "a seed that is a text": {"seed": "lucky"},
    "a scheduler that is a text": {"scheduler": "ddim"},
    "an intensity that is null": {"intensity": None},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_overlay_is_a_message_and_no_traceback(tmp_path, write_dataset, backbone_file, content):
    dataset = write_dataset(tmp_path / "dataset")
    write_prior(write_overlay(tmp_path / "good", dataset, backbone_file))
    broken = tmp_path / "mine.json"
    broken.write_text(json.dumps(content))
    places = {"prior_file": str(tmp_path / "good" / "model.pt")} if "prior_file" not in content else {}

    with pytest.raises(Exception) as info:
        overlay = write_overlay(tmp_path / "bad", dataset, backbone_file, **places)
        new_workflow("inferring", overlay, broken).initialize()

    said = user_error(info.value) or configuration_error(info.value)
    assert said, repr(info.value)
    assert len(str(said).splitlines()) == 1


@pytest.mark.parametrize("files", LISTS, ids=" ".join)
def test_the_values_of_the_bundles_own_files_are_of_the_kinds_that_these_declare(files):
    refuse_other_kinds(merged(*files), declared_kinds(FOLDER))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"seed": "lucky"}, 'seed is "lucky", expected a number. Correct'),
        ({"batch_size": True}, "batch_size is true, expected a whole number, 1 or more"),
        ({"num_workers": False}, "num_workers is false, expected a whole number, 0 or more"),
        ({"learning_rate": True}, "learning_rate is true, expected 0 or more"),
        ({"surface_tolerance": True}, "surface_tolerance is true, expected a number"),
        ({"prior_channels": [64, True]}, r"prior_channels is \[64, true\], expected a list of whole numbers"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number, 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected 0 or more"),
        ({"learning_rate": float("inf")}, "learning_rate is inf, expected 0 or more"),
        ({"iterations": 1.5}, "iterations is 1.5, expected a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1, expected a whole number, 0 to 4294967295"),
        ({"dropout": 1.5}, "dropout is 1.5, expected 0 to 1"),
        ({"amp": "yes"}, 'amp is "yes", expected (a number, or )?true or false'),
        ({"largest_component": 2}, "largest_component is 2, expected true or false"),
        ({"resume": "no"}, 'resume is "no", expected true or false'),
        ({"eta": 5}, "eta is 5, expected 0 to 1"),
        ({"attention_levels": -1}, "attention_levels is -1, expected a whole number, 0 or more"),
        ({"neighbours": 1.5}, "neighbours is 1.5, expected a whole number, 0 or more"),
        ({"window_margin": 2.5}, "window_margin is 2.5, expected a whole number, 0 or more"),
        ({"window_margin": "3"}, 'window_margin is "3", expected a number'),
        ({"prior_channels": ["a"]}, r'prior_channels is \["a"\], expected a list of whole numbers, 1 or more'),
        ({"intensity": {"liver": 1}}, r'intensity is {"liver": 1}, expected a component, {"_target_": ...}'),
        ({"train_cases": "ab"}, r"train_cases is \"ab\", expected a list, such as \"\['a','b'\]\" or null"),
        ({"label_map": None}, "label_map is null, expected a group"),
        ({"output_dir": None}, "output_dir is null, expected a path"),
        ({"output_dir": ""}, "output_dir is empty, expected a path. Is a variable of the shell not set?"),
        ({"dataset_dir": " "}, "dataset_dir is empty, expected a path"),
        ({"backbone_name": ["sam2_nano"]}, r'backbone_name is \["sam2_nano"\], expected a text'),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused(given, said):
    with pytest.raises(UnknownSettingError, match=said):
        refuse_other_kinds(merged(*TRAIN, **given), declared_kinds(FOLDER))


@pytest.mark.parametrize(
    "given",
    [
        {"largest_component": 1, "report": 0, "eta": 1, "backbone_name": True},
        {"seed": None, "iterations": 2.0, "dropout": 0.5, "amp": 1, "resume": True, "learning_rate": 1},
        {"seed": "$1 + 1", "train_cases": "@test_cases", "label_map": "$dict(a=1)"},
        {"train_cases": ("a", "b"), "views": [], "device": "cpu", "experiment_name": 7, "run_name": None},
        {"backbone_checkpoint": None, "organ_codes": None, "report_figures": None, "start_from": None},
        {"output_dir": "out", "backbone_sha256": None, "_own": [1], "evaluation_dir": "$@output_dir + '/e'"},
    ],
    ids=str,
)
def test_what_may_be_of_the_kind_is_accepted(given):
    refuse_other_kinds(merged(*TRAIN, **given), declared_kinds(FOLDER))


WRITTEN_OTHERWISE = {
    **{
        "batch_size": 8.0,
        "iterations": 1e3,
        "num_workers": 2.0,
        "seed": 1.0,
        "inference_steps": 2.0,
        "neighbours": 0.0,
    },
    **{
        "image_size": 256.0,
        "phantoms": 1e1,
        "report_pixels": 288.0,
        "prior_channels": [64.0, 128],
        "window_margin": 1e30,
    },
}


@pytest.mark.parametrize("place", ["option", "overlay"])
def test_whole_numbers_may_be_written_otherwise(tmp_path, place):
    overlay, more = tmp_path / "overlay.json", {"_channels": "@prior_channels#0", "learning_rate": 1.0}
    overlay.write_text(json.dumps({**more, **(WRITTEN_OTHERWISE if place == "overlay" else {})}))
    options = WRITTEN_OTHERWISE if place == "option" else {}
    workflow = new_workflow("evaluating", overlay, initialize=[{"_target_": "scripts.overrides.check"}], **options)

    workflow.initialize()

    for name, value in WRITTEN_OTHERWISE.items():
        found = workflow.parser.get_parsed_content(name)
        flat = found if isinstance(found, list) else [found]
        assert found == value and all(type(each) is int for each in flat), name
    loader = workflow.parser.get_parsed_content("_channels")
    assert type(loader) is int and type(workflow.parser.get_parsed_content("learning_rate")) is float


def test_which_settings_are_whole_numbers_is_read_from_the_configurations():
    whole = declared_whole_numbers(FOLDER)
    assert {"image_size", "patients", "passed", "kept_batches"} <= whole
    assert not whole & {"learning_rate", "lambda_seg", "eta", "spacing", "views", "label_map", "amp", "extent"}


@pytest.mark.parametrize("value", [("Doe", "Jane"), ["a"], {"a": 1}, 7, True], ids=str)
@pytest.mark.parametrize("name", AS_TYPED)
def test_an_option_of_which_the_text_counts_may_be_read_as_anything(name, value):
    config = merged("inference.json", **{name: value})
    refuse_other_kinds(config, declared_kinds(FOLDER), {name: "as typed"})


@pytest.mark.parametrize("name", ["input", "output"])
def test_the_same_in_a_file_is_refused(name):
    with pytest.raises(UnknownSettingError, match="expected a path"):
        refuse_other_kinds(merged("inference.json", **{name: ["a"]}), declared_kinds(FOLDER))


def test_an_option_that_is_empty_is_refused_however_it_was_typed():
    with pytest.raises(UnknownSettingError, match="--input is empty, expected a path"):
        refuse_other_kinds(merged("inference.json", input=""), declared_kinds(FOLDER), {"input": ""})


@pytest.mark.parametrize("name", ["input", "prior_file", "backbone_checkpoint"])
def test_an_option_that_is_none_is_refused_since_it_would_change_nothing(name):
    with pytest.raises(UnknownSettingError, match=f"--{name} is None, which MONAI leaves out"):
        refuse_nothing({name: "None", "seed": "1"})


@pytest.mark.parametrize("name", ["backbone_sha256", "start_prior", "series", "output_dir", "train#trainer#key_metric"])
def test_an_option_that_is_null_is_refused_since_it_would_be_a_text(name):
    with pytest.raises(UnknownSettingError, match=f"--{name} is null, of which Fire makes a text") as info:
        refuse_nothing({"seed": "1", name: "null"})
    assert ("'$None' in single quotes" in str(info.value)) == (name not in ("series", "output_dir"))


def test_what_is_said_to_write_for_nothing_is_nothing(monkeypatch):
    words = {"backbone_sha256": "$None", "start_from": "$None", "test_cases": "$None", "max_grad_norm": "$None"}
    monkeypatch.setattr(
        sys, "argv", ["monai.bundle", "run", "training", *(f"--{name}={words[name]}" for name in words)]
    )
    workflow = new_workflow("training", **words, initialize=[{"_target_": "scripts.overrides.check"}])
    workflow.initialize()

    assert [workflow.parser.get_parsed_content(name) for name in words] == [None] * len(words)


@pytest.mark.parametrize(
    "text", ["{'liver': 1, 'liver': 4}", '--label_map={"liver": 1, "liver": [2]}', "{liver: 1, spleen: 2, liver: 1}"]
)
def test_a_name_that_stands_twice_in_a_group_is_refused(text):
    with pytest.raises(UnknownSettingError, match="liver'? stands twice in {"):
        refuse_twice(["--label_map", text])


@pytest.mark.parametrize("text", ["{'liver': 1, 'spleen': 1}", "{case}", "{", "{1, 1}", "{'a': {'b': 1}, 'b': 2}"])
def test_other_texts_in_braces_are_left_to_who_reads_them(text):
    refuse_twice([text])


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "nowhere:1", 99, ""], ids=str)
@pytest.mark.parametrize("key", ["device", "volume_device"])
def test_a_device_that_there_is_not_is_refused(key, name):
    with pytest.raises(
        UnknownSettingError, match=f"--{key} is .*, which cannot be had here; there is cpu, and"
    ) as info:
        refuse_no_device({key: name}, {key: str(name)})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["cpu", "$torch.device('cpu')", "@other", None, {"_target_": "own_device"}], ids=str)
def test_a_device_that_there_is_may_be_a_text(name):
    refuse_no_device({"device": name}, {})


@pytest.mark.parametrize("files", [files for files in LISTS if "device" in merged(*files)], ids=" ".join)
def test_half_precision_goes_by_the_device_however_it_is_given(files):
    parser = ConfigParser({**merged(*files), "device": "cpu"})
    assert parser.get_parsed_content("amp", default=False) is False


def test_values_that_no_inference_writes_are_refused_where_they_are_typed():
    config, options = merged("inference.json", label_map={"liver": 6, "spleen": 1}), {"label_map": "as typed"}

    with pytest.raises(UnknownSettingError, match="but results have the values {.liver.: 1, .spleen.: 2}"):
        refuse_other_values(config, options)
    refuse_other_values(config, {})  # of the overlay of a training, whose labels have them
    refuse_other_values({**config, "label_map": {"liver": 1, "spleen": 2}}, options)
    refuse_other_values(merged(*EVALUATE, label_map={"liver": 6, "spleen": 1}), options)


@pytest.mark.parametrize("start", ["nowhere.pt", "{folder}", 7], ids=str)
def test_a_start_that_is_named_and_not_there_is_refused(tmp_path, start):
    with pytest.raises(MissingFileError, match="--start_from is '.*', which is not there. Name a trained prior"):
        refuse_no_start({"start_from": str(start).format(folder=tmp_path)}, {"start_from": ""})


@pytest.mark.parametrize("start", ["$@bundle_root + '/models/none.pt'", "@prior_file", None, __file__], ids=str)
def test_the_bundles_own_start_may_be_left_out(start):
    refuse_no_start({"start_from": start}, {})


def test_options_of_the_program_itself_may_be_none():
    refuse_nothing({"logging_file": "None", "resume": None, "output": "./None", "series": "none"})


def test_folders_that_are_called_null_are_what_they_are_called():
    refuse_nothing({"input": "null", "output": "null", "prior_file": "./null"})


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


@pytest.mark.parametrize(
    "files, option, given, why",
    [
        (["inference.json"], "memory_samples", {"memory_samples": 4}, "a head names masks"),
        (["inference.json"], "memory_samples", {"memory_samples": 4, "named_memories": False}, None),
        (["inference.json"], "ended_after", {"ended_after": 2}, "slices have no neighbours"),
        (["inference.json"], "ended_after", {"ended_after": 2, "neighbours": 1}, None),
        (["inference.json"], "ended_after", {"neighbours": 1, "no_3d": True}, "slices have no neighbours"),
        (["inference.json"], "window_margin", {"neighbours": 1}, "slices see their neighbours"),
        (["inference.json"], "window_margin", {"window_margin": 1}, None),
        (["inference.json"], "names_smoothing", {"no_3d": True}, "each slice is named by itself"),
        (["inference.json"], "skip_absent", {"named_memories": False}, "no head names organs"),
        (["inference.json"], "correction_reach", {"correction_reach": 2}, "there are no corrections"),
        (["inference.json"], "uncertainty_calibration", {}, "uncertainty is 0"),
        (["inference.json"], "uncertainty_calibration", {"uncertainty": 2}, None),
        (EVALUATE, "inference_steps", {"named_memories": True}, "a head names masks"),
        (EVALUATE, "inference_steps", {}, None),
        (TRAIN, "inference_steps", {"named_memories": True}, None),
        ([*TRAIN, "few_shot.json"], "object_weight", {}, "lambda_seg is 0"),
        ([*TRAIN, "few_shot.json"], "absent_share", {"lambda_prior": 1}, None),
        (TRAIN, "names_learned", {}, "no head names organs"),
        ([*TRAIN, "few_shot.json"], "names_learned", {}, None),
    ],
    ids=str,
)
def test_an_option_that_other_settings_leave_without_effect_is_told(files, option, given, why):
    """Each reason holds, and another setting takes it away."""
    parser = ConfigParser(merged(*files, bundle_root=str(BUNDLE), **given))
    part = "inferer" if files[0] == "inference.json" else "validate::inferer" if files is EVALUATE else "train::trainer"

    said = unused(parser, {part}, [option, "seed"])

    assert [text.startswith(f"--{option}, since {why}") for text in said] == ([] if why is None else [True])


def test_a_run_says_which_of_its_options_others_leave_without_effect(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "inferring", "--ended_after", "2", "--seed", "1"])
    workflow = new_workflow("inferring", ended_after=2, initialize=[{"_target_": "scripts.overrides.check"}])

    with caplog.at_level(logging.WARNING, "scripts.unused_options"):
        workflow.initialize()

    (message,) = (record.getMessage() for record in caplog.records if record.name == "scripts.unused_options")
    assert message == "Without effect: --ended_after, since slices have no neighbours (neighbours, no_3d)."


@pytest.mark.parametrize(
    "command, content, said",
    [
        ("training", {"optimizer": {"_target_": "torch.optim.SGD"}}, ["optimizer, .* Is train#optimizer meant?"]),
        ("training", {"handlers": [{"_target_": "StatsHandler"}]}, ["handlers, .* Is train#handlers meant?"]),
        ("training", {"train#optimizer": {"_target_": "torch.optim.SGD"}, "neighbours": 1, "loss": {}}, []),
        ("training", {"mine": {"_target_": "torch.optim.SGD"}, "train#optimizer": "@mine"}, []),
        ("evaluating", {"mine": {"_target_": "torch.optim.SGD"}, "train#optimizer": "@mine"}, []),
        ("evaluating", {"loss": {"_target_": "torch.nn.MSELoss"}, "train#optimizer": {"_target_": "x"}}, []),
        ("inferring", {"train": {"_target_": "torch.optim.SGD"}, "dataset": {"_target_": "x"}}, ["train, since"]),
    ],
    ids=str,
)
def test_components_of_an_overlay_on_which_nothing_depends_are_told(tmp_path, command, content, said):
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps(content))
    files = [*(str(FOLDER / name) for name in CONFIGS[command]), str(overlay)]
    config = ConfigParser.load_config_files(files)
    reached = _reached(config, ("initialize", "run"))

    found = unused_components(reached, _referred(config), files)

    assert [re.search(each, text) is not None for each, text in zip(said, found, strict=True)] == [True] * len(said)


def test_options_that_several_commands_share_need_no_effect_in_each(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "training", "--test_cases", "['a']"])
    for name, text in as_step(shared=True).items():
        monkeypatch.setenv(name, text)
    workflow = new_workflow("training", test_cases=["a"], initialize=[{"_target_": "scripts.overrides.check"}])

    with caplog.at_level(logging.WARNING, "scripts.overrides"):
        workflow.initialize()

    assert [record for record in caplog.records if record.name == "scripts.overrides"] == []
