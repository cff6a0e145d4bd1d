"""A data set in the layout of the Medical Segmentation Decathlon, listed in its dataset.json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import nibabel as nib

from ..data.datalists import Item, find_cases
from ..data.dataset_check import check_dataset
from ..data.file_names import case_name
from ..data.organ_names import check_background, with_known_names
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed, one_line
from .configs import CASE, background_of, intensity_of, modality_named, read_dataset_json
from .modalities import common_modality, unit_warnings
from .overlays import cases_with_organs, chosen_train_cases, stated_settings, write_overlay
from .targets import Target, convert
from .words import DECATHLON, in_words_of


@in_words_of(DECATHLON)
def prepare_decathlon(
    source: str,
    output: str,
    *,
    channel: int | None = None,
    modality: str | None = None,
    background_values: Sequence[int] = (0,),
    train_cases: Sequence[str] | None = None,
    series: str | None = None,
    default_axcodes: str | None = None,
    trusted_form: str | None = None,
    overwrite: bool = False,
) -> str:
    """A ``dataset.json`` of the Medical Segmentation Decathlon: checks the files, writes an overlay for the commands.

    Args:
        source: the ``dataset.json``, or the folder it lies in.
        output: folder for ``overlay.json``; files are copied there only if no pattern names them where they are, or to
            choose a channel.
        channel: which channel of images of four dimensions, from 0.
        modality: ``ct`` or ``mr``: intensities are scaled as in configs/ct.json or configs/mr.json. Without it, what
            the file says; where that says nothing, what the images say of themselves.
        background_values: values in the labels that stand for no organ.
        train_cases: cases to train on; without it, the first three. The others and ``validation`` are evaluated.
        series, default_axcodes, trusted_form: how files are read, see :func:`~scripts.data.volumes.load_volume`.
        overwrite: whether files in ``output`` that differ are replaced.

    Returns:
        A table of the volumes and the next command.

    Raises:
        DatasetError: no such file, or one without training list or labels; several channels and no choice; a
            modality that is neither CT nor MR; files that :func:`~scripts.data.dataset_check.check_dataset` refuses.
    """
    reader = VolumeReader(series, default_axcodes=default_axcodes, trusted_form=trusted_form)
    described = _decathlon_content(source)
    path = described.path
    label_map, renamed = with_known_names(described.label_map)
    modalities = described.content.get("modality")
    items, files = _listed_files(described)
    channel = _chosen_channel(path, items, channel, modalities)
    named = _named_modality(path, modalities, channel, modality)
    for_training = len(described.training) if train_cases is None else len(items)
    train = chosen_train_cases([item["case"] for item in items[:for_training]], train_cases)
    target = Target(output, overwrite)
    remarks = [*renamed, *described.remarks, *_outside(path.parent, items)]
    if files is None or channel is not None:
        files = convert(items, target, reader, channel)
        items = find_cases(**files, cases=[item["case"] for item in items])
    background = background_of(background_values)
    summaries = check_dataset(items, label_map, background_values=background, purpose="prepared", reader=reader)
    train = cases_with_organs(train, summaries[:for_training], train_cases is not None)
    chosen = modality or named or common_modality(items, reader)
    meanings = {"label_map": label_map, "background_values": background, **intensity_of(chosen)}
    meanings |= stated_settings(default_axcodes=default_axcodes, trusted_form=trusted_form)
    remarks.insert(0, f"Intensities are scaled as in configs/{chosen}.json.")
    if named not in (None, chosen):
        remarks.append(f"Warning: dataset.json says that the images are {str(named).upper()}, and --modality {chosen}.")
    remarks += unit_warnings(items, chosen, reader)
    return write_overlay(target, files, items, summaries, train, meanings=meanings, reader=reader, remarks=remarks)


def _named_modality(path: Path, names: object, channel: int | None, modality: str | None) -> str | None:
    """``ct`` or ``mr``, as the file has it; None where it says nothing.

    Raises:
        DatasetError: it says something else, and nobody has said which scaling fits.
    """
    if channel is not None and isinstance(names, Mapping):
        names = names.get(str(channel), names)
    text = " ".join(map(str, names.values())) if isinstance(names, Mapping) else str(names or "")
    named = modality_named(text)
    if named is None and modality is None and text.strip():
        raise DatasetError(
            f"'{path}': \"modality\" is {one_line(str(names))}, expected CT or MR. Say how intensities are scaled: "
            "--modality ct, or --modality mr."
        )
    if modality is not None:
        intensity_of(modality)  # which refuses any other word
    return named


def _first_channel(folder: Path, image: str) -> str:
    """The file that is meant: the first version of nnU-Net lists images without the ``_0000`` in their files' names."""
    name = case_name(image)
    channel = str(PurePosixPath(image).with_name(f"{name}_0000{PurePosixPath(image).name[len(name) :]}"))
    return channel if (folder / channel).is_file() and not (folder / image).exists() else image


class _Described(NamedTuple):
    """Path and content of a ``dataset.json``, its labels as a label map, its pairs of image and label, and a remark on
    those that are left out.
    """

    path: Path
    content: dict
    label_map: dict[str, int]
    training: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    remarks: list[str]


def _decathlon_content(source: str) -> _Described:
    path = Path(source).expanduser()
    path = (path / "dataset.json" if path.is_dir() else path).resolve()
    if not path.is_file():
        raise DatasetError(f"'{path}' is not there, expected the dataset.json of a data set. Correct the path.")
    content = read_dataset_json(path)
    try:
        named = sorted(content["labels"].items(), key=lambda each: int(each[0]))
        label_map = {str(name): int(value) for value, name in named if int(value)}
        values = [int(value) for value, _ in named]
        entries = [(entry["image"], entry["label"]) for entry in content["training"]]
        usable = bool(label_map and entries) and all(isinstance(name, str) for entry in entries for name in entry)
        usable = usable and None not in content["labels"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise DatasetError(
            f'\'{path}\': not in the Decathlon\'s format, expected "training": [{{"image": ..., "label": ...}}] with '
            'one file each, and "labels": {"0": "background", "1": "spleen"}. For other layouts, such as nnU-Net\'s '
            "second version, use the command 'folder' with patterns."
        )
    nothing = [str(name) for value, name in content["labels"].items() if int(value) == 0]
    check_background(path, nothing, "Correct it.")
    if len(label_map) < sum(map(bool, values)):
        raise DatasetError(
            f"'{path}': \"labels\" names two values alike ({content['labels']}), expected a name each. Correct it."
        )
    _refuse_repeated(path, [name for entry in entries for name in entry])
    return _Described(path, content, label_map, entries, *_validation(path, content, entries))


def _validation(
    path: Path, content: Mapping[str, object], training: Sequence[tuple[str, str]]
) -> tuple[list, list[str]]:
    """Pairs of image and label to evaluate on, as MONAI lists them, which are there and none of a file that trains; a
    remark on others.
    """
    entries = content.get("validation")
    entries = entries if isinstance(entries, list) else []
    known = {os.path.realpath(path.parent / name) for pair in training for name in pair}
    pairs = []
    for entry in entries:
        pair = (entry.get("image"), entry.get("label")) if isinstance(entry, Mapping) else (None,)
        names = {os.path.realpath(path.parent / name) for name in pair if isinstance(name, str)}
        if len(names) == 2 and not names & known and all(map(os.path.isfile, names)):
            pairs.append(pair)
            known |= names
    left = len(entries) - len(pairs)
    text = f'Left out of "validation": {count(left, "entry", "entries")} without an image and a label of its own'
    return pairs, [f"{text} that are there."] if left else []


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """A volume that is listed twice would be trained on and evaluated on."""
    times = Counter(os.path.normpath(path.parent / name) for name in names)
    repeated = [Path(name) for name, number in times.items() if number > 1]
    if repeated:
        raise DatasetError(f"'{path}': lists {listed(repeated)} more than once, expected each file once. Correct it.")


def _listed_files(described: _Described) -> tuple[list[dict[str, str]], dict[str, str] | None]:
    """The cases, and where they are as arguments of :func:`find_cases`; None where no pattern names them."""
    folder = described.path.parent
    listed_pairs = [*described.training, *described.validation]
    pairs = [(_first_channel(folder, image), label) for image, label in listed_pairs]
    pattern, training = _common_pattern(*zip(*pairs)), pairs[: len(described.training)]
    named = pattern or _common_pattern(*zip(*training))  # validation changes no name of a case that trains
    cases = named.cases if named else _names_of([label for _, label in training])
    cases = [*cases, *_names_beside(cases, [label for _, label in pairs[len(cases) :]])]
    items = [
        {"image": str(folder / image), "label": str(folder / label), "case": case}
        for (image, label), case in zip(pairs, cases)
    ]
    if pattern is None:
        return items, None
    return items, {"dataset_dir": str(folder), "image_pattern": pattern.image, "label_pattern": pattern.label}


def _outside(folder: Path, items: Sequence[Item]) -> list[str]:
    """What a user should know who has the list from somebody else: it may name any file of this machine."""
    files = [item[key] for item in items for key in ("image", "label")]
    outside = [path for path in map(Path, map(os.path.normpath, files)) if not path.is_relative_to(folder)]
    return [f"Read from outside the folder of dataset.json: {listed(outside, 4)}."] if outside else []


def _chosen_channel(path: Path, items: Sequence[Item], channel: int | None, names: object) -> int | None:
    """The channel to take of images of four dimensions; None if there are none.

    Raises:
        DatasetError: it is not said, or there is no such channel; an image among them has one channel, of which nobody
            could tell whether it is the one that is asked for, or cannot be read.
    """
    channels = {item["image"]: _channels(item["image"]) for item in items}
    several = {image: number for image, number in channels.items() if number > 1}
    if not several:
        return None
    image, fewest = min(several.items(), key=lambda pair: pair[1])
    if channel not in range(fewest):
        raise DatasetError(
            f"'{path}': '{image}' has {fewest} channels ({names}), and --channel is {channel}; expected one channel, "
            f"since one intensity a voxel is segmented. Choose it: --channel 0 ... {fewest - 1}."
        )
    odd = [
        f"'{each}' {'has one channel' if number else 'cannot be read'}"
        for each, number in channels.items()
        if number < 2
    ]
    if odd:
        raise DatasetError(
            f"'{path}': {listed(odd)}, and '{image}' has {fewest} ({names}), expected all of them in each image: which "
            "one it is cannot be told. Export the image with all channels, or take it out of the list."
        )
    return channel


def _channels(path: str) -> int:
    """Of an image; 0 of one that is missing or broken, as check_dataset says with the problems of the other files."""
    try:
        shape = nib.load(path).shape
    except Exception:
        return 0
    return shape[3] if len(shape) == 4 else 1


def _names_of(labels: Sequence[str]) -> list[str]:
    """Names of cases that no pattern names: those of their labels, or numbers where these are not unique."""
    names = [case_name(label) for label in labels]
    return names if len(set(names)) == len(names) else [f"{number:03d}" for number in range(1, len(names) + 1)]


def _names_beside(taken: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Names of the cases of ``"validation"``, none of which is one that trains."""
    names = _names_of(labels)
    return [f"validation_{name}" for name in names] if set(names) & set(taken) else names


class _CommonPattern(NamedTuple):
    """Patterns of images and of labels that have the same case names in the same order, and the names."""

    image: str
    label: str
    cases: list[str]


def _common_pattern(images: Sequence[str], labels: Sequence[str]) -> _CommonPattern | None:
    """The first that names all images and all labels; None where there is none."""
    of_labels = [(tuple(cases), pattern) for pattern, cases in _patterns(labels)]
    for image_pattern, cases in _patterns(images):
        for label_cases, label_pattern in of_labels:
            if label_cases == tuple(cases):
                return _CommonPattern(image_pattern, label_pattern, cases)
    return None


def _patterns(paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every pattern that names all paths, by what differs in one of their parts, the file name first."""
    split = [PurePosixPath(path).parts for path in paths]
    for place in reversed(range(min(map(len, split)))):
        cases = [case_name(parts[place]) for parts in split]
        patterns = {
            str(PurePosixPath(*parts[:place], CASE + parts[place][len(case) :], *parts[place + 1 :]))
            for parts, case in zip(split, cases)
        }
        if len(patterns) == 1 and len(set(cases)) == len(cases):
            yield patterns.pop(), cases
