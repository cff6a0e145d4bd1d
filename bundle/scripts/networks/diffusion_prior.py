"""The diffusion prior p(z_mem | z_img, l): from noise to the memory SAM2 would have had (paper, section 2.1, Figure
1b).

A 2D UNet sees the noised memory beside the projected image embedding, with embeddings of the diffusion time step and of
the organ label, and predicts the clean memory (Equation 1). Memories are not of unit variance, so diffusion runs on
memories standardised per channel. This is the only module that touches diffusers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from ..descriptions import Described
from ..errors import SettingError
from .linear_maps import use_fast_linears
from .sam2_types import ImageFeatures


class ChannelMoments:
    """Mean and standard deviation of each channel over any number of batches ``(B, C, h, w)``, in double precision."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        values = values.double()
        self.total = self.total + values.sum((0, 2, 3))
        self.squares = self.squares + values.square().sum((0, 2, 3))
        self.count += values.numel() // values.shape[1]

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Both ``(1, C, 1, 1)``, float64; at least one batch must have been added."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp_min(1e-8).sqrt()
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def conditional_unet(
    in_channels: int,
    out_channels: int,
    *,
    organs: int | None,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    attention_levels: int,
    dropout: float,
) -> UNet2DModel:
    """The UNet of diffusers with a learned embedding of the organ label, if a number of ``organs`` is given; see
    :class:`MemoryPrior` for the arguments.
    """
    plain = len(block_out_channels) - attention_levels
    unet = UNet2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=layers_per_block,
        block_out_channels=tuple(block_out_channels),
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention_levels,
        up_block_types=("AttnUpBlock2D",) * attention_levels + ("UpBlock2D",) * plain,
        attention_head_dim=32,
        norm_num_groups=16,
        dropout=dropout,
        num_class_embeds=organs,
    )
    use_fast_linears(unet)
    return unet


def pad_for_unet(inputs: Tensor, levels: int) -> Tensor:
    """Pads ``(B, C, h, w)`` at the right and below to a multiple of a UNet's total stride, which the token grid of a
    small image may not be.
    """
    multiple = 2 ** (levels - 1)
    height, width = inputs.shape[-2:]
    return F.pad(inputs, (0, -width % multiple, 0, -height % multiple))


class StandardisingModule(Described, nn.Module):
    """A module that knows mean and standard deviation of its inputs' channels, as buffers.

    Neither memories nor image embeddings have a fixed scale: it depends on the backbone.

    Args:
        channels: number of channels of each kind of input that is standardised, ``memory`` or ``embedding``.
    """

    def __init__(self, **channels: int) -> None:
        super().__init__()
        self.standardised = tuple(channels)
        for name, count in channels.items():
            self.register_buffer(f"{name}_mean", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(1, count, 1, 1))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the per-channel mean and standard deviation of what is standardised.

        Args:
            batches: pairs of training memories ``(B, M, h, w)`` and image embeddings ``(B, C, h, w)``, as
                :meth:`EncodedSlices.statistics_batches` gives them.

        Raises:
            ValueError: no batch at all.
        """
        moments = {name: ChannelMoments() for name in self.standardised}
        for memory, embedding in batches:
            values = {"memory": memory, "embedding": embedding}
            for name, each in moments.items():
                each.add(values[name])
        if not all(each.count for each in moments.values()):
            raise SettingError("Statistics need at least one batch of memories and image embeddings.")
        for name, each in moments.items():
            mean, std = each.mean_and_std()
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)
        self.fitted.fill_(True)


class MemoryPrior(StandardisingModule):
    """Generates SAM2 memories from image features and an organ label.

    Args:
        memory_channels: M, channels of a memory (``FrozenSAM2.memory_channels``).
        embedding_channels: C, channels of the image embedding (``FrozenSAM2.embedding_channels``).
        organs: number of organ labels l.
        condition_channels: channels that the image features are projected to before they meet the noised memory.
        use_high_res: whether the encoder's two finer feature maps are projected too. The paper conditions on the image
            embedding; where that is coarse, as in ``sam2_nano``, the finer maps say where an edge runs inside a token.
        block_out_channels: widths of the UNet's levels; each level after the first halves the resolution.
        layers_per_block: residual blocks in each level.
        attention_levels: number of levels, from the coarsest, with self-attention.
        dropout: in the residual blocks.
        scheduler: diffusers scheduler with the noise schedule and the kind of prediction; steps must be spaced
            ``"trailing"`` so that they start from pure noise. Default: a constant beta of 0.01, 1000 steps,
            clean-memory prediction, no clipping (memories are unbounded).

    Attributes:
        joint: whether one pass denoises the memories of all organs of a slice, which then cannot be had one by one.

    Raises:
        ValueError: a scheduler that clips, that does not start from pure noise, or that predicts something else than
            the clean memory ("sample") or the noise ("epsilon").
    """

    joint = False

    def __init__(
        self,
        memory_channels: int,
        embedding_channels: int,
        *,
        organs: int,
        condition_channels: int = 64,
        use_high_res: bool = False,
        block_out_channels: Sequence[int] = (128, 256, 256),
        layers_per_block: int = 2,
        attention_levels: int = 2,
        dropout: float = 0.0,
        scheduler: DDIMScheduler | None = None,
    ) -> None:
        super().__init__(memory=memory_channels, embedding=embedding_channels)
        self.scheduler = scheduler or DDIMScheduler(
            beta_start=0.01,
            beta_end=0.01,
            beta_schedule="linear",
            clip_sample=False,
            prediction_type="sample",
            timestep_spacing="trailing",
        )
        config = self.scheduler.config
        if config.prediction_type not in ("sample", "epsilon"):
            raise SettingError(f"prediction_type must be 'sample' or 'epsilon', got '{config.prediction_type}'.")
        for setting in ("clip_sample", "thresholding"):
            if config.get(setting):
                raise SettingError(
                    f"The scheduler needs {setting}=False: memories are unbounded, and clipping damages them."
                )
        if config.timestep_spacing != "trailing":
            raise SettingError(
                "The scheduler needs timestep_spacing='trailing', because sampling starts from pure noise, got "
                f"'{config.timestep_spacing}'."
            )
        self.organs, self.use_high_res = organs, use_high_res
        self.memory_channels, self.embedding_channels = memory_channels, embedding_channels
        self.condition = nn.Conv2d(embedding_channels, condition_channels, kernel_size=1)
        if use_high_res:
            self.condition_fine = nn.Sequential(
                nn.Conv2d(embedding_channels // 8, condition_channels // 2, kernel_size=2, stride=2), nn.SiLU()
            )
            self.condition_coarse = nn.Sequential(
                nn.Conv2d(
                    embedding_channels // 4 + condition_channels // 2, condition_channels, kernel_size=2, stride=2
                ),
                nn.SiLU(),
                nn.Conv2d(condition_channels, condition_channels, kernel_size=1),
            )
        groups = organs if self.joint else 1
        self.unet = conditional_unet(
            groups * memory_channels + condition_channels * (1 + use_high_res),
            groups * memory_channels,
            organs=None if self.joint else organs,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            attention_levels=attention_levels,
            dropout=dropout,
        )

    def standardise(self, memory: Tensor) -> Tensor:
        return (memory - self.memory_mean) / self.memory_std

    def destandardise(self, memory: Tensor) -> Tensor:
        return memory * self.memory_std + self.memory_mean

    def project(self, features: ImageFeatures) -> Tensor:
        """The condition of the UNet, made once a slice and used in every step: ``(B, condition channels, h, w)``.

        Args:
            features: of the B slices.
        """
        embedding = (features.embedding - self.embedding_mean) / self.embedding_std
        parts = [self.condition(embedding)]
        if self.use_high_res:
            fine = self.condition_fine(features.high_res[0])
            parts.append(self.condition_coarse(torch.cat([features.high_res[1], fine], 1)))
        return torch.cat(parts, 1)

    def _condition(self, features: ImageFeatures, rows: int) -> Tensor:
        """What :meth:`predict` is given of some slices, for as many rows of slices and organs."""
        return self.project(features).repeat_interleave(rows // len(features), 0)

    def _own(self, memory: Tensor, organ: Tensor) -> Tensor:
        """Of memories as they are denoised, those of each row's organ."""
        return memory

    def predict(self, noised: Tensor, timestep: Tensor, condition: Tensor, organ: Tensor | None) -> Tensor:
        """f_theta of Equation 1, on standardised memories.

        Args:
            noised: ``(B, M, h, w)`` standardised memories at ``timestep``.
            timestep: ``(B,)`` or scalar, 0...T-1.
            condition: of :meth:`project`.
            organ: ``(B,)`` labels 0...organs-1.

        Returns:
            The UNet's output ``(B, M, h, w)``: clean standardised memory, or noise with ``prediction_type="epsilon"``.
        """
        height, width = noised.shape[-2:]
        inputs = pad_for_unet(torch.cat([noised, condition], dim=1), len(self.unet.config.block_out_channels))
        return self.unet(inputs, timestep, class_labels=organ).sample[..., :height, :width]

    def forward(
        self,
        memory: Tensor,
        features: ImageFeatures,
        organ: Tensor,
        timestep: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One training step's prediction: noise the true memory, denoise it.

        Args:
            memory: true memories ``(B, M, h, w)``, not standardised.
            features: of the B slices.
            organ: ``(B,)``.
            timestep: ``(B,)``; drawn uniformly when None.
            noise: standard normal, of the shape of ``memory``; drawn when None.

        Returns:
            The squared error of Equation 1, averaged per item ``(B,)``, and the denoised memory ``(B, M, h, w)``, not
            standardised, with its gradient.
        """
        clean = self.standardise(memory)
        if timestep is None:
            timestep = torch.randint(0, self.scheduler.config.num_train_timesteps, organ.shape, device=organ.device)
        noise = torch.randn_like(clean) if noise is None else noise
        noised = self.scheduler.add_noise(clean, noise, timestep)
        predicted = self.predict(noised, timestep, self._condition(features, len(organ)), organ)
        if self.scheduler.config.prediction_type == "epsilon":
            error = (predicted - noise).square()
            alpha = self.scheduler.alphas_cumprod.to(clean.device)[timestep].view(-1, *[1] * (clean.ndim - 1))
            denoised = (noised - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        else:
            error, denoised = (predicted - clean).square(), predicted
        return error.mean(tuple(range(1, error.ndim))), self._own(self.destandardise(denoised), organ)

    def time_pairs(self, steps: int) -> list[tuple[int, int]]:
        """The pairs (t, next t) that sampling walks through; -1 stands for the clean memory.

        >>> prior = MemoryPrior(8, 16, organs=1, block_out_channels=(16, 32), attention_levels=1)
        >>> prior.time_pairs(2)
        [(999, 499), (499, -1)]
        """
        self._check_steps(steps)
        longest = self.scheduler.config.num_train_timesteps
        times = [(longest * (steps - index) + steps // 2) // steps - 1 for index in range(steps)]
        return list(zip(times, times[1:] + [-1]))

    def _check_steps(self, steps: int) -> None:
        longest = self.scheduler.config.num_train_timesteps
        if not isinstance(steps, int) or not 1 <= steps <= longest:
            raise SettingError(f"The number of inference steps must be an integer in 1...{longest}, got {steps!r}.")

    def _step(
        self, predicted: Tensor, sample: Tensor, *, time: int, next_time: int, eta: float, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One DDIM step (Song et al. 2021, Equation 12) along an explicit pair of times: the clean memory as predicted
        at the first, and the sample at the second.

        diffusers' own ``step`` goes to ``time - T // steps``, which is another time than the next one it lists wherever
        ``steps`` does not divide T, and need not end at the clean memory.
        """
        alphas = self.scheduler.alphas_cumprod
        alpha = float(alphas[time])
        next_alpha = float(alphas[next_time]) if next_time >= 0 else 1.0
        if self.scheduler.config.prediction_type == "epsilon":
            noise = predicted
            clean = (sample - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        else:
            clean = predicted
            noise = (sample - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        sigma = eta * ((1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)) ** 0.5
        following = next_alpha**0.5 * clean + max(1 - next_alpha - sigma**2, 0.0) ** 0.5 * noise
        return clean, following + sigma * fresh if sigma > 0 else following

    @torch.no_grad()
    def sample(
        self,
        features: ImageFeatures,
        organ: Tensor,
        steps: int = 2,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Memories from pure noise (section 2.1; two steps in the paper).

        Args:
            features: of B slices.
            organ: ``(B * K,)``, for K organs in each slice, running fastest.
            steps: denoising steps, usually 1...50; two walk 999 -> 499 -> clean.
            eta: 0 is DDIM, 1 the ancestral noise of DDPM.
            generator: of the noise, on the CPU so that every device draws the same.
            noise: ``(B * K, M, h, w)`` to start from, instead of drawing it.

        Returns:
            ``(B * K, M, h, w)``.

        Raises:
            ValueError: a number of steps out of range.
        """
        chain = self.denoise(features, organ, steps=steps, eta=eta, generator=generator, noise=noise)
        ((_, memory),) = deque(chain, maxlen=1)  # only its end counts
        return memory

    @torch.no_grad()
    def denoise(
        self,
        features: ImageFeatures,
        organ: Tensor,
        *,
        steps: int,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The chain of :meth:`sample`, whose arguments it has: after every step the clean memory that was predicted and
        the sample, each ``(B * K, M, h, w)``. After the last step they are the same.
        """
        self._check_steps(steps)
        condition = self._condition(features, len(organ))
        shape = (len(organ), self.memory_channels, *features.embedding.shape[-2:])
        if noise is None:
            noise = torch.randn(shape, generator=generator)
        sample = noise.to(condition)
        for time, next_time in self.time_pairs(steps):
            timestep = torch.full((len(organ),), time, device=organ.device)
            predicted = self.predict(sample, timestep, condition, organ)
            # the same noise for an organ in every slice, so that results do not depend on the batch
            fresh = (
                torch.randn((self.organs, *shape[1:]), generator=generator)[organ.cpu()].to(sample) if eta > 0 else None
            )
            clean, sample = self._step(predicted, sample, time=time, next_time=next_time, eta=eta, fresh=fresh)
            yield self.destandardise(clean), self.destandardise(sample)
