"""What organs are called."""

from __future__ import annotations

import re

import pytest
from scripts.errors import DatasetError
from scripts.prepare.anatomy import organ_named, with_known_names


@pytest.mark.parametrize("name", ["kidney_right", "Kidney Right", "right kidney", "RIGHT_KIDNEY", "Kidney_R"])
def test_an_organ_has_one_name(name):
    assert organ_named(name) == "right kidney"


@pytest.mark.parametrize(
    "given, names, said",
    [
        (["spleen", "right kidney", "Left Lobe"], ["spleen", "right kidney", "Left Lobe"], []),
        (["Renal_R", "LIVER", "aorta"], ["Renal_R", "liver", "aorta"], ["'LIVER' is called liver"]),
        (
            ["kidney_right", "liver "],
            ["right kidney", "liver"],
            ["'kidney_right' is called right kidney, 'liver ' is called liver"],
        ),
    ],
)
def test_the_organs_of_the_shipped_model_get_its_names(given, names, said):
    renamed, remarks = with_known_names({name: value for value, name in enumerate(given, 1)})

    assert renamed == {name: value for value, name in enumerate(names, 1)}
    assert remarks == [f"As in the model that ships, {each}." for each in said]


@pytest.mark.parametrize("names", [["kidney_right", "right kidney"], ["liver", "liver "], ["Right_Kidney", "r kidney"]])
def test_two_names_of_one_organ_are_refused(names):
    with pytest.raises(DatasetError, match=re.escape(f"({names[0]!r}, {names[1]!r}). Give each one name")):
        with_known_names({name: value for value, name in enumerate(names, 1)})
