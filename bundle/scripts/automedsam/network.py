"""AutoMedSAM: frozen SAM2 prompted by a diffusion-based class prompt encoder (Huang et al., arXiv:2502.06817).

The other answer to DiffuSAM's question of how to do without a user's prompt: not a memory but the prompt itself is
generated, one for each organ, and nothing passes between slices. The paper's Figures 2 and 3 show the parts. Of its
code, https://github.com/HP-ML/AutoPromptMedSAM, the class prompt encoder is public (``class_prompt.py``), its training
is not.

Readings taken, and how they differ from that code:

- There the image embedding is noised T times and denoised by one pass of a UNet, in training as at inference. Here the
  scheduler's forward process goes to its last step at once (Gaussian steps add up to one), and a UNet of diffusers'
  blocks makes the one pass back. Noise is drawn anew in training and from a seed at inference.
- There the noise of 100 steps has the variance sum 1 / (t + 1)^2 = 0.64, beside embeddings of about unit scale.
  SAM2's embeddings have no fixed scale, so they are standardised; linear betas 1e-4...0.01 over 100 steps give a ratio
  of noise to signal of 0.66.
- There the class is a number, in a plane of the input and before each branch. Here it is a learned embedding, added in
  every residual block of encoder and branches, so that organs next to each other in the list are not taken for similar.
- The sparse branch is pooled to two tokens (a box has two), of the upper and the lower half, as there.
- There both branches end in ReLU. SAM's own prompt embeddings have both signs, so here they do not.
- The image encoder and the mask decoder are SAM2's, not MedSAM's, so that rows of a table share their backbone.
  MedSAM's decoder returns its single mask: ``decoder_token`` is ``"single"`` in ``configs/automedsam.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from ..errors import SettingError
from ..networks.diffusion_prior import StandardisingModule, conditional_unet, pad_for_unet
from ..networks.frozen_backbone import FrozenBackboneNetwork
from ..networks.logits import resize_logits
from ..networks.sam2_types import Decoded, ImageFeatures
from ..segmentation.propagation import VolumetricInferer
from ..segmentation.walked_slices import VolumeSlices
from ..training.parallel import noise_like
from ..training.trainer import DiffuSAMTrainer


class DecoderBranch(nn.Module):
    """The decoder half of a UNet: from its bottleneck and skip connections to ``(B, C, h, w)``."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.up_blocks = unet.up_blocks
        self.out = nn.Sequential(unet.conv_norm_out, unet.conv_act, unet.conv_out)

    def forward(self, sample: Tensor, skips: Sequence[Tensor], embedding: Tensor) -> Tensor:
        skips = tuple(skips)
        for block in self.up_blocks:
            count = len(block.resnets)
            sample, skips = block(sample, skips[-count:], embedding), skips[:-count]
        return self.out(sample)


class ClassPromptEncoder(StandardisingModule):
    """Image embedding and organ label to sparse and dense prompt embeddings (Figure 3).

    Forward diffusion noises the standardised image embedding; the reverse side is a UNet with one encoder and two
    decoder branches, dense for what lies where, sparse for the object as a whole.

    Args:
        embedding_channels: C, channels of the image embedding (``FrozenSAM2.embedding_channels``).
        organs: number of organ labels.
        sparse_tokens: P, prompt tokens of the sparse branch.
        block_out_channels: widths of the UNet's levels; each level after the first halves the resolution.
        layers_per_block: residual blocks in each level.
        attention_levels: number of levels, from the coarsest, with self-attention.
        dropout: in the residual blocks.
        scheduler: any diffusers scheduler; its forward process to the last step is the noise. Default: 100 steps with
            linear betas 1e-4...0.01.
    """

    def __init__(
        self,
        embedding_channels: int,
        organs: int,
        *,
        sparse_tokens: int = 2,
        block_out_channels: Sequence[int] = (128, 256, 256),
        layers_per_block: int = 2,
        attention_levels: int = 2,
        dropout: float = 0.0,
        scheduler: DDPMScheduler | None = None,
    ) -> None:
        super().__init__(embedding=embedding_channels)
        self.scheduler = scheduler or DDPMScheduler(num_train_timesteps=100, beta_start=1e-4, beta_end=0.01)
        self.organs, self.embedding_channels, self.sparse_tokens = organs, embedding_channels, sparse_tokens
        encoder, second = (
            conditional_unet(
                embedding_channels,
                embedding_channels,
                organs=organs,
                block_out_channels=block_out_channels,
                layers_per_block=layers_per_block,
                attention_levels=attention_levels,
                dropout=dropout,
            )
            for _ in range(2)
        )
        self.conv_in, self.down_blocks, self.mid_block = encoder.conv_in, encoder.down_blocks, encoder.mid_block
        # the time is the same in every pass, so of the UNet's two embeddings the organ's is the one that is needed
        self.organ_embedding = encoder.class_embedding
        self.dense_branch, self.sparse_branch = DecoderBranch(encoder), DecoderBranch(second)
        self.pool = nn.AdaptiveAvgPool2d((sparse_tokens, 1))

    def forward(self, embedding: Tensor, organ: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prompt embeddings for B pairs of slice and organ.

        Args:
            embedding: image embeddings ``(B, C, h, w)``, not standardised.
            organ: ``(B,)`` labels 0...organs-1.
            noise: ``(B, C, h, w)`` standard normal noise of the forward diffusion; drawn when None.

        Returns:
            Sparse ``(B, P, C)`` and dense ``(B, C, h, w)`` prompt embeddings.
        """
        clean = (embedding - self.embedding_mean) / self.embedding_std
        noise = torch.randn_like(clean) if noise is None else noise.to(clean)
        last = torch.full_like(organ, self.scheduler.config.num_train_timesteps - 1)
        sample = self.scheduler.add_noise(clean, noise, last)
        height, width = sample.shape[-2:]
        sample = self.conv_in(pad_for_unet(sample, len(self.down_blocks)))
        label, skips = self.organ_embedding(organ), (sample,)
        for block in self.down_blocks:
            sample, states = block(sample, label)
            skips += states
        sample = self.mid_block(sample, label)
        dense, sparse = (
            branch(sample, skips, label)[..., :height, :width] for branch in (self.dense_branch, self.sparse_branch)
        )
        return self.pool(sparse)[..., 0].transpose(1, 2), dense


class AutoMedSAM(FrozenBackboneNetwork):
    """Frozen SAM2 prompted by :class:`ClassPromptEncoder` (Figure 2). Slices are segmented one by one.

    The class prompt encoder takes the place of DiffuSAM's prior, under the same attribute, so that the optimizer, the
    exporter with its moving average and the resumable checkpoint are the same.

    Args:
        backbone: the frozen SAM2.
        prior: the class prompt encoder.
        organs, seed, object_gate: see :class:`FrozenBackboneNetwork`.

    Raises:
        ValueError: the encoder was built for another number of organs or other channels than the backbone's.

    Example:
        >>> backbone = FrozenSAM2("sam2_nano", image_size=64)
        >>> encoder = ClassPromptEncoder(128, organs=2, block_out_channels=(32, 64), attention_levels=1)
        >>> AutoMedSAM(backbone, encoder, ["spleen", "liver"])(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    def decode(self, features: ImageFeatures, organ: Tensor, noise: Tensor | None = None) -> Decoded:
        """Output of the frozen mask decoder for the generated prompts of B pairs of slice and organ ``(B,)``."""
        sparse, dense = self.prior(features.embedding, organ, noise)
        return self.backbone.decode_embeddings(self.backbone.condition(features), features, sparse=sparse, dense=dense)

    def segment(self, features: ImageFeatures) -> Tensor:
        """Mask logits of every organ in B slices, gated by the object score: ``(B, organs, S/4, S/4)``."""
        repeated, organ = self.each_organ(features)
        noise = torch.randn((len(self.organs), *features.embedding.shape[1:]), generator=self.generator())
        return self.organ_logits(self.decode(repeated, organ, noise.repeat(len(features), 1, 1, 1)))


class AutoMedSAMTrainer(DiffuSAMTrainer):
    """One iteration: noise the image embedding, generate the prompts, decode them, step the class prompt encoder.

    ``network`` is :class:`AutoMedSAM`, ``loss_function`` is :class:`scripts.automedsam.losses.AutoMedSAMLoss`, whose
    uncertainties belong into the optimizer too; the rest is :class:`DiffuSAMTrainer`'s.
    """

    def _losses(self, network: AutoMedSAM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = ImageFeatures(
            batch["embedding"].float(), (batch["high_res_fine"].float(), batch["high_res_coarse"].float())
        )
        decoded = network.decode(features, batch["organ"], noise_like(features.embedding))
        mask_logits = resize_logits(decoded.mask_logits, network.backbone.image_size)
        return self.loss_function(mask_logits, decoded.object_score, batch["mask"])


class SliceInferer(VolumetricInferer):
    """Runs :class:`AutoMedSAM` over a volume, slice by slice: :class:`VolumetricInferer` without memories.

    Takes the arguments of :class:`VolumetricInferer`, so that a configuration of either network fits; those that say
    how memories are used mean nothing here.

    Raises:
        ValueError: ``samples`` of memories, which AutoMedSAM has none of.
    """

    def __init__(self, *args, samples: int = 0, **kwargs) -> None:
        super().__init__(*args, **{**kwargs, "no_3d": True})
        if samples:
            raise SettingError("uncertainty belongs to DiffuSAM; AutoMedSAM needs it to be 0.")

    def _walk_independent(self, source: VolumeSlices) -> Iterator[tuple[list[int], Tensor]]:
        for indices in source.chunks():
            yield indices, source.network.segment(source.features(indices))
