"""Ignite handlers that MONAI does not have: exact resuming, seeding by epoch, exporting the prior."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel

from ..arguments import given_options
from ..console import Progress
from ..descriptions import Described, describe, differences
from ..errors import SHOWN, RefusedError, SettingError, UnusableFileError, count, listed, one_line
from ..files import hold, let_go
from ..weights import load_tensors, not_finite, on_cpu, save_atomically

if TYPE_CHECKING:
    from ..networks.diffusam import DiffuSAM

logger = logging.getLogger(__name__)


class ResumableCheckpoint:
    """Writes one checkpoint of everything that training needs, and takes it up again when the same command is repeated.

    MONAI's ``CheckpointSaver`` writes in place and under changing names, so a run killed while saving loses its
    checkpoint and a config cannot name the file to resume from; this one replaces a single file atomically. Of several
    processes all read it, and the first writes it.

    A checkpoint of another training is refused, and the differences are named: going on from it would give a mixture
    of both. State that is not finite is never written.

    The folder of the file is this training's from :meth:`check` on until it has ended: of two at once, each would write
    over what the other has done.

    A training may end within an epoch. Its state is then kept beside that of the last whole epoch, from which a longer
    training goes on: it draws in that epoch what it would have drawn without the end.

    Args:
        path: the checkpoint file.
        save_dict: objects with ``state_dict`` and ``load_state_dict``; the engine itself is added as ``"trainer"``, and
            its gradient scaler, where it has one, as ``"scaler"``.
        resume: whether an existing file is loaded when the engine starts.
        identity: what the training is, see :func:`scripts.training.identity.training_identity`; None is never compared.
        iterations: that the training takes in all; None stands for whole epochs.
    """

    def __init__(
        self,
        path: str | Path,
        save_dict: Mapping[str, Any],
        *,
        resume: bool = True,
        identity: Mapping[str, Any] | None = None,
        iterations: int | None = None,
    ) -> None:
        self.path, self.save_dict, self.resume = Path(path), dict(save_dict), resume
        self.identity, self.iterations = None if identity is None else describe(identity), iterations
        self._taken_up = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
            engine.add_event_handler(Events.COMPLETED, lambda: let_go(self.path.with_name(_TAKEN)))

    def check(self) -> None:
        """Refuses a checkpoint that :meth:`load` would, before anything expensive starts.

        Raises:
            SettingError: it is of another training, or of more iterations than are asked for.
            UnusableFileError: it is empty, damaged or something else.
            RefusedError: another process is at work on a training in this folder.
        """
        if self.resume and self.path.is_file():
            self._check(load_tensors(self.path, "checkpoint", remedy=_REMEDY, mmap=True), self.identity)
        self._take_folder()

    def _take_folder(self) -> None:
        if idist.get_rank() > 0 or os.environ.get("RANK", "0") != "0":  # of several processes, the first writes
            return
        own = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        other = hold(self.path.with_name(_TAKEN), own)
        if other is not None:
            raise RefusedError(
                f"'{self.path.parent}': another training ({one_line(other)}) is at work in this folder. Wait until it "
                "has ended, or set --output_dir to another folder (with diffusam: -o)."
            )

    def load(self, engine: Engine) -> None:
        self._take_folder()
        if not self.resume or not self.path.is_file():
            return
        checkpoint = load_tensors(self.path, "checkpoint", remedy=_REMEDY)
        max_epochs = engine.state.max_epochs
        iterations = self.iterations or max_epochs * engine.state.epoch_length
        self._check(checkpoint, self._identity(engine))
        self._taken_up = True
        done = _done(checkpoint)
        if done >= iterations:
            self._restore(checkpoint.get("end", checkpoint), engine)
            logger.info("'%s' is of a finished training: nothing left to do.%s", self.path, self._idle_options())
            engine.terminate()
        elif "trainer" in checkpoint:  # otherwise it ended in its first epoch
            self._restore(checkpoint, engine)
            engine.load_state_dict({**checkpoint["trainer"], "max_epochs": max_epochs})
            logger.info("Resumed from '%s' at iteration %d.", self.path, engine.state.iteration)

    def save(self, engine: Engine) -> None:
        state = engine.state
        content = {key: on_cpu(item.state_dict()) for key, item in self.save_dict.items()}
        if scaler := getattr(engine, "scaler", None):
            content["scaler"] = on_cpu(scaler.state_dict())
        spoilt = not_finite({key: content.get(key, {}) for key in ("model", "average", "loss")})
        if spoilt:
            raise RefusedError(
                f"After iteration {state.iteration}, {len(spoilt)} of the trained tensors hold NaN or infinite numbers "
                f"(such as '{spoilt[0]}'). The last finite checkpoint stays in '{self.path}'. Train with a smaller "
                "--learning_rate."
            )
        content["trainer"] = dict(engine.state_dict())
        if state.iteration != state.epoch * (state.epoch_length or 0):
            before = load_tensors(self.path, "checkpoint", remedy=_REMEDY) if self._taken_up else {}
            content = {**before, "end": content}
        save_atomically({**content, "identity": self._identity(engine)}, self.path)
        self._taken_up = True

    def _identity(self, engine: Engine) -> dict[str, Any] | None:
        if self.identity is None:
            return None
        return {**self.identity, "trainer": describe(engine) if isinstance(engine, Described) else None}

    def _idle_options(self) -> str:
        """Which of the command line's options have no effect where nothing is left to train, and what would have."""
        idle = [f"--{name}" for name in given_options() if name in _WHILE_TRAINING]
        factors = (self.identity or {}).get("lr_scheduler", {}).get("factors")
        # rates that follow the share of all iterations are others in a longer training, which is another one
        longer = "a larger --iterations goes on, " if factors and all(len(set(each)) == 1 for each in factors) else ""
        return f" Without effect: {listed(idle)}; {longer}--resume False trains anew." if idle else ""

    def _check_part(self, part: Any) -> None:
        """Refuses a state that lacks what this training has one of; nothing stands for what has none, such as a plain
        loss.
        """
        trainer = part.get("trainer") if isinstance(part, Mapping) else None
        if not isinstance(trainer, Mapping) or not isinstance(trainer.get("iteration"), int):
            raise UnusableFileError(self._unlike("trainer"))
        for key, item in self.save_dict.items():
            if not isinstance(part.get(key, {}), Mapping) or (item.state_dict() and not part.get(key)):
                raise UnusableFileError(self._unlike(key))

    def _unlike(self, key: str) -> str:
        found = f"its '{key}' is missing, or something else"
        return f"'{self.path}' is no whole checkpoint of a training: {found}. {_REMEDY}"

    def _restore(self, checkpoint: Mapping[str, Any], engine: Engine) -> None:
        for key, item in self.save_dict.items():
            try:
                item.load_state_dict(checkpoint.get(key, {}))
            except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                raise UnusableFileError(self._unlike(key)) from error
        scaler = getattr(engine, "scaler", None)
        if scaler and checkpoint.get("scaler"):
            scaler.load_state_dict(checkpoint["scaler"])

    def _check(self, checkpoint: Mapping[str, Any], identity: Mapping[str, Any] | None) -> None:
        if "trainer" not in checkpoint and "end" not in checkpoint:
            raise UnusableFileError(f"'{self.path}' is no checkpoint of a training. {_REMEDY}")
        then = checkpoint.get("identity")
        if identity is not None:
            if not isinstance(then, (Mapping, NoneType)):
                raise UnusableFileError(self._unlike("identity"))
            if then is None:
                raise SettingError(
                    f"The checkpoint '{self.path}' does not say which training it is of; an earlier version wrote it. "
                    f"{_REMEDY}"
                )
            found = differences({key: then.get(key) for key in identity}, dict(identity))
            if found:
                raise SettingError(
                    "\n".join(
                        [
                            f"The checkpoint '{self.path}' is of another training, which differs in "
                            f"{count(len(found), 'setting')}:",
                            *(f"  {line}" for line in found[:SHOWN]),
                            *([f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []),
                            *([_REPLACED] if any(line.startswith("start_from:") for line in found) else []),
                            f"Nothing of it is used. {_REMEDY}",
                        ]
                    )
                )
        for part in (checkpoint, checkpoint.get("end")):
            if part is not None and (part is not checkpoint or "trainer" in part):
                self._check_part(part)
        done = _done(checkpoint)
        if self.iterations is not None and self.iterations < done:
            raise SettingError(
                f"The checkpoint '{self.path}' is of a training that has done {done} iterations, {self.iterations} are "
                f"asked for. Set --iterations to {done} or more. {_REMEDY}"
            )


_TAKEN = ".training"  # held while a training is at work in its folder
_REMEDY = (
    "Give --resume False to train anew in its place, or another --output_dir to keep it, or the settings it was "
    "trained with to go on."
)
_REPLACED = (
    "  start_from is the SHA-256 of the file that the training begins with: it was replaced since, as the model that "
    "ships is with a new version."
)


# of the options that no identity has, those that are of use while something is trained
_WHILE_TRAINING = {*("amp", "batch_size", "device", "encode_batch_size", "num_workers", "snapshots", "cache_dir")}


def _done(checkpoint: Mapping[str, Any]) -> int:
    """Iterations that a checkpoint has done."""
    return int(checkpoint.get("end", checkpoint)["trainer"]["iteration"])


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
        names_learned: how far a head that names organs is exported from where its training began: 1 as it was trained,
            0 as it began. What lies between keeps more of what it knew, and errs less on what the few volumes lack
            (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Not in the paper.
        about: what else the files hold, as :func:`scripts.descriptions.describe` has it: ``"organ_volumes"``, by which
            :class:`~scripts.inference.quality.QualityCheck` judges organs, and ``"training"``, by which
            :mod:`scripts.inference.trained_with` knows what the prior is for.
    """

    def __init__(
        self,
        network: DiffuSAM,
        path: str | Path,
        *,
        ema_decay: float = 0.0,
        snapshots: Sequence[int] = (),
        names_learned: float = 1.0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= ema_decay < 1:
            raise SettingError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
        if not 0 <= names_learned <= 1:
            raise SettingError(f"names_learned must lie in [0, 1], got {names_learned}.")
        self.network, self.path, self.ema_decay, self.about = network, Path(path), ema_decay, dict(about or {})
        self.snapshots = frozenset(snapshots)
        trained = {name: part for name, part in network.named_children() if name != "backbone"}
        self._parts = torch.nn.ModuleDict(trained)
        self.average = AveragedModel(self._parts, multi_avg_fn=self._average) if ema_decay else None
        self.names_learned, self._names_before = names_learned, {}

    @torch.no_grad()
    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor) -> None:
        decay = min(self.ema_decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        if self.network.names is not None and self.names_learned < 1:
            engine.add_event_handler(Events.STARTED, self._remember)  # before a checkpoint is taken up
        if self.average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.average.update_parameters(self._parts))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.export_snapshot)
        engine.add_event_handler(Events.COMPLETED, self.export)

    def _remember(self) -> None:
        parameters = self.network.names.named_parameters()
        self._names_before = {f"names.{key}": value.detach().clone() for key, value in parameters}

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
            state.update({key: value.detach() for key, value in averaged.items()})
        for key, before in self._names_before.items():
            state[key] = torch.lerp(before, state[key].detach(), self.names_learned)
        spoilt = not_finite(state)
        if spoilt:
            raise RefusedError(
                f"The trained prior is not written to '{path}': {len(spoilt)} of its tensors hold NaN or infinite "
                f"numbers (such as '{spoilt[0]}'). Train with a smaller --learning_rate."
            )
        save_atomically({"model": on_cpu(state), **describe(self.about)}, path)
        logger.info("Wrote the trained prior to '%s'.", path)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.average is not None and state:
            self.average.load_state_dict(state)


class LossProgressBar:
    """Ignite handler with one bar for a whole training, and the losses of the present iteration beside it.

    Args:
        iterations: that the training takes in all; None stands for whole epochs.
    """

    def __init__(self, iterations: int | None = None) -> None:
        self.iterations = iterations
        self._progress: Progress | None = None  # from the first iteration on

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._show)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _show(self, engine: Engine) -> None:
        done, losses = engine.state.iteration, engine.state.output[0]
        if self._progress is None:  # a training that goes on begins where it was
            total = self.iterations or engine.state.max_epochs * engine.state.epoch_length
            self._progress = Progress(total, "training", initial=done - 1)
        self._progress.to(done, **{name: float(value) for name, value in losses.items()})

    def _close(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
