"""What every benchmark's command line has in common: Fire, and its help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import fire


def run_command(commands: Callable | Mapping[str, Callable], **options: Any) -> None:
    """``fire.Fire`` with this process's arguments. ``--help`` shows the help of a command that takes any setting, too,
    which Fire alone takes for a setting of that name.

    Args:
        commands: a function, or several by their names.
        options: of ``fire.Fire``.
    """
    given, *others = [*sys.argv[1:], ""]
    if not {"-h", "--help"} & {given, *others}:
        fire.Fire(commands, **options)
    elif isinstance(commands, Mapping) and given in commands:
        fire.Fire(commands[given], command=["--", "--help"], name=given)
    else:
        fire.Fire(commands, command=["--", "--help"])
