"""Writes docs/configuration.md: every setting of every configuration, from the JSON files and docs/settings.json.

From the repository's root:

    python docs/make_configuration.py

The values come from ``bundle/configs``; docs/settings.json has what each means, and its unit. Every key at the top of a
file is described there as a setting or as a part, an object that settings are handed to; and so is every number, switch
and name within the parts in :data:`OPEN` (``scheduler#beta_start``). One without a description is an error, and so is
a description of what is in no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, DESCRIPTIONS, PAGE = ROOT / "bundle/configs", ROOT / "docs/settings.json", ROOT / "docs/configuration.md"
# in the order in which a setting's default is looked for; the others are overlays of these, or stand by themselves
WORKFLOWS = ("train", "evaluate", "inference")
# what a workflow does, in the files' own words, and not a setting
STEPS = {"imports", "initialize", "run", "finalize", "training", "evaluating", "inferring", "pretraining"}
# parts whose literal arguments are settings; of other parts they are wiring
OPEN = {"intensity", "scheduler", "backbone", "loss", "quality"}
OPEN_IN_PRETRAINING = {"dataset", "network", "optimizer", "lr_scheduler", "backbone"}
Configs = Mapping[str, Mapping[str, Any]]

HEAD = """# Configuration

Every setting of every configuration in `bundle/configs`. This page is written by `python docs/make_configuration.py`
from these files and [settings.json](settings.json).

A setting is changed on the command line (`--iterations 1000`, `--quality#max_jump 0.7`), or in an overlay, a JSON file
of your own that comes later in the list of `--config_file`. Values that begin with `$` are Python expressions, and
`@name` is the value of another setting. A setting that names nothing is an error.

Settings that belong to a prior (backbone, image size, intensity, organs, diffusion, ...) are recorded in its file, and
inference takes them from there unless an overlay or an option says otherwise; the defaults here are those of a prior
whose file records nothing. The one that ships records others of `named_memories`, `body_fill`, `body_air`,
`solid_organs` and `encode_batch_size`.
"""

AUGMENTATION = """The transforms of `train#augmentation`, in their order. An argument is changed by its number:
`--train#augmentation#transforms#1#prob 0.5`. Of three values the last is of the slices' direction."""

OVERLAYS = "The files that come with the bundle. A later file in the list of `--config_file` overrules those before it."

PARTS = """What the settings are handed to. A part can be replaced as a whole in an overlay, or one of its arguments by
`part#argument`; the arguments are in its class's docstring."""

PRETRAINED = """A configuration by itself, whose settings are its own: what they have made is told by the
[model card](../bundle/models/README.md)."""
OVERLAID = """An overlay of `pretrain_anatomy.json`, whose other settings hold here too, but for those of its stages, of
shapes, of its prior and of naming. Within its parts it changes {}."""


def read_configs(folder: Path = CONFIGS) -> dict[str, dict[str, Any]]:
    """The content of each file, by its path below the folder without the suffix; not what describes the bundle."""
    files = sorted(path for path in folder.rglob("*.json") if path.name != "metadata.json")
    return {path.relative_to(folder).with_suffix("").as_posix(): _read(path) for path in files}


def _read(path: Path) -> dict[str, Any]:
    """A file's content; what is a prior's to say, as it is where the prior says nothing."""
    content = json.loads(path.read_text("utf-8"))
    for key, value in content.get("prior_settings", {}).get("otherwise", {}).items():
        if str(content.get(key)).startswith("$@prior_settings"):
            made = isinstance(value, Mapping)
            content[key] = {name: item for name, item in value.items() if name != "_mode_"} if made else value
    return content


def keys_of(config: Mapping[str, Any], opened: set[str]) -> dict[str, Any]:
    """What has to be described of a file, with its values; not the steps of a workflow, nor changes within parts."""
    keys = {key: value for key, value in config.items() if key not in STEPS and key[0] != "+" and "#" not in key}
    for part in opened & keys.keys():
        for argument, value in keys[part].items():
            wiring = isinstance(value, (Mapping, list)) or str(value)[:1] in ("@", "$", "%")
            if not wiring and argument not in ("_target_", "keys"):
                keys[f"{part}#{argument}"] = value
    return keys


def check(configs: Configs, descriptions: Mapping[str, Any]) -> None:
    """Whether the descriptions are of what there is.

    Raises:
        ValueError: what is not described, described twice, or not there.
    """
    settings = [key for group in descriptions["groups"].values() for key in group]
    parts, alone = descriptions["parts"], descriptions["pretraining"]
    overlays = {_family(name) for name in configs} - {*WORKFLOWS, *alone}
    there = {key for name in configs if name not in alone for key in keys_of(configs[name], OPEN)}
    missing = there - {*settings, *parts} | overlays - {*descriptions["overlays"]}
    stale = {*settings} - there | {*descriptions["overlays"]} - overlays | {*alone} - {*configs}
    for name in alone.keys() & configs.keys():
        keys = {*keys_of(configs[name], OPEN_IN_PRETRAINING)}
        missing |= keys - {*alone[name], *parts}
        stale |= {*alone[name]} - keys
        there |= keys
    problems = {
        "not described": missing,
        "described twice": {key for key in settings if settings.count(key) > 1 or key in parts},
        "in no configuration": stale | {*parts} - there,
    }
    found = [f"{what}: {', '.join(sorted(keys))}" for what, keys in problems.items() if keys]
    if found:
        remedy = "Mend it, then run `python docs/make_configuration.py`."
        raise ValueError(f"docs/settings.json: {'; '.join(found)}. {remedy}")


def page(configs: Configs, descriptions: Mapping[str, Any]) -> str:
    """The whole page."""
    check(configs, descriptions)
    alone = descriptions["pretraining"]
    usual = {name: keys_of(config, OPEN) for name, config in configs.items() if name not in alone}
    lines = [HEAD]
    for title, group in descriptions["groups"].items():
        rows = [_row(key, *group[key], usual) for key in group]
        lines += [f"## {title}", "", *_table("setting", "meaning", "unit", "default", "changed by"), *rows, ""]
    transforms = enumerate(configs["train"]["train"]["augmentation"]["transforms"])
    rows = [f"| {number} | {_shown(transform)} | {_arguments(transform)} |" for number, transform in transforms]
    lines += ["## Augmentation", "", AUGMENTATION, "", *_table("number", "transform", "arguments"), *rows, ""]
    lines += ["## Overlays", "", OVERLAYS, "", *_table("overlay", "what it is for", "what it sets")]
    for overlay, purpose in descriptions["overlays"].items():
        keys = dict.fromkeys(key for name in configs if _family(name) == overlay for key in configs[name])
        lines.append(f"| `{overlay}` | {purpose} | {', '.join(f'`{key}`' for key in keys)} |")
    lines += ["", "## Parts", "", PARTS, "", *_table("part", "what it is", "class")]
    for part, purpose in descriptions["parts"].items():
        lines.append(f"| `{part}` | {purpose} | {_classes(part, configs)} |")
    for name, group in alone.items():
        own = keys_of(configs[name], OPEN_IN_PRETRAINING)
        rows = [f"| `{key}` | {meaning} | {unit} | {_shown(own[key])} |" for key, (meaning, unit) in group.items()]
        changes = ", ".join(f"`{key}`" for key in configs[name] if key[0] == "+" or "#" in key)
        said = OVERLAID.format(changes) if changes else PRETRAINED
        lines += ["", f"## `{name}`", "", said, "", *_table("setting", "meaning", "unit", "default"), *rows]
    return "\n".join([*lines, ""])


def _table(*columns: str) -> tuple[str, str]:
    """The first two lines of a table."""
    return f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"


def _family(name: str) -> str:
    """A configuration's name on the page, where all splits are one."""
    return "splits/*" if name.startswith("splits/") else name


def _row(key: str, meaning: str, unit: str, usual: Configs) -> str:
    """A setting's row: its values in the workflows, or where several differ each with its file; then the overlays'."""
    files: dict[str, list[str]] = {}
    for name in WORKFLOWS:
        if key in usual[name]:
            files.setdefault(_shown(usual[name][key]), []).append(name)
    defaults = list(files)
    if len(files) > 1:
        defaults = [f"{value} ({', '.join(names)})" for value, names in files.items()]
    changes: dict[str, list[str]] = {}
    for name, keys in usual.items():
        if name not in WORKFLOWS and key in keys and _shown(keys[key]) != next(iter(files), None):
            value = "" if name.startswith("splits/") else _shown(keys[key])
            changes.setdefault(value, []).append(f"`{_family(name)}`")
    changed = [": ".join(filter(None, [", ".join(dict.fromkeys(names)), value])) for value, names in changes.items()]
    return f"| `{key}` | {meaning} | {unit} | {'; '.join(defaults)} | {'; '.join(changed)} |"


def _shown(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"`{value['_target_'].rpartition('.')[2]}`"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "`{}`".format(text.replace("|", "\\|")) if text else "empty"


def _arguments(transform: Mapping[str, Any]) -> str:
    given = {key: value for key, value in transform.items() if key not in ("_target_", "keys", "label_key")}
    return ", ".join(f"`{key}`: {_shown(value)}" for key, value in given.items())


def _classes(part: str, configs: Configs) -> str:
    """The classes that a part may be of, with the file where it is not the only one."""
    targets: dict[str, list[str]] = {}
    for name, config in configs.items():
        value = config.get(part)
        if isinstance(value, Mapping) and "_target_" in value:
            targets.setdefault(value["_target_"], []).append(name)
    if len(targets) == 1:
        return f"`{next(iter(targets))}`"
    return "; ".join(f"`{target}` ({', '.join(names)})" for target, names in targets.items())


def main() -> None:
    descriptions = json.loads(DESCRIPTIONS.read_text("utf-8"))
    PAGE.write_text(page(read_configs(), descriptions), encoding="utf-8")


if __name__ == "__main__":
    main()
