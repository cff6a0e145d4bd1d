"""The data sets' overlays: what they name exists, their splits are what they are said to be, and adaptation needs no
source.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scripts.segmentation.views import View

from tests.helpers.workflows import BUNDLE, ROOT, SETTINGS, new_workflow, run, train, write_overlay

CONFIGS = BUNDLE / "configs"
BTCV_CASES = [f"{number:04d}" for number in [*range(1, 11), *range(21, 41)]]
CHAOS_CASES = [*"1 2 3 5 8 10 13 15 19 20 21 22 31 32 33 34 36 37 38 39".split()]
OVERLAYS = [
    "paper",
    "btcv",
    "chaos",
    "folder",
    "sf_uda",
    "sf_uda_demo",
    "ct",
    "mr",
    "automedsam",
    "beyond_paper",
    "few_shot",
]
OVERLAYS += [f"splits/{path.stem}" for path in (CONFIGS / "splits").iterdir()]
OWN = {"automedsam": {"sparse_tokens", "pixel_loss"}}  # keys that an overlay brings along


def read(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_only_what_the_configuration_has(name):
    """A misspelt key would be ignored in silence."""
    known = {*read("train"), *read("evaluate"), *OWN.get(name, ())}

    assert read(name).keys() <= known


@pytest.mark.parametrize("name, other", [("ct", "train"), ("ct", "btcv"), ("mr", "chaos"), ("mr", "sf_uda")])
def test_intensities_of_one_modality_are_the_same_everywhere(name, other):
    assert read(name)["intensity"] == read(other)["intensity"]


@pytest.mark.parametrize("name", ["paper", "btcv", "chaos", "sf_uda", "sf_uda_demo", "folder"])
def test_organs_come_in_the_order_of_the_published_prior(name):
    assert list(read(name)["label_map"]) == list(read("train")["label_map"])


def test_btcv_is_what_the_recipe_names():
    recipe = read("paper")

    assert all(value == recipe[key] for key, value in read("btcv").items() if key not in ("output_dir", "prior_file"))


@pytest.mark.parametrize("seed", range(6))
def test_btcv_splits_are_those_of_scikit_learn(seed):
    """``train_test_split(sorted_cases, test_size=0.1, random_state=seed)``, whose "test" part is the support set."""
    split = read(f"splits/btcv_seed{seed}")
    drawn = np.random.RandomState(seed).permutation(len(BTCV_CASES))[:3]

    assert split["train_cases"] == sorted(BTCV_CASES[index] for index in drawn)
    assert sorted(split["train_cases"] + split["test_cases"]) == BTCV_CASES


def test_the_default_split_is_that_of_seed_2():
    assert read("btcv")["train_cases"] == read("splits/btcv_seed2")["train_cases"] == ["0001", "0002", "0025"]


def test_adaptation_is_trained_on_all_of_btcv():
    split, table = read("splits/btcv_all"), ROOT / "benchmarks/tables/definitions/btcv_adaptation.json"

    assert split["train_cases"] == BTCV_CASES and split["test_cases"] == []
    for training in json.loads(table.read_text())["trainings"].values():
        assert training["base"][-1] == "configs/splits/btcv_all.json"


@pytest.mark.parametrize(
    "name, tested", [("dfg", ["2", "8", "31", "34"]), ("sifa", ["1", "13", "32", "38"]), ("all", CHAOS_CASES)]
)
def test_chaos_test_lists_are_the_customary_ones(name, tested):
    split = read(f"splits/chaos_{name}")

    assert split["test_cases"] == tested
    assert sorted(split["train_cases"] + tested, key=int) == CHAOS_CASES


# ---- other organs


def test_beyond_the_paper_training_sees_the_times_of_inference_alone(tmp_path, tiny_dataset, backbone_file):
    overlay = write_overlay(tmp_path, tiny_dataset, backbone_file)
    times = []
    for inference_steps in (2, read("beyond_paper")["inference_steps"]):
        workflow = new_workflow("training", overlay, CONFIGS / "beyond_paper.json", inference_steps=inference_steps)
        workflow.initialize()
        times.append(workflow.trainer.timesteps.tolist())
        workflow.finalize()

    assert times == [[999, 499], [999]]


def test_a_volume_is_segmented_in_the_views_of_the_configuration(tmp_path, tiny_dataset, backbone_file):
    overlay = write_overlay(tmp_path, tiny_dataset, backbone_file)
    views = [[0, 1], [7, 1.1]]
    for command in ("evaluating", "inferring"):
        workflow = new_workflow(command, overlay, input=str(tiny_dataset), views=views)
        inferer = workflow.parser.get_parsed_content("validate#inferer" if command == "evaluating" else "inferer")
        assert inferer.views == (View(0, 1), View(7, 1.1))


def test_one_organ_is_trained_evaluated_and_inferred_without_touching_python(tmp_path, tiny_dataset, backbone_file):
    """Values that are no organ any more are background; two values may make one organ."""
    overlay = write_overlay(
        tmp_path, tiny_dataset, backbone_file, label_map={"kidneys": [2, 3]}, background_values=[0, 1, 4], iterations=2
    )

    train(overlay)
    for command in ("evaluating", "inferring"):
        run(command, overlay)

    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["organs"] == ["kidneys"]
    assert np.isfinite(metrics["dice"]["values"]).all()
    assert (tmp_path / "inference" / "image_c_seg.nii.gz").is_file()


# ---- source-free adaptation (section 2.2)


@pytest.fixture(scope="module")
def target(tmp_path_factory, write_dataset) -> Path:
    """Cases a, b, c, d in the layout and with the label values of CHAOS, as `sf_uda.json` expects them."""
    folder = write_dataset(tmp_path_factory.mktemp("target"))
    for path in folder.glob("image_*.nii.gz"):  # of other scans than the source
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), path)
    return folder


def adapt(target: Path, folder: Path, prior_file: Path, backbone_file: Path, **options):
    """Runs the evaluation of `sf_uda.json`; the workflow, and its network as it was before."""
    network_settings = (
        "device",
        "backbone_name",
        "backbone_sha256",
        "image_size",
        "use_high_res",
        "prior_channels",
        "attention_levels",
    )
    settings = {key: SETTINGS[key] for key in network_settings}
    places = {"dataset_dir": str(target), "output_dir": str(folder), "prior_file": str(prior_file)}
    overlay = folder / "target.json"
    overlay.write_text(json.dumps({**places, **settings, "backbone_checkpoint": str(backbone_file), **options}))
    workflow = new_workflow("evaluating", CONFIGS / "sf_uda.json", overlay)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.mark.parametrize("options", [{}, {"memory_samples": 2}], ids=str)
def test_adaptation_reaches_no_source_and_changes_no_weight(tmp_path, write_dataset, target, backbone_file, options):
    """The prior is all that is left of the source when the target is segmented."""
    source = write_dataset(tmp_path / "source")
    train(write_overlay(tmp_path / "training", source, backbone_file, iterations=2))
    prior_file = tmp_path / "prior.pt"
    (tmp_path / "training" / "model.pt").rename(prior_file)
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "training")
    before = torch.load(prior_file, weights_only=True)["model"]
    adapted = tmp_path / "adapted"
    adapted.mkdir()

    workflow = adapt(target, adapted, prior_file, backbone_file, **options)

    network = workflow.parser.get_parsed_content("network")
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items() if isinstance(value, torch.Tensor))
    assert after["_extra_state"]["weights"] == before["_extra_state"]["weights"] == network.backbone.fingerprint()
    metrics = json.loads((adapted / "evaluation" / "metrics.json").read_text())
    assert metrics["cases"] == [*"abcd"]


# ---- SAM2's sizes


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_downloaded_weights_are_what_the_overlay_loads(size):
    """MONAI's `download_large_files` puts a file where its list lies; the overlay must look for it there."""
    settings = read("paper") if size == "tiny" else read(f"backbones/{size}")
    folder = BUNDLE if size == "tiny" else BUNDLE / "models" / f"sam2.1_hiera_{size}"
    (listed,) = ConfigParser.load_config_file(folder / "large_files.yml")["large_files"]

    checkpoint = settings["backbone_checkpoint"].removeprefix("$@bundle_root + '/").removesuffix("'")

    assert BUNDLE / checkpoint == folder / listed["path"]
    assert (listed["hash_type"], listed["hash_val"]) == ("sha256", settings["backbone_sha256"])
    assert settings["backbone_name"] == Path(listed["url"]).stem == f"sam2.1_hiera_{size}"
