"""The UNet that learns from painted patients: what it writes is what the row ``unet`` starts from."""

from __future__ import annotations

import torch

from benchmarks.baselines.anatomy_unet import train
from benchmarks.baselines.supervised import plain_unet


def test_its_weights_are_the_rows(tmp_path):
    path = tmp_path / "unet.pt"

    train(str(tmp_path / "patients"), str(path), patients=1, iterations=2, slices=2, image_size=64)

    network = plain_unet(5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(torch.load(path, weights_only=True)["network"])
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
