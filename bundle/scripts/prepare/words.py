"""Messages about data in the words of the command that is running: the same problems have other options elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DatasetError

# what the configurations call a thing, and what a command calls it
FOLDER = {
    r"(--)?\bimage_pattern\b": "--image",
    r"(--)?\blabel_pattern\b": "--label",
    r"(--)?\blabel_map\b": "--label_map",
    r"(--)?\bbackground_values\b": "--background_values",
    r"Set it with --dataset_dir;[^\n]*": "Correct the path of the folder.",
    r"--dataset_dir": "the folder",
    r", or name other cases in train_cases or test_cases": "",
    r" \(train_cases, test_cases\), or exclude fewer": "",
}
DECATHLON = {
    r", or make image_pattern and label_pattern name different files": "",
    r"\blabel_map\b": 'the "labels" of dataset.json',
    r"(--)?\bbackground_values\b": "--background_values",
    **{key: FOLDER[key] for key in FOLDER if "cases" in key},
}


@contextmanager
def in_words_of(words: dict[str, str]) -> Iterator[None]:
    """Raises errors about data again, in other words.

    Args:
        words: by regular expressions, in order.
    """
    try:
        yield
    except (DatasetError, FileNotFoundError) as error:
        message = str(error)
        for pattern, replacement in words.items():
            message = re.sub(pattern, replacement, message)
        raise type(error)(message) from error
