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
_AXES = {  # of a MetaImage header, numbers for each axis, or for each pair of axes
    **dict.fromkeys(["elementspacing", "elementsize", "offset", "position", "origin", "centerofrotation"], 1),
    **dict.fromkeys(["transformmatrix", "rotation", "orientation"], 2),
}
_ONE_MEANING = (  # of a MetaImage header, keys of which ITK takes one, whatever another says
    ("transformmatrix", "rotation", "orientation"),
    ("offset", "position", "origin"),
)
_SAME_NUMBER = 1e-4  # as which two of them are written


def check_axes(path: Path, fields: dict[str, str]) -> None:
    """Compares the numbers of a MetaImage header with its number of axes, by which ITK reads them: of -1 it hangs."""
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
    for names in _ONE_MEANING:
        stated = {name: fields[name] for name in names if name in fields}
        numbers = [[float(value) for value in text.split()] for text in stated.values()]
        if not all(np.allclose(each, numbers[0], rtol=1e-5, atol=_SAME_NUMBER) for each in numbers):
            texts = [f"{name} {text}" for name, text in stated.items()]
            raise DatasetError(
                f"'{path}': its header says in {len(stated)} ways where voxels lie, differently ({listed(texts)}), "
                "expected one, or the same. Remove what is wrong, or export the file again."
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
        directions = re.findall(r"\([^)]*\)", fields.get("space directions", ""))
        if "space directions" in fields and len(directions) != 3:  # ITK takes any direction for one that is missing
            raise DatasetError(
                f"'{path}': its header has '{fields['space directions']}' for 'space directions', expected three of "
                "three numbers each. Export the file again."
            )
        is_placed = "space directions" in fields and fields.get("space", "").lower() in _NRRD_SPACES
        found = "its header names no space such as 'left-posterior-superior' with 'space directions'"
    else:
        spaced = "elementspacing" in fields or "elementsize" in fields
        is_placed = any(key in fields for key in ("transformmatrix", "rotation", "orientation"))
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
