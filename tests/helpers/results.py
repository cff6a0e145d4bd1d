"""Results of inferences that ran without a network."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np


def write_label_map(path: Path, description: str = "") -> None:
    """A label map without organs, of 4 x 5 x 6 voxels."""
    result = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4))
    result.header["descrip"] = description.encode()
    nib.save(result, path)
