"""The tables: every row through its own command, results kept, spread over runs, published numbers kept apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from benchmarks.adaptation.run import COMMANDS as ADAPTATION
from benchmarks.baselines.run import COMMANDS as BASELINES
from benchmarks.tables import report
from benchmarks.tables.plan import TABLES, Table, TableError
from tests.helpers.workflows import BUNDLE, ROOT, write_overlay

CONFIGS = ["configs/train.json", "configs/evaluate.json"]


def write_table(folder: Path, **content) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps({"title": "A table", "config_file": CONFIGS, "runs": {"1": {}}, **content}))
    return path


def write_result(table: Table, run: str, row: str, organs: list[float | None], **content) -> None:
    mean = sum(each for each in organs if each is not None) / len([each for each in organs if each is not None])
    path = table.result(run, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"dice_fate": {"mean": 0.5}, "seconds_training": 10.0, "seconds_per_volume": 2.0} | content
    dice = {"organ_means": organs, "mean": mean}
    path.write_text(json.dumps({"organs": ["spleen", "liver"], "cases": ["d"], "dice": dice, **content}))


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
    made = {path: path.stat().st_mtime_ns for path in [*output.glob("1/*.json"), *trained]}
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
    assert "| 1/2 |" in report.to_markdown(report.collect(two_runs))


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
    write_result(table, "1", "A", [0.5])
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
        shared = {} if training.get("source") else content.get("settings", {})  # a source has no settings of the target
        for key in {**shared, **training.get("settings", {})}:
            section, _, name = key.rpartition("#")
            assert name in (parser[section] if section else parser.get()), key
    for row in content["rows"].values():
        for key in row.get("options", {}):
            section, _, name = key.rpartition("#")
            assert not section or section == "validate#inferer", key
