"""What a user sees when an input is at fault: the message alone, instead of a traceback through MONAI's config
parser.
"""

from __future__ import annotations

import difflib
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

WRONG_USE = 2  # exit code of what a user cannot have meant
SHOWN = 10  # names or values that a message lists before it says "and n more"

_GOES_ON = "given again, training and inference go on where they were"
# in what torch says of the CPU's memory, and of files that it cannot write
_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate"),
    "failed to map segment from shared object",  # of a library that is loaded
)
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "iostream error", "unexpected pos ")
_SYSTEM_REMEDIES = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or write to another disk.",
    errno.EROFS: "Write to another folder.",
    errno.EACCES: "Ask for permission, or use another folder.",
    errno.EPERM: "Ask for permission, or use another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EFBIG: "Raise the limit of the size of files (ulimit -f), or write to another disk.",
    errno.EEXIST: "Name a folder in its place, new or not.",
    errno.ENOTDIR: "Name a folder in its place.",
    errno.EISDIR: "Name a file in its place.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or set --num_workers to a smaller number.",
}
# where MONAI reads configurations and builds what they declare
_PARSER, _INSTANTIATION = os.path.join("monai", "bundle", ""), os.path.join("monai", "utils", "module.py")


class BundleError(Exception):
    """An error that is raised on purpose: its message says what is wrong, and what to do about it.

    A user sees the message alone. Whatever else is raised, by the bundle or below it, is a mistake in the program, and
    keeps its traceback.

    Attributes:
        exit_code: of a program that it ends.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class DatasetError(BundleError, ValueError):
    """Data that cannot be used as declared. The message names each file, what was found and expected, the remedy."""


class SettingError(BundleError, ValueError):
    """A setting, or an argument, that cannot be used, or does not fit the others."""


class UnknownSettingError(SettingError):
    """A setting that there is not: wrong use, which programs tell from a run that failed by the exit code."""

    exit_code = WRONG_USE


class MissingFileError(BundleError, FileNotFoundError):
    """A file or folder that is not there."""


class UnusableFileError(BundleError, ValueError):
    """A file of the bundle's own making, such as a prior, that is damaged, empty or something else."""


class RefusedError(BundleError, RuntimeError):
    """Something that cannot be done as things are."""


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


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The names, three at most, that a misspelt one may have been meant to be, the likeliest first.

    Args:
        name: as it was typed.
        names: that there are.
        cutoff: how like they must be, from 0 to 1; see :func:`difflib.get_close_matches`.

    Example:
        >>> nearest("iteration", ["seed", "iterations"])
        ['iterations']
    """
    return difflib.get_close_matches(name, sorted(set(names)), n=3, cutoff=cutoff)


def user_error(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that this bundle raised on purpose, if there is one: the first of several."""
    found = None
    for each in causes(error):
        if isinstance(each, BundleError):
            found = each
    return found


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised from or while it was handled, from the last to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def ending(error: BaseException | None) -> BaseException | None:
    """What was to end the program, in a chain of causes: pydoc, by which MONAI imports, wraps it in an error."""
    return next((each for each in causes(error) if isinstance(each, (KeyboardInterrupt, SystemExit))), None)


def system_error(error: BaseException | None) -> str | None:
    """What the machine could not do, in a line: write to a full disk, open a file, find memory; None for others."""
    for each in causes(error):
        text = str(each).strip()
        if isinstance(each, MemoryError) or any(said in text for said in _OUT_OF_MEMORY):
            return f"out of memory ({(text.splitlines() or ['no more could be had'])[-1].strip()[:200]})."
        if isinstance(each, OSError) and each.errno:
            names = " and ".join(f"'{name}'" for name in (each.filename, each.filename2) if name is not None)
            remedy = _SYSTEM_REMEDIES.get(each.errno, "")
            what = f"{(each.strerror or text).lower()} ({type(each).__name__})"
            return f"{names or 'a file'}: {what}.{remedy and ' '}{remedy}"
        if any(said in text for said in TORCH_CANNOT_WRITE):
            return f"a file could not be written to its end ({text.splitlines()[0][:200]}). Is the disk full?"
    return None


def configuration_error(error: BaseException | None) -> str | None:
    """What is wrong with a configuration, where MONAI's parser or an expression found it; None for other errors."""
    found, parsed = None, False
    for each in causes(error):
        frames = traceback.extract_tb(each.__traceback__)
        # a network's or a loss's own way to say that it has no such attribute, for which an expression asked
        asked = (
            [frame for frame in frames if frame.name != "__getattr__"] if isinstance(each, AttributeError) else frames
        )
        deepest = asked[-1].filename if asked else ""
        parsed = parsed or any(_PARSER in frame.filename for frame in frames)
        in_text = deepest == "<string>" or isinstance(each, SyntaxError)
        if in_text or _PARSER in deepest or deepest.endswith(_INSTANTIATION):
            found = each
        elif frames:  # found elsewhere, and only passed on by the parser
            found = None
    found = found or _unknown_argument(error)
    if found is None or not parsed:
        return None
    text = (str(found).strip().splitlines() or [""])[0][:400]
    return f"the configuration cannot be used ({type(found).__name__}: {text}). Correct it in the JSON or its option."


def _unknown_argument(error: BaseException | None) -> BaseException | None:
    """The error of a component that got an argument which it passes on to its base class, and which that does not know.

    Of the same error in the component's own calls, the configuration does not hold the argument.
    """
    given: set[str] = set()
    for each in causes(error):
        if found := re.match(r"Failed to instantiate component .* with keywords: (.*)", str(each)):
            given = set(found[1].split(","))
        found = re.search(r"unexpected keyword argument '(\w+)'", str(each)) if isinstance(each, TypeError) else None
        if found and found[1] in given:
            return each
    return None


def install() -> None:
    """Makes errors of this bundle, of the machine and of the configuration end the program with a message alone.

    So do interruptions, the signal by which queues of jobs end a program, and that of a terminal that is closed.

    Set ``DIFFUSAM_TRACEBACK=1`` to see the whole traceback.
    """
    default = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if end := ending(error):
            if isinstance(end, KeyboardInterrupt):  # of a signal to end it is said when that comes
                print(f"\ninterrupted: {_GOES_ON}", file=sys.stderr)
            return
        found: object = user_error(error)
        code = found.exit_code if isinstance(found, BundleError) else 1
        for other, other_code in ((system_error, 1), (configuration_error, WRONG_USE)):
            if found is None and (text := other(error)):
                found, code = f"{text} Set DIFFUSAM_TRACEBACK=1 to see where.", other_code
        if found is None or os.environ.get("DIFFUSAM_TRACEBACK"):
            default(kind, error, trace)
        else:
            print(f"\nerror: {indented(printable(found))}", file=sys.stderr)
        if code != 1:
            raise SystemExit(code)

    sys.excepthook = excepthook
    _open_streams()
    for stream in (sys.stdout, sys.stderr):  # of a terminal that has no letter for a name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _escape_logs()
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # not all of them on Windows
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _terminated)


def _open_streams() -> None:
    """Opens what a program is started without, as by some schedulers, to nowhere.

    Python has None in the place of a closed stream, at which bars and logs fail; and the next file that is opened would
    take its number, and with it whatever a library prints.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # it takes the lowest number that is free, and programs that this one starts have it too
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _terminated(number: int, frame: FrameType | None) -> None:
    """Ends the program as after an interruption: temporary files are removed on the way out."""
    with suppress(OSError):  # the terminal may be gone
        print(f"\nterminated: {_GOES_ON}", file=sys.stderr)
    raise SystemExit(128 + number)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line at once; one that cannot be written, as into a pipe that nobody reads any more, ends no work.

    Args:
        text: of the line; see :func:`printable`.
        file: standard output by default.
    """
    stream = file or sys.stdout
    try:
        print(printable(text), file=stream, flush=True)
    except OSError as error:
        _let_go(stream, error)


def _let_go(stream: Any, error: OSError) -> None:
    """Leads a stream whose reader is gone to nowhere: what is left in it would change the program's exit code."""
    if isinstance(error, BrokenPipeError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _lost_line(handle: Callable[..., None]) -> Callable[..., None]:
    """What becomes of a line of the log that cannot be written: of a full disk, or a pipe that is closed, it is said
    once, where :mod:`logging` would print two stacks for each line.
    """
    said: list[int | None] = []

    def lost(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            handle(handler, record)
        elif error.errno not in said:
            said.append(error.errno)
            _let_go(getattr(handler, "stream", None), error)
            with suppress(ValueError):
                say(f"the log cannot be written ({error.strerror}); the work goes on", sys.stderr)

    return lost


def _escape_logs() -> None:
    """Makes every message of a log printable, with its further lines set in, whoever writes it and wherever it goes.

    Of the bundle's own, lines are broken by what ends a message, such as a reason or a table, and by no name before it.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "escapes", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        if made.name.startswith("scripts.") and isinstance(made.args, tuple):
            names = len(made.args) - str(made.msg).endswith("%s")
            values = [one_line(each) if isinstance(each, (str, Path)) else each for each in made.args[:names]]
            made.args = (*values, *made.args[names:])
        with suppress(TypeError, ValueError, KeyError):  # a message and values that do not fit, as logging itself says
            made.msg, made.args = indented(printable(made.getMessage())), None
        return made

    record.escapes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    logging.Handler.handleError = _lost_line(logging.Handler.handleError)  # type: ignore[method-assign]
    show = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: show(printable(message), *args, **kwargs)
