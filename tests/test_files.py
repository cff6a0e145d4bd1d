"""Files that are there whole or not at all, under temporary names that nobody can guess."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import files
from scripts.errors import UnusableFileError
from scripts.files import json_of, whole_file
from scripts.inference.journals import Journal
from scripts.weights import load_tensors, not_finite, on_cpu, save_atomically

from tests.helpers.workflows import BUNDLE


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_json_that_is_nested_too_deeply_is_no_json():
    assert json_of('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "[1,]"):
        with pytest.raises(ValueError):
            json_of(text)


def test_temporary_names_are_others_each_time(tmp_path):
    seen = set()
    for _ in range(20):
        with whole_file(tmp_path / "a.txt") as temporary:
            seen.add(temporary.name)
            temporary.write_text("x")
    assert len(seen) == 20 and names(tmp_path) == ["a.txt"]


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as of a write, which names nothing
    assert caught.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    with whole_file(tmp_path / "a.txt") as first:
        first.write_text("first")
        with whole_file(tmp_path / "a.txt") as second:
            second.write_text("second")
        assert (tmp_path / "a.txt").read_text() == "second" and first.read_text() == "first"
    assert (tmp_path / "a.txt").read_text() == "first" and names(tmp_path) == ["a.txt"]


def test_a_link_under_an_old_temporary_name_is_not_followed(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (".part-a.txt", f".part-{os.getpid()}-a.txt"):
        (folder / name).symlink_to(outside)

    with whole_file(folder / "a.txt") as temporary:
        temporary.write_text("new")

    assert outside.read_text() == "mine" and (folder / "a.txt").read_text() == "new"


def test_files_may_be_read_by_whom_the_user_lets_read(tmp_path):
    (tmp_path / "other.txt").touch()
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "other.txt").stat().st_mode


WRITER = """
import sys, time; sys.path.insert(0, {bundle!r})
from scripts.files import whole_file
with whole_file({path!r}) as temporary:
    temporary.write_text("half"); print("ready", flush=True); time.sleep(120)
"""


@pytest.fixture
def writer(tmp_path):
    """Another program that is in the middle of writing ``b.txt``."""
    program = WRITER.format(bundle=str(BUNDLE), path=str(tmp_path / "b.txt"))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system")
def test_what_a_killed_program_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path, writer):
    (tmp_path / ".part-old").write_text("of a version without locks")
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()
    kept = names(tmp_path)
    writer.kill()
    writer.wait()
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()

    assert len(kept) == 2 and kept[0].startswith(".part-") and kept[0].endswith("-b.txt") and kept[1] == "a.txt"
    assert names(tmp_path) == ["a.txt"]


def is_open(path: Path) -> bool:
    """Whether this process has a file open."""
    wanted, found = path.stat(), []
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            found.append(os.fstat(int(each)))
    return any(os.path.samestat(wanted, each) for each in found)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nothing says which files are open")
@pytest.mark.parametrize("system", ["Windows", "a file system without locks"])
def test_without_locks_a_file_is_replaced_or_removed_once_it_is_closed(tmp_path, monkeypatch, system):
    """Windows neither replaces nor removes a file that is open."""
    no_locks = SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    monkeypatch.setattr(files, "fcntl", None if system == "Windows" else no_locks)
    replace, unlink, still_open = Path.replace, Path.unlink, []

    def noted(change):
        return lambda path, *rest, **more: (
            still_open.append(path.exists() and is_open(path)) or change(path, *rest, **more)
        )

    monkeypatch.setattr(Path, "replace", noted(replace))
    monkeypatch.setattr(Path, "unlink", noted(unlink))
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    with pytest.raises(ValueError), whole_file(tmp_path / "b.txt"):
        raise ValueError
    journal = Journal(tmp_path, ["a"], configurations={})
    journal.add("a", {})
    journal.close()
    with files.locked(tmp_path):
        assert files.hold(tmp_path / "held", "me") is None
    files.let_go(tmp_path / "held")

    assert len(still_open) >= 4 and not any(still_open)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "x"


def test_looking_for_what_killed_programs_left_costs_no_square_of_the_files(tmp_path, monkeypatch):
    seen, scandir = [], os.scandir
    monkeypatch.setattr(files.os, "scandir", lambda folder: seen.extend(entries := list(scandir(folder))) or entries)
    for number in range(400):
        with whole_file(tmp_path / f"{number}.txt") as temporary:
            temporary.touch()
    assert 0 < len(seen) < 20 * 400  # looked through at each write, it would be 80 000


# ---- tensors


def test_the_same_content_gives_the_same_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_atomically({"x": torch.arange(5.0), "about": [1, "x"]}, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("at", [0, 1, 100, -200])
def test_a_file_that_is_cut_off_is_refused(tmp_path, at):
    path = tmp_path / "a.pt"
    save_atomically({"x": torch.arange(5000.0)}, path)
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(UnusableFileError, match=r"is no trained prior, or damaged \(.*\)\. Do this\."):
        load_tensors(path, "trained prior", remedy="Do this.")


def test_a_bit_that_changed_in_a_tensor_is_noticed(tmp_path):
    """PyTorch writes checksums, and does not compare them."""
    path = tmp_path / "a.pt"
    save_atomically({"x": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(2000)) + 1000] ^= 4
    path.write_bytes(content)

    with pytest.raises(UnusableFileError, match="is no trained prior, or damaged .*its part '.*' is not as it was"):
        load_tensors(path, "trained prior", remedy="Do this.")


def test_code_in_a_file_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"x": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(UnusableFileError):
        load_tensors(tmp_path / "a.pt", "trained prior", remedy="Do this.")
    assert not (tmp_path / "made").exists()


def test_tensors_that_are_not_finite_are_named_at_any_depth():
    spoilt = torch.tensor([1.0, float("nan")])
    state = {"a": torch.ones(2), "b": {"c": spoilt, "d": torch.tensor([1])}, "e": "text", "f": -spoilt / 0}
    assert not_finite(state) == ["b.c", "f"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_a_gpu_holds_is_saved_on_the_cpu():
    state = on_cpu({"x": torch.ones(2, device="cuda"), "y": [torch.ones(1, device="cuda")]})
    assert state["x"].device.type == state["y"][0].device.type == "cpu"


def test_numbers_of_numpy_are_read_again(tmp_path):
    save_atomically(on_cpu({"lr": np.float64(0.5), "steps": [np.int64(3)]}), tmp_path / "a.pt")
    assert load_tensors(tmp_path / "a.pt", "checkpoint", remedy="") == {"lr": 0.5, "steps": [3]}


def test_every_tensor_of_a_state_is_moved_to_the_cpu(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self) or self)
    on_cpu({"x": torch.ones(2), "y": [torch.ones(1), {"z": torch.ones(1)}], "n": 3})
    assert len(moved) == 3
