"""Scans in other fields of view: a data set's volumes cut on all four sides of their slices, in air on one axis, and of
some of their slices.

    python -m benchmarks.fields --dataset_dir data/chaos_t2spir --output data/fields
    diffusam evaluate data/fields -o runs/fields --modality mr
        --label_map "{'spleen': 4, 'right kidney': 2, 'left kidney': 3, 'liver': 1}"

An organ that is cut is cut in the label too. What is measured is :func:`scripts.data.body.field_of_body`;
``--body_air False`` at the second command's end measures without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scripts.errors import DatasetError, install
from scripts.files import whole_file

from benchmarks.program import run_command


def main(
    dataset_dir: str,
    output: str,
    image_pattern: str = "image_{case}.nii.gz",
    label_pattern: str = "label_{case}.nii.gz",
    cases: Sequence[str] = ("21", "22", "3"),
    cut: Sequence[float] = (20, 30, 40, 50),
    ratios: Sequence[float] = (1.5, 2.0),
    air: float = 0.0,
    parts: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes the volumes and their labels, each as it is and in every other field.

    Args:
        dataset_dir: of NIfTI files whose slices lie along the third axis.
        output: folder; what is there of these names is replaced.
        image_pattern, label_pattern: of the files, in both folders.
        cases: those that are taken.
        cut: mm, on each of four sides.
        ratios: of a field's first side to its second, air being added to both ends of the first.
        air: the value of it: -1024 in CT.
        parts: of the slices, from which share of all to which: ``[[0, 0.75]]`` leaves the last quarter out.

    Raises:
        DatasetError: a field is smaller than what is cut from it.
    """
    install()
    for case in (str(each) for each in cases):
        for pattern, value in ((image_pattern, air), (label_pattern, 0)):
            volume = nib.load(Path(dataset_dir) / pattern.format(case=case))
            voxels = np.asanyarray(volume.dataobj)  # once: it may be compressed
            spacing = nib.affines.voxel_sizes(volume.affine)
            fields = {case: np.zeros((3, 2), int)}
            for mm in cut:
                rows, columns = np.rint(mm / spacing[:2]).astype(int)
                fields[f"{case}_cut{mm:g}"] = -np.array([[rows, rows], [columns, columns], [0, 0]])
            first, second, slices = volume.shape
            for ratio in ratios:
                ends = max(0, round((ratio * second * spacing[1] / spacing[0] - first) / 2))
                fields[f"{case}_ratio{ratio:g}"] = np.array([[ends, ends], [0, 0], [0, 0]])
            for start, end in parts:
                cut_off = round(start * slices), slices - round(end * slices)
                fields[f"{case}_part{start:g}-{end:g}"] = -np.array([[0, 0], [0, 0], cut_off])
            for name, around in fields.items():
                with whole_file(Path(output) / pattern.format(case=name)) as temporary:
                    nib.save(_in_field(volume, voxels, around, value), temporary)


def _in_field(volume: nib.Nifti1Image, voxels: np.ndarray, around: np.ndarray, value: float) -> nib.Nifti1Image:
    """A volume with so many voxels more, or less, at the start and the end of each axis."""
    sizes = np.array(volume.shape) + around.sum(1)
    if (sizes < 1).any():
        raise DatasetError(
            f"'{volume.get_filename()}': a field of {volume.shape} voxels cannot be cut by {(-around).tolist()}, at "
            "the start and the end of each axis. Give smaller numbers with --cut, or other --parts."
        )
    inside = tuple(slice(max(-first, 0), size - max(-last, 0)) for (first, last), size in zip(around, volume.shape))
    voxels = np.pad(voxels[inside], around.clip(0), constant_values=value)
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ around[:, 0]
    return nib.Nifti1Image(voxels, affine)


if __name__ == "__main__":
    run_command(main)
