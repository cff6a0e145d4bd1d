"""Overlays and options that MONAI could not read or merge: one line each, and nothing starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from scripts.command import runs
from scripts.command.configurations import refuse_unreadable
from scripts.command.program import program
from scripts.command.usage import UsageError

from tests.helpers.workflows import BUNDLE

# content of an overlay, and what is said of it
BROKEN = {
    "empty": (b"", "it is empty"),
    "spaces": (b" \n\t ", "it is empty"),
    "cut off": (b'{"iterations": 15', "it is no JSON"),
    "a comma too many": (b'{"iterations": 15,}', "it is no JSON"),
    "a comma too few": (b'{"iterations": 15 "seed": 1}', "line 1 column 19"),
    "single quotes": (b"{'iterations': 15}", "it is no JSON"),
    "a comment": (b'{"iterations": 15}  // few', "Extra data"),
    "two objects": (b'{"seed": 1}{"seed": 2}', "Extra data"),
    "True": (b'{"amp": True}', "it is no JSON"),
    "a list": (b'[{"iterations": 15}]', "it holds a list"),
    "a text": (b'"iterations"', "it holds a text"),
    "a number": (b"15", "it holds a number"),
    "null": (b"null", "it holds nothing"),
    "false": (b"false", "it holds true or false"),
    "any bytes": (bytes(range(256)), "it is no JSON"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "it is no JSON"),
    "compressed": (b"\x1f\x8b\x08\0" + b"\xff" * 32, "it is no JSON"),
    "UTF-16": ('{"seed": 1}'.encode("utf-16"), "it is no JSON"),
    "a mark of the order of bytes": (b'\xef\xbb\xbf{"seed": 1}', "it is no JSON"),
    "a name cut off": (b'{"organs": ["\xc3"]}', "it is no JSON"),
    "very deep": (b"[" * 200_000, "it is no JSON"),
    "a key twice": (b'{"seed": 1, "seed": 2}', "'seed' stands there twice"),
    "a key twice, deeper": (b'{"organ_codes": {"liver": "1", "liver": "2"}}', "'liver' stands there twice"),
    "a macro to nothing": (b'{"organs": "%x"}', "%x stands for another setting"),
    "a macro to a near name": (b'{"organs": "%organ"}', "did you mean organs"),
    "a macro to no file": (b'{"organs": "%nowhere.json#x"}', "There is no configuration 'nowhere.json'"),
    "a macro deep inside": (b'{"organ_codes": {"liver": ["%x"]}}', "%x stands for another setting"),
    "a part of nothing": (b'{"nowhere#lr": 0.1}', "nowhere#lr is a part of what is not there"),
    "a part of a number": (b'{"seed#lr": 0.1}', "there is no seed#lr, since seed has no parts"),
    "a part beyond the last": (b'{"handlers#99": null}', "there is no handlers#99, since handlers has 6 parts"),
    "a list added to a group": (b'{"+evaluator": [1]}', "adds to a group, and is a list"),
    "a text added to a list": (b'{"+handlers": "@orientation"}', "adds to a list, and is a text"),
}
OPTIONS = {
    "a macro": (["--image_size", "%x"], "--image_size is '%x', in which %x stands for another setting"),
    "in a list": (["--views", "[['%x']]"], "%x stands for another setting"),
    "a file": (["--organs", "%nowhere.json"], "There is no configuration 'nowhere.json'"),
    "a part": (["--backbone#nowhere#lr", "1"], "--backbone#nowhere#lr: backbone#nowhere#lr is a part of what is not"),
    "no list": (["--config_file", "['a.json'"], "--config_file is '['a.json'', expected a file"),
    "a folder": (["--config_file", "."], "'.' is no configuration by its name"),
    "a folder like a file": (["--config_file", "folder.json"], "'folder.json' cannot be read (Is a directory)"),
    "no file": (["--config_file", "nowhere.json"], "There is no configuration 'nowhere.json'. Correct its name."),
    "no configuration": (["--config_file", "scan.nii.gz"], "'scan.nii.gz' is no configuration by its name"),
}


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """``refused(*options)``: the one line that ends ``diffusam segment`` with these, before anything has started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.subprocess, "Popen", lambda *args, **kwargs: pytest.fail("it was started"))
    (tmp_path / "scan.nii.gz").touch()
    (tmp_path / "folder.json").mkdir()

    def refused(*options: str) -> str:
        assert program(["segment", "scan.nii.gz", "-o", "out", "--modality", "ct", *options]) == 2
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in said.out
        return lines[0]

    return refused


@pytest.mark.parametrize("content, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_overlay_is_one_line_with_the_name_of_the_file(refused, tmp_path, content, said):
    (tmp_path / "mine.json").write_bytes(content)
    line = refused("--config_file", "mine.json")
    assert "'mine.json'" in line and said in line


@pytest.mark.parametrize("options, said", OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_names_nothing_is_one_line(refused, options, said):
    assert said in refused(*options)


@pytest.mark.parametrize("content, said", [("a: [1", "it is no YAML"), ("1: 2", "no text"), ("- 1", "holds a list")])
def test_broken_yaml_is_one_line(refused, tmp_path, content, said):
    (tmp_path / "mine.yaml").write_text(content)
    assert said in refused("--config_file", "mine.yaml")


@pytest.mark.parametrize("model", ["learned", "learned/model.pt"])
def test_the_overlay_of_a_model_is_read_before_too(refused, tmp_path, model):
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "model.pt").touch()
    (tmp_path / "learned" / "overlay.json").write_text("{")
    assert "overlay.json' is no configuration" in refused("--model", model)


@pytest.mark.parametrize("command", ["learn", "evaluate"])
def test_nothing_is_prepared_with_an_overlay_that_cannot_be_read(monkeypatch, tmp_path, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.subprocess, "Popen", lambda *args, **kwargs: pytest.fail("it was started"))
    (tmp_path / "mine.json").write_text("[]")

    assert program([command, ".", "-o", "out", "--config_file", "mine.json"]) == 2
    assert "'mine.json' is no configuration: it holds a list" in capsys.readouterr().err


GOOD = {
    "nothing": {},
    "values": {"seed": 1, "organ_codes": {"liver": "1"}, "views": [[0, 1]]},
    "parts": {"backbone#sha256": None, "handlers#0": "@orientation", "views::0": [0, 2]},
    "references": {"image_size": "@encode_batch_size", "dropout": "$@eta + len(@organs)", "amp": "@evaluator#amp"},
    "its own entries": {"_size": 64, "image_size": "@_size"},
    "macros": {"handlers#0": "%handlers#1", "evaluator": "%evaluator"},
    "added": {"+handlers": ["@orientation"], "+organ_codes": {"aorta": "1"}, "+_own": [1]},
    "of the metadata": {"_version": "$@_meta_#version", "_all": "@_meta_"},
    "texts": {"output": "a@b 100%", "input": "x%y", "_text": "$'\\x40nowhere'"},
}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
def test_what_monai_reads_is_accepted(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    files = [BUNDLE / "configs" / "inference.json", path]

    refuse_unreadable(files, {"uncertainty": "4", "config_file": "x"})

    ConfigParser(ConfigParser.load_config_files([str(file) for file in files])).parse()


# of a key that stands twice MONAI takes the last, with a warning
@pytest.mark.parametrize("name", [name for name in BROKEN if "twice" not in name])
def test_what_is_refused_is_what_monai_would_trip_over(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.json"
    path.write_bytes(BROKEN[name][0])
    with pytest.raises(Exception):  # noqa: B017 - of any kind, which is why it is said before
        ConfigParser(ConfigParser.load_config_files([str(BUNDLE / "configs" / "inference.json"), str(path)])).parse()


def test_a_file_that_a_macro_names_is_looked_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"a": {"b": 1}}')
    Path("mine.json").write_text('{"_a": "%other.json#a#b", "_all": "%other.json"}')
    refuse_unreadable([BUNDLE / "configs" / "inference.json", Path("mine.json")], {})

    Path("mine.json").write_text('{"_a": "%other.json#a#c"}')
    with pytest.raises(UsageError, match="'mine.json': _a is '%other.json::a::c', in which %a#c stands"):
        refuse_unreadable([Path("mine.json")], {})


@pytest.mark.parametrize("files", [["train.json"], ["train.json", "evaluate.json"], ["inference.json"]], ids=" ".join)
def test_the_bundles_own_configurations_are_accepted(files):
    overlays = [] if files == ["inference.json"] else ["beyond_paper.json"]
    refuse_unreadable([BUNDLE / "configs" / name for name in [*files, *overlays]], {})
