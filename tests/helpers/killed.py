"""Commands in processes of their own that can be killed at any moment, for tests of what is left then.

A server imports once what the commands need, and is forked for each: a run takes what it takes itself, and not the ten
seconds of every start. It has no threads, which a fork would lose.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LATE = 600  # seconds after which a command hangs, on a busy machine
_TICK = os.sysconf("SC_CLK_TCK")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code, or the negative number of a signal.
        seconds: of CPU time that it took.
        said: what it printed.
        began: seconds of CPU time after which the first file lay in the folder that was watched; 0 without one.
    """

    code: int
    seconds: float
    said: str
    began: float = 0.0


def run(
    command: Callable[..., Any],
    log: Path,
    *args: Any,
    kill_after: float | None = None,
    watched: Path | None = None,
    at_work: bool = False,
) -> Ended:
    """Runs a function as a command.

    Args:
        command: a function of a module.
        log: file for what it prints.
        args: its arguments.
        kill_after: seconds of CPU time after which it is killed.
        watched: a folder that the command fills.
        at_work: whether these seconds count from its first file there on.

    Raises:
        TimeoutError: it goes on for ever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.loaded", command.__module__])
    process = context.Process(target=_command, args=(command, str(log), args))
    process.start()
    assert process.pid is not None
    begun, seconds, began = time.monotonic(), 0.0, 0.0
    while process.is_alive():
        seconds = max(seconds, _cpu_seconds(process.pid))
        if watched is not None and not began and any(path.is_file() for path in watched.rglob("*")):
            began = seconds
        if kill_after is not None and (began or not at_work) and seconds >= kill_after + (began if at_work else 0):
            process.kill()
            process.join()
        elif time.monotonic() - begun > LATE:
            process.kill()
            process.join()
            raise TimeoutError(f"{command.__name__}{args} goes on after {LATE} seconds.")
        process.join(0.01)
    return Ended(process.exitcode, seconds, log.read_text(errors="replace") if log.is_file() else "", began)


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def _command(command: Callable[..., Any], log: str, args: tuple[Any, ...]) -> None:
    """What ``python -m monai.bundle`` does around a command, in the process that was forked for it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for each in (1, 2):
        os.dup2(descriptor, each)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(each, "wb", 0), write_through=True) for each in (1, 2))
    code = 1
    try:
        command(*args)
        code = 0
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())
        except SystemExit as end:  # by which the bundle's hook says another exit code
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)
