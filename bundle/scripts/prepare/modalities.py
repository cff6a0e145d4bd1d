"""Of which modality images are, and whether their numbers are those that it has."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.datalists import Item
from ..data.hounsfield import hounsfield_units, no_hounsfield_units
from ..data.intensity import modality_in
from ..data.volumes import VolumeReader
from ..errors import DatasetError, listed


def common_modality(items: Sequence[Item], reader: VolumeReader) -> str:
    """What all images are, by what they say of themselves.

    Raises:
        DatasetError: one does not say, or they differ.
    """
    found: dict[str, list[str]] = {}
    for item in items:
        image = reader.load(item["image"])
        modality = modality_in(image.voxels, item["image"], stated=image.modality)
        found.setdefault(modality, []).append(item["case"])
    if len(found) > 1:
        kinds = "; ".join(f"{modality.upper()}: {listed(cases)}" for modality, cases in found.items())
        raise DatasetError(
            f"The images are of several modalities ({kinds}), which are scaled in different ways. Put each into a "
            "folder of its own, or choose one scaling for all: --modality ct, or --modality mr."
        )
    return next(iter(found))


def unit_warnings(items: Sequence[Item], modality: str, reader: VolumeReader) -> list[str]:
    """Images whose numbers are of another unit than their modality has."""
    warnings = []
    for item in items:
        voxels = reader.load(item["image"]).voxels
        problem = no_hounsfield_units(voxels) if modality == "ct" else hounsfield_units(voxels)
        if problem:
            warnings.append(
                f"Warning: '{item['image']}': {problem}, with --modality {'mr' if modality == 'ct' else 'ct'}."
            )
    return warnings
