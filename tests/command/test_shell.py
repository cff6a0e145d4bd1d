"""``./demo`` and ``./check``: an environment is made once, what is installed is not installed again, and what is
missing is said. A script stands for Python, which notes what it is asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.workflows import ROOT

PYTHON = """#!/bin/sh
case "$*" in
    "-c import sys; sys.exit"*) exit {version} ;;
    "-m venv "*)
        [ {venv} = 0 ] || exit 1
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        for tool in ruff mypy pytest; do
            printf '#!/bin/sh\\necho "%s $*" >> "$LOG"\\n' "$tool" > "$3/bin/$tool"
            chmod +x "$3/bin/$tool"
        done ;;
    "-m pip "*) [ {pip} = 0 ] || exit 1 ;;
    "-c "*) exit 0 ;;
esac
echo "$*" >> "$LOG"
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The scripts in a checkout of their own, whose name has a space."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("demo", "check", ".setup.sh", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    write_python(tmp_path)
    return folder


def write_python(folder: Path, version: int = 0, venv: int = 0, pip: int = 0) -> None:
    """A Python that is found by each of its names; 1 stands for what it cannot do."""
    for name in ("python3", "python", *(f"python3.{minor}" for minor in range(10, 15))):
        (folder / "bin" / name).write_text(PYTHON.format(version=version, venv=venv, pip=pip))
        (folder / "bin" / name).chmod(0o755)


def run(checkout: Path, script: str, *words: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """The result, and what Python and the tools were asked for in this run."""
    log = checkout.parent / "log"
    log.write_text("")
    environment = {"PATH": f"{checkout.parent / 'bin'}:/usr/bin:/bin", "LOG": str(log), "HOME": os.environ["HOME"]}
    result = subprocess.run(
        ["sh", f"./{script}", *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    return result, log.read_text().splitlines()


def installed(asked: list[str]) -> list[str]:
    return [line.split(" install ")[1] for line in asked if " install " in line]


def test_the_demo_makes_an_environment_installs_and_runs(checkout):
    result, asked = run(checkout, "demo", "--iterations", "5")

    assert result.returncode == 0, result.stderr
    venv, install, demo = asked
    assert venv == f"-m venv {checkout / '.venv'}" and install.endswith("install -e .")
    assert demo == f"-m diffusam demo --output {checkout / 'bundle/runs/demo'} --iterations 5"


def test_the_check_runs_format_lint_types_and_tests(checkout):
    result, asked = run(checkout, "check")

    assert result.returncode == 0, result.stderr
    assert installed(asked) == ["-e .[dev]"]
    assert asked[-4:] == ["ruff format --check .", "ruff check .", "mypy ", "pytest -n 2 --dist loadfile"]


def test_words_behind_the_check_are_pytests(checkout):
    _, asked = run(checkout, "check", "-m", "slow")

    assert asked[-1] == "pytest -m slow" and "mypy " not in asked


def test_what_is_installed_is_not_installed_again(checkout):
    run(checkout, "demo")

    assert installed(run(checkout, "demo")[1]) == []
    assert installed(run(checkout, "check")[1]) == ["-e .[dev]"]
    assert installed(run(checkout, "demo")[1]) == []


def test_other_requirements_are_installed(checkout):
    run(checkout, "demo")
    with open(checkout / "pyproject.toml", "a") as file:
        file.write("# changed\n")

    assert installed(run(checkout, "demo")[1]) == ["-e ."]


@pytest.mark.parametrize(
    "lack, said",
    [
        ({"version": 1}, "error: no Python 3.10 or newer is on the path"),
        ({"venv": 1}, "apt install python3-venv"),
        ({"pip": 1}, "error: the installation failed"),
    ],
    ids=["Python", "venv", "pip"],
)
def test_what_is_missing_is_said_and_the_next_run_begins_again(checkout, lack, said):
    write_python(checkout.parent, **lack)

    result, asked = run(checkout, "demo")

    assert result.returncode == 1 and said in result.stderr
    assert not any("diffusam" in line for line in asked)
    if "pip" not in lack:  # an environment that is there is used
        write_python(checkout.parent)
        assert run(checkout, "demo")[0].returncode == 0


def test_a_folder_that_is_no_environment_is_left_alone(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/mine").touch()

    result, _ = run(checkout, "demo")

    assert result.returncode == 1 and "is there, but is no environment" in result.stderr
    assert (checkout / ".venv/mine").exists()
