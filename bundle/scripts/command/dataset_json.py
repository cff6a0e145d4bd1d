"""What nnU-Net's ``dataset.json`` says of a folder: its organs and their label values."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.organ_names import SHIPPED, check_background, organ_named
from ..errors import DatasetError, listed, one_line

REMEDY = "say what values mean: --label_map \"{'spleen': 1, 'liver': 6}\""  # without its first capital
_IGNORED = "ignore"  # nnU-Net's name for what nobody has labelled

logger = logging.getLogger(__name__)


def label_map_of(about: Mapping[str, Any], path: Path) -> dict[str, int] | None:
    """Of nnU-Net's ``dataset.json``, in the order of its label values, in which a model's label maps then have them.

    Raises:
        DatasetError: names that are one as the bundle has them; an organ of the value 0; voxels that nobody has
            labelled.
    """
    labels = about.get("labels")
    if not isinstance(labels, dict):
        return None
    values = {name: _label_value(value) for name, value in labels.items()}
    odd = [name for name, value in values.items() if value is None]
    if odd:  # regions of several values, or the Decathlon's order
        logger.warning(
            "The organs' names in '%s' are not read: '%s' is %s there, expected one label value a name, since a voxel "
            "is of one organ here. Each value is an organ without a name, unless --label_map names them.",
            *(path, one_line(odd[0]), one_line(json.dumps(labels[odd[0]]))),
        )
        return None
    if value := values.get(_IGNORED):
        raise DatasetError(
            f"'{path}' has the label '{_IGNORED}' ({value}), voxels that nobody has labelled, and here every voxel "
            f"counts. If they may count as background, as all values without an organ do, {REMEDY}."
        )
    check_background(path, [name for name, value in values.items() if value == 0], f"Correct it, or {REMEDY}.")
    names: dict[str, list[str]] = {}
    for name in (name for name, value in values.items() if value):
        names.setdefault(organ_named(name), []).append(name)
    if twice := [listed(each) for each in names.values() if len(each) > 1]:
        raise DatasetError(f"'{path}' names one organ twice: {'; '.join(twice)}. Correct it, or {REMEDY}.")
    found = {organ: values[first] or 0 for organ, (first, *_) in names.items()}
    return dict(sorted(found.items(), key=lambda each: each[1])) or None


def _label_value(value: Any) -> int | None:
    """A label value, also as text; None for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def shipped_first(organ: str) -> tuple[int, str]:
    """To sort organs by: those of the model that ships first, as it has them."""
    return (SHIPPED.index(organ) if organ in SHIPPED else len(SHIPPED), organ)
