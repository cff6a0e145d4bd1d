"""Extensions of a NIfTI header, which stand between it and the voxels: never read as voxels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError

SHAPE = (10, 8, 6)
VOXELS = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
VOXELS[..., 4:] = 0  # as where the field of view ends: zeros that are moved behind the voxels look like filling
KINDS = {"NIfTI-1": (nib.Nifti1Image, 352, (108, "f")), "NIfTI-2": (nib.Nifti2Image, 544, (168, "q"))}


def written(
    folder: Path,
    kind: str,
    *,
    offset: int,
    before: bytes = b"",
    flag: int = 1,
    suffix: str = ".nii",
    order: str = "<",
    behind: bytes = b"",
) -> Path:
    """A file with something before its voxels, whose header says that these begin so many bytes behind it."""
    image, start, (place, number) = KINDS[kind]
    made = image(VOXELS.astype(f"{order}i2"), np.diag([-2.0, -2, 5, 1]), image.header_class(endianness=order))
    made.header.set_data_dtype(np.int16)
    header = bytearray(made.header.binaryblock)
    struct.pack_into(order + number, header, place, start + offset)
    content = bytes(header) + bytes([flag, 0, 0, 0]) + before
    content += VOXELS.astype(f"{order}i2").tobytes(order="F") + behind
    path = folder / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return path


def extension(length: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}ii", length, 6) + b"x" * (length - 8)


every_file = pytest.mark.parametrize(
    "kind, suffix, order", [(kind, suffix, order) for kind in KINDS for suffix in (".nii", ".nii.gz") for order in "<>"]
)
CROWDED = {  # bytes of extensions, and the place of voxels
    "no room": ([64], 0),
    "no room for one that is small": ([16], 0),
    "less room": ([64], 16),
    "less room for the second": ([32, 64], 80),
    "room for its length alone": ([64], 8),
}


@every_file
@pytest.mark.filterwarnings("ignore:Extension size is not a multiple")
@pytest.mark.parametrize("lengths, offset", CROWDED.values(), ids=CROWDED)
def test_an_extension_without_room_is_no_voxel(tmp_path, kind, suffix, order, lengths, offset):
    before = b"".join(extension(length, order) for length in lengths)
    path = written(tmp_path, kind, offset=offset, before=before, suffix=suffix, order=order)

    with pytest.raises(DatasetError) as caught:
        load_volume(path)

    said = "more voxels than its header declares" if offset < 16 else "cannot be read"
    assert str(path) in str(caught.value) and said in str(caught.value)


READ = {
    "one": ([64], 64, 1),
    "two": ([32, 64], 96, 1),
    "announced, and not there": ([], 0, 1),
    "not announced": ([64], 64, 0),
    "none": ([], 0, 0),
}


@every_file
@pytest.mark.parametrize("lengths, offset, flag", READ.values(), ids=READ)
def test_voxels_behind_an_extension_are_read(tmp_path, kind, suffix, order, lengths, offset, flag):
    before = b"".join(extension(length, order) for length in lengths).ljust(offset, b"\0")
    path = written(tmp_path, kind, offset=offset, before=before, flag=flag, suffix=suffix, order=order)
    np.testing.assert_array_equal(load_volume(path).voxels, VOXELS)


@every_file
def test_filling_behind_voxels_with_an_extension_before_them_is_none_of_them(tmp_path, kind, suffix, order):
    path = written(
        tmp_path, kind, offset=64, before=extension(64, order), behind=bytes(200), suffix=suffix, order=order
    )
    np.testing.assert_array_equal(load_volume(path).voxels, VOXELS)
