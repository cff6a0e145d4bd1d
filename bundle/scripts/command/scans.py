"""The scans that a user names, as the one ``--input`` of the workflow.

One file, folder, DICOM series or pattern is passed on as it is. Several, and lists in CSV, become a JSON list in the
output folder. Images of one name, such as ``p1/CT.nii.gz`` and ``p2/CT.nii.gz``, are named after their folders too.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.file_names import CANNOT_BE_TAKEN, case_name, told_by_suffix
from ..errors import DatasetError, MissingFileError, listed, one_line
from ..files import json_of, named_by_content
from .runs import shown, typed

LIST = "inputs.json"  # with a digest of its content in the name
_IMAGE_COLUMNS = (
    *("image", "path", "file", "scan", "input"),
    *("filename", "filepath", "file name", "file path", "image path", "image file", "scan path"),
)
_SHARED_NAMES = ("case id", "id")  # a patient has one for all images
_NAME_COLUMNS = ("case", "name", *_SHARED_NAMES)
_SERIES = "series"
_OTHER_COLUMNS = (*_NAME_COLUMNS, "patient", "patient id", "subject", "subject id", _SERIES, "label")

Item = dict[str, str]


class _Columns(NamedTuple):
    """Where a list has its columns. None is one that it has not, of images where its first row is a scan already."""

    image: int | None
    name: int | None
    series: int | None
    is_own: bool  # whether names are the scans' own, and not their patients'


def input_of(scans: Sequence[str], output: Path) -> str:
    """What to give to ``--input``.

    Args:
        scans: files, folders, patterns, lists in CSV or JSON.
        output: folder of the results, where a list goes.

    Raises:
        MissingFileError: one is not there, or a pattern matches nothing.
        DatasetError: a list without images, or with a series of each; two images of one name, even after their folders.
    """
    if len(scans) == 1 and _is_json(scans[0]):
        _check_no_series(Path(scans[0]).expanduser())
    if len(scans) == 1 and not _is_csv(scans[0]):
        found = _found(scans[0])
        names = [case_name(path) for path in found]
        if (
            os.path.exists(os.path.expanduser(scans[0]))
            or len(set(names)) == len(names)
            or any(map(os.path.isdir, found))
        ):
            return typed(scans[0])
    items = [item for scan in scans for item in _items(scan, output)]
    # an image that several patterns match counts once; one that a list gives two names has both
    named = {(item["image"], item.pop("named", None)): item for item in items}
    _check_once(list(named))
    unique = list(named.values())
    return shown(named_by_content(output, LIST, json.dumps(_told_apart(unique), indent=1) + "\n"))


def _items(scan: str, output: Path) -> list[Item]:
    if _is_csv(scan):
        return _rows(Path(scan).expanduser())
    items: list[Item] = []
    for path in _found(scan):
        if path.suffix.lower() == ".json":
            raise DatasetError(f"'{path}' is a list of images, expected it alone. Give it without other inputs.")
        if path.is_dir():
            from ..data.datalists import inference_inputs  # takes seconds

            below = inference_inputs(path, output)
            items += [{**item, "folder": str(path)} for item in below]
        else:
            items.append({"image": os.path.abspath(path), "case": case_name(path)})
    return items


def _found(scan: str) -> list[Path]:
    """What a name, or a pattern, means."""
    path = Path(scan).expanduser()
    if path.exists():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        kind = "No file matches the pattern" if glob.has_magic(scan) else "There is no file or folder"
        raise MissingFileError(f"{kind} '{scan}'. Give scans, folders of them, or patterns in quotes.")
    return matches


def _check_once(named: Sequence[tuple[str, str | None]]) -> None:
    """Refuses a name that lists give to several images: nobody could tell which of the results is meant by it."""
    images: dict[str, list[Path]] = {}
    for image, name in named:
        if name is not None:
            images.setdefault(name, []).append(Path(image))
    for name, several in images.items():
        if len(several) > 1:
            raise DatasetError(
                f"The case '{one_line(name)}' is listed with {len(several)} images: {listed(several)}. Give each a "
                "name of its own, or leave the names out."
            )


def _told_apart(items: Sequence[Item]) -> list[Item]:
    """The same images, each with a name that only it has: where several share one, with their folders in front, and
    with their suffixes, where they lie in one folder.

    What cannot be taken keeps the reason.
    """
    names = [item["case"] for item in items]
    images = [item["image"] for item in items]
    places = list(map(os.path.dirname, images))
    for level in range(1, 4):
        shared = {name for name, number in Counter(name for name, _ in set(zip(names, places))).items() if number > 1}
        for index, item in enumerate(items):
            if names[index] in shared:
                # a series is named by its own folder already
                folders = Path(item["image"]).parts[1:-1][-level:]
                names[index] = "_".join([*folders, item["case"]])
    names = told_by_suffix(names, images, places)
    shared = {name for name, number in Counter(names).items() if number > 1}
    if shared:
        clashing = [Path(item["image"]) for item, name in zip(items, names) if name in shared]
        raise DatasetError(
            f"Several inputs have the same name, so their results would overwrite each other: {listed(clashing)}. List "
            "them in a CSV with the columns image and case."
        )
    reasons = [{CANNOT_BE_TAKEN: item["problem"]} if "problem" in item else {} for item in items]
    return [{"image": item["image"], **said, "case": name} for item, name, said in zip(items, names, reasons)]


def _is_json(scan: str) -> bool:
    return scan.lower().endswith(".json") and os.path.isfile(os.path.expanduser(scan))


def _check_no_series(path: Path) -> None:
    """Refuses a list in JSON that says a series of an image; whether it is such a list, the workflow says."""
    try:
        content = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    lists = [each for each in content.values() if isinstance(each, list)] if isinstance(content, dict) else [content]
    if isinstance(content, dict) and (of_tests := [content[key] for key in ("test", "testing") if key in content]):
        lists = of_tests[:1]
    for entry in (entry for each in lists if isinstance(each, list) for entry in each if isinstance(entry, dict)):
        if entry.get(_SERIES) not in (None, ""):
            _refuse_series(path, str(entry.get("image")), str(entry[_SERIES]))


def _refuse_series(path: Path, image: str, series: str) -> None:
    """All scans are read with one ``--series``: what a list says of each would be lost, and another one segmented."""
    raise DatasetError(
        f"'{path}' has the series '{one_line(series)}' for '{one_line(image)}', expected none: which series of a "
        "folder is read is said for all scans by --series. Give that, or list a folder for each series, and take the "
        f"'{_SERIES}' out of the list."
    )


def _is_csv(scan: str) -> bool:
    return scan.lower().endswith((".csv", ".tsv")) and os.path.isfile(os.path.expanduser(scan))


def _rows(path: Path) -> list[Item]:
    """The images of a CSV: of its column ``image``, or the first one; names from ``case``, if there is one."""
    rows, separator = _cells(path)
    columns = _columns(path, rows)
    scans = rows if columns.image is None else rows[1:]
    items = [_item(path, row, columns=columns, first=rows[0], separator=separator) for row in scans]
    if not items:
        raise DatasetError(f"'{path}' names no image, expected one a line, or a column called image. Correct the list.")
    return items


def _cells(path: Path) -> tuple[list[list[str]], str]:
    """The rows of a CSV that hold anything, and what separates their cells: a comma, a semicolon or a tab."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
        first = next((line for line in text.splitlines() if line.strip()), "")
        stated = re.fullmatch(r"sep=(\S|\t)", first.strip(" \r\n"), re.IGNORECASE)  # as Excel has it
        if stated:
            text = text.lstrip()[len(first.strip()) :]
        separator = stated[1] if stated else max(",;\t", key=first.count)
        # strict: a quote that nobody closes would make one name of all that follow
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [[cell.strip() for cell in row] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"'{path}' cannot be read as a CSV ({error}). Save it as UTF-8, with a row a scan."
        ) from error
    return [row for row in rows if any(row)], separator


def _columns(path: Path, rows: list[list[str]]) -> _Columns:
    """Which columns the first row names, if it names them."""
    header = [re.sub(r"[\s_-]+", " ", cell.lower()) for cell in rows[0]] if rows else []
    image = next((header.index(name) for name in _IMAGE_COLUMNS if name in header), None)
    if image is None:
        if set(header) & set(_OTHER_COLUMNS) and not (path.parent / rows[0][0]).exists():
            raise DatasetError(
                f"'{path}' has the columns {listed(rows[0])}, expected one of images that is called image, path or "
                "file. Correct its first line."
            )
        return _Columns(None, None, None, is_own=False)
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DatasetError(f"'{path}' has the column '{one_line(twice[0])}' twice, expected it once. Remove one.")
    name = next((header.index(name) for name in _NAME_COLUMNS if name in header), None)
    series = header.index(_SERIES) if _SERIES in header else None
    return _Columns(image, name, series, is_own=name is not None and header[name] not in _SHARED_NAMES)


def _item(path: Path, row: list[str], *, columns: _Columns, first: list[str], separator: str) -> Item:
    """The image of a row, by its absolute path, and its name."""
    place = columns.image or 0
    image = row[place] if len(row) > place else ""
    if not image or any(row[len(first) :]):
        expected = "an image in each" if columns.image is None else f"what the header names: {separator.join(first)}"
        raise DatasetError(
            f"'{path}' has the row '{one_line(separator.join(row))}', expected {expected}. Complete it, put names "
            "with commas into quotes, or remove the row."
        )
    if columns.series is not None and len(row) > columns.series and row[columns.series]:
        _refuse_series(path, image, row[columns.series])
    image = os.path.abspath(path.parent / Path(image).expanduser())
    named = row[columns.name] if columns.name is not None and len(row) > columns.name else ""
    own = {"named": named} if named and columns.is_own else {}
    return {"image": image, "case": named or case_name(image), **own}
