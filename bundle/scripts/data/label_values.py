"""Which label value means which organ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import DatasetError, listed
from .datalists import LabelMap


def label_values(label_map: LabelMap, background_values: Iterable[int] = (0,)) -> tuple[list[int], list[int]]:
    """The arguments ``orig_labels`` and ``target_labels`` of ``monai.transforms.MapLabelValued``.

    Organs become 1 ... K in the order of the map, background values become 0.

    Raises:
        DatasetError: no organ, a value that is no integer, or one that stands for two things.

    Example:
        >>> label_values({"spleen": 1, "liver": [6, 7]}, [0, 4])
        ([1, 6, 7, 0, 4], [1, 2, 2, 0, 0])
    """
    organs, background = organ_values(label_map, background_values)
    channels = [(value, channel) for channel, values in enumerate(organs.values(), 1) for value in values]
    channels += [(value, 0) for value in background]
    return [value for value, _ in channels], [channel for _, channel in channels]


def _integers(name: str, given: Any) -> tuple[int, ...]:
    """The label values of something: one, or several, each once."""
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    values = list(given) if several else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise DatasetError(f"The label value of {name} is {value!r}; expected an integer. Correct label_map.")
    return tuple(dict.fromkeys(values))


def organ_values(
    label_map: LabelMap, background_values: Iterable[int]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Label values of each organ and of the background, checked."""
    organs: dict[str, tuple[int, ...]] = {}
    if not isinstance(label_map, Mapping):
        raise DatasetError(
            f"label_map is {label_map!r}; expected organ: value pairs, such as {{'spleen': 1, 'liver': 6}}. Correct it."
        )
    for organ, given in label_map.items():
        if not str(organ).strip():
            raise DatasetError(f"label_map has an organ without a name, of the label value {given!r}. Name it.")
        organs[organ] = _integers(organ, given)
    background = _integers("background", background_values)
    meanings: dict[int, list[str]] = {}
    for name, values in (*organs.items(), ("background", background)):
        for value in values:
            meanings.setdefault(int(value), []).append(name)
    if not organs or not all(organs.values()):
        empty = [organ for organ, values in organs.items() if not values]
        found = f"names no value for {listed(empty)}" if empty else "names no organ"
        raise DatasetError(f"label_map {found}; expected organ: value pairs, such as {{'spleen': 1, 'liver': 6}}.")
    ambiguous = [f"{value} means {' and '.join(names)}" for value, names in meanings.items() if len(names) > 1]
    if ambiguous:
        raise DatasetError(
            f"label_map and background_values contradict themselves: {'; '.join(ambiguous)}. Give every label value "
            "one meaning."
        )
    return organs, background
