"""What a user sees when an input is at fault: the message alone, instead of a traceback through MONAI's config
parser.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

SHOWN = 10  # names or values that a message lists before it says "and n more"

_SCRIPTS = Path(__file__).resolve().parent
_USER_ERRORS = (ValueError, FileNotFoundError, RuntimeError)


class DatasetError(ValueError):
    """Data that cannot be used as declared. The message names each file, what was found and expected, the remedy."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: object) -> str:
    r"""A text in which nothing moves a terminal's cursor, changes its colours or turns the writing round.

    Names of files, organs and DICOM series may hold such characters. They become escapes such as ``\x1b``; line breaks
    stay, see :func:`one_line`.

    Example:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each == "\n" or each == "\t" or _is_harmless(each) else _escape(each) for each in text)


def one_line(text: object) -> str:
    """The same, with line breaks as escapes too: for a name, which cannot then begin a line that looks like another."""
    return "".join(_escape(each) if each in "\n\t" else each for each in printable(text))


def indented(text: str) -> str:
    """Every line but the first set in, by which it can be told from the beginning of a message."""
    first, *rest = text.split("\n")
    return "\n".join([first, *(line if not line or line[0] in " \t" else f"  {line}" for line in rest)])


def _is_harmless(character: str) -> bool:
    # isprintable is False for controls, for the marks that reverse the order of writing, and for all spaces but one
    return character.isprintable() or character == "\u00a0" or character == "\u3000"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things: ``count(2, "file")`` is "2 files"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(values: Iterable[object], shown: int = SHOWN) -> str:
    """Values one after another; of many, the first few."""
    texts = [one_line(f"'{value}'" if isinstance(value, Path) else value) for value in values]
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
            print(f"\nerror: {indented(printable(found))}", file=sys.stderr)

    sys.excepthook = excepthook
    _escape_logs()


def _escape_logs() -> None:
    """Makes every message of a log printable, with its further lines set in, whoever writes it and wherever it goes."""
    make = logging.getLogRecordFactory()
    if getattr(make, "escapes", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        with suppress(TypeError, ValueError, KeyError):  # a message and values that do not fit, as logging itself says
            made.msg, made.args = indented(printable(made.getMessage())), None
        return made

    record.escapes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    show = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: show(printable(message), *args, **kwargs)
