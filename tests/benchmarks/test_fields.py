"""Scans in other fields of view: the same voxels in the same places, with more air about them or less of the body."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scripts.errors import DatasetError

from benchmarks.fields import main


def write(folder, spacing=(2.0, 2.5, 5.0)):
    affine = np.array([[-spacing[0], 0, 0, 40], [0, spacing[1], 0, -30], [0, 0, spacing[2], 7], [0, 0, 0, 1.0]])
    voxels = np.random.default_rng(0).integers(1, 200, (40, 32, 3)).astype(np.int16)
    folder.mkdir()
    for name in ("image_a", "label_a"):
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return voxels, affine


def test_voxels_stay_where_they_are(tmp_path):
    voxels, affine = write(tmp_path / "scans")

    main(
        str(tmp_path / "scans"),
        str(tmp_path / "out"),
        cases=["a"],
        cut=[10],
        ratios=[1.5, 0.5],
        air=-1024,
        parts=[(0.34, 1)],
    )

    names = ["a", "a_cut10", "a_ratio0.5", "a_ratio1.5", "a_part0.34-1"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{kind}_{name}.nii.gz" for kind in ("image", "label") for name in names
    )
    shapes = [(40, 32, 3), (30, 24, 3), (40, 32, 3), (60, 32, 3), (40, 32, 2)]
    for name, shape in zip(names, shapes):
        image, label = (nib.load(tmp_path / "out" / f"{kind}_{name}.nii.gz") for kind in ("image", "label"))
        assert image.shape == label.shape == shape and (image.affine == label.affine).all()
        assert image.get_data_dtype() == np.int16
        first = np.rint(np.linalg.solve(affine, image.affine)[:3, 3]).astype(int)
        for volume, air in ((image, -1024), (label, 0)):
            for place, found in np.ndenumerate(np.asanyarray(volume.dataobj)):
                there = first + place
                inside = (there >= 0).all() and (there < voxels.shape).all()
                assert found == (voxels[tuple(there)] if inside else air)


def test_more_than_there_is_cannot_be_cut(tmp_path):
    write(tmp_path / "scans")

    with pytest.raises(DatasetError, match="image_a.nii.gz.*cannot be cut by .*20, 20.*--cut"):
        main(str(tmp_path / "scans"), str(tmp_path / "out"), cases=["a"], cut=[40])
