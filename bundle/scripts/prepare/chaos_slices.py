"""One patient of CHAOS: DICOM slices and PNG masks, joined into a volume and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError

from ..data.datalists import LabelMap, natural_order
from ..data.volumes import Volume, load_volume
from ..errors import DatasetError, listed
from .anatomy import HEIGHTS, SIDES, misplaced_organs

CHAOS_MASK_VALUES = (0, 63, 126, 189, 252)  # background, liver, right kidney, left kidney, spleen: label values 0 ... 4
PLACE_TOLERANCE = 0.1  # of a voxel, by which a mask's pixel may lie beside the voxel it belongs to


class JoinedSlices(NamedTuple):
    """One volume and its label, both ``(I, J, K)``, and whether "name" or "order" paired slices and masks."""

    image: Volume
    label: Volume
    paired: str


def join_slices(paths: Sequence[Path], label_map: LabelMap) -> JoinedSlices:
    """A volume and its label of the files of a case."""
    slices = [path for path in paths if path.suffix.lower() == ".dcm"]
    masks = sorted((path for path in paths if path.suffix.lower() == ".png"), key=_by_name)
    place = slices[0].parents[1] if slices else masks[0].parents[1]
    if len(slices) != len(masks):
        raise DatasetError(
            f"'{place}': {len(slices)} slices and {len(masks)} masks, expected one mask a slice. Extract the "
            "archive again."
        )
    image = load_volume(slices[0].parent)
    if image.voxels.shape[2] != len(slices):
        raise DatasetError(
            f"'{slices[0].parent}': {image.voxels.shape[2]} slices, {len(slices)} of them in files ending in .dcm, as "
            "expected of all. Extract the archive again."
        )
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in slices}
    pairs, paired = _paired(place, headers, masks)
    label = np.zeros(image.voxels.shape, np.uint8)
    for path, mask in pairs:
        values = _mask_values(mask, (int(headers[path].Rows), int(headers[path].Columns)))
        label[_voxels_of_slice(headers[path], image, path)] = np.searchsorted(CHAOS_MASK_VALUES, values)
    misplaced = misplaced_organs(label, image.affine, label_map, (*SIDES, *HEIGHTS))
    if misplaced:
        raise DatasetError(
            f"'{place}': {'; '.join(misplaced)}. Either the masks belong to other slices than their names say, or the "
            "files' positions are wrong. Extract the archive again."
        )
    return JoinedSlices(image, Volume(label, image.affine), paired)


def _paired(
    place: Path, headers: Mapping[Path, pydicom.Dataset], masks: Sequence[Path]
) -> tuple[list[tuple[Path, Path]], str]:
    by_stem = {path.stem.lower(): path for path in masks}
    if by_stem.keys() == {path.stem.lower() for path in headers}:
        return [(path, by_stem[path.stem.lower()]) for path in headers], "name"
    slices = sorted(headers, key=_by_name)
    heights = [float(headers[path].ImagePositionPatient[2]) for path in slices]
    if heights != sorted(heights):  # then the first mask may be of the first file as well as of the lowest slice
        raise DatasetError(
            f"'{place}': masks are named otherwise than slices ('{masks[0].name}', '{slices[0].name}'), and the "
            "slices' names do not follow their positions from the feet upwards, so it is uncertain which belong "
            "together. Rename each mask like its slice."
        )
    return list(zip(slices, masks)), "order"


def _by_name(path: Path) -> tuple:
    return natural_order(path.name)


def _mask_values(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Grey values ``(rows, columns)`` of a mask."""
    try:
        with Image.open(path) as picture:
            # 16 bits a pixel are grey already, and would be clipped
            values = np.asarray(picture if picture.mode.startswith("I") else picture.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DatasetError(
            f"'{path}': cannot be read ({error}), expected a whole PNG. Extract the archive again."
        ) from error
    if values.shape != shape:
        raise DatasetError(
            f"'{path}': {values.shape[0]} rows and {values.shape[1]} columns, expected {shape[0]} and {shape[1]} as in "
            "its slice. Extract the archive again."
        )
    others = sorted(set(np.unique(values).tolist()) - set(CHAOS_MASK_VALUES))
    if others:
        raise DatasetError(
            f"'{path}': grey values {listed(others)}, expected only {listed(CHAOS_MASK_VALUES)} (background, liver, "
            "right kidney, left kidney, spleen). A mask that was resized or recompressed cannot be used: extract the "
            "archive again."
        )
    return values


def _voxels_of_slice(header: pydicom.Dataset, image: Volume, path: Path) -> tuple[np.ndarray, ...]:
    """Indices along the volume's axes, ``(rows, columns)`` each, of the voxels where the pixels of a slice lie."""
    along_row, along_column = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = (float(size) for size in header.PixelSpacing)
    rows, columns = np.indices((int(header.Rows), int(header.Columns)))
    places = (
        np.array(header.ImagePositionPatient, float)
        + rows[..., None] * between_rows * along_column
        + columns[..., None] * between_columns * along_row
    )
    places = places * (-1, -1, 1)  # DICOM points to the patient's left and back, affines to the right and front
    exact = nib.affines.apply_affine(np.linalg.inv(image.affine), places)
    indices = np.rint(exact).astype(int)
    beside = float(np.abs(exact - indices).max())
    if beside > PLACE_TOLERANCE or indices.min() < 0 or (indices >= image.voxels.shape).any():
        raise DatasetError(
            f"'{path}': its pixels lie up to {beside:.2g} of a voxel beside those of the volume, expected on them. The "
            "slices of the series do not lie on one grid: leave the volume out."
        )
    return tuple(np.moveaxis(indices, -1, 0))
