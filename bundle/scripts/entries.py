"""Entries of a configuration by their places, looked up without MONAI: it is not imported before options are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
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


def on_top(name: str) -> str:
    """The entry on top that an id, as an option or a key of an overlay has it, lies in, or is.

    Example:
        >>> on_top("+train#handlers")
        'train'
    """
    return re.split(f"#|{SEPARATOR}", name.removeprefix("+"))[0]


def contents(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Of files of configurations, those that can be read as JSON."""
    for path in paths:
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):  # if it is of this run, MONAI has said so
            continue
        if isinstance(content, dict):
            yield content
