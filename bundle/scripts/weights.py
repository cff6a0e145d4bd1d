"""Files of tensors, such as priors, checkpoints and encoded slices: written whole, read with what is wrong in words."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import TORCH_CANNOT_WRITE, MissingFileError, RefusedError, UnusableFileError
from .files import whole_file


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` through a temporary name, so that ``path`` is either the old file or the whole new one.

    The same content gives the same bytes: PyTorch writes the name of a path into the file, but not that of an open one.

    Raises:
        RefusedError: PyTorch could not write to the end of the file, of which its own error names neither the place
            nor the reason.
    """
    try:
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if not any(said in str(error) for said in TORCH_CANNOT_WRITE):
            raise
        raise RefusedError(
            f"'{path}' could not be written to its end ({str(error).splitlines()[0][:200]}). Is the disk full? Free "
            "some space, or write to another disk; what was there before is as it was."
        ) from error


def load_tensors(
    path: str | Path, kind: str, *, remedy: str, mmap: bool = False, checked: bool | None = None
) -> dict[str, Any]:
    """The dictionary in a file of :func:`save_atomically`, on the CPU.

    Args:
        path: of the file.
        kind: what it is to be, for messages, such as "trained prior".
        remedy: what to do where it is something else.
        mmap: whether tensors stay in the file until they are used.
        checked: whether damage in tensors is looked for, for which the file is read to its end; by default where
            ``mmap`` is not set.

    Raises:
        MissingFileError: it is not there.
        UnusableFileError: it is empty, cut off, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"The {kind} '{path}' is not there. {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        damaged = _damaged_part(path) if checked or (checked is None and not mmap) else None
    except MemoryError:
        raise
    except Exception as error:  # PyTorch, pickle and zip fail in many ways; all of them mean the same here
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UnusableFileError(_unusable(path, f"it cannot be read: {type(error).__name__}", kind, remedy)) from error
    if damaged:
        raise UnusableFileError(_unusable(path, f"its part '{damaged}' is not as it was written", kind, remedy))
    if not isinstance(content, dict):
        raise UnusableFileError(_unusable(path, f"it holds a {type(content).__name__}", kind, remedy))
    return content


def begin_from(module: nn.Module, path: str | Path, *, part: str, kind: str) -> None:
    """Loads weights with which a training begins.

    Args:
        module: that takes them.
        path: of a file of :func:`save_atomically`.
        part: of the file's content, a ``state_dict``.
        kind: what the file is to be, for messages, such as "checkpoint of a pretraining".

    Raises:
        MissingFileError: it is not there.
        UnusableFileError: it is damaged, something else, of a network of another kind, or its training failed.
    """
    remedy = "Name another file, or null to begin from scratch."
    content = load_tensors(path, kind, remedy=remedy)
    if not isinstance(content.get(part), Mapping):
        raise UnusableFileError(_unusable(Path(path), f"it has no '{part}'", kind, remedy))
    check_finite(path, content[part], remedy=remedy)
    try:
        module.load_state_dict(content[part])
    except (RuntimeError, TypeError, KeyError) as error:  # other names, shapes, or no tensors
        found = f"it does not fit this {type(module).__name__}: {str(error).splitlines()[-1].strip()}"
        raise UnusableFileError(_unusable(Path(path), found, kind, remedy)) from error


def _damaged_part(path: Path) -> str | None:
    """The first part of the archive that its checksum does not fit, which PyTorch writes and does not compare."""
    if not zipfile.is_zipfile(path):  # the form of PyTorch before 1.6
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _unusable(path: Path, found: str, kind: str, remedy: str) -> str:
    size = path.stat().st_size
    found = "it is empty" if not size else f"{size:,} bytes, {found}"
    return f"'{path}' is no {kind}, or damaged ({found}). {remedy}"


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names of the tensors, at any depth, that hold NaN or infinite numbers."""
    names = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{each}" for each in not_finite(value)]
        elif isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            names.append(str(name))
    return names


def check_finite(path: str | Path, state: Mapping[str, Any], *, remedy: str) -> None:
    """Refuses weights of which nothing but NaN can come.

    Args:
        path: of the file that holds them, for the message.
        state: a ``state_dict``.
        remedy: what to do.

    Raises:
        UnusableFileError: naming the first tensor.
    """
    if spoilt := not_finite(state):
        raise UnusableFileError(
            f"'{path}': {len(spoilt)} of its tensors hold NaN or infinite numbers (such as '{spoilt[0]}'): its "
            f"training failed. {remedy}"
        )


def on_cpu(value: Any) -> Any:
    """The same state with its tensors on the CPU, where a machine without a GPU can load it.

    Numbers of NumPy, such as a learning rate that follows ``np.cos``, become Python's: PyTorch writes them, but refuses
    to read them among tensors.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: on_cpu(item) for key, item in value.items()}
    return type(value)(map(on_cpu, value)) if isinstance(value, (list, tuple)) else value
