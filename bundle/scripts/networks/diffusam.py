"""DiffuSAM: slices in, organ logits out, without prompts (paper, Figure 1a).

The network joins the frozen SAM2 to the memory prior. ``forward`` segments single slices ("DiffuSAM-no 3D" in the
paper's tables); :mod:`scripts.segmentation.propagation` walks through a volume by Equation 3 with the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingFileError, SettingError
from .diffusion_prior import MemoryPrior
from .frozen_backbone import FrozenBackboneNetwork
from .logits import NO_OBJECT_LOGIT
from .naming_head import NamingHead, named_labels
from .sam2_backbone import FrozenSAM2, encoded_at_once
from .sam2_types import ImageFeatures, Memory
from .windows import TOKENS_AT_ONCE, Windows, windows_around


class DiffuSAM(FrozenBackboneNetwork):
    """Frozen SAM2 driven by synthesised memories.

    Args:
        backbone: the frozen SAM2.
        prior: the memory prior.
        organs: see :class:`FrozenBackboneNetwork`.
        steps: denoising steps at inference.
        eta: see :meth:`MemoryPrior.sample`.
        seed: see :class:`FrozenBackboneNetwork`.
        samples: memories generated for each slice and organ, and averaged; 1 in the paper.
        object_gate: see :class:`FrozenBackboneNetwork`.
        names: a head whose first classes are the organs, in their order. Memories are then those of the masks that it
            names, in place of generated ones; not in the paper.

    Raises:
        ValueError: the prior was built for another number of organs or other channels than the backbone's.

    Example:
        >>> backbone = FrozenSAM2("sam2_nano", image_size=64)
        >>> prior = MemoryPrior(32, 128, organs=2, block_out_channels=(32, 64), attention_levels=1)
        >>> DiffuSAM(backbone, prior, ["spleen", "liver"])(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    def __init__(
        self,
        backbone: FrozenSAM2,
        prior: MemoryPrior,
        *,
        organs: Sequence[str],
        steps: int = 2,
        eta: float = 0.0,
        seed: int | None = 0,
        samples: int = 1,
        object_gate: bool = True,
        names: NamingHead | None = None,
    ) -> None:
        super().__init__(backbone, prior, organs=organs, seed=seed, object_gate=object_gate)
        if prior.memory_channels != backbone.memory_channels:
            raise SettingError(
                f"The prior generates memories of {prior.memory_channels} channels, backbone '{backbone.name}' has "
                f"{backbone.memory_channels}."
            )
        self.steps, self.eta, self.samples = steps, eta, samples
        if names is not None:
            self.names = names

    def segment(self, features: ImageFeatures, memory: Tensor | None = None) -> Tensor:
        """Mask logits of every organ in B slices, no 3D: ``(B, organs, S/4, S/4)``.

        Args:
            features: of the B slices.
            memory: of :meth:`synthesise`, or in its place; synthesised when None.
        """
        memories = [Memory(self.synthesise(features) if memory is None else memory)]
        return self.organ_logits(self.backbone.decode(self.backbone.condition(features, memories), features))

    def segment_named(self, features: ImageFeatures, masks: Tensor, *, margin: int, skip_absent: bool = True) -> Tensor:
        """Mask logits of every organ in B slices, no 3D, each from the memory of a mask, and in a window around it:
        ``(B, organs, S/4, S/4)``. Not in the paper.

        Args:
            features: of the B slices.
            masks: of :meth:`named_masks`.
            margin: see :func:`~scripts.networks.windows.windows_around`.
            skip_absent: whether organs whose masks are empty are left out; they are looked for in the whole slice
                otherwise.
        """
        backbone, size = self.backbone, 4 * self.backbone.embedding_size
        logits = torch.full((*masks.shape[:2], size, size), NO_OBJECT_LOGIT, device=masks.device)
        wanted = masks.flatten(2).any(2) if skip_absent else masks.new_ones(masks.shape[:2])
        slices, organs = wanted.nonzero(as_tuple=True)
        if not len(slices):
            return logits
        shown, places = slices.unique(return_inverse=True)
        features = features[shown] if len(shown) < len(features) else features
        masks = masks[slices, organs]
        at_once = max(1, TOKENS_AT_ONCE // backbone.embedding_size**2)
        attended = torch.cat([backbone.attend(part) for part in features.split(at_once)])
        for chosen, windows in windows_around(masks, places.tolist(), tokens=backbone.embedding_size, margin=margin):
            memory = Memory(self.memories_of(features, masks[chosen, None], windows))
            conditioned = backbone.condition(features, [memory], windows, attended)
            decoded = backbone.decode(conditioned, features, windows=windows)
            logits[slices[chosen], organs[chosen]] = self.organ_logits(decoded, len(chosen))[:, 0].to(logits)
        return logits

    def name(self, features: ImageFeatures) -> Tensor | None:
        """Logits ``(B, classes, S/4, S/4)`` of the head that names organs, which all samples of :meth:`synthesise` have
        in common; None where there is none.
        """
        if self.names is None:
            return None
        at_once = encoded_at_once(self.backbone.image_size, features.embedding.device)
        return torch.cat([self.names(part)[1].float() for part in features.split(at_once)])

    def named_masks(self, named: Tensor, sample: int = 0) -> Tensor:
        """Masks ``(B, organs, S, S)`` bool of what :meth:`name` says: where an organ is likelier than each other one,
        and than all other classes together. Samples after the first see it with smooth noise, so that they differ where
        it is unsure.
        """
        if sample:
            size = [tokens // 4 for tokens in named.shape[-2:]]
            noise = torch.randn(1, named.shape[1], *size, generator=self.generator(sample))
            named = named + F.interpolate(noise.to(named), named.shape[-2:], mode="bicubic")
        labels = torch.stack([named_labels(each, len(self.organs), self.backbone.image_size) for each in named])
        return torch.stack([labels == organ + 1 for organ in range(len(self.organs))], 1)

    def synthesise(
        self, features: ImageFeatures, sample: int = 0, organs: Sequence[int] | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """One memory for every slice and organ: ``(B * organs, M, h, w)``, organs running fastest.

        Every slice starts from the same noise (of ``seed``), which makes neighbouring slices' memories agree and the
        result independent of how a volume is cut into batches.

        Args:
            features: of B slices.
            sample: which of many independent memories; its noise is that of ``seed + sample``.
            organs: indices of those to make memories of, by default all. An organ's memory is the same among any.
            masks: of :meth:`named_masks`, of all organs; made when None. Not for memories that are generated.
        """
        if self.names is not None:
            masks = self.named_masks(self.name(features), sample) if masks is None else masks
            return self.memories_of(features, masks if organs is None else masks[:, list(organs)])
        together = organs is None or self.prior.joint
        wanted = torch.arange(len(self.organs)) if together else torch.tensor(organs)
        organ = wanted.to(features.embedding.device).repeat(len(features))
        generator = self.generator(sample)
        shape = (self.samples, len(self.organs), self.prior.memory_channels, *features.embedding.shape[-2:])
        noise = torch.randn(shape, generator=generator)
        memories = [
            self.prior.sample(
                features, organ, self.steps, self.eta, generator, each[wanted].repeat(len(features), 1, 1, 1)
            )
            for each in noise
        ]
        mean = torch.stack(memories).mean(0)
        if organs is None or not self.prior.joint:
            return mean
        return mean.unflatten(0, (len(features), -1))[:, list(organs)].flatten(0, 1)

    def memories_of(self, features: ImageFeatures, masks: Tensor, windows: Windows | None = None) -> Tensor:
        """Memories ``(B * K, M, h, w)`` of masks ``(B, K, S, S)``, or of ``(N, 1, S, S)`` in N windows of B slices."""
        return self.backbone.encode_memory(features, masks.flatten(0, 1)[:, None], windows=windows)


def check_prior_file(path: str | Path) -> None:
    """Raises ``FileNotFoundError`` with the remedy where a trained prior is not there."""
    if not Path(path).is_file():
        raise MissingFileError(
            f"The trained prior '{path}' is not there. Run `training` with the same configuration first, or point "
            "`prior_file` at a trained prior."
        )
