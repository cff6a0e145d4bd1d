"""Training and evaluation in two processes, started by ``torchrun`` on the CPU, against the same in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.data import Dataset
from scripts.errors import RefusedError
from scripts.training import parallel
from scripts.training.handlers import PriorExporter, ResumableCheckpoint
from scripts.training.losses import DiffuSAMLoss

from tests.helpers.workflows import BUNDLE, CONFIGS, SETTINGS, run, save_start, train, write_overlay

PROCESSES = 2
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={PROCESSES}"]


def run_in_processes(command: str, overlay: Path, multi_gpu: str, **values) -> subprocess.CompletedProcess:
    """The command of the bundle's page, on the CPU."""
    files = [*(f"configs/{name}" for name in CONFIGS[command]), str(overlay), f"configs/{multi_gpu}.json"]
    options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    return subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "monai.bundle", "run", command, "--config_file", str(files), *options],
        cwd=BUNDLE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, write_dataset, backbone_file) -> Path:
    """Two training cases and three test cases, so that the processes have different numbers of them."""
    dataset = write_dataset(tmp_path_factory.mktemp("dataset"))
    shutil.copyfile(dataset / "label_a.nii.gz", dataset / "label_e.nii.gz")
    image = nib.load(dataset / "image_a.nii.gz")
    other = np.asanyarray(image.dataobj)[..., ::-1]  # of other voxels, or it would be known to be trained on
    nib.save(nib.Nifti1Image(other, image.affine, image.header), dataset / "image_e.nii.gz")
    return write_overlay(tmp_path_factory.mktemp("project"), dataset, backbone_file)


# ---- training


@pytest.fixture(scope="module")
def trained(overlay, tmp_path_factory) -> SimpleNamespace:
    """One process with batches of four, two processes with batches of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train(overlay, output_dir=str(one), batch_size=4)
    result = run_in_processes("training", overlay, "multi_gpu_train", output_dir=two, batch_size=2)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(one=one, two=two, log=result.stdout + result.stderr)


def weights(path: Path, part: str = "model") -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)[part]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, part", [("model.pt", "model"), ("checkpoint.pt", "model"), ("checkpoint.pt", "average")]
)
def test_two_processes_train_the_prior_of_one_with_twice_the_batch(trained, file, part):
    one, two = weights(trained.one / file, part), weights(trained.two / file, part)

    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"lambda_prior": 0, "lambda_seg": 0}, {"names_encoder": True, "random_contrasts": 0.5}],
    ids=["the head alone", "with its encoder, beside the prior"],
)
def test_two_processes_train_the_head_of_one_with_twice_the_batch(overlay, backbone_file, tmp_path, settings):
    start, one, two = tmp_path / "start.pt", tmp_path / "one", tmp_path / "two"
    save_start(start, backbone_file, prior_channels=SETTINGS["prior_channels"])
    settings = {"named_memories": True, "start_from": str(start), "use_high_res": True, **settings}
    train(overlay, output_dir=str(one), batch_size=4, **settings)
    result = run_in_processes("training", overlay, "multi_gpu_train", output_dir=two, batch_size=2, **settings)
    assert result.returncode == 0, result.stderr

    one, two = weights(one / "model.pt"), weights(two / "model.pt")
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.startswith("names.sam2.image_encoder.trunk") and key.endswith("conv.bias"):
            continue  # an instance norm follows, so that its gradient is rounding alone
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_the_cache_is_the_same_and_nothing_else_lies_beside_it(trained):
    one, two = ({path.name: path for path in (folder / "cache").iterdir()} for folder in (trained.one, trained.two))

    assert one.keys() == two.keys()
    for name in one:
        first, second = (torch.load(files[name], weights_only=True) for files in (one, two))
        assert first.keys() == second.keys()
        assert all(
            torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
            for key, value in first.items()
        )


@pytest.mark.slow
def test_one_process_writes_and_reports(trained):
    assert len(list(trained.two.glob("events.out.tfevents.*"))) == 1
    assert trained.log.count("Wrote the trained prior") == 1


# ---- evaluation


@pytest.mark.slow
def test_two_processes_report_what_one_reports(overlay, trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    prior = trained.one / "model.pt"
    run("evaluating", overlay, prior_file=str(prior), evaluation_dir=str(one))
    result = run_in_processes("evaluating", overlay, "multi_gpu_evaluate", prior_file=prior, evaluation_dir=two)

    assert result.returncode == 0, result.stderr
    assert json.loads((one / "metrics.json").read_text())["cases"] == ["c", "d", "e"]
    for name in ("metrics.json", "metrics.csv"):
        assert (two / name).read_text() == (one / name).read_text()
    written = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, two)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "name, handlers, muted",
    [
        (
            "train",
            "train",
            [
                "scripts.training.handlers.LossProgressBar",
                "TensorBoardStatsHandler",
                "scripts.prior_settings.InferenceOverlay",
            ],
        ),
        ("evaluate", "validate", ["scripts.inference.cases.CaseProgress"]),
    ],
)
def test_the_overlays_mute_what_all_processes_would_say_alike(name, handlers, muted):
    listed = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())[handlers]["handlers"]
    overlay = json.loads((BUNDLE / "configs" / f"multi_gpu_{name}.json").read_text())

    places = [int(key.split("#")[2]) for key in overlay if key.endswith("#_disabled_")]
    assert [listed[place]["_target_"] for place in places] == muted


# ---- the parts, in one process that takes itself for each of several


@pytest.fixture
def process(monkeypatch):
    """``process(rank, size)`` makes this process one of several."""

    def be(rank: int, size: int) -> None:
        monkeypatch.setattr(idist, "get_rank", lambda: rank)
        monkeypatch.setattr(idist, "get_world_size", lambda: size)

    return be


def test_batches_of_all_processes_are_the_batch_of_one(process):
    sampler = torch.utils.data.SequentialSampler(range(12))
    shares = []
    for rank in range(3):
        process(rank, 3)
        loader = torch.utils.data.DataLoader(range(12), batch_size=2, sampler=parallel.ShareOfSampler(sampler))
        shares.append([batch.tolist() for batch in loader])

    assert [sorted(sum(batches, [])) for batches in zip(*shares)] == [list(range(6)), list(range(6, 12))]


def test_every_row_of_the_batch_has_the_noise_that_one_process_draws(process):
    torch.manual_seed(0)
    expected = torch.randn(6, 2)
    rows = torch.empty(6, 2)
    for rank in range(2):
        process(rank, 2)
        torch.manual_seed(0)
        rows[rank::2] = parallel.noise_like(torch.empty(3, 2))

    assert torch.equal(rows, expected)


def test_the_mean_of_the_processes_losses_is_the_loss_of_all_slices(process, monkeypatch):
    """Though the organ is in three slices of the first process's batch and in one of the second's."""
    generator = torch.Generator().manual_seed(0)
    error, logits = torch.rand(8, generator=generator), torch.randn(8, 1, 4, 4, generator=generator)
    score, mask = torch.randn(8, 1, generator=generator), torch.zeros(8, 1, 4, 4)
    mask[[0, 2, 4, 7], :, :2] = 1
    tensors, loss = (error, logits, score, mask), DiffuSAMLoss()
    expected = loss(*tensors)["loss"]

    process(0, 2)
    monkeypatch.setattr(idist, "all_reduce", lambda value: mask.flatten(1).amax(1).sum())
    shares = [loss(*(each[rank::2] for each in tensors))["loss"] for rank in range(2)]

    torch.testing.assert_close(torch.stack(shares).mean(), expected)


def test_the_mean_of_the_gradients_of_all_processes_is_that_of_a_loss_of_all_rows(process, monkeypatch):
    """Of a quotient of sums, as Dice of a batch is one, which is no mean of those of its parts."""

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return rows[:, 0].sum() / rows[:, 1].square().sum()

    rows = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    whole = rows.clone().requires_grad_()
    expected = loss(whole)
    expected.backward()

    gradients = []
    monkeypatch.setattr(idist, "all_gather", lambda part: rows.clone())
    for rank in range(2):
        process(rank, 2)
        part = rows[3 * rank :][:3].clone().requires_grad_()
        value = loss(parallel.rows_of_all_processes(part))
        torch.testing.assert_close(value, expected)
        value.backward()
        gradients.append(part.grad / 2)  # which are averaged over the processes

    torch.testing.assert_close(torch.cat(gradients), whole.grad)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_writes_prior_and_checkpoint(process, tmp_path, rank):
    process(rank, 2)
    network = torch.nn.ModuleDict({"prior": torch.nn.Linear(2, 1)})
    network.names = None
    engine = Engine(lambda engine, batch: None)
    PriorExporter(network, tmp_path / "model.pt").attach(engine)
    ResumableCheckpoint(tmp_path / "checkpoint.pt", {"model": network}).attach(engine)

    engine.run([0])

    assert [path.name for path in sorted(tmp_path.iterdir())] == ([] if rank else ["checkpoint.pt", "model.pt"])


def test_more_processes_than_test_cases_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda *group: 3)
    monkeypatch.setattr(dist, "get_rank", lambda *group: 2)
    with pytest.raises(RefusedError, match="3 processes cannot share 2 test cases"):
        parallel.case_sampler(Dataset(["a", "b"]))
    assert list(parallel.case_sampler(Dataset(["a", "b", "c", "d"]))) == [2]


def test_without_torchrun_the_overlay_says_how_to_start(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    with pytest.raises(RuntimeError, match="torchrun --standalone"):
        parallel.local_device()
