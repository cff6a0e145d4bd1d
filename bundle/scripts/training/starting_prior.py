"""Where the training of a prior starts: from a prior trained before, or from noise.

A prior that was pretrained on painted patients knows where organs are before it has seen a labelled volume. What it
knows carries over where backbone and widths are the same; organs are matched by name, and those that it does not know
start with an embedding of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SettingError
from ..files import sha256_of
from ..networks.frozen_backbone import FrozenBackboneNetwork
from ..networks.naming_head import naming_classes
from ..weights import load_tensors

logger = logging.getLogger(__name__)
# a row for each organ, in DiffuSAM's prior and in AutoMedSAM's
_EMBEDDINGS = ("unet.class_embedding.weight", "organ_embedding.weight")


class StartingPrior:
    """Prepares a network's prior for training: weights and statistics of an earlier one, or fitted statistics alone.

    Args:
        network: whose prior is to be trained.
        start_from: file of a trained prior, such as the bundle's own ``models/model.pt``; None starts from noise. One
            that is not there, or was made for another backbone or of other widths, is left, and the log says why.
        statistics: pairs of memories and embeddings of the training volumes, asked for where statistics must be fitted.
    """

    def __init__(
        self,
        network: FrozenBackboneNetwork,
        start_from: str | Path | None,
        *,
        statistics: Iterable[tuple[Tensor, Tensor]],
    ) -> None:
        self.network, self.statistics = network, statistics
        self.start_from = None if start_from is None else Path(start_from)
        self.names_known = False

    def __call__(self) -> None:
        reason = self._take_over() if self.start_from is not None else "no `start_from` is named"
        if self.network.names is not None and not self.names_known:
            raise SettingError(
                f"named_memories goes on from the head of the file that training starts from, but {reason}. Set "
                "`start_from` to a file that has a head, such as the model that ships, or `named_memories` to False."
            )
        if reason:
            logger.info("The prior starts from scratch: %s.", reason)
            self.network.prior.fit_statistics(self.statistics)

    def _take_over(self) -> str | None:
        """Loads what can be taken over; returns why not, where nothing can."""
        path, prior = self.start_from, self.network.prior
        if not path.is_file():
            return f"'{path}' is not there"
        remedy = "Name another file with `start_from`, or null to start from scratch."
        state: dict[str, Any] = load_tensors(path, "trained prior", remedy=remedy)["model"]
        about, own = state["_extra_state"], self.network.get_extra_state()
        if about.get("network", "DiffuSAM") != own["network"]:
            return f"'{path}' holds a prior of {about['network']}, this is {own['network']}"
        if (about["backbone"], about["weights"]) != (own["backbone"], own["weights"]):
            return f"'{path}' was trained for other weights than those of '{own['backbone']}' loaded here"
        if self.network.names is not None:
            head = {key.removeprefix("names."): value for key, value in state.items() if key.startswith("names.")}
            if not head:
                return f"'{path}' has no head that names organs"
            self._take_over_names(head, about["organs"])
        if about.get("joint_prior", False) != own.get("joint_prior", False):
            return f"'{path}' holds a prior of another kind (joint_prior)"
        weights = {key.removeprefix("prior."): value for key, value in state.items() if key.startswith("prior.")}
        expected = prior.state_dict()
        embedding = next((key for key in _EMBEDDINGS if key in expected), None)
        if embedding is None:  # of a joint prior, whose organs are channels
            known = about["organs"] if about["organs"] == own["organs"] else []
        else:
            weights[embedding], known = self._organs(about["organs"], weights.pop(embedding), expected[embedding])
        differing = sorted(
            key
            for key in expected.keys() | weights.keys()
            if key not in weights or key not in expected or weights[key].shape != expected[key].shape
        )
        if differing:
            return f"'{path}' has other widths ({len(differing)} of its tensors differ, such as '{differing[0]}')"
        if not known:
            return f"'{path}' knows none of the organs {self.network.organs}, but {about['organs']}"
        prior.load_state_dict(weights)
        new = [organ for organ in self.network.organs if organ not in known]
        scratch = f"; from scratch: {', '.join(new)}" if new else ""
        logger.info("The prior starts from '%s', which knows %s%s.", path, ", ".join(known), scratch)
        return None

    def _take_over_names(self, head: dict[str, Tensor], organs: list[str]) -> None:
        """What the head knows is of use for any organs, and whatever the prior's widths are."""
        names = self.network.names
        if names.reads_images:
            names.begin_as(self.network.backbone)
        names.take_over(head, naming_classes(organs))
        self.names_known = True
        logger.info("The head that names organs starts from '%s'.", self.start_from)

    def _organs(self, names: list[str], found: Tensor, fresh: Tensor) -> tuple[Tensor, list[str]]:
        """The embeddings of this network's organs, and which of them were known."""
        rows = fresh.clone()
        known = [organ for organ in self.network.organs if organ in names]
        if found.shape[1:] != fresh.shape[1:]:
            return found, known  # other widths: the comparison of shapes says so
        for organ in known:
            rows[self.network.organs.index(organ)] = found[names.index(organ)]
        return rows, known


def starting_digest(start_from: str | Path | None) -> str | None:
    """SHA-256 of the prior that a training would start from, by which two trainings differ; None where there is
    none.
    """
    return sha256_of(start_from) if start_from is not None and Path(start_from).is_file() else None
