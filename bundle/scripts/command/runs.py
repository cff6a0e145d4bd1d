"""The commands of the bundle that ``diffusam`` stands for: printed as a user would type them, then run as printed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ..arguments import is_nothing, read_as
from ..errors import RefusedError, system_error
from ..files import BUNDLE, json_of
from ..shell import as_step, as_words, bundle_command, config_files, python, quoted, shown
from .configurations import refuse_unreadable
from .usage import UsageError

# the lists of configurations that each command begins with: the embedded backbone, and what its prior needs
INFERRING = ("configs/inference.json",)
TRAINING = ("configs/train.json",)
FEW_SHOT = "configs/few_shot.json"  # what a few labelled volumes teach best
EVALUATING = ("configs/train.json", "configs/evaluate.json")
MODALITY = "configs/by_modality.json"  # where nobody says which modality

FAILED, SOME_FAILED = 1, 3  # exit codes

_OVERLAYS = "config_file"
_RECORDS = "results.json"
_PATIENCE = 1.0  # seconds that a command has to end by itself, before an interruption is passed on

Options = Mapping[str, str]


def workflow(
    name: str, configs: Iterable[str | Path], *, options: Options, processes: int = 1, bundle: Path = BUNDLE
) -> list[str]:
    """A command ``python -m monai.bundle run NAME``.

    Args:
        name: ``training``, ``evaluating`` or ``inferring``.
        configs: files below the bundle, or elsewhere as paths.
        options: overrides of what these declare; ``config_file`` names overlays of the user's own, which come last.
        processes: on this machine; more than one share the cases out.
        bundle: the bundle root.

    Raises:
        UsageError: MONAI could not read a configuration, or an option.
        RefusedError: nor the path of the bundle.
    """
    root = {} if bundle.resolve() == Path.cwd() else {"bundle_root": shown(bundle)}
    if "#" in root.get("bundle_root", ""):  # which MONAI makes :: of
        raise RefusedError(
            f"The bundle lies in '{bundle}', and MONAI reads no path with # in it. Change into that folder first, or "
            "move it."
        )
    own = {name: text for name, text in options.items() if name != _OVERLAYS}
    overlays = _overlays(options.get(_OVERLAYS))
    files = [bundle / each if isinstance(each, str) else each for each in (*configs, *overlays)]
    refuse_unreadable(files, own)
    words = bundle_command(name, [shown(each) for each in files], {**root, **own})
    if processes > 1:
        words[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return words


def _overlays(text: str | None) -> list[Path]:
    """Overlays that a user names."""
    files = config_files(text)
    if text is not None and not (files and all(files)):
        raise UsageError(f"--{_OVERLAYS} is '{text}', expected a file, or \"['a.json','b.json']\".")
    return [Path(each).expanduser() for each in files]


def preparation(*words: str, options: Options | None = None) -> list[str]:
    """A command ``python .../scripts/prepare``, by the path of its folder, for which any folder is the right one."""
    return [python(), shown(BUNDLE / "scripts" / "prepare"), *words, *as_words(options or {})]


def run(words: Sequence[str], say: bool = True, last: bool = False, shared: bool = False) -> int:
    """Prints a command, runs it, and returns its exit code, 128 and more for signals as in a shell.

    Interruptions reach the command, which ends in its own way; this program waits for it. A terminal sends them to
    both; those that were sent to this program alone are passed on.

    Args:
        words: of the command.
        say: whether it is printed.
        last: whether the command itself says what comes next, and not the program.
        shared: whether its options are those of another command too, so that it need not use each of them.
    """
    if say:
        print(f"$ {quoted(words)}\n", flush=True)
    environment = dict(os.environ) if last else as_step(shared)
    # MONAI warns of configurations from elsewhere, and these are the bundle's own
    ignored = "ignore:parsing config_file:UserWarning"
    environment["PYTHONWARNINGS"] = ",".join(filter(None, [environment.get("PYTHONWARNINGS"), ignored]))
    process = subprocess.Popen([sys.executable, *words[1:]], env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            process.send_signal(number)

    before, patience = signal.signal(signal.SIGTERM, pass_on), None
    try:
        while True:
            try:
                code = process.wait(patience)
                break
            except KeyboardInterrupt:
                patience = None if _in_foreground() else _PATIENCE
            except subprocess.TimeoutExpired:  # nobody has sent it to the command
                pass_on(signal.SIGINT, None)
                patience = None
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether ^C at a terminal reaches the commands that this program runs, too."""
    if os.name == "nt":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def writable(output: str, option: str = "output") -> Path:
    """A folder for results, made where it is missing.

    Args:
        output: its path.
        option: by which it is named.

    Raises:
        UsageError: it is ``None``, as of a variable that is not set.
        RefusedError: it cannot be made, or nothing can be written there.
    """
    if read_as(output) is None:
        raise UsageError(f"--{option} is {output}. Is a variable not set? A folder of this name is './{output}'.")
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RefusedError(f"Nothing can be written to --{option}: {system_error(error)}") from error
    return folder


def typed(path: str) -> str:
    """A path for ``--input`` or ``--output``, which the bundle takes as typed, but for MONAI's signs in front, and for
    words that mean nothing.
    """
    path = os.path.expanduser(path)
    return f"./{path}" if path[:1] in ("$", "@", "%", "-") or is_nothing(path) else path


def plain(path: Path, option: str) -> str:
    """A path for an option that MONAI reads, and Fire before it: absolute, or with ``./`` in front.

    Raises:
        UsageError: MONAI would make something else of it.
    """
    text = shown(path)
    if any(sign in text for sign in "$@%#"):
        raise UsageError(f"--{option} is '{text}', in which MONAI gives $, @, % or # a meaning. Choose another name.")
    return text if text.startswith("/") else f"./{text}"


def records_in(folder: Path) -> dict[str, Any]:
    """The record of each case in a folder of results."""
    try:
        cases = json_of((folder / _RECORDS).read_text(encoding="utf-8"))["cases"]
        return {case: record for case, record in cases.items() if isinstance(record, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def ending_of(before: Mapping[str, Any], folder: Path) -> int:
    """The exit code of a run that failed: whether it has come to its end, which has recorded failures, has results too,
    and left no journal in which cases are taken.
    """
    from ..inference.journals import FOLDER as JOURNALS  # which imports MONAI: only where it is needed

    after = records_in(folder)
    status = [record.get("status") for record in after.values()]
    ended = before != after and not (folder / JOURNALS).exists()
    return SOME_FAILED if ended and "failed" in status and "done" in status else FAILED
