"""Pretraining on painted patients, as the configurations say it, with little of everything."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scripts.automedsam.network import AutoMedSAM, ClassPromptEncoder
from scripts.errors import user_error
from scripts.files import sha256_of
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.starting_prior import StartingPrior

from benchmarks.tables.plan import Table
from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers.workflows import BUNDLE

CONFIGS = BUNDLE / "configs"
STAGES = [{"epochs": 1, "image_size": 64, "frames": 2, "clips": 1}]


def run(run_id: str, *configs: str, **overrides) -> None:
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in configs],
        logging_file=False,
        run_id=run_id,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        device=torch.device("cpu"),
        patients=1,
        first_patient=3,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize("configs", [("pretrain_anatomy.json",), ("pretrain_anatomy.json", "pretrain_encoder.json")])
def test_pretraining_begins_with_the_network_that_it_is_told(configs, tmp_path):
    """With a learning rate of 0 what it writes is what it began with."""
    options = {"patients_dir": str(tmp_path / "patients"), "iterations_per_epoch": 1, "shapes_every": 0}
    options |= {"num_workers": 0, "stages": STAGES}
    run("pretraining", *configs, output_dir=str(tmp_path / "first"), seed=1, **options)
    start = {"start_network": str(tmp_path / "first" / "checkpoint.pt"), "learning_rate": 0.0}
    run("pretraining", *configs, output_dir=str(tmp_path / "second"), **start, **options)

    first, second = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"] for name in ("first", "second")
    )
    trained = {key for key in first if key.startswith(("head.", "backbone.model."))}
    assert trained and all(torch.equal(first[key], second[key]) for key in trained)


OF_ANATOMY = [
    ("pretrain_anatomy.json", *others) for others in ((), ("pretrain_encoder.json",), ("pretrain_memories.json",))
]


@pytest.mark.parametrize("configs", [("pretrain_nano.json",), *OF_ANATOMY], ids=lambda configs: configs[-1])
def test_a_schedule_that_ends_before_its_pretraining_is_refused(configs, tmp_path):
    """It would break off in the middle: the stages say how long it is, and no other number does."""
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in configs],
        logging_file=False,
        run_id="pretraining",
        workflow_type="train",
        bundle_root=str(BUNDLE),
        device=torch.device("cpu"),
        output_dir=str(tmp_path),
        schedule_iterations=5,
    )
    with pytest.raises(RuntimeError) as info:  # MONAI's, about what it was evaluating
        workflow.initialize()
    assert "schedule_iterations is 5, but the stages have" in str(user_error(info.value))

    merged = workflow.parser.get()
    assert merged["lr_scheduler"]["total_steps"] == "$@schedule_iterations + 1" and "iterations" not in merged


def test_backbone_and_prior_are_pretrained_one_after_the_other(tmp_path):
    patients = str(tmp_path / "patients")
    run(
        "pretraining",
        "pretrain_anatomy.json",
        "pretrain_encoder.json",
        patients_dir=patients,
        stages=[{**STAGES[0], "followed": 0, "context": True}],
        iterations_per_epoch=1,
        num_workers=0,
        output_dir=str(tmp_path / "encoder"),
    )
    run(
        "pretraining",
        "pretrain_anatomy.json",
        start_file=str(tmp_path / "encoder" / "sam2_nano.pt"),
        start_network=str(tmp_path / "encoder" / "checkpoint.pt"),
        patients_dir=patients,
        stages=STAGES,
        iterations_per_epoch=2,
        shapes_every=2,
        shape_clips=1,
        num_workers=0,
        output_dir=str(tmp_path / "backbone"),
    )
    memories = {
        "start_file": str(tmp_path / "backbone/sam2_nano.pt"),
        "image_size": 64,
        "clips": 4,
        "frames": 4,
        "rows": 2,
    }
    memories |= {"epochs": 2, "iterations_per_epoch": 1, "recognise_epoch": 2, "patients_dir": patients}
    configs = ("pretrain_anatomy.json", "pretrain_memories.json")
    run("pretraining", *configs, output_dir=str(tmp_path / "memories"), **memories)
    run(
        "training",
        "train.json",
        "pretrain_prior.json",
        patients_dir=patients,
        slices=2,
        batch_size=2,
        kept_batches=2,
        iterations=2,
        iterations_per_epoch=2,
        image_size=64,
        backbone_checkpoint=str(tmp_path / "memories/sam2_nano.pt"),
        start_prior=str(tmp_path / "backbone/prior.pt"),
        output_dir=str(tmp_path / "prior"),
    )

    assert [path.name for path in Path(patients).iterdir()] == ["patient_00003.npz"]
    content = torch.load(tmp_path / "prior/model.pt", weights_only=True)
    assert content["model"]["_extra_state"]["organs"] == ["spleen", "right kidney", "left kidney", "liver"]
    assert content["organ_volumes"]["liver"][0] < 1500 < content["organ_volumes"]["liver"][1]
    assert content["training"]["settings"]["slices"] == {"slices": 2, "kept_batches": 2}
    identity = torch.load(tmp_path / "backbone/checkpoint.pt", weights_only=True)["identity"]
    assert identity["first_patient"] == content["training"]["settings"]["first_patient"] == 3
    assert identity["stages"] == STAGES and identity["starts"] == {
        "backbone": sha256_of(tmp_path / "encoder/sam2_nano.pt"),
        "network": sha256_of(tmp_path / "encoder/checkpoint.pt"),
    }
    before = torch.load(BUNDLE / "models/sam2_nano.pt", weights_only=True)["model"]
    after = torch.load(tmp_path / "backbone/sam2_nano.pt", weights_only=True)["model"]
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    carrying = torch.load(tmp_path / "memories/sam2_nano.pt", weights_only=True)["model"]
    changed = {key.split(".")[0] for key in after if not torch.equal(after[key], carrying[key])}
    assert {"memory_encoder", "memory_attention", "sam_mask_decoder"} <= changed and "image_encoder" not in changed


def test_automedsam_is_pretrained_as_the_tables_say(tmp_path, backbone_file):
    """And a training of its own kind starts from it."""
    training = Table.read("chaos", None, {}).content["trainings"]["automedsam_painted"]
    run(
        "training",
        *(Path(config).name for config in training["base"]),
        **training["settings"]
        | {
            **{"patients_dir": str(tmp_path / "patients"), "slices": 2, "batch_size": 2, "iterations": 1},
            **{"iterations_per_epoch": 1, "image_size": 64, "backbone_checkpoint": str(backbone_file)},
            "output_dir": str(tmp_path),
            "prior_file": str(tmp_path / "prior.pt"),
        },
    )

    backbone = FrozenSAM2("sam2_nano", 64, checkpoint=backbone_file, decoder_token="single")
    encoder = ClassPromptEncoder(128, 4, block_out_channels=(64, 128), attention_levels=1)
    starting = AutoMedSAM(backbone, encoder, organs=["liver", "spleen", "right kidney", "left kidney"])
    StartingPrior(starting, tmp_path / "prior.pt", statistics=[])()
    trained = torch.load(tmp_path / "prior.pt", weights_only=True)["model"]
    assert torch.equal(encoder.conv_in.weight, trained["prior.conv_in.weight"])
    assert torch.equal(encoder.organ_embedding.weight[0], trained["prior.organ_embedding.weight"][3])


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_prior_that_ships_segments_a_scan(tmp_path, modality):
    image = simple_image(simple_label())
    save_volume(tmp_path / "scan.nii.gz", image if modality == "ct" else image - image.min())
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in ("inference.json", f"{modality}.json")],
        logging_file=False,
        run_id="inferring",
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        device=torch.device("cpu"),
        input=str(tmp_path / "scan.nii.gz"),
        output=str(tmp_path / "out"),
        report=False,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()

    labels = nib.load(tmp_path / "out/scan_seg.nii.gz")
    assert labels.shape == image.shape
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2, 3, 4}
