"""The tables: every row through its own command, results kept, spread over runs, published numbers kept apart."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from benchmarks.adaptation.run import COMMANDS as ADAPTATION
from benchmarks.baselines.run import COMMANDS as BASELINES
from benchmarks.tables import plan, report, running
from benchmarks.tables.plan import TABLES, Table, TableError
from benchmarks.tables.running import run_steps
from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers.workflows import BUNDLE, ROOT, SIZE, save_start, write_overlay

CONFIGS = ["configs/train.json", "configs/evaluate.json"]


def write_table(folder: Path, **content) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps({"title": "A table", "config_file": CONFIGS, "runs": {"1": {}}, **content}))
    return path


def write_result(
    table: Table, run: str, row: str, organs: list[float | None], finished: bool = True, **content
) -> None:
    mean = sum(each for each in organs if each is not None) / len([each for each in organs if each is not None])
    path = table.result(run, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"dice_fate": {"mean": 0.5}, "seconds_training": 10.0, "seconds_per_volume": 2.0} | content
    dice = {"organ_means": organs, "mean": mean}
    path.write_text(json.dumps({"organs": ["spleen", "liver"], "cases": ["d"], "dice": dice, **content}))
    if finished:
        table.mark_finished(run, row)


def run_table(table: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.tables", str(table), "--output", str(output), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # of this checkout, whatever is installed
    return subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, timeout=900)


def test_rows_are_trained_for_run_and_marked_by_one_command(tmp_path, write_dataset, backbone_file):
    overlay = write_overlay(tmp_path / "user", write_dataset(tmp_path / "dataset"), backbone_file, test_cases=["c"])
    rows = {
        "DiffuSAM": {"command": "diffusam", "training": "diffusam"},
        "SAM": {"command": "sam"},
        "SAM2 (box)": {"command": "sam2_box"},
    }
    trainings = {"diffusam": {"command": "training", "settings": {"iterations": 2}}}
    configs = [*CONFIGS, str(overlay)]
    table = write_table(tmp_path, config_file=configs, rows=rows, trainings=trainings)
    output = tmp_path / "out"

    first = run_table(table, output, "--jobs", "2")

    assert first.returncode == 0, first.stderr
    content = json.loads((output / "table.json").read_text())["rows"]
    for name in ("DiffuSAM", "SAM2 (box)"):
        assert 0 <= content[name]["mean"]["mean"] <= 1 and content[name]["mean"]["n"] == 1
    assert content["DiffuSAM"]["seconds_training"]["mean"] > 0
    assert "checkpoint" in content["SAM"]["runs"]["1"]["not_run"]
    assert (output / "table.png").stat().st_size > 5000
    assert "- SAM: needs a SAM checkpoint" in (output / "table.md").read_text()

    trained = list(tmp_path.glob("trainings/training_*/model.pt"))
    results = [path for path in output.glob("1/*.json") if path.stem != "SAM"]
    made = {path: path.stat().st_mtime_ns for path in [*results, *trained]}
    again = run_table(table, output)
    assert again.returncode == 0 and "There already: 1: DiffuSAM." in again.stdout
    assert "1: SAM ..." in again.stdout and "1: SAM2 (box) ..." not in again.stdout  # what was not run is tried again
    assert len(trained) == 1
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


@pytest.fixture
def two_runs(tmp_path) -> Table:
    rows = {
        "Start": {"command": "unet", "published": [50.0, 60.0, 55.0]},
        "Better": {"command": "unet"},
        "Bound": {"command": "true_memory"},
        "Not there": {"command": "fate_sam", "published": [70.0, 80.0, 75.0]},
    }
    runs = {"a": {"seed": 0}, "b": {"seed": 1}}
    gap = {"from": "Start", "to": "Bound"}
    path = write_table(tmp_path, rows=rows, runs=runs, gap=gap, published="Some paper's Table 1")
    table = Table.read(path, tmp_path / "out", {})
    for run, start in (("a", 0.4), ("b", 0.6)):
        write_result(table, run, "Start", [start, start])
        write_result(table, run, "Better", [start + 0.1, start + 0.1])
        write_result(table, run, "Bound", [1.0, 1.0])
    return table


def test_numbers_are_means_and_spreads_over_runs(two_runs):
    rows = report.collect(two_runs)["rows"]

    assert rows["Start"]["mean"] == {"mean": 0.5, "sd": pytest.approx(0.02**0.5), "n": 2}
    assert [each["mean"] for each in rows["Start"]["organs"]] == [0.5, 0.5]
    assert rows["Start"]["dice_fate"] == {"mean": 0.5, "sd": 0.0, "n": 2}
    # 0.1 of 0.6, and 0.1 of 0.4
    assert rows["Better"]["gap_closed"]["mean"] == pytest.approx((1 / 6 + 1 / 4) / 2)
    assert rows["Bound"]["gap_closed"]["mean"] == 1 and rows["Start"]["gap_closed"]["mean"] == 0


def test_a_recorded_row_is_shown_with_its_commit_and_never_run(tmp_path):
    recorded = {"organs": {"spleen": [40.0, 1.0], "liver": [60.0, 2.0]}, "mean": [50.0, 1.5], "hd95_mm": [12.0, 3.0]}
    recorded |= {"gap_closed": [-7, 2], "runs": {"a": 49.0, "b": 51.0}}
    rows = {"Kept": {"command": "unet"}, "Gone": {"repeat_with": "abc1234", "recorded": recorded}}
    gap = {"from": "Kept", "to": "Kept"}
    path = write_table(tmp_path, rows=rows, runs={"a": {}, "b": {}}, gap=gap)
    table = Table.read(path, tmp_path / "out", {})
    write_result(table, "a", "Kept", [0.5, 0.7])

    content = report.collect(table)

    assert table.runnable == ["Kept"]
    assert content["hours"] == pytest.approx(
        12 / 3600
    )  # 10 s of training and one volume of 2 s: the recorded row adds none
    text = report.to_markdown(content)
    assert "| Gone † | 40.0 ± 1.0 | 60.0 ± 2.0 | **50.0 ± 1.5** | – | 12.0 ± 3.0 | -7 ± 2 % | – | – | 2/2 |" in text
    assert "| Gone † | 49.0 | 51.0 |" in text and "Commit abc1234 repeats it." in text
    assert not report.draw(content).get_axes()[0].get_legend()
    refused = run_table(path, tmp_path / "out", "--rows", "Gone")
    assert refused.returncode == 1 and "commit abc1234 can" in refused.stderr


def test_the_ablations_of_options_that_are_gone_are_those_of_the_committed_table(tmp_path):
    table = Table.read("ablations", tmp_path, {})
    committed = (ROOT / "docs" / "results" / "tables" / "ablations.md").read_text(encoding="utf-8").splitlines()

    marked = [line for line in report.to_markdown(report.collect(table)).splitlines() if report.RECORDED in line]

    assert len(marked) == 7 + 1 + 7  # results, what the mark means, and the mean of each run
    assert [line for line in marked if line not in committed] == []


def test_measured_and_published_numbers_stand_in_tables_of_their_own(two_runs):
    measured, published = report.to_markdown(report.collect(two_runs)).split("Published (Some paper's Table 1)")

    assert (
        "| Start | 50.0 ± 14.1 | 50.0 ± 14.1 | **50.0 ± 14.1** | 50.0 ± 0.0 | 0 ± 0 % | 10 ± 0 | 2.0 ± 0.0 | 2/2 |"
        in measured
    )
    assert "| Not there |" not in measured and "- Not there: not run yet" in measured
    assert "| Start | 50.00 | 60.00 | 55.00 | 50.0 ± 14.1 |" in published
    assert "| Not there | 70.00 | 80.00 | 75.00 | not run |" in published


def test_each_run_has_its_mean(two_runs):
    two_runs.result("b", "Better").unlink()

    text = report.to_markdown(report.collect(two_runs))

    _, _, by_run = text.partition("Mean native Dice of each run:\n\n")
    assert by_run.splitlines()[:5] == [
        "| | a | b |",
        "| --- | --- | --- |",
        "| Start | 40.0 | 60.0 |",
        "| Better | 50.0 | – |",
        "| Bound | 100.0 | 100.0 |",
    ]


def test_hours_count_every_training_once(tmp_path):
    trainings = {"prior": {"command": "training"}, "unet": {"command": "unet"}, "source": {"command": "train_source"}}
    rows = {
        "DiffuSAM (no 3D)": {"command": "diffusam", "training": "prior"},
        "DiffuSAM": {"command": "diffusam", "training": "prior"},
        "UNet": {"command": "unet", "training": "unet"},
        "UNet again": {"command": "unet", "training": "unet"},
        "DPL": {"command": "dpl", "training": "source"},
        "Nothing yet": {"command": "dfg", "training": "source"},
    }
    table = Table.read(write_table(tmp_path, rows=rows, trainings=trainings), tmp_path / "out", {})
    for training, seconds in (("prior", 1000), ("source", 100)):
        table.trained("1", training).parent.mkdir(parents=True)
        table.trained("1", training).with_name("seconds.json").write_text(json.dumps({"seconds": seconds}))
    for name, seconds in (("DiffuSAM (no 3D)", 0), ("DiffuSAM", 0), ("UNet", 500), ("UNet again", 500), ("DPL", 30)):
        write_result(table, "1", name, [0.5, 0.5], seconds_training=seconds, seconds_per_volume=2)  # one volume

    content = report.collect(table)

    assert content["hours"] * 3600 == pytest.approx(1000 + 500 + 100 + 30 + 5 * 2)
    assert [content["rows"][name]["seconds_training"]["mean"] for name in ("DiffuSAM", "UNet", "DPL")] == [
        1000,
        500,
        130,
    ]


def test_without_its_ends_a_gap_has_no_share(two_runs):
    for run in two_runs.runs:
        two_runs.result(run, "Bound").unlink()

    text = report.to_markdown(report.collect(two_runs))

    assert "| 50.0 ± 0.0 | – | 10 ± 0 |" in text


def test_a_row_with_some_of_its_runs_says_so(two_runs):
    two_runs.result("b", "Better").unlink()

    rows = report.collect(two_runs)["rows"]

    assert rows["Better"]["mean"] == {"mean": 0.5, "sd": None, "n": 1}
    text = report.to_markdown(report.collect(two_runs))
    assert "| 1/2 |" in text and "- Better, run b: not run yet" in text


def test_a_result_of_another_command_is_not_shown(two_runs):
    two_runs.overrides["seed"] = 7
    write_result(two_runs, "a", "Better", [0.9, 0.9])
    log = two_runs.log("b", "Better")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("reading\n\nerror: image_size must be a multiple of 64.\n")

    content = report.collect(two_runs)

    assert content["rows"]["Better"]["mean"] == {"mean": 0.9, "sd": None, "n": 1}
    assert content["rows"]["Start"]["mean"]["n"] == 0
    text = report.to_markdown(content)
    assert "- Start: the result there is was made by another command; not run yet" in text
    assert (
        "- Better, run b: the result there is was made by another command; image_size must be a multiple of 64." in text
    )


def test_a_result_of_other_settings_is_made_again_and_stays_where_that_fails(tmp_path, monkeypatch):
    path = write_table(tmp_path, rows={"A": {"command": "sam2_box"}})
    tables = {seed: Table.read(path, tmp_path / "out", {"seed": seed}) for seed in (0, 1)}
    works, called = {"now": True}, []

    def call(step, log, threads) -> bool:
        result = Path(value(step.arguments, "output"))
        assert not result.exists() and not list(result.with_suffix("").glob("*"))  # nothing to be taken over
        called.append(value(step.arguments, "seed"))
        result.with_suffix("").mkdir(parents=True, exist_ok=True)
        result.with_suffix("").joinpath(called[-1]).touch()
        if works["now"]:
            result.write_text(json.dumps({"dice": called[-1]}))
        return works["now"]

    def run(seed: int) -> str:
        run_steps(tables[seed], ["A"], runs=["1"], jobs=1, after_each=lambda: None)
        result = tables[seed].result("1", "A")
        (beside,) = (each.name for each in result.with_suffix("").iterdir() if each.name != plan.TOLD)
        content = json.loads(result.read_text())["dice"]
        assert content == beside and not list(tables[seed].before("1").glob("*"))
        return content

    monkeypatch.setattr(running, "_call", call)
    assert run(0) == "0"
    works["now"] = False
    assert run(1) == "0" and tables[0].finished("1", "A") and not tables[1].finished("1", "A")
    assert run(0) == "0" and called == ["0", "1"]  # still there
    works["now"] = True
    assert run(1) == "1" and tables[1].finished("1", "A") and called == ["0", "1", "1"]


def test_a_result_stays_where_its_row_only_says_what_it_needs(tmp_path, monkeypatch):
    path = write_table(tmp_path, rows={"SAM": {"command": "sam"}})
    with_it = Table.read(path, tmp_path / "out", {"checkpoint": "sam_vit_b.pth"})
    without = Table.read(path, tmp_path / "out", {})
    write_result(with_it, "1", "SAM", [0.5, 0.5])

    def call(step, log, threads) -> bool:
        Path(value(step.arguments, "output")).write_text('{"not_run": "needs a checkpoint"}')
        return True

    monkeypatch.setattr(running, "_call", call)
    run_steps(without, ["SAM"], runs=["1"], jobs=1, after_each=lambda: None)

    assert with_it.finished("1", "SAM") and not without.finished("1", "SAM")
    assert "dice" in json.loads(with_it.result("1", "SAM").read_text())


def test_a_checkpoint_goes_to_the_row_of_sam_alone(tmp_path):
    given = {"dataset_dir": "/d", "checkpoint": "sam_vit_b_01ec64.pth"}
    table, plain = (Table.read("chaos", tmp_path, each) for each in (given, {"dataset_dir": "/d"}))
    run = table.runs[0]

    told = [name for name in table.runnable if value(table.row_step(run, name).arguments, "checkpoint")]

    assert {table.rows[name]["command"] for name in told} == {"sam"}
    for training in table.content["trainings"]:
        assert table.trained(run, training) == plain.trained(run, training)
    with pytest.raises(TableError, match="remove its JSON"):
        Table.read("chaos", tmp_path, {"overwrite": True})


def test_the_reason_of_a_failure_is_the_error_of_its_log(two_runs):
    log = two_runs.log("a", "Not there")
    log.parent.mkdir(parents=True)
    for text, told in (
        ("reading\nFileNotFoundError: 'img0001.nii.gz' is not there.\n", "FileNotFoundError: 'img0001.nii.gz' is"),
        ("reading\n\nerror: 2 files missing:\n  'a'\n  'b'\nRestore them.\n", "2 files missing: 'a' 'b' Restore them."),
    ):
        log.write_text(text)
        assert f"- Not there: {told}" in report.to_markdown(report.collect(two_runs))


def test_a_row_is_configured_like_its_training(tmp_path):
    trainings = {"prior": {"command": "training", "config_file": ["configs/ct.json"], "settings": {"variants": 5}}}
    rows = {"DiffuSAM": {"command": "diffusam", "training": "prior", "options": {"no_3d": True}}}
    table = Table.read(write_table(tmp_path, trainings=trainings, rows=rows), tmp_path / "out", {})

    trained, row = table.training_step("1", "prior").arguments, table.row_step("1", "DiffuSAM").arguments

    assert trained[trained.index("--config_file") + 1] == str(["configs/train.json", "configs/ct.json"])
    assert row[row.index("--config_file") + 1] == str([*CONFIGS, "configs/ct.json"])
    assert "--variants=5" in trained and {"--variants=5", "--no_3d=True"} <= set(row)


def test_a_source_gets_its_own_settings_and_no_others(tmp_path):
    prior = {"command": "training", "source": True, "base": ["configs/train.json"], "settings": {"iterations": 5}}
    trainings = {"prior": prior}
    path = write_table(
        tmp_path,
        runs={"1": {"seed": 1, "source_seed": 7}},
        settings={"variants": 3},
        trainings=trainings,
        rows={"DiffuSAM": {"command": "diffusam", "training": "prior", "options": {"no_3d": True}}},
    )
    table = Table.read(path, tmp_path / "out", {"dataset_dir": "/target", "source_dataset_dir": "/source"})

    prior, row = table.training_step("1", "prior").arguments, table.row_step("1", "DiffuSAM").arguments

    assert {"--seed=7", "--dataset_dir=/source", "--iterations=5"} <= set(prior) and "--variants=3" not in prior
    assert {"--seed=1", "--dataset_dir=/target", "--variants=3", "--no_3d=True"} <= set(row)
    assert prior[prior.index("--config_file") + 1] == "['configs/train.json']"
    assert [each for each in prior if each.startswith("--prior_file=")] == [
        each for each in row if each.startswith("--prior_file=")
    ]


def test_what_two_tables_train_alike_is_trained_once(tmp_path):
    trainings = {"prior": {"command": "training", "settings": {"iterations": 5}}, "longer": {"command": "training"}}
    one = Table.read(write_table(tmp_path, rows={}, trainings=trainings), tmp_path / "one", {})
    trainings = {"default": {"command": "training", "base": CONFIGS, "settings": {"iterations": 5}}}
    two = Table.read(write_table(tmp_path, rows={}, trainings=trainings, runs={"a": {}}), tmp_path / "two", {})

    assert one.trained("1", "prior") == two.trained("a", "default") != one.trained("1", "longer")
    one.overrides["seed"] = 3
    assert one.trained("1", "prior") != two.trained("a", "default")


def value(arguments: list[str], option: str) -> str | None:
    """What a command is told by an option."""
    told = [each.partition("=")[2] for each in arguments if each.startswith(f"--{option}=")]
    return told[0] if told else None


def test_a_training_gets_as_many_labelled_cases_as_it_is_told(tmp_path):
    trainings = {
        "none": {"command": "unet", "labels": 0},
        "two": {"command": "training", "labels": 2},
        "own": {"command": "training"},
    }
    rows = {name: {"command": "unet" if name == "none" else "diffusam", "training": name} for name in trainings}
    rows["no training"] = {"command": "diffusam", "labels": 1}
    runs = {"a": {"labelled": ["x", "y", "z"], "test_cases": ["t"]}}
    table = Table.read(write_table(tmp_path, rows=rows, runs=runs, trainings=trainings), tmp_path / "out", {})

    cases = {name: value(table.row_step("a", name).arguments, "train_cases") for name in rows}

    assert cases == {"none": "[]", "two": "['x', 'y']", "own": None, "no training": "['x']"}
    assert value(table.training_step("a", "two").arguments, "train_cases") == "['x', 'y']"
    assert {value(table.row_step("a", name).arguments, "test_cases") for name in rows} == {"['t']"}
    assert not any("labelled" in each for name in rows for each in table.row_step("a", name).arguments)


def test_the_same_labelled_cases_are_the_same_training_however_they_are_told(tmp_path):
    trainings = {"some": {"command": "training", "labels": 2}, "all": {"command": "training"}}
    runs = {"labelled": {"labelled": ["x", "y", "z"], "test_cases": ["t"]}, "named": {"train_cases": ["x", "y"]}}
    table = Table.read(write_table(tmp_path, rows={}, runs=runs, trainings=trainings), tmp_path / "out", {})

    assert table.trained("labelled", "some") == table.trained("named", "all")


def pretrained_table(folder: Path, **settings) -> Table:
    trainings = {
        "painted": {"command": "anatomy_unet", "pretraining": True, "settings": {"iterations": 3, **settings}},
        "unet": {"command": "unet", "start": "painted"},
        "prior": {"command": "training", "start": "painted"},
    }
    rows = {"UNet": {"command": "unet", "training": "unet"}, "DiffuSAM": {"command": "diffusam", "training": "prior"}}
    runs = {"a": {"seed": 0, "train_cases": ["x"]}, "b": {"seed": 1, "train_cases": ["y"]}}
    table = write_table(folder, rows=rows, runs=runs, trainings=trainings, settings={"variants": 3})
    return Table.read(table, folder / "out", {"dataset_dir": "/d", "pretraining_patients": 2})


def test_a_pretraining_knows_neither_data_nor_runs(tmp_path):
    table = pretrained_table(tmp_path)

    step = table.training_step("a", "painted")

    file = table.trained("a", "painted")
    assert file == table.trained("b", "painted")
    assert step.arguments == [
        *("-m", "benchmarks.baselines.anatomy_unet"),
        *("--iterations=3", "--patients=2", f"--output={file}"),
    ]


def test_what_starts_from_a_pretraining_is_told_its_file_and_is_another_with_another(tmp_path):
    table = pretrained_table(tmp_path)
    start = str(table.trained("a", "painted"))

    assert value(table.training_step("a", "prior").arguments, "start_from") == start
    assert value(table.row_step("a", "UNet").arguments, "start_from") == start  # which trains it
    assert value(table.row_step("a", "DiffuSAM").arguments, "start_from") is None
    assert "--pretraining_patients=2" not in table.row_step("a", "UNet").arguments
    other = pretrained_table(tmp_path, network="unetr")
    for training in ("painted", "unet", "prior"):
        assert other.trained("a", training) != table.trained("a", training)


def test_a_pretraining_is_done_once_and_first_and_what_needs_it_is_left_where_it_fails(tmp_path, monkeypatch):
    table, called = pretrained_table(tmp_path), []

    def call(step, log, threads, works: bool = True) -> bool:
        called.append(step.name)
        for option in ("output", "prior_file"):
            file = value(step.arguments, option)
            if works and step.name in table.content["trainings"] and file:
                Path(file).write_text("weights")
        return works

    monkeypatch.setattr(running, "_call", lambda *arguments: call(*arguments, works=False))
    run_steps(table, ["UNet"], runs=["a"], jobs=1, after_each=lambda: None)
    assert called == ["painted"]

    called.clear()
    monkeypatch.setattr(running, "_call", call)
    run_steps(table, ["UNet", "DiffuSAM"], runs=["a", "b"], jobs=2, after_each=lambda: None)
    assert called[0] == "painted"
    assert sorted(called[1:]) == ["DiffuSAM", "DiffuSAM", "UNet", "UNet", "prior", "prior"]


def test_hours_count_a_pretraining_once(tmp_path):
    table = pretrained_table(tmp_path)
    for run in table.runs:
        write_result(table, run, "UNet", [0.5, 0.5], seconds_training=100, seconds_per_volume=1)
        folder = table.trained(run, "painted").parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seconds.json").write_text('{"seconds": 1000}')

    assert report.collect(table)["hours"] * 3600 == pytest.approx(1000 + 2 * (100 + 1))


def test_a_pretraining_that_failed_is_the_reason_of_its_rows(tmp_path):
    table = pretrained_table(tmp_path)
    log = table.log("a", "painted")
    log.parent.mkdir(parents=True)
    log.write_text("painting\n\nerror: no space is left.\n")

    assert report.collect(table)["rows"]["UNet"]["runs"]["a"]["not_run"] == "no space is left."


def test_new_weights_make_all_trainings_and_results_new(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MODELS", tmp_path)
    (tmp_path / "sam2_nano.pt").write_text("one")
    trainings, rows = {"prior": {"command": "training"}}, {"SAM2 (box)": {"command": "sam2_box"}}
    table = Table.read(write_table(tmp_path, rows=rows, trainings=trainings), tmp_path / "out", {})
    before = table.trained("1", "prior")
    write_result(table, "1", "SAM2 (box)", [0.5])
    table.mark_finished("1", "SAM2 (box)")
    assert table.finished("1", "SAM2 (box)")

    (tmp_path / "sam2_nano.pt").write_text("another")
    os.utime(tmp_path / "sam2_nano.pt", (1, 1))

    assert table.trained("1", "prior") != before
    assert not table.finished("1", "SAM2 (box)")


@pytest.mark.parametrize(
    "curve, table, ours", [("labels", "chaos", "few_shot"), ("phantoms_labels", "phantoms", "beyond_paper")]
)
def test_the_curve_of_labels_shares_the_trainings_of_three_volumes(curve, table, ours):
    curve, table = Table.read(curve, "out/curve", {}), Table.read(table, "out/table", {})

    for run, same in zip(curve.runs, table.runs):
        for training in (ours, "unet"):
            assert curve.trained(run, f"{training}_3") == table.trained(same, f"{training}_pretrained")
        assert len({curve.trained(run, f"{ours}_{count}") for count in (1, 3, 5)}) == 3


@pytest.mark.parametrize("name", ["labels", "phantoms_labels"])
def test_no_row_of_the_curve_is_tested_on_a_volume_that_another_is_trained_on(name):
    table = Table.read(name, "out", {})
    for settings in table.content["runs"].values():
        assert len(settings["labelled"]) == 5 and len(settings["test_cases"]) == 3
        assert not set(settings["labelled"]) & set(settings["test_cases"])


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.json")))
def test_trainings_start_from_scratch_unless_they_are_named_after_their_start(name):
    """By default a training starts from the prior that ships, whatever its table says of it."""
    for key, training in Table.read(name, "out", {}).content["trainings"].items():
        if training["command"] == "training" and not training.get("pretraining") and "btcv" not in name:
            from_scratch = training["settings"].get("start_from") == "$None"
            assert from_scratch != (key.endswith("_pretrained") or "labels" in name), key


def shrunk(table: Table, patients: Path) -> None:
    """The trainings of a curve of labels with little of everything."""
    small = {"variants": 0, "batch_size": 2, "iterations": 2, "iterations_per_epoch": 2}
    for training in table.content["trainings"].values():
        if training["command"] == "anatomy_unet":
            training["settings"] = {"patients": 1, "iterations": 2, "slices": 2, "image_size": SIZE}
            training["settings"]["patients_dir"] = str(patients)
        elif training["command"] == "unet":
            training["settings"] |= {
                "steps": min(training["settings"]["steps"], 2),
                "slices_per_step": 2,
                "variants": 0,
            }
        else:
            training["settings"] |= small


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # commands are imported modules here
def test_the_curve_of_labels_runs_from_its_beginning(tmp_path, backbone_file, monkeypatch):
    """Of the definition on CHAOS, with small volumes that are named as those are, and each command in this process."""
    monkeypatch.chdir(BUNDLE)
    for case in ("3", "19"):
        save_volume(tmp_path / f"data/image_{case}.nii.gz", simple_image(simple_label(), int(case)) + 1000)
        save_volume(tmp_path / f"data/label_{case}.nii.gz", simple_label())
    overrides = {"dataset_dir": str(tmp_path / "data"), "backbone_checkpoint": str(backbone_file), "report": False}
    save_start(tmp_path / "start.pt", backbone_file)
    overrides |= {"image_size": SIZE, "test_cases": ["19"], "start_from": str(tmp_path / "start.pt")}
    table = Table.read("labels", tmp_path / "out", overrides)
    shrunk(table, tmp_path / "patients")
    run = "3+5+10+15+20"
    trained = table.trained(run, "few_shot_1")  # in place of the one that ships, which would need its own backbone
    table.rows["DiffuSAM, no label"]["options"] |= {"prior_file": str(trained), "names_encoder": True}
    called = []

    def in_process(step, log, threads) -> bool:
        called.append(step.name)
        arguments = [*step.arguments[1:], *["--logging_file=False"] * (step.arguments[1] == "monai.bundle")]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return True

    monkeypatch.setattr(running, "_call", in_process)
    rows = ["UNet, no label", "UNet, 1 volume", "DiffuSAM, 1 volume", "DiffuSAM, no label"]

    run_steps(table, rows, runs=[run], jobs=1, after_each=lambda: None)
    run_steps(table, rows, runs=[run], jobs=1, after_each=lambda: None)  # all is there

    assert called == ["unet_painted", *rows[:2], "few_shot_1", *rows[2:]]
    results = {name: json.loads(table.result(run, name).read_text()) for name in rows}
    assert {name: each["about"].get("train_cases") for name, each in results.items()} == {
        **{"UNet, no label": None, "UNet, 1 volume": ["3"]},
        **{"DiffuSAM, 1 volume": ["3"], "DiffuSAM, no label": None},
    }
    assert all(each["cases"] == ["19"] for each in results.values())
    assert results["DiffuSAM, 1 volume"]["dice"] == results["DiffuSAM, no label"]["dice"]  # one prior, by either way
    start, used = (
        torch.load(table.trained(run, training), weights_only=True)["network"]
        for training in ("unet_painted", "unet_0")
    )
    assert all(torch.equal(used[key], weight) for key, weight in start.items())


def test_a_network_of_one_table_is_the_supervised_bound_of_another():
    """Of the tables on CHAOS: the same volumes, settings and files, so the same file, told to both rows."""
    given = {"dataset_dir": "/chaos"}
    few_shot, adaptation = (Table.read(name, f"out/{name}", given) for name in ("chaos", "chaos_adaptation"))

    for run in few_shot.runs:
        files = {
            next(each for each in step.arguments if each.startswith("--network_file="))
            for step in (few_shot.row_step(run, "UNet"), adaptation.row_step(run, "Target-supervised UNet"))
        }
        assert files == {f"--network_file={few_shot.trained(run, 'unet')}"}
    assert few_shot.trained("3+5+10", "unet") != few_shot.trained("15+19+20", "unet")


def test_what_adapts_may_have_seen_painted_patients_who_are_the_same_in_every_run():
    table = Table.read("chaos_adaptation", "out/chaos_adaptation", {"source_seed": 3, "pretraining_iterations": 7})

    painted = {table.trained(run, "source_painted") for run in table.runs}
    assert len(painted) == 1 and len({table.trained(run, "source_pretrained") for run in table.runs}) == 1
    assert table.trained("3+5+10", "source_pretrained") != table.trained("3+5+10", "source")
    step = table.training_step("3+5+10", "source_pretrained")
    assert f"--start_from={painted.pop()}" in step.arguments and "--seed=3" in step.arguments
    assert "--iterations=7" in table.training_step("3+5+10", "source_painted").arguments
    for name in ("Source-only UNet", "DPL", "DFG"):
        row = table.row_step("3+5+10", f"{name}, pretrained")
        assert f"--source_model={table.trained('3+5+10', 'source_pretrained')}" in row.arguments


def test_a_changed_configuration_is_another_training(tmp_path):
    overlay = tmp_path / "overlay.json"
    path = write_table(
        tmp_path, config_file=[*CONFIGS, str(overlay)], rows={}, trainings={"p": {"command": "training"}}
    )
    files = set()
    for iterations in (5, 6, 5):
        overlay.write_text(json.dumps({"iterations": iterations}))
        files.add(Table.read(path, tmp_path / "out", {}).trained("1", "p"))
    assert len(files) == 2


def test_a_row_is_finished_until_its_command_or_configuration_changes(tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text("{}")
    content = {"title": "", "config_file": [str(overlay)], "runs": {"1": {}}, "rows": {"A": {"command": "unet"}}}
    table = Table({"trainings": {}, **content}, tmp_path / "out")

    assert not table.finished("1", "A")
    write_result(table, "1", "A", [0.5], finished=False)
    assert not table.finished("1", "A")  # made by nobody knows which command
    table.mark_finished("1", "A")
    assert table.finished("1", "A")

    assert not Table(table.content, table.output, {"variants": 3}).finished("1", "A")
    overlay.write_text('{"variants": 3}')
    assert not table.finished("1", "A")


def test_a_row_is_not_finished_once_its_prior_is_another(tmp_path):
    trainings, rows = {"prior": {"command": "training"}}, {"A": {"command": "diffusam", "training": "prior"}}
    table = Table.read(write_table(tmp_path, rows=rows, trainings=trainings), tmp_path / "out", {})
    prior = table.trained("1", "prior")
    prior.parent.mkdir(parents=True)
    prior.write_text("one")
    write_result(table, "1", "A", [0.5])
    table.mark_finished("1", "A")
    assert table.finished("1", "A")

    prior.write_text("another")
    assert not table.finished("1", "A")
    prior.unlink()
    assert not table.finished("1", "A")


def test_a_row_that_was_not_run_is_never_finished(tmp_path):
    content = {"title": "", "config_file": [], "runs": {"1": {}}, "rows": {"A": {"command": "sam"}}}
    table = Table({"trainings": {}, **content}, tmp_path / "out")
    table.result("1", "A").parent.mkdir(parents=True)
    table.result("1", "A").write_text('{"not_run": "needs a checkpoint"}')
    table.mark_finished("1", "A")
    assert not table.finished("1", "A")


def test_the_time_of_a_training_that_was_killed_counts(tmp_path):
    trainings = {"prior": {"command": "training"}}
    table = Table.read(write_table(tmp_path, rows={}, trainings=trainings), tmp_path / "out", {})
    folder = table.trained("1", "prior").parent
    folder.mkdir(parents=True)
    assert table.seconds("1", "prior") == 0

    (folder / "seconds.json").write_text('{"seconds": 5.0}')
    assert table.seconds("1", "prior") == 5

    (folder / "seconds.json").write_text('{"seconds": 5.0, "started": 1000}')
    (folder / "checkpoint.pt").touch()
    for path, time in ((folder / "seconds.json", 1000), (folder / "checkpoint.pt", 1030)):
        os.utime(path, (time, time))
    assert table.seconds("1", "prior") == 35


@pytest.mark.parametrize(
    "content, message",
    [
        ({"rows": {}, "rwos": {}}, "unknown keys"),
        ({}, "missing keys"),
        ({"rows": {"A": {"command": "diffusam", "training": "nothing"}}}, "trainings that it does not name"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_to_change(tmp_path, content, message):
    with pytest.raises(TableError, match=message):
        Table.read(write_table(tmp_path, **content), tmp_path, {})


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(TableError, match="phantoms"):
        Table.read("nothing", None, {})


def test_an_unknown_row_is_refused_before_anything_runs(tmp_path):
    path = write_table(tmp_path, rows={"UNet": {"command": "unet"}})

    result = run_table(path, tmp_path / "out", "--rows", "UNETR")

    assert result.returncode == 1 and "no row ['UNETR']" in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_that_come_with_the_benchmarks_name_what_there_is(path):

    table = Table.read(path, None, {})
    for row in table.rows.values():
        assert ("recorded" in row and "repeat_with" in row) or row["command"] in {**ADAPTATION, **BASELINES}
        assert len(row.get("published") or [0] * 5) == 5
    content = table.content
    for entry in [content, *table.rows.values(), *content["trainings"].values(), *content["runs"].values()]:
        for config in [*entry.get("config_file", []), *entry.get("base", [])]:
            assert (BUNDLE / config).is_file(), config
    gap = content.get("gap") or {}
    assert set(gap.values()) <= table.rows.keys()


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.json")), ids=lambda path: path.stem)
def test_settings_of_a_table_change_what_the_configuration_has(path):
    """A misspelt setting would be ignored in silence, or end a run hours later."""
    content = Table.read(path, None, {}).content
    for training in content["trainings"].values():
        if training["command"] != "training":
            continue
        files = [*training.get("base", content["config_file"]), *training.get("config_file", [])]
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / file) for file in files if "evaluate" not in file])
        alone = training.get("source") or training.get("pretraining")  # which have no settings of the target
        shared = {} if alone else content.get("settings", {})
        for key in {**shared, **training.get("settings", {})}:
            section, _, name = key.rpartition("#")
            assert name in (parser[section] if section else parser.get()), key
    for row in content["rows"].values():
        for key in row.get("options", {}):
            section, _, name = key.rpartition("#")
            assert not section or section == "validate#inferer", key
