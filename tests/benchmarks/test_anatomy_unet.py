"""The networks that learn from painted patients: what is written is what the rows ``unet`` and ``unetr`` start from,
and the source model of an adaptation.
"""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from scripts.errors import SettingError
from scripts.weights import save_atomically

from benchmarks.adaptation.source_model import FeatureUNet
from benchmarks.baselines import anatomy_unet, supervised
from benchmarks.baselines.anatomy_unet import train
from benchmarks.baselines.supervised import plain_unet, plain_unetr, start_network
from tests.helpers.workflows import BUNDLE, Killed

SMALL = {"patients": 1, "slices": 2, "image_size": 64}


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("patients"))


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "source",
        pytest.param("unetr", marks=pytest.mark.skipif(not find_spec("einops"), reason="MONAI's UNETR needs einops")),
    ],
)
def test_its_weights_are_the_rows(tmp_path, patients, name):
    path = tmp_path / f"{name}.pt"

    train(str(path), patients, name, iterations=2, **SMALL)

    network = {"unet": lambda: plain_unet(5), "source": lambda: FeatureUNet(4), "unetr": lambda: plain_unetr(5, 64)}[
        name
    ]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    start_network(network, path)
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_learning_goes_on_from_weights_that_were_written(tmp_path, patients):
    first, second = str(tmp_path / "first.pt"), str(tmp_path / "second.pt")
    train(first, patients, iterations=1, **SMALL)

    train(second, patients, start_from=first, iterations=1, learning_rate=0.0, **SMALL)

    before, after = (torch.load(path, weights_only=True)["network"] for path in (first, second))
    assert all(torch.equal(before[key], after[key]) for key, _ in plain_unet(5).named_parameters())


def test_a_network_may_be_computed_in_bfloat16_and_its_training_says_so(tmp_path, patients, monkeypatch):
    """Weights stay in float32, and a checkpoint of one precision is none of the other."""
    seen: list[dict] = []

    class Steps(supervised.ResumableSteps):
        def __init__(self, path, identity, **options):
            seen.append({"identity": identity})
            super().__init__(path, identity, **options)

        def step(self, loss):
            seen[-1]["loss"] = loss.detach()
            super().step(loss)

    monkeypatch.setattr(anatomy_unet, "ResumableSteps", Steps)
    for bfloat16 in (False, True):
        train(str(tmp_path / "out.pt"), patients, iterations=1, bfloat16=bfloat16, **SMALL)

    plain, mixed = seen
    assert "bfloat16" not in plain["identity"] and mixed["identity"] == {**plain["identity"], "bfloat16": True}
    assert mixed["loss"].dtype == torch.float32 and mixed["loss"] != plain["loss"]
    assert mixed["loss"].item() == pytest.approx(plain["loss"].item(), rel=0.02)
    weights = torch.load(tmp_path / "out.pt", weights_only=True)["network"].values()
    assert {each.dtype for each in weights if each.is_floating_point()} == {torch.float32}


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, patients, monkeypatch):
    def run(name: str) -> dict[str, torch.Tensor]:
        train(str(tmp_path / name), patients, iterations=4, save_every=2, **SMALL)
        return torch.load(tmp_path / name, weights_only=True)["network"]

    def save_and_die(content, path: Path) -> None:
        save_atomically(content, path)
        if content["step"] == 2:
            raise Killed

    whole = run("whole.pt")
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "save_atomically", save_and_die)
        with pytest.raises(Killed):
            run("killed.pt")
    assert [path.name for path in tmp_path.glob("killed*")] == ["killed.checkpoint.pt"]

    resumed = run("killed.pt")

    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    assert [path.name for path in tmp_path.glob("killed*")] == ["killed.pt"]


def test_a_network_of_other_widths_is_not_started_from(tmp_path):
    save_atomically({"network": plain_unet(5, channels=(4, 8)).state_dict()}, tmp_path / "small.pt")

    with pytest.raises(SettingError, match="small.pt' holds another network than this UNet"):
        start_network(plain_unet(5), tmp_path / "small.pt")


def test_an_unknown_network_is_refused(tmp_path):
    with pytest.raises(SettingError, match="must be one of unet, unetr, source, got 'vnet'"):
        train(str(tmp_path / "out.pt"), network="vnet")


@pytest.mark.parametrize("setting", ["beyond", "tilt", "slide", "anywhere"])
def test_its_slices_lie_where_the_backbones_do(setting):
    config = json.loads((BUNDLE / "configs/pretrain_anatomy.json").read_text("utf-8"))
    default = inspect.signature(train).parameters[setting].default
    assert (list(default) if isinstance(default, tuple) else default) == config[setting]
