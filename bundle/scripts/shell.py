"""Command lines as a user would type them."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_NEXT = "DIFFUSAM_NEXT"  # set to 0 by a program that says itself what comes next
_SHARED = "DIFFUSAM_SHARED_OPTIONS"  # set to 1 by a program that gives several commands the same options


def tells_next() -> bool:
    """Whether a command says at its end which one comes next."""
    return os.environ.get(_NEXT) != "0"


def shares_options() -> bool:
    """Whether a command's options are those of other commands too, so that it need not use each of them."""
    return os.environ.get(_SHARED) == "1"


def as_step(shared: bool = False) -> dict[str, str]:
    """The environment for a command that is one step of another program.

    Args:
        shared: whether its options are those of the other steps too.
    """
    return {**os.environ, _NEXT: "0", **({_SHARED: "1"} if shared else {})}


def bundle_command(name: str, files: Sequence[str], options: Mapping[str, str | None]) -> list[str]:
    """A command ``python -m monai.bundle run NAME``; an option that is None is a flag alone."""
    config = files[0] if len(files) == 1 else f"[{','.join(map(repr, files))}]"
    return [python(), "-m", "monai.bundle", "run", name, "--config_file", config, *as_words(options)]


def config_files(text: str | None) -> list[str]:
    """The files of an option ``--config_file``: a list in Python's form, or names with commas between."""
    if text is None or text[:1] not in "[(":
        return [] if text is None else text.split(",")
    try:
        return [str(each) for each in ast.literal_eval(text)]
    except (ValueError, SyntaxError):
        return []


def as_words(options: Mapping[str, str | None]) -> list[str]:
    words: Iterable[tuple[str, ...]] = (
        (f"--{name}",) if value is None else (f"--{name}", value) for name, value in options.items()
    )
    return [word for pair in words for word in pair]


def python() -> str:
    """``python``, where a shell takes that for the interpreter that runs here, else the path of this one."""
    found = shutil.which("python")
    return "python" if found and os.path.samefile(found, sys.executable) and _prefix(found) else sys.executable


def _prefix(found: str) -> bool:
    # a virtual environment is told by the folder of its link, not by what the link leads to
    return os.path.abspath(os.path.dirname(found)) == os.path.abspath(os.path.dirname(sys.executable))


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the working directory."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def quoted(words: Sequence[str]) -> str:
    """A line for a POSIX shell, in which lists keep the look of the README."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if not word.isprintable():  # what would move a terminal's cursor, as escapes that Bash, Zsh and others undo
        return "$'" + "".join(_escaped(each) for each in word) + "'"
    return f'"{word}"' if "'" in word and not set(word) & set('"\\$`!') else shlex.quote(word)


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
