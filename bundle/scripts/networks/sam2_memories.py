"""SAM2's memory encoder over its own modules and weights, without anything computed twice.

The image embedding is projected once a slice, and all organs that are absent from a slice have one memory. It is exact
up to rounding, but in windows, and tested against sam2's own modules; see :mod:`.sam2_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .logits import mask_to_logits
from .sam2_types import Memory
from .windows import Windows

FEW_CHANNELS = 16  # with less of them, numbers beside each other in memory are too few to be averaged fast
MASK_PIXELS_AT_ONCE = 8 * 256**2  # of masks that are encoded on a CPU, whose finer maps stay in a core's cache


def encode_masks(
    sam2: nn.Module, embedding: Tensor, masks: Tensor, present: Tensor, windows: Windows | None = None
) -> Tensor:
    """``SAM2Base._encode_new_memory`` of masks that come from no prompt, for K organs in each of B slices.

    Masks of one and the same value everywhere, which is what absent organs have, are encoded once a slice.

    Args:
        embedding: image embedding of the slices, ``(B, C, h, w)``.
        masks: organs running fastest, ``(B * K, 1, H, W)`` at any resolution: logits, or bool for given ones.
        present: ``(B * K, 1)`` bool; where it is False SAM2's embedding of "no object" is added, which SAM 2.0 has not.
        windows: of N masks, to encode these parts alone, as if the slices ended there; not what SAM2 does.

    Returns:
        Memory features ``(B * K, M, h, w)``, or ``(N, M, windows.height, windows.width)``.
    """
    encoder = sam2.memory_encoder
    nothing = sam2.no_obj_embed_spatial
    no_object = 0 if nothing is None else (~present)[..., None, None] * nothing[..., None, None]
    if windows is not None:
        around = windows.with_tokens_before()
        maps = _downsampled(sam2, _as_logits(around.cut_each(_at_full_size(sam2, masks))))
        maps = windows.cut_from(around, maps) + encoder.pix_feat_proj(windows.cut(embedding))
        return encoder.out_proj(_fuse(encoder.fuser, maps)) + no_object
    logits, pixels = _as_logits(masks), encoder.pix_feat_proj(embedding)
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
    memory = torch.cat(
        [encoder.out_proj(_fuse(encoder.fuser, part)) for part in maps.split(_masks_at_once(sam2, maps))]
    )

    where = torch.empty_like(of_slice)
    where[single] = torch.arange(count, device=where.device)
    where[uniform] = count + torch.searchsorted(slices, of_slice[uniform])
    return memory[where] + no_object


def pointer_tokens(sam2: nn.Module, memories: Sequence[Memory]) -> tuple[Tensor, Tensor]:
    """Object pointers as SAM2 appends them: each split into C/M tokens of M channels, with a sine of the
    distance.
    """
    from sam2.modeling.sam2_utils import get_1d_sine_pe

    pointers = torch.stack([memory.pointer for memory in memories])
    distances = torch.tensor([float(memory.distance) for memory in memories], device=pointers.device)
    position = get_1d_sine_pe(distances / (sam2.max_obj_ptrs_in_encoder - 1), dim=sam2.hidden_dim)
    position = sam2.obj_ptr_tpos_proj(position) if sam2.proj_tpos_enc_in_obj_ptrs else position[:, : sam2.mem_dim] * 0
    split = sam2.hidden_dim // sam2.mem_dim
    tokens = pointers.unflatten(2, (split, sam2.mem_dim)).transpose(0, 1).flatten(1, 2)
    return tokens, position.repeat_interleave(split, dim=0)


def _mask_maps(sam2: nn.Module, logits: Tensor) -> Tensor:
    """What the memory encoder makes of masks ``(B, 1, H, W)`` before it sees the image: ``(B, C, h, w)``."""
    parts = logits.split(_masks_at_once(sam2, logits))
    return torch.cat([_downsampled(sam2, _at_full_size(sam2, part)) for part in parts])


def _at_full_size(sam2: nn.Module, masks: Tensor) -> Tensor:
    size = (sam2.image_size,) * 2
    return masks if masks.shape[-2:] == size else F.interpolate(_as_logits(masks).float(), size, mode="bilinear")


def _as_logits(masks: Tensor) -> Tensor:
    return mask_to_logits(masks) if masks.dtype == torch.bool else masks


def _downsampled(sam2: nn.Module, logits: Tensor) -> Tensor:
    """``MaskDownSampler`` of mask logits ``(B, 1, H, W)``: ``(B, C, H/16, W/16)``."""
    layers, masks = sam2.memory_encoder.mask_downsampler.encoder, _as_encoded(sam2, logits)
    for convolution, norm, activation in zip(layers[:-1:3], layers[1:-1:3], layers[2:-1:3]):
        masks = activation(_normalised(norm, convolution(masks)))
    return layers[-1](masks)


def _normalised(norm: nn.Module, maps: Tensor) -> Tensor:
    """``LayerNorm2d``; of more than a few channels by PyTorch's own, and they lie last in memory then."""
    if maps.shape[1] < FEW_CHANNELS:
        return norm(maps)
    maps = F.layer_norm(maps.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return maps.permute(0, 3, 1, 2)


def _masks_at_once(sam2: nn.Module, masks: Tensor) -> int:
    return max(1, MASK_PIXELS_AT_ONCE // sam2.image_size**2) if masks.device.type == "cpu" else max(1, len(masks))


def _as_encoded(sam2: nn.Module, logits: Tensor) -> Tensor:
    """Mask logits as the memory encoder gets them."""
    return logits.sigmoid() * sam2.sigmoid_scale_for_mem_enc + sam2.sigmoid_bias_for_mem_enc


def _fuse(fuser: nn.Module, maps: Tensor) -> Tensor:
    """``Fuser``, whose blocks normalise their channels where these lie last."""
    maps = fuser.proj(maps)
    for block in fuser.layers:
        hidden = _normalised(block.norm, block.dwconv(maps)).permute(0, 2, 3, 1)
        hidden = block.pwconv2(block.act(block.pwconv1(hidden)))
        if block.gamma is not None:
            hidden = hidden * block.gamma
        maps = maps + block.drop_path(hidden.permute(0, 3, 1, 2))
    return maps
