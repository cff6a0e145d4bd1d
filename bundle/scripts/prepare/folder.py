"""A user's own images and labels, found by patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.case_patterns import case_path, cases_matching, check_patterns
from ..data.datalists import Item, LabelMap, find_cases, natural_order
from ..data.dataset_check import check_dataset
from ..data.file_names import NIFTI_SUFFIXES
from ..data.label_values import label_values
from ..data.organ_names import with_known_names
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed
from .configs import background_of, holds_preparation, intensity_of
from .masks import LABELS, ORGAN, masks_there, merged
from .modalities import common_modality, unit_warnings
from .overlays import cases_with_organs, chosen_train_cases, stated_settings, write_overlay
from .targets import Target, convert
from .words import FOLDER, in_words_of

MOST_LABEL_VALUES = 50  # more than these are intensities


@in_words_of(FOLDER)
def prepare_folder(
    source: str,
    image: str,
    label: str,
    output: str,
    *,
    label_map: LabelMap | None = None,
    background_values: Sequence[int] | None = None,
    modality: str = "ct",
    train_cases: Sequence[str] | None = None,
    series: str | None = None,
    default_axcodes: str | None = None,
    trusted_form: str | None = None,
    overwrite: bool = False,
) -> str:
    """Your own images and labels: checks them, converts what is not NIfTI, and writes an overlay for the commands.

    Args:
        source: folder that the patterns start from.
        image: path of an image below it, with ``{case}`` in it: a file, or a folder with the slices of a DICOM series.
            Without an ending, or with ``.*`` for it, images may be of any format, and each of another.
        label: the same for its label. Images without a label are left out. With ``{organ}`` once as well, a mask an
            organ, ``"{case}/segmentations/{organ}.nii.gz"``, which are put together into label maps in ``output``.
        output: folder for ``overlay.json``, and for the converted files if there are any.
        label_map: organ to its label value, or values: ``"{'spleen': 1, 'liver': 6}"``. Other values become background.
            Without it, every value that is found is an organ, named ``organ 1`` ... in the overlay. Of masks, organ to
            the name of its mask. ``kidney_right`` and the like become ``right kidney``, as in the model that ships.
        background_values: label values of no organ, all of them: others that ``label_map`` lacks are then an error.
        modality: ``ct`` or ``mr``, scaled as in configs/ct.json or configs/mr.json; ``auto`` is what the images say.
        train_cases: cases to train on; without it, the first three. The others are evaluated.
        series: which of several DICOM series in one folder; see :func:`~scripts.data.volumes.load_volume`.
        default_axcodes, trusted_form: where axes point of files that do not say it, or that say two things; see there.
        overwrite: whether files in ``output`` that differ are replaced.

    Returns:
        A table of the volumes and the next command.

    Raises:
        DatasetError: a pattern, file or label value that cannot be used; all problems of the files at once.
        FileNotFoundError: the folder or every image is missing.
    """
    reader = VolumeReader(series, default_axcodes=default_axcodes, trusted_form=trusted_form)
    label_map, renamed = with_known_names(label_map) if isinstance(label_map, Mapping) else (label_map, [])
    masks = _masks(label, label_map, background_values)
    source, target = _folder_of(source, image), Target(output, overwrite)
    items, left_out = _labelled(source, image, label, masks, target)
    modality = common_modality(items, reader) if modality == "auto" else modality
    intensity = intensity_of(modality)
    train = chosen_train_cases([item["case"] for item in items], train_cases)
    if masks:
        items = merged(source, label, items, masks=masks, target=target, reader=reader)
        label_map, label = {organ: value for value, organ in enumerate(masks, 1)}, str(target.folder / LABELS)
    organs, background, told = _meanings(items, label_map, background_values, reader)
    summaries = check_dataset(items, organs, background_values=background, purpose="prepared", reader=reader)
    train = cases_with_organs(train, summaries, train_cases is not None)
    remarks = [*renamed, *left_out, *told, *unit_warnings(items, modality, reader)]
    files = _as_they_are(source, image, label) if _are_nifti(items) else convert(items, target, reader)
    stated = stated_settings(default_axcodes=default_axcodes, trusted_form=trusted_form)
    meanings = {"label_map": dict(organs), "background_values": background, **intensity, **stated}
    return write_overlay(target, files, items, summaries, train, meanings=meanings, reader=reader, remarks=remarks)


def _folder_of(source: str, image: str) -> str:
    """The folder that the patterns start from: the given one, or the one in it that :func:`find_cases` reads."""
    first = find_cases(source, image)[0]
    folder = Path(source).expanduser().resolve()
    inside = [each for each in sorted(folder.iterdir()) if each.is_dir()]
    return str(next(each for each in (folder, *inside) if str(case_path(each, image, first["case"])) == first["image"]))


def _are_nifti(items: Sequence[Item]) -> bool:
    return all(path.lower().endswith(NIFTI_SUFFIXES) for item in items for path in (item["image"], item["label"]))


def _as_they_are(source: str, image: str, label: str) -> dict[str, str]:
    """Where an overlay finds files that need no conversion."""
    folder = str(Path(source).expanduser().resolve())
    return {"dataset_dir": folder, "image_pattern": image, "label_pattern": label}


def _masks(label: str, label_map: object, background_values: object) -> dict[str, str]:
    """Organs and the names of their masks; none where a label holds all organs."""
    if ORGAN not in label:
        return {}
    if not isinstance(label_map, Mapping) or not all(isinstance(mask, str) for mask in label_map.values()):
        raise DatasetError(
            f"--label names masks ({ORGAN}), and --label_map is {label_map!r}, expected organs and their masks: "
            "\"{'spleen': 'spleen', 'right kidney': 'kidney_right'}\"."
        )
    if background_values is not None:
        raise DatasetError(
            f"--label names masks ({ORGAN}), whose voxels above 0 are the organ, and --background_values is "
            f"{background_values!r}. Leave it out."
        )
    return {str(organ): mask for organ, mask in label_map.items()}


def _labelled(
    source: str, image: str, label: str, masks: Mapping[str, str], target: Target
) -> tuple[list[dict[str, str]], list[str]]:
    """The cases that have an image and a label, or one of the masks, and a remark on those that have none."""
    check_patterns({"image": image, "label": label})
    folder = Path(source).expanduser().resolve()
    patterns = [label.replace(ORGAN, mask) for mask in masks.values()] or [label]
    images = [item for item in find_cases(source, image) if not _is_own(Path(item["image"]), folder, target)]
    labels = {item["case"]: [case_path(folder, each, item["case"]) for each in patterns] for item in images}
    # '{case}.nii.gz' also names the labels that '{case}_seg.nii.gz' keeps beside the images
    named = {path for paths in labels.values() for path in paths}
    cases = {item["case"]: item["image"] for item in images if Path(item["image"]) not in named}
    found = {case: path for case in cases if (path := next((each for each in labels[case] if each.exists()), None))}
    if not found and cases:
        case = next(iter(cases))
        there = f"{masks_there(folder, label, case, cases[case])} Correct --label_map, or set" if masks else "Set"
        raise DatasetError(
            f"None of {len(cases)} images has a label, expected such as '{labels[case][0]}'. {there} --label to where "
            "the labels are."
        )
    without = [case for case in cases if case not in found]
    remarks = [f"Left out, since they have no label: {listed(without)}."] if without else []
    known = {*map(str, named), *(item["image"] for item in images)}
    others = {case: case_path(folder, each, case) for each in patterns for case in cases_matching(folder, each)}
    alone = [case for case, path in others.items() if str(path) not in known and not _is_own(path, folder, target)]
    alone.sort(key=natural_order)
    remarks += [f"Left out, since they are labels without an image: {listed(alone)}."] if alone else []
    items = [{**item, "label": str(found[item["case"]])} for item in find_cases(source, image, cases=list(found))]
    if target.folder == folder and not _are_nifti(items):
        raise DatasetError(
            f"--output '{folder}' is the folder that is read, and files are converted: among the others they would be "
            "cases themselves the next time. Name another --output, in it or elsewhere."
        )
    return items, remarks


def _is_own(image: Path, folder: Path, target: Target) -> bool:
    """Whether an image lies in what a preparation wrote below the folder that is read, this one or another."""
    below = [each for each in (image, *image.parents) if folder in each.parents]
    return any(each == target.folder or holds_preparation(each) for each in below)


class _Meanings(NamedTuple):
    """What label values mean: label map, background values, and what was guessed or left out for them."""

    label_map: LabelMap
    background: list[int]
    remarks: list[str]


def _meanings(
    items: Sequence[Item], label_map: LabelMap | None, background_values: Sequence[int] | None, reader: VolumeReader
) -> _Meanings:
    if label_map is not None and not isinstance(label_map, Mapping):
        raise DatasetError(
            f"--label_map is {label_map!r}, expected organs and values such as \"{{'spleen': 1, 'right kidney': 2}}\"."
        )
    stated = [] if background_values is None else background_of(background_values)
    values = {item["label"]: _label_values(item["label"], reader) for item in items}
    found = set().union(*values.values())
    if len(found) > MOST_LABEL_VALUES:
        raise DatasetError(
            f"{len(found)} different values in the labels ({listed(sorted(found))}), expected a few integers. Does "
            "--label name the images?"
        )
    if label_map is None:
        if found == {0}:
            raise DatasetError(
                f"The labels hold only 0 (such as '{items[0]['label']}'), expected organs. Correct --label."
            )
        # where no label can be read, check_dataset says why
        label_map = {f"organ {value}": value for value in sorted(found - {0, *stated}) or [1]}
        guessed = (
            f"Each label value is an organ ({listed(label_map)}): write their names into label_map of overlay.json."
        )
        return _Meanings(label_map, stated or [0], [guessed])
    label_values(label_map, [])  # which says what is wrong with it
    named = {int(value) for values in label_map.values() for value in np.atleast_1d(values)}
    if 0 in named:
        organs = [organ for organ, values in label_map.items() if 0 in map(int, np.atleast_1d(values))]
        raise DatasetError(
            f"--label_map has the value 0 for {listed(organs)}, expected others: 0 is what belongs to no organ. "
            "Correct it."
        )
    _refuse_foreign(values, named, stated)
    background = stated or sorted((found | {0}) - named)
    remarks = [f"Counted as background: the label values {listed(background)}."] if background != [0] else []
    absent = [organ for organ, values in label_map.items() if not found & set(np.atleast_1d(values).tolist())]
    if found - {0} and len(absent) == len(label_map):
        raise DatasetError(
            f"No label holds a value of --label_map, {dict(label_map)}; they hold {listed(sorted(found))}. Correct it."
        )
    return _Meanings(label_map, background, remarks)


def _refuse_foreign(values: Mapping[str, set[int]], named: set[int], stated: Sequence[int]) -> None:
    """Refuses labels that are the others' in other numbers (multiplied or negated): all would be background.

    Args:
        values: of each label, by its path.
        named: those of an organ.
        stated: those that somebody has said to be of none.

    Raises:
        DatasetError: there are such labels.
    """
    known = set[int]().union(*(found for found in values.values() if found & named))
    organs = {path: found - {0, *stated} for path, found in values.items()}
    foreign = [
        f"'{path}' holds {listed(sorted(found))}"
        for path, found in organs.items()
        if found and not found & known and _are_others(found, known)
    ]
    if foreign and known:
        raise DatasetError(
            f"{count(len(foreign), 'label')} of another label map, as it seems: {listed(foreign)}; expected some of "
            f"{listed(sorted(known - {0}))}, as in the others. Export such a label again, take its case out, or name "
            "its values in --background_values."
        )


def _are_others(found: set[int], known: set[int]) -> bool:
    """Whether values can hardly be of further organs, as 13 may be where the others hold 1 to 12, or of voxels that
    nobody has labelled, as -1 or 255 alone.
    """
    step = math.gcd(*found) * (-1 if max(found) < 0 else 1)
    return len(found) > 1 and (step < 0 or step >= 10) and {value // step for value in found} <= known


def _label_values(path: str, reader: VolumeReader) -> set[int]:
    try:
        values = np.unique(reader.load(path).voxels)
    except DatasetError:  # said by check_dataset, with the problems of the other files, as what is no integer is
        return set()
    return {int(value) for value in np.rint(values[np.isfinite(values)])}  # as check_dataset counts them
