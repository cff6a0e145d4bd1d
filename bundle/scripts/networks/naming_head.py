"""A head that names the structure of every pixel from image features: a U-Net's last layers over a frozen encoder.

It is what ``sam2_nano`` is pretrained with. Not in the paper; a mask that it names has a memory, which
:class:`.diffusam.DiffuSAM` can take in place of a generated one (``named_memories``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..descriptions import Described
from .sam2_types import ImageFeatures

#: What ``sam2_nano`` was pretrained to name, in this order.
STRUCTURES = (
    *("spleen", "right kidney", "left kidney", "liver", "gallbladder", "stomach", "aorta", "vena cava", "pancreas"),
    *("spine", "bowel", "heart", "lung", "collection"),
    *("air", "skin and fat", "muscle", "bone", "vessel", "other"),
)


def naming_classes(organs: Sequence[str]) -> list[str]:
    """What a head names for these organs: they come first, and then all other structures of the pretraining."""
    return [*organs, *(name for name in STRUCTURES if name not in organs)]


class NamingHead(Described, nn.Module):
    """Names the structure of every pixel: from the embedding alone at its stride, and with the finer maps at stride 4.

    Args:
        channels: C of the backbone's embedding.
        classes: names of the structures.
        width: of the head.
    """

    reads_images = False  # whether the slices themselves are needed beside their features

    def __init__(self, channels: int, classes: Sequence[str] = STRUCTURES, *, width: int = 96) -> None:
        super().__init__()
        self.classes = list(classes)
        self.coarse = nn.Conv2d(channels, len(classes), 1)
        self.embedding = nn.Conv2d(channels, width, 1)
        self.eighth = nn.Conv2d(channels // 4, width, 1)
        self.quarter = nn.Conv2d(channels // 8, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.fine = nn.Conv2d(width, len(classes), 1)

    def forward(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Logits ``(B, classes, S/16, S/16)`` and ``(B, classes, S/4, S/4)``."""
        # in place, and with the channels last, as enlarging takes them: at a quarter of the slice's size most of the
        # time goes into memory
        embedding, quarter, eighth = (
            each.contiguous(memory_format=torch.channels_last) for each in (features.embedding, *features.high_res)
        )
        hidden = F.interpolate(self.embedding(embedding), scale_factor=2, mode="bilinear")
        hidden = hidden.add_(self.eighth(eighth)).relu_()
        hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear").add_(self.quarter(quarter)).relu_()
        return self.coarse(embedding), self.fine(self.mix(hidden).relu_())

    def take_over(self, weights: Mapping[str, Tensor], classes: Sequence[str]) -> None:
        """Loads another head's weights; classes are matched by name, and new ones stay as they are.

        Args:
            weights: its ``state_dict``.
            classes: its classes.

        Raises:
            RuntimeError: it has other widths.
        """
        own = self.state_dict()
        found = dict(weights)
        shared = [name for name in self.classes if name in classes]
        to, by = [self.classes.index(name) for name in shared], [classes.index(name) for name in shared]
        for layer in ("coarse", "fine"):
            for part in ("weight", "bias"):
                rows = own[f"{layer}.{part}"].clone()
                rows[to] = weights[f"{layer}.{part}"][by].to(rows)
                found[f"{layer}.{part}"] = rows
        self.load_state_dict(found)


def against_the_rest(logits: Tensor, organs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits of some of the classes ``(B, K, h, w)``, and of all the others together ``(B, 1, h, w)``.

    Args:
        logits: of all classes.
        organs: indices of K of them.
    """
    others = [index for index in range(logits.shape[1]) if index not in organs]
    return logits[:, list(organs)], logits[:, others].logsumexp(1, keepdim=True)


def named_labels(logits: Tensor, organs: int, size: int) -> Tensor:
    """What a slice's pixels are named: 1 + the likeliest organ, of equals the first, where all other classes together
    are no likelier.

    Args:
        logits: of all classes, the organs first, ``(classes, h, w)``.
        organs: K.
        size: S, of the slice.

    Returns:
        ``(S, S)``, 0 where it is none of the organs.
    """
    named = grouped(logits[None], organs)
    # between pixels that are likelier something else, an organ is so nowhere
    there = (named[:, :-1] >= named[:, -1:])[0].flatten(1).any(1).nonzero()[:, 0].tolist()
    *values, highest = F.interpolate(named[:, [*there, -1]], (size, size), mode="bilinear")[0]
    labels = torch.zeros(size, size, dtype=torch.int32, device=logits.device)
    for organ, value in zip(reversed(there), reversed(values)):  # of equals the first
        labels.masked_fill_(value >= highest, organ + 1)
        highest = torch.maximum(highest, value)
    return labels


def grouped(logits: Tensor, organs: int) -> Tensor:
    """Logits ``(B, organs + 1, h, w)`` of the first classes, the organs, and of all the others together."""
    return torch.cat(against_the_rest(logits, range(organs)), 1)


def smoothed(before: Tensor, own: Tensor, after: Tensor, weight: float) -> Tensor:
    """What is named in slices together with those on both sides: the mean of their log-probabilities, with this weight
    on either side beside 1 for a slice's own.
    """
    return (own + weight * (before + after)) / (1 + 2 * weight)
