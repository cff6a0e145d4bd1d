"""Of which kind a setting is, and between which bounds: as an option, in an overlay, or in the record of a prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

# kinds of values in words, and which others each may be instead; a text that is put together is a path
_KINDS = {
    "number": "a number",
    "switch": "true or false",
    "text": "a text",
    "path": "a path",
    "list": "a list, such as \"['a','b']\"",
    "group": "a group of settings",
    "null": "null",
}
_ALSO = {
    "number": {"null"},
    "switch": {"null"},
    "text": {"number", "switch", "null"},
    "path": {"text", "number", "switch", "null"},
    "list": {"null"},
    "group": {"null"},
    "null": set[str](),
}
# settings of which nothing is no value
NEEDED = {
    *("input", "output", "output_dir", "run_dir", "evaluation_dir", "cache_dir", "dataset_dir", "prior_file"),
    *("label_map", "intensity", "scheduler", "train_data"),
}
# numbers beyond which a setting means nothing, where what reads it would not say so in words of its own
_COUNTS = {
    **dict.fromkeys(["batch_size", "iterations", "iterations_per_epoch", "encode_batch_size"], (1, math.inf)),
    **dict.fromkeys(["inference_steps", "memory_samples"], (1, math.inf)),
    **dict.fromkeys(["num_workers", "variants", "attention_levels", "window_margin", "kept_batches"], (0, math.inf)),
    **dict.fromkeys(["neighbours", "ended_after", "uncertainty", "correction_reach", "first_patient"], (0, math.inf)),
    "seed": (0, 2**32 - 1),
}
_RANGES = {
    **_COUNTS,
    **dict.fromkeys(["learning_rate", "max_grad_norm", "lambda_prior", "lambda_seg", "lambda_names"], (0, math.inf)),
    "names_smoothing": (0, math.inf),
    **dict.fromkeys(["dropout", "eta"], (0, 1)),
    **dict.fromkeys(["body_fill", "random_contrasts", "names_learned"], (0, 1)),
}
_OF_COUNTS = {"prior_channels"}  # lists of such numbers
_COMPONENTS = {"intensity", "scheduler"}  # groups that say what is made of them


def kind_of(value: Any, *, as_it_is: bool = False) -> str | None:
    """What JSON calls a value; None for what MONAI makes something else of, and for objects.

    Args:
        value: of a setting.
        as_it_is: whether MONAI does not read it, so that a text is a text whatever it begins with.
    """
    if isinstance(value, str):
        return None if value[:1] in ("$", "@", "%") and not as_it_is else "text"
    if isinstance(value, Mapping) and "_target_" in value and value.get("_mode_") != "callable":
        return None
    if value is None:
        return "null"
    kinds = {bool: "switch", (int, float): "number", (list, tuple): "list", Mapping: "group"}
    return next((kind for types, kind in kinds.items() if isinstance(value, types)), None)  # type: ignore[arg-type]


def expected_instead(key: str, value: Any, declared: Set[str], *, as_it_is: bool = False) -> str | None:
    """What a setting must be, in words, where its value is something else; None where the value will do.

    Args:
        key: its name.
        value: expressions and references may become anything, and will do.
        declared: kinds that it has where it is declared.
        as_it_is: see :func:`kind_of`; then a number is no text either, and nothing is nothing. True and false are
            numbers, as which trainings have recorded them.
    """
    found = kind_of(value, as_it_is=as_it_is)
    if bounds := _bounds_instead(key, value, found, as_it_is):
        return bounds
    return None if found is None else _kind_instead(key, value, found, declared, as_it_is)


def _bounds_instead(key: str, value: Any, found: str | None, as_it_is: bool) -> str | None:
    """What a number, the numbers of a list, or a component must be, in words, where the value is beyond that."""
    numbers = {"number", "switch"} if as_it_is else {"number"}
    if key in _RANGES and (found in numbers and not _in_range(key, value) or found in {"switch"} - numbers):
        low, high = _RANGES[key]
        kind = "a whole number, " if key in _COUNTS else ""
        return kind + (f"{low} or more" if high == math.inf else f"{low} to {high}")
    if found == "list" and key in _OF_COUNTS and not (value and all(_is_count(each) for each in value)):
        return "a list of whole numbers, 1 or more"
    if found == "group" and key in _COMPONENTS and "_target_" not in value:
        return 'a component, {"_target_": ...}'
    return None


def _kind_instead(key: str, value: Any, found: str, declared: Set[str], as_it_is: bool) -> str | None:
    """Which kinds a setting has, in words, where its value is of none of them, nor of one that may stand for it."""
    if as_it_is:
        taken = {*declared, *({"switch"} if "number" in declared else ()), *({"text"} if "path" in declared else ())}
    else:
        taken = {*declared, *(also for each in declared for also in _ALSO[each])}
    fits = found in taken or (found == "number" and "switch" in taken and value in (0, 1))
    if (fits or declared <= {"null"}) and not (found == "null" and key in NEEDED):
        return None
    return " or ".join(_KINDS[each] for each in sorted(declared)) or "a value"


def whole_numbers(declared: Iterable[tuple[str, Any]]) -> set[str]:
    """Settings that are whole numbers, or lists of them.

    Args:
        declared: settings, each with a value that it has where it is declared, any number of times.
    """
    found: dict[str, bool] = {}
    for key, value in declared:
        numbers = [each for each in _items(value) if kind_of(each) == "number"]
        if numbers:
            found[key] = found.get(key, True) and all(isinstance(each, int) for each in numbers)
    return {key for key, whole in found.items() if whole} | {*_COUNTS} | _OF_COUNTS


def as_whole_number(value: Any) -> Any:
    """A whole number that is written as 3.0 or 1e3 as what it is, also in a list; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(as_whole_number(each) for each in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _in_range(key: str, value: float) -> bool:
    low, high = _RANGES[key]
    return math.isfinite(value) and low <= value <= high and (key not in _COUNTS or float(value).is_integer())


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and float(value).is_integer()
