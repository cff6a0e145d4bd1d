"""The commands that prepare data, as a user types them."""

from __future__ import annotations

import sys

import pytest
from scripts.errors import MissingFileError, UnknownSettingError
from scripts.prepare.__main__ import main

from tests.conftest import save_dicom_series, save_volume, simple_image, simple_label
from tests.helpers.archives import AXIAL, overlay_of
from tests.helpers.workflows import BUNDLE, command_line


def test_a_missing_archive_ends_the_program_with_one_message(tmp_path):
    result = command_line(["-m", "scripts.prepare", "btcv", str(tmp_path / "RawData.zip"), "--output", "out"], BUNDLE)

    assert result.returncode == 1
    assert result.stderr.strip().startswith("error: ") and "syn3193805" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_word_is_no_working_directory(tmp_path):
    words = ["folder", ".", "--image", "{case}", "--label", "{case}.nii", "--output", ""]

    result = command_line([str(BUNDLE / "scripts/prepare"), *words], tmp_path)

    assert result.returncode == 2 and list(tmp_path.iterdir()) == []
    said = "The word behind --output is empty, expected a value. Is a variable of the shell not set?"
    assert result.stderr.strip() == f"error: {said}"


@pytest.mark.parametrize(
    ("option", "text"), [("series", "null"), ("series", "None"), ("trusted-form", "None"), ("train_cases", "null")]
)
def test_an_option_that_is_to_be_nothing_is_no_text(monkeypatch, option, text):
    words = ["folder", "null", "--image", "{case}", "--label", "{case}.nii", "--output=null", f"--{option}", text]
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    with pytest.raises(UnknownSettingError, match=f"--{option.replace('-', '_')} is {text}, .* Leave the option out"):
        main()
    monkeypatch.setattr(sys, "argv", ["prepare", *words[:-2], "--train_cases", "None"])
    with pytest.raises(MissingFileError, match="null' is not there"):  # the folder
        main()


def test_the_command_runs_by_its_path_and_prints_the_table(tmp_path):
    for case in "ab":
        save_dicom_series(tmp_path / f"{case}", simple_image(simple_label())[::-1, ::-1], AXIAL)
        save_volume(tmp_path / f"{case}.nii.gz", simple_label()[::-1, ::-1], AXIAL)
    patterns = ["--image", "{case}", "--label", "{case}.nii.gz"]  # braces alone are no Python set here
    options = ["--label_map", "{'spleen': 1}", "--train_cases", "['a']", "--output", "out"]

    result = command_line([str(BUNDLE / "scripts/prepare"), "folder", ".", *patterns, *options], tmp_path)

    assert result.returncode == 0, result.stderr
    assert "a     40 x 36 x 8  2 x 2 x 5" in result.stdout
    said = [line.split(": ")[0] for line in result.stdout.splitlines() if "monai.bundle run" in line]
    assert said == ["Train with", "Then evaluate with", "Then segment with"]
    overlay = overlay_of(tmp_path / "out")
    assert (overlay["label_map"], overlay["train_cases"], overlay["test_cases"]) == ({"spleen": 1}, ["a"], ["b"])


def test_the_help_of_a_command_lists_its_arguments_alone():
    result = command_line(["-m", "scripts.prepare", "btcv", "--help"], BUNDLE)

    shown = result.stdout + result.stderr
    assert result.returncode == 0
    assert "prepare btcv SOURCE OUTPUT <flags>" in shown and "--overwrite" in shown
