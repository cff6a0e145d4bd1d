"""Command lines as a user would type them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


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
    return " ".join(
        f'"{word}"' if "'" in word and not set(word) & set('"\\$`!') else shlex.quote(word) for word in words
    )
