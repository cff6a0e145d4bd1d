"""Where the voxels of NRRD and MetaImage files lie, by headers of which ITK passes over a part."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from ..errors import DatasetError, listed
from .grids import check_spacing, unplaced
from .itk_headers import is_nrrd, shape_in

# the NRRD spaces that ITK converts; the others do not say where the patient's left is
_NRRD_SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")
_MILLIMETRES = {
    **dict.fromkeys(["", "mm", "millimeter", "millimeters", "millimetre", "millimetres"], 1.0),
    **dict.fromkeys(["cm", "centimeter", "centimeters", "centimetre", "centimetres"], 10.0),
    **dict.fromkeys(["m", "meter", "meters", "metre", "metres"], 1000.0),
    **dict.fromkeys(["um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"], 0.001),
}
_PLACES = ("offset", "position", "origin", "imageposition")
_DIRECTIONS = ("transformmatrix", "rotation", "orientation")
_AXES = {  # of a MetaImage header, numbers for each axis, or for each pair of axes
    **dict.fromkeys([*_PLACES, "elementspacing", "elementsize", "centerofrotation"], 1),
    **dict.fromkeys(_DIRECTIONS, 2),
}
_ONE_MEANING = (_DIRECTIONS, _PLACES)  # of which ITK takes one, whatever another says
_SAME_NUMBER = 1e-4  # as which two of them are written


def check_axes(path: Path, fields: dict[str, str]) -> None:
    """Refuses axes of which ITK would hang, or make up what is not stated, or turn round what is negative."""
    if is_nrrd(path):
        _check_directions(path, fields)
        return
    axes = len(shape_in(path, fields))
    if fields.get("ndims") != str(axes):
        raise DatasetError(
            f"'{path}': cannot be read (its header states NDims {fields.get('ndims', 'nowhere')}, and the sizes of "
            f"{axes} axes), expected the same number. Its header may be damaged: copy or download it again."
        )
    for name, power in _AXES.items():
        values = fields.get(name, "").split()
        try:
            finite = bool(np.isfinite([float(value) for value in values]).all())
        except ValueError:
            finite = False
        if name in fields and not (finite and len(values) == axes**power):
            raise DatasetError(
                f"'{path}': cannot be read (its header has '{fields[name]}' for {name}), expected {axes**power} finite "
                "numbers. Its header may be damaged: copy or download it again."
            )
    for name in _DIRECTIONS:
        _check_independent(path, fields.get(name), np.reshape(fields.get(name, "").split(), (-1, axes)).astype(float))
    if spacing := fields.get("elementspacing", fields.get("elementsize")):
        check_spacing(path, list(map(float, spacing.split()))[:3])
    for names in _ONE_MEANING:
        stated = {name: fields[name] for name in names if name in fields}
        numbers = [[float(value) for value in text.split()] for text in stated.values()]
        if not all(np.allclose(each, numbers[0], rtol=1e-5, atol=_SAME_NUMBER) for each in numbers):
            texts = [f"{name} {text}" for name, text in stated.items()]
            raise DatasetError(
                f"'{path}': its header says in {len(stated)} ways where voxels lie, differently ({listed(texts)}), "
                "expected one, or the same. Remove what is wrong, or export the file again."
            )


def _check_directions(path: Path, fields: dict[str, str]) -> None:
    """The same of NRRD. ITK takes any direction, of 1 mm, for one that is missing, or NaN, which means the same."""
    stated = fields.get("space directions")
    if stated is None:
        try:
            spacing = [float(value) for value in fields.get("spacings", "").split()]
        except ValueError:  # of which ITK has words
            return
        check_spacing(path, spacing if len(spacing) == 3 else ())
        return
    try:
        directions = [[float(value) for value in each.split(",")] for each in re.findall(r"\(([^)]*)\)", stated)]
        numbers = np.array(directions, dtype=float)
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (3, 3) or not np.isfinite(numbers).all():
        raise DatasetError(
            f"'{path}': its header has '{stated}' for 'space directions', expected three of three finite numbers each. "
            "Export the file again."
        )
    _check_independent(path, stated, numbers)


def _check_independent(path: Path, stated: str | None, directions: np.ndarray) -> None:
    if stated is not None and np.linalg.matrix_rank(directions) < len(directions):
        raise DatasetError(
            f"'{path}': the directions of its axes do not span space ({stated}), expected independent ones. Export the "
            "file again from the original series."
        )


def placed(path: Path, fields: dict[str, str], affine: np.ndarray, default_axcodes: str | None) -> np.ndarray:
    """The affine ``(4, 4)`` to RAS+ millimetres.

    Args:
        path: of the file with the header.
        fields: of it.
        affine: as ITK has it, in the header's own unit.
        default_axcodes: see :func:`scripts.data.volumes.load_volume`.

    Raises:
        DatasetError: a unit, directions or spacings that are missing or no use.
    """
    affine = np.asarray(affine, dtype=float)
    affine[:3] *= _millimetres(path, fields)
    if is_nrrd(path):
        spaced = "space directions" in fields or "nan" not in fields.get("spacings", "nan").lower()
        is_placed = "space directions" in fields and fields.get("space", "").lower() in _NRRD_SPACES
        found = "its header names no space such as 'left-posterior-superior' with 'space directions'"
    else:
        spaced = "elementspacing" in fields or "elementsize" in fields
        is_placed = any(key in fields for key in _DIRECTIONS)
        found = "its header has no TransformMatrix"
    check_spacing(path, voxel_sizes(affine) if spaced else (0, 0, 0))
    if not is_placed:
        affine = unplaced(path, default_axcodes, spacing=voxel_sizes(affine), found=found)
    return affine


def _millimetres(path: Path, fields: dict[str, str]) -> float:
    """What the header's unit is in millimetres, which is what a header without a unit means."""
    if not is_nrrd(path):
        stated = [fields.get("distanceunits", "")]
    elif "space directions" in fields:
        stated = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    else:
        stated = re.findall(r'"([^"]*)"', fields.get("units", ""))
    found = {unit.strip().lower() for unit in stated if unit.strip() and unit.strip() != "?"} or {""}
    factors = {_MILLIMETRES.get(unit) for unit in found}
    if None in factors or len(factors) > 1:
        raise DatasetError(
            f"'{path}': its header measures in {listed(sorted(found))}, expected mm, cm, m or um, the same along all "
            "axes. Correct the header, or export the file again."
        )
    return factors.pop()  # type: ignore[return-value]
