"""FATE-SAM: the memories of labelled slices that look like the slice at hand, and of the slices before it. No training.

After He et al., "Few-Shot Adaptation of Training-Free Foundation Model for 3D Medical Image Segmentation"
(arXiv:2501.09138), the row of Table 1 nearest to DiffuSAM. For every slice of a volume

1. the slice's image embedding retrieves the ``supports`` nearest labelled slices of the training volumes;
2. memory attention sees their memories, made of the true masks, as SAM2's conditioning memories, and those of the last
   ``neighbours`` slices as its tracked ones (the paper's "volumetric consistency");
3. the mask decoder gives each organ's mask, whose memory is kept for the slices that follow.

Where the paper leaves room, this is what the published code does (I3Tlab/FATE-SAM: ``notebooks/predictor_utils.py``,
``notebooks/utils.py``, ``sam2/sam2_video_predictor_FATE.py``):

* three supports, shared by all organs, among labelled slices that hold any organ; the distance is Manhattan, summed
  over channels, averaged over positions, then over the three levels of features. The paper's text has cosine
  similarity of image embeddings instead: ``retrieval="cosine"``;
* an organ that a support does not hold has an empty mask there, which is encoded like any other;
* from the middle slice down to the first, then from the slice above the middle up to the last. The way up begins with
  the memories of the middle and the slices below it;
* masks are encoded as decoded, organs unmerged, gated by the object score.

What differs: the backbone, size and intensities are the configuration's, as in all rows (there SAM2 large at 1024
pixels, slices scaled from their minimum to maximum); K organs are tracked from the first slice on (there from the first
slice whose supports hold them; before that an organ is absent there, while here its supports are empty); supports have
no object pointers (there they do in one of the two directions, as SAM2 takes them for slices yet to come in the other),
and neighbours' pointers are an option.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures, Memory
from torch import Tensor

from .slicewise import SlicewiseInferer, encoded_slices

RETRIEVALS = ("manhattan", "cosine")
_LEVELS = ("embedding", "high_res_fine", "high_res_coarse")
_SUPPORTS_AT_A_TIME = 16


class SupportBank:
    """Labelled slices: features to find them by, and a memory of each organ's true mask.

    What is held grows with the labelled slices alone, 2 MiB each for SAM2 tiny at 512 pixels: half precision, on the
    device that slices are compared on. Memories stay in their files until they are retrieved.

    Args:
        files: of the embedding cache (``scripts.training.encoded_slices.EncodedSlices``), one for each volume or
            variant.
        device: to compare slices on.
        retrieval: ``"manhattan"`` or ``"cosine"``, see above.

    Attributes:
        places: ``(N, 2)``, file and slice of each support.

    Raises:
        ValueError: an unknown ``retrieval``, or no labelled slice that holds an organ.
    """

    def __init__(self, files: Sequence[str | Path], device: torch.device, *, retrieval: str = "manhattan") -> None:
        if retrieval not in RETRIEVALS:
            raise ValueError(f"retrieval must be one of {', '.join(RETRIEVALS)}, got '{retrieval}'.")
        self.retrieval = retrieval
        contents = [torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in files]
        rows = [content["present"].any(1).nonzero()[:, 0] for content in contents]
        if not sum(map(len, rows)):
            raise ValueError(f"None of the {len(contents)} support volumes has a slice that holds an organ.")
        levels = _LEVELS if retrieval == "manhattan" else _LEVELS[:1]
        self.levels = [
            torch.cat([content[level][held] for content, held in zip(contents, rows)]).to(device) for level in levels
        ]
        self.places = torch.cat([torch.stack([torch.full_like(held, file), held], 1) for file, held in enumerate(rows)])
        self._memories = [content["memory"] for content in contents]

    def __len__(self) -> int:
        return len(self.places)

    def distances(self, features: ImageFeatures) -> Tensor:
        """How far one slice lies from each support: ``(N,)``."""
        query = (features.embedding, *features.high_res)[: len(self.levels)]
        query = [level.to(self.levels[0]).float() for level in query]  # as precise as what it is compared with
        chunks = []
        for index in torch.arange(len(self)).split(_SUPPORTS_AT_A_TIME):
            levels = [level[index.to(level.device)].float() for level in self.levels]
            if self.retrieval == "manhattan":
                each = [(own - other).abs().sum(1).mean((1, 2)) for own, other in zip(query, levels)]
                chunks.append(torch.stack(each).mean(0))
            else:
                chunks.append(1 - F.cosine_similarity(query[0].flatten(1), levels[0].flatten(1)))
        return torch.cat(chunks)

    def nearest(self, features: ImageFeatures, count: int) -> Tensor:
        """The ``count`` supports nearest to one slice, or all if there are fewer, nearest first."""
        return self.distances(features).argsort(stable=True)[:count].cpu()

    def memories(self, index: int) -> Tensor:
        """The memories ``(K, M, S/16, S/16)`` of one support's organs."""
        file, row = self.places[index].tolist()
        return self._memories[file][row]


class FateSamInferer(SlicewiseInferer):
    """Runs FATE-SAM over a volume; besides input and output it holds the memories of ``neighbours`` slices, twice.

    Args:
        bank: the labelled slices.
        organs: K.
        supports: labelled slices whose memories a slice sees.
        neighbours: slices just decoded whose memories a slice sees, 0 to 6; 6 is all that SAM2 can tell apart.
        object_pointers: whether neighbours' object pointers are attended to as well.
        batch_size: slices encoded at a time.

    Raises:
        ValueError: no support, or a number of neighbours that SAM2 has no temporal encoding for.
    """

    def __init__(
        self,
        bank: SupportBank,
        organs: int,
        *,
        supports: int = 3,
        neighbours: int = 6,
        object_pointers: bool = False,
        batch_size: int = 8,
    ) -> None:
        super().__init__(organs)
        if supports < 1:
            raise ValueError(f"supports must be at least 1, got {supports}.")
        if not 0 <= neighbours <= 6:
            raise ValueError(f"neighbours must lie in 0...6, got {neighbours}.")
        self.bank, self.supports, self.neighbours = bank, supports, neighbours
        self.object_pointers, self.batch_size = object_pointers, batch_size

    def segment(self, inputs: Tensor, network: FrozenSAM2, *args) -> Iterator[tuple[list[int], Tensor]]:
        """Yields slices from the middle down, then from above the middle up."""
        slices = inputs.shape[-1]
        middle = slices // 2
        past: deque = deque(maxlen=self.neighbours)  # the memory and pointer of each slice, nearest first
        begun: list[tuple[Tensor, Tensor]] = []
        for index, features in self._encoded(inputs, range(middle, -1, -1), network):
            logits, entry = self._decode(network, features, past)
            past.appendleft(entry)
            if len(begun) < self.neighbours:
                begun.append(entry)
            yield [index], logits
        past = deque(begun, maxlen=self.neighbours)
        for index, features in self._encoded(inputs, range(middle + 1, slices), network):
            logits, entry = self._decode(network, features, past)
            past.appendleft(entry)
            yield [index], logits

    def _encoded(
        self, inputs: Tensor, order: Sequence[int], network: FrozenSAM2
    ) -> Iterator[tuple[int, ImageFeatures]]:
        for start in range(0, len(order), self.batch_size):
            indices = list(order[start : start + self.batch_size])
            features = encoded_slices(inputs, indices, network)
            for row, index in enumerate(indices):
                yield index, features[[row]]

    def _decode(
        self, network: FrozenSAM2, features: ImageFeatures, past: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Organ logits ``(1, K, S/4, S/4)`` of one slice, and its memory for later slices."""
        found = self.bank.nearest(features, self.supports).tolist()
        memories = [Memory(self.bank.memories(index).to(features.embedding)) for index in found]
        for distance, (memory, pointer) in enumerate(past, start=1):
            memories.append(Memory(memory, distance, pointer if self.object_pointers else None))
        here = features.repeat_interleave(self.organs)
        decoded = network.decode(network.condition(here, memories), here)
        logits = decoded.gated()
        encoded = network.encode_memory(here, logits, decoded.object_score)
        return logits[None, :, 0], (encoded, decoded.pointer)
