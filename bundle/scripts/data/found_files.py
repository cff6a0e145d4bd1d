"""What lies in a folder: every image, and every file that could be one with the reason why it is not taken."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError
from ..files import json_of
from .dicom import without_volume
from .dicom_files import holds_dicom, is_copy, is_dicom_file, is_index
from .file_names import DICOM_SUFFIXES, HEADER_SUFFIXES, IMAGE_SUFFIXES, is_image_file, without_added
from .volumes import files_beside

# volumes, or pictures, in formats that are not read
OTHER_FORMATS = (
    *(".img", ".img.gz", ".mnc", ".mnc.gz", ".mnc2", ".minc", ".nii.bz2", ".nii.xz", ".nii.zst", ".par", ".rec"),
    *(".gipl", ".gipl.gz", ".vtk", ".vti", ".tif", ".tiff", ".nrrd.gz", ".ima.gz", ".dcm.gz"),
    *(".brik", ".brik.gz", ".head", ".v", ".h33", ".i33", ".hv", ".fdf", ".vff", ".nia", ".jnii", ".bnii"),
    *(".mif", ".mif.gz", ".mih", ".isq", ".vol", ".vgi", ".vmr", "2dseq"),
)
_FOLDERS = (".zarr", ".n5")  # of which each is a volume, in pieces, if it or a folder in it holds one of these
_FOLDER_HEADERS = (".zattrs", ".zgroup", ".zarray", ".zmetadata", "zarr.json", "attributes.json")
_RAW = (".raw", ".zraw", ".raw.gz")  # voxels whose header is another file
ARCHIVES = (
    *(".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"),
    *(".tbz2", ".txz", ".tzst", ".lz4", ".lzma", ".z", ".cab", ".iso"),
)
# what files begin with, from a place on, that are volumes or archives whatever they are called
_VOLUMES = {
    "NIfTI": ((344, b"n+1\0"), (4, b"n+2\0")),
    "NRRD": ((0, b"NRRD000"),),
    "MetaImage": ((0, b"ObjectType"), (0, b"NDims")),
    "ECAT": ((0, b"MATRIX7"),),
    "Interfile": ((0, b"!INTERFILE"),),
}
_PACKED = {
    "gzip": ((0, b"\x1f\x8b"),),
    "bzip2": ((0, b"BZh"),),
    "xz": ((0, b"\xfd7zXZ\0"),),
    "zstd": ((0, b"(\xb5/\xfd"),),
    "lz4": ((0, b'\x04"M\x18'),),
    "compress": ((0, b"\x1f\x9d"),),
    "zip": ((0, b"PK\3\4"),),
    "tar": ((257, b"ustar"),),
    "7z": ((0, b"7z\xbc\xaf\x27\x1c"),),
    "rar": ((0, b"Rar!"),),
}
# documents, programs, weights and arrays that are zip archives by themselves
_ZIPPED = (
    *(".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub", ".jar", ".whl"),
    *(".pt", ".pth", ".ckpt", ".pkl", ".npz"),
)
_DROPPINGS = ("__macosx", "thumbs.db", "desktop.ini")  # of systems
_OF_DISKS = ("lost+found", "system volume information")  # folders of systems, in which nobody else may look
_RECORDS = "results.json"  # of an inference
# what an inference calls its images, or a user who mends one
_RESULT = re.compile(r"_(seg|prob|uncertainty)(?=[._]|\Z)")
_PREVIEWS = "previews"  # and the folder of its pictures


@dataclass
class Found:
    """What was found below a folder.

    Attributes:
        images: files, and folders with the slices of DICOM series.
        problems: reasons by path, of what may be an image but cannot be taken.
        others: files that are no images.
        no_volumes: reasons by path, of DICOM that holds none, such as reports.
        copies: of files beside them, such as editors and broken downloads leave.
        results: folders that an inference wrote.
        voxels: files with the voxels of headers, which are not images by themselves.
    """

    images: list[Path] = field(default_factory=list)
    problems: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    no_volumes: dict[Path, str] = field(default_factory=dict)
    copies: list[Path] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    voxels: set[Path] = field(default_factory=set)


def found_below(folder: Path, leave_out: Path | None = None) -> Found:
    """Everything in a folder and the folders in it, however deep; hidden files are nobody's images.

    Args:
        folder: to look into.
        leave_out: a folder in it that no image is taken from, such as the one that results go to.
    """
    found = Found()
    seen: dict[str, Path] = {}
    again: dict[Path, Path] = {}  # links to folders that were seen, and under which name they were
    pending: deque[tuple[Path, Path | None]] = deque([(folder, None)])  # each with the folder of results it lies in
    while pending:
        each, results = pending.popleft()
        real = os.path.realpath(each)
        if real in seen:
            # a link to a folder above leads round and round
            if real not in (os.path.realpath(parent) for parent in each.parents):
                again[each] = seen[real]
            continue
        seen[real] = each
        if each != folder and (
            leave_out is not None and real == os.path.realpath(leave_out) or recorded_cases(each) is not None
        ):
            found.results.append(each)
            results = each
        if each != folder and _is_volume(each):
            found.problems[each] = (
                f"'{each}': a folder with a volume in a format that is not read ({each.suffix}). Convert it to NIfTI."
            )
            continue
        try:
            entries = [entry for entry in sorted(each.iterdir()) if not _is_clutter(entry)]
            if each == folder:
                entries = _without_results(found, entries)
        except OSError as error:
            if each.name.lower() not in _OF_DISKS:
                found.problems[each] = f"'{each}': cannot be opened ({error.strerror}). Ask for permission to read it."
            continue
        if results is None:
            _sort_into(found, each, entries)
        else:
            entries = [entry for entry in entries if entry.name != _PREVIEWS and not _RESULT.search(entry.name)]
            _sort_among_results(found, each, entries, results)
        pending += ((entry, results) for entry in entries if is_folder(entry))
    _say_again(found, again)
    return found


def _sort_among_results(found: Found, folder: Path, entries: list[Path], results: Path) -> None:
    """Lists what somebody has put into a folder of results: nothing there is taken for an image."""
    there = Found(voxels=found.voxels)
    _sort_into(there, folder, entries)
    found.problems |= there.problems
    found.no_volumes |= there.no_volumes
    for image in there.images:
        found.problems[image] = (
            f"'{image}': in the folder of an inference's results, '{results}', of which no image is taken. Move it to "
            "another folder."
        )


def _say_again(found: Found, again: Mapping[Path, Path]) -> None:
    """Lists the links to folders that were seen by another name, if any image is there."""
    images = {top for each in (*found.images, *found.problems) for top in (each, *each.parents)}
    for link, first in again.items():
        if first in images:
            found.problems[link] = (
                f"'{link}': a link to what was found as '{first}', which is taken once, by that name. Remove the link, "
                "or copy the folder."
            )
        else:
            found.others.append(link)


def found_at(paths: list[Path], leave_out: Path | None = None) -> Found:
    """The same of single files and of folders, such as a pattern names; files are taken each by itself."""
    found = Found()
    paths = _without_results(found, paths)
    _sort_into(found, None, [path for path in paths if not is_folder(path) and not _is_clutter(path)])
    for path in paths:
        if is_folder(path):
            below = found_below(path, leave_out)
            found.images += below.images
            found.problems |= below.problems
            found.others += below.others
            found.no_volumes |= below.no_volumes
            found.copies += below.copies
            found.results += below.results
    return found


def outermost(paths: Sequence[Path]) -> list[Path]:
    """The paths without those in folders that are among them, as ``**`` gives: they are found there."""
    folders = set(filter(is_folder, paths))
    return [path for path in dict.fromkeys(paths) if folders.isdisjoint(path.parents)]


def is_folder(path: Path) -> bool:
    """What cannot be looked at, in a folder that may be listed and no more, is a file of which that is said."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _sort_into(found: Found, folder: Path | None, entries: list[Path]) -> None:
    """Sorts the files of one folder; None for files that a pattern names, of which each DICOM file is an image."""
    files = [entry for entry in entries if not is_folder(entry)]
    found.voxels.update(path for file in files for path in _named_by(file))  # those of folders below too
    slices, images = [], len(found.images)
    for file in files:
        try:
            if file.is_symlink() and not file.exists():
                found.problems[file] = (
                    f"'{file}': a link to '{os.readlink(file)}', which is not there. Restore the file."
                )
            elif is_image_file(file):
                found.images.append(file)
            elif is_copy(file) and folder is not None:
                found.copies.append(file)
            elif is_dicom_file(file):
                slices.append(file)
                if folder is None:
                    _take_dicom(found, file)
            elif file.resolve() not in found.voxels:
                _sort_other(found, file)
        except OSError as error:
            found.problems[file] = f"'{file}': cannot be opened ({error.strerror}). Ask for permission to read it."
    if slices and folder is not None and len(found.images) > images and not any(map(_may_hold_dicom, slices)):
        for file in slices:  # a report, beside images, that is called like a slice
            _sort_other(found, file)
    elif slices and folder is not None:
        _take_dicom(found, folder)
        for file in files:
            if folder in found.images and file in found.problems and file.is_symlink():
                del found.problems[file]  # it may be one of the slices, so the series itself is refused


def _take_dicom(found: Found, path: Path) -> None:
    """Sorts a DICOM file, or a folder of them."""
    if reason := without_volume(path):
        found.no_volumes[path] = reason
    else:
        found.images.append(path)


def _may_hold_dicom(file: Path) -> bool:
    try:
        return holds_dicom(file)
    except OSError:  # of which reading the series has words
        return True


def _sort_other(found: Found, file: Path) -> None:
    name = file.name.lower()
    if is_copy(file):
        found.copies.append(file)
        return
    if name.endswith((*IMAGE_SUFFIXES, ".dcm")) and not file.is_file():
        found.problems[file] = f"'{file}': no regular file. Copy its content into one."
    elif suffix := next((suffix for suffix in OTHER_FORMATS if name.endswith(suffix)), None):
        if suffix in HEADER_SUFFIXES.values():
            found.problems[file] = (
                f"'{file}': the voxels of a pair of files, whose header '{file.name[: -len(suffix)]}.hdr' is not "
                "there. Copy it as well."
            )
            return
        found.problems[file] = (
            f"'{file}': an image in a format that is not read ({suffix}), expected a file ending in "
            f"{', '.join(IMAGE_SUFFIXES)}, or DICOM. Convert it."
        )
    elif suffix := next((suffix for suffix in _RAW if name.endswith(suffix)), None):
        stem = file.name[: -len(suffix)]
        if any(file.with_name(stem + header).exists() for header in (".mhd", ".nhdr")):  # which is damaged
            found.others.append(file)
        else:
            found.problems[file] = (
                f"'{file}': voxels without a header ({suffix}), expected one such as '{stem}.mhd' that names the file. "
                "Copy it as well."
            )
    elif suffix := next((suffix for suffix in DICOM_SUFFIXES if name.endswith(suffix)), None):
        found.problems[file] = (
            f"'{file}': named like a DICOM file ({suffix}), but without DICOM in it. Copy or export it again."
        )
    elif suffix := next((suffix for suffix in ARCHIVES if name.endswith(suffix)), None):
        found.problems[file] = f"'{file}': an archive ({suffix}), which may hold images. Extract it."
    elif kind := _kind_of(file, _VOLUMES):
        found.problems[file] = (
            f"'{file}': {kind} by its content, but not by its name, expected a file ending in "
            f"{', '.join(IMAGE_SUFFIXES)}. Is it a copy? Rename it, or move it elsewhere."
        )
    elif not name.endswith(_ZIPPED) and (kind := _kind_of(file, _PACKED)):
        found.problems[file] = (
            f"'{file}': compressed by its content ({kind}), but not by its name, and may hold images. Complete its "
            "name, extract it, or move it elsewhere."
        )
    elif (plain := without_added(name)) != name and plain.endswith((*IMAGE_SUFFIXES, *OTHER_FORMATS, *DICOM_SUFFIXES)):
        found.problems[file] = (
            f"'{file}': called like an image, '{plain}', but for its ending, as copies and broken downloads are. Copy "
            "it again, complete or correct its name, or move it elsewhere."
        )
    else:
        found.others.append(file)


def _kind_of(file: Path, kinds: Mapping[str, Sequence[tuple[int, bytes]]]) -> str | None:
    """What a file is by its first bytes, whatever it is called, as copies, backups and broken downloads are."""
    if not file.is_file():
        return None
    with open(file, "rb") as stream:
        start = stream.read(512)
    places = ((kind, place, sign) for kind, signs in kinds.items() for place, sign in signs)
    return next((kind for kind, place, sign in places if start[place : place + len(sign)] == sign), None)


def _named_by(file: Path) -> Iterator[Path]:
    """The files with the voxels of a header, which are not images by themselves."""
    try:
        for each in files_beside(file) if is_image_file(file) else ():
            yield each.resolve()
    except (DatasetError, OSError):  # said when the image is read
        return


def recorded_cases(folder: Path) -> Collection[str] | None:
    """The cases of which an inference wrote its results to a folder; None where there was none."""
    records = folder / _RECORDS
    try:
        content = json_of(records.read_text("utf-8")) if records.is_file() else {}
        return content["cases"].keys() if "configurations" in content else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _without_results(found: Found, paths: Sequence[Path]) -> list[Path]:
    """The paths but for what an inference wrote beside its records: somebody asks for the folder of the results, where
    images of other cases may lie as well.
    """
    recorded = {folder: recorded_cases(folder) for folder in {path.parent for path in paths}}
    left = []
    for path in paths:
        cases, names = recorded[path.parent], (path.name[: end.start()] for end in _RESULT.finditer(path.name))
        if cases is None or not (path.name == _PREVIEWS or any(name in cases for name in names)):
            left.append(path)
        elif path.parent not in found.results:
            found.results.append(path.parent)
    return left


def _is_volume(folder: Path) -> bool:
    """Whether a folder is a volume in pieces, by its name and what such a format must hold."""
    return folder.name.lower().endswith(_FOLDERS) and any(
        found for name in _FOLDER_HEADERS for found in (*folder.glob(name), *folder.glob(f"*/{name}"))
    )


def _is_clutter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _DROPPINGS or (is_index(path) and not is_folder(path))
