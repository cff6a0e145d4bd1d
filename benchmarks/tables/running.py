"""Runs a table's commands, in as many processes as wanted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

from .plan import CLOCK, Step, Table

_TRAINED: dict[Path, Lock] = {}  # one for each training's file


def run_steps(table: Table, rows: list[str], *, runs: list[str], jobs: int, after_each: Callable[[], Any]) -> None:
    """Runs the rows, ``jobs`` at a time, a training and the rows that need it one after the other.

    What is there, made by the command of now, is not made again. Output goes to log files; a command that fails leaves
    its row without a result of now, and the others run on.

    Args:
        table: what to run.
        rows: of the table.
        runs: of the table.
        jobs: commands at the same time.
        after_each: called after each training with its rows, and after each other row.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    chains: dict[Path, list[tuple[str, str]]] = {}  # of runs and rows, by the file that they need, or write
    for run in runs:
        for name in rows:
            training = table.rows[name].get("training")
            needed = table.trained(run, training) if training else table.result(run, name)
            chains.setdefault(needed, []).append((run, name))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run_chain, table, chain, threads) for chain in chains.values()]
        for future in as_completed(futures):
            future.result()
            after_each()


def _run_chain(table: Table, chain: list[tuple[str, str]], threads: int) -> None:
    wanted = [(run, name) for run, name in chain if not table.finished(run, name)]
    if len(wanted) < len(chain):
        names = ", ".join(f"{run}: {name}" for run, name in chain if (run, name) not in wanted)
        print(f"There already: {names}.", flush=True)
    if not wanted:
        return
    run, first = wanted[0]
    training = table.rows[first].get("training")
    if training is None or _prepare(table, run, training, threads):
        for run, name in wanted:
            _make(table, run, name, threads)


def _make(table: Table, run: str, name: str, threads: int) -> None:
    """Makes a row's result. One of other settings is set aside meanwhile, where no command can take it for its own, and
    comes back where there is no new one.
    """
    path, before = table.result(run, name), table.before(run)
    if path.is_file():  # and else what an interrupted command has left, which goes on from there
        _move(path, before)
    if _call(table.row_step(run, name), table.log(run, name), threads):
        table.mark_finished(run, name)
    old = before / path.name
    if not table.finished(run, name) and old.is_file() and "not_run" not in json.loads(old.read_text("utf-8")):
        _move(old, path.parent)
    _remove(old)


def _move(result: Path, folder: Path) -> None:
    """A result's file and folder, in place of another's."""
    _remove(folder / result.name)
    folder.mkdir(parents=True, exist_ok=True)
    for each in (result.with_suffix(""), result):
        if each.exists():
            each.rename(folder / each.name)


def _remove(result: Path) -> None:
    result.unlink(missing_ok=True)
    shutil.rmtree(result.with_suffix(""), ignore_errors=True)


def _prepare(table: Table, run: str, training: str, threads: int) -> bool:
    """Whether all that the rows of a training need first is there in the end."""
    start = table.content["trainings"][training].get("start")
    if start is not None and not _prepare(table, run, start, threads):
        return False
    return table.trained_by_rows(training) or _train(table, run, training, threads)


def _train(table: Table, run: str, name: str, threads: int) -> bool:
    """Whether the training's file is there in the end."""
    path = table.trained(run, name)
    with _TRAINED.setdefault(path, Lock()):  # which two chains may start from
        return path.is_file() or _train_once(table, run, name, path, threads)


def _train_once(table: Table, run: str, name: str, path: Path, threads: int) -> bool:
    clock, seconds, start = path.with_name(CLOCK), table.seconds(run, name), time.time()
    clock.parent.mkdir(parents=True, exist_ok=True)
    clock.write_text(json.dumps({"seconds": seconds, "started": start}) + "\n")
    try:
        return _call(table.training_step(run, name), table.log(run, name), threads) and path.is_file()
    finally:
        clock.write_text(json.dumps({"seconds": round(seconds + time.time() - start, 1)}) + "\n")


def _call(step: Step, log: Path, threads: int) -> bool:
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{step.run}: {step.name} ...", flush=True)
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(
            [sys.executable, *step.arguments], stdout=file, stderr=subprocess.STDOUT, env=environment
        ).returncode
    outcome = "done" if code == 0 else f"failed, see '{log}'"
    print(f"{step.run}: {step.name}: {outcome} ({time.perf_counter() - start:.0f} s)", flush=True)
    return code == 0
