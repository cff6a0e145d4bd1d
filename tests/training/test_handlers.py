"""Handlers: exact resuming, atomic files, seeding by epoch, and the exported (averaged) prior."""

from __future__ import annotations

import contextlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.training import handlers
from scripts.training.handlers import PriorExporter, ResumableCheckpoint, SeedEpoch, save_atomically
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCHES = 4, 3


class Killed(Exception):
    """Stands for the end of a process in the middle of training."""


def train(path, kill_at: int | None = None, max_epochs: int = EPOCHS, resume: bool = True, interval: int = 1):
    """A small training as a fresh process would run it: its parameters and the number of steps it took."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    data = TensorDataset(torch.arange(18.0).reshape(6, 3) / 18, torch.ones(6, 1))
    steps = []

    def step(engine, batch):
        optimizer.zero_grad()
        noisy = batch[0] + torch.randn_like(batch[0])  # the random stream has to resume too
        (model(noisy) - batch[1]).square().mean().backward()
        optimizer.step()
        steps.append(engine.state.iteration)

    engine = Engine(step)
    SeedEpoch(seed=7).attach(engine)
    checkpoint = ResumableCheckpoint(path, {"model": model, "optimizer": optimizer}, resume=resume, interval=interval)
    checkpoint.attach(engine)
    if kill_at is not None:

        @engine.on(Events.ITERATION_COMPLETED)
        def kill(engine):
            if engine.state.iteration == kill_at:
                raise Killed

    with contextlib.suppress(Killed):
        engine.run(DataLoader(data, batch_size=2, shuffle=True), max_epochs=max_epochs)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), steps


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "run" / "checkpoint.pt"


@pytest.mark.parametrize("kill_at", [BATCHES + 1, 2 * BATCHES + 2, EPOCHS * BATCHES])
def test_a_killed_and_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path, checkpoint, kill_at):
    uninterrupted, _ = train(tmp_path / "other.pt")
    train(checkpoint, kill_at=kill_at)

    resumed, _ = train(checkpoint)

    assert torch.equal(resumed, uninterrupted)


def test_resuming_starts_at_the_epoch_that_was_cut_off(checkpoint):
    train(checkpoint, kill_at=2 * BATCHES + 2)  # in epoch 3, after two whole ones

    _, steps = train(checkpoint)

    assert steps == list(range(2 * BATCHES + 1, EPOCHS * BATCHES + 1))


def test_a_finished_training_is_loaded_and_not_run_again(checkpoint):
    finished, _ = train(checkpoint)

    again, steps = train(checkpoint)

    assert steps == []
    assert torch.equal(again, finished)


def test_a_finished_training_goes_on_when_more_epochs_are_asked_for(tmp_path, checkpoint):
    longer, _ = train(tmp_path / "other.pt", max_epochs=EPOCHS + 1)
    train(checkpoint)

    extended, steps = train(checkpoint, max_epochs=EPOCHS + 1)

    assert len(steps) == BATCHES
    assert torch.equal(extended, longer)


def test_without_resume_training_starts_anew(checkpoint):
    first, _ = train(checkpoint)

    second, steps = train(checkpoint, resume=False)

    assert len(steps) == EPOCHS * BATCHES
    assert torch.equal(second, first)


@pytest.mark.parametrize("item, needed", [(nn.ReLU(), False), (nn.Linear(1, 1), True)], ids=["plain", "with weights"])
def test_what_a_checkpoint_does_not_hold_must_have_no_state(checkpoint, item, needed):
    ResumableCheckpoint(checkpoint, {}).save(Engine(lambda engine, batch: None))
    engine = Engine(lambda engine, batch: None)
    ResumableCheckpoint(checkpoint, {"loss": item}).attach(engine)

    with pytest.raises(RuntimeError, match="Missing key") if needed else nullcontext():
        engine.run([0], max_epochs=1)


def test_interval_skips_epochs_but_never_the_last(checkpoint, monkeypatch):
    written = []
    monkeypatch.setattr(
        handlers, "save_atomically", lambda content, path: written.append(content["trainer"]["iteration"] // BATCHES)
    )

    train(checkpoint, max_epochs=5, interval=2)

    assert written == [2, 4, 5]


def test_save_atomically_makes_the_folder_and_leaves_only_the_file(tmp_path):
    save_atomically({"a": torch.ones(2)}, tmp_path / "new" / "file.pt")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.pt"]


def test_a_save_that_breaks_off_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.pt"
    save_atomically({"a": torch.ones(2)}, path)

    def full_disk(content, file):
        file.write(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError):
        save_atomically({"a": torch.zeros(2)}, path)

    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(2))


def test_seed_epoch_tells_the_data_set_its_epoch():
    epochs = []
    engine = Engine(lambda engine, batch: None)
    SeedEpoch(seed=0, dataset=SimpleNamespace(set_epoch=epochs.append)).attach(engine)

    engine.run([0, 1], max_epochs=3)

    assert epochs == [1, 2, 3]


def test_seed_epoch_seeds_by_seed_and_epoch():
    def draws(seed):
        result = []
        engine = Engine(lambda engine, batch: result.append(torch.rand(()).item()))
        SeedEpoch(seed).attach(engine)
        engine.run([0], max_epochs=3)
        return result

    assert draws(1) == draws(1)
    assert len({*draws(1), *draws(2)}) == 6


class ToyNetwork(nn.Module):
    """What the exporter needs of DiffuSAM: a ``prior``, and a state of it alone."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.prior = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.prior.weight, value)


def export(path, values, ema_decay: float, snapshots=()) -> float:
    """Runs one iteration for each value of the only parameter and reads it from the exported file."""
    network = ToyNetwork(0.0)
    exporter = PriorExporter(network, path, ema_decay, snapshots)

    def step(engine, value):
        nn.init.constant_(network.prior.weight, value)

    engine = Engine(step)
    exporter.attach(engine)
    engine.run(values)
    return exported_weight(path)


def exported_weight(path) -> float:
    return torch.load(path, weights_only=True)["model"]["prior.weight"].item()


def test_without_averaging_the_last_weights_are_exported(tmp_path):
    assert export(tmp_path / "model.pt", [1.0, 2.0, 5.0], ema_decay=0.0) == 5.0


def test_the_average_starts_at_the_first_weights_and_is_short_at_first(tmp_path):
    # the first update copies 1; the second keeps min(0.9, (1 + 1) / (10 + 1)) of it
    expected = 2 / 11 * 1.0 + 9 / 11 * 5.0

    assert export(tmp_path / "model.pt", [1.0, 5.0], ema_decay=0.9) == pytest.approx(expected)


def test_the_average_never_keeps_more_than_its_decay(tmp_path):
    assert export(tmp_path / "model.pt", [1.0, 5.0], ema_decay=0.1) == pytest.approx(0.1 * 1.0 + 0.9 * 5.0)


def test_snapshots_are_what_training_would_have_ended_with(tmp_path):
    export(tmp_path / "model.pt", [1.0, 5.0, 7.0], ema_decay=0.9, snapshots=[2])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model_000002.pt"]
    assert exported_weight(tmp_path / "model_000002.pt") == export(tmp_path / "other.pt", [1.0, 5.0], ema_decay=0.9)


def test_the_average_survives_a_checkpoint(tmp_path):
    first, second = (PriorExporter(ToyNetwork(0.0), tmp_path / "model.pt", 0.9) for _ in range(2))
    first.average.update_parameters(ToyNetwork(3.0).prior)

    second.load_state_dict(first.state_dict())
    second.export(None)

    assert exported_weight(tmp_path / "model.pt") == 3.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\)"):
        PriorExporter(ToyNetwork(0.0), tmp_path / "model.pt", decay)
