"""What every format of volumes must say: one number a voxel, three dimensions, how far voxels are apart, and where."""

from __future__ import annotations

import errno
import logging
import re
import sysconfig
import traceback
import zlib
from collections.abc import Iterable, Sequence
from gzip import BadGzipFile
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ..errors import DatasetError, SettingError

AXCODES = "PLS"  # of the slices that the network sees: rows to the back, columns to the left, slices to the top
_TOLD_BY_ITK = re.compile(r"ITK ERROR: (?:\w+\(0x\w+\): )?(.*)", re.DOTALL)  # behind places in the code and in memory
_NO_FILE_PROBLEM = (MemoryError, RecursionError)

logger = logging.getLogger(__name__)


def check_components(path: Path, components: int | str) -> None:
    """Refuses colour and complex numbers."""
    if components != 1:
        raise DatasetError(
            f"'{path}': voxels of {components} values, expected one real number a voxel. Convert colour or complex "
            "images to greyscale."
        )


def check_dimensions(path: Path, shape: tuple[int, ...]) -> None:
    """Refuses all but three dimensions, and any number of further ones of length 1."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DatasetError(
            f"'{path}': {len(shape)} dimensions, shape {tuple(map(int, shape))}; expected one volume of three "
            "dimensions. Store each volume of a series, or the stack of slices, as a file of its own."
        )
    if any(size < 1 for size in shape):
        raise DatasetError(
            f"'{path}': shape {tuple(map(int, shape))}, expected at least one voxel. Export the file again."
        )


def check_spacing(path: Path, spacing: Iterable[float]) -> None:
    """Refuses spacings that are missing, zero or no numbers."""
    spacing = np.asarray(list(spacing), float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise DatasetError(
            f"'{path}': its header does not say how far voxels are apart (spacing {spacing.tolist()}), expected "
            "millimetres above 0 along each axis. Export the file again, or set its spacing from the original series."
        )


ENOUGH = 16 << 20  # bytes beyond what was expected, after which it is clear that there are too many


def check_amount(path: Path, found: int, expected: int, *, kind: str, where: str = "") -> None:
    """Compares the bytes of voxels that there are with those that the header declares.

    Args:
        path: of the file.
        found, expected: bytes, uncompressed.
        kind: of file that was expected, such as "NIfTI file".
        where: says where they were found.
    """
    if found == expected:
        return
    if found < expected:
        cause = f"it ends too early: {found:,} bytes of voxels{where} in place of {expected:,}"
        remedy = "It is truncated: copy or download it again"
    else:
        cause = f"more voxels than its header declares: {found:,} bytes{where} in place of {expected:,}"
        remedy = "Its header may be damaged: copy or download it again"
    raise DatasetError(f"'{path}': cannot be read ({cause}), expected a complete {kind}. {remedy}.")


def unplaced(path: Path, default_axcodes: str | None, *, spacing: Iterable[float], found: str) -> np.ndarray:
    """The affine of a file that does not say where its axes point.

    Readers fill this in, nibabel with LAS+, ITK with LPS+, and a left kidney becomes a right one without a word.
    """
    if default_axcodes is None:
        raise DatasetError(
            f"'{path}': its header does not say where its axes point ({found}), so left and right cannot be told "
            "apart. Export the file again from the original series; or, if you know the axes, state them for all such "
            "files, as in --default_axcodes LAS: the first axis towards the patient's left, the second to the front, "
            "the third to the top."
        )
    logger.warning("'%s': %s; taken as %s.", path, found, default_axcodes)
    return oriented(default_axcodes, spacing)


def oriented(axcodes: str, spacing: Iterable[float]) -> np.ndarray:
    """The affine ``(4, 4)`` with axes towards ``axcodes`` and the first voxel at the origin."""
    if len(axcodes) != 3 or sorted("RLAPSI".find(code) // 2 for code in axcodes.upper()) != [0, 1, 2]:
        raise SettingError(
            f"default_axcodes is '{axcodes}'; expected one letter each of R or L, A or P, S or I, such as 'LAS'."
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, ((world, sign), size) in enumerate(zip(axcodes2ornt(axcodes.upper()), spacing)):
        affine[int(world), axis] = sign * size
    return affine


def turn_of(affine: np.ndarray) -> np.ndarray:
    """How the axes of a volume are turned to be those of :data:`AXCODES`, as ``nibabel.apply_orientation`` takes it."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(AXCODES))


def oriented_grid(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of a volume once its axes are those of :data:`AXCODES`, as MONAI's ``Orientation`` turns it."""
    turn = turn_of(affine)
    turned = np.empty(3, int)
    turned[turn[:, 0].astype(int)] = shape
    return affine @ inv_ornt_aff(turn, shape), tuple(turned.tolist())


def place_within(affine: np.ndarray, shape: Sequence[int], whole: np.ndarray) -> tuple[slice, ...]:
    """Which voxels of a grid along the same axes a part of it holds.

    Args:
        affine: of the part.
        shape: of the part.
        whole: affine of the grid.
    """
    first = np.rint(np.linalg.solve(whole, affine)[:3, 3]).astype(int).tolist()
    return tuple(slice(start, start + size) for start, size in zip(first, shape))


def beyond(part: Sequence[slice], shape: Sequence[int]) -> list[tuple[int, int]]:
    """How far a part reaches over the start and the end of each axis of a grid, in voxels."""
    return [(max(-side.start, 0), max(side.stop - size, 0)) for side, size in zip(part, shape)]


def _axes_on(affine: np.ndarray, onto: np.ndarray) -> list[tuple[int, int, int]]:
    """For each axis of another grid the axis of a grid that it runs along, 1 or -1 as it does, and where it begins.

    Args:
        affine: of the grid.
        onto: affine of the other one, whose axes may be in another order or turned.
    """
    steps = np.rint(np.linalg.solve(affine, onto)).astype(int)  # along the grid's axes, for one of the other's
    order = np.abs(steps[:3, :3]).argmax(0).tolist()
    return [(along, int(np.sign(steps[along, axis])), int(steps[along, 3])) for axis, along in enumerate(order)]


def part_on(affine: np.ndarray, shape: Sequence[int], onto: np.ndarray, size: Sequence[int]) -> tuple[slice, ...]:
    """Which voxels of another grid lie on a grid.

    Args:
        affine: of the grid.
        shape: of the grid.
        onto: affine of the other one, whose axes may be in another order or turned.
        size: shape of the other one.
    """
    part = []
    for (along, step, first), length in zip(_axes_on(affine, onto), size):
        start, stop = (-first, shape[along] - first) if step > 0 else (first - shape[along] + 1, first + 1)
        part.append(slice(max(start, 0), min(stop, length)))
    return tuple(part)


def seen_on(voxels: np.ndarray, affine: np.ndarray, onto: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a grid as another sees them that is a part of it, whose axes may be in another order or turned.

    Args:
        voxels: ``(I, J, K)``.
        affine: of theirs.
        onto: affine of the other grid.
        shape: of the other grid.

    Returns:
        A view of ``voxels``, of that shape.
    """
    axes, taken = _axes_on(affine, onto), []
    for (_, step, first), size in zip(axes, shape):
        last = first + step * size
        taken.append(slice(first, last if last >= 0 else None, step))
    return voxels.transpose([along for along, *_ in axes])[tuple(taken)]


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine is finite and has three independent axes."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    spacing = voxel_sizes(affine)
    # the determinant of the unit axes: 1 for a box, 0 for axes in one plane
    return bool((spacing > 0).all()) and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3


def is_sheared(affine: np.ndarray) -> bool:
    """Whether axes are not perpendicular, as in CT with a tilted gantry; some programs open no such grid."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3)


def voxel_volume(affine: np.ndarray) -> float:
    """Cubic millimetres that a voxel takes, on a sheared grid too, where it is less than the product of its sizes."""
    if is_sheared(affine):
        return float(abs(np.linalg.det(affine[:3, :3])))
    return float(np.prod(voxel_sizes(affine)))


def upright_grid(affine: np.ndarray, shape: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a grid with perpendicular axes that holds all of a sheared one, with its voxels as far apart.

    Args:
        affine: ``(4, 4)``.
        shape: of the sheared grid, along its three axes.
    """
    axes, _ = np.linalg.qr(affine[:3, :3])
    axes = axes * np.sign((axes * affine[:3, :3]).sum(0))  # each still to the same side
    spacing = (axes * affine[:3, :3]).sum(0)
    corners = apply_affine(affine, list(product(*((0, size - 1) for size in shape)))) @ axes
    low, high = corners.min(0), corners.max(0)
    upright = np.eye(4)
    upright[:3, :3], upright[:3, 3] = axes * spacing, axes @ low
    return tuple(int(size) for size in np.ceil((high - low) / spacing - 1e-6) + 1), upright


def unreadable(path: Path, error: Exception, kind: str) -> str:
    """In words why a library could not read a file.

    Args:
        path: of the file.
        error: what the library raised.
        kind: of file that was expected, such as "NIfTI file".
    """
    text = str(error).strip()
    reason = (text.splitlines() or [""])[-1].strip() or type(error).__name__
    if (told := _TOLD_BY_ITK.search(text)) and not reason.startswith("["):  # as the last line of NRRD's library does
        reason = " ".join(told[1].split())
    cause, expected = f"{type(error).__name__}: {reason}", f"a complete {kind}"
    remedy = "Its header may be damaged, or written against the standard: copy or download it again, or export it again"
    if isinstance(error, _NO_FILE_PROBLEM):
        cause, expected = f"it does not fit into memory: {reason}", f"a {kind} of a size that does"
        remedy = "Use a machine with more memory, or resample the volume"
    elif isinstance(error, EOFError):
        cause, remedy = f"it ends too early: {reason}", "It is truncated: copy or download it again"
    elif isinstance(error, (zlib.error, BadGzipFile)):
        cause, remedy = f"its compressed data are damaged: {reason}", "To mend it, copy or download it again"
    elif isinstance(error, OSError) and error.errno:
        cause = (error.strerror or reason).lower()
        remedy = _REMEDIES.get(error.errno, "Try again, or copy or download it again")
    return f"'{path}': cannot be read ({cause}), expected {expected}. {remedy}."


def is_mistake(error: Exception) -> bool:
    """Whether an error is one of the program, and not of what a file holds.

    What goes wrong in a library that reads a file, whatever its kind, is due to the file; so is what code in C raises,
    which has no frame of its own, unless it is of a kind that only wrong code gives.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1].filename if frames else "<unknown>"
    in_library = place.startswith("<") or any(each in Path(place).resolve().parents for each in _LIBRARIES)
    return isinstance(error, _MISTAKES) and not in_library


_LIBRARIES = {Path(sysconfig.get_path(each)).resolve() for each in ("stdlib", "purelib", "platlib")}
_MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError, NotImplementedError)
_REMEDIES = {
    errno.EACCES: "Ask its owner for permission to read it",
    errno.EPERM: "Ask its owner for permission to read it",
    errno.ENOENT: "Restore the file, or leave the case out",
    errno.EIO: "The disk may be failing: copy the file from its source again",
    errno.EMFILE: "Close other programs, or raise the limit of open files",
}
