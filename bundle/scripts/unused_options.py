"""What was given and has no effect, though its name is one of the bundle's: a run says so, since it is as if it had not
been given. Options that other settings leave without effect, and components in an overlay on which nothing depends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .entries import SEPARATOR, contents, on_top
from .files import BUNDLE
from .shell import config_files, shares_options

_Settings = Callable[[str], Any]  # a setting's value, by its name


def _names_masks(get: _Settings) -> bool:
    return bool(get("named_memories"))


def _no_walk(get: _Settings) -> bool:
    return bool(get("no_3d")) or not get("neighbours")


def _trains_no_prior(get: _Settings) -> bool:
    return not (get("lambda_prior") or get("lambda_seg"))


_NO_NAMES = ("no head names organs (named_memories)", lambda get: not _names_masks(get))
_NAMED = ("a head names masks, and no memory is generated (named_memories)", _names_masks)
_NO_PRIOR = ("the prior is not trained (lambda_prior, lambda_seg)", _trains_no_prior)
# what leaves an option without effect, in words and by other settings; of inference and evaluation, and of training
_Reasons = dict[str, list[tuple[str, Callable[[_Settings], bool]]]]
_OF_WALKS: _Reasons = {
    **dict.fromkeys(["memory_samples", "inference_steps", "eta"], [_NAMED]),
    "names_smoothing": [_NO_NAMES, ("each slice is named by itself (no_3d)", lambda get: bool(get("no_3d")))],
    "skip_absent": [_NO_NAMES],
    "window_margin": [_NO_NAMES, ("slices see their neighbours (neighbours)", lambda get: not _no_walk(get))],
    "ended_after": [("slices have no neighbours (neighbours, no_3d)", _no_walk)],
    "neighbours": [("no_3d is true", lambda get: bool(get("no_3d")))],
    "correction_reach": [("there are no corrections", lambda get: get("corrections") is None)],
    "uncertainty_calibration": [("uncertainty is 0", lambda get: not get("uncertainty"))],
}
_OF_TRAINING: _Reasons = {
    **dict.fromkeys(["absent_share", "training_timesteps"], [_NO_PRIOR]),
    "object_weight": [("lambda_seg is 0", lambda get: not get("lambda_seg"))],
    **dict.fromkeys(["lambda_names", "names_learned"], [_NO_NAMES]),
}
_REASONS = {"inferer": _OF_WALKS, "validate::inferer": _OF_WALKS, "train::trainer": _OF_TRAINING}

logger = logging.getLogger(__name__)


def unused(parser: ConfigParser, reached: Set[str], options: Iterable[str]) -> list[str]:
    """Which options have no effect in a workflow, each with the reason.

    Args:
        parser: of its configuration.
        reached: ids of all that the workflow depends on.
        options: ids of settings.
    """
    reasons = next((reasons for part, reasons in _REASONS.items() if part in reached), {})
    config = parser.get()

    def get(name: str) -> Any:
        return parser.get_parsed_content(name) if name in config else None

    return [
        f"--{option}, since {why}"
        for option in options
        for why in [next((words for words, holds in reasons.get(option, []) if holds(get)), None)]
        if why is not None
    ]


def unused_components(reached: Set[str], referred: Set[str], files: Iterable[str]) -> list[str]:
    """Components in overlays of a user's own on which nothing in a workflow depends, such as an ``optimizer`` that is
    to be ``train#optimizer``. Plain settings there may be of another run, which shares the overlay, and so may what
    another entry refers to.

    Args:
        reached: ids of all that the workflow depends on.
        referred: ids of all that any entry of its configuration refers to.
        files: the configuration files of the run.
    """
    paths = [Path(file).resolve() for file in files]
    own = [path for path in paths if BUNDLE.resolve() / "configs" in path.parents]
    declared = {on_top(key) for content in contents(own) for key in content}
    known = declared | {on_top(each) for each in reached} | referred
    found = []
    for path in paths:
        for key, value in ((key, value) for content in contents([path]) for key, value in content.items()):
            name = on_top(key)
            if name in known or not _is_component(value):
                continue
            near = [each.replace(SEPARATOR, "#") for each in sorted(reached) if each.endswith(SEPARATOR + name)]
            meant = f" Is {' or '.join(near)} meant?" if near else ""
            found.append(f"'{path}': {name}, since nothing depends on it here.{meant}")
    return found


def _is_component(value: Any) -> bool:
    pieces = value if isinstance(value, list) else [value]
    return any(isinstance(piece, Mapping) and "_target_" in piece for piece in pieces)


def tell_unused(
    parser: ConfigParser, reached: Set[str], options: Mapping[str, str | None], *, referred: Set[str]
) -> None:
    """Says what has no effect in the running workflow, but where options are those of other commands too.

    Args:
        parser, reached: see :func:`unused`.
        options: as typed.
        referred: see :func:`unused_components`.
    """
    if shares_options():
        return
    for each in unused(parser, reached, options):
        logger.warning("Without effect: %s.", each)
    for each in unused_components(reached, referred, config_files(options.get("config_file"))):
        logger.warning("Without effect: %s", each)
