"""A U-shaped convolutional trunk for SAM2's image encoder, in the place of Hiera.

SAM2 asks of a trunk its feature maps at strides 4, 8, 16 and 32, from fine to coarse, and their widths in
``channel_list``, from coarse to fine. Hiera learns them from millions of images; from some ten thousand slices a
convolutional network learns far more. This one is a U-Net: what it says at stride 4 it has seen in the light of all
that is coarser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import ResidualUnit
from torch import Tensor, nn


class ConvolutionalTrunk(nn.Module):
    """MONAI's residual units down to stride 32 and up again to stride 4.

    Args:
        channels: widths at strides 2, 4, 8, 16 and 32.
        subunits: convolutions of a residual unit on the way down; on the way up it is one.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128, 256), subunits: int = 2) -> None:
        super().__init__()
        widths = (3, *channels)
        self.down = nn.ModuleList(
            ResidualUnit(2, before, after, strides=2, subunits=subunits, norm=_each_channel(after))
            for before, after in zip(widths, widths[1:])
        )
        self.up = nn.ModuleList(
            ResidualUnit(2, fine + coarse, fine, subunits=1, norm=_each_channel(fine))
            for fine, coarse in zip(channels[1:-1], channels[2:])
        )
        self.channel_list = list(reversed(channels[1:]))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of ``(B, 3, S, S)`` at strides 4, 8, 16 and 32."""
        skips, features = [], image
        for unit in self.down:
            features = unit(features)
            skips.append(features)
        outputs = [features]
        for unit, skip in zip(reversed(self.up), reversed(skips[1:-1])):
            above = outputs[-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
            outputs.append(unit(torch.cat([skip, above], 1)))
        return outputs[::-1]


def _each_channel(channels: int) -> tuple[str, dict[str, Any]]:
    """MONAI's name of a norm: instance normalisation, by PyTorch's group normalisation, which is four times as fast."""
    return "group", {"num_groups": channels, "affine": False}
