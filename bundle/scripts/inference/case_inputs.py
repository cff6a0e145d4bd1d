"""Input and results of a case of an inference: what tells inputs apart, what results are called, and whether they are
there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib

from ..data.datalists import Item
from ..data.dicom import series_of
from ..data.dicom_files import dicom_files
from ..data.volumes import files_of
from ..errors import listed
from .record_fields import EARLIER_FILES

_SAMPLE = 4096  # bytes


def told_apart(items: Sequence[Item], cases: Mapping[str, Mapping[str, Any]]) -> list[Item]:
    """The same cases; one whose name the results of another image bear already is named after its folder too, and has
    the name that it would have had as ``"named"``.

    Files of two patients have the same name in many an archive, and results of the first are not to be lost.
    """
    apart, taken = [], {item["case"] for item in items}
    for item in items:
        name, folder = item["case"], Path(item["image"]).parent
        place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        for candidate in (name, f"{folder.name}_{name}", f"{name}_{place}"):
            if _is_of(item, cases.get(candidate, {})) and (candidate == name or candidate not in taken):
                break
        apart.append(item if candidate == name else {**item, "case": candidate, "named": name})
    return apart


def _is_of(item: Item, record: Mapping[str, Any]) -> bool:
    """Whether a record is of the image of an item, or of none. Of an image that is gone, it is the item's that was
    moved, if the files are the same; another's results stay, though their image was cleared away.
    """
    image = record.get("image")
    if image is None or os.path.realpath(image) == os.path.realpath(item["image"]):
        return True
    if os.path.lexists(image):
        return False
    has_results = record.get("files") or record.get(EARLIER_FILES)
    return not has_results or record.get("input") == input_digest(item)


def parts_of_series(items: Sequence[Item], chosen: str | None = None) -> dict[str, str]:
    """A remark on each case whose DICOM series is that of another case too, by its headers: the slices of one image in
    several folders would be several images, of which none is whole. Nor is one of the slices of a folder.

    Args:
        items: all cases.
        chosen: which of several series in a folder is read; see :func:`scripts.data.volumes.load_volume`.
    """
    series: dict[str, list[Item]] = {}
    for item in items:
        if "problem" not in item and (uid := _series(item["image"], chosen)):
            series.setdefault(uid, []).append(item)
    remarks: dict[str, str] = {}
    folders: dict[Path, Counter[str | None]] = {}
    for uid, group in series.items():
        for item in group:
            image = Path(item["image"])
            others = [each["image"] for each in group if _place(each) != _place(item)]
            if others:
                remarks[item["case"]] = (
                    f"slices of its series lie in {listed(others, 3)} too, of which each counts as an image of its "
                    "own. If they are parts of one image, put them into one folder."
                )
            elif image.is_file():
                if image.parent not in folders:
                    with suppress(OSError):  # a folder that may not be listed
                        folders[image.parent] = Counter(map(_series, dicom_files(image.parent)))
                if (found := folders.get(image.parent, Counter())[uid]) > 1:
                    remarks[item["case"]] = (
                        f"it is one of {found} files of its series in '{image.parent}', and segmented without the "
                        "others. If they are slices of one image, give their folder in its place."
                    )
    return remarks


def _series(image: str | Path, chosen: str | None = None) -> str | None:
    try:
        return series_of(image, chosen)
    except Exception:  # of any kind: reading the case will put it into words
        return None


def _place(item: Item) -> str:
    return os.path.realpath(item["image"])


def cheap_problem(path: Path) -> str | None:
    """What can be said against an input without reading it."""
    try:
        if not path.exists():
            return f"'{path}': the file is not there. Restore it, or take it out of the input."
        if path.is_file() and not path.stat().st_size:
            return f"'{path}': the file is empty. Copy or export it again."
    except OSError as error:  # in a folder that may not be entered
        return f"'{path}': cannot be opened ({error.strerror}). Ask for permission to read it."
    return None


def input_digest(item: Item) -> str | None:
    """Names, sizes and times of change, and samples of the first, middle and last file: reading gigabytes to see that
    they are the same would take too long, and programs that copy or anonymise give many scans one time, and one size.
    """
    try:
        files = files_of(item["image"])
        stats = [(path, path.stat()) for path in files]
        sampled = [stats[place] for place in sorted({0, len(stats) // 2, len(stats) - 1})] if stats else []
        samples = [_sample(path, found.st_size) for path, found in sampled if stat.S_ISREG(found.st_mode)]
    except OSError:  # which reading the case will put into words
        return None
    return digest_of([[[path.name, found.st_size, found.st_mtime_ns] for path, found in stats], samples])


def _sample(path: Path, size: int) -> str:
    """Names the beginning, middle and end of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for place in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def has_header(path: Path) -> bool:
    """Whether a result, NIfTI or DICOM, is there and begins like one: not empty, nor of other bytes."""
    try:
        if path.suffix == ".dcm":
            with open(path, "rb") as file:
                return file.read(132)[128:] == b"DICM"
        with gzip.open(path) as file:
            return nib.Nifti1Header.may_contain_header(file.read(nib.Nifti1Header.sizeof_hdr))
    except (OSError, EOFError, zlib.error):
        return False
