"""Which cases are this process's, where several share them: of ``torchrun``, of a job array, or of both at once.

Of n shares the i-th is every n-th case from the i-th on, in the order of the input: each case is in one share, whatever
the others do, and volumes that lie together, often of one size, are spread evenly.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..arguments import share_numbers

# the first process may end long before the last; PyTorch counts milliseconds in 31 bits in places, so no longer
_PATIENCE = timedelta(days=20)

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """A part of the cases.

    Attributes:
        number, shares: of the job array, from 1 on.
        rank, processes: of this process among those that ``torchrun`` started, from 0 on, which divide the share.
    """

    number: int = 1
    shares: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all there is."""
        return self.shares * self.processes == 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items.

        Example:
            >>> Share(2, 3).of("abcdefg")
            'be'
        """
        return items[self.number - 1 :: self.shares][self.rank :: self.processes]


WHOLE = Share()


def own_share(share: str | None = None) -> Share:
    """The share of this process.

    Args:
        share: ``"3/16"`` for the third of 16 shares; None for all cases. Processes that ``torchrun`` started divide it.

    Raises:
        UnknownSettingError: no such text, or no share that there is.
    """
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if share is None:
        return Share(rank=rank, processes=processes)
    number, shares = share_numbers(share)
    return Share(number, shares, rank, processes)


def own_device() -> torch.device:
    """This process's GPU, which becomes the one that PyTorch means by "cuda", or the CPU where there is none; more
    processes than GPUs use each of them in turn.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def be_quiet(share: Share) -> None:
    """Keeps the log of all but the first of ``torchrun``'s processes to warnings."""
    if share.rank > 0:
        logging.getLogger().setLevel(logging.WARNING)


def gathered(value: Any) -> list[Any]:
    """The values of all processes that ``torchrun`` started, by rank; each waits for all others.

    Nothing else needs them together, so they become a group here alone: a slow one keeps nobody from work before.
    """
    hook = sys.excepthook
    dist.init_process_group("gloo", timeout=_PATIENCE)
    sys.excepthook = hook  # PyTorch's own, which names ranks, loses what ends a program with an exit code
    try:
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    finally:
        dist.destroy_process_group()
    return values
