"""A mask an organ, each in a file of its own, as TotalSegmentator has them: put together into one label map a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.case_patterns import case_path, cases_matching
from ..data.datalists import Item
from ..data.volumes import Volume, VolumeReader
from ..errors import DatasetError, listed, one_line
from .configs import CASE
from .targets import Target, nifti, store_nifti

ORGAN = "{organ}"
LABELS = f"label/{CASE}.nii.gz"  # below the target's folder


def merged(
    source: str, label: str, items: Sequence[Item], *, masks: Mapping[str, str], target: Target, reader: VolumeReader
) -> list[dict[str, str]]:
    """The same cases, with label maps in the target's folder ``label``.

    Args:
        source: folder that the pattern starts from.
        label: path of a mask below it, with ``{case}`` and ``{organ}``.
        items: the cases.
        masks: organ to the name of its mask; the first organ has value 1, the second 2, ... A voxel is the organ's
            where its mask is above 0.
        target: where label maps go.
        reader: of the masks.

    Raises:
        DatasetError: a mask is missing, has several values beside 0 or one below it, lies on another grid than the
            case's first, or two of them overlap.
    """
    folder, result = Path(source).expanduser().resolve(), []
    for item in items:
        volume: Volume | None = None
        for value, (organ, mask) in enumerate(masks.items(), 1):
            path = case_path(folder, label.replace(ORGAN, mask), item["case"])
            if not path.exists():
                there = masks_there(folder, label, item["case"], item["image"])
                raise DatasetError(
                    f"'{path}': the mask of {organ} is not there. {there} Restore it, an empty one of an organ that "
                    f"is not in the image, or leave {organ} out of --label_map."
                )
            found = reader.load(path)
            values = [value for value in np.unique(found.voxels).tolist() if value != 0]
            if len(values) > 1 or not all(value > 0 for value in values):
                shown = listed(f"{value:g}" for value in values)
                raise DatasetError(
                    f"'{path}': the mask of {organ} has the values {shown} beside 0, expected one above 0. Is it a "
                    "label map, or a probability? Export the mask again."
                )
            if volume is None:
                volume = Volume(np.zeros(found.voxels.shape, np.uint8), found.affine)
            if found.voxels.shape != volume.voxels.shape or not np.allclose(found.affine, volume.affine, atol=1e-3):
                raise DatasetError(
                    f"'{path}': on another grid than the masks before it, expected one grid a case. Export it again."
                )
            inside = found.voxels > 0
            if (volume.voxels[inside] > 0).any():
                other = list(masks)[int(volume.voxels[inside].max()) - 1]
                raise DatasetError(f"'{path}': overlaps the mask of {other}. Leave one of them out of --label_map.")
            volume.voxels[inside] = value
        assert volume is not None  # there is an organ
        name = LABELS.replace(CASE, item["case"])
        store_nifti(target, name, nifti(volume))
        result.append({**item, "label": str(target.folder / name)})
    return result


def masks_there(folder: Path, label: str, case: str, image: str) -> str:
    """For messages: which masks a case has.

    Args:
        folder: that the pattern starts from.
        label: path of a mask below it, with ``{case}`` and ``{organ}``.
        case: its name.
        image: of the case, which such a pattern may name too.
    """
    of_case = label.replace(CASE, case).replace(ORGAN, CASE)
    there = [each for each in cases_matching(folder, of_case) if str(case_path(folder, of_case, each)) != image]
    return f"Masks that are there of case {one_line(case)}: {listed(sorted(there)) or 'none'}."
