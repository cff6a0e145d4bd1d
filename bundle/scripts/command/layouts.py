"""How a folder with labelled scans is laid out, by the names in it: the patterns of images and of labels.

Known are folders of images beside folders of labels (nnU-Net, the Decathlon, most others), a folder a case with an
image and a label or with a mask an organ (TotalSegmentator), and images and labels in one folder. What fits in one way
only is taken, such as the label maps of BIDS in ``derivatives``; everything else is asked for, with what was found.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..data.file_names import IMAGE_SUFFIXES
from ..data.organ_names import SHIPPED, organ_named
from ..errors import DatasetError, MissingFileError, count, listed, one_line
from ..prepare.configs import holds_preparation, modality_named, read_dataset_json
from .dataset_json import label_map_of, shipped_first

CASE, ORGAN = "{case}", "{organ}"
_ANY = ".*"  # an ending of a pattern: whichever a file has
# folders of images, and of labels, in lower case
_IMAGES = ("imagestr", "images", "image", "img", "imgs", "scans", "volumes", "ct", "mr", "mri")
_LABELS = ("labelstr", "labels", "label", "lbl", "masks", "mask", "segmentations", "segmentation", "seg", "annotations")
# in a folder of a case, and as the part by which names of one folder differ
_IMAGE_WORDS = ("image", "img", "scan", "volume", "vol", "ct", "mr", "mri", "t1", "t2", "imaging")
_LABEL_WORDS = ("label", "labels", "lbl", "mask", "seg", "segmentation", "gt", "ground_truth")
_MASKS = "segmentations"  # TotalSegmentator's, a mask an organ
_DERIVED = ("desc", "space", "res", "label", "seg", "atlas")  # of BIDS, in names of derivatives alone

logger = logging.getLogger(__name__)


class _Candidate(NamedTuple):
    """Patterns of images and labels that name the same cases, and these."""

    image: str
    label: str
    cases: list[str]


@dataclass(frozen=True)
class Layout:
    """What was found in a folder.

    Attributes:
        image, label: patterns with ``{case}``; a label's may hold ``{organ}`` too, a mask each. None for a Decathlon
            ``dataset.json``, which lists its files itself.
        cases: that have both.
        label_map: organ to label value, or to the name of its mask; None if nothing says what values mean.
        modality: ``ct`` or ``mr``, if something says so.
        text: what to tell the user.
    """

    image: str | None
    label: str | None
    cases: Sequence[str]
    label_map: Mapping[str, Any] | None = None
    modality: str | None = None
    text: str = field(default="", compare=False)


def layout_of(folder: Path, *, leave_out: Path | None = None, organs_given: bool = False) -> Layout:
    """How a folder is laid out.

    Args:
        folder: with images and labels; what this program has written below it is no part of it.
        leave_out: a folder in it that is not looked into, such as the one that results go to.
        organs_given: whether the user says what label values, or which masks, are organs: nothing else is asked then.

    Raises:
        MissingFileError: it is not there.
        DatasetError: nothing in it fits, or several layouts do.
    """
    if not folder.is_dir():
        raise MissingFileError(f"There is no folder '{folder}'. Give the folder with the images and their labels.")
    listing = folder / "dataset.json"
    about = read_dataset_json(listing) if listing.is_file() else {}
    if isinstance(about.get("training"), list):
        cases = [Path(str(each.get("label", ""))).name for each in about["training"] if isinstance(each, dict)]
        held = about.get("validation")
        more = f" for training, {len(held)} for validation" if isinstance(held, list) and held else ""
        return Layout(None, None, cases, text=f"dataset.json lists {count(len(cases), 'labelled volume')}{more}.")
    listing_of = _Listing(leave_out)
    found = _found(folder, listing_of) or _found(folder, listing_of, orphans=True)
    if not found:
        said = [f"No images with labels of their names in '{folder}'.", _there(folder)]
        if leave_out is not None and leave_out.resolve().parent == folder.resolve():
            said.append(f"'{leave_out.name}' is not looked into: results go there (--output).")
        if any(_stem(path.name).endswith("_0001") for path in _first(folder, 200)):
            said.append("Where images have several channels, as _0000 and _0001, one is chosen: {case}_0000.")
        raise DatasetError(" ".join([*said, _REMEDY]))
    most = max(len(each.cases) for each in found.values())
    best = [each for each in found.values() if len(each.cases) == most]
    best = [each for each in best if not (each.image + each.label).count(_ANY)] or best
    if len(best) > 1:
        ways = "; ".join(f"--image '{each.image}' --label '{each.label}'" for each in best[:3])
        raise DatasetError(f"'{folder}' can be read in {len(best)} ways. Choose one: {ways}.")
    image, label, cases = best[0]
    _say_what_is_left(best[0], list(found.values()))
    _say_what_validates(folder, image)
    label_map: Mapping[str, Any] | None = None
    text = f"{count(len(cases), 'labelled volume')}: {one_line(image)} with {one_line(label)}."
    if not organs_given and ORGAN not in label:
        label_map = label_map_of(about, listing)
    elif not organs_given:
        there = [{_stem(name) for name in _volumes((folder / label.replace(CASE, case)).parent)} for case in cases]
        label_map = masks = _masks(folder, cases, there)
        text += _beside(there, masks)
    return Layout(image, label, cases, label_map, _modality(about, image), text)


def _found(folder: Path, listing: _Listing, orphans: bool = False) -> dict[tuple[str, ...], _Candidate]:
    """The ways to read a folder, by the files that each names; see :func:`_candidates`."""
    found: dict[tuple[str, ...], _Candidate] = {}
    for each in _candidates(folder, listing, orphans):
        # other patterns of the same files say nothing new
        key = tuple(pattern.replace(CASE, case) for pattern in (each.image, each.label) for case in each.cases)
        found.setdefault(key, each)
    return found


_REMEDY = (
    'Say where they are: --image "images/{case}.nii.gz" --label "labels/{case}.nii.gz", or --label '
    '"{case}/{organ}.nii.gz" for a mask an organ. What stands for {case} is the same of both: rename labels that are '
    "called otherwise than their images."
)


def _say_what_is_left(chosen: _Candidate, found: Sequence[_Candidate]) -> None:
    """Warns of labelled images that the chosen patterns do not name, by their files without an ending."""
    taken, *others = ([_image_of(each, case) for case in each.cases] for each in (chosen, *found))
    left = sorted({image for images in others for image in images} - set(taken))
    if chosen.image.startswith(f"{CASE}/"):  # a case may have several images
        left = [image for image in left if image.split("/")[0] not in chosen.cases]
    if left:
        logger.warning(
            "Left out, since '%s' with '%s' does not name them: %s. Call all images alike, and all labels, or give "
            "patterns without an ending, such as --image '{case}/image.*' --label '{case}/label.*'.",
            *(chosen.image, chosen.label, listed(left)),
        )


def _say_what_validates(folder: Path, image: str) -> None:
    """Warns of images and labels for validation beside those for training, as AMOS22 has them."""
    beside = {each.name.lower(): each for each in folder.iterdir() if each.is_dir()}
    images, labels = (beside.get(name) for name in ("imagesva", "labelsva"))
    if images and labels and image.lower().startswith("imagestr/") and (names := _volumes(labels)):
        logger.warning(
            "Left out: %s in '%s' with '%s'. `diffusam evaluate` with --model evaluates them, given --image "
            "'%s/{case}.nii.gz' --label '%s/{case}.nii.gz'.",
            *(count(len(names), "label"), images.name, labels.name, images.name, labels.name),
        )


def _image_of(candidate: _Candidate, case: str) -> str:
    return _stem(candidate.image.removesuffix(_ANY).replace(CASE, case))


class _Listing:
    """Volumes and folders by their names, without those that this program has written.

    Args:
        leave_out: a folder that is none of the source.
    """

    def __init__(self, leave_out: Path | None = None) -> None:
        self.leave_out = None if leave_out is None else leave_out.resolve()

    def folders(self, folder: Path) -> list[str]:
        """Folders, which may be DICOM series."""
        return sorted(
            each.name
            for each in folder.iterdir()
            if each.is_dir()
            and not each.name.startswith(".")
            and each.resolve() != self.leave_out
            and not holds_preparation(each)
        )

    def entries(self, folder: Path) -> list[str]:
        """Volumes, and folders."""
        return sorted([*_volumes(folder), *self.folders(folder)])


def _candidates(folder: Path, listing: _Listing, orphans: bool) -> Iterator[_Candidate]:
    """Patterns of images and labels that name the same cases, and these.

    Args:
        folder: with all of them.
        listing: what is looked into.
        orphans: whether there may be labels without an image, such as an atlas, which the preparation names.
    """
    folders = listing.folders(folder)
    lower = {name.lower(): name for name in folders}
    of_images, of_labels = ([lower[name] for name in names if name in lower] for names in (_IMAGES, _LABELS))
    for images, labels in product(of_images, of_labels):
        for image, label, cases in _pairs(listing.entries(folder / images), listing.entries(folder / labels), orphans):
            yield _Candidate(f"{images}/{image}", f"{labels}/{label}", cases)
    yield from _folders_of_cases(folder, {name: listing.entries(folder / name) for name in folders})
    yield from _of_bids(folder)
    files = _volumes(folder)
    split = {True: [], False: []}  # type: dict[bool, list[str]]
    for name in files:
        words = re.split(r"[^A-Za-z]+", _stem(name).lower())
        split[any(word in _LABEL_WORDS for word in words)].append(name)
    yield from _pairs(split[False], split[True], orphans)


def _folders_of_cases(folder: Path, contents: Mapping[str, Sequence[str]]) -> Iterator[_Candidate]:
    """A folder a case: with an image and a label, or with an image and a folder of masks."""
    images: dict[str, dict[str, str]] = {}  # pattern to what it names of each case
    labels: dict[str, dict[str, str]] = {}
    of_masks = ""  # the ending of the first, and so of all
    for case, names in contents.items():
        for name in names:
            kinds = ((images, _IMAGE_WORDS), (labels, _LABEL_WORDS))
            for kind, words in kinds:
                if _stem(name).lower() in words and name != _MASKS:
                    kind.setdefault(f"{CASE}/{name}", {})[case] = name
        masks = _volumes(folder / case / _MASKS) if _MASKS in names else []
        if masks:
            of_masks = of_masks or masks[0][len(_stem(masks[0])) :]
            labels.setdefault(f"{CASE}/{_MASKS}/{ORGAN}{of_masks}", {})[case] = _MASKS
    known = set()
    for (image, with_image), (label, with_label) in product(_opened(images), _opened(labels)):
        both = {case: (name, with_label[case]) for case, name in with_image.items() if case in with_label}
        if both and (files := tuple(both.items())) not in known:
            known.add(files)
            yield _Candidate(image, label, list(both))


def _of_bids(folder: Path) -> Iterator[_Candidate]:
    """Images of BIDS, and label maps (dseg) among the derivatives, called like them but for words on their making."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("derivatives/**/sub-*_dseg.nii*")):
        label, subject = path.relative_to(folder), path.name.split("_")[0]
        if subject not in label.parts[:-1] or not path.is_file():
            continue
        place = Path(*label.parts[label.parts.index(subject) : -1])
        words = {word for word in _stem(path.name).split("_")[:-1] if word.split("-")[0] not in _DERIVED}
        for name in _volumes(folder / place) if (folder / place).is_dir() else ():
            if words <= set(_stem(name).split("_")):
                patterns = [text.as_posix().replace(subject, f"sub-{CASE}") for text in (place / name, label)]
                found.setdefault((patterns[0], patterns[1]), []).append(subject.removeprefix("sub-"))
    for (image, label_pattern), cases in found.items():
        yield _Candidate(image, label_pattern, cases)


def _opened(patterns: Mapping[str, Mapping[str, str]]) -> list[tuple[str, dict[str, str]]]:
    """The same patterns, and behind them those without an ending that name files of several, of each case one."""
    together: dict[str, list[Mapping[str, str]]] = {}
    for pattern, named in patterns.items():
        together.setdefault(_stem(pattern), []).append(named)
    opened = {
        f"{stem}{_ANY}": dict(sorted(pair for each in group for pair in each.items()))
        for stem, group in together.items()
        if len(group) > 1
    }
    alone = {
        pattern: named
        for pattern, named in opened.items()
        if len(named) == sum(map(len, together[pattern.removesuffix(_ANY)]))
    }
    return [(pattern, dict(named)) for pattern, named in (*patterns.items(), *alone.items())]


def _pairs(images: Sequence[str], labels: Sequence[str], orphans: bool) -> Iterator[_Candidate]:
    """Patterns of names by which each label has an image, or most have one where there may be orphans; those with the
    longest names of cases first.
    """
    for (before, after), (label_before, label_after) in product(_frames(images), _frames(labels)):
        of_labels = _inside(labels, label_before, label_after)
        of_images = set(_inside(images, before, after))
        cases = [case for case in of_labels if case in of_images]
        enough = 2 * len(cases) > len(labels) if orphans else len(cases) == len(labels)
        if cases and enough and len(set(of_labels)) == len(labels):
            yield _Candidate(f"{before}{CASE}{after}", f"{label_before}{CASE}{label_after}", cases)


def _frames(names: Sequence[str]) -> list[tuple[str, str]]:
    """What may stand before and after the name of a case: words that all names share, and their suffix, or any."""
    if not names:
        return []
    suffixes = {name[len(_stem(name)) :] for name in names}
    if len(suffixes) > 1 and "" in suffixes:  # files beside folders
        return []
    suffix = suffixes.pop() if len(suffixes) == 1 else _ANY
    before, after = {""}, {""}
    first = _stem(names[0])
    for pattern, found in ((r"^[A-Za-z]+[-_.]?", before), (r"[-_.]?[A-Za-z]+$|_0000$|[-_.][A-Za-z0-9]+$", after)):
        for match in re.finditer(pattern, first):
            end = match.group()
            fits = str.startswith if found is before else str.endswith
            if all(fits(_stem(name), end) for name in names) and end != first:
                found.add(end)
    return sorted(((b, a + suffix) for b, a in product(before, after)), key=lambda each: len("".join(each)))


def _inside(names: Sequence[str], before: str, after: str) -> list[str]:
    if after.endswith(_ANY):
        names = [_stem(name) + _ANY for name in names]
    fitting = (name for name in names if name.startswith(before) and name.endswith(after))
    return [name[len(before) : len(name) - len(after)] for name in fitting if len(name) > len(before) + len(after)]


def _volumes(folder: Path) -> list[str]:
    """Volumes, by their names."""
    with os.scandir(folder) as entries:
        return sorted(
            each.name
            for each in entries
            if not each.name.startswith(".") and each.name.lower().endswith(IMAGE_SUFFIXES) and each.is_file()
        )


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _masks(folder: Path, cases: Sequence[str], there: Sequence[set[str]]) -> dict[str, str]:
    """The masks of the organs that the bundle ships with, of those that all cases have, which has each ``there``."""
    common = sorted(set.intersection(*there))
    wanted = {organ_named(name): name for name in common if organ_named(name) in SHIPPED}
    lacking = {
        organ: [case for case, names in zip(cases, there) if organ not in map(organ_named, names)]
        for organ in SHIPPED
        if organ not in wanted and any(organ in map(organ_named, names) for names in there)
    }
    lack = "; ".join(f"{organ}, whose mask is not there of {listed(without)}" for organ, without in lacking.items())
    if not wanted:
        raise DatasetError(
            f"No mask in '{folder}' is of {listed(SHIPPED)}{' in all cases' if lack else ''}"
            f"{f' ({lack})' if lack else ''}. Choose from {listed(common)}: --label_map "
            f"\"{{'organ': '{next(iter(common), 'mask')}'}}\"."
        )
    if lack:
        logger.warning(
            "Organs that are left out: %s. Add the masks, empty ones of an organ that is not in the image, or take "
            "these cases out of the folder.",
            lack,
        )
    return {organ: wanted[organ] for organ in sorted(wanted, key=shipped_first)}


def _beside(there: Sequence[set[str]], taken: Mapping[str, Any]) -> str:
    """What to tell of masks of other organs than those that were taken, of those that each case has."""
    others = set.union(*there) - set(taken.values())
    others = {mask for mask in others if organ_named(mask) not in SHIPPED}
    if not others:
        return ""
    return (
        f" Of the masks, {listed(taken.values())} {'is' if len(taken) == 1 else 'are'} used, and not "
        f"{listed(sorted(others))}: --label_map names others."
    )


def _modality(about: Mapping[str, Any], image: str) -> str | None:
    """``ct`` or ``mr`` by ``dataset.json``, or by what the image is called; None where neither says it."""
    names = about.get("channel_names") or about.get("modality")
    if names:
        return modality_named(" ".join(map(str, names.values())) if isinstance(names, Mapping) else names)
    return {"ct": "ct", "mr": "mr", "mri": "mr"}.get(_stem(Path(image.removesuffix(_ANY)).name).lower())


def _there(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in _first(folder, 200))
    return f"There are, for example: {listed(names, 6)}." if names else "The folder is empty."


def _first(folder: Path, most: int) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield Path(root, name)
            most -= 1
            if not most:
                return
