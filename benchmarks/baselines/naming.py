"""What a head that names organs says by itself, without the memories and the decoder that it drives, as a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scripts.errors import SettingError, listed
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.naming_head import grouped, naming_classes
from scripts.weights import load_tensors
from torch import Tensor

from .slicewise import SlicewiseInferer, shown_slices, smoothed_along

SLICES_AT_A_TIME = 8


def with_names(network: DiffuSAM, path: str | Path) -> DiffuSAM:
    """Loads a trained file, whose head is then the network's. Organs may be others than the file's, as long as its head
    names them.

    Raises:
        BundleError: the file is not there, is something else, has no head, is of another backbone, or names no such
            organ.
    """
    remedy = "Name a file that has a head, such as the model that ships, with --prior_file."
    state = load_tensors(path, "trained prior", remedy=remedy)["model"]
    about = state["_extra_state"]
    if about["organs"] == network.organs:
        network.load_state_dict(state)
        return network.eval()
    network.set_extra_state({**about, "organs": network.organs})  # refuses what is of another backbone
    head = {key.removeprefix("names."): value for key, value in state.items() if key.startswith("names.")}
    named = naming_classes(about["organs"]) if head else []
    if unknown := [organ for organ in network.organs if organ not in named]:
        raise SettingError(
            f"The head of '{path}' names {listed(named) if named else 'nothing'}, not {listed(unknown)}. Leave that "
            "out of `label_map`."
        )
    network.names.take_over(head, named)
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
