"""The commands of Table 2's other rows, end to end: no source image, no target label, no second run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.errors import DatasetError, SettingError
from scripts.weights import save_atomically

from benchmarks.adaptation import run
from benchmarks.adaptation.source_model import FeatureUNet
from benchmarks.adaptation.target_images import adaptation_cases, target_volumes
from benchmarks.configuration import parse
from tests.helpers.workflows import BUNDLE, ORGANS, SIZE, write_overlay

CONFIGS = BUNDLE / "configs"
SMALL = {"steps": 2, "slices_per_step": 4, "channels": (4, 8)}
# an untrained model is sure of nothing, and random masks may change a lot: this makes the search find some
SEARCH = {"sure": 0, "min_sure_area": 1, "min_area": 0, "changes": (1e6, 1e6), "steps": 3}
ADAPT = {
    "source_only": {},
    "dpl": {"passes": 2, "epochs": 1, "max_deviation": 1.0},
    "dfg": {"aggregation_steps": 1, "retraining_steps": 2, "retraining_rate": 1e-2, "search": SEARCH},
}


def target_config(folder: Path, dataset: Path, backbone_file: Path, **settings) -> list[str]:
    """The config files of a target: cases a and b without labels for adaptation, c for the test."""
    settings = {"train_data": [], "test_cases": ["c"], **settings}
    overlay = write_overlay(folder, dataset, backbone_file, **settings)
    return [str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json"), str(overlay)]


@pytest.fixture(scope="module")
def source_model(tmp_path_factory, write_dataset, backbone_file) -> Path:
    """A source model, of whose data nothing is left."""
    folder = tmp_path_factory.mktemp("source")
    dataset, path = write_dataset(folder / "dataset"), folder / "source.pt"
    overlay = write_overlay(folder / "overlay", dataset, backbone_file)
    source = {"config_file": [str(CONFIGS / "train.json"), str(overlay)], "source_model": str(path), **SMALL}
    run.train_source(**source, features=6, bundle_root=str(BUNDLE))
    shutil.rmtree(dataset)
    shutil.rmtree(folder / "overlay")
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory, write_dataset) -> Path:
    return write_dataset(tmp_path_factory.mktemp("target"))


def adapt(row: str, folder: Path, dataset: Path, source_model: Path, backbone_file: Path, **options) -> dict:
    config = target_config(folder, dataset, backbone_file)
    options = {**ADAPT[row], "bundle_root": str(BUNDLE), **options}
    return getattr(run, row)(config, str(source_model), output=str(folder / "result.json"), **options)


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in (folder / "result").glob("*_seg.nii.gz")}


def test_the_demos_target_tests_the_cases_of_the_bundles_demo_and_no_patient_of_the_source():
    """The source's patients are seeds 0 to 2; a misspelt key would be ignored in silence."""
    overlay = json.loads((Path(run.__file__).parent / "demo_target.json").read_text())
    known, demo = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "sf_uda_demo"))
    first, count = (demo["dataset_dir"][key] for key in ("first_seed", "count"))

    assert overlay.keys() <= known.keys()
    assert overlay["test_cases"] == [f"mr{seed:03d}" for seed in range(first, first + count)]
    made = range(overlay["dataset_dir"]["first_seed"], first + overlay["dataset_dir"]["count"])
    assert sorted(overlay["test_cases"] + overlay["train_cases"]) == [f"mr{seed:03d}" for seed in made]
    assert made[0] > 2


def test_the_source_model_is_trained_once(tmp_path, write_dataset, backbone_file, capsys):
    dataset = write_dataset(tmp_path / "dataset")
    overlay = write_overlay(tmp_path / "overlay", dataset, backbone_file)
    config, path = [str(CONFIGS / "train.json"), str(overlay)], str(tmp_path / "source.pt")

    run.train_source(config, path, **SMALL, bundle_root=str(BUNDLE))
    saved = torch.load(path, weights_only=True)
    trained = Path(path).stat().st_mtime_ns
    run.train_source(config, path, **SMALL, bundle_root=str(BUNDLE))

    about = saved["identity"]["about"]
    assert about["organs"] == ORGANS and about["image_size"] == SIZE
    assert "not trained again" in capsys.readouterr().out
    assert Path(path).stat().st_mtime_ns == trained
    with pytest.raises(ValueError, match="other settings"):
        run.train_source(config, path, **{**SMALL, "steps": 3}, bundle_root=str(BUNDLE))


def test_the_source_model_may_start_from_a_network_of_painted_patients(tmp_path, write_dataset, backbone_file):
    overlay = write_overlay(tmp_path / "overlay", write_dataset(tmp_path / "dataset"), backbone_file)
    config, path = [str(CONFIGS / "train.json"), str(overlay)], str(tmp_path / "source.pt")
    painted, other = FeatureUNet(len(ORGANS), SMALL["channels"]), FeatureUNet(len(ORGANS), (4, 16))
    for name, network in (("painted", painted), ("other", other)):
        save_atomically({"network": network.state_dict()}, tmp_path / f"{name}.pt")
    options = {**SMALL, "steps": 1, "learning_rate": 0.0, "bundle_root": str(BUNDLE)}

    run.train_source(config, path, start_from=str(tmp_path / "painted.pt"), **options)

    saved = torch.load(path, weights_only=True)["network"]
    assert all(torch.equal(saved[key], value) for key, value in painted.named_parameters())
    with pytest.raises(ValueError, match="other settings.*start_from"):
        run.train_source(config, path, **options)
    with pytest.raises(SettingError, match="other.pt' holds another network than this FeatureUNet"):
        run.train_source(config, str(tmp_path / "new.pt"), start_from=str(tmp_path / "other.pt"), **options)


@pytest.mark.parametrize("row", ADAPT)
def test_rows_need_the_source_model_alone_and_never_the_labels(
    row, tmp_path, write_dataset, target, source_model, backbone_file, capsys
):
    """The source's images are gone. Labels that lie elsewhere change the metrics, and no voxel of a prediction."""
    model = source_model.read_bytes()
    elsewhere = write_dataset(tmp_path / "elsewhere")
    for path in elsewhere.glob("label_*"):
        volume = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[::-1, ::-1].copy(), volume.affine), path)

    result = adapt(row, tmp_path / "true", target, source_model, backbone_file)
    other = adapt(row, tmp_path / "false", elsewhere, source_model, backbone_file)
    again = adapt(row, tmp_path / "true", target, source_model, backbone_file)

    assert result["row"] == row and result["cases"] == ["c"] and result["organs"] == ORGANS
    assert result["about"]["adaptation_cases"] == ([] if row == "source_only" else ["a", "b"])
    assert (result["seconds_training"] > 0) == (row != "source_only")
    maps, others = label_maps(tmp_path / "true"), label_maps(tmp_path / "false")
    assert len(maps) == 1 and maps.keys() == others.keys()
    for name, labels in maps.items():
        assert labels.any()
        np.testing.assert_array_equal(labels, others[name])
    assert result["dice"] != other["dice"]
    assert source_model.read_bytes() == model
    said = capsys.readouterr().out
    assert again == result and f"{row} is not run again" in said
    assert " 0 masks found" not in said


def test_adaptation_reads_images_alone(tmp_path, write_dataset, backbone_file):
    """Where there is no label at all, images of adaptation are those that the configuration's training would see."""
    dataset = write_dataset(tmp_path / "dataset")
    files = target_config(tmp_path / "overlay", dataset, backbone_file)
    labelled = parse(files, {"bundle_root": str(BUNDLE)}).get_parsed_content("train#preprocessing")
    expected = labelled({key: str(dataset / f"{key}_b.nii.gz") for key in ("image", "label")})["image"]
    for path in dataset.glob("label_*"):
        path.unlink()

    volumes = target_volumes(parse(files, {"bundle_root": str(BUNDLE)}))

    assert list(volumes) == ["a", "b"]
    torch.testing.assert_close(volumes["b"], expected.as_tensor().permute(3, 0, 1, 2).half())


def test_a_target_without_training_cases_is_adapted_to_on_its_test_images(tmp_path, target, backbone_file):

    files = target_config(tmp_path, target, backbone_file, train_cases=[])

    assert adaptation_cases(parse(files, {"bundle_root": str(BUNDLE)})) == ["c"]


def test_the_upper_bound_trains_on_the_targets_labels(tmp_path, target, backbone_file):
    options = {**SMALL, "bundle_root": str(BUNDLE), "output": str(tmp_path / "result.json")}

    result = run.target_supervised(target_config(tmp_path, target, backbone_file), **options)

    assert result["about"]["train_cases"] == ["a", "b"] and result["cases"] == ["c"]
    assert result["seconds_training"] > 0
    with pytest.raises(DatasetError, match="names no `train_cases`"):
        run.target_supervised(target_config(tmp_path / "none", target, backbone_file, train_cases=[]), **options)


@pytest.mark.parametrize("settings, message", [({"image_size": 96}, "slices of 64 pixels"), ({}, "in `label_map`")])
def test_a_source_model_of_another_kind_is_refused(settings, message, tmp_path, target, source_model, backbone_file):
    if not settings:
        settings = {"label_map": {"kidneys": [2, 3]}, "background_values": [0, 1, 4]}
    files = target_config(tmp_path, target, backbone_file, **settings)

    with pytest.raises(ValueError, match=message):
        run.source_only(files, str(source_model), bundle_root=str(BUNDLE))
    with pytest.raises(FileNotFoundError, match="Train it first"):
        run.source_only(files, str(tmp_path / "none.pt"), bundle_root=str(BUNDLE))
