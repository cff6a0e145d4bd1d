"""What organs are called, in the bundle and elsewhere."""

from __future__ import annotations

import re

# the organs that ship with the bundle, as others call them
_SAME = {
    "kidney right": "right kidney",
    "kidney left": "left kidney",
    "r kidney": "right kidney",
    "l kidney": "left kidney",
}


def organ_named(name: str) -> str:
    """An organ's name as the bundle's own are: ``kidney_right`` is the right kidney."""
    plain = re.sub(r"[_\s]+", " ", name).strip().lower()
    return _SAME.get(plain, plain)
