"""Trust between runs: nothing goes on from another training, or is used for what it was not trained for."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.errors import BundleError, user_error
from scripts.output import html_report

from tests.conftest import save_dataset
from tests.helpers.workflows import BUNDLE, ORGANS, SETTINGS, nano_checkpoint, new_workflow, run, train, write_overlay

QUIET = {"report": False}
VALUES = SETTINGS["label_map"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return save_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory) -> Path:
    return nano_checkpoint(tmp_path_factory.mktemp("backbone") / "sam2_nano.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset, backbone_file) -> SimpleNamespace:
    """A training of three iterations, which end within the second of its epochs."""
    folder = tmp_path_factory.mktemp("trained")
    overlay = write_overlay(folder, dataset, backbone_file, iterations=3, **QUIET)
    losses = train(overlay)
    return SimpleNamespace(folder=folder, overlay=overlay, losses=losses)


def refusal(action) -> str:
    with pytest.raises(Exception) as info:
        action()
    found = user_error(info.value)
    assert isinstance(found, BundleError), info.value
    return str(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.pt")}


# ---- the checkpoint


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"train_cases": ["a", "c"]}, "cases.1: b then, c now"),
        ({"label_map": {**VALUES, "spleen": 4, "liver": 1}}, "preprocessing.Compose.transforms"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"learning_rate": 0.002}, "Adam.0.lr: 0.0005 then, 0.002 now"),
        ({"lambda_seg": 0.5}, "loss.DiffuSAMLoss.lambda_seg: 1.0 then, 0.5 now"),
        ({"intensity#a_max": 300}, "ScaleIntensityRanged.a_max: 275 then, 300 now"),
        ({"variants": 2}, "variants: 1 then, 2 now"),
        ({"iterations": 2}, "has done 3 iterations, 2 are asked for"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_in_the_same_folder_is_refused_before_anything_starts(trained, changes, named):
    before = contents(trained.folder)
    cached = set((trained.folder / "cache").iterdir())

    message = refusal(lambda: new_workflow("training", trained.overlay, **changes).initialize())

    assert named in message and "--resume False" in message and "--output_dir" in message
    assert contents(trained.folder) == before and set((trained.folder / "cache").iterdir()) == cached


def test_a_changed_file_of_a_training_case_is_another_training(trained, dataset, tmp_path):
    changed = save_dataset(tmp_path / "changed")
    (changed / "label_a.nii.gz").write_bytes((dataset / "label_a.nii.gz").read_bytes() + b"\0" * 512)

    message = refusal(lambda: new_workflow("training", trained.overlay, dataset_dir=str(changed)).initialize())

    assert "files.a.label" in message


def test_what_does_not_change_a_training_goes_on(trained, tmp_path):
    before = contents(trained.folder)

    assert train(trained.overlay, num_workers=0, report_slices=60) == []
    assert contents(trained.folder) == before  # to the byte: the prior is written again


def test_what_only_inference_asks_for_is_recorded_and_changes_no_weight(trained):
    before = contents(trained.folder)["model.pt"]
    try:
        assert train(trained.overlay, inference_steps=1, encode_batch_size=2) == []
        after = contents(trained.folder)["model.pt"]
    finally:
        train(trained.overlay)  # as it was, for the other tests

    assert after != before and contents(trained.folder)["model.pt"] == before
    weights = [torch.load(io.BytesIO(each), weights_only=True)["model"] for each in (before, after)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items() if key != "_extra_state")


def test_a_training_takes_exactly_as_many_iterations_as_asked(trained):
    assert len(trained.losses) == 3


def test_a_training_that_ended_within_an_epoch_goes_on_as_if_it_had_not(trained, tmp_path, dataset, backbone_file):
    shorter, longer = (
        write_overlay(tmp_path / name, dataset, backbone_file, iterations=3, **QUIET) for name in ("shorter", "longer")
    )
    train(shorter)
    train(shorter, iterations=4)
    train(longer, iterations=4)

    assert (tmp_path / "shorter/model.pt").read_bytes() == (tmp_path / "longer/model.pt").read_bytes()


# ---- losses that are not finite


def test_a_training_whose_rate_falls_by_numpy_is_gone_on_with(tmp_path, dataset, backbone_file):
    """Its scheduler and optimizer hold numbers of NumPy, with which PyTorch would refuse the checkpoint."""
    falling = {"learning_rate_factor": "$lambda progress: 0.5 * (1 + np.cos(np.pi * progress))", **QUIET}
    whole = train(write_overlay(tmp_path / "whole", dataset, backbone_file, iterations=5, **falling))
    killed = write_overlay(tmp_path / "killed", dataset, backbone_file, iterations=5, **falling)

    assert train(killed, kill_at=3) == whole[:3]
    assert train(killed) == whole[2:]
    assert train(killed) == []


def test_a_rate_that_spoils_the_loss_ends_training_and_keeps_what_was_finite(tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file, **QUIET, iterations_per_epoch=1, learning_rate=1e30)

    message = refusal(lambda: train(overlay))

    assert "not finite in iteration 2" in message and "slices of" in message and "learning_rate" in message
    assert not (tmp_path / "model.pt").exists()
    checkpoint = (
        torch.load(tmp_path / "checkpoint.pt", weights_only=True) if (tmp_path / "checkpoint.pt").exists() else {}
    )
    tensors = [each for each in checkpoint.get("model", {}).values() if isinstance(each, torch.Tensor)]
    assert all(torch.isfinite(each).all() for each in tensors)


# ---- the prior


def test_a_prior_says_what_it_was_trained_with(trained):
    content = torch.load(trained.folder / "model.pt", weights_only=True)

    about, state = content["training"], content["model"]["_extra_state"]
    assert sorted(about["cases"]) == ["a", "b"] and set(about["cases"]["a"]) == {"image", "label", "voxels"}
    assert about["modalities"] == ["CT"] and "ScaleIntensityRanged" in about["intensity"]
    assert (state["image_size"], state["scheduler"]["prediction_type"]) == (64, "sample")
    assert about["settings"]["organs"] == ORGANS


def overridden(key, value):
    """``scheduler#prediction_type`` and its value as the whole of ``scheduler``; others as they are."""
    part, _, entry = key.partition("#")
    return {**json.loads((BUNDLE / "configs/train.json").read_text())[part], entry: value} if entry else value


@pytest.mark.parametrize("command", ["evaluating", "inferring"])
@pytest.mark.parametrize(
    "changes, named",
    [
        ({"image_size": 96}, "trained on slices of 64 pixels"),
        ({"scheduler#prediction_type": "epsilon"}, "prediction_type: sample then, epsilon now"),
        ({"intensity#a_min": -200}, "another window of intensities"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_prior_is_refused_where_it_cannot_work(trained, tmp_path, command, changes, named):
    places = {"evaluation_dir": str(tmp_path), "output": str(tmp_path)}
    if command == "inferring":  # where these come from the prior as a whole, and so are overridden
        changes = {key.partition("#")[0]: overridden(key, value) for key, value in changes.items()}

    message = refusal(lambda: new_workflow(command, trained.overlay, **places, **changes).initialize())

    assert named in message and not list(tmp_path.rglob("*_seg.nii.gz"))


def test_training_cases_are_no_test_cases_though_the_list_of_cases_is_another(trained, tmp_path):
    """As after a repeated training with other cases, which kept the prior of the first."""
    changes = {"train_cases": ["c"], "evaluation_dir": str(tmp_path)}

    message = refusal(lambda: new_workflow("evaluating", trained.overlay, **changes).initialize())

    assert "was trained on 2 test cases: a, b" in message and "--allow_training_cases" in message


def test_training_cases_are_no_test_cases_though_their_files_were_written_anew(trained, dataset, tmp_path):
    for path in dataset.glob("*.nii.gz"):
        nib.save(nib.load(path), tmp_path / path.name.removesuffix(".gz"))
    patterns = {"image_pattern": "image_{case}.nii", "label_pattern": "label_{case}.nii"}
    changes = {"dataset_dir": str(tmp_path), **patterns, "train_data": [], "test_cases": ["b", "c"]}

    message = refusal(lambda: new_workflow("evaluating", trained.overlay, **changes).initialize())

    assert "was trained on 1 test case: b." in message


def test_who_says_so_evaluates_training_cases(trained, tmp_path):
    changes = {"train_data": [], "test_cases": ["a"], "allow_training_cases": True, "evaluation_dir": str(tmp_path)}

    run("evaluating", trained.overlay, **changes)

    assert json.loads((tmp_path / "metrics.json").read_text())["cases"] == ["a"]


@pytest.mark.parametrize("command", ["evaluating", "inferring"])
@pytest.mark.parametrize("content", [b"", b"something else" * 99], ids=["empty", "text"])
def test_a_damaged_prior_is_one_line(trained, tmp_path, command, content):
    (tmp_path / "prior.pt").write_bytes(content)

    message = refusal(
        lambda: new_workflow(command, trained.overlay, prior_file=str(tmp_path / "prior.pt")).initialize()
    )

    assert "is no trained prior, or damaged" in message and "\n" not in message


# ---- the cache


@pytest.mark.parametrize("content", [b"", b"something else" * 99, None], ids=["empty", "text", "cut off"])
def test_a_damaged_cache_file_is_made_again(trained, tmp_path, dataset, backbone_file, content, caplog):
    overlay = write_overlay(tmp_path, dataset, backbone_file, iterations=1, **QUIET)
    train(overlay)
    whole = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    path = next(iter(whole))
    path.write_bytes(whole[path][: len(whole[path]) // 2] if content is None else content)

    train(overlay, resume=False)

    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == whole
    assert f"'{path}' is damaged, or something else: made again" in caplog.text


# ---- records


def test_the_report_of_a_training_tells_every_setting(tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file, iterations=1)
    train(overlay)

    settings = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert settings["training"]["batch_size"] == 4 and settings["iterations"] == 1
    assert "training.lr_scheduler" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_inference_is_repeated_where_a_threshold_of_its_flags_is_another(trained, tmp_path, dataset):
    image = dataset / "image_c.nii.gz"
    options = {"input": str(image), "output": str(tmp_path)}
    run("inferring", trained.overlay, **options)
    first = json.loads((tmp_path / "results.json").read_text())
    run("inferring", trained.overlay, **options, **{"quality#max_jump": 0.01})
    second = json.loads((tmp_path / "results.json").read_text())

    assert first["configurations"].keys() != second["configurations"].keys()
    assert np.asarray(nib.load(tmp_path / "image_c_seg.nii.gz").dataobj).shape == nib.load(image).shape


@pytest.mark.parametrize("command, place", [("inferring", "output"), ("evaluating", "evaluation_dir")])
def test_a_report_that_cannot_be_written_is_told_by_the_exit_code(trained, tmp_path, command, place, monkeypatch):
    def full(path, **options):  # what stands in its way before the run is refused there: test_places
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(html_report, "write_report", full)

    with pytest.raises(Exception) as info:
        run(command, trained.overlay, report=True, **{place: str(tmp_path / "out")})

    found = user_error(info.value)
    assert isinstance(found, BundleError) and found.exit_code == 3 and "no report was written" in str(found)
    assert list((tmp_path / "out").glob("*_seg.nii.gz"))
