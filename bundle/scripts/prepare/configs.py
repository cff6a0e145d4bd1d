"""What the bundle's own configurations say about data."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import DatasetError

CASE = "{case}"
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read_config(name: str) -> dict:
    """One of the bundle's configurations, such as ``btcv.json``, as it is written."""
    return json.loads((_CONFIGS / name).read_text())


def intensity_of(modality: str) -> dict[str, object]:
    """The entry of an overlay that says how intensities are scaled."""
    if modality not in ("ct", "mr"):
        raise DatasetError(f"--modality is '{modality}', expected ct or mr. Choose how intensities are scaled.")
    return {"intensity": read_config(f"{modality}.json")["intensity"]}
