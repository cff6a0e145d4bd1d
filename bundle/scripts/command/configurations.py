"""Configurations and options, read before MONAI reads them.

MONAI reads and merges them before it evaluates anything, and so before the bundle is there to put an error into words:
a comma too many in an overlay, or a value ``%x`` that names nothing, would end in a traceback without the file's name.
What is said here is what MONAI would trip over, and a key that stands twice, of which it takes the last. Whether the
settings exist, what ``@x`` refers to, and whether all fits together, the workflow says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

from ..arguments import OF_RUN, refuse_nothing
from ..entries import SEPARATOR, entry_at, has_entry
from ..errors import one_line
from ..shell import config_files
from .usage import UsageError, unknown

_MACRO, _MERGE, _META = "%", "+", "_meta_"
_MACRO_FILE = re.compile(r"(.*\.(?:json|yaml|yml))(?:::(.*))?$", re.IGNORECASE)


def refuse_unreadable(files: Sequence[Path], options: Mapping[str, str]) -> None:
    """Refuses configurations and options that MONAI could not read, merge or resolve.

    Args:
        files: configurations, as they are merged; the bundle's own, and those of a user.
        options: overrides, as typed.

    Raises:
        UsageError: with the file or option, what was found, and what to do.
        UnknownSettingError: an option is nothing.
    """
    refuse_nothing(options)
    merged: dict[str, Any] = {}
    given: list[tuple[str, Any]] = []  # each value with where it is from
    for file in files:
        for key, value in read_configuration(file).items():
            _put(merged, key, value, f"'{file}'")
            given.append((f"'{file}': {one_line(key)}", value))
    for name, text in options.items():
        if name not in OF_RUN:
            value = DefaultParseValue(text)
            _put(merged, name, value, f"--{name}")
            given.append((f"--{name}", value))
    for place, value in given:
        for text in _texts(value):
            _check_macro(text.replace("#", SEPARATOR), merged, place)


def refuse_said(options: Mapping[str, str], said: Mapping[str, str]) -> None:
    """Refuses settings that a command says itself, as options or in overlays of the user's own: one of the two would
    be passed over without a word.

    Args:
        options: for the workflow, as typed.
        said: of each setting, what to do instead.

    Raises:
        UsageError: one of them is given.
    """
    for name in options:
        if remedy := said.get(_whole_of(name)):
            raise UsageError(f"--{name}: {remedy}")
    for file in (each for option in ("config_file", "args_file") for each in config_files(options.get(option))):
        for name in read_configuration(Path(file).expanduser()):
            if remedy := said.get(_whole_of(name)):
                raise UsageError(f"'{file}' has {one_line(name)}: {remedy}")


def read_configuration(file: Path) -> dict[str, Any]:
    """The content of a JSON or YAML file.

    Raises:
        UsageError: it is not there, cannot be read, or holds something else.
    """
    if file.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise UsageError(f"'{file}' is no configuration by its name, expected one that ends in .json, .yaml or .yml.")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_without_twins) if file.suffix.lower() == ".json" else _yaml(text)
    except FileNotFoundError as error:
        raise UsageError(f"There is no configuration '{file}'. Correct its name.") from error
    except OSError as error:
        raise UsageError(f"'{file}' cannot be read ({error.strerror}). Name a file that can.") from error
    except (ValueError, RecursionError) as error:
        problem = "it is empty" if _is_empty(file) else f"it is no {_kind(file)} ({error})"
        raise UsageError(f"'{file}' is no configuration: {problem}. Correct it there.") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"'{file}' is no configuration: it holds {_named(content)}, expected settings and their values, such as "
            '{"iterations": 1500}. Correct it there.'
        )
    odd = [key for key in content if not isinstance(key, str)]
    if odd:
        raise UsageError(f"'{file}': the setting {odd[0]!r} is no text. Put it into quotes.")
    return content


def _whole_of(name: str) -> str:
    """The setting that a name is of, or is a part of: ``train`` of ``+train#optimizer``."""
    return name.removeprefix(_MERGE).replace("#", SEPARATOR).split(SEPARATOR)[0]


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which MONAI allows no key twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' stands there twice")
        found[key] = value
    return found


def _yaml(text: str) -> Any:
    import yaml  # few overlays are in it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _is_empty(file: Path) -> bool:
    return not file.read_bytes().strip()


def _kind(file: Path) -> str:
    return "JSON" if file.suffix.lower() == ".json" else "YAML"


def _named(content: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(content), "a number")


def _put(merged: dict[str, Any], key: str, value: Any, place: str) -> None:
    """Merges a setting as MONAI does.

    Raises:
        UsageError: it belongs into something that there is not, or that has no parts.
    """
    name = key.removeprefix(_MERGE)
    *parents, last = name.replace("#", SEPARATOR).split(SEPARATOR)
    target = entry_at(merged, parents)
    if not (isinstance(target, dict) or isinstance(target, list) and last.isdigit() and int(last) < len(target)):
        whole = "#".join(parents)
        if target is None:
            hint = unknown("setting", whole, _ids(merged))
            raise UsageError(f"{place}: {one_line(name)} is a part of what is not there. {one_line(hint)}")
        found = f"has {len(target)} parts" if isinstance(target, list) else "has no parts"
        raise UsageError(f"{place}: there is no {one_line(name)}, since {one_line(whole)} {found}. Correct the name.")
    place_in = last if isinstance(target, dict) else int(last)
    before = target.get(last) if isinstance(target, dict) else target[int(last)]
    if key.startswith(_MERGE) and before is not None:
        if not isinstance(value, (dict, list)) or type(value) is not type(before):
            raise UsageError(
                f"{place}: {one_line(key)} adds to {_kind_of(before)}, and is {_kind_of(value)}. Give the same kind, "
                f"or replace it: {one_line(name)}."
            )
        value = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else [*before, *value]
    target[place_in] = value  # type: ignore[index]


def _kind_of(value: Any) -> str:
    return "a group" if isinstance(value, dict) else _named(value)


def _ids(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        yield key
        if isinstance(value, dict) and "_target_" not in value:
            yield from (f"{key}#{part}" for part in value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _texts(each)


def _check_macro(text: str, merged: Mapping[str, Any], place: str) -> None:
    """Refuses a text ``%x`` or ``%file.json::x`` that names what is not there."""
    if not text.startswith(_MACRO):
        return
    found = _MACRO_FILE.match(text[1:])
    file, name = (found[1], found[2] or "") if found else (None, text[1:])
    if name.startswith(SEPARATOR):  # relative to its place
        return
    try:
        config = merged if file is None else read_configuration(Path(file))
    except UsageError as error:
        raise UsageError(f"{place} is '{one_line(text)}', which names a configuration. {error}") from error
    parts = name.split(SEPARATOR)
    if name and parts[0] != _META and not has_entry(config, parts):
        shown = "#".join(parts)
        raise UsageError(
            f"{place} is '{one_line(text[:200])}', in which %{one_line(shown)} stands for another setting. "
            f"{one_line(unknown('setting', shown, _ids(config)))} A text that begins with % is written \"$'%...'\"."
        )
