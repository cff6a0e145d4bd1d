"""Small networks with random weights, for several test modules."""

from __future__ import annotations

import torch
from scripts.automedsam.network import AutoMedSAM, ClassPromptEncoder
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2

SIZE, TOKENS, CHANNELS, MEMORY_CHANNELS = 64, 4, 128, 32  # of `sam2_nano`
NAMES = ("spleen", "liver")


def make_backbone(seed: int = 0, **options) -> FrozenSAM2:
    torch.manual_seed(seed)
    return FrozenSAM2("sam2_nano", SIZE, **options)


def make_prior(
    organs: int = 2, memory_channels: int = MEMORY_CHANNELS, channels: int = CHANNELS, seed: int = 0
) -> MemoryPrior:
    torch.manual_seed(seed)
    options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
    prior = MemoryPrior(memory_channels, channels, organs=organs, **options)
    prior.fitted.fill_(True)
    return prior


def make_encoder(organs: int = 2, channels: int = CHANNELS, seed: int = 0, **options) -> ClassPromptEncoder:
    torch.manual_seed(seed)
    encoder = ClassPromptEncoder(channels, organs, block_out_channels=(16, 32), attention_levels=1, **options)
    encoder.fitted.fill_(True)
    return encoder.eval()


def make_diffusam(backbone: FrozenSAM2, organs=NAMES, weights: int = 0, **options) -> DiffuSAM:
    """``weights`` is the seed of the prior's initial weights, ``seed`` among the options that of the noise."""
    return DiffuSAM(backbone, make_prior(len(organs), seed=weights), organs=organs, **options).eval()


def make_automedsam(backbone: FrozenSAM2, organs=NAMES, weights: int = 0, **options) -> AutoMedSAM:
    """See :func:`make_diffusam`."""
    return AutoMedSAM(backbone, make_encoder(len(organs), seed=weights), organs=organs, **options).eval()
