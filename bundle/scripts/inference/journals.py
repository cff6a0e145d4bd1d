"""What processes at work on one output folder note: a journal each, which nobody else writes to.

A journal is a file in ``OUTPUT/.running``, locked for as long as its process lives. Its first line says who that is and
which cases it has taken; each further line is the record of a case, of which the last one counts. Since a lock ends
with its process, however that ends, a journal without a lock is what a killed process has left: its records are kept,
and its cases are free again.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import weakref
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, RefusedError, listed
from ..files import UMASK, fcntl, json_of
from .record_fields import check_kind, check_record

FOLDER = ".running"

_open: weakref.WeakSet[Journal] = weakref.WeakSet()  # of this process


class Journal:
    """This process's journal in an output folder.

    Attributes:
        path: of the file.
        locked: whether others can see that this process lives, which file systems without locks do not show.
        added: records since it was cleared.

    Args:
        output: the folder.
        cases: names of those that this process takes.
        configurations: that its records refer to.
    """

    def __init__(self, output: Path, cases: Iterable[str], *, configurations: Mapping[str, Any]) -> None:
        self.path, self._descriptor = _new_file(output / FOLDER)
        self.locked = _lock(self._descriptor, otherwise=False)
        self.added = self._size = 0
        _open.add(self)
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._write({**about, "cases": list(cases), "configurations": configurations})
        self._first_line = self._size

    def add(self, case: str, record: Mapping[str, Any]) -> None:
        """Notes the record of a case.

        Raises:
            OSError: it cannot be written; what there was is as before.
        """
        self._write([case, record])
        self.added += 1

    def read(self) -> Found:
        """What it holds."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as file:
            return _parsed(self.path, True, file.read())

    def clear(self) -> None:
        """Forgets its records, which are kept elsewhere now, but not the cases that it has taken."""
        os.ftruncate(self._descriptor, self._first_line)
        self.added, self._size = 0, self._first_line

    def close(self) -> None:
        """Removes it, and the folder of journals with the last one."""
        self.let_go()
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: others are at work
            self.path.parent.rmdir()

    @property
    def is_open(self) -> bool:
        """Whether it is this process's still."""
        return self._descriptor >= 0

    def let_go(self) -> None:
        """Ends the lock and leaves the file where it is, as the end of the process would."""
        _open.discard(self)
        if self.is_open:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, content: Any) -> None:
        line = (json.dumps(content) + "\n").encode()
        end = self._size + len(line)
        try:
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:  # half a line, as on a full disk, would spoil the next one
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size = end


@dataclass(frozen=True)
class Found:
    """What a journal holds.

    Attributes:
        alive: whether its process is still there.
        about: ``process``, ``host``, ``since``, ``cases``, ``configurations``.
        records: of cases, by name.
    """

    path: Path
    alive: bool
    about: Mapping[str, Any]
    records: Mapping[str, Any]


def found_journals(output: Path) -> list[Found]:
    """All journals in an output folder, this process's too, from the one that was written to first to the last.

    Raises:
        DatasetError: one of them is something else.
    """
    own = {journal.path: journal for journal in _open}
    found = []
    with suppress(FileNotFoundError):
        for path in (output / FOLDER).iterdir():
            with suppress(FileNotFoundError):  # its process has just ended
                at = path.stat().st_mtime_ns
                found.append((at, path, own[path].read() if path in own else _read(path)))
    return [journal for _, _, journal in sorted(found, key=lambda each: each[:2])]


def end_own(output: Path) -> None:
    """Lets go of the journals of earlier runs of this process, such as of one that was interrupted in a notebook."""
    for journal in [each for each in _open if each.path.parent == output / FOLDER]:
        journal.let_go()


def refuse_taken(output: Path, cases: Collection[str], others: Iterable[Found]) -> None:
    """Refuses cases that another process is at work on.

    Raises:
        RefusedError: another one has taken some of them.
    """
    for other in others:
        taken = set(other.about["cases"]).intersection(cases) if other.alive else ()
        if taken:
            who = f"process {other.about['process']} on {other.about['host']}, since {other.about['since']}"
            raise RefusedError(
                f"'{output}': another run ({who}) is at work on {len(taken)} of these cases "
                f"({listed(sorted(taken), 3)}). Wait until it has ended, or set --output to another folder. Processes "
                "that are to share the cases are started by torchrun, or each with a --share of its own."
            )


def _new_file(folder: Path) -> tuple[Path, int]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, path = tempfile.mkstemp(".jsonl", "", folder)
        except FileNotFoundError:  # the last of the others has just removed the folder
            continue
        os.chmod(path, 0o666 & ~UMASK)  # for who shares the folder; mkstemp keeps files to their owner
        return Path(path), descriptor


def _read(path: Path) -> Found:
    descriptor = os.open(path, os.O_RDWR)  # a lock over NFS needs a file that may be written
    try:
        alive = not _lock(descriptor, otherwise=True)
        with open(descriptor, "rb", closefd=False) as file:
            return _parsed(path, alive, file.read())
    finally:
        os.close(descriptor)


def _parsed(path: Path, alive: bool, content: bytes) -> Found:
    lines = content.split(b"\n")[:-1]  # what follows the last line break was not written to its end
    try:
        about, *records = [json_of(line) for line in lines] or [{}]
        found = Found(path, alive, {"cases": [], "configurations": {}, **about}, dict(records))
        check_kind("configurations", found.about["configurations"], dict)
        for case, record in found.records.items():
            check_record(case, record)
        return found
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"'{path}' is not the journal of an inference ({type(error).__name__}: {error}). Remove it, and its cases "
            "are segmented again."
        ) from error


def _lock(descriptor: int, otherwise: bool) -> bool:
    """Whether an open file could be locked; ``otherwise`` where there are no locks."""
    if fcntl is None:
        return otherwise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return otherwise
    return True


def _in_child() -> None:
    """A worker process must not hold the lock of its parent, which may be killed before it."""
    for journal in list(_open):
        journal.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
