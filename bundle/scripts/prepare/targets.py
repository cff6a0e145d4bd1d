"""Where prepared files go: whole or not at all, and none that is there is replaced unasked."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from ..console import counted
from ..data.datalists import Item
from ..data.volumes import Volume, VolumeReader
from ..errors import DatasetError, count
from ..files import json_of, whole_file
from ..inert import inert_json
from ..places import Places, refuse_blocked
from .configs import CASE


class Target:
    """A folder that each file reaches under a temporary name, so that no half of one is ever found there."""

    def __init__(self, folder: str, overwrite: bool) -> None:
        self.folder, self.overwrite = Path(folder).expanduser().resolve(), overwrite
        self.written = self.kept = 0
        if self.folder.exists() and not self.folder.is_dir():
            raise DatasetError(f"--output '{self.folder}' is a file, expected a folder, new or not. Name another one.")
        below = [(self.folder, "*.json"), *((self.folder / key, "*.nii.gz") for key in ("image", "label"))]
        refuse_blocked(Places((), tuple(below)))

    def store(
        self,
        name: str,
        write: Callable[[Path], object],
        same: Callable[[Path], bool],
        outdated: Callable[[Path], bool] = lambda path: False,
    ) -> None:
        """Writes a file unless the same one is there.

        Args:
            name: below the folder.
            write: writes the file under the name that it is given.
            same: whether the file of a name is the same.
            outdated: whether it is what this would replace without a loss.

        Raises:
            DatasetError: another one is there, and ``overwrite`` is off.
        """
        path = self.folder / name
        if path.exists():
            if same(path):
                self.kept += 1
                return
            if not (self.overwrite or outdated(path)):
                raise DatasetError(
                    f"'{path}': there already, with another content than this source gives it. Name another --output, "
                    "or replace the file with --overwrite True."
                )
        with whole_file(path) as temporary:
            write(temporary)
        self.written += 1

    def summary(self) -> str:
        """For the report: how many files were written, and where."""
        kept = f"; {self.kept} were there already" if self.kept else ""
        return f"{count(self.written, 'file')} written to '{self.folder}'{kept}."


def store_nifti(target: Target, name: str, image: nib.Nifti1Image) -> None:
    """Writes a NIfTI file; one with the same voxels and affine counts as the same file."""

    def same(path: Path) -> bool:
        try:
            there = nib.load(path)
            return np.allclose(there.affine, image.affine, atol=1e-4) and np.array_equal(there.dataobj, image.dataobj)
        except Exception:  # nothing that can be read: not the same
            return False

    target.store(name, partial(nib.save, image), same)


def nifti(volume: Volume) -> nib.Nifti1Image:
    """A volume as NIfTI, in millimetres."""
    image = nib.Nifti1Image(_compact(volume.voxels), volume.affine)
    image.header.set_xyzt_units("mm")
    return image


def _compact(voxels: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest type for integers, else in single precision."""
    if np.isfinite(voxels).all() and np.array_equal(voxels, np.rint(voxels)):
        for kind in (np.uint8, np.int16, np.int32):
            if np.iinfo(kind).min <= voxels.min() and voxels.max() <= np.iinfo(kind).max:
                return voxels.astype(kind)
    return voxels.astype(np.float32)


def store_overlay(target: Target, name: str, content: Mapping[str, object], evaluated: Collection[str] = ()) -> None:
    """Writes a JSON file that MONAI will read; see :func:`~scripts.inert.inert_json`. One that differs only since it
    has the places of a folder that was moved or copied since is replaced.
    """
    text = inert_json(content, evaluated)
    target.store(
        name,
        lambda path: path.write_text(text),
        lambda path: path.read_text() == text,
        lambda path: _moved(path, target.folder) == text,
    )


def _moved(overlay: Path, folder: Path) -> str | None:
    """The text of an overlay with the places of the folder that it lies in now; None where it does not say another."""
    try:
        text = overlay.read_text()
        before = Path(json_of(text)["output_dir"]).parent
    except (OSError, ValueError, KeyError, TypeError):
        return None
    old, new = (json.dumps(str(each))[1:-1] for each in (before, folder))
    return re.sub(f'"{re.escape(old)}(?=["/])', lambda found: f'"{new}', text)


def convert(items: Sequence[Item], target: Target, reader: VolumeReader, channel: int | None = None) -> dict[str, str]:
    """Writes every file as NIfTI; where they are, as arguments of :func:`~scripts.data.datalists.find_cases`."""
    for item in counted(items, "converting"):
        for key in ("label", "image"):
            path, name = Path(item[key]), f"{key}/{item['case']}.nii.gz"
            if key == "image" and channel is not None:
                store_nifti(target, name, nib.load(path).slicer[..., channel])
            elif path.name.endswith(".nii.gz"):
                target.store(name, partial(shutil.copyfile, path), partial(filecmp.cmp, path, shallow=False))
            else:
                store_nifti(target, name, nifti(reader.load(path)))
    return {
        "dataset_dir": str(target.folder),
        "image_pattern": f"image/{CASE}.nii.gz",
        "label_pattern": f"label/{CASE}.nii.gz",
    }
