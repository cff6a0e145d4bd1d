"""Labelled slices in contrasts that no scanner made, so that a network learns shapes and places and not three greys.

A few labelled volumes come from one scanner, and hold no liver that stores iron. A network that learns from them alone
forgets those that pretraining had shown it. Here the greys of each slice follow a random curve, and organs may have any
grey; their geometry is real. Not in the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..descriptions import Described
from ..errors import SettingError
from .parallel import draw_rows, noise_like


class RandContrasts(Described):
    """Gives some slices of a batch greys at random.

    Args:
        share: of the slices, 0 to 1.
        organs: K; labels are 0 for background and 1...K.
        knots: of the curve from old to new greys, between which it is straight.
        rising_share, falling_share: of the curves that rise, or fall, throughout; the others do as they like.
        organ_share: probability for each organ that it gets a grey of its own.
        noise: largest standard deviation of noise that is added.

    Draws from PyTorch's generator of the images' device.

    Raises:
        ValueError: a share that is no share, or fewer than two knots.
    """

    def __init__(
        self,
        share: float,
        organs: int,
        *,
        knots: int = 7,
        rising_share: float = 0.42,
        falling_share: float = 0.18,
        organ_share: float = 0.5,
        noise: float = 0.03,
    ) -> None:
        for name, value in (
            ("share", share),
            ("organ_share", organ_share),
            ("of rising", rising_share + falling_share),
        ):
            if not 0 <= value <= 1:
                raise SettingError(f"The {name} of random contrasts must lie in [0, 1], got {value}.")
        if knots < 2:
            raise SettingError(f"A curve of greys has 2 or more knots, got {knots}.")
        self.share, self.organs, self.knots, self.noise = share, organs, knots, noise
        self.rising_share, self.falling_share, self.organ_share = rising_share, falling_share, organ_share

    def __call__(self, image: Tensor, label: Tensor) -> Tensor:
        """Slices ``(B, channels, S, S)`` in [0, 1], some of them in other greys.

        Args:
            image: ``(B, channels, S, S)`` in [0, 1]; channels are neighbours of a slice and get the same greys.
            label: ``(B, S, S)``.
        """
        if not self.share:
            return image
        drawn = draw_rows(
            lambda rows: torch.rand(rows, 3 + self.knots + 3 * self.organs, device=image.device), len(image)
        )
        chosen, kind, noisy = drawn[:, :3, None, None, None].unbind(1)
        curves, organs = drawn[:, 3:].split([self.knots, 3 * self.organs], 1)
        new = self._follow(image, self._curves(curves, kind.flatten(1)))
        for value in range(1, 1 + self.organs):
            own, grey, scale = organs[:, 3 * value - 3 : 3 * value, None, None, None].unbind(1)
            # labels are sharp, organs are not: see RandOrganContrastd
            mask = F.avg_pool2d((label == value)[:, None].float(), 3, stride=1, padding=1, count_include_pad=False)
            texture = (new - new.mean((1, 2, 3), keepdim=True)) * scale
            new = torch.where(own < self.organ_share, torch.lerp(new, grey + texture, mask), new)
        new = new.clamp(0, 1) + self.noise * noisy * noise_like(new)
        return torch.where(chosen < self.share, new, image)

    def _curves(self, values: Tensor, kind: Tensor) -> Tensor:
        rising = values.sort(1).values
        falling = kind < self.rising_share + self.falling_share
        return torch.where(kind < self.rising_share, rising, torch.where(falling, rising.flip(1), values))

    def _follow(self, image: Tensor, curves: Tensor) -> Tensor:
        place = image.clamp(0, 1).flatten(1) * (self.knots - 1)
        before = place.floor().long().clamp(max=self.knots - 2)
        return torch.lerp(curves.gather(1, before), curves.gather(1, before + 1), place - before).view_as(image)
