"""Target images as adaptation sees them, without labels, and the light augmentation of both published methods."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.transforms import MapTransform
from scripts.data.datalists import Item, find_cases
from torch import Tensor

SHARE = 0.25  # of slices that each change happens to
BRIGHTNESS = CONTRAST = 0.2
GAMMA = (0.6, 1.4)
SHIFT, SCALE, TURN = 0.0625, 0.1, math.radians(15)


def adaptation_cases(parser: ConfigParser) -> list[str]:
    """Which target images adaptation may see.

    They are the configuration's ``train_cases``, whose labels stay unread; where it names none, those of the test
    itself. DFG adapts on 80 % of the target's volumes and tests on the others; a configuration with a split, such as
    ``configs/splits/chaos_dfg.json``, gives the same.
    """
    cases = parser.get_parsed_content("train_cases") or [
        item["case"] for item in parser.get_parsed_content("test_data")
    ]
    return [str(case) for case in cases]


def adaptation_items(parser: ConfigParser) -> list[Item]:
    """Their images' files."""
    get = parser.get_parsed_content
    return find_cases(get("dataset_dir"), get("image_pattern"), cases=adaptation_cases(parser))


def target_volumes(parser: ConfigParser) -> dict[str, Tensor]:
    """Every adaptation case's slices ``(slices, 1, S, S)``, float16 in [0, 1], preprocessed as in training.

    Only the images' files are named to the transforms, so no label can be read.
    """
    get = parser.get_parsed_content
    preprocessing = get("train#preprocessing").flatten()
    for transform in preprocessing.transforms:
        if isinstance(transform, MapTransform):
            transform.allow_missing_keys = True  # the label
    return {
        item["case"]: preprocessing(dict(item))["image"].as_tensor().permute(3, 0, 1, 2).half().contiguous()
        for item in adaptation_items(parser)
    }


def joined(volumes: Mapping[str, Tensor]) -> Tensor:
    """All slices of all volumes, ``(N, 1, S, S)``."""
    return torch.cat(list(volumes.values()))


def change_intensity(images: Tensor, share: float = SHARE) -> Tensor:
    """Random brightness and contrast, and a random gamma, each for a share of the slices.

    The ranges are those of DFG's code for its own training and for its rerun of DPL
    (``dataloaders/transformations.py``, "train" and "dpl_train").

    Args:
        images: ``(B, 1, S, S)`` in [0, 1].
        share: of the slices that change.
    """

    def drawn(low: float, high: float, otherwise: float) -> Tensor:
        values = torch.empty(len(images)).uniform_(low, high)
        return torch.where(torch.rand(len(images)) < share, values, otherwise).view(-1, 1, 1, 1).to(images.device)

    images = (images * drawn(1 - CONTRAST, 1 + CONTRAST, 1) + drawn(-BRIGHTNESS, BRIGHTNESS, 0)).clamp(0, 1)
    return images ** drawn(*GAMMA, 1)


def move(images: Tensor, labels: Tensor, share: float = SHARE) -> tuple[Tensor, Tensor]:
    """Random shift, scale and rotation of a share of the slices, with their label maps (DFG's "train").

    Args:
        images: ``(B, 1, S, S)``.
        labels: ``(B, 1, S, S)``, any dtype; resampled to the nearest.
        share: of the slices that move.
    """
    count = len(images)
    moved = torch.rand(count) < share
    angle = torch.empty(count).uniform_(-TURN, TURN) * moved
    scale = 1 + torch.empty(count).uniform_(-SCALE, SCALE) * moved
    shift = 2 * torch.empty(count, 2).uniform_(-SHIFT, SHIFT) * moved[:, None]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False).to(images.device)
    options = {"padding_mode": "reflection", "align_corners": False}
    moved_labels = F.grid_sample(labels.float(), grid, mode="nearest", **options).to(labels.dtype)
    return F.grid_sample(images, grid, mode="bilinear", **options), moved_labels
