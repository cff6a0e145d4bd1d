"""The page about the code's rooms shows the rooms that there are."""

from __future__ import annotations

import pytest

from docs import make_architecture as architecture

REMEDY = "run `python docs/make_architecture.py`"


def test_the_drawing_is_that_of_the_code():
    drawn = architecture.drawing(architecture.arrows_of(architecture.ROOT))

    assert architecture.DRAWING.read_text("utf-8") == drawn, REMEDY


def test_the_table_is_that_of_the_code():
    text = architecture.PAGE.read_text("utf-8")

    assert architecture.page(text, architecture.count(architecture.ROOT)) == text, REMEDY


def test_every_room_is_on_the_page():
    text = architecture.PAGE.read_text("utf-8").partition("## Rooms")[2]

    assert [room for room in architecture.arrows_of(architecture.ROOT) if f"`{room}" not in text] == []


def test_a_room_lies_one_floor_above_the_highest_that_it_imports():
    floors = architecture.floors_of({"roof": {"wall", "ground"}, "wall": {"ground"}, "ground": set(), "shed": set()})

    assert floors == [["ground", "shed"], ["wall"], ["roof"]]


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="circle.*'left', 'right'"):
        architecture.floors_of({"left": {"right"}, "right": {"left"}, "ground": set()})


def test_an_arrow_that_follows_from_others_is_pale():
    drawn = architecture.drawing({"roof": {"wall", "ground"}, "wall": {"ground"}, "ground": set()})

    lines = [line for line in drawn.splitlines() if "imports" in line]
    pale = [line for line in lines if architecture.PALE in line]
    assert len(lines) == 3 and [line.partition("<title>")[2] for line in pale] == ["roof imports ground</title></path>"]
