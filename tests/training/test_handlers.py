"""Handlers: exact resuming, atomic files, seeding by epoch, and the exported (averaged) prior."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.errors import RefusedError, SettingError, UnusableFileError
from scripts.training import handlers
from scripts.training.handlers import PriorExporter, ResumableCheckpoint, SeedEpoch, save_atomically
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCHES = 4, 3


class Killed(Exception):
    """Stands for the end of a process in the middle of training."""


def train(path, kill_at: int | None = None, max_epochs: int = EPOCHS, iterations: int | None = None, **options):
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
    checkpoint = ResumableCheckpoint(path, {"model": model, "optimizer": optimizer}, iterations=iterations, **options)
    checkpoint.attach(engine)
    if iterations is not None:
        max_epochs = -(-iterations // BATCHES)

        @engine.on(Events.ITERATION_COMPLETED)
        def end(engine):
            if engine.state.iteration == iterations and iterations % BATCHES:
                engine.terminate_epoch()

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


ANOTHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from scripts.files import hold
print(hold(sys.argv[2], "another process"), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("begin", [lambda path: train(path), lambda path: ResumableCheckpoint(path, {}).check()])
def test_a_folder_is_one_trainings_until_it_ends_however_it_ends(bundle, checkpoint, begin):
    words = [sys.executable, "-c", ANOTHER, str(bundle), str(checkpoint.with_name(".training"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"None\n"
        with pytest.raises(RefusedError, match=r"another training \(another process\) is at work in this folder"):
            begin(checkpoint)
        other.kill()

    assert checkpoint.with_name(".training").is_file()
    train(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


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


@pytest.mark.parametrize("factors, goes_on", [([[1.0, 1.0]], True), ([[1.0, 0.9]], False), (None, False)], ids=str)
def test_what_is_said_to_go_on_is_the_same_training(checkpoint, monkeypatch, caplog, factors, goes_on):
    """A rate that follows the share of all iterations is another in a longer training."""
    identity = {"lr_scheduler": {"factors": factors}}
    train(checkpoint, identity=identity)
    monkeypatch.setattr(handlers, "given_options", lambda: ["num_workers"])

    with caplog.at_level("INFO"):
        train(checkpoint, identity=identity)

    assert "Without effect: --num_workers; " in caplog.text and "--resume False trains anew" in caplog.text
    assert ("a larger --iterations goes on" in caplog.text) is goes_on


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

    with pytest.raises(UnusableFileError, match="its 'loss' is missing") if needed else nullcontext():
        engine.run([0], max_epochs=1)


@pytest.mark.parametrize("ended", [3 * BATCHES, BATCHES + 1], ids=["whole epochs", "within an epoch"])
@pytest.mark.parametrize(
    "key, change",
    [
        ("optimizer", lambda part, whole: part.pop("optimizer")),
        ("optimizer", lambda part, whole: part.update(optimizer=[1])),
        ("optimizer", lambda part, whole: part["optimizer"]["param_groups"].clear()),
        ("model", lambda part, whole: part.pop("model")),
        ("model", lambda part, whole: part["model"].update(weight=torch.zeros(2, 2))),
        ("trainer", lambda part, whole: part["trainer"].update(iteration="x")),
        ("trainer", lambda part, whole: part.update(trainer=5)),
        ("identity", lambda part, whole: whole.update(identity=[1])),
    ],
)
def test_a_checkpoint_whose_archive_is_sound_and_content_is_not_is_one_line(checkpoint, key, change, ended):
    train(checkpoint, iterations=ended, identity={"seed": 7})
    content = torch.load(checkpoint, weights_only=True)
    change(content.get("end", content), content)
    torch.save(content, checkpoint)

    with pytest.raises(UnusableFileError, match=f"its '{key}' is missing, or something else. Give --resume") as info:
        train(checkpoint, iterations=ended, identity={"seed": 7})
    assert "\n" not in str(info.value)


# ---- a training that ends within an epoch


@pytest.mark.parametrize("iterations", [1, BATCHES, BATCHES + 2])
def test_a_training_takes_as_many_iterations_as_it_was_asked_for(checkpoint, iterations):
    _, steps = train(checkpoint, iterations=iterations)

    assert steps == list(range(1, iterations + 1))


@pytest.mark.parametrize("iterations", [2, BATCHES + 1])
def test_what_ended_within_an_epoch_is_finished(checkpoint, iterations):
    ended, _ = train(checkpoint, iterations=iterations)

    again, steps = train(checkpoint, iterations=iterations)

    assert steps == [] and torch.equal(again, ended)


@pytest.mark.parametrize("first", [1, BATCHES + 1, 2 * BATCHES + 2])
@pytest.mark.parametrize("then", [2 * BATCHES + 3, 3 * BATCHES + 1])
def test_what_ended_within_an_epoch_goes_on_as_if_it_had_not(tmp_path, checkpoint, first, then):
    uninterrupted, _ = train(tmp_path / "other.pt", iterations=then)
    train(checkpoint, iterations=first)

    longer, steps = train(checkpoint, iterations=then)

    assert torch.equal(longer, uninterrupted)
    assert steps == list(range(first // BATCHES * BATCHES + 1, then + 1))  # from the last whole epoch on


def test_an_end_within_an_epoch_keeps_nothing_of_a_training_that_was_not_taken_up(tmp_path, checkpoint):
    train(checkpoint, iterations=2 * BATCHES)
    train(checkpoint, iterations=2, resume=False)

    longer, steps = train(checkpoint, iterations=BATCHES)

    assert len(steps) == BATCHES and torch.equal(longer, train(tmp_path / "other.pt", iterations=BATCHES)[0])


def test_fewer_iterations_than_are_done_are_refused(checkpoint):
    train(checkpoint, iterations=BATCHES + 2)
    written = checkpoint.read_bytes()

    with pytest.raises(SettingError, match=f"has done {BATCHES + 2} iterations, 2 are asked for.*--iterations") as info:
        train(checkpoint, iterations=2)

    assert "--resume False" in str(info.value) and checkpoint.read_bytes() == written


# ---- a checkpoint of another training


IDENTITY = {"seed": 0, "loss": {"lambda_seg": 1.0}}


@pytest.mark.parametrize(
    "other, named",
    [
        ({**IDENTITY, "seed": 1}, "seed: 0 then, 1 now"),
        ({**IDENTITY, "loss": {"lambda_seg": 2.0}}, "loss.lambda_seg: 1.0 then, 2.0 now"),
        ({**IDENTITY, "new": "x"}, "new: None then, x now"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kill_at", [None, BATCHES + 1])
def test_a_checkpoint_of_another_training_is_refused_and_the_difference_named(checkpoint, other, named, kill_at):
    train(checkpoint, identity=IDENTITY, kill_at=kill_at)
    written = checkpoint.read_bytes()

    with pytest.raises(SettingError, match="is of another training") as info:
        train(checkpoint, identity=other)
    with pytest.raises(SettingError, match="is of another training"):
        ResumableCheckpoint(checkpoint, {}, identity=other).check()

    assert named in str(info.value) and "--resume False" in str(info.value) and "--output_dir" in str(info.value)
    assert checkpoint.read_bytes() == written
    assert len(train(checkpoint, identity=other, resume=False)[1]) == EPOCHS * BATCHES


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(checkpoint):
    train(checkpoint)

    with pytest.raises(SettingError, match="does not say which training it is of"):
        train(checkpoint, identity=IDENTITY)


def damage(path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "of something else":
        torch.save({"weights": torch.ones(2)}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"empty": b"", "cut off": content[: len(content) // 2], "text": b"no tensors\n" * 9}[kind])


@pytest.mark.parametrize("kind", ["empty", "cut off", "text", "a list", "of something else"])
def test_a_damaged_checkpoint_is_named_in_one_line(checkpoint, kind):
    train(checkpoint, kill_at=BATCHES + 1)
    damage(checkpoint, kind)

    with pytest.raises(UnusableFileError) as info:
        train(checkpoint)
    with pytest.raises(UnusableFileError):
        ResumableCheckpoint(checkpoint, {}).check()

    assert str(checkpoint) in str(info.value) and "--resume False" in str(info.value) and "\n" not in str(info.value)


# ---- what is in a checkpoint


def test_state_that_is_not_finite_is_not_written_over_what_is(checkpoint):
    train(checkpoint, max_epochs=1)
    written = checkpoint.read_bytes()
    model = nn.Linear(3, 1)
    nn.init.constant_(model.bias, float("nan"))
    engine = Engine(lambda engine, batch: None)
    ResumableCheckpoint(checkpoint, {"model": model}, resume=False).attach(engine)

    with pytest.raises(RefusedError, match="After iteration 1, 1 of the trained tensors.*model.bias"):
        engine.run([0], max_epochs=1)

    assert checkpoint.read_bytes() == written


def test_the_state_of_a_gradient_scaler_goes_on(checkpoint):
    def engine_with_scaler(scale: float) -> Engine:
        engine = Engine(lambda engine, batch: None)
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        ResumableCheckpoint(checkpoint, {}).attach(engine)
        return engine

    engine_with_scaler(1024.0).run([0], max_epochs=1)
    resumed = engine_with_scaler(4.0)
    resumed.run([0], max_epochs=2)

    assert resumed.scaler.state_dict()["scale"] == 1024.0


def test_the_same_training_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        train(tmp_path / name / "checkpoint.pt")

    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (tmp_path / "b/checkpoint.pt").read_bytes()


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
    """What the exporter needs of DiffuSAM: a ``prior`` and no head, and a state of it alone."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.prior = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.prior.weight, value)
        self.names: nn.Module | None = None


def export(path, values, ema_decay: float, snapshots=()) -> float:
    """Runs one iteration for each value of the only parameter and reads it from the exported file."""
    network = ToyNetwork(0.0)
    exporter = PriorExporter(network, path, ema_decay=ema_decay, snapshots=snapshots)

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
    first, second = (PriorExporter(ToyNetwork(0.0), tmp_path / "model.pt", ema_decay=0.9) for _ in range(2))
    first.average.update_parameters(ToyNetwork(3.0).prior)

    second.load_state_dict(first.state_dict())
    second.export(None)

    assert exported_weight(tmp_path / "model.pt") == 3.0


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    with pytest.raises(RefusedError, match="The trained prior is not written.*prior.weight"):
        export(tmp_path / "model.pt", [1.0, float("nan")], ema_decay=0.0)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\)"):
        PriorExporter(ToyNetwork(0.0), tmp_path / "model.pt", ema_decay=decay)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 5.0), (0.75, 4.0), (0.0, 1.0)])
@pytest.mark.parametrize("killed", [False, True])
def test_the_head_is_exported_as_far_from_its_beginning_as_asked(tmp_path, share, expected, killed):
    """From 1 to 5 in four steps, also where the training was killed and goes on from its checkpoint."""

    def run(stop_after=None):
        network = ToyNetwork(0.0)
        network.names = nn.Linear(1, 1, bias=False)
        nn.init.constant_(network.names.weight, 1.0)

        def step(engine, value):
            if engine.state.iteration == stop_after:
                raise Killed
            nn.init.constant_(network.names.weight, value)
            nn.init.constant_(network.prior.weight, value)

        engine = Engine(step)
        PriorExporter(network, tmp_path / "model.pt", names_learned=share).attach(engine)
        ResumableCheckpoint(tmp_path / "checkpoint.pt", {"model": network}).attach(engine)
        engine.run([2.0, 5.0], max_epochs=2)

    if killed:
        with pytest.raises(Killed):
            run(stop_after=3)
    run()

    state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert state["names.weight"].item() == expected
    assert state["prior.weight"].item() == 5.0  # the prior as it was trained


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_head_is_not_exported_from_beyond(tmp_path, share):
    with pytest.raises(ValueError, match=r"names_learned must lie in \[0, 1\]"):
        PriorExporter(ToyNetwork(0.0), tmp_path / "model.pt", names_learned=share)
