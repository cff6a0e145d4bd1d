"""The settings that belong to a trained prior: its file records them, and inference takes them from there.

A prior works with the backbone, slices, intensities, organs and diffusion of its training alone. So training writes
them into its file, and as an overlay beside it; ``configs/inference.json`` names each as a value of
:func:`settings_of_prior`, which an overlay or an option overrules as it does any other.

A prior's file may come from anybody, so what it records is never evaluated: objects are named by classes of MONAI and
diffusers that do nothing but scale intensities or schedule noise, with plain numbers and texts as their arguments.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import diffusers
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.transforms import Transform
from monai.transforms.intensity import array, dictionary

from .descriptions import given
from .errors import UnusableFileError, one_line
from .files import BUNDLE, whole_file
from .inert import inert
from .setting_kinds import as_whole_number, expected_instead, kind_of, whole_numbers
from .weights import load_tensors

RECORD = "inference"  # where a prior's file has its settings
OVERLAY = "inference.json"  # the overlay beside it
_TARGET = "_target_"
_REMEDY = "Point `prior_file` at a trained prior, or run `training` again."

logger = logging.getLogger(__name__)


def record(settings: Mapping[str, Any], bundle_root: str | Path = BUNDLE) -> dict[str, Any]:
    """Settings as a prior's file records them.

    Args:
        settings: by their names in ``configs/inference.json``: plain values, the ``intensity`` transform and the
            ``scheduler``. A transform other than MONAI's own for intensities has no record: inference must be told.
        bundle_root: a ``backbone_checkpoint`` in this folder is recorded by its place there. Of others the name alone
            is, since a place on one machine means nothing on another.
    """
    found = {key: _plain(value) for key, value in settings.items()}
    if checkpoint := found.get("backbone_checkpoint"):
        path, root = Path(checkpoint).resolve(), Path(bundle_root).resolve()
        found["backbone_checkpoint"] = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def settings_of_prior(prior_file: str | Path, bundle_root: str | Path, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """What a prior's file records, with its objects built.

    Args:
        prior_file: the trained prior; one that is not there has nothing to say, and is refused elsewhere.
        bundle_root: where a ``backbone_checkpoint`` lies.
        otherwise: the value of each setting where the file has none; an object as what makes it, since a transform is
            described by what it was built with only once :mod:`scripts.descriptions` is there to note it.

    Returns:
        A value for each of ``otherwise``, and ``label_map``, each organ with its value in the label maps to be written.

    Raises:
        UnusableFileError: the file is no prior, or records what no training does.
    """
    settings = _made(otherwise)
    path = Path(prior_file)
    if path.is_file():
        found, whole = _recorded_in(path), whole_numbers(otherwise.items())
        found = {key: as_whole_number(value) if key in whole else value for key, value in found.items()}
        settings |= {key: _built(path, key, value) for key, value in found.items() if key in otherwise}
        if found.get("backbone_checkpoint"):
            settings["backbone_checkpoint"] = _checkpoint(found["backbone_checkpoint"], Path(bundle_root), path)
    settings["label_map"] = _label_map(settings["organs"])
    return settings


def read_prior(prior_file: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a prior's file, whose records are of the kinds and within the bounds that a training writes.

    Args:
        prior_file: the trained prior.
        mmap: see :func:`scripts.weights.load_tensors`.

    Raises:
        MissingFileError: it is not there.
        UnusableFileError: it is damaged, or something else, or records what no training does.
    """
    content = load_tensors(prior_file, "trained prior", remedy=_REMEDY, mmap=mmap)
    for where, value, expected in _unexpected(content):
        shown = one_line(repr(value))[:80]
        raise UnusableFileError(
            f"'{prior_file}' records for `{where}` what no training does: {shown}, expected {expected}. {_REMEDY}"
        )
    return content


def _unexpected(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """What a prior's file records of another kind: where, what, and what was expected."""
    settings = content.get(RECORD, {})
    if not isinstance(settings, Mapping):
        yield RECORD, settings, "a group of settings"
        return
    for key, kinds in _kinds().items():
        if key in settings and (expected := expected_instead(key, settings[key], kinds, as_it_is=True)):
            yield key, settings[key], expected
    organs = settings.get("organs", ["an organ"])
    if (
        not organs
        or not _all(organs, str)
        or not all(each.strip() for each in organs)
        or len(set(organs)) < len(organs)
    ):
        yield "organs", organs, "a list of names, each once"
    training = content.get("training", {})
    if not isinstance(training, Mapping):
        yield "training", training, "a group"
        return
    cases, modalities = training.get("cases", {}), training.get("modalities", [])
    if not isinstance(cases, Mapping) or not all(
        isinstance(each, Mapping) and _all(list(each.values()), str) for each in cases.values()
    ):
        yield "training.cases", cases, "digests of each case"
    if not _all(modalities, str):
        yield "training.modalities", modalities, "a list of texts"
    if not isinstance(training.get("intensity"), (Mapping, list, str, NoneType)):
        yield "training.intensity", training["intensity"], "a description"
    settings = training.get("settings", {})
    if not isinstance(settings, Mapping):
        yield "training.settings", settings, "a group of settings"
    elif not _all(times := settings.get("trainer_timesteps") or [], int):
        yield "training.settings.trainer_timesteps", times, "a list of whole numbers"
    volumes = content.get("organ_volumes") or {}
    if not isinstance(volumes, Mapping) or not all(
        _all(each, (int, float)) and all(0 <= volume < math.inf for volume in each) for each in volumes.values()
    ):
        yield "organ_volumes", volumes, "millilitres of each organ"


def _all(values: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(each, kind) for each in values)


@functools.cache
def _kinds() -> dict[str, set[str]]:
    """Kinds of the settings that a prior's file may record."""
    config = json.loads((BUNDLE / "configs" / OVERLAY).read_text("utf-8"))
    kinds = {key: {kind_of(value) or "path"} for key, value in config["prior_settings"]["otherwise"].items()}
    optional = {"null", "text", "path"}
    return {**kinds, "backbone_checkpoint": optional, "backbone_sha256": optional}


def configuration_of(prior_file: str | Path) -> dict[str, Any]:
    """What a prior's file records, as an overlay for ``configs/inference.json``; empty where it records nothing."""
    return _overlay(_recorded(prior_file))


def overlay_for(
    settings: Mapping[str, Any], prior_file: str | Path, bundle_root: str | Path = BUNDLE
) -> dict[str, Any]:
    """The overlay for ``configs/inference.json`` that says what a prior's file records, and where that file is.

    Args:
        settings: as for :func:`record`.
        prior_file: the trained prior.
        bundle_root: as for :func:`record`.

    Returns:
        What differs from the configuration's own settings, as JSON in which every value means itself.
    """
    config = json.loads((BUNDLE / "configs" / OVERLAY).read_text("utf-8"))
    parser = ConfigParser({**config, "bundle_root": str(bundle_root)})
    usual = record(_made(parser.get_parsed_content("prior_settings::otherwise")), bundle_root)
    changed = {key: value for key, value in record(settings, bundle_root).items() if value != usual.get(key)}
    if "backbone_checkpoint" in changed:  # beside the prior, on this machine, the whole place is of use
        changed["backbone_checkpoint"] = str(Path(settings["backbone_checkpoint"]).resolve())
    return _overlay({"prior_file": str(Path(prior_file).resolve()), **changed})


def trained_settings(prior_file: str | Path) -> dict[str, Any]:
    """:func:`configuration_of` for ``configs/train.json``: the organs' values are left to the labels at hand."""
    settings = {key: value for key, value in _recorded(prior_file).items() if key != "organs"}
    if checkpoint := settings.get("backbone_checkpoint"):
        settings["backbone_checkpoint"] = str(Path(_checkpoint(checkpoint, BUNDLE, Path(prior_file))).resolve())
    return _overlay(settings)


def _recorded(prior_file: str | Path) -> dict[str, Any]:
    found = _recorded_in(prior_file)
    for key, value in found.items():
        _built(Path(prior_file), key, value)  # what cannot be built is refused here
    return found


def _recorded_in(prior_file: str | Path) -> dict[str, Any]:
    """The settings in a prior's file. One of before there was ``body_air`` knows bodies in usual fields of view if it
    was trained on no volume, but on painted patients alone, as the one that ships.
    """
    content = read_prior(prior_file, mmap=True)
    found = dict(content.get(RECORD, {}))
    if found and "body_air" not in found and not content.get("training", {}).get("cases", True):
        found["body_air"] = True
    return found


class InferenceOverlay:
    """Writes :func:`overlay_for` as ``inference.json`` beside the trained prior when a training ends.

    Args:
        prior_file: the trained prior.
        settings: as for :func:`record`.
        bundle_root: as for :func:`record`.
    """

    def __init__(
        self, prior_file: str | Path, settings: Mapping[str, Any], *, bundle_root: str | Path = BUNDLE
    ) -> None:
        self.prior_file, self.settings, self.bundle_root = Path(prior_file), dict(settings), bundle_root

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        path = self.prior_file.with_name(OVERLAY)
        text = json.dumps(overlay_for(self.settings, self.prior_file, self.bundle_root), indent=4) + "\n"
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        logger.info("Wrote what inference needs to know of it to '%s'.", path)


_UNKNOWN = object()


def _plain(value: Any) -> Any:
    """A value as it is recorded: an object as its class and those arguments that are no defaults."""
    if isinstance(value, diffusers.ConfigMixin) and isinstance(value, diffusers.SchedulerMixin):
        arguments = {key: item for key, item in value.config.items() if key[0] != "_"}
    elif isinstance(value, Transform):
        arguments = given(value)
    else:
        return _plain_value(value)
    kind = type(value)
    if _classes().get(kind.__name__) is not kind:
        return _UNKNOWN
    defaults = {name: each.default for name, each in inspect.signature(kind.__init__).parameters.items()}
    changed = {name: item for name, item in arguments.items() if not _same(item, defaults.get(name, _UNKNOWN))}
    found = {name: _plain_value(item) for name, item in changed.items()}
    return _UNKNOWN if _UNKNOWN in found.values() else {_TARGET: kind.__name__, **found}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        items = [_plain_value(item) for item in value]
        return _UNKNOWN if any(item is _UNKNOWN for item in items) else items
    return _UNKNOWN


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and first == second


def _classes() -> dict[str, type]:
    """What a record may name: MONAI's transforms of intensities, and diffusers' schedulers, by their names."""
    transforms = [getattr(module, name) for module in (array, dictionary) for name in module.__all__]
    schedulers = [getattr(diffusers, name) for name in ("DDIMScheduler", "DDPMScheduler")]
    return {kind.__name__: kind for kind in (*transforms, *schedulers) if isinstance(kind, type)}


def _made(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value() if isinstance(value, functools.partial) else value for key, value in settings.items()}


def _built(path: Path, key: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    arguments = {name: item for name, item in value.items() if name != _TARGET}
    try:
        return _classes()[value[_TARGET]](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableFileError(
            f"'{path}' records for `{key}` what no training does ({type(error).__name__}: {error}). {_REMEDY}"
        ) from error


def _checkpoint(recorded: str, root: Path, prior_file: Path) -> str:
    """Where the backbone's weights lie: in the bundle, else beside the prior, where a bundle of its own has them."""
    name = Path(recorded).name
    places = (root / recorded, root / "models" / name, prior_file.parent / name)
    return str(next((place for place in places if place.is_file()), places[0]))


def _label_map(organs: Sequence[str]) -> dict[str, int]:
    return {organ: value for value, organ in enumerate(organs, 1)}


def _overlay(recorded: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"label_map" if key == "organs" else key: value for key, value in recorded.items()}
    if "label_map" in settings:
        settings["label_map"] = _label_map(settings["label_map"])
    # names of organs are data, also where one is called as MONAI's keys are
    return {key: inert(value) if key == "label_map" else _configuration(value) for key, value in settings.items()}


def _configuration(value: Any) -> Any:
    """What is recorded, as JSON of which MONAI makes the same."""
    if isinstance(value, Mapping) and _TARGET in value:
        kind = _classes()[value[_TARGET]]
        package = "diffusers." if issubclass(kind, diffusers.SchedulerMixin) else ""
        return {_TARGET: package + kind.__name__, **inert({k: v for k, v in value.items() if k != _TARGET})}
    return inert(value)
