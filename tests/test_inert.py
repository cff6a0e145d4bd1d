"""Names from outside, through every way into JSON that MONAI reads: they mean themselves, and none of them is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.arguments import AS_TYPED, as_typed, refuse_expressions, refuse_misread
from scripts.data.datalists import inference_inputs
from scripts.errors import DatasetError, indented, listed, one_line, printable, user_error
from scripts.inert import inert, inert_json
from scripts.inference.corrections import Corrections
from scripts.prepare.decathlon import prepare_decathlon
from scripts.prepare.folder import prepare_folder
from scripts.standalone import describe

from tests.helpers.workflows import BUNDLE, ROOT, command_line, new_workflow, run, write_overlay

RUNS = "__import__('pathlib').Path('ran').touch()"
HOSTILE = {
    "expression": f"${RUNS}",
    "import": "$import os",
    "reference": "@bundle_root",
    "reference within": "a@bundle_root",
    "relative reference": "@##train",
    "macro": "%bundle_root",
    "relative macro": "a%#bundle_root",
    "macro of a file": "%..%2fetc#x",
    "number sign": "a#1",
    "separator": "a::b",
    "newline": "a\nINFO - all is well",
    "escape": "a\x1b[2J\x07",
    "quotes": "a'\"b\\",
    "quoted expression": f"'+{RUNS}+'",
    "undecodable": "a\udc80$",
    "component": "_target_",
    "merge": "+train_cases",
    "unicode": "Müller 山田",
}
AS_FILES = {name: text for name, text in HOSTILE.items() if "/" not in text}
each_hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
each_file = pytest.mark.parametrize("text", AS_FILES.values(), ids=AS_FILES)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("ran").exists()


def read(text: str, *keys: str) -> list:
    """What MONAI makes of a JSON file, read beside a configuration."""
    parser = ConfigParser({"bundle_root": ".", **json.loads(text)})
    return [parser.get_parsed_content(key) for key in keys]


@each_hostile
def test_a_text_means_itself_wherever_it_stands(text):
    content = {"alone": text, "list": ["a", text], "value": {"b": text}, "key": {text: 1}, "path": Path("/x", text)}

    found = read(inert_json(content), *content)

    assert found == [text, ["a", text], {"b": text}, {text: 1}, str(Path("/x", text))]


def test_a_text_without_a_meaning_to_monai_stays_as_it_is():
    content = {"a": "img/{case}.nii.gz", "b": ["0001", 2, None, True, 0.5], "c": {"right kidney": [2, 3]}}
    assert inert(content) == content


def test_what_is_evaluated_on_purpose_is_not_touched():
    assert json.loads(inert_json({"a": "$1 + 1", "b": "$1 + 1"}, evaluated=["a"]))["a"] == "$1 + 1"


@each_file
def test_prepare_folder_writes_names_that_mean_themselves(tiny_dataset, tmp_path, text):
    source = tmp_path / f"s{text}"
    for kind in ("image", "label"):
        (source / f"{kind}{text}").mkdir(parents=True)
        for case, name in (("a", text), ("b", f"z{text}"), ("c", "zz")):
            shutil.copy(tiny_dataset / f"{kind}_{case}.nii.gz", source / f"{kind}{text}" / f"{name}.nii.gz")
    patterns = [f"{kind}{text}/{{case}}.nii.gz" for kind in ("image", "label")]

    prepare_folder(source, *patterns, tmp_path / f"o{text}", label_map={text: 1, "liver": 4}, train_cases=[text])

    overlay = (tmp_path / f"o{text}" / "overlay.json").read_text()
    keys = ("dataset_dir", "image_pattern", "label_pattern", "train_cases", "test_cases", "label_map", "output_dir")
    folder = str(tmp_path / f"o{text}" / "run")
    expected = [str(source), *patterns, [text], [f"z{text}", "zz"], {text: 1, "liver": 4}, folder]
    assert sorted(map(str, read(overlay, *keys))) == sorted(map(str, expected))


@each_file
def test_prepare_decathlon_writes_names_that_mean_themselves(tiny_dataset, tmp_path, text):
    training = []
    for case, name in (("a", text), ("b", f"z{text}")):
        training.append({kind: f"{kind}{text}/{name}.nii.gz" for kind in ("image", "label")})
        for kind, path in training[-1].items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            shutil.copy(tiny_dataset / f"{kind}_{case}.nii.gz", tmp_path / path)
    labels = {"0": "background", "1": text, "2": "right kidney", "3": "left kidney", "4": "liver"}
    content = {"modality": {"0": "CT"}, "labels": labels, "training": training}
    (tmp_path / "dataset.json").write_text(json.dumps(content))

    prepare_decathlon(tmp_path, tmp_path / "out")

    overlay = (tmp_path / "out" / "overlay.json").read_text()
    cases, organs, pattern = read(overlay, "train_cases", "label_map", "image_pattern")
    assert cases == [text, f"z{text}"]
    assert organs == {name: int(value) for value, name in labels.items() if value != "0"}
    assert pattern == f"image{text}/{{case}}.nii.gz"


@each_hostile
def test_names_of_organs_in_the_metadata_of_a_bundle_mean_themselves(text):
    backbone = SimpleNamespace(image_size=64, memory_channels=64, embedding_size=4, embedding_channels=256)

    metadata = describe(SimpleNamespace(organs=[text, "liver"], backbone=backbone))

    parser = ConfigParser({"_meta_": json.loads(json.dumps(metadata))})
    outputs = parser.get_parsed_content("_meta_::network_data_format::outputs")
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": text, "2": "liver"}
    assert text in parser.get_parsed_content("_meta_::label_classes")


@each_file
def test_a_json_list_and_corrections_are_data(tmp_path, text):
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps([{"image": f"{text}.nii.gz", "case": text}]))
    corrections = tmp_path / "corrections.json"
    entry = {"organ": "liver", "positive": [[1, 2, 3]]}
    corrections.write_text(json.dumps({"cases": {text: [entry]}}))

    assert [item["case"] for item in inference_inputs(listing)] == [text]
    assert list(Corrections(corrections, ["liver"]).recorded()) == [text]


@pytest.fixture
def project(tmp_path, backbone_file) -> Path:
    """An overlay, and beside it a prior; what its label maps are worth does not matter here."""
    path = write_overlay(tmp_path / "project", tmp_path, backbone_file)
    network = new_workflow("inferring", path).parser.get_parsed_content("network_def")
    network.prior.fitted.fill_(True)
    torch.save({"model": network.state_dict()}, path.parent / "model.pt")
    return path


def test_files_of_any_name_are_segmented(tmp_path, project, tiny_dataset):
    (tmp_path / "in").mkdir()
    for text in AS_FILES.values():
        shutil.copy(tiny_dataset / "image_a.nii.gz", tmp_path / "in" / f"{text}.nii.gz")
    options = {"inference_steps": 1, "no_3d": True, "report": True, "image_size": 64}

    run("inferring", project, input=str(tmp_path / "in"), output=str(tmp_path / "out"), **options)

    recorded = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert {case: record["status"] for case, record in recorded.items()} == dict.fromkeys(AS_FILES.values(), "done")
    assert all((tmp_path / "out" / f"{text}_seg.nii.gz").is_file() for text in AS_FILES.values())


# ---- the command line


@pytest.mark.parametrize(
    "typed, read_as",
    [
        ("Doe,Jane", ("Doe", "Jane")),
        ("7", 7),
        ("2024", 2024),
        ("a#1", "a"),
        ("/b/a#1.mha", "/b/a::1.mha"),
        ("[a]", ["a"]),
    ],
)
@pytest.mark.parametrize("form", [lambda text: ["--input", text], lambda text: [f"--input={text}"]])
def test_a_text_of_the_command_line_is_taken_as_it_was_typed(monkeypatch, typed, read_as, form):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "inferring", "--output", "x", *form(typed)])

    assert as_typed("input", read_as) == typed


def test_the_users_own_folder_is_found_where_a_shell_does_not_look_for_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "--output=~/x"])

    assert as_typed("output", "~/x", path=True) == os.path.expanduser("~/x")


def test_what_a_configuration_says_is_not_taken_from_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "--input", "7"])

    assert as_typed("input", "scans") == "scans" and as_typed("series", None) is None


@pytest.mark.parametrize("text", [f"${RUNS}", "@output", "%input"])
def test_a_path_on_the_command_line_is_not_evaluated(monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "--input", text])

    with pytest.raises(DatasetError, match="would evaluate"):
        refuse_expressions(["input"])


def test_a_hostile_name_on_the_command_line_is_refused_before_it_is_run(tmp_path):
    command = ["-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
    marker = tmp_path / "marker"
    hostile = f"$__import__('pathlib').Path({str(marker)!r}).touch()"

    done = command_line([*command, "--input", hostile], BUNDLE)

    assert done.returncode == 1 and "error: --input is" in done.stderr and not marker.exists()


@pytest.mark.parametrize(
    "typed, said",
    [
        ("2024", "reads as 2024. Write './2024'."),
        ("1e5", "reads as 100000.0. Write './1e5'."),
        ("True", "reads as True. Write './True'."),
        ("Doe,Jane", "reads as ('Doe', 'Jane'). Write './Doe,Jane'."),
        ("a#1", "reads as 'a'. Choose another name."),
        ("./a#1", "reads as './a::1'. Choose another name."),
        ("~/runs", f"nothing replaces '~'. Write '{os.path.expanduser('~/runs')}'."),
    ],
)
@pytest.mark.parametrize("form", [lambda text: ["--output_dir", text], lambda text: [f"--output_dir={text}"]])
def test_a_folder_that_the_command_line_takes_for_something_else_is_refused(monkeypatch, typed, said, form):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "training", *form(typed)])

    with pytest.raises(DatasetError) as caught:
        refuse_misread(["dataset_dir", "output_dir"])

    assert str(caught.value).startswith(f"--output_dir is '{typed}'") and said in str(caught.value)


@pytest.mark.parametrize(
    "typed", ["./2024", "/data/2024", "runs/a b", "'2024'", '"a,b"', "$@bundle_root + '/x'", "None"]
)
def test_a_folder_that_is_read_as_it_was_typed_is_taken(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "--output_dir", typed])

    refuse_misread(["output_dir"])


@pytest.mark.parametrize(
    "command, configs",
    [
        ("training", ["train.json"]),
        ("evaluating", ["train.json", "evaluate.json"]),
        ("inferring", ["inference.json"]),
        ("pretraining", ["pretrain_nano.json"]),
        ("pretraining", ["pretrain_anatomy.json"]),
        ("pretraining", ["pretrain_anatomy.json", "pretrain_memories.json"]),
        ("pretraining", ["pretrain_orientation.json"]),
        ("training", ["train.json", "pretrain_prior.json"]),
    ],
    ids=str,
)
def test_every_command_refuses_a_folder_that_is_misread(monkeypatch, command, configs):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "--output_dir", "2024"])
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / name) for name in configs],
        logging_file=False,
        run_id=command,
        workflow_type="infer" if command == "inferring" else "train",
        bundle_root=str(BUNDLE),
        output_dir=2024,
    )

    with pytest.raises(Exception) as caught:
        workflow.initialize()

    assert "--output_dir is '2024'" in str(user_error(caught.value))


def test_every_setting_that_is_a_path_is_refused_where_it_is_misread():
    """Of each workflow the settings that the page of the configuration calls paths; ``AS_TYPED`` are never misread."""
    told = json.loads((ROOT / "docs/settings.json").read_text("utf-8"))
    groups = [*told["groups"].values(), *told["pretraining"].values()]
    paths = {key for group in groups for key, (_, unit) in group.items() if unit == "path"}
    others = {*AS_TYPED, "bundle_root"}
    for file in (BUNDLE / "configs").glob("*.json"):
        content = json.loads(file.read_text("utf-8"))
        steps = [each for each in content.get("initialize", []) if isinstance(each, dict)]
        refused = {option for step in steps if "refuse_misread" in step["_target_"] for option in step["options"]}
        named = {key for key in paths & content.keys() if content[key] != "@input"} - others
        assert not steps or named <= refused, file.name


# ---- terminals and logs


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\r", "\x9b31m", "\u202e", "\u2028", "\udc80", "\x00", "\x7f"])
def test_what_moves_a_cursor_or_turns_the_writing_is_escaped(text):
    shown = [printable(f"a{text}b"), one_line(f"a{text}b"), listed([Path(f"a{text}b")]), str(DatasetError(text))]

    assert (
        all(text not in each for each in shown)
        and shown[0] == f"a{text.encode('unicode_escape', 'surrogatepass').decode()}b"
    )


def test_letters_of_every_writing_stay():
    assert printable("Müller 山田 한국 Люк") == "Müller 山田 한국 Люк"


def test_no_line_of_a_log_can_be_forged():
    program = (
        f"import logging, sys; sys.path.insert(0, {str(BUNDLE)!r}); from scripts.errors import install; install()\n"
        "logging.basicConfig(format='%(levelname)s - %(message)s')\n"
        "logging.getLogger('x').error('%s failed', 'a\\x1b[2J\\nINFO - 99 cases segmented')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stderr.splitlines() == ["ERROR - a\\x1b[2J", "  INFO - 99 cases segmented failed"]


def test_a_message_keeps_its_own_lines():
    assert indented("two problems:\n  1. a\nb") == "two problems:\n  1. a\n  b"
