"""A joint prior is trained, evaluated and used by the same commands as the paper's, with one option."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import torch
from scripts.networks.joint_prior import JointMemoryPrior

from tests.conftest import save_dataset
from tests.helpers.workflows import nano_checkpoint, new_workflow, run, train, write_overlay


def test_a_joint_prior_goes_through_every_command_and_inference_knows_it_by_its_file(tmp_path, caplog):
    dataset = save_dataset(tmp_path / "data")
    backbone = nano_checkpoint(tmp_path / "run/backbone.pt")
    overlay = write_overlay(tmp_path / "run", dataset, backbone, report=False, joint_prior=True, start_from=None)

    losses = train(overlay)
    run("evaluating", overlay, test_cases=["c"])
    options = {"input": str(dataset / "image_c.nii.gz"), "prior_file": str(tmp_path / "run/model.pt")}
    run("inferring", output=str(tmp_path / "out"), report=False, device=torch.device("cpu"), **options)

    assert len(losses) == 4 and all(np.isfinite(list(each.values())).all() for each in losses)
    evaluated, inferred = (
        np.asarray(nib.load(path).dataobj)
        for path in (tmp_path / "run/evaluation/c_seg.nii.gz", tmp_path / "out/image_c_seg.nii.gz")
    )
    assert evaluated.any()
    np.testing.assert_array_equal(inferred, evaluated)
    parser = new_workflow("inferring", **options).parser
    assert isinstance(parser.get_parsed_content("prior"), JointMemoryPrior)

    # a training of the other kind does not start from it
    start = {"joint_prior": False, "start_from": options["prior_file"], "prior_file": str(tmp_path / "other.pt")}
    other = write_overlay(tmp_path / "other", dataset, backbone, report=False, iterations=2, **start)
    with caplog.at_level(logging.INFO):
        train(other)
    assert "a prior of another kind (joint_prior)" in caplog.text
