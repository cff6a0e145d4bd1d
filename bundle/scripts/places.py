"""Where a workflow writes: what stands in the way there is said before anything starts, and not when all is computed.

A configuration says by its components what is written where, so they are looked at, whichever workflow they are part
of. Nothing is made, but for a file without a name that is gone at once.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from .entries import SEPARATOR, entry_at
from .errors import RefusedError, system_error


class _Writer(NamedTuple):
    """What a component writes.

    Attributes:
        argument: of the component, that names a file, or a folder.
        below: patterns of the names of files in that folder; None where the argument names a file.
        beside: names of further files beside that file.
    """

    argument: str
    below: tuple[str, ...] | None = None
    beside: tuple[str, ...] = ()


_RECORDS = "scripts.inference.case_records.CaseRecords"
_WRITERS = {
    "scripts.training.handlers.PriorExporter": [_Writer("path")],
    "scripts.training.handlers.ResumableCheckpoint": [_Writer("path")],
    "scripts.prior_settings.InferenceOverlay": [_Writer("prior_file", beside=("inference.json",))],
    "scripts.training.encoded_slices.EncodedSlices": [_Writer("cache_dir", ("*.pt",))],
    "TensorBoardStatsHandler": [_Writer("log_dir", ("events.out.tfevents.*",))],
    "scripts.output.html_report.ReportWriter": [_Writer("folder", ("report.html", "settings.json"))],
    "scripts.output.tables.OrganMetricsSaver": [_Writer("save_dir", ("metrics.csv", "metrics.json"))],
    "scripts.output.previews.PreviewSaver": [_Writer("save_dir", ("*.png",))],
    "scripts.output.dicom_seg.DicomSegSaver": [_Writer("save_dir", ("*_seg.dcm",))],
    "SaveImaged": [
        _Writer("output_dir", ("*_seg.nii.gz", "*_prob.nii.gz", "*_uncertainty.nii.gz", "*_upright.nii.gz"))
    ],
    _RECORDS: [_Writer("output", ("results.json",))],
    "scripts.weights.save_atomically": [_Writer("path")],
    "scripts.pretraining.backbone.export_backbone": [_Writer("path")],
    "scripts.pretraining.anatomy.write_patients": [_Writer("folder", ("*.npz",))],
    "scripts.pretraining.orientation.pretrain_orientation": [_Writer("path"), _Writer("cache_dir", ("*.pt",))],
}


class Places(NamedTuple):
    """Files, and folders with patterns of the names of files there, that a workflow writes.

    Where cases are recorded one by one, what stands in the way of one fails that case alone: files of cases, whose
    names are patterns, are then not asked for before the run.
    """

    files: tuple[Path, ...]
    folders: tuple[tuple[Path, str], ...]
    cases_alone: bool = False


def check_places(parser: ConfigParser, reached: Iterable[str]) -> None:
    """Refuses to start a workflow that could not write its results.

    Args:
        parser: of the configuration, as it is merged.
        reached: ids of all entries that the workflow needs.

    Raises:
        RefusedError: with all that stands in the way.
    """
    refuse_blocked(places_of(parser, reached))


def refuse_blocked(places: Places) -> None:
    """Refuses places where nothing can be written.

    Raises:
        RefusedError: with all that stands in the way.
    """
    problems = list(problems_of(places))
    if problems:
        raise RefusedError(f"Results could not be written: {'; '.join(problems)}.")


def places_of(parser: ConfigParser, reached: Iterable[str]) -> Places:
    """What a workflow writes; see :func:`check_places`."""
    files: dict[Path, None] = {}
    folders: dict[tuple[Path, str], None] = {}
    config, alone = parser.get(), False
    for name in sorted(reached):
        for key, writers in _writers(entry_at(config, name.split(SEPARATOR)), name):
            alone = alone or writers is _WRITERS[_RECORDS]
            for writer in writers:
                found = None if _is_off(parser, key) else _resolved(parser, f"{key}{SEPARATOR}{writer.argument}")
                if not isinstance(found, (str, Path)) or not str(found):
                    continue
                path = Path(found)
                if writer.below is None:
                    files |= dict.fromkeys(map(path.with_name, writer.beside) if writer.beside else [path])
                else:
                    folders |= dict.fromkeys((path, pattern) for pattern in writer.below)
    return Places(tuple(files), tuple(folders), alone)


def problems_of(places: Places) -> Iterator[str]:
    """What stands in the way of writing: folders, pipes and devices of a file's name, files of a folder's, and folders
    in which nothing can be written.
    """
    above = {path.parent for path in places.files} | {folder for folder, _ in places.folders}
    yield from dict.fromkeys(filter(None, map(_problem_of_folder, sorted(above))))
    asked = [each for each in places.folders if not (places.cases_alone and "*" in each[1])]
    for path in dict.fromkeys([*places.files, *_no_files(asked)]):
        kind = _in_the_way(path)
        if kind:
            yield f"'{path}' is {kind}, and a file is written there: rename or remove it, or name another place"


def _no_files(folders: Iterable[tuple[Path, str]]) -> Iterator[Path]:
    """What bears the name of a file that may be written, and is none; of the files, which may be many, no more is asked
    than what their folder says of them.
    """
    patterns: dict[Path, list[str]] = {}
    for folder, pattern in folders:
        patterns.setdefault(folder, []).append(pattern)
    for folder, names in patterns.items():
        others: list[str] = []
        with suppress(OSError), os.scandir(folder) as entries:  # of what is no folder, or is not to be read, it is said
            others = sorted(each.name for each in entries if not each.is_file(follow_symlinks=False))
        yield from (folder / each for each in others if any(fnmatchcase(each, name) for name in names))


def _problem_of_folder(folder: Path) -> str | None:
    there = Path(os.path.abspath(folder))
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        if there.is_symlink() and not there.exists():
            return f"'{there}' is a link to nothing, and a folder is needed there: remove it, or name another place"
        if not there.is_dir():
            kind = _in_the_way(there) or "a file"
            return f"'{there}' is {kind}, and a folder is needed there: rename it, or name another place"
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        if error.filename is not None:
            error.filename = str(there)
        return (system_error(error) or str(error)).rstrip(".")


def _in_the_way(path: Path) -> str | None:
    """What is at a file's place, where it is no file; a link is replaced, whatever it leads to, but not a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing, or nothing that can be seen: its folder says so
        return None
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    if stat.S_ISREG(mode):
        return None
    return next((kind for holds, kind in kinds.items() if holds(mode)), "a device")


def _writers(value: Any, key: str) -> Iterator[tuple[str, list[_Writer]]]:
    """The components in a piece of configuration that write, with their ids."""
    pieces: Collection[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        if (target := value.get("_target_")) in _WRITERS:
            yield key, _WRITERS[target]
        pieces = value.items()
    elif isinstance(value, list):
        pieces = list(enumerate(value))
    for name, piece in pieces:
        yield from _writers(piece, f"{key}{SEPARATOR}{name}")


def _is_off(parser: ConfigParser, key: str) -> bool:
    entry = entry_at(parser.get(), key.split(SEPARATOR))
    off = "_disabled_" in entry and _resolved(parser, f"{key}{SEPARATOR}_disabled_")
    return bool(off) or ("enabled" in entry and _resolved(parser, f"{key}{SEPARATOR}enabled") is False)


def _resolved(parser: ConfigParser, key: str) -> Any:
    """The value of an entry; None where it has none, or cannot be had, which the workflow itself will say."""
    try:
        return parser.get_parsed_content(key, default=None)
    except Exception:  # of whatever an expression does
        return None
