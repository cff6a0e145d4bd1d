"""The commands; the package's docstring shows how they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import fire
from fire import decorators

if not __package__:  # run by the folder's path instead of as a module: sys.path then starts with it, not the bundle's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.arguments import is_nothing, options_in, refuse_empty, refuse_twice  # noqa: E402
from scripts.errors import UnknownSettingError, install, printable  # noqa: E402
from scripts.prepare.btcv import prepare_btcv  # noqa: E402
from scripts.prepare.chaos import prepare_chaos  # noqa: E402
from scripts.prepare.decathlon import prepare_decathlon  # noqa: E402
from scripts.prepare.folder import prepare_folder  # noqa: E402

# texts that Fire passes on as they are: it would take {case} for a Python set
TEXTS = ("source", "output", "image", "label", "modality", "series", "default_axcodes", "trusted_form")


def main() -> None:
    """Runs the command that the program's arguments name, and prints what it returns."""
    refuse_empty(sys.argv[1:])
    refuse_twice(sys.argv[1:])
    _refuse_nothing(sys.argv[1:])
    # the attribute in which decorators leave notes for Fire: with underscores, its help does not list it as a command
    decorators.FIRE_METADATA = "__fire_metadata__"
    as_text = decorators.SetParseFn(str, *TEXTS)
    commands = {"btcv": prepare_btcv, "chaos": prepare_chaos, "folder": prepare_folder, "decathlon": prepare_decathlon}
    fire.Fire({name: as_text(command) for name, command in commands.items()}, name="prepare", serialize=printable)


def _refuse_nothing(words: list[str]) -> None:
    """Refuses options that are to be nothing, and would be a text that says so; a folder may be called so.

    Raises:
        UnknownSettingError: one is.
    """
    for name, text in options_in(words).items():
        is_text = text == "null" or name in TEXTS
        if name not in ("source", "output") and text is not None and is_text and is_nothing(text):
            raise UnknownSettingError(f"--{name} is {text}, which would be taken for a text. Leave the option out.")


if __name__ == "__main__":
    install()
    main()
