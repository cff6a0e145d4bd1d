"""What ``diffusam learn`` and ``diffusam prepare`` have left in a folder: the model, its settings and the cases."""

from __future__ import annotations

import ast
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..arguments import read_as
from ..data.organ_names import with_known_names
from ..errors import DatasetError, MissingFileError, UnusableFileError, listed
from ..files import BUNDLE, json_of, named_by_content, sha256_of
from ..inert import inert_json
from ..prepare.configs import OVERLAY

_INTENSITY = "intensity"
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


def ships(model: str | None) -> bool:
    """Whether it is the model that comes with the bundle, or a copy: it knows CT and MR, whatever window it records."""
    shipped = prior_of(None)
    return model is None or (shipped.is_file() and sha256_of(prior_of(model)) == sha256_of(shipped))


def overlay_of(model: str | None) -> list[Path]:
    """The overlay with the settings of a model's training: beside it, or above it where ``learn`` has put it."""
    if model is None:
        return []
    folder = prior_of(model).parent
    return [each for each in (folder / OVERLAY, folder.parent / OVERLAY) if each.is_file()][:1]


def recorded(prior: Path, folder: Path, data: Path) -> Path:
    """Writes what a model's file records of its training as an overlay: its backbone, intensities and the rest.

    Intensities of data that are scaled in another way are left to the data: the window of CT that a file records makes
    nonsense of MR, which the model that ships knows as well.

    Args:
        prior: the model.
        folder: that the overlay is written into.
        data: the overlay of the data that it is to be evaluated on.
    """
    print("Reading the settings of the model ...", flush=True)
    from ..prior_settings import trained_settings  # which imports MONAI: only where it is needed

    settings, own = trained_settings(prior), _content(data).get(_INTENSITY)
    if own and _way(own) != _way(settings.get(_INTENSITY)):
        settings.pop(_INTENSITY, None)
    return named_by_content(folder, "model_settings.json", json.dumps(settings, indent=4) + "\n")


def _way(intensity: Any) -> Any:
    return intensity.get("_target_") if isinstance(intensity, Mapping) else intensity


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


def refuse_other_organs(label_map: str | None, prior: Path) -> None:
    """Refuses an option ``--label_map`` with organs that a model does not have, before anything is prepared with it."""
    named = read_as(label_map or "None")
    if isinstance(named, Mapping):
        _of_model(with_known_names(named)[0], prior)


def evaluated_organs(overlay: Path, prior: Path) -> dict[str, Any]:
    """What an evaluation needs beside the overlay of a preparation: a ``label_map`` of all organs of the model, in its
    order, where the overlay's is another. Organs that it lacks get values that no label has, and are not evaluated.

    Raises:
        DatasetError: the overlay has organs that the model does not have.
    """
    content = _content(overlay)
    label_map = content.get("label_map", {})
    named = dict(label_map if isinstance(label_map, Mapping) else ast.literal_eval(str(label_map)[1:]))
    organs = _of_model(named, prior)
    if not organs or list(named) == organs:
        return {}
    values = [each for value in named.values() for each in (value if isinstance(value, list) else [value])]
    free = itertools.count(1 + max([0, *values, *content.get("background_values", [])]))
    return {"label_map": {organ: named[organ] if organ in named else next(free) for organ in organs}}


def _of_model(named: Iterable[str], prior: Path) -> list[str]:
    """Organs of a model, in its order; none of a file that does not say them."""
    from ..prior_settings import RECORD, read_prior  # which imports MONAI: only where it is needed

    organs = list(read_prior(prior, mmap=True).get(RECORD, {}).get("organs", []))
    others = [organ for organ in named if organs and organ not in organs]
    if others:
        raise DatasetError(
            f"The model '{prior}' has the organs {listed(organs)}, and the labels name others: {listed(others)}. Name "
            "organs of the model alone in --label_map, with --image and --label where a dataset.json lists the files: "
            "\"{'" + organs[0] + "': 1}\". Those that it leaves out are not evaluated."
        )
    return organs


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
