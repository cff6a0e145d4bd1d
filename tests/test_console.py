"""How far something is, on a terminal and in a log, and what of others' messages is kept out."""

from __future__ import annotations

import io
import logging
import os
import pty
import warnings

import pytest
from ignite.engine import Engine
from monai.transforms import Orientationd
from scripts import console
from scripts.console import Progress, counted, start
from scripts.training.handlers import LossProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def loggers(monkeypatch):
    """Levels and filters as they were before the test."""
    names = ["monai.bundle.scripts", "tensorboard", *(f"ignite.engine.engine.{name}" for name in console._ENGINES)]
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    with warnings.catch_warnings():
        yield
    for each, level in before:
        each.setLevel(level)
        each.removeFilter(console._tells_a_user)


def test_a_log_gets_a_line_twice_a_minute_with_the_time_that_is_left(clock):
    log = io.StringIO()
    progress = Progress(8, "encoding a", file=log)

    for second in range(0, 61, 10):  # one is done each 30 s
        clock[0] = second
        progress.to(second / 30, loss=0.25)
    progress.close()

    assert log.getvalue().splitlines() == [
        "encoding a: 12% after 00:30, 03:30 left, loss 0.25",
        "encoding a: 25% after 01:00, 03:00 left, loss 0.25",
    ]


def test_what_was_done_before_does_not_make_the_time_left_shorter(clock):
    log = io.StringIO()
    progress = Progress(100, "training", initial=50, file=log)

    clock[0] = 30
    progress.to(60)

    assert log.getvalue() == "training: 60% after 00:30, 02:00 left\n"


def test_what_is_quick_leaves_no_line_in_a_log(clock, capsys):
    assert list(counted("abc", "checking")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_at_once():
    terminal = Terminal()

    Progress(3, "writing phantoms", file=terminal)

    assert "writing phantoms:   0%|" in terminal.getvalue()


def test_a_terminal_that_does_not_say_how_wide_it_is_gets_a_bar_too():
    ours, theirs = pty.openpty()  # 0 columns, until somebody sets them
    with os.fdopen(theirs, "w") as terminal:
        Progress(3, "checking", file=terminal).close()
        shown = os.read(ours, 1000).decode()
    os.close(ours)

    assert "checking:   0%|" in shown


def test_a_name_cannot_move_the_cursor():
    terminal = Terminal()
    progress = Progress(3, "a\x1b[2J", file=terminal)

    progress.to(2, "b\x1b[2J\nc")
    progress.close()

    assert "\x1b[2J" not in terminal.getvalue()
    assert "a\\x1b[2J" in terminal.getvalue() and "b\\x1b[2J\\nc" in terminal.getvalue()


def test_a_training_has_one_bar_over_all_its_epochs(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stderr", terminal)
    engine = Engine(lambda engine, batch: [{"loss": 0.5}])
    LossProgressBar(iterations=6).attach(engine)

    engine.run(range(3), max_epochs=2)

    shown = terminal.getvalue()
    assert "training: 100%|" in shown and "loss 0.5" in shown and "Epoch" not in shown


def test_what_a_user_can_do_nothing_about_is_kept_out(loggers, caplog):
    start()
    engine = logging.getLogger("ignite.engine.engine.CaseEvaluator")
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
        engine.info("Engine run finished. Time taken: %s", "00:00:01")
        engine.info("Terminate current epoch is signaled. Current epoch iteration will stop.")
        logging.getLogger("tensorboard").info("No path found after x")
        Orientationd(keys="image", axcodes="PLS")

    assert caplog.messages == [] and warned == []


def test_what_a_user_needs_is_kept(loggers, caplog):
    start()
    caplog.clear()
    engine = logging.getLogger("ignite.engine.engine.CaseEvaluator")
    with caplog.at_level(logging.INFO):
        engine.info("Restored all variables from %s", "model.pt")
        engine.error("Engine run is terminating due to exception: %s", "x")
        logging.getLogger("tensorboard").error("cannot be written")

    assert caplog.messages == [
        "Restored all variables from model.pt",
        "Engine run is terminating due to exception: x",
        "cannot be written",
    ]


def test_what_is_imported_is_left_alone_by_the_garbage_collector_from_the_first_workflow_on(loggers, monkeypatch):
    """Not again at the second, which would keep the garbage of the first for ever."""
    frozen = []
    monkeypatch.setattr(console.gc, "freeze", lambda: frozen.append("all"))
    monkeypatch.setattr(console.gc, "get_freeze_count", lambda: len(frozen))

    start()
    start()

    assert frozen == ["all"]
