"""The input of a case of an inference: whether it is what results were made from, and what its results are called."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.datalists import Item
from ..data.volumes import files_of

logger = logging.getLogger(__name__)


def told_apart(items: Sequence[Item], cases: Mapping[str, Mapping[str, Any]]) -> list[Item]:
    """The same cases; one whose name the results of another image bear already is named after its folder too.

    Files of two patients have the same name in many an archive, and results of the first are not to be lost.
    """
    apart, taken = [], {item["case"] for item in items}
    for item in items:
        name, folder = item["case"], Path(item["image"]).parent
        place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        for candidate in (name, f"{folder.name}_{name}", f"{name}_{place}"):
            if _is_of(item, cases.get(candidate, {})) and (candidate == name or candidate not in taken):
                break
        if candidate != name:
            other = cases[name]["image"]
            logger.warning(
                "%s: results of '%s' bear this name here, so those of '%s' are called %s.",
                *(name, other, item["image"], candidate),
            )
        apart.append(item if candidate == name else {**item, "case": candidate, "named": name})
    return apart


def _is_of(item: Item, record: Mapping[str, Any]) -> bool:
    """Whether a record is of the image of an item, of an image that is gone, as when it was moved, or of none."""
    image = record.get("image")
    return image is None or os.path.realpath(image) == os.path.realpath(item["image"]) or not os.path.lexists(image)


def cheap_problem(path: Path) -> str | None:
    """What can be said against an input without reading it."""
    try:
        if not path.exists():
            return f"'{path}': the file is not there. Restore it, or take it out of the input."
        if path.is_file() and not path.stat().st_size:
            return f"'{path}': the file is empty. Copy or export it again."
    except OSError as error:  # in a folder that may not be entered
        return f"'{path}': cannot be opened ({error.strerror}). Ask for permission to read it."
    return None


def input_digest(item: Item) -> str | None:
    """Names, sizes and times of change: reading gigabytes to see that they are the same would take too long."""
    try:
        stats = [(path.name, path.stat()) for path in files_of(item["image"])]
    except OSError:  # which reading the case will put into words
        return None
    return digest_of([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
