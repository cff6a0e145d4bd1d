"""Ignite handlers that MONAI does not have: exact resuming, seeding by epoch, exporting the prior."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch.optim.swa_utils import AveragedModel

from ..files import whole_file

if TYPE_CHECKING:
    from ..networks.diffusam import DiffuSAM

logger = logging.getLogger(__name__)


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` through a temporary name, so that ``path`` is either the old file or the whole new one."""
    with whole_file(path, unique=True) as temporary:  # processes that train together encode into one cache
        torch.save(content, temporary)


class ResumableCheckpoint:
    """Writes one checkpoint of everything that training needs, and takes it up again when the same command is repeated.

    MONAI's ``CheckpointSaver`` writes in place and under changing names, so a run killed while saving loses its
    checkpoint and a config cannot name the file to resume from; this one replaces a single file atomically. Of several
    processes all read it, and the first writes it.

    Args:
        path: the checkpoint file.
        save_dict: objects with ``state_dict`` and ``load_state_dict``; the engine itself is added as ``"trainer"``.
        resume: whether an existing file is loaded when the engine starts.
        interval: epochs between two writes; the last epoch is always written.
    """

    def __init__(self, path: str | Path, save_dict: Mapping[str, Any], resume: bool = True, interval: int = 1) -> None:
        self.path, self.save_dict, self.resume, self.interval = Path(path), dict(save_dict), resume, interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        if not self.resume or not self.path.is_file():
            return
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        for key, item in self.save_dict.items():
            item.load_state_dict(checkpoint.get(key, {}))  # nothing stands for what has no state, such as a plain loss
        max_epochs = engine.state.max_epochs
        if checkpoint["trainer"]["iteration"] >= max_epochs * engine.state.epoch_length:
            logger.info("'%s' is of a finished training: nothing left to do.", self.path)
            engine.terminate()
            return
        engine.load_state_dict({**checkpoint["trainer"], "max_epochs": max_epochs})
        logger.info("Resumed from '%s' at iteration %d.", self.path, engine.state.iteration)

    def save(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval and engine.state.epoch != engine.state.max_epochs:
            return
        checkpoint = {key: item.state_dict() for key, item in self.save_dict.items()}
        save_atomically({**checkpoint, "trainer": dict(engine.state_dict())}, self.path)


class SeedEpoch:
    """Seeds PyTorch at the start of each epoch and tells the data set which epoch it is.

    A run that resumes after epoch n then draws in epoch n + 1 what an uninterrupted run would have drawn.
    """

    def __init__(self, seed: int, dataset: Any = None) -> None:
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        torch.manual_seed(self.seed * 100_003 + engine.state.epoch)
        if self.dataset is not None:
            self.dataset.set_epoch(engine.state.epoch)


class PriorExporter:
    """Writes the trained prior (the network's state, without the backbone) from one process: at the end and on the way.

    Args:
        network: the DiffuSAM in training.
        path: the file to write, atomically.
        ema_decay: if above 0, the exported weights are an exponential moving average with this decay, which is
            shorter in the first iterations so that the average forgets the initialisation.
        snapshots: iterations after which the prior is written beside ``path`` as well, each to a file of its own: that
            after 100 iterations to ``model_000100.pt`` beside ``model.pt``.
        about: what else the files hold, such as ``{"organ_volumes": ...}``, by which
            :class:`~scripts.inference.quality.QualityCheck` judges organs.
    """

    def __init__(
        self,
        network: DiffuSAM,
        path: str | Path,
        ema_decay: float = 0.0,
        snapshots: Sequence[int] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
        self.network, self.path, self.ema_decay, self.about = network, Path(path), ema_decay, dict(about or {})
        self.snapshots = frozenset(snapshots)
        self.average = AveragedModel(network.prior, multi_avg_fn=self._average) if ema_decay else None

    @torch.no_grad()
    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor) -> None:
        decay = min(self.ema_decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        if self.average is not None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda: self.average.update_parameters(self.network.prior)
            )
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.export_snapshot)
        engine.add_event_handler(Events.COMPLETED, self.export)

    def export_snapshot(self, engine: Engine) -> None:
        iteration = engine.state.iteration
        if iteration in self.snapshots:
            self._write(self.path.with_name(f"{self.path.stem}_{iteration:06d}{self.path.suffix}"))

    def export(self, engine: Engine) -> None:
        self._write(self.path)

    def _write(self, path: Path) -> None:
        state = self.network.state_dict()
        if self.average is not None and int(self.average.n_averaged):
            averaged = dict(self.average.module.named_parameters())
            state.update({f"prior.{key}": value.detach() for key, value in averaged.items()})
        save_atomically({"model": state, **self.about}, path)
        logger.info("Wrote the trained prior to '%s'.", path)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.average is not None and state:
            self.average.load_state_dict(state)


class LossProgressBar(ProgressBar):
    """Ignite's progress bar with the losses of the present iteration beside it."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine, output_transform=lambda output: {key: float(value) for key, value in output[0].items()})
