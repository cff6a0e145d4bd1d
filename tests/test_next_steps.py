"""What a workflow says at its end: commands that can be copied into a shell, and nothing where nobody typed one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts.next_steps import after_evaluation, after_inference, after_training

from tests.helpers.workflows import BUNDLE

TRAINING = ["run", "training", "--config_file", "configs/train.json"]


@pytest.fixture
def typed(monkeypatch):
    """``typed(*words)`` stands for ``python -m monai.bundle`` with these words, in the bundle's folder."""
    monkeypatch.chdir(BUNDLE)
    monkeypatch.delenv("DIFFUSAM_NEXT", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return lambda *words: monkeypatch.setattr(sys, "argv", ["monai.bundle", *words])


def commands(capsys) -> list[list[str]]:
    """The words of the commands that were printed, as a shell takes them apart, after ``monai.bundle run``."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return [words[words.index("run") + 1 :] for words in map(shlex.split, lines)]


def test_after_a_training_come_evaluation_and_segmentation(typed, capsys):
    typed(*TRAINING)

    after_training("runs/train/model.pt")

    assert commands(capsys) == [
        ["evaluating", "--config_file", "['configs/train.json','configs/evaluate.json']"],
        ["inferring", "--config_file", "configs/inference.json"]
        + ["--prior_file", "runs/train/model.pt", "--input", "SCAN", "--output", "OUT"],
    ]


def test_overlays_and_options_are_those_that_were_typed(typed, capsys, tmp_path):
    overlay = tmp_path / "my overlay.json"
    overlay.write_text(json.dumps({"image_pattern": "{case}.nii.gz"}))
    files = ["configs/train.json", "configs/multi_gpu_train.json", str(overlay)]
    typed("run", "training", f"--config_file={files}", "--output_dir", "/o ' 1", "--series=2", "--iterations", "5")

    after_training("/o/model.pt")

    evaluating, inferring = commands(capsys)
    expected = f"['configs/train.json','configs/evaluate.json','{overlay}']"
    # the number of iterations means nothing to an evaluation
    assert evaluating == ["evaluating", "--config_file", expected, "--output_dir", "/o ' 1", "--series", "2"]
    assert inferring[-2:] == ["--series", "2"] and "--output_dir" not in inferring


def test_nothing_is_evaluated_where_no_case_is_left(typed, capsys):
    typed(*TRAINING, "--test_cases", "[]")

    after_training("runs/train/model.pt")

    assert [words[0] for words in commands(capsys)] == ["inferring"]


@pytest.mark.parametrize("prior, said", [("a,b", "./a,b"), ("7", "./7"), ("runs/model.pt", "runs/model.pt")])
def test_a_prior_is_named_as_the_command_line_reads_it(typed, capsys, prior, said):
    typed("run", "evaluating", "--config_file", "['configs/train.json','configs/evaluate.json']")

    after_evaluation(prior)

    ((*_, option, name, _, _, _, _),) = commands(capsys)
    assert (option, name) == ("--prior_file", said)


def test_a_prior_that_monai_would_evaluate_is_not_named(typed, capsys):
    typed("run", "evaluating", "--config_file", "['configs/train.json','configs/evaluate.json']")

    after_evaluation("$HOME/model.pt")

    assert capsys.readouterr().out == ""


def test_after_an_inference_the_report_is_named(typed, capsys, tmp_path):
    typed("run", "inferring", "--config_file", "configs/inference.json")
    (tmp_path / "\x1b[2J").mkdir()
    (tmp_path / "\x1b[2J/report.html").touch()

    after_inference(SimpleNamespace(output=tmp_path / "\x1b[2J", last=True))

    assert capsys.readouterr().out == f"\nNext, look at it: {tmp_path}/\\x1b[2J/report.html\n"


@pytest.mark.parametrize("variable, value", [("DIFFUSAM_NEXT", "0"), ("RANK", "1")])
def test_a_step_of_another_program_and_a_further_process_are_silent(typed, capsys, monkeypatch, variable, value):
    typed(*TRAINING)
    monkeypatch.setenv(variable, value)

    after_training(Path("model.pt"))

    assert capsys.readouterr().out == ""


def test_nothing_is_said_where_no_command_was_typed(typed, capsys):
    typed("tests")

    after_training("model.pt")

    assert capsys.readouterr().out == ""
