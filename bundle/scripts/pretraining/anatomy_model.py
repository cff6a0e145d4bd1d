"""Pretraining of ``sam2_nano`` on anatomy: SAM2's task, and beside it a prior and a head that must name what is seen.

On clips of painted patients (:mod:`.patient_clips`) the backbone learns three things together:

* SAM2's own task, as on random shapes (:class:`.backbone.ClipModel`);
* to be read by a memory prior: from the image embedding a small :class:`~scripts.networks.diffusion_prior.MemoryPrior`
  predicts each organ's memory, which is decoded like any other, alone and beside the neighbours' (Equation 3), so that
  the decoder learns to live with a prior's mistakes and the embedding to tell organs apart;
* to name the structure of every pixel, through a head that is thrown away afterwards. Naming alone costs a fraction of
  the rest, so a curriculum begins with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from ..data.phantom_anatomy import ORGANS
from ..networks.diffusion_prior import MemoryPrior
from ..networks.logits import mask_to_logits
from ..networks.naming_head import NamingHead, grouped
from ..networks.sam2_backbone import SAM2, between_neighbours
from ..networks.sam2_types import ImageFeatures
from .backbone import ClipModel
from .patient_clips import CLASSES, class_weights


class AnatomyModel(ClipModel):
    """SAM2 with its pretraining losses, a prior's and a naming head's.

    ``forward`` takes what :class:`ClipModel` takes and, for clips of anatomy, ``classes``; of those the first objects
    are the prior's organs.

    Args:
        backbone: the trainable SAM2.
        prior: of the organs that come first among a clip's objects.
        prior_weight, naming_weight: of the added losses.
        context_share: of batches in which each slice is shown between its neighbours, as :func:`between_neighbours`
            does.
        named_share: of the organs' memories that come from what the head names, as they do where memories are those of
            named masks; the others are the prior's.
        kwargs: of :class:`ClipModel`.
    """

    def __init__(
        self,
        backbone: SAM2,
        prior: MemoryPrior,
        *,
        prior_weight: float = 0.5,
        naming_weight: float = 0.5,
        context_share: float = 0.5,
        named_share: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.context_share, self.named_share = context_share, named_share
        self.prior, self.prior_weight, self.naming_weight = prior, prior_weight, naming_weight
        self.head = NamingHead(backbone.embedding_channels, CLASSES)
        self.overlap = DiceLoss(batch=True)

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        prompt_share: float | Tensor = 0.4,
        organ: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch of clips.

        Args:
            image, mask, prompt_share: see :class:`ClipModel`; the masks may be of the first ``F <= V`` clips alone, or
                of none, which leaves the naming alone; and images may have their neighbours as channels already.
            organ: ``(F, n)``, which organs the first n objects of each clip are; None for clips of random shapes.
            classes: ``(V, T, S, S)``, indices into :data:`.patient_clips.CLASSES`.
        """
        if organ is None or classes is None:
            return super().forward(image, mask, prompt_share)
        context = torch.rand(()) < self.context_share
        if image.shape[2] == 3:
            image = image if context else image[:, :, 1:2]
        elif context:
            image = between_neighbours(image)
        every = self.encode(image)
        coarse, fine = self.head(every)
        naming = self._naming_loss(coarse, fine, classes)
        if not len(mask):
            return {"loss": self.naming_weight * naming, "naming": naming}
        clips, objects, frames = mask.shape[:3]
        organs = organ.shape[1]
        encoded = every[: clips * frames]
        predicted, prior_error = self._predict_memories(encoded, mask[:, :organs], organ)
        if self.named_share > 0:
            predicted = self._some_named(predicted, encoded, fine[: clips * frames], organ)
        predicted = predicted.unflatten(0, (clips, frames, organs))
        others = predicted.new_full((clips, objects - organs, *predicted.shape[3:]), torch.nan)

        def own(frame: int) -> Tensor:
            return torch.cat([predicted[:, frame], others], 1).flatten(0, 1)

        losses = self.follow(encoded, mask, prompt_share, own)
        losses["naming"], losses["prior"] = naming, prior_error
        losses["loss"] = losses["loss"] + self.prior_weight * losses["prior"] + self.naming_weight * losses["naming"]
        return losses

    def _predict_memories(self, encoded: ImageFeatures, mask: Tensor, organ: Tensor) -> tuple[Tensor, Tensor]:
        """The prior's memories ``(V * T * n, M, h, w)``, from pure noise, and the error of Equation 1."""
        frames, organs = mask.shape[2], organ.shape[1]
        target = mask.transpose(1, 2).flatten(0, 2)[:, None].float()  # organs run fastest, then frames
        repeated = encoded.repeat_interleave(organs)
        with torch.no_grad():
            memory = self.backbone.encode_memory(repeated, mask_to_logits(target)).float()
            self._follow_statistics(memory, encoded.embedding.float())
        organ = organ[:, None].expand(-1, frames, -1).flatten()
        last = torch.full_like(organ, self.prior.scheduler.config.num_train_timesteps - 1)
        error, predicted = self.prior(memory, repeated, organ, last)
        return predicted, error.mean()

    def _some_named(self, predicted: Tensor, encoded: ImageFeatures, named: Tensor, organ: Tensor) -> Tensor:
        """Memories ``(V * T * n, M, h, w)``: of some organs of some clips those of what the head names."""
        (clips, organs), frames = organ.shape, len(encoded) // len(organ)
        size = self.backbone.image_size
        with torch.no_grad():
            logits = F.interpolate(grouped(named.float(), len(ORGANS)), (size, size), mode="bilinear")
            found = logits.argmax(1).unflatten(0, (clips, frames))
            mask = (found[:, :, None] == organ[:, None, :, None, None]).flatten(0, 2)[:, None]
        memory = self.backbone.encode_memory(encoded.repeat_interleave(organs), mask_to_logits(mask)).to(predicted)
        taken = torch.rand(clips, 1, organs, device=mask.device) < self.named_share
        return torch.where(taken.expand(-1, frames, -1).flatten()[:, None, None, None], memory, predicted)

    def _follow_statistics(self, memory: Tensor, embedding: Tensor, momentum: float = 0.02) -> None:
        """Memories and embeddings change as the backbone learns: the prior's statistics of them follow slowly."""
        if self.training:
            for name, values in (("memory", memory), ("embedding", embedding)):
                std, mean = torch.std_mean(values, (0, 2, 3), keepdim=True)
                getattr(self.prior, f"{name}_mean").lerp_(mean, momentum)
                getattr(self.prior, f"{name}_std").lerp_(std.clamp_min(1e-4), momentum)

    def _naming_loss(self, coarse: Tensor, fine: Tensor, classes: Tensor) -> Tensor:
        classes = classes.flatten(0, 1)
        step = classes.shape[-1] // fine.shape[-1]
        at_quarter = classes[:, step // 2 :: step, step // 2 :: step]
        shares = F.one_hot(at_quarter, fine.shape[1]).permute(0, 3, 1, 2).float()
        shares = F.adaptive_avg_pool2d(shares, coarse.shape[-2:])
        weight = class_weights(fine.device)
        cross_entropy = F.cross_entropy(fine.float(), at_quarter, weight)
        cross_entropy = cross_entropy + F.cross_entropy(coarse.float(), shares, weight)
        named = F.one_hot(at_quarter, fine.shape[1]).permute(0, 3, 1, 2)[:, : len(ORGANS)]
        return cross_entropy + self.overlap(fine.float().softmax(1)[:, : len(ORGANS)], named)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Fits the prior's statistics to memories and embeddings of clips."""
        self.prior.fit_statistics(self._memories_of(batches))

    def _memories_of(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            encoded = self.encode(batch["image"][: len(batch["mask"])])
            mask = batch["mask"][:, : batch["organ"].shape[1]].transpose(1, 2).flatten(0, 2)[:, None].float()
            present = mask.flatten(1).any(1)
            repeated = encoded.repeat_interleave(batch["organ"].shape[1])[present]
            if present.any():
                yield self.backbone.encode_memory(repeated, mask_to_logits(mask[present])), repeated.embedding
