"""What a user sees when an input is at fault: the message alone, instead of a traceback through MONAI's config
parser.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

SHOWN = 10  # names or values that a message lists before it says "and n more"

_SCRIPTS = Path(__file__).resolve().parent
_USER_ERRORS = (ValueError, FileNotFoundError, RuntimeError)


class DatasetError(ValueError):
    """Data that cannot be used as declared. The message names each file, what was found and expected, the remedy."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things: ``count(2, "file")`` is "2 files"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(values: Iterable[object], shown: int = SHOWN) -> str:
    """Values one after another; of many, the first few."""
    texts = [f"'{value}'" if isinstance(value, Path) else str(value) for value in values]
    rest = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + rest


def user_error(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that this bundle itself raised about its input, if there is one."""
    found = None
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, _USER_ERRORS) and frames and _SCRIPTS in Path(frames[-1].filename).resolve().parents:
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def install() -> None:
    """Makes uncaught errors that this bundle raised, and interruptions, end the program with a message alone.

    Set ``DIFFUSAM_TRACEBACK=1`` to see the whole traceback.
    """
    default = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted: given again, training and inference go on where they were", file=sys.stderr)
            return
        found = user_error(error)
        if found is None or os.environ.get("DIFFUSAM_TRACEBACK"):
            default(kind, error, trace)
        else:
            print(f"\nerror: {found}", file=sys.stderr)

    sys.excepthook = excepthook
