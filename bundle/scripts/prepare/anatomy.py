"""Where organs lie in people, which tells whether a label map's axes or values were mistaken."""

from __future__ import annotations

from collections.abc import Iterable

import nibabel as nib
import numpy as np

from ..data.datalists import LabelMap

# organ, another, axis and side of the patient on which the centre of the first lies
SIDES = (("right kidney", "left kidney", 0, "to the right of"), ("liver", "spleen", 0, "to the right of"))
HEIGHTS = (("liver", "right kidney", 2, "above"), ("liver", "left kidney", 2, "above"))


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
