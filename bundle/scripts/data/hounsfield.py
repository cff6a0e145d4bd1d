"""Whether the numbers of an image are Hounsfield units, by what any part of a body has: fat and air below 0, and
soft tissue about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor

_SLICES = 16  # looked at together, where only numbers of voxels are asked for
_ENOUGH = 2_000_000  # voxels, where shares of one in a thousand are asked for
# shares of voxels that Hounsfield units have below: fat and air, in any part of a body
_BELOW_WATER, _LEAST_BELOW_WATER = -20.0, 1e-3
_SOFT, _LEAST_SOFT = (-200.0, 300.0), 1e-3  # between which all organs lie, with contrast agent and without
# fat and all organs without air, and their share of what is denser than lung, once noise is averaged: 0.7 and more in
# scans of bodies and heads, noisy ones too, and 0.42 at most in MR to which somebody has given air at -1000
_SOLID, _TISSUE, _LEAST_TISSUE = -500.0, (-150.0, 150.0), 0.5
_LEAST_TOO_LOW, _LEAST_TOO_HIGH = 5e-3, 0.05  # shares of voxels beyond any air, and beyond any bone and metal


def no_hounsfield_units(image: Any) -> str | None:
    """Why voxels cannot be Hounsfield units, in which fat and air are below 0, and soft tissue about it; None if they
    may be.
    """
    values = as_tensor(image)
    if _share(values, lambda slab: slab < _BELOW_WATER) >= _LEAST_BELOW_WATER:
        spread = sample(values)
        if _share(values, lambda slab: (slab > _SOFT[0]) & (slab < _SOFT[1])) >= _LEAST_SOFT:
            found = _turned(spread) or _scaled(spread)
            return found and _said(*extremes(values), found)
        found = _scaled(spread) or "an intercept that was applied twice"
        return _said(*extremes(values), found, rare=f"from {_SOFT[0]:g} to {_SOFT[1]:g}")
    low, high = extremes(values)
    if low >= 0 and high <= 1:
        kind = "scaled to 0...1"
    elif low >= 0 and high <= 255:
        kind = "grey values of a picture"
    elif low >= 0 and high > 1100:
        kind = "values as a scanner stores them, 1024 too high"
    else:
        kind = "of another unit"
    return _said(low, high, kind, rare="below 0") + ", or scale MR by configs/mr.json"


def _said(low: float, high: float, found: str, *, rare: str | None = None) -> str:
    hardly = "" if rare is None else f", with hardly any {rare},"
    return (
        f"values from {low:g} to {high:g}{hardly} are no Hounsfield units ({found}?), which a window of CT expects; "
        "its label map may be wrong. Export the original series"
    )


def _turned(values: Tensor) -> str | None:
    """Whether it is as if air were the brightest and bone the darkest."""
    low, high = extremes(values)

    def has_no_air() -> bool:  # of padding, which is of one value, nothing is air
        return _share(values, lambda slab: (slab < -500) & (slab > low)) < bright / 10

    # of bone there is the less the denser it is; and about it is more soft tissue than fat
    bright = _between(values, 700, 1100) if high >= 700 else _share(values, lambda slab: slab == high)
    if high >= 700:
        is_air = bright >= 0.01 and bright >= 3 * _between(values, 350, 700)
    else:  # clipped
        is_air = bright >= 0.1 and _share(values, lambda slab: slab == low) < 0.01
    turned = is_air and has_no_air() and _between(values, -90, -10) > _between(values, 10, 90)
    return "the sign is turned" if turned else None


def _scaled(values: Tensor) -> str | None:
    """Whether it is as if numbers were multiplied or divided by ten, or by more."""
    low, high = extremes(values)
    if low < -3100 and _share(values, lambda slab: (slab < -3100) & (slab > low)) >= _LEAST_TOO_LOW:
        far = values[(values < -3100) & (values > low)].double().mean().item()
        return f"{10 ** max(1, round(math.log10(-far / 1000))):g} times too large"
    if high > 5000 and _share(values, lambda slab: (slab > 5000) & (slab < high)) >= _LEAST_TOO_HIGH:
        return "far too large, and the sign is turned"
    # without air: fat where air would be, and hardly anything where soft tissue would be
    soft = _between(values, 200, 900)
    if (
        soft >= 0.05
        and _share(values, lambda slab: (slab >= -1300) & (slab < -600) & (slab > low)) >= 1e-3
        and soft > 5 * _between(values, -150, 150)
    ):
        return "10 times too large"
    # air where fat would be, nothing below it, and the whole body about 0
    air = _between(values, -108, -88)
    if (
        air >= 0.01
        and _share(values, lambda slab: (slab < -108) & (slab > low)) < 0.01 * air
        and _between(values, -16, 30) >= 0.75 * _share(values, lambda slab: slab >= -60)
    ):
        return "a tenth of them"
    return None


def hounsfield_units(image: Any) -> str | None:
    """Why voxels look like Hounsfield units, though they are scaled like MR; None if they do not."""
    values = as_tensor(image)
    if _share(values, lambda slab: (slab >= -1100) & (slab < -900)) < 0.01:
        return None
    # padding of MR may be -1000 as well, but is of one value, and has no fat beside it
    fat = _share(values, lambda slab: (slab >= -200) & (slab < -20))
    if fat < 0.005 and is_single(values, -1100, -900):
        return None
    # and of MR with an intercept of CT there is air, but nothing lies about water
    calm = _averaged(values)
    if _between(calm, *_TISSUE) < _LEAST_TISSUE * _share(calm, lambda slab: slab >= _SOLID):
        return None
    return (
        f"values from {values.min().item():g} to {values.max().item():g} look like Hounsfield units, but are scaled "
        "like MR; its label map may be wrong. CT needs configs/ct.json"
    )


def as_tensor(image: Any) -> Tensor:
    """The voxels of an image, over the same memory where that is possible.

    Not so of one byte each: compared with such, PyTorch makes a byte of -900 too, which is 124.
    """
    if isinstance(image, np.ndarray):  # which may run the other way round in memory, or bytes in each number
        return torch.from_numpy(np.ascontiguousarray(image, np.float32))
    values = image.as_tensor() if isinstance(image, MetaTensor) else image
    return values.short() if values.dtype in (torch.int8, torch.uint8) else values


def _averaged(values: Tensor) -> Tensor:
    """Some slices along the last axis, each voxel the mean of nine in its slice, where there are as many."""
    step = -(-values.shape[-1] // _SLICES)
    slices = values[..., ::step].reshape(1, *values.shape[-3:-1], -1).permute(3, 0, 1, 2).float()
    return F.avg_pool2d(slices, 3, stride=1, padding=1, count_include_pad=False).permute(1, 2, 3, 0)


def sample(values: Tensor) -> Tensor:
    """Evenly spread voxels, enough to know shares by."""
    step = max(1, round((values.numel() / _ENOUGH) ** (1 / 3)))
    return values[..., ::step, ::step, ::step].contiguous()


def _share(values: Tensor, holds: Callable[[Tensor], Tensor]) -> float:
    """The share of voxels of which something holds, counted a few slices at a time."""
    return sum(int(holds(slab).sum()) for slab in values.split(_SLICES, -1)) / values.numel()


def _between(values: Tensor, low: float, high: float) -> float:
    """The share of voxels in a range."""
    return _share(values, lambda slab: (slab >= low) & (slab < high))


def extremes(values: Tensor) -> tuple[float, float]:
    """The lowest and the highest value, a few slices at a time: PyTorch would copy a volume in another order."""
    slabs = values.split(_SLICES, -1)
    return min(slab.min().item() for slab in slabs), max(slab.max().item() for slab in slabs)


def is_single(kept: Tensor, low: float, high: float) -> bool:
    """Whether all values in a bin are the same."""
    inside = kept[(kept >= low) & (kept <= high)]
    return bool(len(inside)) and bool((inside == inside[0]).all())
