"""A prior is used as it was trained without being told how: its file says so, and so does the overlay beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.errors import SettingError, user_error

from tests.conftest import save_dataset
from tests.helpers.workflows import SETTINGS, nano_checkpoint, new_workflow, run, train, write_overlay

OWN = {
    "label_map": {"kidneys": [2, 3], "liver": 4},
    "background_values": [0, 1],
    "intensity": {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -100,
        "a_max": 250,
        "b_min": 0,
        "b_max": 1,
    },
    "use_high_res": True,
    "prior_channels": [16, 32],
    "inference_steps": 3,
    "iterations": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SimpleNamespace:
    """A training unlike the defaults in all that a prior has of it, evaluated on case c."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = save_dataset(folder / "data")
    backbone = nano_checkpoint(folder / "run" / "backbone_of_mine.pt")
    overlay = write_overlay(folder / "run", dataset, backbone, report=False, **OWN)
    train(overlay)
    run("evaluating", overlay, test_cases=["c"])
    evaluated = np.asarray(nib.load(folder / "run/evaluation/c_seg.nii.gz").dataobj)
    assert evaluated.any()
    return SimpleNamespace(folder=folder / "run", image=str(dataset / "image_c.nii.gz"), evaluated=evaluated)


def inferred(output: Path, *overlays: Path, **options) -> np.ndarray:
    run("inferring", *overlays, output=str(output), report=False, device=torch.device("cpu"), **options)
    return np.asarray(nib.load(output / "image_c_seg.nii.gz").dataobj)


def test_the_file_alone_is_enough(trained, tmp_path):
    found = inferred(tmp_path, input=trained.image, prior_file=str(trained.folder / "model.pt"))

    np.testing.assert_array_equal(found, trained.evaluated)


def test_the_overlay_beside_it_says_what_differs_from_the_defaults(trained, tmp_path):
    overlay = trained.folder / "inference.json"
    written = json.loads(overlay.read_text())

    assert written["label_map"] == {"kidneys": 1, "liver": 2} and written["image_size"] == SETTINGS["image_size"]
    assert written["inference_steps"] == 3 and written["intensity"]["a_max"] == 250
    assert "use_high_res" not in written and "scheduler" not in written  # as the defaults have them
    np.testing.assert_array_equal(inferred(tmp_path, overlay, input=trained.image), trained.evaluated)


def test_what_the_user_says_goes_before_it(trained):
    parser = new_workflow("inferring", prior_file=str(trained.folder / "model.pt"), image_size=96).parser

    assert parser.get_parsed_content("image_size") == 96
    assert parser.get_parsed_content("inference_steps") == 3


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"image_size": 96}, "slices of 64 pixels"),
        ({"label_map": {"liver": 1}}, "organs"),
        ({"backbone_name": "sam2.1_hiera_tiny"}, ""),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(trained, changes, named):
    workflow = new_workflow("inferring", prior_file=str(trained.folder / "model.pt"), input=trained.image, **changes)

    with pytest.raises(Exception) as info:
        workflow.initialize()

    found = user_error(info.value)
    assert isinstance(found, SettingError) and named in str(found)
