"""What a user typed, held against what there is: an option that nobody knows ends in one line with the nearest names.

Fire calls the commands, as it does MONAI's own; but it would take ``7`` for a number and ``a,b`` for a tuple, pass on
any misspelt option, and show its help in a pager. So words are looked through before it sees them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence

from ..arguments import refuse_empty
from ..errors import BundleError, nearest
from ..files import BUNDLE

SHORT = {"-o": "--output", "-m": "--model"}
# what `python -m monai.bundle run` takes itself, beside what the configurations declare
MONAI_OPTIONS = ("config_file", "logging_file", "meta_file", "args_file", "tracking")
_SWITCHES = ("overwrite", "selftest")  # options of commands themselves that mean True without a value
TRUE_OR_FALSE = ("true", "false")


class UsageError(BundleError, ValueError):
    """A command line that cannot be meant so."""

    exit_code = 2


def declared_in(configs: Iterable[str]) -> set[str]:
    """Every entry of configurations, which an option may override.

    Args:
        configs: files below ``configs``, as a command lists them.
    """
    names = set(MONAI_OPTIONS)
    for config in configs:
        names |= json.loads((BUNDLE / config).read_text(encoding="utf-8")).keys()
    return names


def checked(words: Sequence[str], own: Collection[str], declared: Collection[str]) -> list[str]:
    """The same words, each option with its value as ``--name=value``, for Fire.

    Args:
        words: after the command's name.
        own: options of the command itself.
        declared: of the configurations, passed on to the workflow; of one such as ``train#optimizer#lr`` the first
            part.

    Raises:
        UsageError: an option that is unknown, stands there twice, or has no value.
        UnknownSettingError: a word, or a value, is empty.
    """
    refuse_empty(words)
    checked_words, seen = [], set()
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        word = SHORT.get(word, word)
        if word == "-":  # which Fire would take for the end of a command
            raise UsageError("'-' names nothing that can be read. Give the name of a file or folder.")
        if not word.startswith("-"):
            checked_words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        first = re.split("#|::", name)[0]
        if not word.startswith("--") or not (name in own or first in declared):
            raise UsageError(unknown("option", word.partition("=")[0], [f"--{each}" for each in (*own, *declared)]))
        if name in seen:
            raise UsageError(f"--{name} is given twice. Give it once.")
        seen.add(name)
        if not equals:
            if not remaining or _is_option(remaining[0]):
                if name in own and name not in _SWITCHES:
                    raise UsageError(f"--{name} has no value. Write it behind the option: --{name} VALUE.")
                value = "True"
            else:
                value = remaining.pop(0)
        checked_words.append(f"--{name}={value}")
    return checked_words


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """What to say of a name that is none of ``names``, with those nearest to it."""
    near = nearest(name, names)
    hint = f"did you mean {' or '.join(near)}?" if near else "-h lists what there is."
    return f"There is no {kind} {name}; {hint}"


def only_scalars(options: dict[str, str], names: Collection[str]) -> None:
    """Refuses a switch that has swallowed a word that was to stand by itself, such as ``--overwrite scan.nii.gz``."""
    for name in names:
        if options.get(name, "true").lower() not in TRUE_OR_FALSE:
            raise UsageError(
                f"--{name} is '{options[name]}', expected True or False. Write --{name} True, or put it at the end."
            )


def switches(configs: Iterable[str]) -> list[str]:
    """Entries of configurations that are true or false."""
    found: dict[str, object] = {}
    for config in configs:
        found |= json.loads((BUNDLE / config).read_text(encoding="utf-8"))
    return [name for name, value in found.items() if isinstance(value, bool)]


def _is_option(word: str) -> bool:
    return word in SHORT or bool(re.match(r"--?[A-Za-z]", word))
