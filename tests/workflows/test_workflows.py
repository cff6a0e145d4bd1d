"""The bundle's commands as a user runs them: training, evaluating, inferring and pretraining, and what each refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from scripts.data.datalists import DatasetError
from scripts.errors import user_error
from scripts.networks.sam2_backbone import FrozenSAM2

from tests.helpers.workflows import (
    BUNDLE,
    CONFIGS,
    ORGANS,
    ROOT,
    SETTINGS,
    SIZE,
    command_line,
    nano_checkpoint,
    new_workflow,
    run,
    train,
    write_overlay,
)

# ---- a user's files: a data set, a backbone, an overlay


# evaluation names results after the case, inference after the file
NAMES = {"evaluation": "{}_seg.nii.gz", "inference": "image_{}_seg.nii.gz"}


def save_reoriented(source: Path, target: Path, axcodes: str) -> None:
    """Stores a volume with other axes; every voxel keeps its place in the patient."""
    image = nib.load(source)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes))
    nib.save(image.as_reoriented(turn), target)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset) -> Path:
    """Cases a, b, c, d; d is c, stored with permuted and flipped axes."""
    folder = write_dataset(tmp_path_factory.mktemp("dataset"))
    for kind in ("image", "label"):
        save_reoriented(folder / f"{kind}_c.nii.gz", folder / f"{kind}_d.nii.gz", "SLP")
    return folder


def load_prior(folder: Path) -> dict:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def assert_same_prior(first: Path, second: Path) -> None:
    first, second = load_prior(first), load_prior(second)
    assert first.keys() == second.keys()
    differing = [
        key
        for key, value in first.items()
        if not (torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key])
    ]
    assert not differing


def label_map(path: Path) -> np.ndarray:
    """A label map with axes to the patient's right, front and top, however it is stored."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


# ---- training, evaluating, inferring


@pytest.fixture(scope="module")
def project(tmp_path_factory, dataset, backbone_file) -> SimpleNamespace:
    """A user's folder after training, evaluating and inferring with one overlay."""
    folder = tmp_path_factory.mktemp("project")
    overlay = write_overlay(folder, dataset, backbone_file)
    losses = train(overlay)
    for command in ("evaluating", "inferring"):
        run(command, overlay)
    return SimpleNamespace(folder=folder, overlay=overlay, losses=losses)


def test_training_writes_the_prior_and_a_checkpoint(project):
    assert (project.folder / "model.pt").is_file()
    assert (project.folder / "checkpoint.pt").is_file()
    assert list(project.folder.glob("events.out.tfevents.*"))


def test_every_iteration_has_finite_losses(project):
    assert len(project.losses) == SETTINGS["iterations"]
    assert all(np.isfinite(value) for losses in project.losses for value in losses.values())


def test_evaluation_writes_a_table_of_all_metrics(project):
    header, *rows = csv.reader((project.folder / "evaluation" / "metrics.csv").read_text().splitlines())

    assert [row[:2] for row in rows] == [[case, organ] for case in ("c", "d") for organ in ORGANS]
    assert header[:5] == ["case", "organ", "dice", "dice_fate", "fate_slices_kept"]
    assert {"dice_dfg", "hd95_mm", "asd_mm", "surface_dice_2mm", "missed", "invented"} < set(header)


def test_the_largest_component_alone_is_kept_if_asked_for(project):
    folder = project.folder / "largest"
    run("evaluating", project.overlay, test_cases=["c"], evaluation_dir=str(folder), largest_component=True)

    labels = np.asarray(nib.load(folder / "c_seg.nii.gz").dataobj)
    components = [ndimage.label(labels == value, np.ones((3, 3, 3)))[1] for value in np.unique(labels)[1:]]
    assert components and set(components) == {1}


def test_evaluation_writes_what_it_ran_with(project):
    metrics = json.loads((project.folder / "evaluation" / "metrics.json").read_text())

    assert metrics["about"] == {
        "network": "DiffuSAM",
        "backbone": "sam2_nano",
        "image_size": SIZE,
        "steps": 2,
        "neighbours": 1,
        "names_smoothing": 0,
        "train_cases": SETTINGS["train_cases"],
    }
    assert metrics["organs"] == ORGANS
    assert metrics["cases"] == ["c", "d"]


@pytest.mark.parametrize(
    ("results", "heading"), [("", "Training"), ("evaluation", "Dice of each organ"), ("inference", "Slices")]
)
def test_every_workflow_ends_with_a_report(project, results, heading):
    report = (project.folder / results / "report.html").read_text(encoding="utf-8")

    assert f"{heading}</h2>" in report and "could not be drawn" not in report


@pytest.mark.parametrize("metric", ["dice", "dice_fate", "dice_dfg", "hd95_mm", "asd_mm", "surface_dice_2mm"])
def test_metrics_do_not_depend_on_how_a_volume_is_stored(project, metric):
    metrics = json.loads((project.folder / "evaluation" / "metrics.json").read_text())
    stored_upright, stored_turned = metrics[metric]["values"]

    assert stored_turned == pytest.approx(stored_upright, abs=1e-5)


@pytest.mark.parametrize("results", ["evaluation", "inference"])
@pytest.mark.parametrize("case", ["c", "d"])
def test_label_maps_lie_on_the_grid_of_their_image(project, dataset, results, case):
    segmented = nib.load(project.folder / results / NAMES[results].format(case))
    image = nib.load(dataset / f"image_{case}.nii.gz")

    assert segmented.shape == image.shape
    np.testing.assert_allclose(segmented.affine, image.affine, atol=1e-4)


@pytest.mark.parametrize("results", ["evaluation", "inference"])
def test_label_maps_hold_label_values_as_bytes(project, results):
    segmented = nib.load(project.folder / results / NAMES[results].format("c"))

    assert segmented.get_data_dtype() == np.uint8
    assert np.asarray(segmented.dataobj).max() <= len(ORGANS)


def test_the_label_map_does_not_depend_on_how_a_volume_is_stored(project):
    upright, turned = (label_map(project.folder / "inference" / f"image_{case}_seg.nii.gz") for case in "cd")

    assert upright.any() and not upright.all()  # two empty maps would agree as well
    np.testing.assert_array_equal(turned, upright)


def test_evaluation_and_inference_segment_alike(project):
    evaluated, inferred = (label_map(project.folder / each / name.format("c")) for each, name in NAMES.items())

    np.testing.assert_array_equal(evaluated, inferred)


@pytest.mark.parametrize("results", ["evaluation", "inference"])
def test_each_volume_has_its_preview(project, results):
    pictures = sorted((project.folder / results / "previews").iterdir())

    assert [picture.name for picture in pictures] == [
        NAMES[results].format(case).replace("_seg.nii.gz", ".png") for case in "cd"
    ]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("results", ["evaluation", "inference"])
def test_pictures_do_not_depend_on_how_a_volume_is_stored(project, results):
    upright, turned = (imread(picture) for picture in sorted((project.folder / results / "previews").iterdir()))

    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize("command", ["training", "evaluating", "inferring"])
def test_workflows_have_the_properties_of_a_monai_bundle(project, command):
    workflow = new_workflow(command, project.overlay)
    workflow.initialize()

    assert workflow.check_properties() == []


def test_evaluation_without_3d_says_so(project):
    run("evaluating", project.overlay, no_3d=True, test_cases=["c"], evaluation_dir=str(project.folder / "no_3d"))

    metrics = json.loads((project.folder / "no_3d" / "metrics.json").read_text())
    assert (metrics["about"]["neighbours"], metrics["about"]["names_smoothing"]) == (0, 0)
    assert metrics["cases"] == ["c"]


def test_results_are_named_after_cases_where_files_share_a_name(project, tmp_path, dataset):
    for case in "cd":
        (tmp_path / "data" / case).mkdir(parents=True)
        for kind in ("image", "label"):
            (tmp_path / "data" / case / f"{kind}.nii.gz").symlink_to(dataset / f"{kind}_{case}.nii.gz")
    layout = {"image_pattern": "{case}/image.nii.gz", "label_pattern": "{case}/label.nii.gz"}

    run(
        "evaluating",
        project.overlay,
        dataset_dir=str(tmp_path / "data"),
        train_data=[],
        test_cases=["c", "d"],
        evaluation_dir=str(tmp_path),
        **layout,
    )

    for case in "cd":
        np.testing.assert_array_equal(
            label_map(tmp_path / f"{case}_seg.nii.gz"), label_map(project.folder / "evaluation" / f"{case}_seg.nii.gz")
        )
    assert json.loads((tmp_path / "metrics.json").read_text())["cases"] == ["c", "d"]


# ---- the same again


def test_the_same_seed_gives_the_same_losses_prior_and_label_maps(project, tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file)

    losses = train(overlay)
    run("inferring", overlay, input=str(dataset / "image_c.nii.gz"))

    assert losses == project.losses
    assert_same_prior(tmp_path, project.folder)
    again, before = (label_map(folder / "inference" / "image_c_seg.nii.gz") for folder in (tmp_path, project.folder))
    np.testing.assert_array_equal(again, before)


def test_a_killed_training_resumes_to_the_same_prior(project, tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file)

    train(overlay, kill_at=3)  # in the second of two epochs
    assert not (tmp_path / "model.pt").exists()
    losses = train(overlay)

    assert losses == project.losses[2:]
    assert_same_prior(tmp_path, project.folder)


def test_a_falling_learning_rate_goes_on_where_it_was(project, tmp_path, dataset, backbone_file):
    falling = {"learning_rate_factor": "$lambda progress: 1 - progress"}
    whole, killed = (write_overlay(tmp_path / name, dataset, backbone_file, **falling) for name in ("whole", "killed"))

    losses = train(whole)
    train(killed, kill_at=3)
    resumed = train(killed)

    assert losses[:1] == project.losses[:1] and losses[-1] != project.losses[-1]
    assert resumed == losses[2:]
    assert_same_prior(tmp_path / "killed", tmp_path / "whole")


def test_a_longer_training_continues_a_finished_one(project, tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file)

    train(overlay, iterations=2)
    train(overlay)

    assert_same_prior(tmp_path, project.folder)


# ---- the command line


# what `python -m monai.bundle` does, once for each command: PyTorch is imported once, the bundle each time anew
RUN_COMMANDS = """
import json, runpy, sys
path = list(sys.path)
for arguments in json.loads(sys.argv[1]):
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.argv[1:] = arguments
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "folder, configs, options",
    [(BUNDLE, "configs", []), (ROOT, "bundle/configs", ["--bundle_root", "bundle"])],
    ids=["in the bundle's folder", "in the repository's root"],
)
def test_commands_run_in_either_folder(folder, configs, options, tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file, iterations=2, test_cases=["c"])
    stages = [{"epochs": 1, "image_size": SIZE, "frames": 1, "clips": 1}]
    pretraining = ["--stages", json.dumps(stages), "--iterations_per_epoch", "1", "--num_workers", "0"]
    pretraining += ["--output_dir", str(tmp_path / "pretraining"), "--backbone_file", str(tmp_path / "backbone.pt")]
    commands = [
        ["run", command, "--config_file", str([f"{configs}/{name}" for name in CONFIGS[command]] + [str(overlay)])]
        for command in ("training", "evaluating", "inferring")
    ]
    commands.append(["run", "pretraining", "--config_file", f"{configs}/pretrain_nano.json", *pretraining])

    result = command_line(["-c", RUN_COMMANDS, json.dumps([command + options for command in commands])], folder)

    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    written = ("model.pt", "evaluation/metrics.json", "inference/image_c_seg.nii.gz", "backbone.pt")
    assert all((tmp_path / name).is_file() for name in written)


def test_a_wrong_path_ends_the_program_with_one_message(tmp_path):
    places = ["--dataset_dir", str(tmp_path / "btcv"), "--output_dir", str(tmp_path)]

    # as it starts for a user; the others go on from a program that has imported MONAI
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "configs/train.json"]
    result = subprocess.run([*command, *places], cwd=BUNDLE, capture_output=True, text=True)

    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("error: ")
    assert str(tmp_path / "btcv") in last and "leave out --dataset_dir" in last
    assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "checkpoint.pt").exists()


# ---- what is refused, before anything expensive starts


def refusal(command: str, overlay: Path, **overrides) -> BaseException:
    """The bundle's own error, with which a command ends before it has written a checkpoint or a label map."""
    with pytest.raises(Exception) as info:
        run(command, overlay, evaluation_dir=str(overlay.parent / "evaluation"), **overrides)

    found = user_error(info.value)
    assert found is not None, info.value
    assert not (overlay.parent / "checkpoint.pt").exists()
    assert not list(overlay.parent.rglob("*_seg.nii.gz"))
    return found


@pytest.fixture
def overlay(tmp_path, dataset, backbone_file) -> Path:
    """An overlay in a folder where nothing has been trained."""
    return write_overlay(tmp_path / "run", dataset, backbone_file)


@pytest.mark.parametrize("command", ["training", "inferring"])
def test_a_missing_sam2_checkpoint_is_named(overlay, tmp_path, command):
    missing = tmp_path / "sam2.pt"

    error = refusal(command, overlay, backbone_checkpoint=str(missing))

    assert isinstance(error, FileNotFoundError)
    assert str(missing) in str(error) and "sam2_nano" in str(error)


def test_an_unknown_backbone_is_refused_with_those_there_are(overlay):
    error = refusal("training", overlay, backbone_name="sam3")

    assert "'sam3'" in str(error) and "sam2_nano" in str(error)


@pytest.mark.parametrize("command", ["evaluating", "inferring"])
def test_a_missing_prior_is_named(overlay, command):
    error = refusal(command, overlay)

    assert isinstance(error, FileNotFoundError)
    assert str(overlay.parent / "model.pt") in str(error) and "training" in str(error)


def test_a_prior_of_another_number_of_organs_is_refused(project, overlay):
    three = {"spleen": 1, "right kidney": 2, "left kidney": 3}

    error = refusal(
        "evaluating", overlay, label_map=three, background_values=[0, 4], prior_file=str(project.folder / "model.pt")
    )

    assert "4 organs" in str(error) and "3 organs" in str(error)


def test_a_prior_of_other_backbone_weights_is_refused(project, overlay, tmp_path):
    other = nano_checkpoint(tmp_path / "other.pt", seed=1)

    error = refusal("evaluating", overlay, prior_file=str(project.folder / "model.pt"), backbone_checkpoint=str(other))

    assert "other weights" in str(error) and "backbone_checkpoint" in str(error)


def test_testing_on_a_training_case_is_refused(project, overlay):
    error = refusal("evaluating", overlay, test_cases=["b", "c"], prior_file=str(project.folder / "model.pt"))

    assert isinstance(error, DatasetError)
    assert "both trained and tested on: b" in str(error)


def test_an_image_with_nan_voxels_is_refused(tiny_dataset, backbone_file, tmp_path, write_volume):
    path = tiny_dataset / "image_b.nii.gz"
    voxels = nib.load(path).get_fdata(dtype=np.float32)
    voxels[3, 4, 5] = np.nan
    write_volume(path, voxels)

    error = refusal("training", write_overlay(tmp_path / "run", tiny_dataset, backbone_file))

    assert str(path) in str(error) and "1 of" in str(error) and "NaN" in str(error)


def test_a_label_value_without_a_meaning_is_refused(tiny_dataset, backbone_file, tmp_path, write_volume):
    path = tiny_dataset / "label_a.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).copy()
    voxels[3, 4, 5] = 9
    write_volume(path, voxels)

    error = refusal("training", write_overlay(tmp_path / "run", tiny_dataset, backbone_file))

    assert str(path) in str(error) and "label values 9" in str(error)


# ---- pretraining of the embedded backbone


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> SimpleNamespace:
    """One epoch of single slices and one of clips, and everything that was there afterwards."""
    folder = tmp_path_factory.mktemp("pretraining")
    stage = {"epochs": 1, "image_size": SIZE, "clips": 2}
    overrides = {
        "stages": [{**stage, "frames": 1}, {**stage, "frames": 3}],
        "iterations_per_epoch": 2,
        "num_workers": 0,
        "device": "$torch.device('cpu')",
        "output_dir": str(folder),
        "backbone_file": str(folder / "sam2_nano.pt"),
    }
    run("pretraining", **overrides)
    return SimpleNamespace(folder=folder, overrides=overrides, backbone_file=folder / "sam2_nano.pt")


def test_pretraining_writes_a_backbone_in_half_precision(pretrained):
    state = torch.load(pretrained.backbone_file, weights_only=True)["model"]

    assert {value.dtype for value in state.values()} == {torch.float16}


def test_a_pretrained_backbone_loads_and_is_not_the_initial_one(pretrained, backbone_file):
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=pretrained.backbone_file)

    assert backbone.loaded
    assert backbone.fingerprint() != FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file).fingerprint()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"learning_rate": 0.001}, "lr: 0.0006 then, 0.001 now"),
        ({"iterations_per_epoch": 3}, "iterations_per_epoch: 2 then, 3 now"),
        ({"network#warp": 0.5}, "warp: 0.08 then, 0.5 now"),
        ({"dataset#objects": 2}, "objects: 4 then, 2 now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_pretraining_in_the_same_folder_is_refused_before_anything_starts(pretrained, changes, named):
    before = (pretrained.folder / "checkpoint.pt").read_bytes(), pretrained.backbone_file.read_bytes()

    with pytest.raises(Exception) as caught:
        new_workflow("pretraining", **pretrained.overrides | changes).initialize()

    assert named in str(user_error(caught.value)) and "--resume False" in str(user_error(caught.value))
    assert before == ((pretrained.folder / "checkpoint.pt").read_bytes(), pretrained.backbone_file.read_bytes())


def test_a_finished_pretraining_does_nothing_more(pretrained):
    checkpoint = pretrained.folder / "checkpoint.pt"
    written = checkpoint.stat().st_mtime_ns
    before = FrozenSAM2("sam2_nano", SIZE, checkpoint=pretrained.backbone_file).fingerprint()

    run("pretraining", **pretrained.overrides)

    assert checkpoint.stat().st_mtime_ns == written
    assert FrozenSAM2("sam2_nano", SIZE, checkpoint=pretrained.backbone_file).fingerprint() == before
