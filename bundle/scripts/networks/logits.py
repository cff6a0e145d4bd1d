"""Masks as logits, the form in which SAM2 takes and gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_LOGIT = 10.0  # SAM2 hands a given (not predicted) mask to the memory encoder as mask * 20 - 10
NO_OBJECT_LOGIT = -1024.0  # what SAM2 itself writes into a mask whose object score says "absent"


def mask_to_logits(mask: Tensor) -> Tensor:
    """A given mask, binary or soft in [0, 1], as the logits SAM2's memory encoder expects of it: -10 ... 10."""
    return mask.float() * (2 * MASK_LOGIT) - MASK_LOGIT


def resize_logits(logits: Tensor, size: int | Sequence[int]) -> Tensor:
    """Bilinear resampling of ``(B, C, H, W)`` logits to ``size``; a no-op at that size already."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def with_background(logits: Tensor) -> Tensor:
    """Organ logits ``(B, K, H, W)`` to ``(B, 1 + K, H, W)`` with a background of 0: arg-max is then the label map."""
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
