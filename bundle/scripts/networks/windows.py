"""Parts of slices, in which organs that a head has named are looked for in place of whole slices. Not in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Parts of slices in which organs are decoded, all of one size: one for each of B * K items, in image tokens.

    Attributes:
        tops: first row of each.
        lefts: first column of each.
        height, width: of all of them.
        tokens: rows and columns of the whole slice.
    """

    tops: Sequence[int]
    lefts: Sequence[int]
    height: int
    width: int
    tokens: int

    @classmethod
    def around(cls, masks: Tensor, tokens: int, margin: int) -> Windows:
        """Around masks ``(N, S, S)`` bool, with so many tokens more to each side; an empty one has the whole slice."""
        rows, columns = (_spans(masks.any(axis), tokens, margin) for axis in (2, 1))
        height, width = (max(last - first for first, last in spans) for spans in (rows, columns))
        tops = [min(first, tokens - height) for first, _ in rows]
        return cls(tops, [min(first, tokens - width) for first, _ in columns], height, width, tokens)

    def places(self, device: torch.device) -> Tensor:
        """Indices ``(N, height * width)`` of the tokens among those of the whole slice, row by row."""
        rows = torch.tensor(self.tops)[:, None] + torch.arange(self.height)
        columns = torch.tensor(self.lefts)[:, None] + torch.arange(self.width)
        return (rows[:, :, None] * self.tokens + columns[:, None]).flatten(1).to(device)

    def with_tokens_before(self) -> Windows:
        """As large as the windows and one row and column of tokens more, which lie before each where there are any."""
        height, width = (min(size + 1, self.tokens) for size in (self.height, self.width))
        tops, lefts = ([max(first - 1, 0) for first in each] for each in (self.tops, self.lefts))
        return Windows(tops, lefts, height, width, self.tokens)

    def cut(self, maps: Tensor) -> Tensor:
        """``(B, C, n * tokens, n * tokens)`` to ``(B * K, C, n * height, n * width)``."""
        scale, organs = maps.shape[-1] // self.tokens, len(self.tops) // len(maps)
        boxes = (self._box(top, left, scale) for top, left in zip(self.tops, self.lefts))
        return torch.stack([maps[number // organs][box] for number, box in enumerate(boxes)])

    def cut_from(self, others: Windows, maps: Tensor) -> Tensor:
        """The same of ``maps`` ``(B * K, C, others.height, others.width)`` of windows in which these lie."""
        starts = zip(self.tops, self.lefts, others.tops, others.lefts)
        boxes = (self._box(top - first, left - other) for top, left, first, other in starts)
        return torch.stack([each[box] for each, box in zip(maps, boxes)])

    def put_back(self, maps: Tensor, fill: float) -> Tensor:
        """``(B * K, C, n * height, n * width)`` to ``(B * K, C, n * tokens, n * tokens)``, else with this value."""
        scale = maps.shape[-1] // self.width
        whole = maps.new_full((*maps.shape[:2], scale * self.tokens, scale * self.tokens), fill)
        for each, part, top, left in zip(whole, maps, self.tops, self.lefts):
            each[self._box(top, left, scale)] = part
        return whole

    def _box(self, top: int, left: int, scale: int = 1) -> tuple[slice, slice, slice]:
        rows, columns = (
            slice(scale * top, scale * (top + self.height)),
            slice(scale * left, scale * (left + self.width)),
        )
        return slice(None), rows, columns


def _spans(there: Tensor, tokens: int, margin: int) -> list[tuple[int, int]]:
    """First token of each row of ``(N, S)`` bool that holds something, and the one after the last, so much wider; from
    the first to the last of all where there is none.
    """
    held, margin = there.unflatten(1, (tokens, -1)).any(2).int(), min(margin, tokens)
    first, last = held.argmax(1), tokens - held.flip(1).argmax(1)
    return list(zip((first - margin).clamp_min(0).tolist(), (last + margin).clamp_max(tokens).tolist()))
