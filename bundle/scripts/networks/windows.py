"""Parts of slices, in which organs that a head has named are looked for in place of whole slices. Not in the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOKENS_OF_A_CALL = 160  # of windows, which take as long as a further call for some of them, measured with sam2_nano
TOKENS_AT_ONCE = 8 * 32**2  # so that memory does not grow with the size of slices and the number of organs


@dataclass(frozen=True)
class Windows:
    """N windows of one size, each a part of one of B slices in which one organ is decoded, in image tokens.

    Attributes:
        slices: which of the B slices each is a part of.
        tops: first row of each.
        lefts: first column of each.
        height, width: of all of them.
        tokens: rows and columns of a whole slice.
    """

    slices: Sequence[int]
    tops: Sequence[int]
    lefts: Sequence[int]
    height: int
    width: int
    tokens: int

    def places(self, device: torch.device) -> Tensor:
        """Indices ``(N, height * width)`` of the tokens among those of the whole slice, row by row."""
        rows = torch.tensor(self.tops)[:, None] + torch.arange(self.height)
        columns = torch.tensor(self.lefts)[:, None] + torch.arange(self.width)
        return (rows[:, :, None] * self.tokens + columns[:, None]).flatten(1).to(device)

    def with_tokens_before(self) -> Windows:
        """As large as the windows and one row and column of tokens more, which lie before each where there are any."""
        height, width = (min(size + 1, self.tokens) for size in (self.height, self.width))
        tops, lefts = ([max(first - 1, 0) for first in each] for each in (self.tops, self.lefts))
        return replace(self, tops=tops, lefts=lefts, height=height, width=width)

    def cut(self, maps: Tensor) -> Tensor:
        """``(B, C, n * tokens, n * tokens)`` of the slices to ``(N, C, n * height, n * width)``."""
        return self._cut(maps[number] for number in self.slices)

    def cut_each(self, maps: Tensor) -> Tensor:
        """The same of ``(N, C, n * tokens, n * tokens)``, of which each window has its own."""
        return self._cut(maps)

    def _cut(self, maps: Iterable[Tensor]) -> Tensor:
        parts = []
        for each, top, left in zip(maps, self.tops, self.lefts):
            parts.append(each[self._box(top, left, each.shape[-1] // self.tokens)])
        return torch.stack(parts)

    def cut_from(self, others: Windows, maps: Tensor) -> Tensor:
        """The same of ``(N, C, others.height, others.width)``, of windows in which these lie."""
        tops = [top - first for top, first in zip(self.tops, others.tops)]
        lefts = [left - first for left, first in zip(self.lefts, others.lefts)]
        return replace(self, tops=tops, lefts=lefts, tokens=others.width).cut_each(maps)

    def put_back(self, maps: Tensor, fill: float) -> Tensor:
        """``(N, C, n * height, n * width)`` to ``(N, C, n * tokens, n * tokens)``, with this value outside."""
        scale = maps.shape[-1] // self.width
        whole = maps.new_full((*maps.shape[:2], scale * self.tokens, scale * self.tokens), fill)
        for each, part, top, left in zip(whole, maps, self.tops, self.lefts):
            each[self._box(top, left, scale)] = part
        return whole

    def _box(self, top: int, left: int, scale: int) -> tuple[slice, slice, slice]:
        rows, columns = (
            slice(scale * top, scale * (top + self.height)),
            slice(scale * left, scale * (left + self.width)),
        )
        return slice(None), rows, columns


def windows_around(
    masks: Tensor, slices: Sequence[int], *, tokens: int, margin: int
) -> list[tuple[list[int], Windows]]:
    """Windows around masks, so many tokens wider on each side; the whole slice for an empty one.

    Masks of about one size have windows of one size, so that they go through the network together: how large a window
    is depends on all that are given at once.

    Args:
        masks: ``(N, S, S)`` bool.
        slices: which of B slices each is of.
        tokens: rows and columns of a whole slice.
        margin: in tokens.

    Returns:
        Indices of some of the masks, and their windows, until all have one.
    """
    rows, columns = (_spans(masks.any(axis), tokens, margin) for axis in (2, 1))
    groups = []
    sizes = [tuple(last - first for first, last in pair) for pair in zip(rows, columns)]
    for (height, width), alike in _of_one_size(sizes):
        at_once = max(1, TOKENS_AT_ONCE // (height * width))
        for chosen in (alike[start : start + at_once] for start in range(0, len(alike), at_once)):
            tops = [min(rows[index][0], tokens - height) for index in chosen]
            lefts = [min(columns[index][0], tokens - width) for index in chosen]
            groups.append((chosen, Windows([slices[index] for index in chosen], tops, lefts, height, width, tokens)))
    return groups


def _of_one_size(sizes: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], list[int]]]:
    """Indices of windows that are made as large as the highest and the widest among them, and that size.

    From the largest on, each joins those whose windows become the least larger by it, or begins a group of its own
    where that costs less.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        alike.setdefault(size, []).append(index)
    groups: list[tuple[tuple[int, int], list[int]]] = []
    for size, chosen in sorted(alike.items(), key=lambda each: (-each[0][0] * each[0][1], each)):
        joined = [(tuple(map(max, size, other)), others + chosen) for other, others in groups]
        added = [_area(*after) - _area(*before) - _area(size, chosen) for before, after in zip(groups, joined)]
        best = min(range(len(groups)), key=added.__getitem__, default=None)
        if best is None or added[best] > TOKENS_OF_A_CALL:
            groups.append((size, chosen))
        else:
            groups[best] = joined[best]
    return groups


def _area(size: tuple[int, int], chosen: Sequence[int]) -> int:
    return size[0] * size[1] * len(chosen)


def _spans(there: Tensor, tokens: int, margin: int) -> list[tuple[int, int]]:
    """First token of each row of ``(N, S)`` bool that holds something, and the one after the last, so much wider; from
    the first to the last of all where there is none.
    """
    held, margin = there.unflatten(1, (tokens, -1)).any(2).int(), min(margin, tokens)
    first, last = held.argmax(1), tokens - held.flip(1).argmax(1)
    return list(zip((first - margin).clamp_min(0).tolist(), (last + margin).clamp_max(tokens).tolist()))
