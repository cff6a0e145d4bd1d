"""FreeSurfer's volumes, MGH and, compressed, MGZ: read to their end, where the checksum is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import DatasetError
from .grids import check_dimensions, check_spacing
from .nifti import opened, stored_voxels

_KIND = "MGH file"
_VERSION = (1).to_bytes(4, "big")  # with which a header begins; it is always big-endian
_PLACED_AT, _PLACED = 28, (1).to_bytes(2, "big")  # where a header says whether the rest of it states the grid


def load_mgh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(I, J, K)`` and affine ``(4, 4)`` to RAS+ millimetres.

    Args:
        path: of the file, compressed by gzip or not, whatever its name says.

    Raises:
        DatasetError: see :func:`scripts.data.volumes.load_volume`; a file that does not state its grid states no
            spacing either, so axes that are told do not help.
        Exception: whatever else reading raises.
    """
    with opened(path) as (stream, compressed):
        start = stream.read(_PLACED_AT + 2)
        if start[:4] != _VERSION:
            raise DatasetError(
                f"'{path}': cannot be read (it begins with {start[:4].hex() or 'nothing'}, and not as MGH does), "
                f"expected a complete {_KIND}. Its name may be wrong: copy or download it again, or convert it."
            )
        stream.seek(0)
        image = nib.MGHImage.from_stream(stream)
        check_dimensions(path, image.shape)
        if start[_PLACED_AT:] != _PLACED:  # FreeSurfer, and nibabel, then make up coronal slices of 1 mm
            check_spacing(path, (0, 0, 0))
        check_spacing(path, image.header.get_zooms()[:3])
        voxels = stored_voxels(path, image.dataobj, stream, compressed=compressed, kind=_KIND, footer=True)
    return voxels.reshape(voxels.shape[:3], order="A"), np.asarray(image.affine, float)
