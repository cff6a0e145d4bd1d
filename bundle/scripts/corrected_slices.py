"""Segmenting again where a user has corrected: SAM2's own prompts on single slices, and what their neighbours learn.

On a corrected slice the frozen decoder gets the prompt tokens beside the slice's synthesised memory. What it proposes
is taken where the prompts say that something was wrong, and nowhere else (:func:`corrected_mask`); in any case the
slice obeys the prompts. The mask is then trusted: it becomes a conditioning memory, as SAM2 calls the memory of a frame
that was shown to it, and Equation 3 is walked from that slice outward in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from .diffusam import DiffuSAM
from .sam2_backbone import MASK_LOGIT, ImageFeatures, Memory, mask_to_logits, resize_logits

SPANNED = 0.7  # share of a box that the smallest rectangle around a mask takes, from which on the two agree

_OUTSIDE, _INSIDE, _CORNERS = 0, 1, (2, 3)  # SAM's labels of points


class Slices(Protocol):
    """The slices of the volume at hand, as :mod:`scripts.propagation` has them."""

    volume: Tensor
    network: DiffuSAM
    count: int
    device: torch.device

    def encode(self, indices: list[int]) -> tuple[ImageFeatures, Tensor]: ...

    def features(self, indices: list[int]) -> ImageFeatures: ...


@dataclass(frozen=True)
class SlicePrompt:
    """What is known about one organ on one slice; all points are (row, column) of voxels, whole numbers.

    Attributes:
        organ: index of the organ.
        slice: index of the slice.
        positive: ``(n, 2)`` points inside the organ.
        negative: ``(n, 2)`` points outside it.
        box: ``(2, 2)`` opposite corners, both inside the box; or ``(0, 2)``.
    """

    organ: int
    slice: int
    positive: np.ndarray
    negative: np.ndarray
    box: np.ndarray

    def in_box(self, points: np.ndarray) -> np.ndarray:
        """Which of the points ``(n, 2)`` lie in the box."""
        return ((points >= self.box.min(0)) & (points <= self.box.max(0))).all(1)

    def seen(self, mask: np.ndarray) -> SlicePrompt:
        """The prompt with a point inside the organ: if it has none, the deepest one of what its clicks leave of a mask.

        A point outside says nothing about which object is meant.

        Args:
            mask: ``(H, W)`` bool, of the walk.
        """
        left = mask.copy()
        for point in self.negative:
            left &= ~disc(mask, point) if mask[tuple(point)] else True
        if len(self.positive) or len(self.box) or not left.any():
            return self
        depth = distance_transform_edt(np.pad(left, 1))[1:-1, 1:-1]
        return replace(self, positive=np.array([np.unravel_index(depth.argmax(), depth.shape)]))

    def tokens(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """The prompt as :meth:`FrozenSAM2.decode` takes it: ``(1, P, 2)`` as (x, y) in input pixels, ``(1, P)`` labels.

        Args:
            shape: H and W of the slice.
            size: side of the network's input; slices are resized to it with the corners of the two images together.
        """
        corners = np.stack([self.box.min(0), self.box.max(0)]) if len(self.box) else self.box
        points = np.concatenate([corners, self.positive, self.negative])
        pixels = (points + 0.5) * size / np.asarray(shape) - 0.5  # from one image's voxel centres to the other's
        labels = [*_CORNERS[: len(corners)], *[_INSIDE] * len(self.positive), *[_OUTSIDE] * len(self.negative)]
        return torch.tensor(pixels[None, :, ::-1].copy()).float(), torch.tensor([labels], dtype=torch.int32)


class Corrector:
    """Corrects the slices of one volume after the walk, as ``corrector`` of a
    :class:`~scripts.propagation.VolumetricInferer`.

    Args:
        prompts: at most one for each slice and organ.
        reach: how many slices on either side of a corrected one are decoded again with its memory. A slice between two
            corrected ones of its organ belongs to the nearer.

    Raises:
        ValueError: a negative reach.
    """

    def __init__(self, prompts: Sequence[SlicePrompt], reach: int = 0) -> None:
        if reach < 0:
            raise ValueError(f"correction_reach must be 0 or more slices, got {reach}.")
        self.prompts, self.reach = list(prompts), reach

    def needs(self, index: int) -> bool:
        """Whether the walk's result for a slice may change, and has to be kept."""
        return any(abs(index - prompt.slice) <= self.reach for prompt in self.prompts)

    def __call__(self, source: Slices, decoded: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yields the slices that may have changed, with organ logits ``(1, K, H, W)`` at the volume's own size.

        The logits of organs that no prompt is about are those of the walk.

        Args:
            source: the volume's slices.
            decoded: organ logits ``(K, S/4, S/4)`` that the walk gave for the slices that :meth:`needs` names.
        """
        shape, device = source.volume.shape[:2], source.device
        logits = {index: resize_logits(each[None].to(device), shape)[0].cpu() for index, each in decoded.items()}
        for prompt in self.prompts:
            self._correct(source, logits, prompt)
        for prompt in self.prompts:  # at the end, since one organ's correction may have taken another's voxels
            _obey(logits[prompt.slice], prompt)
        for index, each in logits.items():
            yield index, each[None].to(device)

    def _correct(self, source: Slices, logits: Mapping[int, Tensor], prompt: SlicePrompt) -> None:
        """Changes the logits of the prompt's organ on its slice, and on those in reach."""
        backbone, present = source.network.backbone, logits[prompt.slice]
        before = _mask(present, prompt.organ)
        features = source.features([prompt.slice])
        tokens = (each.to(source.device) for each in prompt.seen(before).tokens(before.shape, backbone.image_size))
        # without the synthesised memory, which outweighs any prompt where it says that there is no organ; and not gated
        # by the object score, since the user has seen the organ
        decoded = backbone.decode(backbone.condition(features), features, tuple(tokens), token="single")
        after = corrected_mask(before, _mask(present, prompt.organ, decoded.mask_logits), prompt)
        _set_mask(present, prompt.organ, after)
        shown = self._remember(source, features, after)
        for direction in (-1, 1):
            self._walk(source, logits, prompt, direction, shown, after ^ before)

    def _walk(
        self,
        source: Slices,
        logits: Mapping[int, Tensor],
        prompt: SlicePrompt,
        direction: int,
        shown: Tensor,
        changed: np.ndarray,
    ) -> None:
        """Equation 3 from a corrected slice in one direction, until a slice has nothing to learn from it.

        Args:
            shown: memory of the corrected slice.
            changed: ``(H, W)`` voxels that the correction changed there.
        """
        backbone, organ = source.network.backbone, prompt.organ
        previous = shown
        for distance in range(1, self.reach + 1):
            index = prompt.slice + direction * distance
            if not changed.any() or not self._belongs(index, prompt, source.count):
                return
            features, own = source.encode([index])
            # the conditioning memory stays in the bank while SAM2 has a temporal encoding for its distance
            kept = [Memory(shown, distance)] if 1 < distance <= backbone.max_distance else []
            memories = [Memory(own[0, [organ]]), Memory(previous, 1), *kept]
            proposal = backbone.decode(backbone.condition(features, memories), features).gated()
            before = _mask(logits[index], organ)
            changed = touching(before ^ _mask(logits[index], organ, proposal), changed)
            _set_mask(logits[index], organ, before ^ changed)
            previous = self._remember(source, features, before ^ changed)

    def _belongs(self, index: int, prompt: SlicePrompt, count: int) -> bool:
        """Whether a slice is there, and no nearer to another corrected slice of the same organ."""
        others = [each.slice for each in self.prompts if each.organ == prompt.organ and each is not prompt]
        return 0 <= index < count and all(abs(index - other) > abs(index - prompt.slice) for other in others)

    def _remember(self, source: Slices, features: ImageFeatures, mask: np.ndarray) -> Tensor:
        logits = mask_to_logits(torch.from_numpy(mask)[None, None]).to(features.embedding.device)
        return source.network.backbone.encode_memory(features, logits)


def corrected_mask(mask: np.ndarray, proposal: np.ndarray, prompt: SlicePrompt) -> np.ndarray:
    """A mask after a correction.

    A click changes the mask only if the mask disobeys it, and only in one direction: it adds or removes the piece of
    the difference between mask and proposal that holds the click, and the :func:`disc` around it. A box clips the mask,
    and adds what the proposal has inside of it unless what is left spans the box already.

    Args:
        mask: ``(H, W)`` bool, of the walk.
        proposal: ``(H, W)`` bool, of the decoder with the prompt.
        prompt: clicks and box.
    """
    box = np.ones_like(mask)
    result = mask.copy()
    if len(prompt.box):
        (top, left), (bottom, right) = prompt.box.min(0), prompt.box.max(0) + 1
        box[:] = False
        box[top:bottom, left:right] = True
        if _spanned(mask & box) < SPANNED * box.sum():
            result |= proposal
    for points, inside in ((prompt.positive, True), (prompt.negative, False)):
        for point in points:
            if result[tuple(point)] != inside:
                here = np.zeros_like(mask)
                here[tuple(point)] = True
                result[touching(mask ^ proposal, here) | disc(mask, point)] = inside
    return result & box


def _spanned(mask: np.ndarray) -> int:
    """Voxels in the smallest rectangle around a mask."""
    points = np.argwhere(mask)
    return int(np.prod(np.ptp(points, 0) + 1)) if len(points) else 0


def touching(regions: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected regions ``(H, W)`` that share a voxel with the seeds."""
    labelled, _ = label(regions)
    return regions & np.isin(labelled, labelled[seeds & regions])


def disc(mask: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The largest disc ``(H, W)`` around a point that is all inside or all outside the mask.

    Around the middle of a missed or invented area it reaches to its nearest edge. Where there is no edge at all it is
    the point alone.
    """
    same = mask if mask[tuple(point)] else ~mask
    radius = distance_transform_edt(same)[tuple(point)] if not same.all() else 1
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return (rows - point[0]) ** 2 + (columns - point[1]) ** 2 < radius**2


def _mask(logits: Tensor, organ: int, own: Tensor | None = None) -> np.ndarray:
    """Where an organ's logits are the highest, ``(H, W)``.

    Args:
        logits: ``(K, H, W)`` of all organs.
        organ: its index.
        own: logits ``(1, 1, h, w)`` that replace its own.
    """
    if own is None:
        own = logits[None, [organ]]
    best = _best_other(logits, organ)
    return (resize_logits(own.cpu(), best.shape)[0, 0] > best).numpy()


def _best_other(logits: Tensor, organ: int) -> Tensor:
    """The logit ``(H, W)`` that an organ has to exceed: the background's 0 and the other organs'."""
    others = [index for index in range(len(logits)) if index != organ]
    return logits[others].amax(0).clamp_min(0) if others else torch.zeros_like(logits[0])


def _set_mask(logits: Tensor, organ: int, mask: np.ndarray) -> None:
    """Gives voxels to an organ, or takes them from it, with the logits that SAM2 gives a mask that is shown to it."""
    current, wanted = torch.from_numpy(_mask(logits, organ)), torch.from_numpy(mask)
    inside = (_best_other(logits, organ) + 1).clamp_min(MASK_LOGIT)
    logits[organ] = torch.where(wanted & ~current, inside, logits[organ])
    logits[organ] = torch.where(current & ~wanted, -MASK_LOGIT, logits[organ])


def _obey(logits: Tensor, prompt: SlicePrompt) -> None:
    mask = _mask(logits, prompt.organ)
    mask[tuple(prompt.positive.T)], mask[tuple(prompt.negative.T)] = True, False
    _set_mask(logits, prompt.organ, mask)
