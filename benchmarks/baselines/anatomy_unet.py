"""A UNet, or a UNETR, that learns from the painted patients that the backbone and the prior learn from: the baselines'
fair share.

    python -m benchmarks.baselines.anatomy_unet --patients_dir data/patients --output runs/anatomy_unet.pt
    python -m benchmarks.baselines.anatomy_unet --network unetr --output runs/anatomy_unetr.pt
    python -m benchmarks.baselines.anatomy_unet --network source --output runs/anatomy_source.pt

The network is the row's, "source" that of ``train_source`` in :mod:`benchmarks.adaptation.run`; the loss is the row's
too. Slices come from :class:`scripts.pretraining.patient_clips.AnatomyClips`, one a clip. What is written holds the
weights as these three take them with ``--start_from``; so does this command, which then learns on. A training that was
interrupted goes on from its checkpoint, beside the file it writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from scripts import errors
from scripts.data.phantom_anatomy import ORGANS
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.patient_clips import AnatomyClips, PatientPool
from scripts.weights import save_atomically
from torch import Tensor, nn

from benchmarks.adaptation.source_model import FeatureUNet
from benchmarks.program import run_command

from .supervised import ResumableSteps, plain_unet, plain_unetr, start_network

# by the organs and the size of a slice, with the widths that the rows have by default
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "unet": lambda organs, size: plain_unet(1 + organs),
    "unetr": lambda organs, size: plain_unetr(1 + organs, size),
    "source": lambda organs, size: FeatureUNet(organs),
}


def train(
    output: str,
    patients_dir: str = "data/patients",
    network: str = "unet",
    start_from: str | None = None,
    patients: int = 600,
    iterations: int = 3000,
    slices: int = 16,
    image_size: int = 256,
    learning_rate: float = 2e-3,
    beyond: Sequence[float] = (0.35, 0.15),
    tilt: Sequence[float] = (0.22, 0.1),
    slide: float = 30.0,
    anywhere: float = 0.25,
    seed: int = 0,
    save_every: int = 200,
    bfloat16: bool = False,
) -> None:
    """Trains the network and writes ``{"network": weights}``.

    Args:
        output: file of the weights.
        patients_dir: where the painted patients are, or will be written.
        network: "unet", "unetr" or "source".
        start_from: weights that an earlier run has written; without, it learns from scratch.
        patients: how many.
        iterations: steps of AdamW, the learning rate falling to zero along a cosine.
        slices: in a step.
        image_size: side of a slice in pixels.
        learning_rate: at the start.
        beyond, tilt, slide, anywhere: where slices lie, as configs/pretrain_anatomy.json has it.
        seed: of everything drawn.
        save_every: steps between checkpoints.
        bfloat16: compute the network in bfloat16 where PyTorch's autocast does: 2.6 times as fast for a UNETR on a CPU
            with AMX.

    Raises:
        SettingError, RefusedError: an unknown network, or weights of another; the training has diverged.
    """
    errors.install()
    identity = {key: value for key, value in locals().items() if key not in ("output", "patients_dir", "save_every")}
    if not bfloat16:
        del identity["bfloat16"]  # as it was before there was a choice
    torch.manual_seed(seed)
    trained = _network(network, image_size, start_from)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = PatientPool(write_patients(Path(patients_dir), patients, workers=os.cpu_count() or 1), device)
    stage = {"epochs": 1, "clips": slices, "frames": 1, "image_size": image_size}
    where = {"beyond": beyond, "tilt": tilt, "slide": slide, "anywhere": anywhere}
    data = AnatomyClips(pool, [stage], length=iterations, seed=seed + 2, **where)
    checkpoint = Path(output).with_suffix(".checkpoint.pt")
    training = ResumableSteps(
        checkpoint, identity, network=trained.to(device), learning_rate=learning_rate, steps=iterations
    )
    trained.train()
    for step in training.run(save_every):
        training.step(_loss(trained, data.batch(step), bfloat16))
    state = {key: value.detach().cpu() for key, value in trained.state_dict().items()}
    save_atomically({"network": state}, output)
    checkpoint.unlink(missing_ok=True)


def _loss(network: nn.Module, batch: dict[str, Tensor], bfloat16: bool) -> Tensor:
    """Soft Dice and cross-entropy of the first frames of some clips; see :func:`train`."""
    image = batch["image"][:, 0]
    organs = torch.arange(1, 1 + len(ORGANS), device=image.device).view(1, -1, 1, 1)
    label = (batch["mask"][:, : len(ORGANS), 0] * organs).amax(1, keepdim=True)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16):
        prediction = network(image)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, include_background=False)
    return loss(prediction.float(), label)


def _network(name: str, image_size: int, start_from: str | None) -> nn.Module:
    """One of :data:`NETWORKS`, with the weights of a file if one is named."""
    if name not in NETWORKS:
        raise errors.SettingError(f"network must be one of {', '.join(NETWORKS)}, got '{name}'.")
    network = NETWORKS[name](len(ORGANS), image_size)
    if start_from is not None:
        start_network(network, start_from)
    return network


if __name__ == "__main__":
    run_command(train)
