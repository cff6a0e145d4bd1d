"""The row of SAM2 as a video segmenter: one true slice of each organ, carried through the volume.

The true mask of the middle one of the slices that hold the organ is shown, on the volume under test itself. From there
masks are propagated in both directions, as sam2's `SAM2Base.track_step` does: each slice attends to the memory of the
shown slice and to those of the slices decoded last. `SAM2VideoPredictor` does the same from there on, but first sends a
given mask through a quarter of the resolution and back before it encodes it. It says what the backbone's propagation is
worth by itself, and so what can be hoped for from neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from scripts.networks.logits import NO_OBJECT_LOGIT, mask_to_logits
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures, Memory
from torch import Tensor

from .slicewise import SlicewiseInferer, encoded_slices, network_labels


class PropagatedInferer(SlicewiseInferer):
    """One true mask of each organ, and what memories make of it in all other slices.

    Args:
        organs: K.
        neighbours: slices just decoded whose memories a slice sees; SAM2's own six by default.
    """

    def __init__(self, organs: int, neighbours: int = 6) -> None:
        super().__init__(organs)
        self.neighbours = neighbours

    def segment(self, inputs: Tensor, network: FrozenSAM2, truth: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Yields all slices one by one; ``truth`` is ``(1, 1, ...)`` on the file's own grid."""
        size = network.image_size
        planes = network_labels(truth, inputs, size).to(next(network.parameters()).device)
        encoded = [encoded_slices(inputs, [index], network) for index in range(len(planes))]
        logits = torch.full((len(planes), self.organs, size // 4, size // 4), NO_OBJECT_LOGIT)
        for organ in range(1, self.organs + 1):
            masks = planes == organ
            held = masks.flatten(1).any(1).nonzero()[:, 0]
            if len(held):
                shown = int(held[len(held) // 2])
                for index, decoded in propagate(network, encoded, masks[shown], shown, self.neighbours):
                    logits[index, organ - 1] = decoded.cpu()
        for index in range(len(planes)):
            yield [index], logits[index, None]


@torch.no_grad()
def propagate(
    network: FrozenSAM2, encoded: list[ImageFeatures], mask: Tensor, shown: int, neighbours: int
) -> Iterator[tuple[int, Tensor]]:
    """Index and mask logits ``(S/4, S/4)`` of every slice, the shown one first.

    Args:
        network: the backbone.
        encoded: all slices.
        mask: ``(S, S)`` true mask of the shown slice.
        shown: its index.
        neighbours: memories of slices decoded before, at most.
    """
    true_logits = mask_to_logits(mask[None, None])
    source = Memory(network.encode_memory(encoded[shown], true_logits))
    yield shown, F.interpolate(true_logits, scale_factor=0.25, mode="area")[0, 0]
    for indices in (range(shown - 1, -1, -1), range(shown + 1, len(encoded))):
        past: deque[Tensor] = deque(maxlen=neighbours)
        for index in indices:
            memories = [source, *(Memory(memory, 1 + distance) for distance, memory in enumerate(past))]
            decoded = network.decode(network.condition(encoded[index], memories), encoded[index])
            logits = decoded.gated()
            past.appendleft(network.encode_memory(encoded[index], logits, decoded.object_score))
            yield index, logits[0, 0]
