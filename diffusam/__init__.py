"""The console command ``diffusam``, also ``python -m diffusam``: finds the bundle, whose room ``scripts.command`` does
the rest. In a checkout the bundle lies beside this package; an installation has it inside.
"""

from __future__ import annotations

import sys
from pathlib import Path


def bundle_root() -> Path:
    """The folder with the bundle's ``configs``, ``models`` and ``scripts``."""
    package = Path(__file__).resolve().parent
    installed = package / "bundle"
    return installed if installed.is_dir() else package.parent / "bundle"


def main() -> None:
    """The program; ends with its exit code."""
    sys.path.insert(0, str(bundle_root()))
    from scripts.command.program import program

    raise SystemExit(program(sys.argv[1:]))
