"""Where the training of a prior starts: from a prior trained before, or from noise.

A prior that was pretrained on painted patients knows where organs are before it has seen a labelled volume. What it
knows carries over where backbone and widths are the same; organs are matched by name, and those that it does not know
start with an embedding of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SettingError, UnusableFileError, listed
from ..files import sha256_of
from ..networks.frozen_backbone import FrozenBackboneNetwork
from ..networks.naming_head import naming_classes
from ..networks.naming_network import ENCODER
from ..weights import check_finite, load_tensors

_ABOUT = {"organs", "backbone", "weights"}  # what every prior says of itself
_REMEDY = "Name another file with `start_from`, or null to start from scratch."

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
        trained: whether the prior will be trained. One that will not stays unfitted, unless it has all it needs from
            the file.
    """

    def __init__(
        self,
        network: FrozenBackboneNetwork,
        start_from: str | Path | None,
        *,
        statistics: Iterable[tuple[Tensor, Tensor]],
        trained: bool = True,
    ) -> None:
        self.network, self.statistics, self.trained = network, statistics, trained
        self.start_from = None if start_from is None else Path(start_from)

    def __call__(self) -> None:
        state, reason = self._read()
        if self.network.names is not None:
            unnamed = reason or self._take_over_names(state)
            if unnamed:
                raise SettingError(
                    f"named_memories goes on from the head of the file that training starts from, but {unnamed}. Set "
                    "`start_from` to a file that has such a head, as the model that ships has one with an encoder of "
                    "its own (`names_encoder` True), or `named_memories` to False."
                )
        reason = reason or self._take_over(state)
        if reason and self.trained:
            logger.info("The prior starts from scratch: %s.", reason)
            self.network.prior.fit_statistics(self.statistics)
        elif reason:
            logger.info("The prior, which is not trained, will not generate memories: %s.", reason)

    def _read(self) -> tuple[dict[str, Any], str | None]:
        """What the file holds, and why nothing of it can be taken over, where that is so.

        Raises:
            UnusableFileError: it is no trained prior, or its training failed.
        """
        path = self.start_from
        if path is None:
            return {}, "no `start_from` is named"
        if not path.is_file():
            return {}, f"'{path}' is not there"
        state = _trained_prior(path)
        about = state["_extra_state"]
        check_finite(path, state, remedy=_REMEDY)
        own = self.network.get_extra_state()
        if about.get("network", "DiffuSAM") != own["network"]:
            return state, f"'{path}' holds a prior of {about['network']}, this is {own['network']}"
        if (about["backbone"], about["weights"]) != (own["backbone"], own["weights"]):
            return state, f"'{path}' was trained for other weights than those of '{own['backbone']}' loaded here"
        return state, None

    def _take_over(self, state: Mapping[str, Any]) -> str | None:
        """Loads what can be taken over of the prior; returns why not, where nothing can."""
        path, prior = self.start_from, self.network.prior
        about, own = state["_extra_state"], self.network.get_extra_state()
        if about.get("joint_prior", False) != own.get("joint_prior", False):
            return f"'{path}' holds a prior of another kind (joint_prior)"
        weights = {key.removeprefix("prior."): value for key, value in state.items() if key.startswith("prior.")}
        if not weights.get("fitted", True):
            return f"the prior of '{path}' has never been trained, its head alone has"
        expected = prior.state_dict()
        embedding = next((key for key in _EMBEDDINGS if key in expected), None)
        if embedding is None:  # of a joint prior, whose organs are channels
            known = about["organs"] if about["organs"] == own["organs"] else []
        elif embedding in weights:
            weights[embedding], known = self._organs(about["organs"], weights.pop(embedding), expected[embedding])
        differing = _differing(weights, expected)
        if differing:
            return f"'{path}' has other widths ({len(differing)} of its tensors differ, such as '{differing[0]}')"
        if not known:
            return f"'{path}' knows none of the organs {self.network.organs}, but {about['organs']}"
        new = [organ for organ in self.network.organs if organ not in known]
        if not self.trained and new:
            return f"'{path}' knows nothing of {', '.join(new)}"
        prior.load_state_dict(weights)
        scratch = f"; from scratch: {', '.join(new)}" if new else ""
        logger.info("The prior starts from '%s', which knows %s%s.", path, ", ".join(known), scratch)
        return None

    def _take_over_names(self, state: Mapping[str, Any]) -> str | None:
        """Loads the head, which is of use for any organs, and whatever the prior's widths are; or why it cannot be."""
        path, names = self.start_from, self.network.names
        head = {key.removeprefix("names."): value for key, value in state.items() if key.startswith("names.")}
        if not head:
            return f"'{path}' has no head that names organs"
        own, classes = names.state_dict(), naming_classes(state["_extra_state"]["organs"])
        encoder = [key for key in head if key.startswith(ENCODER)]
        if encoder and not names.reads_images:
            return f"the head of '{path}' has an encoder of its own (`names_encoder` True), this one has none"
        if not encoder:  # this one's own, if it has one, stays as it is
            own = {key: value for key, value in own.items() if not key.startswith(ENCODER)}
        rows = {key: len(classes) for key in own if key.partition(".")[0] in ("coarse", "fine")}  # of any organs
        differing = _differing(head, {key: _rows(value, rows.get(key)) for key, value in own.items()})
        if differing:
            return (
                f"the head of '{path}' has other widths ({len(differing)} of its tensors differ, such as "
                f"'{differing[0]}')"
            )
        if names.reads_images:
            names.begin_as(self.network.backbone)
        names.take_over(head, classes)
        logger.info("The head that names organs starts from '%s'.", path)
        return None

    def _organs(self, names: list[str], found: Tensor, fresh: Tensor) -> tuple[Tensor, list[str]]:
        """The embeddings of this network's organs, and which of them were known."""
        rows = fresh.clone()
        known = [organ for organ in self.network.organs if organ in names]
        if found.shape[1:] != fresh.shape[1:]:
            return found, known  # other widths: the comparison of shapes says so
        for organ in known:
            rows[self.network.organs.index(organ)] = found[names.index(organ)]
        return rows, known


def _differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of the two has, or that are of another shape."""
    return sorted(
        key
        for key in expected.keys() | found.keys()
        if key not in found or key not in expected or found[key].shape != expected[key].shape
    )


def _rows(tensor: Tensor, rows: int | None) -> Tensor:
    """A tensor of the same shape, but for the number of its rows, if one is given."""
    return tensor if rows is None else tensor.new_empty((rows, *tensor.shape[1:]))


def share_learned(
    volumes: int, organs: Sequence[str], start_from: str | Path | None, *, most: float = 0.7, enough: int = 3
) -> float:
    """How far a head that names organs is exported from where its training began (``names_learned``): the fewer volumes
    it learns from, the more it would forget of what they lack, and the less it has to say against that. Not in the
    paper.

    Args:
        volumes: labelled ones.
        organs: names. Where one of them is new to the file that the training starts from, nothing is known of it that
            could be forgotten: then it is as far as from enough volumes.
        start_from: see :class:`StartingPrior`.
        most: the share from enough volumes on.
        enough: that many.

    Raises:
        UnusableFileError: the file is no trained prior.
    """
    if start_from is None or not Path(start_from).is_file():
        return most
    about = _trained_prior(start_from, mmap=True)["_extra_state"]  # no tensor is needed
    known = set(organs) <= set(about["organs"])
    return round(most * min(1.0, volumes / enough), 4) if known else most


def _trained_prior(path: str | Path, **options: Any) -> dict[str, Any]:
    """The state of the network that a file holds, whose ``_extra_state`` says whose it is.

    Raises:
        UnusableFileError: it is no trained prior.
    """
    content = load_tensors(path, "trained prior", remedy=_REMEDY, **options)
    state = content.get("model")
    about = state.get("_extra_state") if isinstance(state, dict) else None
    if not isinstance(about, dict) or not about.keys() >= _ABOUT:
        raise UnusableFileError(f"'{path}' is no trained prior: it holds {listed(content) or 'nothing'}. {_REMEDY}")
    return state


def starting_digest(start_from: str | Path | None) -> str | None:
    """SHA-256 of the prior that a training would start from, by which two trainings differ; None where there is
    none.
    """
    return sha256_of(start_from) if start_from is not None and Path(start_from).is_file() else None
