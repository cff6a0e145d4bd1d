"""SAM2 as DiffuSAM uses it: four functions over one slice and one organ, without a video state.

DiffuSAM keeps SAM2 frozen and replaces the user's prompt by a synthesised memory (paper, section 2 and Figure 1a). What
it needs of SAM2 are the four blocks of Equation 3, each a method here:

======================  =====================================================  =====================
method                  SAM2 block                                             symbol in the paper
======================  =====================================================  =====================
:meth:`encode_image`    Hiera image encoder and FPN neck                       z_img
:meth:`encode_memory`   memory encoder over a mask and its image embedding     ME(y, z_img)
:meth:`condition`       memory attention                                       MA[...]
:meth:`decode`          prompt encoder (empty prompt by default), mask decoder D{...}
======================  =====================================================  =====================

Organs and slices share the batch dimension, organs running fastest: features are of B slices, and what is particular to
an organ has a batch of B * K, for any K. What is the same for all organs of a slice is computed once. Modules of the
``sam2`` package are built in :mod:`scripts.networks.sam2_releases`; :mod:`scripts.networks.sam2_blocks` and
:mod:`scripts.networks.sam2_memories` compute with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..descriptions import Described
from ..errors import SettingError
from .linear_maps import use_fast_linears
from .logits import NO_OBJECT_LOGIT
from .sam2_blocks import attend_to_itself, attend_to_memories, decode_mask, image_features
from .sam2_memories import encode_masks, pointer_tokens
from .sam2_releases import BACKBONES, EMBEDDING_STRIDE, build_sam2, read_checkpoint
from .sam2_types import Decoded, ImageFeatures, MaskPredictions, Memory
from .windows import Windows

PIXELS_AT_ONCE = 4 * 256**2  # of slices that are encoded on a CPU, measured with sam2_nano
MANY_SLICES = 2**31 - 1  # as many as there are
SIZE_MULTIPLE = 32  # the coarsest stride of the image encoder, and Hiera's positional window of 8 tokens at stride 4
LEAST_SIZE = 2 * SIZE_MULTIPLE  # one token alone cannot be normalised


class SAM2(Described, nn.Module):
    """SAM2 through the four functions that DiffuSAM is made of. Trainable; see :class:`FrozenSAM2` for use.

    Args:
        name: one of :data:`BACKBONES`. Architectures come from the YAML files of the ``sam2`` package.
        image_size: side of the square input in pixels, a multiple of 32, 64 or more. Checkpoints fit any size.
        checkpoint: path of a SAM2 checkpoint (``{"model": state_dict}``; MedSAM2's files have the same keys), or
            None to keep random weights.
        sha256: expected SHA-256 of that file, or None to skip the check.
        require_checkpoint: whether a missing file is an error here. Otherwise the network is built with random weights,
            so that its shapes can be looked at without the file, and :meth:`check_loaded` raises the error before use.
        decoder_token: ``"single"`` takes the decoder's single-mask token, ``"best_iou"`` the best of its three
            multi-mask tokens by its own IoU estimate, as SAM2 does while tracking.
        slice_context: whether those who show whole volumes show each slice :func:`between_neighbours`; not in the
            paper.

    Raises:
        ValueError: unknown ``name`` or ``decoder_token``, an ``image_size`` that is none, or a
            checkpoint that does not fit.
        FileNotFoundError: the checkpoint is not there.
    """

    def __init__(
        self,
        name: str = "sam2.1_hiera_tiny",
        image_size: int = 512,
        *,
        checkpoint: str | Path | None = None,
        sha256: str | None = None,
        require_checkpoint: bool = True,
        decoder_token: str = "best_iou",
        slice_context: bool = False,
    ) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise SettingError(f"Unknown backbone '{name}'. Choose one of: {', '.join(BACKBONES)}.")
        _check_image_size(image_size)
        if decoder_token not in ("best_iou", "single"):
            raise SettingError(f"decoder_token must be 'best_iou' or 'single', got '{decoder_token}'.")
        self.name = name
        self.decoder_token, self.slice_context = decoder_token, slice_context
        self.model = build_sam2(name, image_size)
        use_fast_linears(self.model)
        self.resize(image_size)
        self.register_buffer("pixel_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.checkpoint, self.sha256, self.loaded = checkpoint, sha256, False
        if checkpoint is not None and (require_checkpoint or Path(checkpoint).is_file()):
            self.load_checkpoint(checkpoint, sha256)

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding and of a memory, in tokens."""
        return self.image_size // EMBEDDING_STRIDE

    @property
    def embedding_channels(self) -> int:
        return self.model.hidden_dim

    @property
    def memory_channels(self) -> int:
        return self.model.mem_dim

    @property
    def max_distance(self) -> int:
        """Largest slice distance for which SAM2 has a temporal encoding (6 in every released model)."""
        return self.model.num_maskmem - 1

    def described(self) -> dict[str, Any]:
        """Its weights, wherever they lie, and how they are used."""
        return {
            **{"name": self.name, "image_size": self.image_size, "decoder_token": self.decoder_token},
            **{"slice_context": self.slice_context, "weights": self.fingerprint()},
        }

    def fingerprint(self) -> str:
        """A short digest of the architecture's name and every weight, at half precision: tells one backbone from
        another.

        Half precision, so that a checkpoint and its half-precision copy are the same backbone.
        """
        digest = hashlib.sha256(self.name.encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def resize(self, image_size: int) -> None:
        """Sets the side of the input in pixels; no weight of SAM2 depends on it."""
        _check_image_size(image_size)
        tokens = image_size // EMBEDDING_STRIDE
        self.image_size = self.model.image_size = image_size
        self.model.sam_image_embedding_size = tokens
        prompt_encoder = self.model.sam_prompt_encoder
        prompt_encoder.input_image_size = (image_size, image_size)
        prompt_encoder.image_embedding_size = (tokens, tokens)
        prompt_encoder.mask_input_size = (4 * tokens, 4 * tokens)

    def load_checkpoint(self, path: str | Path, sha256: str | None = None) -> None:
        """Loads a SAM2 checkpoint strictly; half-precision files are widened to the model's own precision.

        Raises:
            FileNotFoundError, ValueError: naming the file, what was found and what to do.
        """
        state = read_checkpoint(path, name=self.name, expected=self.model.state_dict(), sha256=sha256)
        self.model.load_state_dict(state, strict=True)
        self.loaded = True

    def check_loaded(self) -> None:
        """Raises ``FileNotFoundError``, with the remedy, where a checkpoint was named but is not there."""
        if self.checkpoint is not None and not self.loaded:
            self.load_checkpoint(self.checkpoint, self.sha256)

    def shown(self, image: Tensor) -> Tensor:
        """All slices of a volume ``(n, 1, S, S)`` as :meth:`encode_image` is to see them: :func:`between_neighbours`
        ``(n, 3, S, S)`` where ``slice_context`` says so.
        """
        return between_neighbours(image) if self.slice_context else image

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Slices to image features.

        Args:
            image: ``(B, 1 or 3, S, S)`` with intensities in [0, 1]; one channel is repeated to three. SAM2's pixel
                normalisation is applied here.

        Raises:
            ValueError: another shape.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3) or image.shape[-2:] != (self.image_size,) * 2:
            raise SettingError(
                f"Expected slices of shape (B, 1 or 3, {self.image_size}, {self.image_size}), got {tuple(image.shape)}."
            )
        parts = image.split(encoded_at_once(self.image_size, image.device))
        return ImageFeatures.joined([image_features(self.model, self._normalised(part)) for part in parts])

    def _normalised(self, image: Tensor) -> Tensor:
        return (image.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std

    def encode_memory(
        self, features: ImageFeatures, masks: Tensor, object_score: Tensor | None = None, windows: Windows | None = None
    ) -> Tensor:
        """Masks of known slices to memories: ME(y, z_img).

        Args:
            features: of B slices.
            masks: ``(B * K, 1, H, W)`` at any resolution, resampled to S x S: logits, or bool for given ones.
            object_score: ``(B * K, 1)`` logit; a negative one adds SAM2's "no object" embedding. Default: positive
                where any of a mask is.
            windows: N parts of the slices that memories are made of, one for each mask. Not what SAM2 does.

        Returns:
            Memory features ``(B * K, M, S/16, S/16)``, or as many and as large as the windows.
        """
        if object_score is None:
            object_score = masks.flatten(1).amax(1, keepdim=True)
        return encode_masks(self.model, features.embedding, masks, object_score > 0, windows)

    def attend(self, features: ImageFeatures) -> Tensor:
        """What memory attention makes of B slices before it reads a memory: ``(B, S/16 * S/16, C)``."""
        return attend_to_itself(self.model, features.embedding)

    def condition(
        self,
        features: ImageFeatures,
        memories: Sequence[Memory] = (),
        windows: Windows | None = None,
        attended: Tensor | None = None,
    ) -> Tensor:
        """Memory attention: the image embedding in the light of any number of memories, MA[...] of Equation 3.

        Args:
            features: of B slices.
            memories: each with a batch of B * K. None at all gives SAM2's "no memory" embedding, for prompted slices.
            windows: N parts of the slices to look at, which the memories are of. Not what SAM2 does.
            attended: of :meth:`attend`, where the slices have been asked for it before.

        Returns:
            Conditioned embedding ``(B * K, C, S/16, S/16)``, as many and as large as the windows, or of B slices
            without memories.

        Raises:
            ValueError: a distance beyond :attr:`max_distance`.
        """
        sam2, embedding = self.model, features.embedding
        if not memories:
            return embedding + sam2.no_mem_embed.view(1, -1, 1, 1)
        tokens, positions = [], []
        places = slice(None) if windows is None else windows.places(embedding.device)
        position = _to_tokens(sam2.memory_encoder.position_encoding(embedding[:1]).to(embedding.dtype))[0, places]
        for memory in memories:
            if not 0 <= memory.distance <= self.max_distance:
                raise SettingError(f"A memory's distance must lie in 0...{self.max_distance}, got {memory.distance}.")
            # SAM2 counts backwards: the last temporal encoding belongs to conditioning memories (distance 0)
            temporal = sam2.maskmem_tpos_enc[memory.distance - 1]
            tokens.append(_to_tokens(memory.features))
            positions.append(position + temporal.flatten())
        pointers = [memory for memory in memories if memory.pointer is not None]
        if pointers:
            of_pointers, pointer_positions = pointer_tokens(sam2, pointers)
            tokens.append(of_pointers)
            positions.append(pointer_positions.expand(*position.shape[:-2], -1, -1))
        count = tokens[-1].shape[1] if pointers else 0
        joined = torch.cat(tokens, 1), torch.cat(positions, -2)
        return attend_to_memories(sam2, embedding, *joined, pointers=count, windows=windows, attended=attended)

    def decode(
        self,
        conditioned: Tensor,
        features: ImageFeatures,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        mask_prompt: Tensor | None = None,
        token: str | None = None,
        windows: Windows | None = None,
    ) -> Decoded:
        """Mask decoder: D{conditioned, z_img}. Without prompts it is driven by the memories alone, as in the paper.

        Args:
            conditioned: of :meth:`condition`, ``(B * K, C, S/16, S/16)``, or of N windows.
            features: of the same B slices; only the high-resolution maps are read.
            points: optional coordinates ``(B * K, P, 2)`` as (x, y) in input pixels and labels ``(B * K, P)``: 1
                inside, 0 outside, 2 and 3 the corners of a box, -1 padding.
            mask_prompt: optional mask logits ``(B * K, 1, H, W)``.
            token: overrides ``decoder_token`` for this call.
            windows: the parts of the slices that ``conditioned`` is of; outside of them is no object.
        """
        sparse, dense = self._prompt(conditioned, points, mask_prompt)
        return self.decode_embeddings(conditioned, features, sparse=sparse, dense=dense, token=token, windows=windows)

    def decode_embeddings(
        self,
        conditioned: Tensor,
        features: ImageFeatures,
        *,
        sparse: Tensor,
        dense: Tensor,
        token: str | None = None,
        windows: Windows | None = None,
    ) -> Decoded:
        """Mask decoder with prompt embeddings made elsewhere, in place of SAM2's own prompt encoder.

        Args:
            conditioned: of :meth:`condition`, ``(B * K, C, S/16, S/16)``, or of N windows.
            features: of the same B slices; only the high-resolution maps are read.
            sparse: P prompt tokens ``(B * K, P, C)``, as SAM2 makes of points and boxes.
            dense: one embedding for each image token, ``(B * K, C, S/16, S/16)``, as SAM2 makes of a mask; it is added
                to ``conditioned``.
            token: overrides ``decoder_token`` for this call.
            windows: see :meth:`decode`.
        """
        single = (token or self.decoder_token) == "single"
        predicted = decode_mask(
            self.model,
            conditioned,
            features.high_res,
            sparse=sparse,
            dense=dense if windows is None else windows.cut_each(dense),
            windows=windows,
            choose=lambda ious: ious[:, 1:].argmax(1) + 1 if not single else torch.zeros_like(ious[:, 0]).long(),
        )
        output = predicted.tokens[:, 0]
        present = (predicted.object_score > 0).to(output.dtype)
        pointer = present * self.model.obj_ptr_proj(output) + (1 - present) * self.model.no_obj_ptr
        whole = predicted.mask_logits if windows is None else windows.put_back(predicted.mask_logits, NO_OBJECT_LOGIT)
        return Decoded(whole, predicted.object_score, predicted.iou, pointer)

    def _prompt(
        self, conditioned: Tensor, points: tuple[Tensor, Tensor] | None, mask_prompt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """SAM2's embeddings of a prompt, sparse and dense, for every row of ``conditioned``."""
        batch = len(conditioned)
        if points is None:  # SAM2's empty prompt: one point with the padding label
            coordinates = conditioned.new_zeros(batch, 1, 2)
            points = (coordinates, -torch.ones(batch, 1, dtype=torch.int32, device=conditioned.device))
        if mask_prompt is not None:
            size = 4 * self.embedding_size
            mask_prompt = F.interpolate(mask_prompt.float(), (size, size), mode="bilinear", antialias=True)
        return self.model.sam_prompt_encoder(points=points, boxes=None, masks=mask_prompt)

    def predict_all_masks(
        self,
        conditioned: Tensor,
        features: ImageFeatures,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        mask_prompt: Tensor | None = None,
    ) -> MaskPredictions:
        """All four masks of the mask decoder, for training it; see :meth:`decode` for the arguments."""
        sparse, dense = self._prompt(conditioned, points, mask_prompt)
        masks, iou, tokens, object_score = self.model.sam_mask_decoder.predict_masks(
            image_embeddings=conditioned,
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=list(features.high_res),
        )
        return MaskPredictions(masks, iou, tokens, object_score)


class FrozenSAM2(SAM2):
    """:class:`SAM2` that never changes: no parameter asks for a gradient, and it stays in evaluation mode.

    In training mode SAM2's memory attention would apply dropout, whatever its parent module is doing.

    Example:
        >>> sam2 = FrozenSAM2("sam2_nano", image_size=64)
        >>> features = sam2.encode_image(torch.rand(2, 1, 64, 64))
        >>> memory = sam2.encode_memory(features, torch.ones(2, 1, 64, 64) > 0)
        >>> sam2.decode(sam2.condition(features, [Memory(memory)]), features).mask_logits.shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenSAM2:
        return super().train(False)


def encoded_at_once(image_size: int, device: torch.device) -> int:
    """How many slices go through an image encoder together: on a CPU those whose activations its cache holds."""
    return max(1, PIXELS_AT_ONCE // image_size**2) if device.type == "cpu" else MANY_SLICES


def between_neighbours(image: Tensor) -> Tensor:
    """Slices ``(..., T, 1, S, S)`` with the slice before and the one after as first and third channel.

    SAM2's encoder has three channels, of which a grey image needs one; ``slice_context`` fills the others so. At the
    ends a slice is its own neighbour.
    """
    before = torch.cat([image[..., :1, :, :, :], image[..., :-1, :, :, :]], -4)
    after = torch.cat([image[..., 1:, :, :, :], image[..., -1:, :, :, :]], -4)
    return torch.cat([before, image, after], -3)


def _check_image_size(image_size: int) -> None:
    if not isinstance(image_size, int) or image_size < LEAST_SIZE or image_size % SIZE_MULTIPLE:
        raise SettingError(
            f"image_size must be a multiple of {SIZE_MULTIPLE} pixels, {LEAST_SIZE} or more, got {image_size}."
        )


def _to_tokens(feature_map: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H * W, C)``."""
    return feature_map.flatten(2).transpose(1, 2)
