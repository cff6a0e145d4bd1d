"""``results.json`` of an output folder, which any number of processes keep together.

    {"configurations": {"1f0c...": {"version": ..., "prior_file": ..., "prior_sha256": ..., "settings": {...}}},
     "cases": {"a": {"image": ..., "status": "done", "configuration": "1f0c...", "seconds": ..., "files": {...}, ...}}}

Written anew for each of n cases, it would cost n squared. So a process notes records in its own journal
(:mod:`scripts.inference.journals`), and puts them into the file at its end, and before that whenever they are many
beside what is there: after every record at first, later when a quarter of all is new. Both together are always
complete, whenever a process is killed.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.datalists import natural_order
from ..errors import DatasetError, RefusedError
from ..files import json_of, locked, whole_file
from .journals import Found, Journal, end_own, found_journals, refuse_taken
from .record_fields import check_kind, check_record, names_only_results

RECORDS = "results.json"

_SMALL = 32  # cases up to which the file is written anew for each record
_NEW_SHARE = 4  # beyond it, one part in so many must be new

Content = dict[str, dict[str, Any]]


class RecordFiles:
    """The records of an output folder.

    Args:
        output: the folder, absolute.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._journal: Journal | None = None
        self._known = 0  # cases in results.json when this process wrote it
        self._finalizer: weakref.finalize | None = None

    def read(self) -> Content:
        """All records there are, of others at work too; see :func:`read_records`."""
        return read_records(self.output)

    def take(self, cases: Iterable[str], configurations: Mapping[str, Any], alone: bool = True) -> None:
        """Takes cases for this process, and puts what killed processes noted into ``results.json``.

        Args:
            cases: names of their results.
            configurations: that their records will refer to, by digest.
            alone: whether no other process is to work on this folder now.

        Raises:
            RefusedError: another process has taken one of them; or others are expected, but the file system has no
                locks, so that nobody can tell who is at work.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        end_own(self.output)
        cases = list(cases)
        with locked(self.output):
            journals = found_journals(self.output)
            refuse_taken(self.output, cases, journals)
            self._settle(journals)
            self._journal = Journal(self.output, cases, configurations=configurations)
            self._finalizer = weakref.finalize(self, _leave_unended, self.output, self._journal, os.getpid())
            if not (self._journal.locked or alone):
                self.close()
                raise RefusedError(
                    f"'{self.output}': the file system has no locks, by which processes that share the cases see one "
                    "another. Set --output to a folder of its own for each share, or to another file system."
                )

    def settle(self) -> None:
        """Puts what killed processes noted into ``results.json``, where this one has no case to take."""
        if found_journals(self.output):
            with locked(self.output):
                self._settle(found_journals(self.output))

    def _settle(self, journals: Iterable[Found]) -> None:
        left = [journal for journal in journals if not journal.alive]
        if left:
            self._known = _write(self.output, _merged(_results(self.output), left))
            for journal in left:
                journal.path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: others are at work
                left[0].path.parent.rmdir()

    def add(self, case: str, record: Mapping[str, Any], configurations: Mapping[str, Any]) -> None:
        """Records a case, in the place of an earlier record.

        Raises:
            OSError: it cannot be written.
        """
        if self._journal is None or not self._journal.is_open:
            self.take((), configurations)
        assert self._journal is not None
        self._journal.add(case, record)
        if self._journal.added >= (1 if self._known <= _SMALL else self._known // _NEW_SHARE):
            self._known = _put(self.output, self._journal)

    def close(self) -> bool:
        """Puts everything into ``results.json`` and lets go of the cases; whether no other process is at work now."""
        if self._finalizer is not None and self._finalizer.detach() and self._journal is not None:
            _leave(self.output, self._journal)
        self._journal = self._finalizer = None
        return not any(journal.alive for journal in found_journals(self.output))


def read_records(output: Path) -> Content:
    """The records in a folder, those that are not in its ``results.json`` yet too.

    Returns:
        ``{"configurations": {...}, "cases": {...}}``, both empty where there is none.

    Raises:
        DatasetError: a ``results.json`` of something else.
    """
    output = Path(os.path.abspath(output))
    if not output.is_dir():
        return {"configurations": {}, "cases": {}}
    with locked(output):
        return _merged(_results(output), found_journals(output))


def _results(output: Path) -> Content:
    path = output / RECORDS
    if not path.is_file():
        return {"configurations": {}, "cases": {}}
    try:
        content = json_of(path.read_text(encoding="utf-8"))
        found = {key: {name: dict(each) for name, each in content[key].items()} for key in ("configurations", "cases")}
        for name, each in found["configurations"].items():
            check_kind(f"settings of configuration '{name}'", each.get("settings", {}), dict)
        for name, each in found["cases"].items():
            check_record(name, each)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"'{path}' is not the record of an inference ({type(error).__name__}: {error}). Remove it, and "
            "every case is segmented again, or set --output to another folder."
        ) from error


def _merged(content: Content, journals: Iterable[Found]) -> Content:
    """Records of journals in the place of older ones, and the configurations that any case has.

    A record that names files elsewhere is none: its case is segmented again.
    """
    cases, configurations = content["cases"], content["configurations"]
    for journal in journals:
        cases |= journal.records
        configurations |= journal.about["configurations"]
    cases = {name: each for name, each in cases.items() if names_only_results(each)}
    used = {case.get("configuration") for case in cases.values()}
    return {
        "configurations": {digest: each for digest, each in configurations.items() if digest in used},
        "cases": cases,
    }


def _write(output: Path, content: Content) -> int:
    """Writes the file, with cases in natural order, whoever was done first; how many there are."""
    cases = content["cases"]
    content = {**content, "cases": {name: cases[name] for name in sorted(cases, key=natural_order)}}
    with whole_file(output / RECORDS) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return len(content["cases"])


def _put(output: Path, journal: Journal) -> int:
    """Puts a journal's records into ``results.json``; how many cases there are then."""
    with locked(output):
        number = _write(output, _merged(_results(output), [journal.read()]))
        journal.clear()
    return number


def _leave(output: Path, journal: Journal) -> None:
    if journal.is_open and output.is_dir():  # and no later run of this process has taken it over
        if journal.added:
            _put(output, journal)
        journal.close()


def _leave_unended(output: Path, journal: Journal, process: int) -> None:
    """The end of a run that nobody has ended, as after an interruption."""
    if process == os.getpid():  # and not in the copy that a forked worker has
        with suppress(OSError, DatasetError):  # the next run finds what the journal holds
            _leave(output, journal)
