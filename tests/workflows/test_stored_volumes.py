"""Inference on volumes as they are stored: no copies, and the same files as with MONAI's own transforms."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from scripts.data.volumes import VolumeReader

from tests.conftest import save_dataset
from tests.helpers.workflows import nano_checkpoint, new_workflow, run, write_overlay, write_prior

BY_MONAI = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "LoadImaged", "keys": "image", "reader": "@reader", "dtype": None, "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "PLS"},
        {"_target_": "scripts.data.transforms.InSlabsd", "transform": "@intensity"},
    ],
}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    """Of a folder with the dataset's images, each in another orientation."""
    folder = tmp_path_factory.mktemp("stored")
    dataset = save_dataset(folder / "data")
    for case, axcodes in (("c", "LAI"), ("d", "SPR")):
        path = dataset / f"image_{case}.nii.gz"
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
        turned = image.as_reoriented(turn)
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    made = write_overlay(folder / "run", dataset, nano_checkpoint(folder / "nano.pt"), report=False)
    write_prior(made)
    return made


def test_the_files_are_those_that_monais_transforms_make(overlay, tmp_path):
    options = {"largest_component": True, "uncertainty": 2}
    run("inferring", overlay, output=str(tmp_path / "stored"), **options)
    run("inferring", overlay, output=str(tmp_path / "monai"), preprocessing=BY_MONAI, **options)

    for name in ("image_c_seg", "image_d_seg", "image_c_uncertainty"):
        stored, expected = (nib.load(tmp_path / folder / f"{name}.nii.gz") for folder in ("stored", "monai"))
        assert np.asarray(stored.dataobj).any()
        np.testing.assert_array_equal(stored.dataobj, expected.dataobj)
        assert stored.header == expected.header


def test_no_volume_is_copied_on_its_way(overlay, tmp_path, monkeypatch):
    read = []
    load = VolumeReader.load
    monkeypatch.setattr(VolumeReader, "load", lambda self, path: read.append(load(self, path)) or read[-1])
    parser = new_workflow("inferring", overlay, output=str(tmp_path), largest_component=True).parser
    inferer, finish = (parser.get_parsed_content(name) for name in ("inferer", "postprocessing"))

    batch = next(iter(parser.get_parsed_content("dataloader")))
    pred = inferer._result(inferer._empty_output(batch["image"][0, 0], 4).zero_(), batch["image"])
    place = pred.data_ptr()
    (data,) = decollate_batch({**batch, "pred": pred})
    result = finish(data)["pred"]

    assert isinstance(batch["image"], MetaTensor) and batch["image"].dtype == torch.int16
    assert np.shares_memory(batch["image"].as_tensor().numpy(), read[0].voxels)
    assert result.shape[1:] == read[0].voxels.shape
    assert result.data_ptr() == place
