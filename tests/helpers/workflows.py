"""What tests of whole workflows share: a user's overlay, and the bundle's commands run with it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2
from scripts.pretraining.backbone import export_backbone

from tests.helpers import started

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
# MONAI publishes the schema of metadata beside its releases; a workplace may keep a copy beside the checkout
METADATA_SCHEMA = Path(
    os.environ.get("DIFFUSAM_METADATA_SCHEMA") or ROOT.parent / "shared/reference/meta_schema_20240725.json"
)
CONFIGS = {
    "training": ["train.json"],
    "evaluating": ["train.json", "evaluate.json"],
    "inferring": ["inference.json"],
    "pretraining": ["pretrain_nano.json"],
}

SIZE = 64
ORGANS = ["spleen", "right kidney", "left kidney", "liver"]
SETTINGS = {
    "device": "$torch.device('cpu')",
    "image_pattern": "image_{case}.nii.gz",
    "label_pattern": "label_{case}.nii.gz",
    "train_cases": ["a", "b"],
    "label_map": {organ: value for value, organ in enumerate(ORGANS, 1)},
    "background_values": [0],
    "backbone_name": "sam2_nano",
    "backbone_sha256": None,
    "image_size": SIZE,
    # alike for all three commands, also with a prior whose file records nothing
    "slice_context": False,
    "inference_steps": 2,
    "largest_component": False,
    "use_high_res": False,
    "prior_channels": [32, 64],
    "attention_levels": 1,
    "variants": 1,
    "iterations": 4,
    "iterations_per_epoch": 2,
    "batch_size": 4,
}


def save_start(
    path: Path, backbone_file: Path, *, organs: list[str] = ORGANS, prior_channels: Sequence[int] = (64, 128)
) -> None:
    """What a training may start from: a prior for the small backbone, and a head that names organs."""
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    prior = MemoryPrior(
        *(backbone.memory_channels, backbone.embedding_channels),
        organs=len(organs),
        use_high_res=True,
        block_out_channels=prior_channels,
        attention_levels=1,
    )
    prior.fitted.fill_(True)
    network = DiffuSAM(backbone, prior, organs=organs, names=naming(backbone, organs))
    torch.save({"model": network.state_dict()}, path)


class Killed(BaseException):
    """Ends a training between two checkpoints; like KeyboardInterrupt, nothing on the way out handles it."""


def nano_checkpoint(path: Path, seed: int = 0) -> Path:
    """A checkpoint of ``sam2_nano`` with random weights, except that it finds each object present.

    Object scores of random weights are negative or positive everywhere; negative ones would leave all label maps empty.
    """
    torch.manual_seed(seed)
    backbone = SAM2("sam2_nano", SIZE)
    torch.nn.init.constant_(backbone.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 10.0)
    export_backbone(backbone, path)
    return path


def write_overlay(folder: Path, dataset: Path, backbone_file: Path, **settings) -> Path:
    """What a user writes beside the bundle's configs: where things are, and settings of his own."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {
        "dataset_dir": str(dataset),
        "output_dir": str(folder),
        "prior_file": "$@output_dir + '/model.pt'",
        "input": str(dataset / "image_[cd].nii.gz"),
        "output": "$@output_dir + '/inference'",
        "backbone_checkpoint": str(backbone_file),
    }
    path = folder / "overlay.json"
    path.write_text(json.dumps({**places, **SETTINGS, **settings}, indent=4))
    return path


def new_workflow(command: str, *overlays: Path, **overrides) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[*(str(BUNDLE / "configs" / name) for name in CONFIGS[command]), *map(str, overlays)],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        run_id=command,
        # evaluate.json is an overlay of train.json, so it has the properties of a training
        workflow_type="infer" if command == "inferring" else "train",
        bundle_root=str(BUNDLE),
        **overrides,
    )


def run(command: str, *overlays: Path, **overrides) -> ConfigWorkflow:
    workflow = new_workflow(command, *overlays, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def train(overlay: Path, kill_at: int | None = None, **overrides) -> list[dict[str, float]]:
    """Losses of each iteration of a training, killed after iteration ``kill_at``."""
    workflow = new_workflow("training", overlay, **overrides)
    workflow.initialize()
    losses: list[dict[str, float]] = []

    def record(engine) -> None:
        losses.append({key: value.item() for key, value in engine.state.output[0].items()})
        if engine.state.iteration == kill_at:
            raise Killed

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    try:
        workflow.run()
    except Killed:
        return losses
    workflow.finalize()
    return losses


def command_line(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in ("DIFFUSAM_TRACEBACK", "PYTHONPATH")}
    return started.python(arguments, folder, clean)


def write_prior(overlay: Path, **content) -> Path:
    """A prior for an overlay's inference that has been trained on nothing, with more in its file, if that is given."""
    torch.manual_seed(0)
    parser = new_workflow("inferring", overlay).parser
    network, path = parser.get_parsed_content("network_def"), Path(parser.get_parsed_content("prior_file"))
    network.prior.fitted.fill_(True)
    torch.save({"model": network.state_dict(), **content}, path)
    return path
