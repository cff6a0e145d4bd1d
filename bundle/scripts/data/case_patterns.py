"""Patterns that say where the files of a case lie, such as ``img/img{case}.nii.gz`` or ``{case}/T2_SPIR.*``.

``{case}`` stands for what differs between two cases, a folder's name too, and each time for the same. An ending may be
left out, or be ``.*``: the file may then have any that is read, or be a folder with the slices of a DICOM series, and
of each case another one. What lies beside, such as notes, or the voxels of a header, is no case.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from ..errors import DatasetError, listed
from .dicom_files import is_dicom_file
from .volumes import IMAGE_SUFFIXES

CASE = "{case}"

_ANY = ".*"
_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm")


def check_patterns(patterns: Mapping[str, str]) -> None:
    """Refuses patterns that name the same file for every case, or one file for two things.

    Args:
        patterns: by what they name: image, label.

    Raises:
        DatasetError: see above.
    """
    for key, pattern in patterns.items():
        if not isinstance(pattern, str):
            raise DatasetError(
                f"{key}_pattern is {pattern!r}, expected a text such as 'img/img{{case}}.nii.gz'. Correct it."
            )
        if CASE not in pattern:
            raise DatasetError(
                f"{key}_pattern is '{pattern}', which has no '{CASE}'; expected it once at least, as in "
                "'img/img{case}.nii.gz'. It stands for what differs between the files of two cases."
            )
    if len(set(patterns.values())) < len(patterns):
        raise DatasetError(
            f"image_pattern and label_pattern are both '{patterns['image']}'; expected two different files a case. Set "
            "--label_pattern to where the labels are."
        )


def cases_matching(folder: Path, pattern: str) -> list[str]:
    """Every case of which a pattern names something, in no order."""
    parts = PurePath(_without_ending(pattern)).as_posix().split(CASE)
    globbed = "*".join(map(glob.escape, parts))
    first, *others = map(re.escape, parts)
    of_case = re.compile(f"{first}([^/]+)" + r"\1".join(others))  # every time the same
    names = set()
    for match in glob.glob(globbed, root_dir=folder):
        if not _any_ending(pattern) or (not _ending_of(match) and _is_without_ending(folder / match, pattern)):
            names.add(PurePath(match).as_posix())
    if _any_ending(pattern):
        for match in glob.glob(f"{globbed}.*", root_dir=folder):
            if ending := _ending_of(match):
                names.add(PurePath(match).as_posix().removesuffix(ending))
    return [found[1] for found in map(of_case.fullmatch, names) if found]


def case_path(folder: Path, pattern: str, case: str) -> Path:
    """The file, or folder of slices, of a case; where there is none, what a message is to name.

    Raises:
        DatasetError: there are files with several endings, and the pattern does not say which is meant.
    """
    path = folder / pattern.replace(CASE, case)
    if not _any_ending(pattern) or _is_without_ending(path, pattern):
        return path
    plain = folder / _without_ending(pattern).replace(CASE, case)
    named = [plain.with_name(plain.name + ending) for suffix in _SUFFIXES for ending in (suffix, suffix.upper())]
    there = [each for each in named if each.is_file()] + ([plain] if plain.is_dir() else [])
    # a file system that does not tell small letters from capitals has each file twice
    there = [each for at, each in enumerate(there) if not any(each.samefile(other) for other in there[:at])]
    if len(there) > 1:
        raise DatasetError(
            f"'{pattern}' names {listed(there)} of case '{case}': expected one. Give the pattern the ending that is "
            "meant, or move the others away."
        )
    return there[0] if there else path


def _any_ending(pattern: str) -> bool:
    return pattern.endswith(_ANY) or not _ending_of(pattern)


def _is_without_ending(path: Path, pattern: str) -> bool:
    """Whether what has no ending of a volume is the image of a case all the same: a folder; or, where the pattern may
    name a file without one, a DICOM file, or a link to something that is not there, which is to be said.
    """
    may_be_file = not pattern.endswith(_ANY)
    return path.is_dir() or (may_be_file and (is_dicom_file(path) or (path.is_symlink() and not path.exists())))


def _without_ending(pattern: str) -> str:
    return pattern.removesuffix(_ANY)


def _ending_of(name: str) -> str:
    """The ending by which a name is a volume's, as it is written; empty for others."""
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[len(name) - len(suffix) :]
