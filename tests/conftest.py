"""What several test modules share: small volumes as files, and a state that no test leaves changed."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"  # the bundle root

# for networks this small, threads cost more than they give: here, and in the processes that tests start
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

gc.disable()  # while everything is imported, which stays


def pytest_collection_finish() -> None:
    """What is imported is no garbage: looking at it again and again would take as long as many a test."""
    gc.freeze()
    gc.enable()


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


def save_dicom_series(
    folder: str | Path, array: np.ndarray, affine: np.ndarray | None = None, name: str = "{index:04d}.dcm", **tags
) -> Path:
    """Writes ``(I, J, K)`` as a DICOM series of K slices with J rows and I columns; further files may be there.

    Args:
        folder: made if it is not there.
        array: 8 or 16 bit integers, as stored.
        affine: to millimetres, RAS+, as in NIfTI; by default :data:`SPACING` and axes to the left, back and top, which
            is how DICOM stores axial slices.
        name: of each file, with ``{index}``.
        tags: elements by their keywords, such as ``SeriesDescription="portal"``; a function gets the slice's index.
            None leaves an element out.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (np.diag([-2.0, -2.0, 5.0, 1.0]) if affine is None else affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    series = generate_uid()
    for index, plane in enumerate(np.moveaxis(array, -1, 0)):
        elements = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": generate_uid(),
            "SeriesInstanceUID": series,
            "Modality": "MR",
            "InstanceNumber": index + 1,
            "ImagePositionPatient": (affine @ [0, 0, index, 1])[:3].round(6).tolist(),
            "ImageOrientationPatient": (affine[:3, :2] / spacing[:2]).T.ravel().round(8).tolist(),
            "PixelSpacing": spacing[1::-1].round(6).tolist(),
            "SliceThickness": round(spacing[2], 6),
            "Columns": plane.shape[0],
            "Rows": plane.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 8 * array.itemsize,
            "BitsStored": 8 * array.itemsize,
            "HighBit": 8 * array.itemsize - 1,
            "PixelRepresentation": int(array.dtype.kind == "i"),
            "PixelData": plane.T.tobytes(),
        }
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword, value in (elements | tags).items():
            value = value(index) if callable(value) else value
            if value is not None:
                setattr(dataset, keyword, value)
        dataset.save_as(folder / name.format(index=index), enforce_file_format=True)
    return folder


@pytest.fixture(scope="session")
def write_dicom_series():
    """``write_dicom_series(folder, array, affine=None, name="{index:04d}.dcm", **tags)``: see
    :func:`save_dicom_series`.
    """
    return save_dicom_series


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


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory) -> Path:
    """A ``sam2_nano`` checkpoint with random weights."""
    from tests.helpers.workflows import nano_checkpoint

    return nano_checkpoint(tmp_path_factory.mktemp("backbone") / "sam2_nano.pt")


@pytest.fixture(scope="module", autouse=True)
def _global_state():
    """Workflows seed every library, extend the path and install a hook for uncaught errors."""
    path, hook = list(sys.path), sys.excepthook
    yield
    sys.path[:], sys.excepthook = path, hook
    from monai.utils import set_determinism  # here: the program that hands tests out to others needs none of MONAI

    set_determinism(None)
