"""What pretraining reads: clips of two kinds in turn, and painted patients encoded as labelled volumes are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.phantom_anatomy import ORGANS
from ..errors import SettingError
from ..networks.logits import mask_to_logits
from ..networks.sam2_backbone import SAM2, between_neighbours
from .patient_clips import AnatomyClips, EpochBatches


class ClipMix:
    """Batches of two kinds of clips in turn: of every ``every`` batches one of random shapes, the others of anatomy.

    Args:
        anatomy: yields batches.
        shapes: yields batches; when it is at its end it begins anew.
        every: 0 leaves shapes out.
    """

    def __init__(self, anatomy: AnatomyClips, shapes: Iterable | None = None, *, every: int = 3) -> None:
        self.anatomy, self.shapes, self.every = anatomy, shapes, every if shapes is not None else 0

    def set_epoch(self, epoch: int) -> None:
        self.anatomy.set_epoch(epoch)
        if self.every:
            self.shapes.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.anatomy)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        shapes = iter(self.shapes) if self.every else None
        for index in range(len(self)):
            yield next(shapes) if self.every and index % self.every == self.every - 1 else self.anatomy.batch(index)


class EncodedAnatomy(EpochBatches):
    """(slice, organ) pairs of painted patients, drawn and encoded anew in every batch: what
    :class:`~scripts.training.trainer.DiffuSAMTrainer` takes in place of cached slices of labelled volumes.

    Args:
        anatomy: clips with three frames each, on the device that holds the backbone; the middle one counts.
        backbone: frozen.
        organs: names, in the order of the clips' first objects.
        batch_size: pairs in a batch, drawn from all slices and organs of a batch of clips.
        absent_share: of pairs whose slice does not hold the organ.
        context_share: of batches in which the slice is shown between its neighbours.
        kept: batches that are drawn and encoded once and kept in main memory, in half precision; their pairs are drawn
            again and again. 0 encodes every batch anew.
        seed: of the pairs drawn.
    """

    def __init__(
        self,
        anatomy: AnatomyClips,
        backbone: SAM2,
        *,
        organs: Sequence[str],
        batch_size: int,
        absent_share: float = 0.25,
        context_share: float = 0.5,
        kept: int = 0,
        seed: int = 0,
    ) -> None:
        if list(organs) != list(ORGANS):
            raise SettingError(f"Painted patients have the organs {list(ORGANS)}, in this order; got {list(organs)}.")
        self.anatomy, self.backbone, self.batch_size, self.absent_share = anatomy, backbone, batch_size, absent_share
        self.context_share, self.length, self.kept, self.seed = context_share, anatomy.length, kept or 0, seed
        self.encoded: list[dict[str, Tensor]] = []

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if not self.kept:  # what is kept is the same when an interrupted training resumes
            self.anatomy.set_epoch(epoch)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the present epoch, with the keys of
        :class:`~scripts.training.encoded_slices.EncodedSlices`' items.
        """
        if not self.kept:
            return self._encode(index)
        for number in range(len(self.encoded), self.kept):
            pairs = self._encode(number)
            self.encoded.append(
                {key: (each.half() if each.is_floating_point() else each).cpu() for key, each in pairs.items()}
            )
        places = np.random.default_rng([self.seed, self.epoch, index]).integers(
            self.kept * self.batch_size, size=self.batch_size
        )
        rows = [divmod(int(place), self.batch_size) for place in places]
        batch = {key: torch.stack([self.encoded[number][key][row] for number, row in rows]) for key in self.encoded[0]}
        device = next(self.backbone.parameters()).device
        return {key: (each.float() if each.is_floating_point() else each).to(device) for key, each in batch.items()}

    @torch.no_grad()
    def _encode(self, index: int) -> dict[str, Tensor]:
        drawn = self.anatomy.batch(index)
        mask = drawn["mask"][:, : len(ORGANS), 1]  # (V, organs, S, S)
        present = mask.flatten(2).any(2).flatten()
        seed = np.random.SeedSequence([self.seed, self.anatomy.epoch, index, 1]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        weight = torch.where(
            present,
            (1 - self.absent_share) / present.sum().clamp_min(1),
            self.absent_share / (~present).sum().clamp_min(1),
        )
        chosen = torch.multinomial(weight.cpu(), self.batch_size, replacement=True, generator=generator)
        chosen = chosen.to(mask.device)
        context = torch.rand((), generator=generator) < self.context_share
        image = between_neighbours(drawn["image"])[:, 1] if context else drawn["image"][:, 1]
        features = self.backbone.encode_image(image)[chosen // len(ORGANS)]
        mask, present = mask.flatten(0, 1)[chosen][:, None], present[chosen]
        return {
            "embedding": features.embedding,
            "high_res_fine": features.high_res[0],
            "high_res_coarse": features.high_res[1],
            "memory": self.backbone.encode_memory(features, mask_to_logits(mask)),
            "mask": mask,
            "organ": chosen % len(ORGANS),
            "present": present,
        }

    def statistics_batches(self, count: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Memories of present organs and their image embeddings, for ``MemoryPrior.fit_statistics``."""
        for index in range(count):
            batch = self.batch(index)
            yield batch["memory"][batch["present"]], batch["embedding"][batch["present"]]
