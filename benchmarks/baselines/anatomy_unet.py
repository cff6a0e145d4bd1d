"""A UNet that learns from the painted patients that the backbone and the prior learn from: the baseline's fair share.

    python -m benchmarks.baselines.anatomy_unet --patients_dir data/patients --output runs/anatomy_unet.pt

The network is the UNet row's, the loss too; slices come from :class:`scripts.pretraining.patient_clips.AnatomyClips`,
one a clip. What is written holds the weights as the row ``unet`` takes them with ``--start_from``.
"""

from __future__ import annotations

import os
from pathlib import Path

import fire
import torch
from monai.losses import DiceCELoss
from scripts.data.phantom_anatomy import ORGANS
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.patient_clips import AnatomyClips, PatientPool
from scripts.weights import save_atomically
from tqdm import trange

from .supervised import plain_unet


def train(
    patients_dir: str,
    output: str,
    patients: int = 600,
    iterations: int = 3000,
    slices: int = 16,
    image_size: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Trains the network and writes ``{"network": weights}``.

    Args:
        patients_dir: where the painted patients are, or will be written.
        output: file of the weights.
        patients: how many.
        iterations: steps of AdamW, the learning rate falling to zero along a cosine.
        slices: in a step.
        image_size: side of a slice in pixels.
        learning_rate: at the start.
        seed: of everything drawn.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pool = PatientPool(write_patients(Path(patients_dir), patients, workers=os.cpu_count() or 1), device)
    stage = {"epochs": 1, "clips": slices, "frames": 1, "image_size": image_size}
    data = AnatomyClips(pool, [stage], length=iterations, seed=seed + 2)
    network = plain_unet(1 + len(ORGANS)).to(device)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, include_background=False)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    network.train()
    for step in (progress := trange(iterations, mininterval=5)):
        batch = data.batch(step)
        organs = torch.arange(1, 1 + len(ORGANS), device=device).view(1, -1, 1, 1)
        label = (batch["mask"][:, : len(ORGANS), 0] * organs).amax(1, keepdim=True)
        optimizer.zero_grad()
        loss = loss_function(network(batch["image"][:, 0]), label)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    save_atomically({"network": state}, output)


if __name__ == "__main__":
    fire.Fire(train)
