"""Where prepared files come from: a folder, or a zip archive that is read without extracting all of it."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import DatasetError, count, listed


class Found(NamedTuple):
    """Labelled volumes of a source: their folder, the files of each case, and what was left out."""

    root: str
    cases: dict[str, Any]
    remarks: list[str]


class Source:
    """The files of a folder or of a zip archive, by their paths below it, with '/' between folders.

    Hidden files and what macOS adds are not among them, nor members of an archive that would lie outside it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile | None, *, leave_out: Path | None = None) -> None:
        self.path, self.archive, self.unsafe = path, archive, 0
        found: dict[str, Any]  # members of the archive, or None of a folder
        if archive is None:
            found = dict.fromkeys(_files_below(path, leave_out))
        else:
            members = [member for member in archive.infolist() if not member.is_dir()]
            found = {member.filename.replace("\\", "/"): member for member in members if _stays_inside(member)}
            self.unsafe = len(members) - len(found)
        self.members = {name: member for name, member in found.items() if not _is_clutter(name)}

    def copy(self, name: str, target: Path) -> None:
        """Writes this file's content to ``target``."""
        if self.archive is None:
            shutil.copyfile(self.path / name, target)
            return
        try:
            with self.archive.open(self.members[name]) as member, open(target, "wb") as file:
                shutil.copyfileobj(member, file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DatasetError(
                f"{self.where(name)}: cannot be extracted ({error}), expected an undamaged file without a password. "
                "Download the archive again."
            ) from error

    def same(self, name: str, path: Path) -> bool:
        """Whether ``path`` has this file's content."""
        if self.archive is None:
            return filecmp.cmp(self.path / name, path, shallow=False)
        checksum = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
        return (path.stat().st_size, checksum) == (self.members[name].file_size, self.members[name].CRC)

    @contextmanager
    def local(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """The files of one series as paths, in folders named as theirs; those of an archive are there for a while."""
        if self.archive is None:
            yield [self.path / name for name in names]
            return
        with tempfile.TemporaryDirectory() as temporary:
            paths = [Path(temporary, *PurePosixPath(name).parts[-2:]) for name in names]
            try:
                for name, path in zip(names, paths):
                    path.parent.mkdir(exist_ok=True)
                    self.copy(name, path)
                yield paths
            except DatasetError as error:  # the user knows the archive, not where a member was extracted to
                inside = self.where(PurePosixPath(names[0]).parents[1]).strip("'")
                raise DatasetError(str(error).replace(temporary, inside)) from None  # of a chain the first is shown

    def where(self, name: object) -> str:
        """How messages name a file or folder."""
        return f"'{self.path}{'/' if self.archive is None else ':'}{name}'"

    def example(self) -> str:
        """For messages: what there is instead of what was expected."""
        return f"There are, for example: {listed(self.members, 4)}." if self.members else "There is no file in it."

    def remarks(self) -> list[str]:
        """For the report: what was ignored."""
        return [f"Ignored: {count(self.unsafe, 'member')} that would lie outside the archive."] if self.unsafe else []


@contextmanager
def opened(source: str, remedy: str, leave_out: Path) -> Iterator[Source]:
    """A folder, but for the one to leave out, or a zip archive; the remedy ends the message if it is neither."""
    path = Path(source).expanduser()
    if not path.exists():
        raise DatasetError(f"'{path}' is not there. {remedy}")
    if path.is_dir():
        yield Source(path, None, leave_out=leave_out)
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            truncated = file.read(2) == b"PK"
        found = "its end is missing, as after a download that broke off" if truncated else "it is no zip archive"
        size = f"{path.stat().st_size:,} bytes"
        raise DatasetError(
            f"'{path}': {found} ({size}), expected a whole zip archive, or a folder. {remedy}"
        ) from error
    with archive:
        yield Source(path, archive)


def only_root(files: Source, roots: Sequence[str], expected: str, remedy: str) -> str:
    """The one folder that holds the labelled volumes, at whatever depth an archive was extracted."""
    if not roots:
        raise DatasetError(
            f"'{files.path}': no labelled volumes, expected {expected}. {files.example()} {remedy} Volumes in another "
            "layout are read by the command 'folder'."
        )
    if len(roots) > 1:
        raise DatasetError(
            f"'{files.path}': labelled volumes in {len(roots)} places ({listed(roots)}), expected one. Give one of "
            "these folders."
        )
    return roots[0]


def _files_below(folder: Path, leave_out: Path | None) -> Iterator[str]:
    """Paths of all files, but for those in the folder this program writes to, should it lie inside."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(root, name).resolve() != leave_out)
        for name in sorted(names):
            yield Path(root, name).relative_to(folder).as_posix()


def _stays_inside(member: zipfile.ZipInfo) -> bool:
    name = member.filename.replace("\\", "/")
    drive = ":" in name.split("/")[0]
    return not (drive or name.startswith("/") or ".." in name.split("/") or stat.S_ISLNK(member.external_attr >> 16))


def _is_clutter(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
