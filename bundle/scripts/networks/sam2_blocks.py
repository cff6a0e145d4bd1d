"""SAM2's image encoder, memory attention and mask decoder over its own modules and weights, without anything computed
twice. Its memory encoder is in :mod:`.sam2_memories`.

sam2's code takes each object by itself. Here K organs are looked for in each slice, and much of what they need is the
same for all of them or not needed at all:

* :func:`image_features`: the neck's projection of a fine level and the mask decoder's projection of its result are one
  linear map; position encodings that nobody reads are left out;
* :func:`attend_to_itself`: up to the queries of its first cross-attention, memory attention knows nothing of the organ;
* :func:`attend_to_memories`: with one head, what it reads of a memory is linear in it, so that attention weights can
  average the M channels of the memory itself in place of C projected ones;
* :func:`decode_mask`: of the decoder's four masks one is wanted, and the position encoding of the image is projected
  once.

All of it is exact up to rounding, but in windows, and tested against sam2's own modules. Products of weights are formed
anew in each call, which costs next to nothing: so they are never stale, and gradients flow through everything.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear_maps import linear
from .sam2_types import ImageFeatures, MaskPredictions
from .windows import Windows

QUERIES_AT_ONCE = 256  # whose attention weights stay in a core's cache
LEAST_WEIGHT = 1e-20  # of a memory's token beside the one that weighs most, in memory attention on a CPU


def image_features(sam2: nn.Module, image: Tensor) -> ImageFeatures:
    """What ``SAM2Base.forward_image`` keeps of normalised slices ``(B, 3, S, S)``."""
    encoder, decoder = sam2.image_encoder, sam2.sam_mask_decoder
    neck = encoder.neck
    fine, middle, coarse, coarsest = encoder.trunk(image)
    to_coarsest, to_coarse, to_middle, to_fine = (projection.conv for projection in neck.convs)
    above = F.interpolate(to_coarsest(coarsest).float(), scale_factor=2.0, mode=neck.fpn_interp_model)
    high_res = (
        F.conv2d(fine, *_one_projection(to_fine, decoder.conv_s0)),
        F.conv2d(middle, *_one_projection(to_middle, decoder.conv_s1)),
    )
    return ImageFeatures(to_coarse(coarse) + above, high_res)


def _one_projection(first: nn.Conv2d, second: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that two of one pixel each, one after the other, amount to."""
    weight, bias = _one_linear(first.weight.flatten(1), first.bias, second.weight.flatten(1), second.bias)
    return weight[..., None, None], bias


def _one_linear(first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> tuple[Tensor, Tensor]:
    return second @ first, second @ first_bias + second_bias


def attend_to_itself(sam2: nn.Module, embedding: Tensor) -> Tensor:
    """What ``MemoryAttention`` makes of slices ``(B, C, h, w)`` before it first reads a memory: ``(B, h * w, C)``."""
    attention, tokens = sam2.memory_attention, embedding.flatten(2).transpose(1, 2)
    if attention.pos_enc_at_input:
        encoding = sam2.image_encoder.neck.position_encoding(embedding[:1]).to(tokens.dtype)
        tokens = tokens + 0.1 * encoding.flatten(2).transpose(1, 2)
    return _attended(attention.layers[0], tokens, _angles(attention.layers[0].self_attn, embedding))


def _attended(layer: nn.Module, tokens: Tensor, angles: Tensor) -> Tensor:
    normed = layer.norm1(tokens)
    return tokens + _read(layer.self_attn, normed, normed, normed, angles)


def attend_to_memories(
    sam2: nn.Module,
    embedding: Tensor,
    memory: Tensor,
    position: Tensor,
    *,
    pointers: int,
    windows: Windows | None = None,
    attended: Tensor | None = None,
) -> Tensor:
    """``MemoryAttention`` of B slices for K organs each, or in N windows of them.

    Dropout is left out, which is SAM2's memory attention in evaluation mode.

    Args:
        embedding: of the slices, ``(B, C, h, w)``.
        memory: T tokens for every organ, organs running fastest, ``(B * K, T, M)``: first those of memories, then those
            of object pointers.
        position: their position encoding, ``(T, M)`` or ``(B * K, T, M)``.
        pointers: how many of them are of object pointers.
        windows: which the N memories are of; outside of them nothing asks, and once organs go their own ways,
            nothing is asked.
        attended: of :func:`attend_to_itself`, where it has been computed before.

    Returns:
        ``(B * K, C, h, w)``, or ``(N, C, windows.height, windows.width)``.
    """
    attention = sam2.memory_attention
    shape, here = embedding.shape[-2:], slice(None)
    tokens, placed = attend_to_itself(sam2, embedding) if attended is None else attended, memory + position
    for number, layer in enumerate(attention.layers):
        if number:
            tokens = _attended(layer, tokens, _angles(layer.self_attn, embedding)[here])
        normed = layer.norm2(tokens)
        if number == 0:  # from here on, organs go their own ways
            if windows is None:
                tokens = tokens.repeat_interleave(len(memory) // len(embedding), 0)
            else:
                shape, here = (windows.height, windows.width), windows.places(tokens.device)
                of = torch.tensor(windows.slices, device=tokens.device)[:, None]
                tokens, normed = tokens[of, here], normed[of, here]
        angles = _angles(layer.cross_attn_image, embedding)[here]
        tokens = tokens + _read(layer.cross_attn_image, normed, placed, memory, angles, pointers)
        tokens = tokens + layer.linear2(layer.activation(layer.linear1(layer.norm3(tokens))))
    return attention.norm(tokens).transpose(1, 2).unflatten(2, shape)


def _read(
    attention: nn.Module, tokens: Tensor, keys: Tensor, values: Tensor, angles: Tensor, pointers: int = 0
) -> Tensor:
    """``RoPEAttention`` of one head, its two projections of values put behind the average over them.

    Args:
        tokens: that ask, ``(B, N, C)``.
        keys: ``(B * K, T, M)``, before their projection.
        values: ``(B * K, T, M)``, before theirs.
        angles: the rotary position encoding of the tokens that ask, which are those of each memory among the keys as
            well, ``(N, C / 2)`` or ``(B, N, C / 2)``.
        pointers: at the end of the keys, which have no place in the image.

    Returns:
        ``(B * K, N, C)``.
    """
    queries, keys = _turn(attention.q_proj(tokens), angles), attention.k_proj(keys)
    memories = keys.shape[1] - pointers
    turned = _turn(keys[:, :memories].unflatten(1, (-1, angles.shape[-2])), angles.unsqueeze(-3)).flatten(1, 2)
    keys = torch.cat([turned, keys[:, memories:]], 1) if pointers else turned
    queries = queries.repeat_interleave(len(keys) // len(queries), 0)
    value, out = attention.v_proj, attention.out_proj
    return linear(_average(queries, keys, values), *_one_linear(value.weight, value.bias, out.weight, out.bias))


def _angles(attention: nn.Module, embedding: Tensor) -> Tensor:
    """SAM2's rotary position encoding of the tokens of an image embedding, complex, ``(h * w, C / 2)``."""
    height, width = embedding.shape[-2:]
    if len(attention.freqs_cis) != height * width:
        attention.freqs_cis = attention.compute_cis(end_x=width, end_y=height)
    attention.freqs_cis = attention.freqs_cis.to(embedding.device)
    return attention.freqs_cis


def _average(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention, ``(B, N, C), (B, T, C), (B, T, M) -> (B, N, M)``.

    On the CPU, PyTorch's own is slower, and most where M is not C. Weights below :data:`LEAST_WEIGHT` would be lost in
    rounding anyway; numbers too small to be normal ones, which some processors take many times as long for, are not
    among them then, nor in gradients.
    """
    if queries.is_cuda:
        return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])[:, 0]
    queries, least = queries * queries.shape[-1] ** -0.5, log(LEAST_WEIGHT)
    if torch.is_grad_enabled() and any(each.requires_grad for each in (queries, keys, values)):
        scores = queries @ keys.transpose(1, 2)
        weights = (scores - scores.detach().amax(-1, keepdim=True)).clamp(min=least).exp()
        return weights @ values / weights.sum(-1, keepdim=True)

    def average(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = linear(queries, keys)
        weights = scores.sub_(scores.amax(-1, keepdim=True)).clamp_(min=least).exp_()
        return linear(weights, values.T).div_(weights.sum(-1, keepdim=True))

    parts = zip((each.split(QUERIES_AT_ONCE) for each in queries), keys, values, strict=True)
    return torch.stack([torch.cat([average(part, key, value) for part in some]) for some, key, value in parts])


def _turn(tokens: Tensor, angles: Tensor) -> Tensor:
    """Turns pairs of channels, taken as complex numbers; ``(..., N, C)`` by ``(N, C/2)`` or ``(..., N, C/2)``."""
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles).flatten(-2).type_as(tokens)


def decode_mask(
    sam2: nn.Module,
    conditioned: Tensor,
    high_res: tuple[Tensor, Tensor],
    *,
    sparse: Tensor,
    dense: Tensor,
    choose: Callable[[Tensor], Tensor],
    windows: Windows | None = None,
) -> MaskPredictions:
    """``MaskDecoder.predict_masks`` of one mask for each of B * K organs, or of N windows.

    Args:
        conditioned: ``(B * K, C, h, w)``, or of N windows.
        high_res: the two finer maps of the B slices.
        sparse: prompt tokens ``(B * K, P, C)``.
        dense: ``(B * K, C, h, w)``, or of one pixel or one organ for all.
        choose: given the estimated IoU of all masks, ``(B * K, 4)``, says which is wanted, ``(B * K,)``.
        windows: of which ``conditioned`` and ``dense`` are.

    Returns:
        That one mask of each, as large as the windows.
    """
    decoder = sam2.sam_mask_decoder
    count, height, width = len(conditioned), *conditioned.shape[-2:]
    output = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(count, -1, -1), sparse], 1)
    position = sam2.sam_prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)
    image = (conditioned + dense).flatten(2).transpose(1, 2)
    if windows is not None:
        position = position[0, windows.places(image.device)]
        high_res = (windows.cut(high_res[0]), windows.cut(high_res[1]))
    tokens, image = _two_ways(decoder.transformer, tokens, image, position)

    ious = decoder.iou_prediction_head(tokens[:, 1])
    rows, chosen = torch.arange(count, device=ious.device), choose(ious)
    token = tokens[rows, 2 + chosen]
    weights = torch.stack([mlp(tokens[:, 2 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    mask = _upscale(decoder, image.unflatten(1, (height, width)), high_res, weights[rows, chosen])
    return MaskPredictions(
        mask[:, None], ious[rows, chosen][:, None], token[:, None], decoder.pred_obj_score_head(tokens[:, 0])
    )


def _two_ways(transformer: nn.Module, tokens: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer`` of images ``(B, N, C)``, whose position encoding is ``(1, N, C)`` or ``(B, N, C)``."""
    asked = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + asked
            tokens = tokens + layer.self_attn(placed, placed, tokens)
        tokens = layer.norm1(tokens)
        placed = image + position  # the image asks as it was when it was asked
        tokens = layer.norm2(tokens + _ask_image(layer.cross_attn_token_to_image, tokens + asked, placed, image))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        image = layer.norm4(image + _ask_tokens(layer.cross_attn_image_to_token, placed, tokens + asked, tokens))
    final = transformer.final_attn_token_to_image
    return transformer.norm_final_attn(tokens + _ask_image(final, tokens + asked, image + position, image)), image


def _ask_image(attention: nn.Module, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``Attention`` of a few tokens ``(B, T, C)`` to those of an image ``(B, N, C)``, none of which is projected.

    The bias of their keys adds the same to all weights of a token, that of their values to its average.
    """
    queries = _in_heads(attention, attention.q_proj(tokens))
    queries = queries @ _of_heads(attention, attention.k_proj) * queries.shape[-1] ** -0.5
    weights = (queries.flatten(1, 2) @ keys.transpose(1, 2)).softmax(-1)
    read = (weights @ values).unflatten(1, (attention.num_heads, -1))
    read = read @ _of_heads(attention, attention.v_proj).transpose(1, 2)
    return attention.out_proj(read.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _ask_tokens(attention: nn.Module, image: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``Attention`` of an image's tokens ``(B, N, C)`` to a few others ``(B, T, C)``; no token of it is projected."""
    keys, values = (_in_heads(attention, each) for each in (attention.k_proj(keys), attention.v_proj(values)))
    keys = keys * keys.shape[-1] ** -0.5
    bias = keys @ attention.q_proj.bias.unflatten(0, (attention.num_heads, -1))[..., None]
    scores = (keys @ _of_heads(attention, attention.q_proj)).flatten(1, 2) @ image.transpose(1, 2)
    weights = (scores.unflatten(1, keys.shape[1:3]) + bias).softmax(2).flatten(1, 2)
    values = values @ attention.out_proj.weight.T.unflatten(0, (attention.num_heads, -1))
    return weights.transpose(1, 2) @ values.flatten(1, 2) + attention.out_proj.bias


def _in_heads(attention: nn.Module, tokens: Tensor) -> Tensor:
    """``(B, T, heads * D)`` to ``(B, heads, T, D)``."""
    return tokens.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _of_heads(attention: nn.Module, projection: nn.Linear) -> Tensor:
    """Weights of each head ``(heads, D, C)`` of a projection."""
    return projection.weight.unflatten(0, (attention.num_heads, -1))


def _upscale(decoder: nn.Module, image: Tensor, high_res: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """Mask logits ``(B * K, 4h, 4w)`` of image tokens ``(B * K, h, w, C)`` and a mask's weights ``(B * K, C/8)``.

    Both transposed convolutions make four pixels of each by itself: as linear maps they leave the channels last, where
    they are normalised, and each pixel beside the others of its token, ``(..., h, w, 2, 2, 2, 2, C/8)``.
    """
    first, norm, first_activation, second, second_activation = decoder.output_upscaling
    slices = len(high_res[0])

    def added(pixels: Tensor, features: Tensor) -> Tensor:
        return (pixels.unflatten(0, (slices, -1)) + features[:, None]).flatten(0, 1)

    fine, coarse = high_res
    coarse = coarse.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 3, 5, 1)
    fine = fine.unflatten(3, (-1, 2, 2)).unflatten(2, (-1, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
    pixels = added(_four_pixels(image, first), coarse + first.bias)
    pixels = first_activation(F.layer_norm(pixels, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    pixels = second_activation(added(_four_pixels(pixels, second), fine + second.bias))
    mask = (pixels.flatten(1, -2) @ weights[..., None]).view(pixels.shape[:-1])
    return mask.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)


def _four_pixels(pixels: Tensor, transposed: nn.ConvTranspose2d) -> Tensor:
    """``(..., C)`` to ``(..., 2, 2, C')`` by a transposed convolution of stride and size 2, without its bias."""
    weight = transposed.weight.permute(2, 3, 1, 0)  # rows, columns, C', C
    return linear(pixels, weight.flatten(0, 2)).unflatten(-1, weight.shape[:3])
