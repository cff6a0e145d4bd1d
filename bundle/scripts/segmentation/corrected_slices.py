"""Segmenting again where a user has corrected: SAM2's own prompts on single slices, and what their neighbours learn.

On a corrected slice the frozen decoder gets the prompt tokens, as SAM2 does on a frame that is shown to it. What it
proposes is taken where the prompts say that something was wrong, and nowhere else (:func:`corrected_mask`); in any case
the slice obeys the prompts. The mask is then trusted: it becomes a conditioning memory, SAM2's word for the memory of
such a frame, and Equation 3 is walked from that slice outward in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from ..errors import SettingError
from ..networks.diffusam import DiffuSAM
from ..networks.logits import MASK_LOGIT, mask_to_logits, resize_logits, with_background
from ..networks.sam2_types import ImageFeatures, Memory

SPANNED = 0.7  # share of a box that the smallest rectangle around a mask takes, from which on the two agree

# what a click is about is taken to be no larger than so many of the discs around it: a click in the middle of a missed
# or invented area has a disc of a third of that area or more
SCALE = 3

_OUTSIDE, _INSIDE, _CORNERS = 0, 1, (2, 3)  # SAM's labels of points


class Slices(Protocol):
    """The slices of the volume at hand, as :mod:`scripts.segmentation.propagation` has them."""

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

    def within(self, field: tuple[slice, slice]) -> SlicePrompt | None:
        """The prompt on a part of its slice: boxes end at its edges, and no click outside of it is needed to say that
        nothing is there. None where it says that an organ is.

        Args:
            field: rows and columns of the part.
        """
        start, end = (np.array([getattr(side, limit) for side in field]) for limit in ("start", "stop"))

        def inside(points: np.ndarray) -> np.ndarray:
            return ((points >= start) & (points < end)).all(1)

        beside = len(self.box) and ((self.box.max(0) < start) | (self.box.min(0) >= end)).any()
        if beside or not inside(self.positive).all():
            return None
        box, negative = self.box.clip(start, end - 1), self.negative[inside(self.negative)]
        return replace(self, positive=self.positive - start, negative=negative - start, box=box - start)

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
            left &= ~(mask[tuple(point)] & disc(mask, point))
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
    :class:`~scripts.segmentation.propagation.VolumetricInferer`.

    Args:
        prompts: at most one for each slice and organ.
        reach: how many slices on either side of a corrected one are decoded again with its memory. A slice between two
            corrected ones of its organ belongs to the nearer, and right in the middle to neither.

    Raises:
        ValueError: a negative reach.
    """

    def __init__(self, prompts: Sequence[SlicePrompt], reach: int = 0) -> None:
        if reach < 0:
            raise SettingError(f"correction_reach must be 0 or more slices, got {reach}.")
        self.prompts, self.reach = list(prompts), reach

    def needs(self, index: int) -> bool:
        """Whether the walk's result for a slice is needed: it may change, or lies beside one that may."""
        return any(abs(index - prompt.slice) <= max(self.reach, 1) for prompt in self.prompts)

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
        labels, before = _labels(present), _mask(present, prompt.organ)
        features = source.features([prompt.slice])
        tokens = (each.to(source.device) for each in prompt.seen(before).tokens(before.shape, backbone.image_size))
        # without the synthesised memory, which outweighs any prompt where it says that there is no organ; and not gated
        # by the object score, since the user has seen the organ
        predicted = backbone.predict_all_masks(backbone.condition(features), features, points=tuple(tokens))
        best_first = predicted.iou[0].argsort(descending=True)
        proposals = [_mask(present, prompt.organ, predicted.mask_logits[:, [token]]) for token in best_first]
        beside = [logits[index] for index in (prompt.slice - 1, prompt.slice, prompt.slice + 1) if index in logits]
        usual = np.mean([_mask(each, prompt.organ).sum() for each in beside])
        after = corrected_mask(labels, np.stack(proposals), prompt, usual)
        _set_mask(present, prompt.organ, after)
        if not after.any():  # what is not there has no memory to show; its absence would spread into the organ
            return
        shown = self._encode_masks(source, features, after)
        for direction in (-1, 1):
            self._walk(source, logits, prompt, direction=direction, shown=shown, before=before, after=after)

    def _walk(
        self,
        source: Slices,
        logits: Mapping[int, Tensor],
        prompt: SlicePrompt,
        *,
        direction: int,
        shown: Tensor,
        before: np.ndarray,
        after: np.ndarray,
    ) -> None:
        """Equation 3 from a corrected slice in one direction, until a slice has nothing to learn from it.

        A slice changes where the one before it did and in the same way: it gains regions that touch what that one has
        gained, and loses those that touch what it has lost.

        Args:
            shown: memory of the corrected slice.
            before: its mask ``(H, W)`` of the walk.
            after: its corrected mask.
        """
        backbone, organ = source.network.backbone, prompt.organ
        previous = shown
        for distance in range(1, self.reach + 1):
            index = prompt.slice + direction * distance
            if (before == after).all() or not self._belongs(index, prompt, source.count):
                return
            gained, lost = after & ~before, before & ~after
            features, own = source.encode([index])
            # the memory of a slice that was shown stays in the bank, and knows no distance
            memories = [Memory(own[0, [organ]]), Memory(shown)] + ([Memory(previous, 1)] if distance > 1 else [])
            proposal = backbone.decode(backbone.condition(features, memories), features).gated()
            before, wanted = _mask(logits[index], organ), _mask(logits[index], organ, proposal)
            after = (before | touching(wanted & ~before, gained)) & ~touching(before & ~wanted, lost)
            _set_mask(logits[index], organ, after)
            previous = self._encode_masks(source, features, after)

    def _belongs(self, index: int, prompt: SlicePrompt, count: int) -> bool:
        """Whether a slice is there, and no nearer to another corrected slice of the same organ."""
        others = [each.slice for each in self.prompts if each.organ == prompt.organ and each is not prompt]
        return 0 <= index < count and all(abs(index - other) > abs(index - prompt.slice) for other in others)

    def _encode_masks(self, source: Slices, features: ImageFeatures, mask: np.ndarray) -> Tensor:
        logits = mask_to_logits(torch.from_numpy(mask)[None, None]).to(features.embedding.device)
        return source.network.backbone.encode_memory(features, logits)


def corrected_mask(labels: np.ndarray, proposals: np.ndarray, prompt: SlicePrompt, usual: float) -> np.ndarray:
    """The mask ``(H, W)`` of an organ after a correction.

    A click changes the mask only where the mask disobeys it, and only in one direction: it adds or removes the
    :func:`disc` around it and, of the pieces by which the proposals differ from the mask there, the smallest. A piece
    that is much larger than the disc is none of them: it is another object. Where the whole piece of the mask that a
    click outside is on is no larger than that, it is removed. A box clips the mask, and adds what the first proposal
    has inside of it unless what is left spans the box already.

    Args:
        labels: ``(H, W)`` label map of the walk.
        proposals: ``(n, H, W)`` bool, masks of the decoder with the prompt, the best first.
        prompt: clicks and box.
        usual: voxels of the organ on this slice and those beside it, on average: an added disc is no larger.
    """
    mask = labels == prompt.organ + 1
    box, result = np.ones_like(mask), mask.copy()
    if len(prompt.box):
        (top, left), (bottom, right) = prompt.box.min(0), prompt.box.max(0) + 1
        box[:] = False
        box[top:bottom, left:right] = True
        if _spanned(mask & box) < SPANNED * box.sum():
            result |= proposals[0]
    for points, inside in ((prompt.positive, True), (prompt.negative, False)):
        for point in points:
            if result[tuple(point)] != inside:
                result[_meant(labels, mask, proposals, point, usual)] = inside
    return result & box


def _meant(labels: np.ndarray, mask: np.ndarray, proposals: np.ndarray, point: np.ndarray, usual: float) -> np.ndarray:
    """The voxels ``(H, W)`` that a click which a mask disobeys is about; see :func:`corrected_mask`."""
    here = np.zeros_like(mask)
    here[tuple(point)] = True
    outside = mask[tuple(point)]  # the click's meaning
    around = disc(labels, point, None if outside else usual)
    # where the organ is nowhere near, nothing says how large a piece is too large
    largest = SCALE * around.sum() if usual else mask.size
    whole = touching(mask, here)
    if outside and whole.sum() <= largest:
        return whole
    pieces = [touching(mask ^ proposal, here) for proposal in proposals]
    return around | min((piece for piece in pieces if 0 < piece.sum() <= largest), key=np.sum, default=around)


def disc(labels: np.ndarray, point: np.ndarray, voxels: float | None = None) -> np.ndarray:
    """The largest disc ``(H, W)`` around a point in which all labels are the same.

    Around the middle of a missed or invented area it reaches to the area's nearest edge.

    Args:
        labels: ``(H, W)``.
        point: (row, column).
        voxels: an upper limit of its area; it has one voxel at least.
    """
    same = np.pad(labels == labels[tuple(point)], 1)  # nothing lies beyond the image
    radius = distance_transform_edt(same)[tuple(point + 1)]
    if voxels is not None:
        radius = min(radius, np.sqrt(voxels / np.pi))
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    return (rows - point[0]) ** 2 + (columns - point[1]) ** 2 < max(radius, 1) ** 2


def _spanned(mask: np.ndarray) -> int:
    """Voxels in the smallest rectangle around a mask."""
    points = np.argwhere(mask)
    return int(np.prod(np.ptp(points, 0) + 1)) if len(points) else 0


def touching(regions: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected regions ``(H, W)`` that share a voxel with the seeds."""
    labelled, _ = label(regions)
    return regions & np.isin(labelled, labelled[seeds & regions])


def _labels(logits: Tensor) -> np.ndarray:
    """The label map ``(H, W)`` of organ logits ``(K, H, W)``."""
    return with_background(logits[None])[0].argmax(0).numpy()


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
