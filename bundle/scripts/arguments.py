"""Texts on the command line, as they were typed.

``python -m monai.bundle`` has its arguments read by Fire and by MONAI's parser of configurations: ``Doe,Jane`` becomes
a tuple, ``7`` a number, ``a#1`` becomes ``a::1``, and what begins with ``$`` is evaluated. A folder of a patient may
well be called any of these.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fire.parser import DefaultParseValue

from .entries import SEPARATOR, has_entry
from .errors import DatasetError, UnknownSettingError, nearest
from .setting_kinds import NEEDED

# arguments of `monai.bundle run` itself
OF_RUN = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    *("workflow_type", "workflow", "properties_path"),
}
# options of which the workflows take the text, whatever Fire and MONAI make of it
AS_TYPED = ("input", "output", "series", "corrections", "share")

# by the run ID, what names the bundle's configurations that have it
RUNS = {
    "training": ["configs/train.json"],
    "evaluating": ["\"['configs/train.json','configs/evaluate.json']\""],
    "inferring": ["configs/inference.json"],
    "pretraining": [f"configs/pretrain_{name}.json" for name in ("anatomy", "nano", "orientation")],
}


def as_typed(option: str, value: Any, path: bool = False) -> Any:
    """The value of an option as text, just as it was typed.

    Args:
        option: its name.
        value: what Fire and MONAI made of it, or what a configuration or a caller says; None stays None.
        path: whether it names a file or folder: ``~`` at its beginning becomes the user's own folder, which a shell
            does not do in ``--output=~/results``.

    Raises:
        DatasetError: a value that is no text and was not typed.
    """
    if value is None:
        return None
    text = next((text for text in _typed(option) if read_as(text) == value), None)
    if text is None:
        if isinstance(value, (bool, Sequence)) and not isinstance(value, str):
            raise DatasetError(
                f"--{option} is {value!r}, expected one text. Put it into two kinds of quotes: --{option} \"'...'\"."
            )
        text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return os.path.expanduser(text) if path else text


def share_numbers(share: str) -> tuple[int, int]:
    """A share of the cases, such as ``"3/16"``: its number, and how many there are.

    Raises:
        UnknownSettingError: no such text, or no share that there is.

    Example:
        >>> share_numbers("3/16")
        (3, 16)
    """
    found = re.fullmatch(r"\s*([0-9]+)\s*/\s*([0-9]+)\s*", share)
    number, shares = (int(each) for each in found.groups()) if found else (0, 0)
    if not 1 <= number <= shares:
        raise UnknownSettingError(
            f"--share is '{share}', expected the number of a share and how many there are, from 1/16 to 16/16. An "
            "array whose indices begin at 0 gives --share $((INDEX + 1))/16."
        )
    return number, shares


def refuse_expressions(options: Sequence[str]) -> None:
    """Refuses options on the command line that MONAI would evaluate, though they are to name files.

    Raises:
        DatasetError: one begins with ``$``, ``@`` or ``%``.
    """
    for option in options:
        for text in _typed(option):
            if text[:1] in ("$", "@", "%"):
                raise DatasetError(
                    f"--{option} is '{text}', which MONAI would evaluate instead of taking it for a name. Write "
                    f"'./{text}' for a file or folder of this name in the working directory."
                )


def is_nothing(text: str) -> bool:
    """Whether a text is Python's or JSON's word for nothing."""
    return text == "null" or read_as(text) is None


def refuse_nothing(options: Mapping[str, str | None]) -> None:
    """Refuses options that are ``None``, which MONAI leaves out, so that a setting stays what a configuration says, or
    ``null``, of which Fire makes a text; but for a folder of this name with images or for results.

    Args:
        options: as typed.

    Raises:
        UnknownSettingError: one is.
    """
    for name, text in options.items():
        if name in OF_RUN or text is None or not is_nothing(text) or (text == "null" and name in ("input", "output")):
            continue
        found = "of which Fire makes a text" if text == "null" else "which MONAI leaves out"
        needed = name in (*AS_TYPED, *NEEDED)
        remedy = "" if needed else ", or write '$None' in single quotes, or null in an overlay, for nothing"
        raise UnknownSettingError(
            f"--{name} is {text}, {found}. Leave the option out{remedy}; a file of this name is './{text}'."
        )


def refuse_empty(words: Sequence[str]) -> None:
    """Refuses words of a command line that are empty: a folder of this name would be the working directory.

    Raises:
        UnknownSettingError: one is.
    """
    for before, word in zip(["", *words], words):
        name, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if (equals or not name) and not value.strip():
            shown = name or (f"The word behind {before.partition('=')[0]}" if before.startswith("-") else "A word")
            raise UnknownSettingError(f"{shown} is empty, expected a value. Is a variable of the shell not set?")


def refuse_twice(words: Sequence[str]) -> None:
    """Refuses groups on a command line in which a name stands twice, of which the first would be lost.

    Raises:
        UnknownSettingError: one does.
    """
    for word in words:
        text = word.partition("=")[2] if word.startswith("--") else word
        if not text.lstrip().startswith("{"):
            continue
        try:
            nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # nothing that is read so
            continue
        groups = [[ast.unparse(key) for key in node.keys if key] for node in nodes if isinstance(node, ast.Dict)]
        if twice := sorted({name for names in groups for name in names if names.count(name) > 1}):
            raise UnknownSettingError(
                f"{twice[0]} stands twice in {text}, of which the first would be lost. Name it once; several values of "
                "an organ are a list."
            )


def given_options() -> list[str]:
    """Names of the options that ``python -m monai.bundle run`` was given; none where something else runs."""
    return list(typed_options() or {})


def typed_options() -> dict[str, str | None] | None:
    """Options that ``python -m monai.bundle run`` was given, each with its text, or with None where it has no value;
    None where something else runs.
    """
    words = sys.argv[1:]
    return options_in(words[1:]) if words[:1] == ["run"] else None


def options_in(words: Sequence[str]) -> dict[str, str | None]:
    """Options among the words of a command line, each with its text, or with None where it has no value."""
    options: dict[str, str | None] = {}
    words = list(words[: words.index("--") if "--" in words else None])  # after it come Fire's own
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name.startswith("--"):
            follows = not equals and bool(words) and not words[0].startswith("--")
            options[name[2:].replace("-", "_")] = value if equals else words.pop(0) if follows else None
    return options


def refuse_misread(options: Sequence[str]) -> None:
    """Refuses options on the command line that are to name files or folders, and that Fire or MONAI take for something
    else: ``2024`` for a number, ``a,b`` for a tuple, ``a#1`` for ``a::1``; or of which a shell has left a ``~``.

    Expressions of MONAI (``$``, ``@``, ``%``) are the user's own.

    Raises:
        DatasetError: one of them is; it is said how to write it.
    """
    for option in options:
        for text in _typed(option):
            if text[:1] in ("$", "@", "%") or is_nothing(text):  # of which refuse_nothing has words
                continue
            if text.startswith("~"):
                raise DatasetError(
                    f"--{option} is '{text}', in which nothing replaces '~'. Write '{os.path.expanduser(text)}'."
                )
            found = read_as(text)
            if found not in (text, text.strip("'\"")):  # quoted on purpose
                remedy = f"Write './{text}'." if read_as(f"./{text}") == f"./{text}" else "Choose another name."
                raise DatasetError(f"--{option} is '{text}', which the command line reads as {found!r}. {remedy}")


def _typed(option: str) -> list[str]:
    """Every value that the program was given for an option."""
    flag, values = f"--{option}", []
    for index, argument in enumerate(sys.argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name.replace("-", "_") != flag.replace("-", "_"):
            continue
        values += [value] if equals else sys.argv[index + 1 : index + 2]
    return values


def read_as(text: str) -> Any:
    """What Fire and MONAI make of a text."""
    value = DefaultParseValue(text)
    return value.replace("#", "::") if isinstance(value, str) else value


def refuse_no_run(config: Mapping[str, Any], run_id: str) -> None:
    """Refuses a run ID that the configurations do not have.

    Args:
        config: as it is merged.
        run_id: of ``python -m monai.bundle run``.

    Raises:
        UnknownSettingError: with the configurations that have it, or the nearest names.
    """
    if has_entry(config, str(run_id).replace("#", SEPARATOR).split(SEPARATOR)):
        return
    files = " or ".join(RUNS.get(str(run_id), []))
    remedy = f"Give --config_file {files}" if files else f"Nearest: {' or '.join(nearest(str(run_id), RUNS)) or 'none'}"
    raise UnknownSettingError(f"The configurations that are given have no '{run_id}' to run. {remedy}.")
