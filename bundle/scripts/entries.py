"""Entries of a configuration by their places, looked up without MONAI: it is not imported before options are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SEPARATOR = "::"  # between the parts of an entry's id, as MONAI has it


def entry_at(config: Any, parts: Sequence[str]) -> Any:
    """The entry at a place; None where there is none.

    Example:
        >>> entry_at({"train": {"handlers": ["a", "b"]}}, ["train", "handlers", "1"])
        'b'
    """
    for part in parts:
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config


def has_entry(config: Any, parts: Sequence[str]) -> bool:
    """Whether there is an entry at a place, be it null."""
    holder, last = entry_at(config, parts[:-1]), parts[-1]
    return last in holder if isinstance(holder, Mapping) else entry_at(holder, [last]) is not None
