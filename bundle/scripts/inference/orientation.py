"""Whether a scan lies as its header says: a check that costs little, since its slices have been encoded anyway; a few
are encoded once more, mirrored.

A header that exchanges left and right, front and back, or head and feet is never corrected, only flagged: what the
image looks like is no proof. So is what does not look like an abdomen at all. What the flag rests on is in
:mod:`scripts.networks.orientation`, how often it is right in docs/results/quality_flags.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..descriptions import Described
from ..files import sha256_of
from ..networks.orientation import Evidence, OrientationHead, gather_evidence, load_head, to_mirror
from ..networks.sam2_backbone import FrozenSAM2
from ..networks.sam2_types import ImageFeatures
from ..segmentation.walked_slices import VolumeSlices
from .cases import reason

AS_STATED, EXCHANGED, CANNOT_TELL = "as stated", "exchanged", "cannot tell"
SIDES = {"left_right": "left and right", "front_back": "front and back", "upside_down": "head and feet"}

logger = logging.getLogger(__name__)


class OrientationCheck(Described):
    """Ignite handler that listens to the inferer's image features, and then says how the case lies.

    Args:
        file: of the head, or None for no check. Where it is not there, or is for other weights of the backbone or
            another size of slices, nothing is checked.
        backbone: whose embeddings it reads.
    """

    def __init__(self, file: str | Path | None, backbone: FrozenSAM2) -> None:
        self.file, self.backbone = None if file is None else Path(file), backbone
        self._loaded: tuple[OrientationHead, dict[str, Any]] | None = None
        self._asked = False
        self._outputs: dict[int, Tensor] = {}
        self._slices: VolumeSlices | None = None
        self._mirrored: Tensor | None = None
        self.problem: str | None = None  # why the present case is not checked

    def described(self) -> dict[str, Any]:
        """The content of the head's file, where it is used."""
        return {"head": None if self.head is None or self.file is None else sha256_of(self.file)}

    @property
    def head(self) -> OrientationHead | None:
        """The head, where there is one for this backbone."""
        if not self._asked:
            self._asked = True
            if self.file is not None and self.file.is_file():
                self._loaded = load_head(self.file, self.backbone)
            if self._loaded is None:
                logger.info("How scans lie is not checked: there is no orientation head for this backbone.")
        return None if self._loaded is None else self._loaded[0]

    @property
    def limits(self) -> dict[str, Any]:
        """Of the head's file; see :func:`verdicts`."""
        return {} if self._loaded is None else self._loaded[1]["limits"]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._listen)
        # of a case that failed too, whose volume is not to be kept while the next one is read
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._forget)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.mirror)

    def _listen(self, engine: Engine) -> None:
        if hasattr(engine.inferer, "on_features") and self.head is not None:  # others do not show theirs
            engine.inferer.on_features = self.add

    def _forget(self) -> None:
        self._outputs, self._slices, self._mirrored, self.problem = {}, None, None, None

    def add(self, slices: VolumeSlices, indices: Sequence[int], features: ImageFeatures) -> None:
        """Takes the features of some slices of the present case, which are counted from its feet as the header has it.

        Args:
            slices: of the case.
            indices: of some of them.
            features: of these.
        """
        self._slices = slices
        self._outputs |= dict(zip(indices, self._read(features)))

    def mirror(self, engine: SupervisedEvaluator) -> None:
        """Encodes a few slices of the present case once more, mirrored, after all have been added: as many at a time as
        the inferer, and in its precision. Where there is no memory for them, ``problem`` says so, and the case, which
        is segmented already, is not checked.
        """
        slices, self._slices = self._slices, None
        if slices is None:
            return
        try:
            device = next(self.backbone.parameters()).device.type
            with torch.no_grad(), torch.autocast(device, enabled=engine.amp, **engine.amp_kwargs):
                self._mirrored = self._read_mirrored(slices.seen_in(replace(slices.view, mirrored=True)))
        except (MemoryError, RuntimeError) as error:  # PyTorch's is one of the latter
            said = reason(error)
            if not said.startswith("out of memory"):
                raise
            self.problem = f"how it lies is not checked: {said}".rstrip(".")

    def _read_mirrored(self, mirrored: VolumeSlices) -> Tensor:
        indices, outputs = self._in_order()
        chosen = [indices[place] for place in to_mirror(outputs).tolist()]
        return self._read(mirrored.features(chosen))

    @torch.no_grad()
    def _read(self, features: ImageFeatures) -> Tensor:
        assert self.head is not None
        with torch.autocast("cpu", enabled=False):  # it is small, and its limits are of single precision
            return self.head.cpu()(self.head.pool(features.embedding.float()).cpu())

    def _in_order(self) -> tuple[list[int], Tensor]:
        indices = sorted(self._outputs)
        return indices, torch.stack([self._outputs[index] for index in indices])

    def judge(self, spacing: float) -> dict[str, Any] | None:
        """What is known of the present case; None where nothing is checked or no slice has been seen.

        Args:
            spacing: of its slices in mm.

        Returns:
            of :func:`verdicts`.
        """
        if self._loaded is None or self._mirrored is None:
            return None
        indices, outputs = self._in_order()
        heights = torch.tensor(indices, dtype=torch.float) * spacing
        return verdicts(gather_evidence(outputs, heights, self._mirrored), self.limits)


def verdicts(evidence: Evidence, limits: Mapping[str, Any]) -> dict[str, Any]:
    """From evidence to words.

    Args:
        evidence: of a volume.
        limits: for each of :data:`SIDES` the evidence below which it lies as stated and above which it looks exchanged;
            for ``"abdomen"`` the least evidence of one; for ``"extent"`` the mm along the body that must be seen.

    Returns:
        ``"abdomen"``, whether it looks like one; for each of :data:`SIDES` ``"as stated"``, ``"exchanged"`` or
        ``"cannot tell"``; and ``"evidence"``, the numbers.
    """
    abdomen = evidence.abdomen >= limits["abdomen"]
    enough = abdomen and evidence.extent >= limits["extent"]
    found: dict[str, Any] = {"abdomen": abdomen}
    for side in SIDES:
        below, above = limits[side]
        value = getattr(evidence, side)
        found[side] = CANNOT_TELL
        if enough and value < below:
            found[side] = AS_STATED
        elif enough and value > above:
            found[side] = EXCHANGED
    numbers = {key: round(value, 2) for key, value in evidence._asdict().items()}
    return {**found, "evidence": numbers}


def orientation_flags(found: Mapping[str, Any] | None) -> list[dict[str, str | None]]:
    """Flags of a case, ``{"organ", "flag", "message"}`` with no organ: "no abdomen", or what looks exchanged.

    Args:
        found: of :func:`verdicts`, or None where nothing is known.
    """
    if found is None:
        return []
    if not found["abdomen"]:
        message = "hardly any slice looks like an axial slice of an abdomen; whatever was segmented may be nothing."
        return [{"organ": None, "flag": "no abdomen", "message": message}]
    exchanged = [name for side, name in SIDES.items() if found[side] == EXCHANGED]
    if not exchanged:
        return []
    message = (
        f"{', and '.join(exchanged)} look exchanged: the image may lie otherwise than its header says. Nothing was "
        "turned; compare with another source before a side is believed."
    )
    return [{"organ": None, "flag": "orientation", "message": message}]


def slice_spacing(affine: np.ndarray | Tensor) -> float:
    """Millimetres between the slices, which run along the third axis."""
    return float(np.linalg.norm(np.asarray(affine)[:3, 2]))
