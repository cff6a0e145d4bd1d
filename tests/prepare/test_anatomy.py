"""What organs are called."""

from __future__ import annotations

import pytest
from scripts.prepare.anatomy import organ_named


@pytest.mark.parametrize("name", ["kidney_right", "Kidney Right", "right kidney", "RIGHT_KIDNEY"])
def test_an_organ_has_one_name(name):
    assert organ_named(name) == "right kidney"
