"""What organs are called and where they lie, which tells whether a label map's axes or values were mistaken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import nibabel as nib
import numpy as np

from ..data.datalists import LabelMap
from ..errors import DatasetError, listed

T = TypeVar("T")

# the organs that ship with the bundle, as others call them
_SAME = {
    "kidney right": "right kidney",
    "kidney left": "left kidney",
    "r kidney": "right kidney",
    "l kidney": "left kidney",
    "kidney r": "right kidney",
    "kidney l": "left kidney",
}
SHIPPED = ("spleen", "right kidney", "left kidney", "liver")
# organ, another, axis and side of the patient on which the centre of the first lies
SIDES = (("right kidney", "left kidney", 0, "to the right of"), ("liver", "spleen", 0, "to the right of"))
HEIGHTS = (("liver", "right kidney", 2, "above"), ("liver", "left kidney", 2, "above"))


def organ_named(name: str) -> str:
    """An organ's name as the bundle's own are: ``kidney_right`` is the right kidney."""
    plain = re.sub(r"[_\s]+", " ", name).strip().lower()
    return _SAME.get(plain, plain)


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


def misplaced_organs(
    label: np.ndarray, affine: np.ndarray, label_map: LabelMap, expected: Iterable[tuple[str, str, int, str]]
) -> list[str]:
    """Organs whose centres do not lie as in people."""
    centres = {}
    for organ in {name for pair in expected for name in pair[:2]} & label_map.keys():
        indices = np.nonzero(np.isin(label, label_map[organ]))
        if len(indices[0]):
            centres[organ] = nib.affines.apply_affine(affine, [axis.mean() for axis in indices])
    return [
        f"{organ} is not {side} {other}"
        for organ, other, axis, side in expected
        if organ in centres and other in centres and centres[organ][axis] <= centres[other][axis]
    ]
