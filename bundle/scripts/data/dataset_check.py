"""Whether a data set can be used: what is wrong with each file.

Every file is read once, before anything expensive starts; one message holds every problem found.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from monai.config import PathLike
from nibabel.affines import apply_affine

from ..console import counted
from ..errors import SHOWN, DatasetError, count, listed
from .datalists import Item, LabelMap
from .grids import is_sheared
from .label_values import organ_values
from .organ_names import contradicted_names, segments_of
from .volumes import Volume, VolumeReader, voxels_digest

_LARGEST = 2**53  # of integers: no intensity, and no number that PyTorch would keep
_EXACT = 2**24  # up to which integers are numbers of single precision, each of them
FEW_VOXELS = 30  # of an organ in a label, or in all training labels, below which its label is questioned
GRID_TOLERANCE = 0.05  # of a voxel, at the volume's corners: above rounding in headers, below anything that matters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseSummary:
    """What :func:`check_dataset` saw of one volume.

    Attributes:
        case: its name.
        shape: voxels along the three axes of the file.
        spacing: millimetres along the same axes.
        voxels: labelled voxels of each organ; empty without a label.
        digest: of the image, see :func:`scripts.data.volumes.voxels_digest`.
        modality: that the image states, if it is a DICOM series.
        voxel_volume: cubic millimetres; None where axes are perpendicular: the product of the spacing.
    """

    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, ...]
    voxels: dict[str, int] = field(default_factory=dict)
    digest: str = field(default="", compare=False)
    modality: str | None = None
    voxel_volume: float | None = None

    def millilitres(self, organ: str) -> float:
        """The volume of an organ."""
        one = float(np.prod(self.spacing)) if self.voxel_volume is None else self.voxel_volume
        return self.voxels[organ] * one / 1000


def check_dataset(
    items: Sequence[Item],
    label_map: LabelMap,
    *,
    background_values: Iterable[int] = (0,),
    minimum: int = 1,
    purpose: str = "training",
    reader: VolumeReader | None = None,
) -> list[CaseSummary]:
    """Reads every file once, one at a time, before anything expensive starts.

    Args:
        items: of :func:`find_cases` or :func:`inference_inputs`; without ``"label"`` only the image is checked.
        label_map: organ to its value, or values, in the label files.
        background_values: the values in the label files that stand for no organ.
        minimum: fewest volumes that will do.
        purpose: names the list in messages. For ``"training"``, each label must hold at least one organ voxel, and
            each organ must be in one of them; there, and for ``"prepared"``, no image may be of one value.
        reader: the one that ``LoadImaged`` reads with; None takes one with its own defaults.

    Raises:
        DatasetError: one error for all problems found. Checked are: volumes that
            :func:`scripts.data.volumes.load_volume` can read; finite voxels; a label on its image's grid, with integers
            that ``label_map`` or ``background_values`` name, called in all headers alike, and not without any organ; an
            image that is not its label; no file twice; enough volumes. Images of the same voxels are only said to be.
    """
    organs, background = organ_values(label_map, background_values)
    problems = [*_too_few(items, minimum, purpose), *_listed_twice(items)]
    summaries, segments = [], {}
    reader = reader or VolumeReader()
    for item in counted(items, f"checking the {purpose} data"):
        image = _check_image(item["image"], reader, problems)
        voxels = {}
        if "label" in item:
            counts = _check_label(item, image, reader, problems)
            problems += _unnamed_values(item["label"], counts, organs, background)
            named = segments_of(item["label"]) if counts else {}
            segments[item["label"]] = {name: value for name, value in named.items() if counts[value]}
            voxels = {organ: sum(counts[value] for value in values) for organ, values in organs.items()}
            if counts and not any(voxels.values()):
                without = _without_organs(item["label"], counts, organs)
                if purpose == "training":
                    problems.append(f"{without} Correct label_map, or leave the case out of the training.")
                elif counts.keys() - {0}:
                    logger.warning("%s Is it of another label map?", without)
        if purpose in ("training", "prepared") and image is not None and image.voxels.min() == image.voxels.max():
            problems.append(_constant(item["image"], image))
        if image is not None:
            summaries.append(_summary(item["case"], image, voxels))
    _say_what_is_one_scan(summaries, purpose)
    _say_what_is_little(summaries)
    problems += contradicted_names(segments, organs)
    if purpose == "evaluation":
        _say_what_nobody_has_drawn(summaries)
    if purpose == "training" and not problems:
        problems += _absent_organs(summaries)
    if problems:
        numbered = [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
        raise DatasetError("\n".join([f"{count(len(problems), 'problem')} in the {purpose} data:", *numbered]))
    return summaries


def _summary(case: str, image: Volume, voxels: dict[str, int]) -> CaseSummary:
    one = image.voxel_volume if is_sheared(image.affine) else None
    return CaseSummary(case, image.voxels.shape, image.spacing, voxels, voxels_digest(image), image.modality, one)


def check_disjoint(train: Sequence[Item], test: Sequence[Item]) -> None:
    """Refuses to test on what was trained on.

    Cases are compared by their image file, since two data sets may well use the same names.

    Raises:
        DatasetError: naming the cases that are in both lists.
    """
    trained = {os.path.realpath(item["image"]) for item in train}
    shared = [item for item in test if os.path.realpath(item["image"]) in trained]
    if shared:
        raise DatasetError(
            f"{count(len(shared), 'case')} both trained and tested on: {listed(item['case'] for item in shared)} "
            f"(such as '{shared[0]['image']}'). Remove them from train_cases or from test_cases; with test_cases null, "
            "every case but the training cases is tested."
        )


def _too_few(items: Sequence[Item], minimum: int, purpose: str) -> Iterator[str]:
    if len(items) < minimum:
        number = "one" if minimum == 1 else str(minimum)
        volumes = "volume" if minimum == 1 else "volumes"
        yield (
            f"Fewer than {number} {purpose} {volumes}: found {len(items)}, expected at least {minimum}. Name more "
            "cases (train_cases, test_cases), or exclude fewer."
        )


def _listed_twice(items: Sequence[Item]) -> Iterator[str]:
    times = Counter(os.path.realpath(item[key]) for item in items for key in ("image", "label") if key in item)
    for path, number in times.items():
        if number > 1:
            yield (
                f"'{path}': listed {number} times, expected once. Remove the repetition from the cases, or make "
                "image_pattern and label_pattern name different files."
            )


def _check_image(path: str, reader: VolumeReader, problems: list[str]) -> Volume | None:
    """Adds what is wrong with an image to ``problems``; the image if its grid can be used."""
    image = _read_volume(path, reader, problems)
    problem = None if image is None else voxel_problem(path, image)
    if problem:
        problems.append(problem)
    return image


def voxel_problem(path: PathLike, image: Volume) -> str | None:
    """What is wrong with the voxels of an image that can be read: some are NaN or infinite, or would be in single
    precision, in which networks compute; or integers too large to be told apart there. None if nothing is.
    """
    kind, size = image.voxels.dtype.kind, image.voxels.dtype.itemsize
    if kind != "f" and size < 8:
        return None
    bad = large = 0
    with np.errstate(over="ignore"):
        for plane in _planes(image):
            finite = np.isfinite(plane)
            held = np.isfinite(plane.astype(np.float32)) if kind == "f" else (plane >= -_LARGEST) & (plane <= _LARGEST)
            bad += plane.size - int(np.count_nonzero(finite))
            large += int(np.count_nonzero(finite & ~held))
    if not bad and not large:
        return None
    if bad:
        what, expected = f"{bad} of {image.voxels.size} voxels are NaN or infinite", "finite intensities"
        remedy = "Export the image again, or replace those voxels by the intensity of air"
    else:
        limit = "3.4e38, the largest number of single precision" if kind == "f" else f"{_LARGEST:,}"
        what, expected = f"{large} of {image.voxels.size} voxels are beyond {limit}", "intensities within it"
        remedy = "Export the image again, or divide its intensities"
    return f"'{path}': {what}, expected {expected}. {remedy}."


def _check_label(item: Item, image: Volume | None, reader: VolumeReader, problems: list[str]) -> Counter[int]:
    """Adds what is wrong with a label to ``problems``; voxels of each value, none if it cannot be used."""
    path = item["label"]
    label = _read_volume(path, reader, problems)
    if label is None:
        return Counter()
    if image is not None:
        problems += _grid_differences(path, label, item["image"], image)
        problems += _one_for_both(item, image, label)
    counts: Counter[int] = Counter()
    bad = 0
    for plane in _planes(label):
        if plane.dtype.kind == "f":
            with np.errstate(over="ignore"):
                single = plane.astype(np.float32)  # as LoadImage hands it on: rounding in a scale factor is no problem
            whole = np.isfinite(single) & (np.rint(single) == single)
            bad += plane.size - int(np.count_nonzero(whole))
            plane = np.rint(plane[whole])
        values, voxels = np.unique(plane, return_counts=True)
        counts.update({int(value): int(number) for value, number in zip(values, voxels)})
    if bad:
        problems.append(
            f"'{path}': {bad} of {label.voxels.size} label voxels are no integers, expected one integer value an "
            "organ. Is it a label file? If it was resampled, do so again with nearest-neighbour interpolation."
        )
        return Counter()
    rounded = sorted(value for value in counts if int(np.float32(value)) != value)
    if rounded and label.voxels.dtype.kind == "f":
        problems.append(
            f"'{path}': label values {listed(rounded)} are not told from others in single precision, in which labels "
            f"are read, expected integers from -{_EXACT:,} to {_EXACT:,}. Give what they stand for other values."
        )
        return Counter()
    return counts


def _planes(volume: Volume) -> Iterator[np.ndarray]:
    """Plane after plane: what is done to a whole volume at once needs the memory of another one."""
    return iter(np.moveaxis(volume.voxels, -1, 0))


def _unnamed_values(
    path: str, counts: Counter[int], organs: Mapping[str, Sequence[int]], background: Sequence[int]
) -> Iterator[str]:
    named = {value for values in organs.values() for value in values} | set(background)
    unknown = sorted(counts.keys() - named)
    if unknown:
        yield (
            f"'{path}': label values {listed(unknown)} have no meaning here; expected "
            f"{listed(sorted(named), 4 * SHOWN)}. Name them in label_map if they are organs to segment, in "
            "background_values if not."
        )


def _without_organs(path: str, counts: Counter[int], organs: Mapping[str, Sequence[int]]) -> str:
    expected = listed(f"{organ} {'/'.join(map(str, values))}" for organ, values in organs.items())
    return f"'{path}': no voxel of any organ, only the values {listed(sorted(counts))}; expected some of {expected}."


def _absent_organs(summaries: Sequence[CaseSummary]) -> Iterator[str]:
    """What no training volume shows cannot be learned; of very little, it is said."""
    for organ in summaries[0].voxels if summaries else ():
        voxels = sum(summary.voxels.get(organ, 0) for summary in summaries)
        if not voxels:
            yield (
                f"{organ}: in no label of {count(len(summaries), 'training volume')}, expected it in one at least. "
                "Correct label_map, leave the organ out of it, or train on a case that shows it."
            )
        elif voxels < FEW_VOXELS:
            logger.warning("%s: only %s in all training labels. Is its label complete?", organ, count(voxels, "voxel"))


def _say_what_nobody_has_drawn(summaries: Sequence[CaseSummary]) -> None:
    """Says which organs are in no label: whatever a model finds of them is neither right nor wrong."""
    if organs := undrawn(summaries):
        logger.warning("Not evaluated, since no label holds a value that `label_map` gives them: %s.", listed(organs))


def undrawn(summaries: Sequence[CaseSummary]) -> list[str]:
    """Organs that no label of a data set holds."""
    labelled = [summary.voxels for summary in summaries if summary.voxels]
    return [organ for organ in (labelled[0] if labelled else ()) if not any(each[organ] for each in labelled)]


def _say_what_is_little(summaries: Sequence[CaseSummary]) -> None:
    """Warns of organs of which a case has a few voxels, as a slip of the pen leaves them."""
    few = [
        f"{summary.case}: {organ} ({count(voxels, 'voxel')})"
        for summary in summaries
        for organ, voxels in summary.voxels.items()
        if 0 < voxels < FEW_VOXELS
    ]
    if few:
        logger.warning("Organs of a few voxels: %s. Are these labels complete?", listed(few))


def _say_what_is_one_scan(summaries: Sequence[CaseSummary], purpose: str) -> None:
    """Warns of cases that hold the same voxels: a scan that is there twice would be trained on and tested on."""
    cases: dict[str, list[str]] = {}
    for summary in summaries:
        cases.setdefault(summary.digest, []).append(summary.case)
    same = [" and ".join(names) for names in cases.values() if len(names) > 1]
    if same:
        logger.warning(
            "In the %s data the images of %s hold the same voxels. Leave out all but one where it is one scan.",
            *(purpose, listed(same)),
        )


def _constant(path: str, image: Volume) -> str:
    return (
        f"'{path}': all voxels are {image.voxels.flat[0]:g}, expected an image. Export it again, or leave the case out."
    )


def _one_for_both(item: Item, image: Volume, label: Volume) -> Iterator[str]:
    """An image whose voxels are those of its label, in whatever type; of one value, as :func:`_constant` says, it is
    no label either.
    """
    pairs = zip(_planes(image), _planes(label))  # of which the first that differ are the last that are looked at
    if image.voxels.shape != label.voxels.shape or not all(np.array_equal(*pair) for pair in pairs):
        return
    if image.voxels.min() != image.voxels.max():
        yield (
            f"'{item['image']}': the image of case {item['case']} holds the voxels of its label '{item['label']}', "
            "expected intensities. Was one saved over the other? Export the image again, or leave the case out."
        )


def _grid_differences(path: str, label: Volume, image_path: str, image: Volume) -> Iterator[str]:
    remedy = (
        "Export the label again on its image's grid, or resample it with nearest-neighbour interpolation (such as "
        "monai.transforms.ResampleToMatch)."
    )
    shape, expected = label.voxels.shape, image.voxels.shape
    if shape != expected:
        yield f"'{path}': shape {shape}, expected {expected} as in '{image_path}'. {remedy}"
        return
    corners = np.array(list(product(*((0, size - 1) for size in shape))))
    places, image_places = (apply_affine(each.affine, corners) for each in (label, image))
    distance = float(np.linalg.norm(places - image_places, axis=1).max())
    tolerance = GRID_TOLERANCE * min(image.spacing)
    if distance > tolerance:
        yield (
            f"'{path}': its affine puts voxels up to {distance:.3g} mm away from those of '{image_path}', expected at "
            f"most {tolerance:.3g} mm. {remedy}"
        )


def _read_volume(path: str, reader: VolumeReader, problems: list[str]) -> Volume | None:
    """A volume; None, and a problem more, where it cannot be used."""
    try:
        return reader.load(path)
    except DatasetError as error:
        problems.append(str(error))
        return None
