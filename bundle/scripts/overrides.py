"""Settings that were given, but name nothing: MONAI adds each as an entry of its own, which nothing reads. And values
that refer to nothing, such as ``@nowhere``.

So ``--iteration 100`` would train as long as ever. What a configuration holds after all overlays and options are merged
is compared with what the bundle's own files declare: an entry beyond them must be one that something refers to, or
begin with an underscore.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from .arguments import AS_TYPED, OF_RUN, given_options, refuse_no_run, refuse_nothing, refuse_twice, typed_options
from .entries import SEPARATOR, contents, entry_at, has_entry, on_top
from .errors import MissingFileError, UnknownSettingError, count, listed, nearest
from .files import BUNDLE
from .places import check_places
from .setting_kinds import NEEDED, as_whole_number, expected_instead, kind_of, whole_numbers
from .shell import config_files, shares_options
from .unused_options import tell_unused

# what `--tracking mlflow` adds, or reads where it is given
_MLFLOW = DEFAULT_EXP_MGMT_SETTINGS["mlflow"]
_OF_TRACKING = {*_MLFLOW["configs"]} - {*_MLFLOW["handlers_id"]}
_START = "start_from"
_PATH = re.compile(r"^\$.*\+ '/")
_TWIN = re.compile("Duplicate key: `(.*)`", re.DOTALL)  # as MONAI says it

logger = logging.getLogger(__name__)


def check() -> None:
    """Refuses settings of the running workflow that name nothing, and places where it could not write; says which
    options have no effect in it. Whole numbers that are written as 3.0 or 1e3 are 3 and 1000 from here on.

    For ``initialize`` of a configuration: the workflow is the one that evaluates it.

    Raises:
        UnknownSettingError: with the nearest names.
        MissingFileError: the file that a training is to start from is not there.
        RefusedError: results could not be written.
    """
    workflow = _running()
    if workflow is None:  # evaluated by something else than a workflow
        return
    config = workflow.parser.get()
    steps, options = (workflow.init_id, workflow.run_id, workflow.final_id), typed_options() or {}
    refuse_no_run(config, workflow.run_id)
    refuse_nothing(options)
    refuse_twice([text for text in options.values() if text is not None])
    refuse_twins(each for option in ("config_file", "args_file") for each in config_files(options.get(option)))
    refuse_unknown(config, declared_settings(workflow.config_root_path))
    refuse_other_kinds(config, declared_kinds(workflow.config_root_path), options)
    write_whole_numbers(workflow.parser, declared_whole_numbers(workflow.config_root_path))
    refuse_dangling(config, steps, options)
    refuse_no_device(config, options)
    refuse_other_values(config, options)
    reached = _reached(config, steps)
    if _START in reached:
        refuse_no_start(config, options)
    check_places(workflow.parser, reached)
    if not shares_options() and (idle := without_effect(config, steps, given_options())):
        names = listed(f"--{name}" for name in idle)
        logger.warning("Without effect, since nothing in `run %s` depends on it: %s.", workflow.run_id, names)
    tell_unused(workflow.parser, reached, options, referred=_referred(config))


def refuse_twins(files: Iterable[str]) -> None:
    """Refuses configurations in which a key stands twice, of which MONAI takes the last, with no more than a warning.

    Args:
        files: JSON or YAML that MONAI has read.

    Raises:
        UnknownSettingError: one does.
    """
    for file in files:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ConfigParser.load_config_file(file)
        if twins := [found[1] for each in said if (found := _TWIN.match(str(each.message)))]:
            raise UnknownSettingError(
                f"'{file}' has '{twins[0]}' twice in one group, of which the first would be lost. Name it once."
            )


def declared_settings(folder: str | Path) -> set[str]:
    """Ids of the entries that the workflows in a folder, and those of the bundle, declare.

    An overlay declares nothing, wherever it lies: what it adds must be used.

    Args:
        folder: with JSON files.
    """
    return {
        ReferenceResolver.normalize_id(key.removeprefix("+")) for content in _workflows(folder) for key in _ids(content)
    }


def _workflows(folder: str | Path) -> list[dict[str, Any]]:
    """The configurations in a folder, and of the bundle, that are no overlays."""
    paths = {path.resolve() for root in (Path(folder), BUNDLE / "configs") for path in root.glob("*.json")}
    return [content for content in contents(sorted(paths)) if "run" in content]


def refuse_unknown(config: Mapping[str, Any], declared: set[str]) -> None:
    """Refuses entries of a configuration that are neither declared nor referred to.

    Args:
        config: as it is merged.
        declared: ids of :func:`declared_settings`.

    Raises:
        UnknownSettingError: with the nearest names.
    """
    known = declared | _OF_TRACKING | _referred(config)
    unknown = [name for name in _ids(config) if name not in known and not name.rpartition(SEPARATOR)[2].startswith("_")]
    if not unknown:
        return
    near = dict.fromkeys(each for name in unknown for each in nearest(name, known, cutoff=0.75))
    shown = [name.replace(SEPARATOR, "#") for name in unknown]
    hint = f"Nearest: {listed(name.replace(SEPARATOR, '#') for name in near)}. " if near else ""
    raise UnknownSettingError(
        f"{count(len(unknown), 'setting')} that no configuration declares and nothing refers to: {listed(shown)}. "
        f"{hint}Correct the option or the overlay; an entry of your own for later begins with an underscore."
    )


def refuse_dangling(
    config: Mapping[str, Any], steps: tuple[str, ...], options: Mapping[str, str | None] | None = None
) -> None:
    """Refuses values that refer to entries that there are not, as far as a workflow needs them.

    Args:
        config: as it is merged.
        steps: ids of what is evaluated.
        options: as typed; they tell which file or option a value is from.

    Raises:
        UnknownSettingError: with the entry, where it is from, and the nearest names.
    """
    for key in sorted(_reached(config, steps)):
        for name in sorted(_references(entry_at(config, key.split(SEPARATOR)))):
            if name.split(SEPARATOR)[0] == ConfigParser.meta_key or has_entry(config, name.split(SEPARATOR)):
                continue
            near = nearest(name, _ids(config))
            hint = f"Nearest: {listed(each.replace(SEPARATOR, '#') for each in near)}. " if near else ""
            raise UnknownSettingError(
                f"{_origin(key, options or {})} refers to @{name.replace(SEPARATOR, '#')}, which there is not. {hint}"
                "Correct it; a text that begins with @ is written \"$'@...'\"."
            )


def refuse_other_kinds(
    config: Mapping[str, Any], kinds: Mapping[str, set[str]], options: Mapping[str, str | None] | None = None
) -> None:
    """Refuses texts for numbers, numbers for lists and the like, and numbers beyond any sense, over which networks
    would trip in words of their own.

    Args:
        config: as it is merged. Expressions and references may become anything, and are not looked at.
        kinds: of :func:`declared_kinds`.
        options: as for :func:`refuse_dangling`.

    Raises:
        UnknownSettingError: with the setting, where it is from, and what was expected.
    """
    options = options or {}
    for key, value in config.items():
        if key in NEEDED and kind_of(value) == "text" and not value.strip():
            raise UnknownSettingError(
                f"{_origin(key, options)} is empty, expected a path. Is a variable of the shell not set?"
            )
        if key in AS_TYPED and key in options:  # whatever it was read as, its text is what counts
            continue
        expected = expected_instead(key, value, kinds.get(key, set()))
        if expected:
            shown = value if isinstance(value, float) else json.dumps(value, default=str)[:200]
            raise UnknownSettingError(f"{_origin(key, options)} is {shown}, expected {expected}. Correct it.")


def write_whole_numbers(parser: ConfigParser, keys: Set[str]) -> None:
    """Writes whole numbers as such where a configuration has them as 3.0, or as 1e3, which JSON and the command line
    read as one, and over which what takes them would trip.

    Args:
        parser: of a configuration that is parsed, and of which none of these settings is evaluated yet.
        keys: of :func:`declared_whole_numbers`.
    """
    config, items = parser.get(), parser.ref_resolver.items
    for key in keys & config.keys():
        whole = as_whole_number(config[key])
        parts = enumerate(whole) if isinstance(whole, (list, tuple)) else ()
        config[key] = whole
        # parsing has copied all into items, an element of a list into one of its own
        for name, value in [(key, whole), *((f"{key}{SEPARATOR}{place}", part) for place, part in parts)]:
            if name in items:
                items[name].update_config(value)


def refuse_no_device(config: Mapping[str, Any], options: Mapping[str, str | None]) -> None:
    """Refuses a device that there is not, where a configuration names one.

    Args:
        config: as it is merged.
        options: as for :func:`refuse_dangling`.

    Raises:
        UnknownSettingError: with the setting, and where it is from.
    """
    for key in ("device", "volume_device"):
        name = config.get(key)
        if not isinstance(name, (str, int)) or kind_of(name) is None:
            continue
        try:
            torch.empty(0, device=torch.device(name))
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:  # each kind says it otherwise
            gpus = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count())) or "no GPU"
            raise UnknownSettingError(
                f"{_origin(key, options)} is {json.dumps(name)}, which cannot be had here; there is cpu, and {gpus}. "
                "Correct it."
            ) from error


def refuse_other_values(config: Mapping[str, Any], options: Mapping[str, str | None]) -> None:
    """Refuses label values that somebody typed for an inference: label maps hold the place of each organ, whatever the
    values in the labels of the training were, as its overlay may still say.

    Args:
        config: as it is merged.
        options: as typed.

    Raises:
        UnknownSettingError: with the values that would be written.
    """
    organs = config.get("label_map")
    if "prior_settings" not in config or "label_map" not in options or not isinstance(organs, Mapping):
        return
    written = {organ: place for place, organ in enumerate(organs, 1)}
    if dict(organs) != written:
        raise UnknownSettingError(
            f"--label_map is {json.dumps(organs, default=str)[:200]}, but results have the values "
            f"{json.dumps(written)[:200]}, in the order of the model's organs. Leave it out, or change them later."
        )


def refuse_no_start(config: Mapping[str, Any], options: Mapping[str, str | None]) -> None:
    """Refuses a file to start a training from that somebody named and that is not there. The bundle's own, which an
    expression names, may be left out: a training then starts from scratch.

    Args:
        config: as it is merged.
        options: as for :func:`refuse_dangling`.

    Raises:
        MissingFileError: with the setting, and where it is from.
    """
    start = config.get(_START)
    if kind_of(start) in ("text", "number") and not Path(str(start)).is_file():
        raise MissingFileError(
            f"{_origin(_START, options)} is '{start}', which is not there. Name a trained prior, such as model.pt, or "
            "set it to null in an overlay to start from scratch."
        )


def declared_kinds(folder: str | Path) -> dict[str, set[str]]:
    """Kinds of the values that the configurations in a folder, and all of the bundle's, give to each setting.

    Args:
        folder: with the JSON files of workflows.
    """
    kinds: dict[str, set[str]] = {}
    for key, value in _declared(folder):
        kind = "path" if isinstance(value, str) and _PATH.search(value) else kind_of(value)
        if kind is not None:
            kinds.setdefault(key, set()).add(kind)
    return kinds


def declared_whole_numbers(folder: str | Path) -> set[str]:
    """Settings to which the same configurations give whole numbers alone, or lists of them.

    Args:
        folder: as for :func:`declared_kinds`.
    """
    return whole_numbers(_declared(folder))


def _declared(folder: str | Path) -> Iterator[tuple[str, Any]]:
    files = [path for path in (BUNDLE / "configs").rglob("*.json") if path.name != "metadata.json"]
    for content in (*_workflows(folder), *contents(files)):
        recorded = content.get("prior_settings")
        yield from content.items()
        yield from recorded.get("otherwise", {}).items() if isinstance(recorded, Mapping) else ()


def _origin(name: str, options: Mapping[str, str | None]) -> str:
    """An entry, and where it is from: as an option, or behind the last of the files that has it."""
    key, shown = name.split(SEPARATOR)[0], name.replace(SEPARATOR, "#")
    if any(on_top(option) == key for option in options):
        return f"--{shown}"
    found = ""
    for file in map(Path, config_files(options.get("config_file"))):
        for content in contents([file]):
            if any(on_top(each) == key for each in content):
                found = f"'{file}': "
    return found + shown


def without_effect(config: Mapping[str, Any], steps: tuple[str, ...], options: list[str]) -> list[str]:
    """Those of the options on which none of a workflow's steps depends.

    Args:
        config: as it is merged.
        steps: ids of what is evaluated.
        options: ids of settings.
    """
    options = [ReferenceResolver.normalize_id(option) for option in options]
    options = [option for option in options if option not in OF_RUN | _OF_TRACKING and option[:1] != "_"]
    reached = _reached(config, steps)
    return [
        option.replace(SEPARATOR, "#")
        for option in options
        if not any(_within(option, name) or _within(name, option) for name in reached)
    ]


def _reached(config: Mapping[str, Any], steps: tuple[str, ...]) -> set[str]:
    """Ids of all that a workflow's steps depend on, of entries that there are not too."""
    reached, waiting = set(), [step for step in (*steps, "imports") if step in config]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _references(entry_at(config, name.split(SEPARATOR)))
    return reached


def _running() -> ConfigWorkflow | None:
    """The workflow that is evaluating its configuration: MONAI hands it to nothing that it evaluates."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _ids(content: Mapping[str, Any]) -> Iterator[str]:
    """Ids of entries: those on top, and within groups of parts, such as ``train``."""
    for key, value in content.items():
        yield key
        parts = value.values() if isinstance(value, Mapping) and "_target_" not in value else ()
        if any(isinstance(part, Mapping) and "_target_" in part for part in parts):
            yield from (f"{key}{SEPARATOR}{part}" for part in value)


def _references(value: Any) -> set[str]:
    """Ids that a piece of configuration refers to."""
    if isinstance(value, str):
        return set(ReferenceResolver.match_refs_pattern(value))
    pieces = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return {name for piece in pieces for name in _references(piece)}


def _referred(config: Mapping[str, Any]) -> set[str]:
    """The same of a whole configuration, with all that these lie in."""
    found: set[str] = set()
    for name in _references(config):
        parts = name.split(SEPARATOR)
        found |= {SEPARATOR.join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(other + SEPARATOR)
