"""Voxels whose bytes stand in the other order are the same voxels, in every format that has two."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError

from tests.data.test_damaged_files import SHAPE, metaimage, nrrd

TYPES = {  # of either header
    "u1": ("MET_UCHAR", "uchar"),
    "i2": ("MET_SHORT", "short"),
    "u2": ("MET_USHORT", "ushort"),
    "i4": ("MET_INT", "int"),
    "f4": ("MET_FLOAT", "float"),
    "f8": ("MET_DOUBLE", "double"),
}
each_type = pytest.mark.parametrize("dtype", TYPES)


def voxels_of(dtype: str) -> np.ndarray:
    low = 0 if dtype[0] == "u" else -100
    return np.random.default_rng(0).integers(low, 200, SHAPE).astype(dtype)


def swapped(voxels: np.ndarray) -> bytes:
    return voxels.astype(voxels.dtype.newbyteorder(">")).tobytes(order="F")


@each_type
@pytest.mark.parametrize("kind, header", [(nib.Nifti1Image, nib.Nifti1Header), (nib.Nifti2Image, nib.Nifti2Header)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, dtype, kind, header, suffix):
    voxels, path = voxels_of(dtype), tmp_path / f"a{suffix}"
    image = kind(voxels.astype(voxels.dtype.newbyteorder(">")), np.diag([-2.0, -2, 5, 1]), header(endianness=">"))
    nib.save(image, path)
    assert nib.load(path).header.endianness == ">"

    np.testing.assert_array_equal(load_volume(path).voxels, voxels)


@each_type
@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage(tmp_path, dtype, key, compressed):
    voxels = voxels_of(dtype)
    data = zlib.compress(swapped(voxels)) if compressed else swapped(voxels)
    packed = {"CompressedData": True, "CompressedDataSize": len(data)} if compressed else {}
    path = metaimage(tmp_path / "a.mha", data, ElementType=TYPES[dtype][0], BinaryDataByteOrderMSB=True, **packed)
    path.write_bytes(path.read_bytes().replace(b"BinaryDataByteOrderMSB", key.encode(), 1))

    np.testing.assert_array_equal(load_volume(path).voxels, voxels)


@each_type
@pytest.mark.parametrize("encoding", ["raw", "gzip", "hex"])
def test_nrrd(tmp_path, dtype, encoding):
    voxels = voxels_of(dtype)
    pack = {"raw": bytes, "gzip": gzip.compress, "hex": lambda data: data.hex().encode()}[encoding]
    path = nrrd(tmp_path / "a.nrrd", pack(swapped(voxels)), type=TYPES[dtype][1], endian="big", encoding=encoding)

    np.testing.assert_array_equal(load_volume(path).voxels, voxels)


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_volume(path)
    return str(caught.value)


@pytest.mark.parametrize("stated", ["True", "true", "T", "1"])
def test_a_metaimage_says_true_in_several_ways(tmp_path, stated):
    path = metaimage(tmp_path / "a.mha", swapped(voxels_of("i2")), BinaryDataByteOrderMSB=stated)
    np.testing.assert_array_equal(load_volume(path).voxels, voxels_of("i2"))


@pytest.mark.parametrize("stated", ["yes", "Y", "on", "", "big"])
@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "BinaryData", "CompressedData"])
def test_what_is_neither_true_nor_false_is_refused(tmp_path, key, stated):
    """ITK would take it for False, and the bytes in the order in which they are not."""
    message = refusal(metaimage(tmp_path / "a.mha", swapped(voxels_of("i2")), **{key: stated}))
    assert f"its header has '{stated.lower()}' for {key.lower()}, expected True or False" in message


@pytest.mark.parametrize("stated", ["middle", "", None])
def test_an_order_of_an_nrrd_that_is_none_is_refused(tmp_path, stated):
    path = nrrd(tmp_path / "a.nrrd", swapped(voxels_of("i2")), endian=stated)
    if stated is None:
        path.write_bytes(path.read_bytes().replace(b"endian: None\n", b"", 1))
    assert "endian" in refusal(path)
