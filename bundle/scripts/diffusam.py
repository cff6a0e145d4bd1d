"""DiffuSAM: slices in, organ logits out, without prompts (paper, Figure 1a).

The network joins the frozen SAM2 to the memory prior. ``forward`` segments single slices ("DiffuSAM-no 3D" in the
paper's tables); :mod:`scripts.propagation` walks through a volume by Equation 3 with the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .diffusion_prior import MemoryPrior
from .sam2_backbone import Decoded, FrozenSAM2, ImageFeatures, Memory, resize_logits, with_background


class DiffuSAM(nn.Module):
    """Frozen SAM2 driven by synthesised memories.

    Its ``state_dict`` holds the prior alone: the backbone never changes and is named by its own checkpoint. The prior's
    checkpoint remembers which backbone and organs it was trained for, and refuses any other.

    Args:
        backbone: the frozen SAM2.
        prior: the memory prior.
        organs: names of the organs; output channel 0 is background, channel 1 + i is ``organs[i]``.
        steps: denoising steps at inference.
        eta: see :meth:`MemoryPrior.sample`.
        seed: of the noise, the same for every slice, so that results do not depend on batching. None draws anew.
        samples: memories generated for each slice and organ, and averaged; 1 in the paper.
        object_gate: whether an organ is left out of a slice where SAM2's object score says it is absent.

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
        organs: Sequence[str],
        steps: int = 2,
        eta: float = 0.0,
        seed: int | None = 0,
        samples: int = 1,
        object_gate: bool = True,
    ) -> None:
        super().__init__()
        if prior.organs != len(organs):
            raise ValueError(
                f"The prior was built for {prior.organs} organs, but {len(organs)} are named: {list(organs)}."
            )
        if prior.memory_channels != backbone.memory_channels:
            raise ValueError(
                f"The prior generates memories of {prior.memory_channels} channels, backbone '{backbone.name}' has "
                f"{backbone.memory_channels}."
            )
        if prior.condition.in_channels != backbone.embedding_channels:
            raise ValueError(
                f"The prior is conditioned on image embeddings of {prior.condition.in_channels} channels, backbone "
                f"'{backbone.name}' has {backbone.embedding_channels}."
            )
        self.backbone = backbone
        self.prior = prior
        self.organs = list(organs)
        self.steps, self.eta, self.seed, self.samples = steps, eta, seed, samples
        self.object_gate = object_gate
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of single slices, no 3D.

        Args:
            image: ``(B, 1, S, S)`` in [0, 1].

        Returns:
            ``(B, 1 + organs, S, S)``; background is 0 everywhere, so the arg-max over channels is the label map.
        """
        features = self.backbone.encode_image(image)
        memory = self.synthesise(features)
        repeated = features.repeat_interleave(len(self.organs))
        decoded = self.backbone.decode(self.backbone.condition(repeated, [Memory(memory)]), repeated)
        logits = resize_logits(self.organ_logits(decoded), self.backbone.image_size)
        return with_background(logits)

    def synthesise(self, features: ImageFeatures, sample: int = 0) -> Tensor:
        """One memory for every slice and organ: ``(B * organs, M, h, w)``, organs running fastest.

        Every slice starts from the same noise (of ``seed``), which makes neighbouring slices' memories agree and the
        result independent of how a volume is cut into batches.

        Args:
            features: of B slices.
            sample: which of many independent memories; its noise is that of ``seed + sample``.
        """
        slices, count = len(features), len(self.organs)
        organ = torch.arange(count, device=features.embedding.device).repeat(slices)
        repeated = features.repeat_interleave(count)
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed + sample)
        shape = (self.samples, count, self.prior.memory_channels, *features.embedding.shape[-2:])
        noise = torch.randn(shape, generator=generator)
        memories = [
            self.prior.sample(repeated, organ, self.steps, self.eta, generator, noise[index].repeat(slices, 1, 1, 1))
            for index in range(self.samples)
        ]
        return torch.stack(memories).mean(0)

    def organ_logits(self, decoded: Decoded) -> Tensor:
        """Mask logits of each slice's organs, gated by the object score: ``(B, organs, S/4, S/4)``."""
        logits = decoded.gated() if self.object_gate else decoded.mask_logits
        return logits.reshape(-1, len(self.organs), *logits.shape[-2:])

    def get_extra_state(self) -> dict:
        return {"backbone": self.backbone.name, "organs": self.organs, "weights": self.backbone.fingerprint()}

    def set_extra_state(self, state: dict) -> None:
        if state.get("network", "DiffuSAM") != type(self).__name__:
            raise ValueError(
                f"This file is of a training of {state['network']}, not of a DiffuSAM prior. Add the overlay it was "
                "trained with, such as 'configs/automedsam.json', or point `prior_file` at a DiffuSAM prior."
            )
        if state["backbone"] != self.backbone.name or len(state["organs"]) != len(self.organs):
            raise ValueError(
                f"This prior was trained for backbone '{state['backbone']}' and {len(state['organs'])} organs "
                f"{state['organs']}, but the configuration names backbone '{self.backbone.name}' and "
                f"{len(self.organs)} organs {self.organs}. Set `backbone_name` and `label_map` as in its training, or "
                "train another prior."
            )
        if state["organs"] != self.organs:
            raise ValueError(
                f"This prior was trained for the organs {state['organs']} in that order, the configuration names "
                f"{self.organs}. Use the same names and order in `label_map`."
            )
        if state["weights"] != self.backbone.fingerprint():
            raise ValueError(
                f"This prior was trained with other weights of backbone '{self.backbone.name}' than those loaded. "
                "Memories of different weights do not mix: point `backbone_checkpoint` at the file used in training, "
                "or train again."
            )


def check_prior_file(path: str | Path) -> None:
    """Raises ``FileNotFoundError`` with the remedy where a trained prior is not there."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"The trained prior '{path}' is not there. Run `training` with the same configuration first, or point "
            "`prior_file` at a trained prior."
        )


def _drop_backbone(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(prefix + "backbone.")]:
        del state_dict[key]


def _keep_backbone(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Lets a checkpoint of the prior alone load strictly: the backbone's entries are those it already has.

    The description of what the prior was trained for is checked here, before shapes are compared, because "another
    backbone" says more than a list of sizes.
    """
    extra = state_dict.get(prefix + "_extra_state")
    if extra is not None:
        module.set_extra_state(extra)
    for key, value in module.backbone.state_dict(prefix=prefix + "backbone.").items():
        state_dict.setdefault(key, value)
