"""How a scan lies, read from its image embeddings: a small head beside the prior, on what has been encoded anyway.

A header that says left where right is, or feet where the head is, cannot be told from the header. The image can tell:
the liver lies on the right, the spine behind, the kidneys below the dome of the liver. For each slice the head says
how likely it is mirrored, how high in the body it lies, and whether it shows an axial abdomen at all;
:func:`gather_evidence` adds that up over a volume. What speaks for left and right being exchanged is compared with what
speaks for it once some slices are mirrored (:func:`to_mirror`): what the head takes amiss in a scan, it takes amiss in
both. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnusableFileError, listed
from ..weights import check_finite, load_tensors, on_cpu, save_atomically
from .sam2_backbone import SAM2

#: What the head says of a slice: logits of "left and right are exchanged" and of "front and back are exchanged", the
#: height above the organs' middle in units of :data:`HEIGHT_UNIT`, and the logit of "an axial slice with organs".
OUTPUTS = ("left_right", "front_back", "height", "abdomen")
HEIGHT_UNIT = 50.0  # mm
LARGEST_LOGIT = 5.0  # beyond it one slice would outvote many
STRETCH = 40.0  # mm along the body that must look like an abdomen
MIRRORED = 6  # slices of a volume that are encoded once more, mirrored
_REMEDY = "Run `pretraining` with 'configs/pretrain_orientation.json' again, or set `orientation_file` to null."


class Evidence(NamedTuple):
    """What the slices of a volume say together.

    Attributes:
        left_right: mean logit of "left and right are exchanged" over slices with organs, half of it and half of the
            negative of that of the same slices mirrored.
        front_back: mean logit of "front and back are exchanged".
        upside_down: by how many mm the heights that slices seem to have fall, where the header says they rise by one
            standard deviation of their heights. Negative where both rise.
        abdomen: mean logit of "an axial slice with organs", over the stretch where it is highest.
        extent: mm along the body in which slices have organs.
        slices: how many have.
    """

    left_right: float
    front_back: float
    upside_down: float
    abdomen: float
    extent: float
    slices: int


class OrientationHead(nn.Module):
    """From image embeddings to :data:`OUTPUTS`: averages over a coarse grid, one hidden layer.

    Args:
        channels: of the image embedding.
        grid: rows and columns that the embedding is averaged in, coarse enough for any patient, fine enough for left
            and right, front and back.
        hidden: width of the hidden layer.
        dropout: of the averages and of the hidden layer, in training.
    """

    def __init__(self, channels: int, grid: int = 4, *, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.channels, self.grid, self.hidden = channels, grid, hidden
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels * grid * grid, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, len(OUTPUTS)),
        )

    def pool(self, embedding: Tensor) -> Tensor:
        """Averages ``(B, C, grid, grid)`` of image embeddings ``(B, C, h, w)``."""
        return F.adaptive_avg_pool2d(embedding, self.grid)

    def fit_statistics(self, pooled: Tensor) -> None:
        """Takes mean and spread of each channel from pooled embeddings ``(N, C, grid, grid)``."""
        self.mean.copy_(pooled.mean((0, 2, 3)).view_as(self.mean))
        self.spread.copy_(pooled.std((0, 2, 3)).clamp_min(1e-3).view_as(self.spread))

    def forward(self, pooled: Tensor) -> Tensor:
        """Outputs ``(B, 4)``, in the order of :data:`OUTPUTS`, of pooled embeddings."""
        return self.layers((pooled - self.mean) / self.spread)


def to_mirror(outputs: Tensor) -> Tensor:
    """Indices of the slices to be shown mirrored as well: :data:`MIRRORED` of those with organs, evenly spread.

    Args:
        outputs: of :class:`OrientationHead`, ``(slices, 4)``, in the order of the slices.
    """
    held = (outputs[:, 3] > 0).nonzero()[:, 0]
    if not len(held):
        held = torch.arange(len(outputs))
    count = min(MIRRORED, len(held))
    return held[((torch.arange(count) + 0.5) * len(held) / count).long()]


def mirrored_logits(output: Tensor, mirrored: Tensor) -> Tensor:
    """Logits of "left and right are exchanged" ``(B,)`` from outputs ``(B, 4)`` of slices and of the same, mirrored."""
    return (output[:, 0] - mirrored[:, 0]) / 2


def gather_evidence(outputs: Tensor, heights: Tensor, mirrored: Tensor) -> Evidence:
    """What the slices of a volume say together.

    Args:
        outputs: of :class:`OrientationHead`, ``(slices, 4)``, in the order of the slices.
        heights: of the slices in mm, upwards as the header says, ``(slices,)``.
        mirrored: outputs for the slices of :func:`to_mirror`, mirrored.
    """
    outputs, mirrored = outputs.double().cpu(), mirrored.double().cpu()
    left_right = _left_right(outputs[to_mirror(outputs)], mirrored)
    order = heights.argsort()
    outputs, heights = outputs[order], heights[order].double().cpu()
    front_back = outputs[:, 1].clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    seen, abdomen = outputs[:, 2] * HEIGHT_UNIT, outputs[:, 3].clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    step = float(heights.diff().median()) if len(heights) > 1 else 0.0
    weight = abdomen.sigmoid()
    weight = weight / weight.sum()
    offset = heights - weight @ heights
    spread = (weight @ offset.square()).sqrt()
    window = min(len(heights), max(1, round(STRETCH / step))) if step > 0 else 1
    shown = int((abdomen > 0).sum())
    return Evidence(
        left_right=left_right,
        front_back=float(weight @ front_back),
        upside_down=-float((weight * offset) @ seen / spread) if spread > 0 else 0.0,
        abdomen=float(abdomen.unfold(0, window, 1).mean(1).max()),
        extent=shown * step,
        slices=shown,
    )


def _left_right(outputs: Tensor, mirrored: Tensor) -> float:
    """Mean of :func:`mirrored_logits`, weighted by how likely each slice holds organs."""
    outputs, mirrored = (each.clamp(-LARGEST_LOGIT, LARGEST_LOGIT) for each in (outputs, mirrored))
    weight = outputs[:, 3].sigmoid()
    return float(weight @ mirrored_logits(outputs, mirrored) / weight.sum())


def save_head(head: OrientationHead, path: str | Path, *, backbone: SAM2, about: Mapping[str, Any]) -> None:
    """Writes a head in half precision, with the backbone and the size of slices that it is for.

    Args:
        head: the trained one.
        path: of the file.
        backbone: whose embeddings it reads.
        about: what else the file says, such as ``"limits"``.
    """
    state = {key: value.half() for key, value in on_cpu(head.state_dict()).items()}
    shape = {"channels": head.channels, "grid": head.grid, "hidden": head.hidden}
    fits = {"backbone": backbone.fingerprint(), "image_size": backbone.image_size}
    save_atomically({"model": state, "shape": shape, "mirrored": MIRRORED, **fits, **about}, path)


def load_head(path: str | Path, backbone: SAM2) -> tuple[OrientationHead, dict[str, Any]] | None:
    """A head of :func:`save_head` in evaluation mode and what its file says; None where it is for another backbone.

    Args:
        path: of the file.
        backbone: whose embeddings it is to read.

    Raises:
        MissingFileError, UnusableFileError: there is no such file, or it is damaged or something else.
    """
    content = load_tensors(path, "orientation head", remedy=_REMEDY)
    missing = {"model", "shape", "backbone", "image_size", "limits", "mirrored"} - content.keys()
    if missing:
        raise UnusableFileError(f"'{path}' is no orientation head: it lacks {listed(sorted(missing))}. {_REMEDY}")
    if (content["backbone"], content["image_size"]) != (backbone.fingerprint(), backbone.image_size):
        return None
    state = content.pop("model")
    check_finite(path, state, remedy=_REMEDY)
    head = OrientationHead(**content["shape"])
    head.load_state_dict({key: value.float() for key, value in state.items()})
    return head.eval(), content
