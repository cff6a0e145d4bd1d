"""``diffusam``: which commands of the bundle its own stand for, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.command import runs
from scripts.command.program import COMMANDS, program
from scripts.command.runs import INFERRING, workflow
from scripts.data.datalists import inference_inputs
from scripts.errors import RefusedError
from scripts.inert import inert_json

from tests.conftest import save_dataset, save_volume, simple_image, simple_label
from tests.helpers.workflows import BUNDLE, ROOT


class Started:
    """Stands for the processes that the program starts: notes their words, does what they would have, and ends."""

    def __init__(self, monkeypatch) -> None:
        self.words: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.codes: dict[str, int] = {}  # by a word of the command
        self.effects: dict[str, object] = {}
        monkeypatch.setattr(runs.subprocess, "Popen", self.start)

    def start(self, words, env=None):
        self.environments.append(env)
        self.words.append(words[1:])
        for name, effect in self.effects.items():
            if name in words:
                effect(words)
        code = next((code for name, code in self.codes.items() if name in words), 0)
        return type("Process", (), {"wait": lambda process, timeout=None: code})()


@pytest.fixture
def started(monkeypatch, tmp_path) -> Started:
    monkeypatch.chdir(tmp_path)
    return Started(monkeypatch)


@pytest.fixture
def scan(tmp_path) -> Path:
    path = tmp_path / "scan.nii.gz"
    path.touch()
    return path


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def configs(words: list[str]) -> list[str]:
    """The configurations of a command, by their names."""
    return [Path(each).name for each in re.findall(r"[^'\[\],]+\.json", value(words, "--config_file"))]


# ---- segment


@pytest.mark.parametrize(
    "options, overlay, passed",
    [
        ([], "by_modality.json", {}),
        (["--modality", "mr"], "mr.json", {}),
        (["--modality=ct"], "ct.json", {}),
        (["--uncertainty", "4"], "by_modality.json", {"--uncertainty": "4"}),
        (["--overwrite"], "by_modality.json", {"--overwrite": "True"}),
        (["--backbone#image_size", "64"], "by_modality.json", {"--backbone#image_size": "64"}),
    ],
    ids=" ".join,
)
def test_segment_stands_for_inferring(started, scan, options, overlay, passed):
    assert program(["segment", "scan.nii.gz", "-o", "out", *options]) == 0

    (words,) = started.words
    assert words[:4] == ["-m", "monai.bundle", "run", "inferring"]
    assert configs(words) == [*(Path(each).name for each in runs.INFERRING), overlay]
    assert (value(words, "--input"), value(words, "--output")) == ("scan.nii.gz", "out")
    assert {option: value(words, option) for option in passed} == passed


def test_a_model_brings_its_own_settings(started, scan, tmp_path):
    (tmp_path / "mine/run").mkdir(parents=True)
    (tmp_path / "mine/run/model.pt").touch()
    (tmp_path / "mine/overlay.json").write_text("{}")

    assert program(["segment", "scan.nii.gz", "-o", "out", "-m", "mine"]) == 0

    (words,) = started.words
    assert configs(words) == [*(Path(each).name for each in runs.INFERRING), "overlay.json"]
    assert value(words, "--prior_file") == "./mine/run/model.pt"


@pytest.mark.parametrize("copied", [False, True])
def test_the_model_that_ships_is_asked_for_ct_and_mr_wherever_it_lies(started, scan, tmp_path, copied):
    """Its file records the window of CT, in which MR would be nonsense."""
    model = BUNDLE / "models/model.pt"
    if copied:
        model = Path(shutil.copy(model, tmp_path / "copy.pt"))

    assert program(["segment", "scan.nii.gz", "-o", "out", "-m", str(model)]) == 0

    (words,) = started.words
    assert configs(words) == [*(Path(each).name for each in runs.INFERRING), "by_modality.json"]


def test_several_processes_share_the_scans(started, scan):
    assert program(["segment", "scan.nii.gz", "-o", "out", "--processes", "4"]) == 0

    (words,) = started.words
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    assert words[:8] == [*distributed, "-m", "monai.bundle", "run"]


def test_options_of_the_demo_are_those_of_both_its_commands_and_of_segment_its_own(started, scan, tmp_path):
    report = tmp_path / "out/evaluation/report.html"
    report.parent.mkdir(parents=True)
    report.touch()

    program(["demo", "-o", "out", "--iterations", "5"])
    program(["segment", "scan.nii.gz", "-o", "out2"])

    assert [each.get("DIFFUSAM_SHARED_OPTIONS") for each in started.environments] == ["1", "1", None]
    assert [value(words, "--iterations") for words in started.words[:2]] == ["5", "5"]


def test_the_printed_line_is_what_is_run_from_any_folder(started, tmp_path, capsys):
    (tmp_path / "my scans").mkdir()
    (tmp_path / "my scans/it's.nii.gz").touch()

    program(["segment", "my scans/it's.nii.gz", "-o", "out"])

    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("$ "))
    assert shlex.split(line)[2:] == started.words[0]
    files = re.findall(r"'([^']+)'", value(started.words[0], "--config_file"))
    assert all(Path(each).is_file() for each in files) and Path(value(started.words[0], "--bundle_root")) == BUNDLE


# ---- which scans


def listed(words: list[str]) -> dict[str, str]:
    items = json.loads(Path(value(words, "--input")).read_text())
    return {item["case"]: item["image"] for item in items}


def test_several_scans_become_a_list_with_names_of_their_own(started, tmp_path):
    for case in ("p1", "p2"):
        (tmp_path / case).mkdir()
        (tmp_path / case / "CT.nii.gz").touch()
    (tmp_path / "other.mha").touch()

    assert program(["segment", "p1/CT.nii.gz", "p2/CT.nii.gz", "other.mha", "-o", "out"]) == 0

    names = {"p1_CT": "p1/CT.nii.gz", "p2_CT": "p2/CT.nii.gz", "other": "other.mha"}
    assert listed(started.words[0]) == {case: str(tmp_path / path) for case, path in names.items()}


@pytest.mark.parametrize("pattern, same_names", [("*.nii.gz", False), ("*/CT.nii.gz", True)])
def test_a_pattern_is_passed_on_where_its_files_have_names_of_their_own(started, tmp_path, pattern, same_names):
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        (tmp_path / case / "CT.nii.gz").touch()
        (tmp_path / f"{case}.nii.gz").touch()

    assert program(["segment", pattern, "-o", "out"]) == 0

    (words,) = started.words
    if same_names:
        assert sorted(listed(words)) == ["a_CT", "b_CT"]
    else:
        assert value(words, "--input") == pattern


@pytest.mark.parametrize(
    "text, cases",
    [
        ("image,case\na.nii.gz,first\nb.nii.gz,second\n", ["first", "second"]),
        ("id;path\n1;a.nii.gz\n2;b.nii.gz\n", ["1", "2"]),
        ("a.nii.gz\nb.nii.gz\n", ["a", "b"]),
        ("\ufeffimage\n\na.nii.gz\n", ["a"]),
        ("\n\nimage;case\na.nii.gz;x,1\n", ["x,1"]),
        ("sep=;\nimage;case\na.nii.gz;x\nb.nii.gz;y\n", ["x", "y"]),
        ("\ufeffsep=\t\r\nimage\tcase\r\na.nii.gz\tx\r\n", ["x"]),
        ("image,case\ra.nii.gz,x\rb.nii.gz,y\r", ["x", "y"]),
        ("image,case\na.nii.gz,x\na.nii.gz,y\na.nii.gz,x\n", ["x", "y"]),
        ("case,filename\np1,a.nii.gz\np2,b.nii.gz\n", ["p1", "p2"]),
        ("Image Path,ID\na.nii.gz,p1\nb.nii.gz,p2\n", ["p1", "p2"]),
        ("ID,file_name\np1,a.nii.gz\n", ["p1"]),
        ("case_id,image\np1,a.nii.gz\n", ["p1"]),
        ("image,series\na.nii.gz,\n", ["a"]),
    ],
    ids=["columns", "semicolons", "no header", "a mark of Windows and an empty line", "empty lines before semicolons"]
    + ["Excel's separator", "Excel's tabs", "ends of lines of old Macs", "one image of two names"]
    + ["filename", "Image Path", "file_name", "case_id", "series of none"],
)
def test_a_csv_lists_scans_beside_it(started, tmp_path, text, cases):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/scans.csv").write_text(text, encoding="utf-8")

    assert program(["segment", "lists/scans.csv", "-o", "out"]) == 0

    files = listed(started.words[0])
    assert list(files) == cases and files[cases[0]] == str(tmp_path / "lists/a.nii.gz")


def test_a_cell_of_a_csv_is_a_name_as_it_stands(started, tmp_path):
    (tmp_path / "scans.csv").write_text('image,case\na.nii.gz,"x,\u2028y"\nb.nii.gz,\x85\n', encoding="utf-8")

    assert program(["segment", "scans.csv", "-o", "out"]) == 0

    assert list(listed(started.words[0])) == ["x,\u2028y", "b"]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "it's\x1b \\ \u202eb", "caf\udce9"])
def test_no_name_moves_the_cursor_and_the_printed_line_is_what_is_run_all_the_same(
    started, scan, name, capsys, monkeypatch
):
    Path(name).mkdir()
    scan.rename(Path(name) / "scan.nii.gz")
    assert program(["segment", f"{name}/scan.nii.gz", "-o", f"{name}/out"]) == 0

    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    (line,) = (line for line in printed.splitlines() if line.startswith("$ "))
    monkeypatch.undo()  # of what stands for processes
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line[2:]}"], capture_output=True, check=True).stdout
    assert [os.fsdecode(word) for word in words.split(b"\0")][1:-1] == started.words[0]


def test_no_name_in_a_prepared_folder_moves_the_cursor(started, tmp_path, capsys):
    for case in "abc":
        for kind in ("images", "labels"):
            (tmp_path / "mine" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / kind / f"x\x1b[2J\n{case}.nii.gz").touch()
    program(["prepare", "mine", "-o", "out", "--label_map", "{'spleen': 1}"])
    said = capsys.readouterr()
    assert "{case}" in said.out and all(line.isprintable() for line in (said.out + said.err).splitlines())


@pytest.mark.parametrize(
    "text, said",
    [
        ("image\n" + "a" * 200_000, "cannot be read as a CSV (field larger than"),
        ('image\n"a.nii.gz\nb.nii.gz\n', "cannot be read as a CSV (unexpected end of data)"),
        ("image,case\nscans, old/a.nii.gz,x\n", "has the row 'scans,old/a.nii.gz,x', expected what the header names"),
        ("case,image\nx\ny,a.nii.gz\n", "has the row 'x', expected what the header names: case,image"),
        ("image,image\na.nii.gz,b.nii.gz\n", "has the column 'image' twice"),
        ("image,case,Case\na.nii.gz,x,y\n", "has the column 'case' twice"),
        ("case,where\np1,a.nii.gz\n", "has the columns case, where, expected one of images that is called image"),
        ("Patient_ID;Scan no\n1;a.nii.gz\n", "has the columns Patient_ID, Scan no, expected one of images"),
        ("image,case\na.nii.gz,x\nsub/a.nii.gz,x\n", "The case 'x' is listed with 2 images"),
        ("image,Series\na,\nb,portal\n", "has the series 'portal' for 'b', expected none"),
    ],
    ids=["a long cell", "an open quote", "a comma in a name", "a row without an image"]
    + ["two columns of images", "two columns of names", "no column of images", "no column of images, of patients"]
    + ["one name of two images", "a series"],
)
def test_a_csv_that_may_mean_something_else_is_refused(started, tmp_path, capsys, text, said):
    (tmp_path / "scans.csv").write_text(text, encoding="utf-8")

    assert program(["segment", "scans.csv", "-o", "out"]) == 1
    assert said in capsys.readouterr().err and not started.words


@pytest.mark.parametrize("key", [None, "test", "images"])
def test_a_list_in_json_that_says_a_series_of_each_image_is_refused(started, tmp_path, capsys, key):
    entries = [{"image": "a", "series": None}, {"image": "b", "series": 3}]
    (tmp_path / "scans.json").write_text(json.dumps({"about": [], key: entries} if key == "test" else entries))
    if key == "images":
        (tmp_path / "scans.json").write_text(json.dumps({key: entries}))

    assert program(["segment", "scans.json", "-o", "out"]) == 1
    said = capsys.readouterr().err
    assert "scans.json' has the series '3' for 'b', expected none" in said and "--series" in said and not started.words


@pytest.mark.parametrize("text", ['["a.nii.gz"]', '{"training": [{"series": 1}], "test": ["a"]}', "[", '{"test": 5}'])
def test_any_other_list_in_json_is_left_to_the_workflow(started, tmp_path, text):
    (tmp_path / "scans.json").write_text(text)

    assert program(["segment", "scans.json", "-o", "out"]) == 0
    assert value(started.words[0], "--input") == "scans.json"


def test_reasons_of_what_cannot_be_taken_in_several_folders_are_kept(started, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.nii.gz").touch()
    (tmp_path / "one" / "more.zip").touch()

    assert program(["segment", "one", "two", "-o", "out"]) == 0

    items = inference_inputs(value(started.words[0], "--input"))
    problems = {item["case"]: item.get("problem") for item in items}
    said = f"'{tmp_path}/one/more.zip': an archive (.zip), which may hold images. Extract it."
    assert problems == {"one": None, "two": None, "more.zip": said}


def test_scans_of_one_folder_and_name_are_told_apart_by_their_suffixes(started, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("x.nii", "x.nrrd", "y.nii"):
            (tmp_path / folder / name).touch()

    assert program(["segment", "one/x.nii", "one/x.nrrd", "one/y.nii", "two/x.nii", "-o", "out"]) == 0

    items = inference_inputs(value(started.words[0], "--input"))
    assert [item["case"] for item in items] == ["one_x.nii", "one_x.nrrd", "y", "two_x"]


def test_scans_and_results_in_folders_that_are_called_null(started, scan, capsys):
    folder = scan.with_name("null")
    folder.mkdir()
    scan.rename(folder / scan.name)

    assert program(["segment", "null", "-o", "null/None"]) == 0
    assert [value(started.words[0], option) for option in ("--input", "--output")] == ["./null", "null/None"]


# ---- wrong use, bad input, exit codes


@pytest.mark.parametrize(
    "words, said",
    [
        (["segmnt"], "There is no command segmnt; did you mean segment"),
        (["segment", "scan.nii.gz", "-o", "out", "--uncertanty", "4"], "did you mean --uncertainty"),
        (["segment", "scan.nii.gz", "-o", "out", "-x"], "There is no option -x"),
        (["segment", "scan.nii.gz"], "needs a folder for its results: -o OUT"),
        (["segment", "-o", "out"], "segment needs a scan"),
        (["segment", "scan.nii.gz", "-o"], "--output has no value"),
        (["segment", "scan.nii.gz", "-o", "a", "-o", "b"], "--output is given twice"),
        (["segment", "scan.nii.gz", "-o", "None"], "--output is None. Is a variable not set?"),
        (["segment", "scan.nii.gz", "-o", "out", "--series", "null"], "--series is null, of which Fire makes a text"),
        (["learn", ".", "-o", "out", "--start_from", "null"], "--start_from is null, of which Fire makes a text"),
        (["segment", "scan.nii.gz", "-o", "out", "--modality", "pet"], "expected ct or mr"),
        (["segment", "scan.nii.gz", "-o", "out", "--processes", "0"], "--processes is '0', expected a number from 1"),
        (["segment", "scan.nii.gz", "-o", "out", "--processes", "²"], "--processes is '²', expected a number from 1"),
        (["segment", "scan.nii.gz", "-", "-o", "out"], "'-' names nothing that can be read"),
        (
            ["segment", "scan.nii.gz", "-o", "out", "--share", "17/16"],
            "--share is '17/16', expected the number of a share",
        ),
        (["segment", "-o", "out", "--overwrite", "scan.nii.gz", "scan.nii.gz"], "--overwrite is 'scan.nii.gz'"),
        (["learn", "-o", "out"], "learn needs one folder, and got nothing"),
        (["prepare", ".", "-o", "out", "--label_map", "stomach=1"], "--label_map is 'stomach=1', expected organs and"),
        (["evaluate", ".", "-o", "out", "--label_map", "[1, 2]"], "--label_map is '[1, 2]', expected organs and"),
        (["learn", ".", "-o", "out", "--background_values", "seven"], "--background_values is 'seven', expected"),
        (["prepare", "scan.nii.gz", "-o", "out"], "'scan.nii.gz' is a file, and prepare needs the folder"),
        (["evaluate", "scan.nii.gz", "-o", "out"], "Lists of scans are for `diffusam segment`"),
        (["learn", "a", "b", "-o", "out"], "learn needs one folder, and got 2 words"),
        (["learn", ".", "-o", "out", "--image", "{case}.nii"], "--image and --label belong together"),
        (["learn", ".", "-o", "out", "--iteration", "5"], "did you mean --iterations"),
        (["demo", "out"], "demo takes no folder"),
        (["demo", "-o", "a#b"], "in which MONAI gives $, @, % or # a meaning"),
        (["doctor", "now"], "doctor takes no word"),
        (["prepare", ".", "-o", "out", "--iterations", "5"], "There is no option --iterations"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_use_is_one_line_and_exit_code_2(started, scan, capsys, words, said):
    assert program(words) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert started.words == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["segment", "nothing.nii.gz", "-o", "out"], "There is no file or folder 'nothing.nii.gz'"),
        (["segment", "*.mha", "-o", "out"], "No file matches the pattern '*.mha'"),
        (["segment", "empty.csv", "-o", "out"], "names no image"),
        (["segment", "scan.nii.gz", "-o", "scan.nii.gz/out"], "Nothing can be written to --output"),
        (["segment", "scan.nii.gz", "-o", "out", "-m", "nowhere"], "There is no model at 'nowhere'"),
        (["learn", "nowhere", "-o", "out"], "There is no folder 'nowhere'"),
        (["learn", "empty", "-o", "out"], "No images with labels of their names in 'empty'. The folder is empty."),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_1(started, scan, tmp_path, capsys, words, said):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty").mkdir()

    assert program(words) == 1

    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert started.words == []


OUT = ["-o", "out"]
EMPTY = "is empty, expected a value. Is a variable of the shell not set?"


@pytest.mark.parametrize(
    "words, said",
    [
        (["segment", "scan.nii.gz", "-o", ""], f"The word behind -o {EMPTY}"),
        (["segment", "scan.nii.gz", "--output="], f"--output {EMPTY}"),
        (["segment", "", *OUT], f"A word {EMPTY}"),
        (["segment", "scan.nii.gz", " ", *OUT], f"A word {EMPTY}"),
        (["segment", "scan.nii.gz", *OUT, "--series", ""], f"The word behind --series {EMPTY}"),
        (["segment", "scan.nii.gz", *OUT, "-m", ""], f"The word behind -m {EMPTY}"),
        (["learn", "", *OUT], f"A word {EMPTY}"),
        (["evaluate", "mine", "-o", ""], f"The word behind -o {EMPTY}"),
        (["prepare", "mine", "-o", ""], f"The word behind -o {EMPTY}"),
        (["demo", "-o", ""], f"The word behind -o {EMPTY}"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_an_empty_word_is_no_working_directory(started, scan, tmp_path, capsys, words, said):
    save_dataset(tmp_path / "mine")

    assert program(words) == 2

    assert capsys.readouterr().err == f"error: {said}\n"
    assert started.words == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["segment", "scan.nii.gz", *OUT, "--input", "b"], "--input: which scans there are is said by SCAN"),
        (["segment", "scan.nii.gz", *OUT, "--output_dir", "b"], "--output_dir: where results go is said by --output"),
        (["segment", "scan.nii.gz", *OUT, "-m", "learned", "--prior_file", "b"], "--prior_file: the model is said by"),
        (["segment", "scan.nii.gz", *OUT, "-m", "learned", "--config_file", "a.json"], "'a.json' has prior_file: the"),
        (
            ["segment", "scan.nii.gz", *OUT, "--config_file", "b.json"],
            "'b.json' has output: where results go is said by",
        ),
        (["learn", "mine", *OUT, "--output_dir", "b"], "--output_dir: where results go is said by --output"),
        (["learn", "mine", *OUT, "--evaluation_dir", "b"], "--evaluation_dir: where results go is said by --output"),
        (["learn", "mine", *OUT, "--prior_file", "b"], "--prior_file: where the model is, is known from the folder"),
        (["learn", "mine", *OUT, "--image_pattern", "b"], "--image_pattern: where images are is said by --image"),
        (["learn", "mine", *OUT, "--config_file", "a.json"], "'a.json' has prior_file: where the model is"),
        (["evaluate", "mine", *OUT, "--prior_file", "b"], "--prior_file: where the model is, is known from the folder"),
        (["evaluate", "mine", *OUT, "--train_cases", "['a']"], "--train_cases: every labelled scan of the folder"),
        (["evaluate", "learned", "--output_dir", "b"], "--output_dir: where results go is said by the folder"),
        (["evaluate", "learned", "--label_map", "{'a': 1}"], "'learned' is prepared already, and its overlay.json"),
        (["evaluate", "learned", "--modality", "mr", "--overwrite"], "says what --modality, --overwrite would"),
        (["demo", *OUT, "--output_dir", "b"], "--output_dir: where results go is said by --output"),
        (["demo", *OUT, "--dataset_dir", "b"], "--dataset_dir: the demo has data of its own"),
        (["prepare", "mine", *OUT, "--channel", "0"], "--channel is for files that a dataset.json lists"),
        (["learn", "listed", *OUT, "--label_map", "{'a': 1}"], "--label_map has no effect here: dataset.json lists"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_a_command_says_itself_is_not_said_twice(started, scan, tmp_path, capsys, words, said):
    save_dataset(tmp_path / "mine")
    learned_at(tmp_path / "learned")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed/dataset.json").write_text(json.dumps({"training": [{"image": "a", "label": "b"}]}))
    (tmp_path / "a.json").write_text(json.dumps({"prior_file": "b", "iterations": 5}))
    (tmp_path / "b.json").write_text(json.dumps({"output": "elsewhere"}))

    assert program(words) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert started.words == []


def learned_at(folder: Path, **changes) -> Path:
    """A folder as ``learn`` leaves it, with the smallest model that can be read."""
    import torch

    (folder / "run/evaluation").mkdir(parents=True)
    torch.save({"inference": {}, "prior": {"weight": torch.zeros(1)}}, folder / "run/model.pt")
    places = {"output_dir": str(folder / "run"), "prior_file": str(folder / "run/model.pt")}
    files = {"dataset_dir": "/scans", "image_pattern": "{case}.nii", "label_pattern": "{case}_seg.nii"}
    overlay = {**places, **files, "train_cases": ["a"], "test_cases": ["b"], **changes}
    (folder / "overlay.json").write_text(inert_json(overlay))
    return folder


def settings_of(words: list[str]) -> dict:
    """The last overlay of a command."""
    return json.loads(Path(re.findall(r"[^'\[\],]+\.json", value(words, "--config_file"))[-1]).read_text())


@pytest.mark.parametrize("given", [[], ["--model", "other"]], ids=["its own model", "another"])
@pytest.mark.parametrize("moves", [False, True], ids=["copied", "moved"])
def test_a_learned_folder_is_evaluated_where_it_lies(started, tmp_path, capsys, moves, given):
    original = learned_at(tmp_path / "learned", label_pattern=str(tmp_path / "learned/label/{case}.nii.gz"))
    learned_at(tmp_path / "other")
    (shutil.move if moves else shutil.copytree)(original, tmp_path / "there")

    assert program(["evaluate", "there", *given]) == 0

    there = tmp_path / "there"
    places = settings_of(started.words[0])
    model = tmp_path / (given[1] if given else "there") / "run/model.pt"
    assert (places["output_dir"], places["prior_file"]) == (str(there / "run"), str(model))
    assert places["label_pattern"] == str(there / "label/{case}.nii.gz") and "dataset_dir" not in places
    assert "there/run/evaluation" in capsys.readouterr().out


def test_an_evaluation_that_goes_elsewhere_is_named_there(started, tmp_path, capsys):
    learned_at(tmp_path / "learned")
    (tmp_path / "second").mkdir()

    assert program(["evaluate", "learned", "--evaluation_dir", "./second"]) == 0

    assert value(started.words[0], "--evaluation_dir") == "./second"
    assert "Results are in 'second'." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["learn", "evaluate", "prepare"])
@pytest.mark.parametrize(
    "option, text",
    [("trusted_form", "sform"), ("default_axcodes", "LAS"), ("series", "3"), ("background_values", "[0, 7]")],
)
def test_how_files_are_read_reaches_the_preparation(started, tmp_path, command, option, text):
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(["b"])
    (tmp_path / "out/run/evaluation").mkdir(parents=True)
    (tmp_path / "out/evaluation").mkdir()

    assert program([command, "mine", *OUT, f"--{option}", text]) == 0

    preparation, *workflows = started.words
    assert value(preparation, f"--{option}") == text
    # the labels' values are in the overlay by then
    assert [f"--{option}" in words for words in workflows] == [option != "background_values"] * len(workflows)


@pytest.mark.parametrize("modality", [[], ["--modality", "mr"]], ids=["not said", "said"])
def test_the_modality_reaches_a_list_of_files(started, tmp_path, modality):
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed/dataset.json").write_text(json.dumps({"training": [{"image": "a", "label": "b"}]}))

    assert program(["prepare", "listed", *OUT, *modality]) == 0

    (words,) = started.words
    assert words[1] == "decathlon" and words[5:] == modality


def test_two_commands_that_share_an_output_have_their_own_lists(started, tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.nii.gz").touch()

    for first, second in ("ab", "cd", "ab"):
        assert program(["segment", f"{first}.nii.gz", f"{second}.nii.gz", *OUT]) == 0

    assert [list(listed(words)) for words in started.words] == [["a", "b"], ["c", "d"], ["a", "b"]]
    assert len(list((tmp_path / "out").glob("inputs-*.json"))) == 2


def record(output: Path, **status: str) -> None:
    output.mkdir(exist_ok=True)
    cases = {case: {"status": each} for case, each in status.items()}
    (output / "results.json").write_text(json.dumps({"configurations": {}, "cases": cases}))


@pytest.mark.parametrize(
    "processes, code, before, after, expected",
    [
        (1, 0, {}, {"a": "done"}, 0),
        (2, 1, {}, {"a": "done", "b": "failed"}, 3),
        (2, 1, {}, {"a": "failed"}, 1),
        (2, 1, {"a": "done", "b": "failed"}, {"a": "done", "b": "failed"}, 1),
        (1, 3, {}, {}, 3),
        (1, 1, {}, {"a": "done", "b": "failed"}, 1),  # whose records could not be written to the end
        (1, -9, {}, {}, 137),
        (1, 130, {}, {"a": "done", "b": "running"}, 130),
    ],
    ids=[
        *("all done", "some failed", "all failed", "nothing was tried", "said by the workflow", "broken off", "killed"),
        "interrupted",
    ],
)
def test_the_exit_code_says_whether_some_have_failed(started, scan, tmp_path, processes, code, before, after, expected):
    if before:
        record(tmp_path / "out", **before)
    started.codes["inferring"] = code
    started.effects["inferring"] = lambda words: record(tmp_path / "out", **after)

    assert program(["segment", "scan.nii.gz", "-o", "out", "--processes", str(processes)]) == expected


def test_of_several_processes_one_that_broke_off_is_no_end(started, scan, tmp_path):
    """Its journal is left, and the cases in it have not been tried."""
    started.codes["inferring"] = 1
    started.effects["inferring"] = lambda words: (
        record(tmp_path / "out", a="done", b="failed"),
        (tmp_path / "out/.running").mkdir(),
    )

    assert program(["segment", "scan.nii.gz", "-o", "out", "--processes", "2"]) == 1


@pytest.mark.parametrize("cases", ['{"a": "done"}', '["a"]', "3", '{"a": null}'])
def test_a_record_of_something_else_does_not_stand_in_the_way_of_the_exit_code(started, scan, tmp_path, cases):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(f'{{"configurations": {{}}, "cases": {cases}}}')
    started.codes["inferring"] = 1

    assert program(["segment", "scan.nii.gz", "-o", "out"]) == 1


# ---- learn, evaluate, demo


def prepared(test_cases: list[str], **more):
    def write(words) -> None:
        content = {"train_cases": ["a"], "test_cases": test_cases, **more}
        Path(value(words, "--output"), "overlay.json").write_text(json.dumps(content))

    return write


def names(started: Started) -> list[str]:
    return ["prepare" if words[0].endswith("prepare") else words[3] for words in started.words]


@pytest.mark.parametrize("test_cases, steps", [(["b", "c"], ["prepare", "training", "evaluating"]), ([], None)])
def test_learn_prepares_trains_and_evaluates_what_is_left(started, tmp_path, test_cases, steps):
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(test_cases)

    assert program(["learn", "mine", "-o", "out", "--iterations", "7", "--train_cases", "['a']"]) == 0

    assert names(started) == (steps or ["prepare", "training"])
    preparation, training, *_ = started.words
    assert value(preparation, "--image") == "image_{case}.nii.gz" and value(preparation, "--modality") == "auto"
    assert value(preparation, "--train_cases") == "['a']"
    assert configs(training)[-2:] == ["few_shot.json", "overlay.json"] and value(training, "--iterations") == "7"
    assert all(configs(words)[-2:] == ["few_shot.json", "overlay.json"] for words in started.words[1:])


@pytest.mark.parametrize(
    "before, kept",
    [({"train_cases": ["a"], "test_cases": []}, True), ({"train_cases": ["b"], "test_cases": ["c"]}, False)],
    ids=["another test case", "another training"],
)
def test_what_is_learned_in_place_of_something_else_begins_anew(started, tmp_path, capsys, before, kept):
    """Or the new overlay would stand beside the model of the old one."""
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(["b"])
    files = [tmp_path / "out/run" / name for name in ("checkpoint.pt", "model.pt")]
    files[0].parent.mkdir(parents=True)
    for each in files:
        each.touch()
    (tmp_path / "out/overlay.json").write_text(json.dumps(before))

    assert program(["learn", "mine", "-o", "out", "--overwrite"]) == 0

    assert [each.exists() for each in files] == [kept, kept]
    assert ("it begins anew" in capsys.readouterr().out) == (not kept)


def test_a_model_without_scans_to_evaluate_it_on_says_which_would_do(tmp_path, capsys):
    learned_at(tmp_path / "learned", test_cases=[])

    assert program(["evaluate", str(tmp_path / "learned")]) == 1

    assert "have trained the model" in (said := capsys.readouterr().err) and "diffusam evaluate FOLDER" in said


def test_settings_of_an_evaluation_lie_with_its_results(started, tmp_path):
    folder = learned_at(tmp_path / "learned")
    before = sorted(folder.rglob("*"))

    assert program(["evaluate", str(folder), "--evaluation_dir", str(tmp_path / "mine")]) == 0

    assert sorted(folder.rglob("*")) == before and len(list((tmp_path / "mine").glob("*.json"))) == 2


def alone(*words: str) -> subprocess.Popen:
    """A command in a session of its own, as a supervisor starts it."""
    code = (
        # which a shell's background jobs ignore, as this test may be one
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from scripts.command import runs; sys.exit(runs.run({list(words)!r}, say=False))"
    )
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_program_alone_ends_the_command_too(number):
    code = "import time; print('at work', flush=True); time.sleep(60)"
    process = alone("python", "-c", code)
    assert process.stdout.readline() == "at work\n"

    process.send_signal(number)

    assert process.wait(20) == 128 + number


@pytest.mark.parametrize("step", ["folder", "training", "evaluating"])
def test_a_step_that_fails_is_the_last(started, tmp_path, step):
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(["b"])
    started.codes[step] = 1

    assert program(["learn", "mine", "-o", "out"]) == 1

    assert step in started.words[-1]


def test_evaluating_a_folder_tests_all_of_it(started, tmp_path):
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(["b", "c"])
    started.effects["evaluating"] = lambda words: (
        (tmp_path / "out/evaluation").mkdir(),
        (tmp_path / "out/evaluation/report.html").touch(),
    )

    assert program(["evaluate", "mine", "-o", "out"]) == 0

    assert names(started) == ["prepare", "evaluating"]
    (own,), (settings,) = ((tmp_path / "out").glob(f"{name}-*.json") for name in ("evaluate", "model_settings"))
    cases = json.loads(own.read_text())
    assert (cases["train_cases"], cases["test_cases"]) == ([], ["a", "b", "c"])
    assert cases["prior_file"] == str(BUNDLE / "models/model.pt")
    # what the model's file records goes before the configurations' own settings, and the labels' values do not
    assert configs(started.words[-1])[-3:] == ["overlay.json", settings.name, own.name]
    recorded = json.loads(settings.read_text())
    assert recorded["slice_context"] is True and recorded["named_memories"] is True
    assert recorded["backbone_checkpoint"] == str(BUNDLE / "models/sam2_nano.pt") and "label_map" not in recorded


@pytest.mark.parametrize("modality, of_model", [("ct", True), ("mr", False)])
def test_data_are_scaled_as_they_are_where_the_model_records_another_way(started, tmp_path, modality, of_model):
    """MR in the window of CT, which the file that ships records, had a Dice of 0.58 in place of 0.89."""
    save_dataset(tmp_path / "mine")
    intensity = json.loads((BUNDLE / f"configs/{modality}.json").read_text())["intensity"]
    started.effects["folder"] = prepared(["b"], intensity=intensity)
    started.effects["evaluating"] = lambda words: (tmp_path / "out/evaluation").mkdir()

    assert program(["evaluate", "mine", "-o", "out", "--modality", modality]) == 0

    (settings,) = (tmp_path / "out").glob("model_settings-*.json")
    assert ("intensity" in json.loads(settings.read_text())) is of_model


SHIPPED = ["spleen", "right kidney", "left kidney", "liver"]


@pytest.mark.parametrize(
    "named, background, expected",
    [
        ({"spleen": 9}, [0, 1, 12], [9, 13, 14, 15]),
        ({"liver": [6, 20], "spleen": 1}, [0], [1, 21, 22, [6, 20]]),
        ({"liver": 4, "left kidney": 3, "spleen": 1, "right kidney": 2}, [0], [1, 2, 3, 4]),
        (dict(zip(SHIPPED, [4, 3, 2, 1])), [0], None),
    ],
    ids=["one", "two", "all in another order", "all"],
)
def test_organs_of_the_model_that_nobody_names_are_not_evaluated(started, tmp_path, named, background, expected):
    """They get values that are in no label; see OrganMetricHandler."""
    save_dataset(tmp_path / "mine")
    started.effects["folder"] = prepared(["b"], label_map=named, background_values=background)
    started.effects["evaluating"] = lambda words: (tmp_path / "out/evaluation").mkdir()

    assert program(["evaluate", "mine", "-o", "out", "--label_map", str(named)]) == 0

    label_map = json.loads(next((tmp_path / "out").glob("evaluate-*.json")).read_text()).get("label_map")
    assert (label_map and list(label_map.items())) == (expected and list(zip(SHIPPED, expected)))


@pytest.mark.parametrize("given", [True, False], ids=["by an option", "by the data"])
def test_an_organ_that_the_model_does_not_have_is_refused(started, tmp_path, capsys, given):
    save_dataset(tmp_path / "mine")
    named = {"spleen": 1, "stomach": 2}
    started.effects["folder"] = prepared(["b"], label_map=named)

    assert program(["evaluate", "mine", "-o", "out", *(["--label_map", str(named)] if given else [])]) == 1

    said = capsys.readouterr().err
    assert f"has the organs {', '.join(SHIPPED)}, and the labels name others: stomach" in said
    # before anything is prepared with what was said
    assert len(started.words) == (0 if given else 1) and (tmp_path / "out/overlay.json").is_file() != given


def test_the_demo_is_that_of_the_readme(started, tmp_path):
    started.effects["evaluating"] = lambda words: (
        (tmp_path / "out/evaluation").mkdir(parents=True),
        (tmp_path / "out/evaluation/report.html").touch(),
    )

    assert program(["demo", "-o", "out"]) == 0

    training, evaluating = started.words
    assert configs(training) == [Path(each).name for each in runs.TRAINING]
    assert configs(evaluating) == [Path(each).name for each in runs.EVALUATING]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").translate({ord(mark): None for mark in "'\"[]"})
    for each in (runs.TRAINING, runs.EVALUATING):
        assert f"--config_file {','.join(each)}\n" in readme


def test_the_bundles_own_preparation_is_passed_through(started):
    assert program(["prepare", "btcv", "RawData.zip", "--output", "data"]) == 0

    assert started.words[0][1:] == ["btcv", "RawData.zip", "--output", "data"]


# ---- help


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_screen(command, capsys):
    assert program([command, "-h"] if command else ["-h"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert 0 < len(lines) <= 24 and max(map(len, lines)) <= 80


def test_every_option_of_a_command_is_in_its_help(capsys):
    import inspect

    for name, (command, _) in COMMANDS.items():
        program([name, "-h"])
        shown = capsys.readouterr().out
        own = [
            parameter.name for parameter in inspect.signature(command).parameters.values() if parameter.kind == 3
        ]  # that have a name alone
        assert [each for each in own if f"--{each}" not in shown] == [], name


def test_help_imports_neither_torch_nor_monai():
    code = "import sys, diffusam\ntry: diffusam.main()\nfinally: print(*{'torch', 'monai'} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    run = subprocess.run([sys.executable, "-c", code, "segment", "-h"], env=environment, capture_output=True, text=True)

    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, ""), run.stderr


# ---- all of it


@pytest.mark.slow
def test_a_scan_is_segmented_in_one_command(tmp_path):
    save_volume(tmp_path / "ct.nii.gz", simple_image(simple_label()))
    save_volume(tmp_path / "mr.nii.gz", abs(simple_image(simple_label())))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "diffusam",
            "segment",
            "ct.nii.gz",
            "mr.nii.gz",
            "-o",
            "out",
            "--device",
            "$torch.device('cpu')",
        ],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
    )

    cases = json.loads((tmp_path / "out/results.json").read_text())["cases"]
    assert run.returncode == 3, run.stderr
    assert (cases["ct"]["status"], cases["mr"]["status"]) == ("done", "failed")
    assert (tmp_path / "out/ct_seg.nii.gz").is_file() and "--modality mr" in cases["mr"]["error"]


def test_the_program_itself_says_what_comes_next(started, scan):
    program(["segment", str(scan), "-o", "out"])

    (environment,) = started.environments
    assert environment["DIFFUSAM_NEXT"] == "0"


def test_a_preparation_says_what_comes_next(started, tmp_path):
    program(["prepare", "btcv", str(tmp_path / "RawData.zip"), "--output", "out"])

    (environment,) = started.environments
    assert "DIFFUSAM_NEXT" not in environment


def test_a_bundle_in_a_folder_that_monai_cannot_read_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="MONAI reads no path with # in it. Change into that folder first"):
        workflow("inferring", INFERRING, options={}, bundle=tmp_path / "c#" / "bundle")
