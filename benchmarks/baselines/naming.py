"""What a head that names organs says by itself, without the memories and the decoder that it drives, as a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.naming_head import grouped
from scripts.weights import load_tensors
from torch import Tensor

from .slicewise import SlicewiseInferer, shown_slices, smoothed_along

SLICES_AT_A_TIME = 8


def with_names(network: DiffuSAM, path: str | Path) -> DiffuSAM:
    """Loads a trained file, whose head is then the network's.

    Raises:
        BundleError: the file is not there, is something else, has no head, or is of another backbone.
    """
    remedy = "Name a file that has a head, such as the model that ships, with --prior_file."
    network.load_state_dict(load_tensors(path, "trained prior", remedy=remedy)["model"])
    return network.eval()


class NamingInferer(SlicewiseInferer):
    """Organ logits of every slice, against all that is none of the organs.

    Args:
        organs: of the network, whose head names them first.
        smoothing: see :func:`.slicewise.smoothed_along`.
    """

    def __init__(self, organs: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__(len(organs))
        self.smoothing = smoothing

    def segment(self, inputs: Tensor, network: DiffuSAM) -> Iterator[tuple[list[int], Tensor]]:
        """Yields a few slices at a time."""
        for indices, logits in smoothed_along(self._named(inputs, network), self.smoothing):
            yield indices, logits[:, :-1] - logits[:, -1:]

    def _named(self, inputs: Tensor, network: DiffuSAM) -> Iterator[tuple[list[int], Tensor]]:
        for chunk in torch.arange(inputs.shape[-1]).split(SLICES_AT_A_TIME):
            features = network.encode(shown_slices(inputs, chunk.tolist(), network.backbone))
            yield chunk.tolist(), grouped(network.names(features)[1].float(), self.organs)
