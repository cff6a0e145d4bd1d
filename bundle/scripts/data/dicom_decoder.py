"""The pixels of compressed DICOM, decoded by ITK in a process of its own.

ITK has decoders for every compression in use (JPEG, JPEG-LS, JPEG 2000, RLE). They are written in C and C++, and a
damaged or hostile stream may end their process, keep it busy for ever, or have it take all of the memory. So they run
in a child: one, which is started when the first compressed file comes, and serves until the program ends. What goes
wrong in it is an error of that file; the next file gets a new child.

    python -m scripts.data.dicom_decoder     is the child, which this module starts
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import RefusedError
from ..files import BUNDLE

STARTING = 600  # seconds that a child may take to load ITK, from a slow disk on a busy machine
PATIENCE = 30.0  # seconds of CPU time for any file
PIXELS_A_SECOND = 250_000  # for which it has another second; the slowest decoder does twenty times as many
WAITING = 20.0  # times as many seconds may pass, on a busy machine
SPARE_MEMORY = 1 << 30  # bytes that decoding may take beside some copies of what the header declares
_COPIES = 8


class Decoded(NamedTuple):
    """What ITK makes of a file: values ``(frames, rows, columns)``, and the slope and intercept that are in them."""

    values: np.ndarray
    slope: float
    intercept: float


class DecodingError(RefusedError):
    """A file that cannot be decoded; the message is a clause that says why."""


class FileRefusedError(DecodingError):
    """One that ITK looked at and refused; another decoder may be asked, which it is not where ITK's process ended."""


def decode(file: Path, pixels: int, bits: int) -> Decoded:
    """Decodes a file.

    Args:
        file: with pixels that ITK can read.
        pixels: how many the header declares, in all frames; time and memory are limited accordingly.
        bits: of one pixel.

    Raises:
        DecodingError: ITK refuses the file, or its process ended or had to be ended.
    """
    seconds = PATIENCE + pixels / PIXELS_A_SECOND
    limits = {"cpu": seconds, "seconds": WAITING * seconds, "memory": SPARE_MEMORY + _COPIES * pixels * bits // 8}
    with _turn:
        return _child().answer({"file": os.path.abspath(file), **limits})


class _Child:
    """The process, from this side."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=BUNDLE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where decoders say what they find odd
            start_new_session=True,  # an interruption from the keyboard is for this program to handle
        )

    @property
    def is_usable(self) -> bool:
        """Whether it lives, and is this process's own, and not that of a process which this one was forked from."""
        return self.owner == os.getpid() and self.process.poll() is None

    def answer(self, question: dict[str, Any]) -> Decoded:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            reply = json.loads(stdout.readline())
            content = stdout.read(reply.get("bytes", 0))
            if len(content) < reply.get("bytes", 0):
                raise EOFError
        except (OSError, EOFError, ValueError) as error:  # it ended before the question, before the reply, or within it
            raise DecodingError(self._how_it_ended(question)) from error
        except BaseException:  # interrupted, with a reply on its way that nobody will read
            self.end()
            raise
        if "error" in reply:
            raise FileRefusedError(reply["error"])
        return Decoded(
            np.frombuffer(content, reply["dtype"]).reshape(reply["shape"]), reply["slope"], reply["intercept"]
        )

    def end(self) -> None:
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for each in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                each.close()  # type: ignore[union-attr]

    def _how_it_ended(self, question: dict[str, Any]) -> str:
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:  # it closed the pipe, and goes on
            code = 0
        self.end()
        late = {"SIGPROF": f"{question['cpu']:.3g} seconds of work", "SIGALRM": f"{question['seconds']:.3g} seconds"}
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if name in late:
            return f"its decoder was ended after {late[name]}"
        return f"its decoder ended the process that it ran in, by {name}"


_running: _Child | None = None
_turn = threading.Lock()


def _child() -> _Child:
    global _running
    if _running is None or not _running.is_usable:
        _running = _Child()
    return _running


@atexit.register
def _end() -> None:
    if _running is not None:
        _running.end()


# ---- in the child


def serve(questions: BinaryIO, replies: BinaryIO) -> None:
    """Answers each question, until there are no more."""
    _limit_time(STARTING)
    import itk  # which the program itself may never need

    itk.GDCMImageIO.New()  # ITK loads what it needs when it is first asked
    _limit_time(0)
    for line in questions:
        question = json.loads(line)
        _limit_time(question["seconds"], question["cpu"])
        _limit_memory(question["memory"])
        try:
            io = itk.GDCMImageIO.New()
            values = itk.array_view_from_image(itk.imread(question["file"], imageio=io))
            content = values.tobytes()
            reply = {"dtype": values.dtype.str, "shape": values.shape, "bytes": len(content)}
            reply |= {"slope": float(io.GetRescaleSlope()), "intercept": float(io.GetRescaleIntercept())}
        except Exception as error:  # of any kind: it is told, and the next file has nothing to do with it
            text = (str(error).strip().splitlines() or [""])[-1].strip()[:200]
            reply, content = {"error": text or type(error).__name__}, b""
        _limit_time(0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.write(content)
        replies.flush()


def _limit_time(seconds: float, cpu: float = 0) -> None:
    """Ends this process after so many seconds, or so many of CPU time, whatever it does then and whether or not anybody
    still waits for it; 0 for never.
    """
    if hasattr(signal, "setitimer"):  # not on Windows, where a decoder that hangs does so
        for timer, number, limit in (
            (signal.ITIMER_REAL, signal.SIGALRM, seconds),
            (signal.ITIMER_PROF, signal.SIGPROF, cpu),
        ):
            signal.signal(number, signal.SIG_DFL)
            signal.setitimer(timer, limit)


def _limit_memory(more: int) -> None:
    """Lets this process take so many bytes more than it has; on systems without such limits it does nothing."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print, too
    serve(sys.stdin.buffer, pipe)
    os._exit(0)  # at once: to take all of ITK apart takes seconds
