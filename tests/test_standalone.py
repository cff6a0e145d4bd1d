"""A trained prior as a bundle of its own, and the programs that read it: MONAI's ``load``, and MONAI Label."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scripts.standalone import standalone

from tests.helpers.workflows import BUNDLE, ORGANS, SIZE, command_line, run, train, write_overlay

INFERENCE = str(BUNDLE / "configs" / "inference.json")
NAME = "diffusam_test"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, dataset, backbone_file) -> Path:
    """A user's overlay after a short training."""
    path = write_overlay(tmp_path_factory.mktemp("project"), dataset, backbone_file, variants=0, iterations=1)
    train(path)
    return path


@pytest.fixture(scope="module")
def folder(overlay, tmp_path_factory) -> Path:
    """A bundle of its own, of a training whose own files are no longer where they were."""
    path = tmp_path_factory.mktemp("bundles") / NAME
    standalone(str(path), [INFERENCE, str(overlay)])
    return path


@pytest.fixture(scope="module")
def label_map(folder, dataset, overlay, tmp_path_factory) -> np.ndarray:
    """Case c, segmented by the bundle and the overlay."""
    output = tmp_path_factory.mktemp("inference")
    run("inferring", overlay, input=str(dataset / "image_c.nii.gz"), output=str(output))
    return np.asarray(nib.load(output / "image_c_seg.nii.gz").dataobj)


def test_the_configuration_needs_no_overlay_and_no_place_of_the_training(folder, overlay):
    text = (folder / "configs" / "inference.json").read_text()

    assert str(overlay.parent) not in text
    parser = ConfigParser(json.loads(text))
    parser["bundle_root"] = str(folder)
    assert parser.get_parsed_content("network_def").organs == ORGANS
    assert Path(parser.get_parsed_content("prior_file")).is_file()


def test_the_architecture_of_the_embedded_backbone_goes_along(folder):
    assert (folder / "models" / "sam2_nano.yaml").read_bytes() == (BUNDLE / "models" / "sam2_nano.yaml").read_bytes()


def test_the_metadata_describe_the_network_of_the_overlay(folder):
    network = monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(folder),
    )
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())

    assert network is None  # MONAI raises where shapes differ
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [SIZE, SIZE]
    assert metadata["memory_data_format"]["outputs"]["memory"]["num_channels"] == 32
    for described in (metadata["memory_data_format"], metadata["automedsam_data_format"]):
        assert described["inputs"]["organ"]["value_range"] == [0, len(ORGANS) - 1]
    assert metadata["automedsam_data_format"]["inputs"]["embedding"]["spatial_shape"] == [SIZE // 16] * 2
    assert metadata["automedsam_data_format"]["outputs"]["dense"]["spatial_shape"] == [SIZE // 16] * 2


def test_nothing_is_claimed_of_the_data_of_another_prior(folder):
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    text = (folder / "docs" / "data_license.txt").read_text()

    assert metadata["eval_metrics"] == {} and "to state" in metadata["data_source"]
    assert "painted" not in text and "are for whoever made this bundle to state" in " ".join(text.split())
    assert all(path.name in text for path in folder.glob("models/*.pt"))
    assert "its numbers are not those" in " ".join((folder / "docs" / "README.md").read_text().split())


@pytest.mark.slow
def test_the_folder_segments_like_the_bundle_it_was_made_by(folder, dataset, label_map, tmp_path):
    image, output = dataset / "image_c.nii.gz", tmp_path / "out"
    arguments = ["-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
    result = command_line([*arguments, "--input", str(image), "--output", str(output)], folder)

    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.asarray(nib.load(output / "image_c_seg.nii.gz").dataobj), label_map)


def test_a_folder_with_files_is_refused(folder, overlay):
    with pytest.raises(ValueError, match="is there already"):
        standalone(str(folder), [INFERENCE, str(overlay)])


def test_a_prior_that_is_not_there_is_named_and_nothing_is_written(overlay, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        standalone(str(tmp_path / "new"), [INFERENCE, str(overlay)], prior_file=str(tmp_path / "missing.pt"))

    assert not (tmp_path / "new").exists()


def test_monai_loads_the_network_offline(folder, overlay, monkeypatch):
    monkeypatch.setattr(monai.bundle.scripts, "download", lambda **_: pytest.fail("tried to download"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that configurations are code
        network = monai.bundle.load(
            NAME,
            bundle_dir=str(folder.parent),
            workflow_type="inference",
            device="cpu",
            key_in_ckpt="model",
            copy_model_args={"exclude_vars": "_extra_state"},
            args_file={"bundle_root": str(folder), "logging_file": False},
        )

    trained = torch.load(folder / "models" / "model.pt", weights_only=True)["model"]
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.items() if isinstance(value, torch.Tensor))
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, SIZE, SIZE)).shape == (1, 1 + len(ORGANS), SIZE, SIZE)


@pytest.mark.external
def test_monai_label_segments_like_the_bundle(folder, dataset, label_map):
    task_module = pytest.importorskip(
        "monailabel.tasks.infer.bundle", reason="MONAI Label is not installed", exc_type=ImportError
    )
    task = task_module.BundleInferTask(str(folder), {})
    assert task.is_valid()
    assert task.info()["labels"] == {organ: value for value, organ in enumerate(ORGANS, 1)}

    image = dataset / "image_c.nii.gz"
    written, result = task({"image": str(image), "device": "cpu", "result_extension": ".nii.gz"})

    assert result["label_names"] == task.labels
    segmentation = nib.load(written)
    assert np.allclose(segmentation.affine, nib.load(image).affine)
    assert np.array_equal(np.asarray(segmentation.dataobj), label_map)
