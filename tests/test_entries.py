"""Entries of a configuration by their places."""

import pytest
from scripts.entries import entry_at, has_entry

CONFIG = {"train": {"handlers": [{"name": "a"}, "b"], "seed": None}, "organs": ("spleen",)}


@pytest.mark.parametrize(
    "parts, value, there",
    [
        (["train", "handlers", "0", "name"], "a", True),
        (["train", "handlers", "1"], "b", True),
        (["train", "handlers", "2"], None, False),
        (["train", "handlers", "last"], None, False),
        (["train", "seed"], None, True),
        (["train", "seed", "deeper"], None, False),
        (["nothing"], None, False),
        (["nothing", "deeper"], None, False),
    ],
)
def test_an_entry_that_is_null_is_there_and_one_that_is_missing_is_not(parts, value, there):
    assert entry_at(CONFIG, parts) == value
    assert has_entry(CONFIG, parts) is there


def test_the_place_without_parts_is_the_whole():
    assert entry_at(CONFIG, []) is CONFIG
