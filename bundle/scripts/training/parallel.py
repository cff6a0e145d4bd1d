"""Several processes as one: with n of them, training and evaluation give what one process gives.

``configs/multi_gpu_train.json`` and ``configs/multi_gpu_evaluate.json`` are the overlays, ``torchrun`` starts the
processes. A training step of n processes is the step of one process whose batch is n times as large: this process has
every n-th row of that batch, from its rank on, and the same rows of the noise that is drawn for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import islice

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import Dataset, DistributedSampler
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import RefusedError, count

# one process may still be encoding or reading a volume while the others wait; PyTorch's ten minutes are too few
_TIMEOUT = timedelta(hours=2)


def local_device() -> torch.device:
    """This process's GPU, or the CPU where there is none.

    Raises:
        RuntimeError: the program was not started by ``torchrun``.
    """
    if "LOCAL_RANK" not in os.environ:
        raise RefusedError(
            "A configuration with 'configs/multi_gpu_train.json' or 'configs/multi_gpu_evaluate.json' runs in several "
            "processes: start it with `torchrun --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run ...`, "
            "or leave the overlay out."
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def join(device: torch.device | str) -> None:
    """Makes the processes one group, by NCCL on GPUs and Gloo on the CPU; all but the first keep their log to warnings.

    Args:
        device: of :func:`local_device`.

    Raises:
        RuntimeError: there are more processes than GPUs.
    """
    if dist.is_initialized():
        return
    device = torch.device(device)  # which may be a text, as it is typed
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise RefusedError(
                f"Process {device.index} has no GPU of its own: there are {torch.cuda.device_count()}. Start as many "
                "processes as there are GPUs (`--nproc_per_node`)."
            )
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    if dist.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


def leave() -> None:
    """Ends the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def case_sampler(dataset: Dataset) -> DistributedSampler:
    """Every n-th case for this process, each in one process alone.

    Args:
        dataset: of cases.

    Raises:
        RuntimeError: there are more processes than cases, of which some would have nothing to evaluate.
    """
    if len(dataset) < dist.get_world_size():
        raise RefusedError(
            f"{dist.get_world_size()} processes cannot share {count(len(dataset), 'test case')}: start as many "
            "processes as there are cases at most (`--nproc_per_node`)."
        )
    return DistributedSampler(dataset, even_divisible=False, shuffle=False)


class ShareOfSampler(Sampler):
    """Every n-th index of a sampler that draws the same in all processes, from this process's rank on.

    Batch i of all processes together then is batch i of a single process whose batch is n times as large. (MONAI's
    ``DistributedWeightedRandomSampler`` draws from a part of the data set in each process, and Ignite's
    ``DistributedProxySampler`` seeds PyTorch anew, on which everything that is drawn later depends.)

    Args:
        sampler: draws a multiple of n indices, by PyTorch's global seed.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return islice(self.sampler, idist.get_rank(), None, idist.get_world_size())

    def __len__(self) -> int:
        return len(self.sampler) // idist.get_world_size()


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Random numbers for this process's rows of the batch of all processes, which all draw in full.

    Args:
        draw: from a number of rows to that many random rows.
        rows: of this process.
    """
    return draw(rows * idist.get_world_size())[idist.get_rank() :: idist.get_world_size()]


def noise_like(values: Tensor) -> Tensor:
    """Standard normal noise for the rows of ``values`` ``(B, ...)``; see :func:`draw_rows`."""
    return draw_rows(lambda rows: torch.randn(rows, *values.shape[1:], device=values.device), len(values))


def rows_of_all_processes(values: Tensor) -> Tensor:
    """The rows ``(B, ...)`` of all processes, for a loss of a batch that is no mean of its rows' losses.

    Gradients of this process's rows are as many times as large as there are processes: those of all processes, each
    of which computes the loss of all rows, then have that loss's gradient as their mean.
    """
    processes = idist.get_world_size()
    if processes == 1:
        return values
    rows = list(idist.all_gather(values.detach()).split(len(values)))
    if values.requires_grad:
        rows[idist.get_rank()] = processes * values - (processes - 1) * values.detach()
    return torch.cat(rows)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor's values in all processes, without gradient."""
    return idist.all_reduce(value.detach().clone()) / idist.get_world_size()


def means_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`mean_over_processes` of several scalars at once."""
    means = mean_over_processes(torch.stack([value.detach().float() for value in values.values()]))
    return dict(zip(values, means))
