"""Where the bundle lies, files that are there whole or not at all, and what tells two of them apart."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where what killed programs leave stays there
    fcntl = None  # type: ignore[assignment]

BUNDLE = Path(__file__).resolve().parents[1]  # the bundle root: configs, docs and models lie beside the scripts

_LONGEST_NAME = 255  # bytes, in the file systems in use
_PART = ".part-"  # how temporary names begin
_LOCK = ".lock"
UMASK = os.umask(0)
os.umask(UMASK)
# a folder is looked through for what killed programs left once in as many writes as it has entries, divided by this:
# looked through at every write, a folder of n files would cost n squared to fill
_ENTRIES_A_WRITE = 16
_held: dict[Path, int] = {}  # descriptors of the files that this process holds
_writes_left: dict[str, int] = {}  # by folder, before it is looked through again


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A name to write a file under, which takes ``path``'s place when the block ends without an error.

    ``path`` is then either as it was or complete, whenever the program is killed. The temporary name is hidden, so that
    no pattern takes it for a case, and keeps the suffix, from which many writers take the format. It is another each
    time, which nobody can guess, so that many processes may write one file at once; the last that ends is kept. What
    killed programs have left under such names in the folder is removed, now and then in a folder of many files.

    Args:
        path: of the file; its folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent)
    descriptor, temporary = _new_file(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a disk that is full, the system does not say what it was for
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def named_by_content(folder: str | os.PathLike, name: str, text: str) -> Path:
    """Writes a text under a name that only its content has, ``NAME-DIGEST.SUFFIX``: programs that share a folder do
    not replace one another's, and the same text is the same file.

    Args:
        folder: where the file goes.
        name: with its suffix.
        text: in UTF-8.
    """
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
    path = Path(folder, f"{Path(name).stem}-{digest}{Path(name).suffix}")
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other programs that ask for the same folder waiting until the block ends, for files that are read, changed
    and written again. Without locks, on a system, a file system or in a folder that may not be written to, it does
    nothing.
    """
    path, descriptor = Path(folder) / _LOCK, None
    if fcntl is not None:
        try:
            descriptor = _lock_file(path, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            with suppress(OSError):
                path.unlink()
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def hold(path: str | os.PathLike, who: str) -> str | None:
    """Holds a file for this process until :func:`let_go`, or its end, however that comes: what killed processes held is
    free again. Where there are no locks, it does nothing.

    Args:
        path: of the file, which is made; what this process holds already, it holds again.
        who: what others read of it.

    Returns:
        What another process, which holds it now, has written there; None if there is none.
    """
    path = Path(os.path.abspath(path))
    if fcntl is None or path in _held:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError):  # let go of since
            return path.read_bytes()[:1000].decode("utf-8", "replace") or "another process"
        return "another process"
    except OSError:  # a file system without locks
        with suppress(OSError):
            path.unlink()
        return None
    if descriptor is None:
        return None
    _held[path] = descriptor
    with suppress(OSError):  # a full disk: it is held all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, who.encode())
    return None


def let_go(path: str | os.PathLike) -> None:
    """Ends :func:`hold`, and removes the file."""
    path = Path(os.path.abspath(path))
    if path in _held:
        with suppress(OSError):
            path.unlink()
        os.close(_held.pop(path))


def _let_go_of_all() -> None:
    for path in list(_held):
        let_go(path)


def _held_by_parent() -> None:
    """A worker process must not hold what its parent does, which may be killed before it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


atexit.register(_let_go_of_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held_by_parent)


def _lock_file(path: Path, how: int) -> int | None:
    """A locked file of this name: one that may be written, as locks over NFS need it, which no folder is. None where
    there can be none.

    Raises:
        BlockingIOError: another process has it, where ``how`` does not wait.
        OSError: the file system has no locks.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:  # removed by who held it until now
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _new_file(path: Path) -> tuple[int | None, Path]:
    """An empty file beside ``path`` that was not there before, locked for as long as its descriptor is open; None for
    the descriptor where there are no locks.
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME - len(_PART) - 10:  # with what mkstemp adds
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32] + "".join(path.suffixes[-2:])[-20:]
    while True:
        descriptor, temporary = tempfile.mkstemp(f"-{name}", _PART, path.parent)
        is_locked = is_there = False
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                is_locked = True
        with suppress(FileNotFoundError):  # removed, in the moment before it was locked, as what a killed program left
            if os.path.samestat(os.stat(temporary, follow_symlinks=False), os.fstat(descriptor)):
                os.chmod(temporary, 0o666 & ~UMASK)  # as any other file; mkstemp keeps its own to their owner
                is_there = True
        if is_there and is_locked:
            return descriptor, Path(temporary)
        os.close(descriptor)  # of no use without a lock, and Windows neither replaces nor removes a file that is open
        if is_there:
            return None, Path(temporary)


def _clear(folder: Path) -> None:
    """Removes temporary files that no program has locked any more."""
    if fcntl is None:
        return
    place = os.path.abspath(folder)
    if _writes_left.get(place, 0) > 0:
        _writes_left[place] -= 1
        return
    entries = list(os.scandir(folder))
    _writes_left[place] = len(entries) // _ENTRIES_A_WRITE
    left = [each.path for each in entries if each.name.startswith(_PART) and each.is_file(follow_symlinks=False)]
    for path in left:
        with suppress(OSError):  # locked, gone already, or another's
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def json_of(text: str | bytes, *, strict: bool = False, once: str | None = None) -> Any:
    """What a text of JSON says.

    Args:
        text: to be read; the mark that Windows puts in front of UTF-8 is no part of it.
        strict: whether what Python takes beside JSON is refused: NaN, and a name that stands twice in an object, of
            which the first would be lost.
        once: the entry in which alone such a name is refused.

    Raises:
        ValueError: it is none, or nested deeper than Python can follow, which :mod:`json` does not call an error of the
            text.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        pairs = _once if strict else _Object if once else None
        content = json.loads(text, object_pairs_hook=pairs, parse_constant=_no_number if strict else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    part = content.get(once) if once and isinstance(content, dict) else None
    if isinstance(part, _Object) and part.twice:
        raise ValueError(f"'{part.twice[0]}' stands twice in '{once}'")
    return content


class _Object(dict[str, Any]):
    """An object of JSON that knows which of its names stand in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = sorted({name for name in names if names.count(name) > 1})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _Object(pairs)
    if found.twice:
        raise ValueError(f"'{found.twice[0]}' stands twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
