"""Processes that share the cases of a folder: each case is done once, by whomever, and none is lost with a process."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts import files as bundle_files
from scripts.errors import DatasetError, RefusedError, SettingError
from scripts.inference import record_files
from scripts.inference.case_records import CaseRecords, FailedCases
from scripts.inference.journals import FOLDER, Journal, found_journals
from scripts.inference.record_files import RecordFiles, read_records
from scripts.inference.shares import WHOLE, Share, gathered, own_device, own_share

from tests.helpers.results import write_label_map

needs_locks = pytest.mark.skipif(bundle_files.fcntl is None, reason="no locks on this system")

# ---- which cases are whose


@pytest.mark.parametrize("rank, index", [(0, 0), (1, 1), (2, 0)])
def test_each_process_has_a_gpu_that_is_meant_by_cuda_too(monkeypatch, rank, index):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", str(rank))

    assert [own_device()] == current == [torch.device("cuda", index)]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5))
def test_each_case_is_in_one_share(cases, shares, processes):
    parts = [
        Share(number, shares, rank, processes).of(range(cases))
        for number in range(1, shares + 1)
        for rank in range(processes)
    ]
    assert sorted(case for part in parts for case in part) == list(range(cases))
    assert max(map(len, parts)) <= math.ceil(math.ceil(cases / shares) / processes)


def test_torchrun_and_a_job_array_divide_the_cases_together(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert own_share() == Share(1, 1, 1, 2)
    assert own_share("3/16") == Share(3, 16, 1, 2)
    assert list(own_share("2/3").of(range(12))) == [4, 10]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "1/2/3", "a/b", "", "-1/4", "1.5/4", "½"])
def test_shares_that_there_are_not_are_refused(text):
    with pytest.raises(SettingError, match="from 1/16 to 16/16"):
        own_share(text)


def test_what_processes_gather_leaves_messages_and_exit_codes_as_they_are(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {**places, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    hook = sys.excepthook
    assert gathered(["a"]) == [["a"]]
    assert sys.excepthook is hook


# ---- a folder, its cases, and processes at work there


class Project:
    """Ten cases that another process, or this one, works on without a network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.items = [{"image": str(folder / f"c{number}.nii.gz"), "case": f"c{number}"} for number in range(10)]

    def write(self) -> Project:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "prior.pt").write_bytes(b"prior")
        for item in self.items:
            Path(item["image"]).write_bytes(b"voxels")
        return self

    def records(self, share: Share = WHOLE) -> CaseRecords:
        return CaseRecords(self.output, self.folder / "prior.pt", settings={}, share=share)

    def segment(self, share: Share = WHOLE, breaks: Sequence[str] = ()) -> CaseRecords:
        records = self.records(share)
        for item in records.pending(self.items):
            self.do(records, item, breaks)
        return records

    def do(self, records: CaseRecords, item: dict[str, str], breaks: Sequence[str] = ()) -> None:
        records.begin(item)
        if item["case"] in breaks:
            records.fail(item, "broken")
            return
        write_label_map(self.output / f"{item['case']}_seg.nii.gz")
        records.complete(item, seconds=1.5, shape=(4, 5, 6))


def work(folder: Path, share: Share, fork: bool, ready: Connection) -> None:
    """A process that has done the first case of its share, is at work on the second, and stays there."""
    project = Project(folder)
    records = project.records(share)
    first, second, *_ = records.pending(project.items)
    project.do(records, first)
    records.begin(second)
    child = os.fork() if fork else None
    if child != 0:
        ready.send(child)
    signal.pause()


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path).write()


@pytest.fixture
def worker(project):
    """``worker(share)`` starts a process that works as :func:`work` says; with ``fork`` it has a child besides."""
    started, children = [], []

    def start(share: Share = WHOLE, fork: bool = False) -> multiprocessing.Process:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=work, args=(project.folder, share, fork, there))
        process.start()
        started.append(process)
        assert here.poll(120)
        process.child = here.recv()
        children.extend([process.child] if fork else [])
        return process

    yield start
    for process in started:
        kill(process)
    for child in children:
        os.kill(child, signal.SIGKILL)


def kill(process: multiprocessing.Process) -> None:
    process.kill()
    process.join()


@needs_locks
def test_a_second_run_on_the_same_cases_is_refused_until_the_first_has_ended(project, worker):
    first = worker()
    with pytest.raises(
        RefusedError, match=rf"process {first.pid} on .* is at work on 9 of these cases \(c1, c2, c3 an"
    ):
        project.records().pending(project.items)
    kill(first)

    assert [item["case"] for item in project.records().pending(project.items)] == [f"c{n}" for n in (*range(2, 10), 1)]
    assert {name: case["status"] for name, case in read_records(project.output)["cases"].items()} == {
        "c0": "done",
        "c1": "running",
    }


@needs_locks
def test_other_cases_may_be_segmented_at_the_same_time(project, worker):
    worker(Share(1, 2))
    records = project.segment(Share(2, 2))
    records.finish()

    assert records.done == ["c1", "c3", "c5", "c7", "c9"]
    assert not records.last  # the other one is to write the report
    cases = read_records(project.output)["cases"]
    assert {name for name, case in cases.items() if case["status"] == "done"} == {"c0", *records.done}


@needs_locks
def test_cases_of_a_killed_process_are_taken_up_by_the_next_run(project, worker):
    kill(worker(Share(1, 2)))
    project.segment(Share(2, 2)).finish()

    records = project.segment()
    records.finish()

    assert records.done == ["c4", "c6", "c8", "c2"] and records.last  # what it was at comes last
    assert {case["status"] for case in json.loads((project.output / "results.json").read_text())["cases"].values()} == {
        "done"
    }
    assert not (project.output / FOLDER).exists()


@needs_locks
def test_a_process_killed_after_its_last_case_leaves_no_journal_behind(project):
    first = project.segment()  # every case is done, and nothing has been finished
    first.files._finalizer.detach()
    first.files._journal.let_go()
    assert list((project.output / FOLDER).iterdir())

    again = project.records()
    assert again.pending(project.items) == []
    again.finish()

    assert not (project.output / FOLDER).exists()
    assert len(read_records(project.output)["cases"]) == len(project.items)


@needs_locks
def test_a_worker_that_outlives_its_process_does_not_hold_its_lock(project, worker):
    process = worker(fork=True)
    kill(process)
    os.kill(process.child, 0)  # it is still there
    assert len(project.records().pending(project.items)) == 9


def test_an_interrupted_run_of_the_same_process_is_no_other_run(project):
    first = project.records()
    project.do(first, first.pending(project.items)[0])
    second = project.records()
    assert len(second.pending(project.items)) == 9


def test_shares_and_one_process_record_the_same(project, tmp_path):
    other = Project(tmp_path / "other").write()
    project.segment(breaks=["c4"]).finish()
    for number in (3, 1, 2):  # as they come
        other.segment(Share(number, 3), breaks=["c4"]).finish()

    one, three = ((each.output / "results.json").read_text() for each in (project, other))
    contents = [json.loads(text) for text in (one, three)]
    for content in contents:
        for case in content["cases"].values():  # where it lies, when it was written
            del case["image"], case["input"]
        for configuration in content["configurations"].values():
            del configuration["prior_file"]
    assert json.dumps(contents[0]) == json.dumps(contents[1])  # in the same order too
    assert sorted(path.name for path in project.output.iterdir()) == sorted(p.name for p in other.output.iterdir())


def test_the_exit_code_tells_some_from_all(project):
    for breaks, code in ((["c4"], 3), ([item["case"] for item in project.items], 1)):
        records = CaseRecords(project.output, project.folder / "prior.pt", settings={}, overwrite=True)
        for item in records.pending(project.items):
            project.do(records, item, breaks)
        records.finish()
        with pytest.raises(FailedCases) as caught:
            records.check()
        assert caught.value.exit_code == code


def test_without_locks_one_process_works_and_shares_are_refused(project, monkeypatch):
    for module in ("files", "inference.journals"):
        monkeypatch.setattr(f"scripts.{module}.fcntl", None)
    with pytest.raises(RefusedError, match="has no locks"):
        project.records(Share(1, 2)).pending(project.items)
    records = project.segment()
    records.finish()
    assert len(records.done) == 10 and records.last


# ---- journals


def test_half_a_line_is_what_a_killed_process_did_not_finish(tmp_path):
    journal = Journal(tmp_path, ["a", "b"], configurations={})
    journal.add("a", {"status": "done"})
    journal.let_go()
    with open(journal.path, "a") as file:
        file.write('["b", {"sta')
    (found,) = found_journals(tmp_path)
    assert found.records == {"a": {"status": "done"}} and not (found.alive and bundle_files.fcntl)


def test_a_record_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    files, write = RecordFiles(tmp_path), os.write
    files.take(["a", "b"], {})
    for case in ("a", "b"):
        files._known = 1000  # nothing goes into results.json
        files.add(case, {"status": "running"}, {})

    def full(descriptor: int, line: bytes) -> int:
        if len(line) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, line[: len(line) - 5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            files.add("a", {"status": "done"}, {})
    assert {case: record["status"] for case, record in files.read()["cases"].items()} == dict.fromkeys("ab", "running")
    files.add("a", {"status": "done"}, {})
    files.close()

    assert json.loads((tmp_path / "results.json").read_text())["cases"]["a"]["status"] == "done"


def test_a_journal_of_something_else_is_named(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(DatasetError, match=r"a.jsonl' is not the journal of an inference"):
        read_records(tmp_path)


def test_records_of_many_cases_are_written_a_few_times_each(tmp_path, monkeypatch):
    """Each record that is written anew would make it the square of their number."""
    written, write = [], record_files._write
    monkeypatch.setattr(
        record_files, "_write", lambda output, content: written.append(len(content["cases"])) or write(output, content)
    )
    files = RecordFiles(tmp_path)
    for number in range(1000):
        for status in ("running", "done"):
            files.add(str(number), {"status": status}, {})
    files.close()

    assert written[-1] == 1000 and sum(written) < 12 * 1000
    assert set(map(len, read_records(tmp_path).values())) == {0, 1000}
