"""DFG's second phase for one slice and organ: the search for a box prompt, guided by two kinds of features.

Z. Huai et al.: Leveraging Segment Anything Model for Source-Free Domain Adaptation via Dual Feature Guided
Auto-Prompting, IEEE TMI 2025 (arXiv:2505.08527). Steps and constants are those of the published code
(github.com/xmed-lab/DFG, ``trainers/target_adapt_SAM_trainer.py``, the stages of its pseudo labels). A box is the
bounding box of a region with a margin; the region grows, the foundation model segments each box, and the search ends
where its masks stop changing.

1. The region starts at the pixels where the adapted model is surest, and grows to neighbours of nearly equal target
   features: these are clustered by class.
2. From the mask found, it grows to neighbours whose foundation features lie near the mask's mean: this reaches pixels
   whose target features are dispersed.
3. If growth ends without a stable mask, the box itself is widened a little.

Each search is a generator that yields boxes and is sent masks, so that many of them share one batch of the decoder. It
sees probabilities, features and masks; true labels are not among its arguments.

Readings taken. The search runs on at most 256 x 256 pixels, the code's size; on fewer, lengths and areas shrink with
it. The code limits the steps by each organ's usual size (20 to 35); here one limit, the largest, serves any organ.
Boxes stay within the slice, and an empty mask is no mask, where the code has neither check.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

GRID = 256

Box = tuple[int, int, int, int]  # left, top, right, bottom, inclusive, in pixels of the grid
Search = Generator[Box, np.ndarray, "np.ndarray | None"]


@dataclass(frozen=True)
class SearchSettings:
    """Constants of the published code, for 256 x 256 pixels; see :meth:`scaled`.

    Attributes:
        sure: probability above which pixels are counted before a search.
        min_sure_area: so many of them there must be.
        peak: pixels whose probability is this near to the highest start the region.
        affinity: least cosine similarity of target features to grow.
        radius: how far a step of growth reaches, in pixels, exclusive.
        margin: of the box around the region.
        steps: most boxes of each stage.
        min_area: of a mask.
        changes: most pixels that differ between a mask and the one before, or the second before, in stage 1.
        late_changes: the same in stages 2 and 3; and, third, between a mask and the third before.
        spread: growth in stage 2 reaches features this many times as far from the mean as the mask's are on average ...
        max_distance: ... but at most this cosine distance.
        widening: steps of stage 3.
        widening_pixels: on each side.
    """

    sure: float = 0.8
    min_sure_area: float = 200
    peak: float = 0.005
    affinity: float = 0.99
    radius: float = 4
    margin: float = 3
    steps: int = 35
    min_area: float = 50
    changes: tuple[float, float] = (15, 35)
    late_changes: tuple[float, float, float] = (15, 30, 45)
    spread: float = 2.5
    max_distance: float = 0.35
    widening: int = 6
    widening_pixels: float = 2

    def scaled(self, size: int) -> SearchSettings:
        """For ``size x size`` pixels; a step grows by one pixel at least, and an unchanged mask is always stable."""
        side, area = size / GRID, (size / GRID) ** 2
        return replace(
            self,
            min_sure_area=self.min_sure_area * area,
            radius=max(1.5, self.radius * side),
            margin=round(self.margin * side),
            min_area=self.min_area * area,
            changes=tuple(max(1.0, each * area) for each in self.changes),
            late_changes=tuple(max(1.0, each * area) for each in self.late_changes),
            widening_pixels=max(1, round(self.widening_pixels * side)),
        )


def search(
    probability: np.ndarray, target_features: np.ndarray, foundation_features: np.ndarray, settings: SearchSettings
) -> Search:
    """All three stages.

    Args:
        probability: of the organ, ``(H, W)``.
        target_features: of the adapted model, ``(F, H, W)``, each pixel of unit length.
        foundation_features: of the foundation model, ``(C, H, W)``, each pixel of unit length.
        settings: for this size.

    Returns:
        The mask ``(H, W)`` bool, or None where the organ is not surely there or no box gives a stable mask.
    """
    mask = yield from _by_target_features(probability, target_features, settings)
    if mask is None:
        return None
    grown = yield from _by_foundation_features(mask, foundation_features, settings)
    return mask if grown is None or not grown.any() else grown


def run_searches(
    searches: Mapping[Hashable, Search], segment: Callable[[Sequence[tuple[Hashable, Box]]], Sequence[np.ndarray]]
) -> dict[Hashable, np.ndarray | None]:
    """Runs searches side by side: ``segment`` gets the next box of each that goes on, and gives their masks."""
    results: dict[Hashable, np.ndarray | None] = {}
    boxes: dict[Hashable, Box] = {}

    def advance(key: Hashable, mask: np.ndarray | None) -> None:
        try:
            boxes[key] = searches[key].send(mask)
        except StopIteration as end:
            results[key] = end.value
            boxes.pop(key, None)

    for key in searches:
        advance(key, None)
    while boxes:
        asked = list(boxes.items())
        for (key, _), mask in zip(asked, segment(asked)):
            advance(key, mask)
    return results


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of ``(H, W)``, corners joined, with its holes filled; empty if the mask is."""
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.zeros(mask.shape, bool)
    return ndimage.binary_fill_holes(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def bounding_box(region: np.ndarray, margin: int = 0) -> Box:
    """Of ``(H, W)`` bool with a margin, within the slice."""
    rows, columns = region.nonzero()
    height, width = region.shape
    return (
        max(int(columns.min()) - margin, 0),
        max(int(rows.min()) - margin, 0),
        min(int(columns.max()) + margin, width - 1),
        min(int(rows.max()) + margin, height - 1),
    )


def grow_by_affinity(region: np.ndarray, features: np.ndarray, least: float, radius: float) -> np.ndarray:
    """The region and every pixel within the radius of one of its own whose feature is as similar as ``least``."""
    grown, reach = region.copy(), int(np.ceil(radius)) - 1
    # only this window can change
    left, top, right, bottom = bounding_box(region, reach)
    window = np.s_[top : bottom + 1, left : right + 1]
    region, features, target = region[window], features[(np.s_[:], *window)], grown[window]
    height, width = region.shape
    for down, across in np.ndindex(2 * reach + 1, 2 * reach + 1):
        down, across = down - reach, across - reach
        if (down, across) == (0, 0) or down**2 + across**2 >= radius**2 or abs(down) >= height or abs(across) >= width:
            continue
        here = np.s_[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
        there = np.s_[max(0, down) : height - max(0, -down), max(0, across) : width - max(0, -across)]
        rows, columns = (region[here] & ~target[there]).nonzero()
        pairs = (features[(np.s_[:], *here)][:, rows, columns], features[(np.s_[:], *there)][:, rows, columns])
        similar = (pairs[0] * pairs[1]).sum(0) > least
        target[there][rows[similar], columns[similar]] = True
    return grown


def _by_target_features(probability: np.ndarray, features: np.ndarray, settings: SearchSettings) -> Search:
    if (probability > settings.sure).sum() < max(settings.min_sure_area, 1):
        return None
    region = largest_component(probability > probability.max() - settings.peak)
    masks: list[np.ndarray] = []
    for _ in range(settings.steps):
        mask = largest_component((yield bounding_box(region, settings.margin)))
        if mask.any():
            masks.append(mask)
            if mask.sum() > settings.min_area and _is_stable(masks, settings.changes):
                return mask
        region = grow_by_affinity(region, features, settings.affinity, settings.radius)
    return None


def _by_foundation_features(mask: np.ndarray, features: np.ndarray, settings: SearchSettings) -> Search:
    mean = features[:, mask].mean(1)
    distance = 1 - np.einsum("chw,c->hw", features, mean / max(np.linalg.norm(mean), 1e-12))
    near = distance < min(settings.spread * distance[mask].mean(), settings.max_distance)
    offsets = np.hypot(*np.indices((2 * int(settings.radius) + 1,) * 2) - int(settings.radius))
    reach = offsets < settings.radius
    region, masks, last = mask, [], None
    for _ in range(settings.steps):
        box = bounding_box(region, settings.margin)
        if box == last:
            settled = _settled(masks, settings.late_changes)
            return settled if settled is not None else (yield from _by_widening(box, masks, settings))
        last = box
        masks.append(largest_component((yield box)))
        if len(masks) > 3 and _changed(masks[-1], masks[-4]) < settings.late_changes[2]:
            return masks[-2]
        region = region | (ndimage.binary_dilation(region, reach) & near)
    return _settled(masks, settings.late_changes)


def _by_widening(box: Box, masks: list[np.ndarray], settings: SearchSettings) -> Search:
    before, masks = masks[-1], list(masks)
    height, width = before.shape
    step = int(settings.widening_pixels)
    for _ in range(settings.widening):
        left, top, right, bottom = box
        box = (max(left - step, 0), max(top - step, 0), min(right + step, width - 1), min(bottom + step, height - 1))
        masks.append(largest_component((yield box)))
        if _is_stable(masks, settings.late_changes):
            return masks[-1]
    return before


def _changed(mask: np.ndarray, other: np.ndarray) -> int:
    return int((mask != other).sum())


def _is_stable(masks: Sequence[np.ndarray], changes: Sequence[float]) -> bool:
    """Whether the last mask is like the one before it, or the second before it."""
    return any(len(masks) > back and _changed(masks[-1], masks[-1 - back]) < changes[back - 1] for back in (1, 2))


def _settled(masks: Sequence[np.ndarray], changes: Sequence[float]) -> np.ndarray | None:
    """The first mask like the second before it; if there is none, the first like the one before."""
    for back in (2, 1):
        for index in range(back, len(masks)):
            if _changed(masks[index], masks[index - back]) < changes[back - 1]:
                return masks[index]
    return None
