"""What a head that names organs says by itself, without the memories and the decoder that it drives, as a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.naming_head import against_the_rest
from scripts.weights import load_tensors
from torch import Tensor

from .slicewise import SlicewiseInferer, shown_slices

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
    """

    def __init__(self, organs: Sequence[str]) -> None:
        super().__init__(len(organs))

    def segment(self, inputs: Tensor, network: DiffuSAM) -> Iterator[tuple[list[int], Tensor]]:
        """Yields a few slices at a time."""
        for chunk in torch.arange(inputs.shape[-1]).split(SLICES_AT_A_TIME):
            features = network.encode(shown_slices(inputs, chunk.tolist(), network.backbone))
            organs, others = against_the_rest(network.names(features)[1].float(), range(self.organs))
            yield chunk.tolist(), organs - others
