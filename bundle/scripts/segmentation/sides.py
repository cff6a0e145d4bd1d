"""The two directions of the walk through a volume: what each of them remembers, and which slices go together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class Side:
    """One direction of the walk: memories of the slices just decoded, and the organs that are still looked for.

    Args:
        neighbours: how many slices' memories are kept.
        organs: K.
        ended_after: see :class:`VolumetricInferer`.
    """

    def __init__(self, neighbours: int, organs: int, *, ended_after: int) -> None:
        self.organs = tuple(range(organs))
        self.ended_after = ended_after
        self._memories: deque[dict[int, Tensor]] = deque(maxlen=neighbours)  # of each organ, ``(M, h, w)``
        self._found: deque[set[int]] = deque(maxlen=neighbours)  # the organs of which these are no empty ones
        self._empty: dict[int, int] = {}  # for organs that have been seen, slices without them since

    def memories(self, organs: Sequence[int]) -> list[Tensor]:
        """Of the slices just decoded, nearest first, each ``(organs, M, h, w)``."""
        return [torch.stack([memory[organ] for organ in organs]) for memory in self._memories]

    def found(self, organ: int) -> bool:
        """Whether an organ is on any of the slices just decoded."""
        return any(organ in found for found in self._found)

    def add(self, logits: Tensor, memories: Tensor) -> None:
        """Takes what was found in the next slice of the organs looked for: logits ``(organs, s, s)``, memories."""
        self._memories.appendleft(dict(zip(self.organs, memories)))
        found = {organ for organ, there in zip(self.organs, (logits.amax((1, 2)) > 0).tolist()) if there}
        self._found.appendleft(found)
        if not self.ended_after:
            return
        for organ in self.organs:
            if organ in found or organ in self._empty:
                self._empty[organ] = 0 if organ in found else self._empty[organ] + 1
        self.organs = tuple(organ for organ in self.organs if self._empty.get(organ, 0) < self.ended_after)

    def follow(self, other: Side) -> None:
        """Starts where another side has started."""
        self.organs, self._empty = other.organs, dict(other._empty)
        self._memories, self._found = other._memories.copy(), other._found.copy()


def together(organs: Iterable[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The rows that have the same organs, for all organs that any row has; rows without any are left out."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, each in enumerate(organs):
        rows.setdefault(each, []).append(row)
    return ((each, of_each) for each, of_each in rows.items() if each)


def batched(steps: list[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Groups the steps of a walk so that each group encodes about ``batch_size`` slices at once."""
    group: list[list[int]] = []
    for step in steps:
        group.append(step)
        if sum(len(each) for each in group) >= batch_size:
            yield group
            group = []
    if group:
        yield group
