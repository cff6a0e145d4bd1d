"""The program ``diffusam``: which command, its help, and the exit codes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import fire
from fire.decorators import SetParseFn

from ..errors import BundleError, indented, install, printable
from . import commands, runs
from .doctor import doctor
from .options import PREPARATION
from .usage import UsageError, checked, declared_in, unknown

HELP = """usage: diffusam COMMAND ... [options]

Prompt-free organ segmentation in CT and MR, from no label or a few.

  segment SCAN... -o OUT    spleen, kidneys and liver in CT and MR
  learn FOLDER -o OUT       a model of your own from three labelled scans
  evaluate FOLDER -o OUT    how good a model is on labelled scans
  prepare FOLDER -o OUT     check labelled scans, and make them ready
  demo                      train and evaluate on phantoms, some minutes
  doctor                    what is installed, and whether it works

Each prints the command of the bundle that it stands for, and runs it; options
that a command does not know itself are passed on to that. For research, not
for diagnostic use.

diffusam COMMAND -h         the options of a command
diffusam --version
Exit codes: 0, 1 failed, 2 wrong use, 3 some scans failed."""
_HELP_OPTIONS = ("-h", "--help", "help")

# of each command the configurations whose entries are options too
COMMANDS: dict[str, tuple[Callable[..., int], Sequence[str]]] = {
    "segment": (commands.segment, (*runs.INFERRING, runs.MODALITY)),
    "learn": (commands.learn, runs.EVALUATING),
    "evaluate": (commands.evaluate, runs.EVALUATING),
    "prepare": (commands.prepare, ()),
    "demo": (commands.demo, runs.EVALUATING),
    "doctor": (doctor, ()),
}
INTERRUPTED = 130


def program(words: Sequence[str]) -> int:
    """Runs a command line, the words after ``diffusam``; returns the exit code."""
    install()
    try:
        return _program(list(words))
    except BundleError as error:
        return _said(error, error.exit_code)
    except KeyboardInterrupt:
        return _said("interrupted", INTERRUPTED)


def _program(words: list[str]) -> int:
    if not words or words[0] in _HELP_OPTIONS:
        print(HELP)
        return 0
    if words[0] == "--version":
        print(f"diffusam {_version()}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UsageError(unknown("command", name, COMMANDS))
    if name == "prepare" and commands.is_for_prepare(rest):
        return runs.run(runs.preparation(*rest), last=True)
    command, configs = COMMANDS[name]
    if any(word in _HELP_OPTIONS[:2] for word in rest):
        print(help_of(name))
        return 0
    own = [each for each in inspect.signature(command).parameters if each not in ("scans", "folder", "more", "options")]
    declared = declared_in(configs) if configs else set()
    line = checked(rest, [*own, *(PREPARATION if name == "prepare" else ())], declared)
    try:
        # words as they are, and no result printed
        return fire.Fire(SetParseFn(str)(command), command=line, name=f"diffusam {name}", serialize=lambda code: None)
    except fire.core.FireExit as end:
        return end.code


def help_of(name: str) -> str:
    return inspect.cleandoc(COMMANDS[name][0].__doc__ or "")


def _version() -> str:
    try:
        return version("diffusam-bundle")
    except PackageNotFoundError:  # run from a folder that nobody has installed
        return "(not installed)"


def _said(error: object, code: int) -> int:
    print(f"error: {indented(printable(error))}", file=sys.stderr)
    return code
