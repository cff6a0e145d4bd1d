"""Training of the memory prior on cached slices: MONAI's supervised trainer with DiffuSAM's iteration (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .diffusam import DiffuSAM
from .sam2_backbone import ImageFeatures, Memory, resize_logits


class DiffuSAMTrainer(SupervisedTrainer):
    """One iteration: noise the true memory, denoise it, decode the denoised memory, sum both losses, step the prior.

    Takes every argument of MONAI's ``SupervisedTrainer``; ``network`` is :class:`DiffuSAM`, ``loss_function`` is
    :class:`DiffuSAMLoss`, and batches are those of :class:`EncodedSlices`.

    Args:
        max_grad_norm: the prior's gradient is clipped to this norm; None leaves it.
        timesteps: the diffusion times that are drawn from, such as those that inference visits; None draws from all,
            as the paper does.
    """

    def __init__(
        self,
        *args: Any,
        max_grad_norm: float | None = 1.0,
        timesteps: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.max_grad_norm = max_grad_norm
        self.timesteps = None if timesteps is None else torch.tensor(list(timesteps))

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {key: value.to(self.state.device, non_blocking=self.non_blocking) for key, value in batchdata.items()}
        network: DiffuSAM = getattr(self.network, "module", self.network)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            losses = self._losses(network, batch)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if self.amp and self.scaler is not None:
            self.scaler.scale(losses["loss"]).backward()
            self.scaler.unscale_(self.optimizer)
        else:
            losses["loss"].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.max_grad_norm is not None:
            clip_grad_norm_(network.prior.parameters(), self.max_grad_norm)
        if self.amp and self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        engine.state.output = {key: value.detach() for key, value in losses.items()}
        return engine.state.output

    def _losses(self, network: DiffuSAM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = ImageFeatures(
            batch["embedding"].float(), (batch["high_res_fine"].float(), batch["high_res_coarse"].float())
        )
        timestep = None
        if self.timesteps is not None:
            chosen = torch.randint(len(self.timesteps), batch["organ"].shape)
            timestep = self.timesteps[chosen].to(batch["organ"].device)
        prior_error, memory = network.prior(batch["memory"].float(), features, batch["organ"], timestep)
        decoded = network.backbone.decode(network.backbone.condition(features, [Memory(memory)]), features)
        mask_logits = resize_logits(decoded.mask_logits, network.backbone.image_size)
        return self.loss_function(prior_error, mask_logits, decoded.object_score, batch["mask"])
