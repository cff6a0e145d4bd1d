"""The benchmark of many scans, with few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.errors import SettingError

from benchmarks import many


def test_the_stub_goes_through_all_that_an_inference_does_besides(capsys):
    many.stubbed(12)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {*many.PARTS, "listed_twice", "peak_mib"}
    assert found["listed_twice"] == 0


def test_label_maps_of_several_processes_are_compared_with_those_of_one(monkeypatch, capsys):
    def infer(count: int, options: dict, by: str) -> float:
        scans = json.loads(Path(options["input"]).read_text())
        options["output"].mkdir()
        for number, scan in enumerate(scans):
            assert Path(scan).is_file()
            other = count == 2 and number == 0
            (options["output"] / f"{number}_seg.nii.gz").write_bytes(b"other" if other else b"same")
        return 60.0 / count

    monkeypatch.setattr(many, "_infer", infer)
    many.processes(volumes=3, slices=40)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 1", "| 2"))]
    assert rows == ["| 1 | 60.0 | 1.00 | 180 | 3 of 3 |", "| 2 | 30.0 | 2.00 | 180 | 2 of 3 |"]


def test_shares_are_started_each_by_itself(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(many, "_run", lambda words: started.append(words) or 0)

    many._infer(2, {"input": "in"}, "share")

    assert sorted(words[-2:] for words in started) == [["--share", "1/2"], ["--share", "2/2"]]
    assert not any("torch.distributed.run" in words for words in started)


def test_a_way_of_starting_that_there_is_not_is_refused():
    with pytest.raises(SettingError, match="expected torchrun or share"):
        many.processes(by="shares")


def test_a_run_that_fails_ends_the_benchmark(tmp_path):
    with pytest.raises(SystemExit, match="ended with exit code"):
        many._infer(1, {"config_file": tmp_path / "missing.json"})
