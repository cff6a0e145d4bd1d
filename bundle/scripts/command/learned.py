"""What ``diffusam learn`` and ``diffusam prepare`` have left in a folder: the model, its settings and the cases."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, UnusableFileError
from ..files import BUNDLE, json_of, whole_file

OVERLAY = "overlay.json"  # of prepared scans


def prior_of(model: str | None) -> Path:
    """The file of a model: of the bundle, of a folder that was learned, or itself."""
    if model is None:
        return BUNDLE / "models" / "model.pt"
    path = Path(model).expanduser()
    places = [path, path / "model.pt", path / "run" / "model.pt"]
    found = next((each for each in places if each.is_file()), None)
    if found is None:
        raise MissingFileError(f"There is no model at '{model}'. Give a model.pt, or the folder that `learn` made.")
    return found


def overlay_of(model: str | None) -> list[Path]:
    """The overlay with the settings of a model's training: beside it, or above it where ``learn`` has put it."""
    if model is None:
        return []
    folder = prior_of(model).parent
    return [each for each in (folder / OVERLAY, folder.parent / OVERLAY) if each.is_file()][:1]


def recorded(prior: Path, folder: Path) -> Path:
    """Writes what a model's file records of its training as an overlay: its backbone, intensities and the rest."""
    print("Reading the settings of the model ...", flush=True)
    from ..prior_settings import trained_settings  # which imports MONAI: only where it is needed

    overlay = folder / "model_settings.json"
    with whole_file(overlay) as temporary:
        temporary.write_text(json.dumps(trained_settings(prior), indent=4) + "\n", encoding="utf-8")
    return overlay


def cases_in(overlay: Path) -> dict[str, Any]:
    """The cases of an overlay, names as they are."""
    try:
        content = json_of(overlay.read_text(encoding="utf-8"))
        return {key: [_name(each) for each in content.get(key) or []] for key in ("train_cases", "test_cases")}
    except (OSError, ValueError) as error:
        raise UnusableFileError(f"'{overlay}' cannot be read ({error}). Prepare the folder again.") from error


def _name(text: str) -> str:
    return str(ast.literal_eval(text[1:])) if text.startswith("$") else text
