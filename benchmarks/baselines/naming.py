"""What the embedded backbone's features name by themselves: the head that its pretraining throws away, as a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scripts.errors import SettingError
from scripts.networks.naming_head import NamingHead, against_the_rest
from scripts.networks.sam2_backbone import SAM2
from scripts.networks.sam2_types import ImageFeatures
from scripts.pretraining.patient_clips import CLASSES
from scripts.weights import load_tensors
from torch import Tensor, nn

from .slicewise import SlicewiseInferer, encoded_slices

SLICES_AT_A_TIME = 8


class NamedSlices(nn.Module):
    """A backbone and the head of its pretraining.

    Args:
        backbone: the pretrained one.
        path: the pretraining's ``checkpoint.pt``.

    Raises:
        BundleError: the file is not there, is something else, or is of another backbone.
    """

    def __init__(self, backbone: SAM2, path: str | Path) -> None:
        super().__init__()
        remedy = "Name the checkpoint.pt of `run pretraining --config_file configs/pretrain_anatomy.json`."
        state = load_tensors(path, "pretraining of a backbone", remedy=remedy).get("model", {})
        prefix = "backbone.model."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = backbone.model.state_dict()
        if weights.keys() != own.keys() or any(not torch.equal(weights[key].half(), own[key].half()) for key in own):
            raise SettingError(f"'{path}' is the pretraining of another backbone than this {backbone.name}. {remedy}")
        self.backbone = backbone
        self.head = NamingHead(backbone.embedding_channels, CLASSES)
        self.head.load_state_dict({key[5:]: value for key, value in state.items() if key.startswith("head.")})

    def forward(self, features: ImageFeatures) -> Tensor:
        """Logits of all classes at stride 4."""
        return self.head(features)[1].float()


class NamingInferer(SlicewiseInferer):
    """Organ logits of every slice, against all that is none of the organs.

    Args:
        organs: names, each one of :data:`~scripts.pretraining.patient_clips.CLASSES`.

    Raises:
        SettingError: another name.
    """

    def __init__(self, organs: Sequence[str]) -> None:
        super().__init__(len(organs))
        unknown = sorted({*organs} - {*CLASSES})
        if unknown:
            raise SettingError(f"Painted patients have no {', '.join(unknown)}; there are: {', '.join(CLASSES)}.")
        self.named = [CLASSES.index(organ) for organ in organs]

    def segment(self, inputs: Tensor, network: NamedSlices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields a few slices at a time."""
        for chunk in torch.arange(inputs.shape[-1]).split(SLICES_AT_A_TIME):
            logits = network(encoded_slices(inputs, chunk.tolist(), network.backbone))
            organs, others = against_the_rest(logits, self.named)
            yield chunk.tolist(), organs - others
