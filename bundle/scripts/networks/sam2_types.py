"""What the blocks of SAM2 hand to one another: features of slices, memories, and what the mask decoder gives.

Organs and slices share the batch dimension, organs running fastest: features are of B slices, and what is particular to
an organ has a batch of B * K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .logits import NO_OBJECT_LOGIT


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch of slices from the image encoder.

    Attributes:
        embedding: image embedding z_img, ``(B, C, S/16, S/16)`` for input slices of S x S pixels.
        high_res: the two finer maps the mask decoder adds while upscaling, ``(B, C/8, S/4, S/4)`` and
            ``(B, C/4, S/8, S/8)``.
        image: the slices, ``(B, 1 or 3, S, S)``, where something reads them beside their features.
    """

    embedding: Tensor
    high_res: tuple[Tensor, Tensor]
    image: Tensor | None = None

    def __len__(self) -> int:
        return self.embedding.shape[0]

    def __getitem__(self, index) -> ImageFeatures:
        """Selects (or repeats) slices: any index of dimension 0, such as a slice, a list or a LongTensor."""
        image = None if self.image is None else self.image[index]
        return ImageFeatures(self.embedding[index], (self.high_res[0][index], self.high_res[1][index]), image)

    def split(self, size: int) -> list[ImageFeatures]:
        """The slices in parts of so many, the last one of what is left; see :meth:`joined`."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @classmethod
    def joined(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Slices that were encoded one part after the other, with their images where all parts have them."""
        if len(parts) == 1:
            return parts[0]
        fine, coarse = (torch.cat(level) for level in zip(*(part.high_res for part in parts)))
        images = [part.image for part in parts if part.image is not None]
        image = torch.cat(images) if len(images) == len(parts) else None
        return cls(torch.cat([part.embedding for part in parts]), (fine, coarse), image)

    def to(self, *args, **kwargs) -> ImageFeatures:
        """The features elsewhere, or of another type, without their images."""
        return ImageFeatures(
            self.embedding.to(*args, **kwargs), tuple(level.to(*args, **kwargs) for level in self.high_res)
        )

    def repeat_interleave(self, repeats: int) -> ImageFeatures:
        """Repeats every slice ``repeats`` times in a row, as when each slice meets each organ; images are left out."""
        return ImageFeatures(
            self.embedding.repeat_interleave(repeats, 0),
            tuple(level.repeat_interleave(repeats, 0) for level in self.high_res),
        )


@dataclass(frozen=True)
class Memory:
    """One memory per item of the batch, as memory attention reads it.

    Attributes:
        features: ``(B, M, S/16, S/16)``, or as large as :class:`Windows`.
        distance: how many slices away it was made. 0 marks a conditioning memory (in DiffuSAM the slice's own,
            synthesised one), 1 to 6 a neighbour's.
        pointer: optional object pointers ``(B, C)``; a synthesised memory has none.
    """

    features: Tensor
    distance: int = 0
    pointer: Tensor | None = None


@dataclass(frozen=True)
class MaskPredictions:
    """Some or all of the decoder's four masks for each item of the batch: the single-mask one first, then the others.

    Attributes:
        mask_logits: of m masks, ``(B, m, S/4, S/4)``, not gated by the object score.
        iou: ``(B, m)`` the decoder's own estimates of the masks' intersection over union.
        tokens: ``(B, m, C)`` the output tokens that the masks were made with.
        object_score: ``(B, 1)`` logit; positive where the object is in the slice.
    """

    mask_logits: Tensor
    iou: Tensor
    tokens: Tensor
    object_score: Tensor


@dataclass(frozen=True)
class Decoded:
    """Output of the mask decoder for each item of the batch.

    Attributes:
        mask_logits: ``(B, 1, S/4, S/4)``, never gated: the object score is for the caller to apply (see :meth:`gated`).
        object_score: ``(B, 1)`` logit; positive where the object is in the slice.
        iou: ``(B, 1)`` the decoder's own estimate of the mask's intersection over union.
        pointer: ``(B, C)`` object pointer, for :class:`Memory`.
    """

    mask_logits: Tensor
    object_score: Tensor
    iou: Tensor
    pointer: Tensor

    def gated(self) -> Tensor:
        """Mask logits with :data:`NO_OBJECT_LOGIT` wherever the object score says the object is absent.

        The gradient through the gate is exactly zero, so losses are taken on ``mask_logits`` instead.
        """
        # a score that is not a number is no word of absence, and must not hide that the masks are none either
        return torch.where(self.object_score[..., None, None] <= 0, NO_OBJECT_LOGIT, self.mask_logits)
