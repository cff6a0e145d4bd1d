"""The help of benchmarks' command lines."""

from __future__ import annotations

import fire.core
import pytest

from benchmarks.program import run_command


def several(first: str, **settings) -> None:
    """Takes any setting."""
    raise AssertionError(f"was run with {first} and {settings}")


@pytest.mark.parametrize("line", ["--help", "-h", "table --help", "--help table"])
@pytest.mark.parametrize("commands", [several, {"table": several, "other": several}])
def test_help_is_no_setting_and_runs_nothing(monkeypatch, capsys, commands, line):
    monkeypatch.setattr("sys.argv", ["benchmark", *line.split()])
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(fire.core.FireExit) as exit:
        run_command(commands)
    assert exit.value.code == 0
    shown = "".join(capsys.readouterr())
    assert "SYNOPSIS" in shown and "Takes any setting." in shown


def test_other_arguments_go_to_the_command(monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["benchmark", "table", "1", "--rows", "[2]"])
    run_command({"table": lambda *args, **settings: seen.append((args, settings))})
    assert seen == [((1,), {"rows": [2]})]
