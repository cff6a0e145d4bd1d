"""What several test modules share: the bundle on the path, and small volumes as files."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"  # the bundle root
sys.path.insert(0, str(BUNDLE))

SHAPE = (40, 36, 8)
SPACING = (2.0, 2.0, 5.0)
ORGAN_VALUES = {"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 4}

# a box for each organ, apart from one another: ranges of voxels along the three axes
ORGAN_BOXES = {
    1: ((4, 10), (4, 12), (2, 6)),
    2: ((26, 32), (4, 10), (1, 7)),
    3: ((12, 18), (4, 10), (1, 7)),
    4: ((20, 36), (14, 30), (2, 8)),
}
ORGAN_INTENSITIES = {1: 110, 2: 160, 3: 160, 4: 130}  # Hounsfield units, contrast-enhanced


def save_volume(path: str | Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes a NIfTI file, by default with :data:`SPACING` and axes to the right, front and top."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return path


def simple_label() -> np.ndarray:
    """Label ``(40, 36, 8)`` with one box an organ."""
    label = np.zeros(SHAPE, np.uint8)
    for value, box in ORGAN_BOXES.items():
        label[tuple(slice(*side) for side in box)] = value
    return label


def simple_image(label: np.ndarray, seed: int = 0) -> np.ndarray:
    """CT-like intensities of a label: an ellipse of soft tissue in air, organs of their own brightness, noise."""
    x, y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    image = np.where((x**2 + y**2 < 1)[..., None], 40.0, -1000.0) * np.ones(SHAPE)
    for value, intensity in ORGAN_INTENSITIES.items():
        image[label == value] = intensity
    return (image + np.random.default_rng(seed).normal(0, 8, SHAPE)).astype(np.int16)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The bundle root."""
    return BUNDLE


@pytest.fixture(scope="session")
def write_volume():
    """``write_volume(path, array, affine=None)``: see :func:`save_volume`."""
    return save_volume


def save_dataset(folder: Path) -> Path:
    """Writes ``image_{case}.nii.gz`` and ``label_{case}.nii.gz`` of the cases a, b, c, d."""
    label = simple_label()
    for seed, case in enumerate("abcd"):
        save_volume(folder / f"image_{case}.nii.gz", simple_image(label, seed))
        save_volume(folder / f"label_{case}.nii.gz", label)
    return folder


@pytest.fixture(scope="session")
def write_dataset():
    """``write_dataset(folder)``: see :func:`save_dataset`."""
    return save_dataset


@pytest.fixture
def tiny_dataset(tmp_path) -> Path:
    """Folder with ``image_{case}.nii.gz`` and ``label_{case}.nii.gz`` of the cases a, b, c, d."""
    return save_dataset(tmp_path / "dataset")
