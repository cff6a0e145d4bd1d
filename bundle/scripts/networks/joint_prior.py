"""A prior of all organs at once: p(z_mem of every organ | z_img), one pass of the UNet for a slice.

Not in the paper, whose prior makes one memory after the other and is told the organ (:mod:`.diffusion_prior`). Here the
memories of all organs are groups of channels that are denoised together: a slice costs one pass whatever the number of
organs is, and what one organ takes, the others see.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SettingError
from .diffusion_prior import MemoryPrior
from .sam2_types import ImageFeatures


class JointMemoryPrior(MemoryPrior):
    """A :class:`MemoryPrior` with an equal interface, but for what rows are: always all organs of a slice, in their
    order. It is trained on the memories of all organs of a slice (``joint_prior``): :meth:`forward` takes them as
    ``(B, organs, M, h, w)`` and one organ of each slice, whose denoised memory it returns, with the error of all.

    Example:
        >>> prior = JointMemoryPrior(32, 64, organs=2, block_out_channels=(32, 64), attention_levels=1)
        >>> features = ImageFeatures(torch.rand(3, 64, 8, 8), (torch.rand(3, 8, 32, 32), torch.rand(3, 16, 16, 16)))
        >>> prior.sample(features, torch.arange(2).repeat(3)).shape
        torch.Size([6, 32, 8, 8])
    """

    joint = True

    def predict(self, noised: Tensor, timestep: Tensor, condition: Tensor, organ: Tensor | None) -> Tensor:
        """f_theta for all organs of B slices.

        Args:
            noised: standardised memories ``(B * organs, M, h, w)``, organs running fastest, or
                ``(B, organs, M, h, w)``.
            timestep: of each row, the same for all organs of a slice, or of each slice, or scalar.
            condition: of :meth:`project`, ``(B, condition channels, h, w)``.
            organ: not used: which organ a row is of is known from its place.

        Returns:
            The UNet's output, of the shape of ``noised``.

        Raises:
            SettingError: some of the organs alone.
        """
        slices, size = len(condition), noised.shape[-2:]
        if noised.numel() != slices * self.organs * self.memory_channels * size.numel():
            raise SettingError(
                f"A joint prior denoises all {self.organs} organs of a slice together, got memories "
                f"{tuple(noised.shape)} for {slices} slices."
            )
        if timestep.ndim:
            timestep = timestep.view(slices, -1)[:, 0]
        together = noised.reshape(slices, -1, *size)
        return super().predict(together, timestep, condition, None).reshape(noised.shape)

    def _condition(self, features: ImageFeatures, rows: int) -> Tensor:
        return self.project(features)

    def _own(self, memory: Tensor, organ: Tensor) -> Tensor:
        return memory[torch.arange(len(organ), device=organ.device), organ]
