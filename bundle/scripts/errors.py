"""What a user sees when an input is at fault: the message alone, instead of a traceback through MONAI's config
parser.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

_SCRIPTS = Path(__file__).resolve().parent
_USER_ERRORS = (ValueError, FileNotFoundError, RuntimeError)


def user_error(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that this bundle itself raised about its input, if there is one."""
    found = None
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, _USER_ERRORS) and frames and Path(frames[-1].filename).resolve().parent == _SCRIPTS:
            found = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def install() -> None:
    """Makes uncaught errors that this bundle raised end the program with their message and exit code 1.

    Set ``DIFFUSAM_TRACEBACK=1`` to see the whole traceback.
    """
    default = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = user_error(error)
        if found is None or os.environ.get("DIFFUSAM_TRACEBACK"):
            default(kind, error, trace)
        else:
            print(f"\nerror: {found}", file=sys.stderr)

    sys.excepthook = excepthook
