"""What may not be read or written is said of that file, by its name, and takes nothing else along.

Permissions do not bind root, as which tests run in many containers: they become another user for what they look at.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import inference_inputs
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError, RefusedError, system_error
from scripts.places import Places, refuse_blocked
from scripts.weights import load_tensors, save_atomically

from tests.conftest import save_dicom_series

NOBODY = 65534
VOXELS = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for each in folder.rglob("*"):
        if each.is_dir():
            each.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(act: Callable) -> object:
    """What an act returns, or raises, for whoever owns no file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        return act()
    finally:
        if user == 0:
            os.seteuid(user)


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(VOXELS, np.diag([-2.0, -2, 5, 1])), path)
    return path


def test_a_folder_in_which_nothing_may_be_written_is_read(shared):
    path = image(shared / "scans/a.nii.gz")
    series = save_dicom_series(shared / "scans/b", VOXELS)
    for folder in (path.parent, series):
        folder.chmod(0o555)

    def read() -> list[np.ndarray]:
        return [load_volume(item["image"]).voxels for item in inference_inputs(path.parent)]

    for voxels in as_nobody(read):
        np.testing.assert_array_equal(voxels, VOXELS)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=["closed", "only to be listed", "not to be listed"])
@pytest.mark.parametrize("pattern", ["", "**/*", "*"])
def test_a_folder_that_is_closed_is_listed_and_the_others_are_taken(shared, mode, pattern):
    image(shared / "scans/open/a.nii.gz")
    image(shared / "scans/shut/b.nii.gz")
    (shared / "scans/shut").chmod(mode)

    items = as_nobody(lambda: inference_inputs(shared / "scans" / pattern))

    assert [Path(item["image"]).name for item in items if "problem" not in item] == ["a.nii.gz"]
    problems = [item["problem"] for item in items if "problem" in item]
    assert len(problems) == 1 and "shut" in problems[0]
    assert "cannot be opened (Permission denied). Ask for permission to read it." in problems[0]


@pytest.mark.parametrize("name", ["{index:04d}.dcm", "{index:04d}"], ids=["with a suffix", "without"])
def test_a_series_with_a_slice_that_may_not_be_read_is_refused(shared, name):
    series = save_dicom_series(shared / "a", VOXELS, name=name)
    shut = series / name.format(index=2)  # the last, without which the others fill a box evenly
    shut.chmod(0)

    with pytest.raises(DatasetError) as caught:
        as_nobody(lambda: load_volume(series))

    assert "permission denied" in str(caught.value) and "Ask its owner" in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".img", ".mha", ".nrrd", ".mgz", ".dcm"])
def test_an_image_that_may_not_be_read_says_so(shared, suffix):
    path = shared / f"a{suffix}"
    if suffix in (".hdr", ".img"):
        nib.save(nib.Nifti1Pair(VOXELS, np.diag([-2.0, -2, 5, 1])), shared / "a.hdr")
    else:
        path.write_bytes(b"anything")
    path.chmod(0)

    with pytest.raises(DatasetError) as caught:
        as_nobody(lambda: load_volume(shared / "a.hdr" if suffix == ".img" else path))

    assert f"'{path}': cannot be read (permission denied)" in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "cache/a.pt", "checkpoint.pt"])
def test_a_file_of_tensors_that_may_not_be_read_is_a_line(shared, name):
    """And is not taken for a damaged one, which a cache would make again in its place."""
    path = shared / name
    path.parent.mkdir(exist_ok=True)
    save_atomically({"model": {}}, path)
    path.chmod(0)

    with pytest.raises(OSError) as caught:
        as_nobody(lambda: load_tensors(path, "trained prior", remedy=""))

    assert system_error(caught.value) == (
        f"'{path}': permission denied (PermissionError). Ask for permission, or use another folder."
    )


@pytest.mark.parametrize("deep", ["", "new/deep"])
def test_an_output_that_may_not_be_written_is_refused_before_the_run(shared, deep):
    folder = shared / "out"
    folder.mkdir(mode=0o555)

    with pytest.raises(RefusedError, match=f"'{folder}': permission denied"):
        as_nobody(lambda: refuse_blocked(Places((folder / deep / "results.json",), ((folder / deep, "*_seg.nii.gz"),))))


def test_what_a_system_keeps_on_a_disk_is_no_image_where_nobody_may_look(shared):
    image(shared / "disk/a.nii.gz")
    image(shared / "disk/lost+found/b.nii.gz")
    assert [item["case"] for item in inference_inputs(shared / "disk")] == ["a", "lost+found_b"]
    for name in ("lost+found", "System Volume Information"):
        (shared / "disk" / name).mkdir(exist_ok=True)
        (shared / "disk" / name).chmod(0)
    items = as_nobody(lambda: inference_inputs(shared / "disk"))
    assert [item["case"] for item in items] == ["a"] and "problem" not in items[0]
