"""The training objective: lambda_prior * L_prior + lambda_seg * L_seg (paper, Equations 1 and 2)."""

from __future__ import annotations

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from ..descriptions import Described
from ..errors import SettingError
from ..networks.naming_head import against_the_rest
from .parallel import mean_over_processes, rows_of_all_processes

_ORGANS_WEIGHT = 3.0  # of an organ's pixels in the naming head's cross-entropy, as in its pretraining


class DiffuSAMLoss(Described, nn.Module):
    """Weighted sum of the prior's error and the loss of the mask decoded from the denoised memory.

    The paper does not name its segmentation loss. The default is soft Dice plus binary cross-entropy on slices that
    hold the organ, as SAM2 trains its masks, plus cross-entropy on the object score, which is what leaves an organ out
    of a slice.

    Args:
        lambda_prior, lambda_seg: weights of Equation 2, both 1 in the paper.
        lambda_names: weight of :meth:`naming`, where a head is trained that names organs; not in the paper.
        segmentation: ``"dice_bce"``, or ``"focal_dice"`` for SAM2's own 20 * focal + Dice.
        object_weight: weight of the object score's cross-entropy within the segmentation loss.

    Raises:
        ValueError: an unknown ``segmentation``.
    """

    def __init__(
        self,
        lambda_prior: float = 1.0,
        lambda_seg: float = 1.0,
        *,
        lambda_names: float = 1.0,
        segmentation: str = "dice_bce",
        object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if segmentation not in ("dice_bce", "focal_dice"):
            raise SettingError(f"segmentation must be 'dice_bce' or 'focal_dice', got '{segmentation}'.")
        self.lambda_prior, self.lambda_seg, self.lambda_names = lambda_prior, lambda_seg, lambda_names
        self.segmentation, self.object_weight = segmentation, object_weight
        self.dice = DiceLoss(sigmoid=True, reduction="none")
        self.named_dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
        self.focal = FocalLoss(reduction="none", gamma=2.0, alpha=0.25)

    @property
    def trains_prior(self) -> bool:
        """Whether the prior has a part in the loss."""
        return self.lambda_prior > 0 or self.lambda_seg > 0

    def forward(
        self, prior_error: Tensor, mask_logits: Tensor, object_score: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a batch of slices.

        Args:
            prior_error: ``(B,)`` squared error of Equation 1 for each item.
            mask_logits: ``(B, 1, S, S)``, not gated by the object score.
            object_score: ``(B, 1)`` logits.
            mask: ``(B, 1, S, S)`` true masks, 0 or 1.

        Returns:
            Scalars ``loss``, ``prior_loss`` and ``seg_loss``.
        """
        mask = mask.to(mask_logits.dtype)
        present = mask.flatten(1).amax(1)
        dice = self.dice(mask_logits, mask).flatten(1).mean(1)
        if self.segmentation == "dice_bce":
            pixels = F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none").flatten(1).mean(1)
        else:
            pixels = 20 * self.focal(mask_logits, mask).flatten(1).mean(1)
        masks = ((dice + pixels) * present).sum() / held_slices(present)
        objects = F.binary_cross_entropy_with_logits(object_score[:, 0], present.to(object_score.dtype))
        prior_loss, seg_loss = prior_error.mean(), masks + self.object_weight * objects
        return {
            "loss": self.lambda_prior * prior_loss + self.lambda_seg * seg_loss,
            "prior_loss": prior_loss.detach(),
            "seg_loss": seg_loss.detach(),
        }

    def naming(self, logits: Tensor, label: Tensor, organs: int) -> Tensor:
        """The loss of a head that names the structure of every pixel: cross-entropy and soft Dice of the organs.

        All structures that are no organs are the background, whichever the head takes them for. With several processes
        it is in each of them the loss of all their slices together.

        Args:
            logits: ``(B, classes, h, w)``, the organs first.
            label: ``(B, S, S)``, 0 background and 1...K the organs; S is a multiple of h.
            organs: K.
        """
        named, rest = against_the_rest(logits.float(), range(organs))
        logits = torch.cat([rest, named], 1)
        step = label.shape[-1] // logits.shape[-1]
        label = label[:, step // 2 :: step, step // 2 :: step].long()
        logits, label = rows_of_all_processes(logits), rows_of_all_processes(label)
        weight = torch.tensor([1.0] + [_ORGANS_WEIGHT] * organs, device=logits.device)
        return F.cross_entropy(logits, label, weight) + self.named_dice(logits, label[:, None])


def held_slices(present: Tensor) -> Tensor:
    """What a sum over the slices that hold the organ is divided by for a mean, at least 1.

    With several processes this is their mean number of such slices, so that the mean of the processes' losses is the
    loss of all slices together.

    Args:
        present: ``(B,)``, 1 where a slice holds its organ, else 0.
    """
    count, processes = mean_over_processes(present.sum()), idist.get_world_size()
    return count.clamp_min(1 / processes)
