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

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from .diffusam import DiffuSAM, _drop_backbone, _keep_backbone
from .diffusion_prior import ChannelMoments
from .parallel import noise_like
from .propagation import VolumetricInferer, _Slices
from .sam2_backbone import Decoded, FrozenSAM2, ImageFeatures, resize_logits, with_background
from .trainer import DiffuSAMTrainer


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


class ClassPromptEncoder(nn.Module):
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
        sparse_tokens: int = 2,
        block_out_channels: Sequence[int] = (128, 256, 256),
        layers_per_block: int = 2,
        attention_levels: int = 2,
        dropout: float = 0.0,
        scheduler: DDPMScheduler | None = None,
    ) -> None:
        super().__init__()
        self.scheduler = scheduler or DDPMScheduler(num_train_timesteps=100, beta_start=1e-4, beta_end=0.01)
        self.organs, self.embedding_channels, self.sparse_tokens = organs, embedding_channels, sparse_tokens
        plain = len(block_out_channels) - attention_levels
        encoder, second = (
            UNet2DModel(
                in_channels=embedding_channels,
                out_channels=embedding_channels,
                layers_per_block=layers_per_block,
                block_out_channels=tuple(block_out_channels),
                down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention_levels,
                up_block_types=("AttnUpBlock2D",) * attention_levels + ("UpBlock2D",) * plain,
                attention_head_dim=32,
                norm_num_groups=16,
                dropout=dropout,
                num_class_embeds=organs,
            )
            for _ in range(2)
        )
        self.conv_in, self.down_blocks, self.mid_block = encoder.conv_in, encoder.down_blocks, encoder.mid_block
        # the time is the same in every pass, so of the UNet's two embeddings the organ's is the one that is needed
        self.organ_embedding = encoder.class_embedding
        self.dense_branch, self.sparse_branch = DecoderBranch(encoder), DecoderBranch(second)
        self.pool = nn.AdaptiveAvgPool2d((sparse_tokens, 1))
        self.stride = 2 ** (len(block_out_channels) - 1)
        self.register_buffer("embedding_mean", torch.zeros(1, embedding_channels, 1, 1))
        self.register_buffer("embedding_std", torch.ones(1, embedding_channels, 1, 1))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the per-channel mean and standard deviation of image embeddings.

        Args:
            batches: pairs of training memories, which are not read, and image embeddings ``(B, C, h, w)``, as
                :meth:`EncodedSlices.statistics_batches` gives them.

        Raises:
            ValueError: no batch at all.
        """
        moments = ChannelMoments()
        for _, embedding in batches:
            moments.add(embedding)
        if not moments.count:
            raise ValueError("Statistics need at least one batch of image embeddings.")
        mean, std = moments.mean_and_std()
        self.embedding_mean.copy_(mean)
        self.embedding_std.copy_(std)
        self.fitted.fill_(True)

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
        # any image size: the UNet wants a multiple of its total stride, which a small embedding may not be
        sample = self.conv_in(F.pad(sample, (0, -width % self.stride, 0, -height % self.stride)))
        label, skips = self.organ_embedding(organ), (sample,)
        for block in self.down_blocks:
            sample, states = block(sample, label)
            skips += states
        sample = self.mid_block(sample, label)
        dense, sparse = (
            branch(sample, skips, label)[..., :height, :width] for branch in (self.dense_branch, self.sparse_branch)
        )
        return self.pool(sparse)[..., 0].transpose(1, 2), dense


class AutoMedSAM(nn.Module):
    """Frozen SAM2 prompted by :class:`ClassPromptEncoder` (Figure 2). Slices are segmented one by one.

    The class prompt encoder takes the place of DiffuSAM's prior, under the same attribute, so that the optimizer, the
    exporter with its moving average and the resumable checkpoint are the same. The exported file remembers backbone and
    organs as DiffuSAM's does, and that it is AutoMedSAM's.

    Args:
        backbone: the frozen SAM2.
        prior: the class prompt encoder.
        organs: names of the organs; output channel 0 is background, channel 1 + i is ``organs[i]``.
        seed: of the noise, the same for every slice, so that results do not depend on batching. None draws anew.
        object_gate: whether an organ is left out of a slice where SAM2's object score says it is absent.

    Raises:
        ValueError: the encoder was built for another number of organs or other channels than the backbone's.

    Example:
        >>> backbone = FrozenSAM2("sam2_nano", image_size=64)
        >>> encoder = ClassPromptEncoder(128, organs=2, block_out_channels=(32, 64), attention_levels=1)
        >>> AutoMedSAM(backbone, encoder, ["spleen", "liver"])(torch.rand(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    organ_logits = DiffuSAM.organ_logits

    def __init__(
        self,
        backbone: FrozenSAM2,
        prior: ClassPromptEncoder,
        organs: Sequence[str],
        seed: int | None = 0,
        object_gate: bool = True,
    ) -> None:
        super().__init__()
        if prior.organs != len(organs):
            raise ValueError(
                f"The class prompt encoder was built for {prior.organs} organs, but {len(organs)} are named: "
                f"{list(organs)}."
            )
        if prior.embedding_channels != backbone.embedding_channels:
            raise ValueError(
                f"The class prompt encoder works on image embeddings of {prior.embedding_channels} channels, backbone "
                f"'{backbone.name}' has {backbone.embedding_channels}."
            )
        self.backbone, self.prior, self.organs = backbone, prior, list(organs)
        self.seed, self.object_gate = seed, object_gate
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)

    def decode(self, features: ImageFeatures, organ: Tensor, noise: Tensor | None = None) -> Decoded:
        """What the frozen mask decoder makes of the generated prompts, for B pairs of slice and organ ``(B,)``."""
        sparse, dense = self.prior(features.embedding, organ, noise)
        return self.backbone.decode_embeddings(self.backbone.condition(features), features, sparse, dense)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of single slices.

        Args:
            image: ``(B, 1, S, S)`` in [0, 1].

        Returns:
            ``(B, 1 + organs, S, S)``; background is 0 everywhere, so the arg-max over channels is the label map.
        """
        logits = resize_logits(self.segment(self.backbone.encode_image(image)), self.backbone.image_size)
        return with_background(logits)

    def segment(self, features: ImageFeatures) -> Tensor:
        """Mask logits of every organ in B slices, gated by the object score: ``(B, organs, S/4, S/4)``."""
        slices, count = len(features), len(self.organs)
        organ = torch.arange(count, device=features.embedding.device).repeat(slices)
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        # on the CPU, so that every device draws the same
        noise = torch.randn((count, *features.embedding.shape[1:]), generator=generator).repeat(slices, 1, 1, 1)
        return self.organ_logits(self.decode(features.repeat_interleave(count), organ, noise))

    def get_extra_state(self) -> dict:
        return {"network": type(self).__name__, **DiffuSAM.get_extra_state(self)}

    def set_extra_state(self, state: dict) -> None:
        if state.get("network") != type(self).__name__:
            raise ValueError(
                "This file is not of an AutoMedSAM training: it holds a "
                f"{state.get('network', 'DiffuSAM')} prior, trained for the organs {state['organs']}. Leave "
                "'configs/automedsam.json' out to use it, or point `prior_file` at a file trained with it."
            )
        DiffuSAM.set_extra_state(self, state)


class AutoMedSAMTrainer(DiffuSAMTrainer):
    """One iteration: noise the image embedding, generate the prompts, decode them, step the class prompt encoder.

    ``network`` is :class:`AutoMedSAM`, ``loss_function`` is :class:`scripts.automedsam_losses.AutoMedSAMLoss`, whose
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

    Args:
        batch_size: slices at a time.
        output: ``"labels"``, ``"labels_and_organs"`` or ``"logits"``; see :class:`VolumetricInferer`.
    """

    def __init__(self, batch_size: int = 8, output: str = "labels") -> None:
        super().__init__(no_3d=True, batch_size=batch_size, output=output)

    def _walk_independent(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        for indices in torch.arange(source.count).split(self.batch_size):
            yield indices.tolist(), source.network.segment(source.features(indices.tolist()))
