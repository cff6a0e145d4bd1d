"""What the bundle's own configurations say about data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..files import json_of

CASE = "{case}"
OVERLAY = "overlay.json"
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# words by which files name a modality; of all others nothing is concluded
_WORDS = {
    "ct": r"CTS?\d*|CTA|CTPA|CECT|NCCT|LDCT|HRCT|DECT|4DCT|COMPUTED",
    "mr": r"\w*MRI?\d*|MRT|MRA|T[12]\w*|FLAIR|DWI|ADC|PD\w?|DCE|SWI|LGE|DIXON|MAGNETIC",
}
_OTHERS = r"PET|SPECT|NM|PT|US|CBCT"  # which beside a word of CT or MR leave open what is meant


def read_config(name: str) -> dict:
    """One of the bundle's configurations, such as ``btcv.json``, as it is written."""
    return json.loads((_CONFIGS / name).read_text())


def read_dataset_json(path: Path) -> dict[str, Any]:
    """What the ``dataset.json`` of nnU-Net or the Decathlon says.

    Raises:
        DatasetError: it cannot be read, or names a label twice: without it, organs would have numbers for names.
    """
    try:
        content = json_of(path.read_text(encoding="utf-8"), once="labels")
    except (OSError, ValueError) as error:
        raise DatasetError(f"'{path}' cannot be read ({error}). Mend it, or move it elsewhere.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{path}' holds a {type(content).__name__}, expected an object. Mend it, or move it away.")
    return content


def intensity_of(modality: str) -> dict[str, object]:
    """The entry of an overlay that says how intensities are scaled."""
    if modality not in ("ct", "mr"):
        raise DatasetError(f"--modality is '{modality}', expected ct or mr. Choose how intensities are scaled.")
    return {"intensity": read_config(f"{modality}.json")["intensity"]}


def background_of(stated: object) -> list[int]:
    """The label values that stand for no organ, 0 and those that are stated.

    Raises:
        DatasetError: something else is stated.
    """
    values = stated if isinstance(stated, (list, tuple)) else [stated]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise DatasetError(f'--background_values is {stated!r}, expected label values, such as "[0, 7]".')
    return sorted({0, *values})


def modality_named(text: object) -> str | None:
    """``ct`` or ``mr`` by the words of a text; None where it says neither, both, or another beside them.

    Example:
        >>> modality_named("MRI T1 contrast, reconstructed"), modality_named("SPECT"), modality_named("PET/CT")
        ('mr', None, None)
    """
    words = re.findall(r"[A-Z0-9]+", str(text).upper())
    patterns = {**_WORDS, "other": _OTHERS}
    found = [name for name, pattern in patterns.items() if any(re.fullmatch(pattern, word) for word in words)]
    return found[0] if len(found) == 1 and found[0] in _WORDS else None


def holds_preparation(folder: Path) -> bool:
    """Whether a preparation wrote to a folder: what lies there is nobody's source."""
    try:
        content = json_of((folder / OVERLAY).read_text("utf-8"))
        return isinstance(content, Mapping) and {"image_pattern", "train_cases", "prior_file"} <= content.keys()
    except (OSError, ValueError):
        return False
