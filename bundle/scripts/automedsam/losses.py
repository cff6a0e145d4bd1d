"""AutoMedSAM's training objective: pixel, region and distribution losses, each weighted by a learned uncertainty.

    L = sum_i  L_i / (2 sigma_i^2) + log(1 + sigma_i^2)

The abstract of AutoMedSAM (arXiv:2502.06817) names the three kinds of losses and the weighting by uncertainty; its
training code is not public. Taken here is what some of its authors published in UU-Mamba (arXiv:2405.17496,
https://github.com/tiffany9056/UU-Mamba), whose abstract names the same three kinds: Dice for the region, cross-entropy
for the distribution, focal loss for the pixel, and the weighting above (Liebel and Koerner, arXiv:1805.06334), with
every sigma 1 at the start.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from ..descriptions import Described
from ..errors import SettingError
from ..training.losses import held_slices

PIXEL_LOSSES = ("focal", "mse")


class UncertaintyWeights(nn.Module):
    """Weighs losses by learned uncertainties sigma_i, which start at 1.

    The parameters are log sigma_i^2, so that a weight 1 / (2 sigma_i^2) stays positive however long it is trained.

    Args:
        names: of the losses.

    Example:
        >>> round(UncertaintyWeights(["dice"])({"dice": torch.tensor(1.0)}).item(), 4)  # 1 / 2 + log 2
        1.1931
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def weights(self) -> dict[str, Tensor]:
        """1 / (2 sigma_i^2) of each loss, without gradient."""
        return dict(zip(self.names, 0.5 * torch.exp(-self.log_variance.detach())))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of one scalar for each name, a scalar."""
        values = torch.stack([losses[name] for name in self.names])
        # softplus(log sigma^2) = log(1 + sigma^2)
        return (0.5 * torch.exp(-self.log_variance) * values + F.softplus(self.log_variance)).sum()


class AutoMedSAMLoss(Described, nn.Module):
    """The uncertainty-weighted sum of three losses of the decoded mask, plus cross-entropy on SAM2's object score.

    Readings: a mask is of one organ, so the distribution loss is binary cross-entropy. Masks count on slices that hold
    the organ. Which slices those are, SAM's decoder cannot say; SAM2's has an object score, which is trained as in
    :class:`scripts.training.losses.DiffuSAMLoss` and outside the weighting, so that rows of a table differ by the
    method alone.

    Args:
        pixel: the pixel loss: ``"focal"`` (gamma 2), or ``"mse"`` of the mask's probabilities.
        object_weight: weight of the object score's cross-entropy.

    Raises:
        ValueError: an unknown ``pixel``.
    """

    trains_prior = True  # in whole, whatever the weights

    def __init__(self, pixel: str = "focal", object_weight: float = 0.1) -> None:
        super().__init__()
        if pixel not in PIXEL_LOSSES:
            raise SettingError(f"pixel must be one of {', '.join(PIXEL_LOSSES)}, got '{pixel}'.")
        self.pixel, self.object_weight = pixel, object_weight
        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.focal = FocalLoss(reduction="none", gamma=2.0)
        self.uncertainty = UncertaintyWeights(("pixel", "region", "distribution"))

    def forward(self, mask_logits: Tensor, object_score: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The loss of a batch of slices.

        Args:
            mask_logits: ``(B, 1, S, S)``, not gated by the object score.
            object_score: ``(B, 1)`` logits.
            mask: ``(B, 1, S, S)`` true masks, 0 or 1.

        Returns:
            Scalars: ``loss``; ``pixel_loss``, ``region_loss`` and ``distribution_loss``, not weighted; their weights
            ``pixel_weight``, ``region_weight`` and ``distribution_weight``.
        """
        mask = mask.to(mask_logits.dtype)
        present = mask.flatten(1).amax(1)
        if self.pixel == "focal":
            pixel = self.focal(mask_logits, mask)
        else:
            pixel = F.mse_loss(mask_logits.sigmoid(), mask, reduction="none")
        items = {
            "pixel": pixel,
            "region": self.dice(mask_logits, mask),
            "distribution": F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none"),
        }
        held = held_slices(present)
        losses = {name: (item.flatten(1).mean(1) * present).sum() / held for name, item in items.items()}
        objects = F.binary_cross_entropy_with_logits(object_score[:, 0], present.to(object_score.dtype))
        return {
            "loss": self.uncertainty(losses) + self.object_weight * objects,
            **{f"{name}_loss": value.detach() for name, value in losses.items()},
            **{f"{name}_weight": value for name, value in self.uncertainty.weights().items()},
        }
