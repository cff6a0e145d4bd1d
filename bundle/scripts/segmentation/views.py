"""Views of a volume, turned, scaled or mirrored in plane: segmentations of several are averaged. Not in the paper.

A prior of three training volumes errs otherwise on a slice that is turned by a few degrees, so the mean of several
views errs less than one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError

_LARGEST_SCALE = 100  # beyond it a slice is a pixel


@dataclass(frozen=True)
class View:
    """How slices are shown to the network.

    Attributes:
        degrees: that they are turned by about their centre, towards the image's x axis from its y axis.
        scale: that they are enlarged by.
        mirrored: whether left and right are exchanged, before they are turned.

    Raises:
        ValueError: no numbers, or a scale that is not positive, or that leaves nothing to be seen.
    """

    degrees: float = 0.0
    scale: float = 1.0
    mirrored: bool = False

    def __post_init__(self) -> None:
        for value in (self.degrees, self.scale):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SettingError(f"A view must be a pair of degrees and scale, such as [0, 1], got {value!r} in it.")
        if not self.scale > 0:
            raise SettingError(f"The scale of a view must be positive, got {self.scale}.")
        if not 1 / _LARGEST_SCALE <= self.scale <= _LARGEST_SCALE:
            raise SettingError(f"The scale of a view must be 1/{_LARGEST_SCALE} to {_LARGEST_SCALE}, got {self.scale}.")

    def show(self, slices: Tensor) -> Tensor:
        """Square slices ``(n, C, S, S)`` as the view has them, 0 where it looks beyond their edge."""
        return self._sample(slices.flip(-1) if self.mirrored else slices, self._matrix())

    def back(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes :meth:`show`.

        Args:
            values: ``(n, C, S, S)``, of any size S, as the view has them.

        Returns:
            The values where the slices have them, ``(n, C, S, S)``, and how much of each pixel the view has seen,
            ``(S, S)`` in [0, 1]. What it has not seen is 0.
        """
        inverse = torch.linalg.inv(self._matrix())
        seen = self._sample(torch.ones_like(values[:1, :1]), inverse)[0, 0]
        values = self._sample(values, inverse)
        return (values.flip(-1), seen.flip(-1)) if self.mirrored else (values, seen)

    def _matrix(self) -> Tensor:
        """From places in the view to places in the slice, both in [-1, 1] of their sides."""
        angle = math.radians(self.degrees)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        return turn @ torch.diag(torch.tensor([1 / self.scale, 1 / self.scale, 1.0]))

    def _sample(self, values: Tensor, matrix: Tensor) -> Tensor:
        if (self.degrees, self.scale) == (0, 1):
            return values
        theta = matrix[:2].to(values).expand(len(values), 2, 3)
        grid = F.affine_grid(theta, list(values.shape), align_corners=False)
        return F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def read_views(views: Sequence[View | Sequence[float]]) -> tuple[View, ...]:
    """Views as a configuration has them, pairs of degrees and scale.

    Raises:
        ValueError: none at all, or something that is no such pair.

    Example:
        >>> read_views([[0, 1], [7.0, 1.1]])
        (View(degrees=0, scale=1), View(degrees=7.0, scale=1.1))
    """
    read = []
    for view in views:
        if isinstance(view, View):
            read.append(view)
        elif isinstance(view, Sequence) and len(view) == 2:
            read.append(View(*view))
        else:
            raise SettingError(f"A view must be a pair of degrees and scale, such as [0, 1], got {view!r}.")
    if not read:
        raise SettingError("At least one view is needed; [[0, 1]] is the volume as it is.")
    return tuple(read)


class MeanOverViews:
    """The mean of organs' probabilities over views, slice by slice, of what each view has seen; kept on the CPU."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._seen: dict[int, Tensor] = {}

    def add(self, view: View, indices: Sequence[int], logits: Tensor) -> None:
        """Adds what a view says of some slices, logits ``(n, K, S, S)``."""
        probabilities, seen = view.back(logits.float().sigmoid().cpu())
        for index, each in zip(indices, probabilities):
            self._sums[index] = self._sums.get(index, 0) + each
            self._seen[index] = self._seen.get(index, 0) + seen

    def pop(self, index: int) -> Tensor:
        """Logits ``(K, S, S)`` of a slice's mean."""
        mean = self._sums.pop(index) / self._seen.pop(index).clamp_min(1e-6)
        return torch.logit(mean, eps=1e-6)
