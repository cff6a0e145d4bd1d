"""Where the bundle lies, files that are there whole or not at all, and what tells two of them apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1]  # the bundle root: configs, docs and models lie beside the scripts

_LONGEST_NAME = 255  # bytes, in the file systems in use


@contextmanager
def whole_file(path: str | os.PathLike, unique: bool = False) -> Iterator[Path]:
    """A name to write a file under, which takes ``path``'s place when the block ends without an error.

    ``path`` is then either as it was or complete, whenever the program is killed. The temporary name is hidden, so that
    no pattern takes it for a case, and keeps the suffix, from which many writers take the format.

    Args:
        path: of the file; its folder is made where it is missing.
        unique: whether the temporary name is this process's own, for files that several may write at once. Otherwise
            it is always the same, so that what a killed program leaves is overwritten by the next.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".part-{os.getpid()}-{path.name}" if unique else f".part-{path.name}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        name = f".part-{digest}{''.join(path.suffixes[-2:])[-20:]}"
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
