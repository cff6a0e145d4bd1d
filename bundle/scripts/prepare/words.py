"""Messages about data in the words of the command that is running: the same problems have other options elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DatasetError, MissingFileError

# what stands in quotes, such as a path, is somebody's own; an apostrophe within a word ends no quote
_QUOTED = re.compile(r"((?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w))*'(?!\w))")


def _setting(name: str) -> str:
    """A setting of the configurations, but no folder or file that is called so."""
    return rf"(?<![\w/\\.-])(?:--)?{name}(?![\w/\\-]|\.\w)"


# what the configurations call a thing, and what a command calls it
FOLDER = {
    _setting("image_pattern"): "--image",
    _setting("label_pattern"): "--label",
    _setting("label_map"): "--label_map",
    _setting("background_values"): "--background_values",
    r"Set it with --dataset_dir;[^\n]*": "Correct the path of the folder.",
    _setting("dataset_dir"): "the folder",
    r", or name other cases in train_cases or test_cases": "",
    r" \(train_cases, test_cases\), or exclude fewer": "",
}
DECATHLON = {
    r", or make image_pattern and label_pattern name different files": "",
    _setting("label_map"): 'the "labels" of dataset.json',
    _setting("background_values"): "--background_values",
    **{key: FOLDER[key] for key in FOLDER if "cases" in key},
}


@contextmanager
def in_words_of(words: dict[str, str]) -> Iterator[None]:
    """Has errors about data say the same in other words. What stands in quotes, such as paths, is left as it is.

    Args:
        words: by regular expressions, in order.
    """
    try:
        yield
    except (DatasetError, MissingFileError) as error:
        parts = _QUOTED.split(str(error))  # every second one is quoted
        for place in range(0, len(parts), 2):
            for pattern, replacement in words.items():
                parts[place] = re.sub(pattern, replacement, parts[place])
        error.args = ("".join(parts),)  # the same error: of several in a chain the first is what a user sees
        raise
