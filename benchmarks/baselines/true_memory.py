"""The upper bound of a memory prior without 3D: the memory of the true masks, decoded on its own slice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scripts.networks.logits import mask_to_logits
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures, Memory
from torch import Tensor

from .slicewise import SlicewiseInferer, encoded_slices, network_labels

SLICES_AT_A_TIME = 8


class TrueMemoryInferer(SlicewiseInferer):
    """Organ logits of every slice from the memories of its own true masks.

    Args:
        organs: K.
    """

    def segment(self, inputs: Tensor, network: FrozenSAM2, truth: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Yields a few slices at a time; ``truth`` is ``(1, 1, ...)`` on the file's own grid."""
        device = next(network.parameters()).device
        labels = network_labels(truth, inputs, network.image_size)
        for chunk in torch.arange(inputs.shape[-1]).split(SLICES_AT_A_TIME):
            indices = chunk.tolist()
            features = encoded_slices(inputs, indices, network)
            yield indices, decode_true_memories(network, features, labels[indices].to(device), self.organs)


@torch.no_grad()
def decode_true_memories(network: FrozenSAM2, features: ImageFeatures, labels: Tensor, organs: int) -> Tensor:
    """Gated mask logits ``(B, organs, S/4, S/4)`` of slices with label maps ``(B, S, S)``, from their own memories."""
    values = torch.arange(1, organs + 1, device=labels.device).view(1, -1, 1, 1)
    masks = (labels[:, None] == values).flatten(0, 1)[:, None]
    repeated = features.repeat_interleave(organs)
    memory = network.encode_memory(repeated, mask_to_logits(masks))
    decoded = network.decode(network.condition(repeated, [Memory(memory)]), repeated)
    return decoded.gated()[:, 0].unflatten(0, (-1, organs))
