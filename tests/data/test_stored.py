"""Volumes that stay as they are stored: equal to MONAI's transforms, over the same memory."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, ScaleIntensityRanged
from scripts.data.stored import LoadOrientedd, ScaleLaterd, as_stored, flip_in_place, scaled
from scripts.data.transforms import InSlabsd
from scripts.data.volumes import VolumeReader

SHAPE = (5, 6, 35)  # more slices than are reversed at a time
ORIENTATIONS = [
    "".join(axes[place] for axes, place in zip(order, places))
    for order in permutations(("LR", "PA", "IS"))
    for places in product((0, 1), repeat=3)
]
OBLIQUE = np.array([[0.98, -0.17, 0.05, -9], [0.17, 0.98, 0.02, 4], [-0.05, -0.01, 0.99, 7], [0, 0, 0, 1]])
OBLIQUE[:3, :3] *= [0.8, 0.9, 3.0]


def save(path, axcodes="RAS", dtype=np.int16):
    voxels = np.random.default_rng(0).integers(0, 400, SHAPE).astype(dtype)
    image = nib.Nifti1Image(voxels, OBLIQUE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(OBLIQUE), nib.orientations.axcodes2ornt(axcodes))
    nib.save(image.as_reoriented(turn), path)
    return {"image": str(path)}


def stored() -> LoadOrientedd:
    return LoadOrientedd("image", reader=VolumeReader(), axcodes="PLS")


def by_monai() -> Compose:
    load = LoadImaged("image", reader=VolumeReader(), dtype=None, ensure_channel_first=True)
    return Compose([load, Orientationd("image", axcodes="PLS")])


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_volume_is_as_monai_reads_and_turns_it_there_and_back(tmp_path, axcodes):
    item = save(tmp_path / "a.nii", axcodes)
    transforms = by_monai(), Compose([stored()])
    expected, found = (transform(item)["image"] for transform in transforms)

    assert torch.equal(found.as_tensor(), expected.as_tensor()) and found.dtype == expected.dtype
    assert torch.equal(found.affine, expected.affine)
    assert found.meta.keys() == expected.meta.keys()

    labels = torch.arange(found.numel(), dtype=torch.int32).reshape(found.shape)
    back = [
        Invertd("pred", transform=transform, orig_keys="image")(
            {"image": image, "pred": MetaTensor(labels.clone()).copy_meta_from(image)}
        )["pred"]
        for transform, image in zip(transforms, (expected, found))
    ]

    assert torch.equal(back[1].as_tensor(), back[0].as_tensor())
    assert torch.equal(back[1].affine, back[0].affine)


def test_no_copy_is_made_of_what_was_read(tmp_path, monkeypatch):
    item, read = save(tmp_path / "a.nii.gz", "LAI"), []
    load = VolumeReader.load
    monkeypatch.setattr(VolumeReader, "load", lambda self, path: read.append(load(self, path)) or read[-1])

    image = stored()(item)["image"]

    assert np.shares_memory(image.as_tensor().numpy(), read[0].voxels)


def test_the_file_is_not_changed_by_what_is_reversed_in_memory(tmp_path):
    item = save(tmp_path / "a.nii", "LAI")  # of which the voxels are mapped into memory
    before = (tmp_path / "a.nii").read_bytes()

    stored()(item)

    assert (tmp_path / "a.nii").read_bytes() == before


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", ">i2", "float32", ">f4"])
def test_types_that_pytorch_has_not_become_those_that_hold_them(tmp_path, dtype):
    item = save(tmp_path / "a.nii", dtype=np.dtype(dtype))

    expected, found = by_monai()(item)["image"], stored()(item)["image"]

    assert found.dtype == expected.dtype
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_arrays_that_cannot_be_written_to_are_copied():
    voxels = np.arange(24.0).reshape(2, 3, 4)
    voxels.flags.writeable = False

    flip_in_place(as_stored(voxels).numpy(), [0])

    np.testing.assert_array_equal(voxels, np.arange(24.0).reshape(2, 3, 4))


@pytest.mark.parametrize("slowest", range(3))
@pytest.mark.parametrize("axes", [[], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_axes_are_reversed_whatever_their_order_in_memory(axes, slowest):
    planes = np.random.default_rng(0).integers(0, 99, (37, 5, 4))
    voxels = np.moveaxis(planes, 0, slowest)
    expected = np.flip(voxels, axes).copy()

    flip_in_place(voxels, axes)

    np.testing.assert_array_equal(voxels, expected)


@pytest.mark.parametrize("clip", [True, False])
def test_an_image_scaled_later_is_what_it_would_be_scaled_at_once(tmp_path, clip):
    item, window = stored()(save(tmp_path / "a.nii")), ScaleIntensityRanged("image", -125, 275, 0, 1, clip=clip)
    expected = InSlabsd(window)(item)["image"]

    image = ScaleLaterd(window)(item)["image"]

    assert image.dtype == torch.int16 and (expected.max() > 1) is not clip
    assert torch.equal(scaled(image.as_tensor()[..., 3:9], image), expected.as_tensor()[..., 3:9])


def test_without_a_note_an_image_is_taken_as_it_is():
    assert torch.equal(scaled(torch.tensor([3, 4]), MetaTensor(torch.zeros(1))), torch.tensor([3.0, 4.0]))
