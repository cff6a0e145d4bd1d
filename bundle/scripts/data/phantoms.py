"""Procedurally generated abdominal phantoms, CT-like and T2-SPIR-like: the volumes of the embedded default.

They stand in for BTCV (portal-venous CT) and CHAOS (fat-suppressed T2 MR), which need registration or a large download,
and are a demonstration and a test bed, never the paper's data. The anatomy is painted by
:mod:`scripts.data.phantom_anatomy` and given intensities by :mod:`scripts.data.phantom_rendering`. Geometry and
intensities have random streams of their own: one seed gives one patient in both modalities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import fire
import nibabel as nib
import numpy as np

from ..console import counted
from ..errors import SettingError
from ..files import whole_file
from .phantom_anatomy import build_body
from .phantom_rendering import render

logger = logging.getLogger(__name__)

MODALITIES = ("ct", "mr")
FIELD_OF_VIEW = (380.0, 310.0, 185.0)  # smallest extent in mm that holds the largest body, and all organs along z


class Phantom(NamedTuple):
    """A patient: image int16, label uint8 (0 background, then the organs from 1), and the affine ``(4, 4)`` to RAS+."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def make_phantom(
    seed: int,
    modality: str = "ct",
    *,
    shape: Sequence[int] = (192, 192, 40),
    spacing: Sequence[float] = (2.0, 2.0, 5.0),
) -> Phantom:
    """One patient.

    Args:
        seed: of the patient; the geometry does not depend on the modality, nor, but for sampling, on the grid.
        modality: ``"ct"`` (HU-like) or ``"mr"`` (T2-SPIR-like, 0 to about 1500 in arbitrary units).
        shape: voxels along the patient's right, anterior and superior direction.
        spacing: millimetres between voxels along the same axes; ``shape * spacing`` must cover ``FIELD_OF_VIEW``.

    Returns:
        image ``shape`` int16, label ``shape`` uint8 (0 background, then the organs from 1), and the 4x4 affine to RAS+
        millimetres with the centre of the volume at the origin.

    Raises:
        ValueError: the modality is unknown, the seed negative, or the grid has a wrong form or is too small.
    """
    _check_modality(modality)
    shape, spacing = _check_grid(shape, spacing)
    if seed < 0:
        raise SettingError(f"The seed must be 0 or more, but is {seed}.")
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing)]
    body = build_body(np.random.default_rng([seed, 0]), axes)
    image = render(body, axes, modality, np.random.default_rng([seed, 1 + MODALITIES.index(modality)]))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return Phantom(image, body.label, affine)


def write_phantoms(
    folder: str | Path,
    count: int,
    *,
    modality: str = "ct",
    first_seed: int = 0,
    shape: Sequence[int] = (192, 192, 40),
    spacing: Sequence[float] = (2.0, 2.0, 5.0),
) -> list[dict[str, str]]:
    """Writes ``image_{case}.nii.gz`` and ``label_{case}.nii.gz`` of ``count`` patients, cases ``ct000``, ``ct001``, ...

    A case is named after its modality and seed. One whose two files are there already is left as it is; a case of which
    only one file is there is written again. An interruption leaves no partial file under a final name.

    Returns:
        one dictionary a case, with the paths ``image`` and ``label``.

    Raises:
        ValueError: ``count`` is not positive, or as in ``make_phantom``.
    """
    _check_modality(modality)
    shape, spacing = _check_grid(shape, spacing)
    if count < 1:
        raise SettingError(f"The count of phantoms must be 1 or more, but is {count}.")
    if first_seed < 0:
        raise SettingError(f"The first seed must be 0 or more, but is {first_seed}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases, missing = [], []
    for seed in range(first_seed, first_seed + count):
        case = f"{modality}{seed:03d}"
        files = {key: folder / f"{key}_{case}.nii.gz" for key in ("image", "label")}
        cases.append({key: str(path) for key, path in files.items()})
        if not all(path.exists() for path in files.values()):
            missing.append((seed, files))
    logger.info(
        "Writing %d %s phantoms of %s voxels to %s (%d are there already).",
        len(missing),
        modality,
        "x".join(map(str, shape)),
        folder,
        count - len(missing),
    )
    for seed, files in counted(missing, f"writing {modality} phantoms"):
        image, label, affine = make_phantom(seed, modality, shape=shape, spacing=spacing)
        _save(files["image"], image, affine)
        _save(files["label"], label, affine)
    return cases


def phantom_dataset(folder: str | Path, count: int, *, modality: str = "ct", first_seed: int = 0) -> str:
    """The folder of a phantom data set, written on first use: what a config names as ``dataset_dir``.

    Raises:
        ValueError: the folder holds other phantoms of that modality as well, which would be segmented along with these;
            or see :func:`write_phantoms`.
    """
    asked = {
        Path(case["image"]).name for case in write_phantoms(folder, count, modality=modality, first_seed=first_seed)
    }
    others = {path.name for path in Path(folder).glob(f"image_{modality}[0-9]*.nii.gz")} - asked
    if others:
        raise SettingError(
            f"'{folder}' holds {len(asked | others)} {modality} phantoms, but {count} were asked for. Also there: "
            f"{', '.join(sorted(others))}. Ask for all of them (--phantoms {len(asked | others)}), name another folder "
            "(--dataset_dir#folder), or remove those."
        )
    return str(folder)


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    volume = nib.Nifti1Image(array, affine)
    volume.set_qform(affine, code=1)
    volume.set_sform(affine, code=1)
    volume.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:  # of several processes each may write the same phantom
        nib.save(volume, temporary)


def _check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise SettingError(f"Unknown modality {modality!r}; allowed are {', '.join(map(repr, MODALITIES))}.")


def _check_grid(shape: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    shape, spacing = tuple(shape), tuple(spacing)
    if len(shape) != 3 or any(n != int(n) or n < 1 for n in shape):
        raise SettingError(f"The shape must be three positive integers, but is {shape}.")
    if len(spacing) != 3 or not all(0 < step < float("inf") for step in spacing):
        raise SettingError(f"The spacing must be three positive numbers of millimetres, but is {spacing}.")
    extent = tuple(n * step for n, step in zip(shape, spacing))
    if any(found < needed for found, needed in zip(extent, FIELD_OF_VIEW)):
        raise SettingError(
            f"Shape {shape} at spacing {spacing} mm covers {extent} mm,"
            f" but an abdomen needs at least {FIELD_OF_VIEW} mm; take more voxels or a larger spacing."
        )
    if any(step > limit for step, limit in zip(spacing, (12.0, 12.0, 15.0))):
        raise SettingError(f"Spacing {spacing} mm is too coarse for kidneys; allowed is at most (12, 12, 15) mm.")
    return tuple(int(n) for n in shape), tuple(float(step) for step in spacing)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    fire.Fire(write_phantoms)
