"""SAM2's memory encoder over its own modules and weights, without anything computed twice.

The image embedding is projected once a slice, and all organs that are absent from a slice have one memory. It is exact
up to rounding, tested against sam2's own modules; see :mod:`.sam2_blocks`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_PIXELS_AT_ONCE = 8 * 256**2  # of masks that are encoded on a CPU, whose finer maps stay in a core's cache


def encode_masks(sam2: nn.Module, embedding: Tensor, logits: Tensor, present: Tensor) -> Tensor:
    """``SAM2Base._encode_new_memory`` of masks that come from no prompt, for K organs in each of B slices.

    Masks of one and the same value everywhere, which is what absent organs have, are encoded once a slice.

    Args:
        embedding: image embedding of the slices, ``(B, C, h, w)``.
        logits: of the masks, organs running fastest, ``(B * K, 1, H, W)`` at any resolution.
        present: ``(B * K, 1)`` bool; where it is False SAM2's embedding of "no object" is added.

    Returns:
        Memory features ``(B * K, M, h, w)``.
    """
    encoder = sam2.memory_encoder
    pixels = encoder.pix_feat_proj(embedding)
    of_slice = torch.arange(len(logits), device=logits.device) // (len(logits) // len(embedding))
    values = logits.detach().flatten(1)
    lowest, highest = _as_encoded(sam2, values.amin(1)), _as_encoded(sam2, values.amax(1))
    uniform = lowest == highest
    if uniform.any():  # those of another value than the first's are encoded one by one
        uniform &= lowest == lowest[uniform][0]
    single, slices = (~uniform).nonzero()[:, 0], of_slice[uniform].unique()
    maps = _mask_maps(sam2, logits[torch.cat([single, uniform.nonzero()[:1, 0]])])
    count = len(single)
    maps = torch.cat([maps[:count], maps[count:].expand(len(slices), -1, -1, -1)])
    maps = maps + pixels[torch.cat([of_slice[single], slices])]
    memory = torch.cat([encoder.out_proj(encoder.fuser(part)) for part in maps.split(_masks_at_once(sam2, maps))])

    where = torch.empty_like(of_slice)
    where[single] = torch.arange(count, device=where.device)
    where[uniform] = count + torch.searchsorted(slices, of_slice[uniform])
    return memory[where] + (~present)[..., None, None] * sam2.no_obj_embed_spatial[..., None, None]


def _mask_maps(sam2: nn.Module, logits: Tensor) -> Tensor:
    """What the memory encoder makes of masks ``(B, 1, H, W)`` before it sees the image: ``(B, C, h, w)``."""
    layers, size = sam2.memory_encoder.mask_downsampler.encoder, (sam2.image_size,) * 2
    maps = []
    for part in logits.split(_masks_at_once(sam2, logits)):
        if part.shape[-2:] != size:
            part = F.interpolate(part.float(), size, mode="bilinear")
        maps.append(layers[:-1](_as_encoded(sam2, part)))
    return layers[-1](torch.cat(maps))


def _masks_at_once(sam2: nn.Module, masks: Tensor) -> int:
    return max(1, MASK_PIXELS_AT_ONCE // sam2.image_size**2) if masks.device.type == "cpu" else max(1, len(masks))


def _as_encoded(sam2: nn.Module, logits: Tensor) -> Tensor:
    """Mask logits as the memory encoder gets them."""
    return logits.sigmoid() * sam2.sigmoid_scale_for_mem_enc + sam2.sigmoid_bias_for_mem_enc
