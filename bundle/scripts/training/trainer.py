"""Training of the memory prior on cached slices: MONAI's supervised trainer with DiffuSAM's iteration (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from ..descriptions import Described
from ..errors import RefusedError, SettingError, listed
from ..networks.diffusam import DiffuSAM
from ..networks.logits import resize_logits
from ..networks.sam2_types import ImageFeatures, Memory
from .parallel import draw_rows, means_over_processes, noise_like
from .random_contrasts import RandContrasts


class TrainingStep(nn.Module):
    """Network, loss and what lies between them as one module, from a batch to losses.

    ``DistributedDataParallel`` averages the gradients of what is computed through it; training calls the parts of the
    network one by one, so that wrapping the network itself would average nothing.

    Args:
        network: has the parameters.
        loss: may have some too.
        compute: from the network and a batch to the losses.
    """

    def __init__(self, network: nn.Module, loss: nn.Module, *, compute: Callable) -> None:
        super().__init__()
        self.network, self.loss, self.compute = network, loss, compute

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.compute(self.network, batch)


class DiffuSAMTrainer(Described, SupervisedTrainer):
    """One iteration: noise the true memory, denoise it, decode the denoised memory, sum both losses, step the prior.

    Takes every argument of MONAI's ``SupervisedTrainer``; ``network`` is :class:`DiffuSAM`, ``loss_function`` is
    :class:`DiffuSAMLoss`, and batches are those of :class:`EncodedSlices`. ``engine.state.output`` is a list of one
    dictionary with the losses, as MONAI's handlers and ``from_engine([...], first=True)`` take it.

    In several processes (:mod:`scripts.training.parallel`) gradients are averaged over all of them, and so are the
    losses.

    Args:
        max_grad_norm: the prior's gradient is clipped to this norm, and so is that of a head that names organs; None
            leaves them.
        timesteps: the diffusion times that are drawn from, such as those that inference visits; None draws from all,
            as the paper does.
        iterations: after which training ends, within an epoch if need be; None trains whole epochs.
        random_contrasts: in which a head with an image encoder of its own sees some of the slices; None or a share of 0
            shows all as they are.

    Where the prior has no part in the loss, it stays as it is, and a head that names organs is all that is trained.

    A loss that is not finite ends the training, before it changes any weight, with a :class:`RefusedError`.
    """

    def __init__(
        self,
        *args: Any,
        max_grad_norm: float | None = 1.0,
        timesteps: Sequence[int] | None = None,
        iterations: int | None = None,
        random_contrasts: RandContrasts | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        names = self.network.names
        sees = names is not None and names.reads_images
        if random_contrasts is not None and random_contrasts.share and not sees:
            raise SettingError(
                f"random_contrasts is {random_contrasts.share:g}, but nothing that is trained sees slices: only a head "
                "with an image encoder of its own does (--named_memories True --names_encoder True)."
            )
        self.random_contrasts = random_contrasts
        if iterations is not None:
            if iterations < 1:
                raise SettingError(f"iterations must be 1 or more, got {iterations}.")
            self.add_event_handler(Events.ITERATION_COMPLETED, self._end_at, iterations)
        self.max_grad_norm = max_grad_norm
        self.timesteps = None if timesteps is None else torch.tensor(list(timesteps))
        if names is not None:
            names.requires_grad_(self.loss_function.lambda_names > 0)
            names.coarse.requires_grad_(False)  # of the embedding alone, for which no loss asks here
        self.trains_prior = self.loss_function.trains_prior
        self.network.prior.requires_grad_(self.trains_prior)
        if not any(parameter.requires_grad for parameter in self.network.trained_parameters()):
            raise SettingError(
                "Nothing would be trained: lambda_prior and lambda_seg are 0, and no head names organs, or "
                "lambda_names is 0 too. Set --lambda_prior 1 --lambda_seg 1, or --named_memories True."
            )
        self.step: nn.Module = TrainingStep(self.network, self.loss_function, compute=self._losses)
        if idist.get_world_size() > 1:
            self.step = DistributedDataParallel(self.step, broadcast_buffers=False)

    def described(self) -> dict[str, Any]:
        """What an iteration does with a batch; the other arguments have descriptions of their own."""
        times = None if self.timesteps is None else self.timesteps.tolist()
        return {
            **{"max_grad_norm": self.max_grad_norm, "timesteps": times, "processes": idist.get_world_size()},
            **{"amp": self.amp, "amp_kwargs": self.amp_kwargs},
        }

    @staticmethod
    def _end_at(engine: Engine, iterations: int) -> None:
        if engine.state.iteration == iterations and iterations % engine.state.epoch_length:
            engine.terminate_epoch()

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> list[dict[str, Tensor]]:
        batch = {
            key: value.to(self.state.device, non_blocking=self.non_blocking)
            for key, value in batchdata.items()
            if isinstance(value, Tensor)
        }
        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            losses = self.step(batch)
        means = means_over_processes(losses)  # so that all processes end where one of them must
        self._check_finite(engine, means, batchdata)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if self.amp and self.scaler is not None:
            self.scaler.scale(losses["loss"]).backward()
            self.scaler.unscale_(self.optimizer)
        else:
            losses["loss"].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.network.prior.parameters(), self.max_grad_norm)
            if self.network.names is not None:
                clip_grad_norm_(self.network.names.parameters(), self.max_grad_norm)
        if self.amp and self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        engine.state.output = [means]
        return engine.state.output

    @staticmethod
    def _check_finite(engine: Engine, losses: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        if torch.isfinite(losses["loss"]):
            return
        values = ", ".join(f"{key} {value.item():g}" for key, value in losses.items())
        cases = f" It saw slices of {listed(sorted(set(batch['case'])))}." if "case" in batch else ""
        raise RefusedError(
            f"The loss is not finite in iteration {engine.state.iteration} ({values}).{cases} Training ends here; what "
            "was finite before is kept in its checkpoint. Train with a smaller --learning_rate, or look at the images "
            "and labels of these cases."
        )

    def _losses(self, network: DiffuSAM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = ImageFeatures(
            batch["embedding"].float(),
            (batch["high_res_fine"].float(), batch["high_res_coarse"].float()),
            batch["image"].float() if "image" in batch else None,
        )
        losses = self._prior_losses(network, batch, features) if self.trains_prior else {}
        if network.names is not None and self.loss_function.lambda_names:
            seen = features
            if self.random_contrasts is not None and features.image is not None:
                seen = replace(features, image=self.random_contrasts(features.image, batch["label"]))
            _, named = network.names(seen)
            naming = self.loss_function.naming(named, batch["label"], len(network.organs))
            losses["loss"] = losses.get("loss", 0) + self.loss_function.lambda_names * naming
            losses["names_loss"] = naming.detach()
        return losses

    def _prior_losses(self, network: DiffuSAM, batch: dict[str, Tensor], features: ImageFeatures) -> dict[str, Tensor]:
        true_memory, organ = batch["memory"].float(), batch["organ"]
        timestep = draw_rows(lambda rows: self._draw_timesteps(network, rows, organ.device), len(organ))
        prior_error, memory = network.prior(true_memory, features, organ, timestep, noise_like(true_memory))
        decoded = network.backbone.decode(network.backbone.condition(features, [Memory(memory)]), features)
        mask_logits = resize_logits(decoded.mask_logits, network.backbone.image_size)
        return self.loss_function(prior_error, mask_logits, decoded.object_score, batch["mask"])

    def _draw_timesteps(self, network: DiffuSAM, count: int, device: torch.device) -> Tensor:
        if self.timesteps is None:
            return torch.randint(network.prior.scheduler.config.num_train_timesteps, (count,), device=device)
        return self.timesteps[torch.randint(len(self.timesteps), (count,))].to(device)
