"""What ``diffusam learn`` and ``diffusam prepare`` have left in a folder: the model, its settings and the cases."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, UnusableFileError
from ..files import BUNDLE, json_of, named_by_content
from ..inert import inert_json
from ..prepare.configs import OVERLAY

RUN = "run"  # where a training writes, in the folder of the overlay
_READ = ("dataset_dir", "image_pattern", "label_pattern")  # in which files are named that the preparation wrote


def prior_of(model: str | None) -> Path:
    """The file of a model: of the bundle, of a folder that was learned, or itself."""
    if model is None:
        return BUNDLE / "models" / "model.pt"
    path = Path(model).expanduser()
    places = [path, path / "model.pt", path / RUN / "model.pt"]
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

    return named_by_content(folder, "model_settings.json", json.dumps(trained_settings(prior), indent=4) + "\n")


def places_in(folder: Path, target: Path, prior: Path) -> Path:
    """Writes an overlay with the places of a learned folder as it lies now: its own overlay has those of where it was
    learned, which may be another by now, or the one that it was copied from.

    Args:
        folder: that was learned, or prepared.
        target: the folder that the overlay is written into.
        prior: the model to be evaluated.
    """
    overlay, now = folder / OVERLAY, folder.resolve()
    content = _content(overlay)
    before = Path(_text(content.get("output_dir")) or now / RUN).parent
    texts = {key: _text(content.get(key)) for key in _READ}
    moved = {key: str(now / Path(text).relative_to(before)) for key, text in texts.items() if _below(text, before)}
    places = {"output_dir": str(now / RUN), "prior_file": os.path.abspath(prior), **moved}
    return named_by_content(target, "evaluate.json", inert_json(places))


def trained_with(overlay: Path) -> dict[str, Any] | None:
    """What of an overlay a training depends on, which is all but the cases that are evaluated; None where there is no
    overlay, or none that can be read.
    """
    try:
        content = _content(overlay)
    except UnusableFileError:
        return None
    return {key: value for key, value in content.items() if key != "test_cases"}


def remove_training(folder: Path) -> None:
    """Takes away the training of an earlier overlay, and its model, so that the next one begins anew."""
    files = [folder / RUN / name for name in ("checkpoint.pt", "model.pt")]
    there = [each for each in files if each.is_file()]
    for each in there:
        each.unlink()
    if there:
        print(f"The training in '{folder / RUN}' was of what has been replaced: it begins anew.", flush=True)


def _below(text: str, folder: Path) -> bool:
    return os.path.isabs(text) and Path(text).is_relative_to(folder)


def cases_in(overlay: Path) -> dict[str, Any]:
    """The cases of an overlay, names as they are."""
    content = _content(overlay)
    return {key: [_text(each) for each in content.get(key) or []] for key in ("train_cases", "test_cases")}


def _content(overlay: Path) -> dict[str, Any]:
    try:
        return dict(json_of(overlay.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UnusableFileError(f"'{overlay}' cannot be read ({error}). Prepare the folder again.") from error


def _text(value: object) -> str:
    """A text of an overlay as it is meant; empty for what is none, or what MONAI is to make one of."""
    text = value if isinstance(value, str) else ""
    if not text.startswith("$"):
        return text
    try:
        return str(ast.literal_eval(text[1:]))
    except (ValueError, SyntaxError):
        return ""
