"""What a user sees while a workflow is at work: how far it is, and what the libraries below have to say to a user."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from typing import Any, TextIO, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .errors import one_line, say

LINES_EVERY = 30.0  # seconds between two lines where there is no terminal

# what engines say of themselves, which stands in the bar and in the lines of the bundle
_OF_ENGINES = (
    "Engine run resuming from",
    "Engine run finished",
    "Engine run complete",
    "Terminate current epoch is signaled",
    "Epoch[",
    "Got new best metric",
)
_ENGINES = ("DiffuSAMTrainer", "AutoMedSAMTrainer", "SupervisedEvaluator", "CaseEvaluator")
_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
_T = TypeVar("_T")

logger = logging.getLogger(__name__)


def start() -> None:
    """Says that a workflow has begun, and keeps out what others say and a user can do nothing about.

    That is: a default that MONAI is about to change, and that the bundle relies on in neither form; the options, which
    MONAI repeats; where TensorBoard looks for files; and when an engine begins, ends, or finds a better number. Their
    errors, and every other warning, are shown.

    Python need not look any more for garbage among what is imported: it would at the end of the program, for seconds.
    """
    if not gc.get_freeze_count():  # once: a program of several workflows has garbage by then
        gc.freeze()
    warnings.filterwarnings("ignore", r"monai\.transforms\.spatial\.\w+ Orientationd?\.__init__:labels", FutureWarning)
    for name in ("monai.bundle.scripts", "tensorboard"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _ENGINES:
        engine = logging.getLogger(f"ignite.engine.engine.{name}")
        engine.removeFilter(_tells_a_user)
        engine.addFilter(_tells_a_user)
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks for all
        logger.info("Loading networks and looking for the data ...")


def _tells_a_user(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not str(record.msg).startswith(_OF_ENGINES)


class Progress:
    """How far something is: a bar on a terminal; elsewhere, as in a log file, a line twice a minute.

    What takes less than half a minute leaves no line. Names in descriptions are made printable.

    Args:
        total: of what is to be done, in any unit; parts of one may be told.
        description: what is done.
        initial: what was done before, which the time left does not count as quick.
        keep: whether a bar stays when it is full.
        file: standard error by default.
        shown: False for nothing at all, as in all processes but one.
    """

    def __init__(
        self,
        total: float,
        description: str,
        *,
        initial: float = 0,
        keep: bool = True,
        file: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        self.file: TextIO = file or sys.stderr
        self.total, self.initial, self.description = total, initial, one_line(description)
        self.bar: Any = None
        self._began = self._said = time.monotonic()
        self._values, self._shown = "", shown
        if shown and self.file.isatty():
            self.bar = tqdm(
                total=total,
                initial=initial,
                desc=self.description,
                file=self.file,
                leave=keep,
                smoothing=0.1,
                ncols=_columns(self.file),
                bar_format=_BAR,
            )

    def to(self, done: float, description: str | None = None, **values: float) -> None:
        """Shows that so much of the total is done; ``values``, such as losses, stand beside it."""
        if description is not None:
            self.description = one_line(description)
        if values:
            self._values = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_description_str(self.description, refresh=False)
            self.bar.set_postfix_str(self._values, refresh=False)
            self.bar.update(done - self.bar.n)
        elif self._shown and time.monotonic() - self._said >= LINES_EVERY:
            self._said = time.monotonic()
            say(self._line(done), self.file)

    def log(self, target: logging.Logger, *message: Any) -> None:
        """Logs a message at the level INFO, above the bar."""
        with nullcontext() if self.bar is None else logging_redirect_tqdm():
            target.info(*message)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self, done: float) -> str:
        elapsed = time.monotonic() - self._began
        share = done / self.total if self.total else 1.0
        left = ""
        if done > self.initial:
            seconds = elapsed / (done - self.initial) * (self.total - done)
            left = f", {tqdm.format_interval(seconds)} left"
        values = self._values and f", {self._values}"
        return f"{self.description}: {share:.0%} after {tqdm.format_interval(elapsed)}{left}{values}"


def _columns(terminal: TextIO) -> int | None:
    """80 for a terminal that does not say how wide it is, as in some containers: tqdm would draw nothing there."""
    try:
        return None if os.get_terminal_size(terminal.fileno()).columns else 80
    except (OSError, ValueError):  # no file of the system
        return None


def counted(items: Collection[_T], description: str, shown: bool = True) -> Iterator[_T]:
    """The items one after another, with a bar that goes when all are done."""
    progress = Progress(len(items), description, keep=False, shown=shown)
    try:
        for number, item in enumerate(items, 1):
            yield item
            progress.to(number)
    finally:
        progress.close()
