"""What tests of preparing data share: archives, what is in prepared folders, and a training on them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.helpers.workflows import SETTINGS, run

# how DICOM stores the axial slices of simple_label(): columns to the left, rows to the back
AXIAL = np.array([[-2.0, 0, 0, 78], [0, -2.0, 0, 70], [0, 0, 5.0, 0], [0, 0, 0, 1]])


def zipped(folder: Path, inside: str = "") -> Path:
    """Archive of everything in a folder, below the folder ``inside``."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(inside) / file.relative_to(folder))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def canonical(path: Path) -> nib.Nifti1Image:
    """A volume with axes to the patient's right, front and top."""
    return nib.as_closest_canonical(nib.load(path))


def overlay_of(folder: Path) -> dict:
    return json.loads((folder / "overlay.json").read_text())


def train_and_evaluate(folder: Path, backbone_file: Path, *overlays: Path, **settings) -> dict:
    """Metrics after training and evaluating on prepared data, with nothing but the network made small."""
    data = ("image_pattern", "label_pattern", "train_cases", "label_map", "background_values")
    small = {key: value for key, value in SETTINGS.items() if key not in data} | {
        "output_dir": str(folder),
        "prior_file": str(folder / "model.pt"),
        "backbone_checkpoint": str(backbone_file),
        **settings,
    }
    (folder / "small.json").write_text(json.dumps(small))
    overlays = (*overlays, folder / "small.json")
    run("training", *overlays)
    run("evaluating", *overlays)
    return json.loads((folder / "evaluation/metrics.json").read_text())
