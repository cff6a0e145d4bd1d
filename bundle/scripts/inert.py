"""JSON that MONAI reads, with names from outside in it.

MONAI evaluates a string that begins with ``$``, takes ``@name`` and ``%name`` for references, and turns every ``#``
into ``::``. Names of files, folders, cases and organs come from whoever named them, so each goes through :func:`inert`
before it is written where MONAI will read it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

_SPECIAL = "$@%#"
# keys by which MONAI knows what to build, and those by which it merges files or takes the pieces of an id apart
_RESERVED = ("_target_", "_requires_", "_disabled_", "_desc_", "_mode_", "_meta_", "_import_")
_KEY_SPECIAL = ("$", "@", "%", "#", "::")


def inert(value: Any) -> Any:
    r"""The value as JSON of which MONAI makes exactly this value, whatever its texts say.

    Texts without a meaning to MONAI stay as they are. Others become an expression that is nothing but a quoted text, in
    which none of MONAI's characters occurs; a mapping with such a key becomes one expression as a whole.

    Args:
        value: JSON values and paths; never a part of a configuration that is meant to be evaluated.

    Raises:
        TypeError: something that JSON has no form for.

    Example:
        >>> inert({"image_pattern": "{case}.nii.gz", "train_cases": ["a", "$b"]})
        {'image_pattern': '{case}.nii.gz', 'train_cases': ['a', "$'\\x24b'"]}
    """
    value = _plain(value)
    if isinstance(value, dict):
        if any(_is_special_key(key) for key in value):
            return "$" + _literal(value)
        return {key: inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [inert(item) for item in value]
    if isinstance(value, str) and any(each in value for each in _SPECIAL):
        return "$" + _literal(value)
    return value


def inert_json(content: Mapping[str, Any], evaluated: Collection[str] = ()) -> str:
    """Text of a file for MONAI, in which every value means itself.

    Args:
        content: its keys are the configuration's own, so they are written as they are; see :func:`inert` for values.
        evaluated: keys of values that are configuration, of the bundle's own making.
    """
    values = {key: value if key in evaluated else inert(value) for key, value in content.items()}
    return json.dumps(values, indent=4) + "\n"


def quoted(text: str) -> str:
    """A text as part of an expression."""
    return _literal(text)


def _is_special_key(key: str) -> bool:
    return key in _RESERVED or key.startswith("+") or any(each in key for each in _KEY_SPECIAL)


def _literal(value: Any) -> str:
    """Python that evaluates to the value, in ASCII, and without MONAI's characters."""
    text = ascii(value)  # these characters can only stand inside quotes, where their escapes mean the same
    for each in _SPECIAL:
        text = text.replace(each, f"\\x{ord(each):02x}")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str) or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise TypeError(f"expected JSON values or paths, got {type(value).__name__}")
