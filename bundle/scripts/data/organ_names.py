"""What organs are called, in the bundle and elsewhere, and in the headers of label maps."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import DatasetError, listed, one_line
from .itk_headers import OWN, header_fields, is_nrrd

# the organs of the model that ships, as others call them, and as it does
_SAME = {
    "kidney right": "right kidney",
    "kidney left": "left kidney",
    "r kidney": "right kidney",
    "l kidney": "left kidney",
    "kidney r": "right kidney",
    "kidney l": "left kidney",
}
SHIPPED = ("spleen", "right kidney", "left kidney", "liver")

# what label values of 0 are called
_BACKGROUND = {
    *("background", "back ground", "bg", "bkg", "none", "nothing", "no organ", "empty", "void", "air", "exterior"),
    *("unlabeled", "unlabelled", "clear label", "unknown", "other", "others", "rest", "null", "zero"),
}

# which are no names of the background: the model's, and what data sets of the abdomen have besides
_ORGANS = {
    *(*SHIPPED, "kidney", "kidneys", "gallbladder", "esophagus", "oesophagus", "stomach", "duodenum", "aorta"),
    *("inferior vena cava", "postcava", "portal vein", "pancreas", "adrenal gland", "bladder", "prostate", "uterus"),
    *("heart", "lung", "lungs", "colon", "tumor", "tumour", "cancer", "lesion"),
}

T = TypeVar("T")

logger = logging.getLogger(__name__)


def organ_named(name: str) -> str:
    """An organ's name as the bundle's own are: ``kidney_right`` and ``Kidney-Right`` are the right kidney."""
    plain = re.sub(r"[_\s.-]+", " ", name).strip().lower()
    return _SAME.get(plain, plain)


def is_background(name: str) -> bool:
    """Whether a name says that nothing is there."""
    return organ_named(name) in _BACKGROUND


def check_background(path: Path, names: Iterable[str], remedy: str) -> None:
    """Looks at what a list of labels calls its value 0, which is what belongs to no organ.

    Args:
        path: of the list.
        names: of the value 0.
        remedy: what to do.

    Raises:
        DatasetError: it is an organ's name.
    """
    odd = [str(name) for name in names if not is_background(str(name))]
    if organs := [name for name in odd if organ_named(name) in _ORGANS]:
        raise DatasetError(
            f"'{path}' has the value 0 for {listed(organs)}, expected \"background\": 0 is what belongs to no organ. "
            f"{remedy}"
        )
    if odd:
        logger.warning("'%s' calls the value 0 '%s': taken for the background.", path, one_line(odd[0]))


def with_known_names(organs: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """The same, with the names that the organs of the model that ships have there, and a remark on what was renamed.

    By other names they would be learned from nothing, have no code in DICOM SEG, and not be looked at for exchanged
    sides. Other organs keep their names.

    Args:
        organs: such as a label map.

    Raises:
        DatasetError: two names of one organ.
    """
    known: dict[str, list[str]] = {}
    for organ in organs:
        name = organ_named(str(organ))
        known.setdefault(name if name in SHIPPED else str(organ), []).append(str(organ))
    twice = [f"{name} ({listed(map(repr, names), 4)})" for name, names in known.items() if len(names) > 1]
    if twice:
        raise DatasetError(
            f"--label_map names one organ more than once: {listed(twice)}. Give each one name; several values of an "
            "organ are a list."
        )
    renamed = [f"{names[0]!r} is called {name}" for name, names in known.items() if names != [name]]
    remarks = [f"As in the model that ships, {', '.join(renamed)}."] if renamed else []
    return dict(zip(known, organs.values(), strict=True)), remarks


def segments_of(path: str | Path) -> dict[str, int]:
    """The values of the segments that the header of a label map names, as 3D Slicer's ``.seg.nrrd`` does; without names
    that it gives twice.
    """
    if not is_nrrd(Path(path)):
        return {}
    fields = header_fields(Path(path))
    found: dict[str, int | None] = {}
    for key, name in fields.items():
        part = re.fullmatch(rf"{OWN}(segment\d+)_name", key)
        value = fields.get(f"{OWN}{part[1]}_labelvalue", "") if part else ""
        if re.fullmatch(r"\d{1,9}", value):
            text = name.encode("latin-1").decode("utf-8", "replace")
            found[text] = None if text in found else int(value)
    return {name: value for name, value in found.items() if value is not None}


def contradicted_names(segments: Mapping[str, Mapping[str, int]], organs: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Where the names in the headers of label maps contradict the label map, or one another: organs would be swapped.

    Args:
        segments: value of each segment, by the path of the label, of those that have voxels.
        organs: values of each organ. Other segments are background, and may be called anything; only where no organ
            has a name yet are the headers of several files compared, except for names that are numbers.
    """
    meant = {organ_named(organ): (values, "label_map") for organ, values in organs.items()}
    nameless = all(re.fullmatch(r"organ \d+", organ) for organ in meant)
    for path, found in segments.items():
        for name, value in found.items():
            organ = organ_named(name)
            if nameless and not re.fullmatch(r"segment \d+", organ):
                meant.setdefault(organ, ((value,), f"'{path}'"))
            if organ in meant and value not in meant[organ][0]:
                values, where = meant[organ]
                yield (
                    f"'{path}': its header names the label value {value} '{one_line(name)}', expected "
                    f"{listed(values)} as in {where}. Export the labels with the same value for an organ in all of "
                    "them, or correct label_map."
                )
