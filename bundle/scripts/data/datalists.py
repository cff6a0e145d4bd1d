"""From what a config declares about a data set to a list of ``{"image": path, "label": path, "case": name}``.

Everything here runs before anything expensive does: a wrong path ends the program in seconds, with one message that
holds every problem found. What is in the files is checked by :mod:`scripts.data.dataset_check`.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..errors import SHOWN, DatasetError, MissingFileError, count, listed, printable
from ..files import json_of
from .case_patterns import case_path, cases_matching, check_patterns
from .dicom_files import is_dicom_file
from .file_names import CANNOT_BE_TAKEN, IMAGE_SUFFIXES, case_name, is_image_file, told_by_suffix
from .found_files import Found, found_at, found_below, is_folder, outermost, recorded_cases

# bytes in the name of a case: with what results add to it, such as "_uncertainty_upright.nii.gz", a file's 255
LONGEST_NAME = 228

logger = logging.getLogger(__name__)

Item = Mapping[str, str]
LabelMap = Mapping[str, "int | Sequence[int]"]


# ---- which files there are


def find_cases(
    dataset_dir: str | Path,
    image_pattern: str,
    label_pattern: str | None = None,
    *,
    cases: Iterable[str | int] | None = None,
    exclude: Iterable[str | int] | None = (),
) -> list[dict[str, str]]:
    """The files of each case.

    Args:
        dataset_dir: folder of the data set; if nothing there matches, the one folder in it where something does.
        image_pattern: path of an image relative to it, with ``{case}`` in it: ``"img/img{case}.nii.gz"``, or
            ``"{case}/T2_SPIR.*"``, whose ending may differ; see :mod:`scripts.data.case_patterns`.
        label_pattern: the same for labels, or None for a list without labels.
        cases: exactly these, in this order; None takes every case that has an image, in natural order (2 before 10).
        exclude: left out when ``cases`` is None; names that are not there do no harm.

    Returns:
        One ``{"image": path, "label": path, "case": name}`` a case, without ``"label"`` if there is no label pattern.

    Raises:
        FileNotFoundError: the folder, every image, or a file of a wanted case is missing.
        DatasetError: a pattern without ``{case}``; a case that is named like a path.

    Example:
        >>> find_cases("/data/btcv", "img/img{case}.nii.gz", cases=["0001"])  # doctest: +SKIP
        [{'image': '/data/btcv/img/img0001.nii.gz', 'case': '0001'}]
    """
    patterns = {"image": image_pattern} | ({"label": label_pattern} if label_pattern is not None else {})
    check_patterns(patterns)
    folder = _existing_folder(dataset_dir)
    available = _available_cases(folder, image_pattern, label_pattern)
    if not available:
        # archives are easily extracted one folder too deep; where one folder alone fits, nothing else can be meant
        nested = [each for each in sorted(folder.iterdir()) if each.is_dir()]
        found = {each: _available_cases(each, image_pattern, label_pattern) for each in nested}
        fitting = [each for each, cases_there in found.items() if cases_there]
        if len(fitting) == 1:
            logger.warning("The data set lies in '%s', one folder deeper than '%s': read there.", *fitting, folder)
            folder, available = fitting[0], found[fitting[0]]
    if not available:
        raise MissingFileError(
            f"No image in '{folder}' matches '{image_pattern}'. {_what_is_there(folder)} Set --dataset_dir to the "
            "folder that the pattern starts from, or --image_pattern to the layout of this data set."
        )
    if cases is None:
        excluded = {str(case) for case in exclude or ()}
        wanted = [case for case in available if case not in excluded]
    else:
        wanted = [str(case) for case in cases]
        _check_names(wanted)
    items = [
        {key: str(case_path(folder, pattern, case)) for key, pattern in patterns.items()} | {"case": case}
        for case in wanted
    ]
    missing = [(item["case"], item[key]) for item in items for key in patterns if not os.path.exists(item[key])]
    if missing:
        raise MissingFileError(_missing_files(missing, available))
    return items


def inference_inputs(path: str | Path, leave_out: str | Path | None = None) -> list[dict[str, str]]:
    """The images that an ``--input`` means.

    Args:
        path: an image file, a folder with the DICOM slices of one image, a folder of image files and such folders,
            however deep they lie in it, a glob pattern, or a JSON file that lists images: a list, or an object that has
            it as ``"test"``, ``"testing"`` or its only list (Decathlon's ``dataset.json``). An entry is a path,
            relative to the file's folder, or ``{"image": path}``, with ``"case"`` for a name of its own.
        leave_out: a folder that no image is taken from, such as the one that results go to.

    Returns:
        One ``{"image": path, "case": name}`` an image, in natural order, or in that of the list. Files are named
        without their suffix, unless it alone tells them apart, series by their folder, both after the folders in
        ``path`` that they lie in. What a list
        names need not be there. Whatever is there and may be an image, but cannot be taken, has the reason as
        ``"problem"``; what is none is said in the log.

    Raises:
        FileNotFoundError: nothing is there, or nothing that can be read.
        DatasetError: a file of another format; a JSON file without such a list; or two images of one name, whose
            results would share a file name.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix.lower() == ".json":
        return _with_names_of_their_own(_listed_inputs(path))
    if path.is_file() and not (is_image_file(path) or is_dicom_file(path)):
        raise DatasetError(
            f"Input '{path}' is no image in a supported format: expected a DICOM file, a file ending in "
            f"{', '.join(IMAGE_SUFFIXES)}, or a folder of DICOM slices. Convert it, or give the folder that holds its "
            "slices."
        )
    items = sorted(
        _items_at(path, None if leave_out is None else Path(leave_out)), key=lambda item: natural_order(item["image"])
    )
    if not items:
        raise MissingFileError(
            f"{_nothing_at(path)} Expected an image ending in {', '.join(IMAGE_SUFFIXES)}, a folder of DICOM slices, a "
            "folder of images, a glob pattern in quotes, or a JSON file that lists images. Set --input to one of these."
        )
    # a file that is called by spaces alone, and its suffix
    items = [item if item["case"].strip() else {**item, "case": Path(item["image"]).name} for item in items]
    return _with_names_of_their_own(items)


def check_output(path: str | Path, items: Sequence[Item], output: str | Path) -> None:
    """Refuses an output folder in which ``--input`` would find the results the next time.

    Args:
        path: the ``--input``, of which a file, or a list of files, cannot mean anything else later.
        items: of :func:`inference_inputs`.
        output: folder of the results.

    Raises:
        DatasetError: the images are taken from the output folder itself.
    """
    if Path(path).expanduser().is_file():
        return
    folder = os.path.realpath(output)
    if folder == os.path.realpath(path) or any(
        folder in (os.path.realpath(item["image"]), os.path.realpath(Path(item["image"]).parent))
        for item in items
        if "problem" not in item
    ):
        raise DatasetError(
            f"The output folder '{output}' is the one that the images are read from, so results would be taken for "
            "images the next time. Set --output to another folder."
        )


_NO_PATH = "no file can have this name. Correct it in '{}'."


def _listed_inputs(path: Path) -> list[dict[str, str]]:
    """The images that a JSON file lists."""
    expected = (
        'expected a list of paths or {"image": path} entries, or an object with such a list as "test", such as a '
        "Decathlon dataset.json. Correct the file."
    )
    try:
        content = json_of(path.read_text(encoding="utf-8"), strict=True)
    except (OSError, ValueError) as error:
        raise DatasetError(f"Input '{path}' is no JSON ({error}); {expected}") from error
    entries = content
    if isinstance(content, Mapping):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        entries = next((lists[key] for key in ("test", "testing") if key in lists), None)
        # what a file describes beside the one list of images, such as channels, is in objects
        if entries is None and len(lists) == 1:
            (entries,) = lists.values()
        if entries is None:
            raise DatasetError(f"Input '{path}' has the keys {listed(content)}; {expected}")
    if not isinstance(entries, list):
        raise DatasetError(f"Input '{path}' holds a {type(content).__name__}; {expected}")
    if not entries:
        raise MissingFileError(f"The list of images in the input '{path}' is empty. Name at least one image there.")
    items = []
    for entry in entries:
        entry = entry if isinstance(entry, Mapping) else {"image": entry}
        image, case = entry.get("image"), entry.get("case")
        if not (isinstance(image, str) and image) or isinstance(case, (bool, list, dict)):
            raise DatasetError(f"Input '{path}' has the entry {json.dumps(entry)}; {expected}")
        image = os.path.abspath(path.parent / os.path.expanduser(image))
        case = case_name(image) if case is None else str(case)
        stated = entry.get(CANNOT_BE_TAKEN)
        problem = {"problem": stated} if isinstance(stated, str) and stated else {}
        if not is_path(image):
            image = printable(image)  # which everything that follows can ask for
            problem = {"problem": f"'{image}': {_NO_PATH.format(path)}"}
        items.append({"image": image, "case": case, **problem})
    return items


def _with_names_of_their_own(items: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same items.

    Raises:
        DatasetError: two of them have one name, or a name that cannot be a file's.
    """
    names = [item["case"] for item in items]
    _check_names(names)
    for item in items:
        longer = len(os.fsencode(item["case"])) - LONGEST_NAME
        if longer > 0:
            item.setdefault(
                "problem",
                f"'{item['image']}': its results would be named '{item['case']}', {longer} bytes longer than a file's "
                'name can be. Rename it, or list it in a JSON file with a shorter "case".',
            )
    times = Counter(names)
    clashing = [Path(item["image"]) for item in items if times[item["case"]] > 1]
    if clashing:
        raise DatasetError(
            f"Several inputs have the same name, so their results would overwrite each other: {listed(clashing)}. Run "
            "them one at a time with different output folders, rename them, or list them in a JSON file, each entry "
            'with a "case" of its own.'
        )
    _check_alike(names)
    return items


def _check_alike(names: Iterable[str]) -> None:
    """Refuses names that are one where capitals and ways to write an accent make no difference; elsewhere it is said.

    Raises:
        DatasetError: there are such names, and this system is one of those.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        groups.setdefault(folded, []).append(name)
    alike = [" and ".join(map(ascii, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return
    differ = f"Names of cases that differ by capitals, or by how accents are written, alone: {listed(alike)}."
    if sys.platform in ("darwin", "win32"):
        raise DatasetError(
            f"{differ} On this system their results would overwrite each other. Run them one at a time with different "
            'output folders, or list them in a JSON file, each entry with a "case" of its own.'
        )
    logger.warning("%s On macOS and Windows their results would be one file: do not copy them there together.", differ)


def is_path(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair of JSON's escapes, which no file system takes
        return False


def _is_file_name(name: str) -> bool:
    return name.strip() not in ("", "..") and is_path(name) and Path(name).name == name


def _check_names(names: Iterable[str]) -> None:
    """Refuses names of cases that lead elsewhere, since results are written under them."""
    unusable = [name if name.strip() else f"'{name}'" for name in names if not _is_file_name(name)]
    if unusable:
        raise DatasetError(f"Cases are named {listed(unusable)}; expected names that files can have. Rename them.")


def _existing_folder(dataset_dir: str | Path) -> Path:
    if not isinstance(dataset_dir, (str, os.PathLike)):
        raise DatasetError(f"dataset_dir is {dataset_dir!r}, expected the path of a folder. Put it into quotes.")
    folder = Path(dataset_dir).expanduser().resolve()
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "is not there"
        raise MissingFileError(
            f"The data set folder '{folder}' {found}. Set it with --dataset_dir; docs/README.md says where to get BTCV "
            "and CHAOS. The embedded demo needs no download: leave out --dataset_dir."
        )
    return folder


def _available_cases(folder: Path, image_pattern: str, label_pattern: str | None) -> list[str]:
    """Every case that has an image, in natural order."""
    cases = cases_matching(folder, image_pattern)
    if label_pattern is not None:
        # '{case}.nii.gz' also matches the labels that '{case}_seg.nii.gz' keeps beside the images
        labels = {case_path(folder, label_pattern, case) for case in cases}
        cases = [case for case in cases if case_path(folder, image_pattern, case) not in labels]
    return sorted(cases, key=natural_order)


def natural_order(name: object) -> tuple[list[tuple[int, int | str]], str]:
    """Sorting key in which numbers inside a name count as numbers; the name itself decides between 1 and 01."""
    parts = re.findall(r"[0-9]+|[^0-9]+", str(name))
    return [(0, int(part)) if part[0] in "0123456789" else (1, part) for part in parts], str(name)


def _what_is_there(folder: Path) -> str:
    walk = ((root, sorted(files), folders.sort()) for root, folders, files in os.walk(folder))
    paths = (os.path.relpath(os.path.join(root, name), folder) for root, files, _ in walk for name in files)
    few = list(islice(paths, 6))
    if not few:
        return "The folder is empty."
    return f"There are, for example: {', '.join(few)}."


def _missing_files(missing: Sequence[tuple[str, str]], available: Sequence[str]) -> str:
    lines = [f"  '{path}' (case '{case}'{_suggestion(case, available)})" for case, path in missing]
    return "\n".join(
        [
            f"{count(len(missing), 'file')} of the wanted cases missing:",
            *lines,
            f"Cases that have an image: {listed(available, 4 * SHOWN)}. Restore the files, or name other cases in "
            "train_cases or test_cases.",
        ]
    )


def _suggestion(case: str, available: Sequence[str]) -> str:
    """JSON numbers lose their leading zeros: 1 was meant to be '0001'."""
    same = [name for name in available if name != case and name.isdigit() and case.isdigit() and int(name) == int(case)]
    return f'; did you mean "{same[0]}", with quotes?' if same else ""


def _items_at(path: Path, leave_out: Path | None) -> list[dict[str, str]]:
    """Everything at an ``--input`` that is, or may be, an image."""
    if path.is_file():
        return [{"image": os.path.abspath(path), "case": case_name(path)}]
    path = Path(os.path.abspath(path))
    if path.is_dir():
        found, root = found_below(path, leave_out), path
    else:
        matches = outermost([Path(match) for match in glob.glob(str(path), recursive=True)])
        found, root = found_at(matches, leave_out), None
    if not found.images:  # nor is there anything else to be done
        found.problems |= found.no_volumes
        found.no_volumes = {}
    _say_what_is_left(found)
    tops = dict.fromkeys(found.images, root) if root else {}
    if not root:  # a pattern names many folders, none in another: what lies in each is named after it
        folders = set(filter(is_folder, matches))
        everything = (*found.images, *found.problems)
        tops = {image: top.parent for image in everything for top in image.parents if top in folders}
    places = [root or image.parent for image in found.images]
    names = [_name_below(image, tops.get(image)) for image in found.images]
    names = told_by_suffix(names, list(map(str, found.images)), places)
    images = [{"image": str(image), "case": name} for image, name in zip(found.images, names)]
    problems = [
        {"image": str(file), "case": _name_below(file, tops.get(file, root), suffix=file.name), "problem": reason}
        for file, reason in found.problems.items()
    ]
    return images + problems


def _name_below(image: Path, top: Path | None, suffix: str | None = None) -> str:
    """What the results of an image are called: its name, after those of the folders between it and ``top``."""
    name = suffix or case_name(image)
    if top is None or image == top:
        return name
    return "_".join([*image.relative_to(top).parts[:-1], name])


def _say_what_is_left(found: Found) -> None:
    for reason in found.problems.values():
        logger.warning("Not taken: %s", reason)
    for reason in found.no_volumes.values():
        logger.info("Left out: %s", reason)
    if found.others:
        logger.info("No images, and not looked into: %s.", listed(found.others))
    if found.copies:
        logger.info("Copies of files beside them, and not taken: %s.", listed(found.copies))
    if found.results:
        logger.info("Results of an inference, of which no image is taken: %s.", listed(found.results))


def _nothing_at(path: Path) -> str:
    if path.is_dir() and recorded_cases(path) is not None:
        return f"The input folder '{path}' holds the results of an inference, of which no image is taken."
    if path.is_dir():
        return f"There is no image in the input folder '{path}'. {_what_is_there(path)}"
    if glob.has_magic(str(path)):
        return f"No image matches the input pattern '{path}'."
    if os.path.lexists(path):
        return f"The input '{path}' is a pipe, a device or a link to nothing."
    return f"The input '{path}' is not there."
