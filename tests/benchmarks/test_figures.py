"""Figures 2 and 3: what their numbers say of memories and masks that are known, and both commands from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from tests.helpers.networks import TOKENS, make_backbone, make_diffusam
from tests.helpers.workflows import BUNDLE, ORGANS, train, write_overlay

pytest.importorskip("sklearn")
from benchmarks.figures import emerging_mask, memories  # noqa: E402


@pytest.fixture(scope="module")
def project(tmp_path_factory, write_dataset, backbone_file) -> SimpleNamespace:
    """A training of four iterations, whose prior is kept after the first."""
    folder = tmp_path_factory.mktemp("project")
    dataset = write_dataset(folder / "dataset")
    overlay = write_overlay(folder / "run", dataset, backbone_file, snapshots=[1], test_cases=["c"])
    train(overlay)
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
    return SimpleNamespace(folder=folder / "run", config_file=[*configs, str(overlay)])


def read(folder: Path, name: str) -> dict:
    assert imread(folder / f"{name}.png").std() > 0
    return json.loads((folder / f"{name}.json").read_text())


# ---- Figure 2

ORGAN = torch.tensor([0, 0, 1, 1])
TRUE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]])


def test_perfect_memories_agree_perfectly():
    assert memories.agreement(TRUE, TRUE, ORGAN) == {"distance_to_own": 0, "organ_retrieved": 1, "slice_retrieved": 1}


def test_memories_of_another_slice_are_of_the_right_organ_and_no_more():
    agreement = memories.agreement(TRUE[[1, 0, 3, 2]], TRUE, ORGAN)

    assert (agreement["organ_retrieved"], agreement["slice_retrieved"]) == (1, 0)
    assert agreement["distance_to_own"] == pytest.approx(0.1)  # organs are 9, 10, 10 and 11 apart


def test_memories_of_another_organ_are_not_retrieved():
    agreement = memories.agreement(TRUE[[0, 2, 3, 0]], TRUE, ORGAN)

    assert (agreement["organ_retrieved"], agreement["slice_retrieved"]) == (0.5, 0.25)


def test_the_distance_within_organs_is_that_of_different_slices():
    assert memories.distance_within_organ(TRUE, ORGAN) == pytest.approx(0.1)


def test_organs_far_apart_are_far_apart_on_the_map():
    draws = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    organ = torch.arange(40) % 2

    places = memories.project(draws + 100.0 * organ[:, None], perplexity=5, seed=0)

    nearest = (torch.cdist(places, places) + 1e9 * torch.eye(40)).argmin(1)
    assert torch.equal(organ[nearest], organ)


def test_every_stage_of_training_gets_its_numbers(project, tmp_path):
    priors = {"early": str(project.folder / "model_000001.pt"), "late": str(project.folder / "model.pt")}
    options = {"slices": 3, "bundle_root": str(BUNDLE)}

    memories.main(project.config_file, priors, output=str(tmp_path), **options)

    content = read(tmp_path, "memories")
    assert (content["cases"], content["organs"]) == (["c"], ORGANS)
    assert len(content["memories"]) == len(ORGANS) and sum(content["memories"]) >= 3
    early, late = (content["stages"][stage] for stage in ("early", "late"))
    assert early["prior_file"] == priors["early"]
    assert early["distance_to_own"] != late["distance_to_own"]


def test_a_stage_whose_prior_is_not_there_is_named(project, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        memories.main(project.config_file, {"late": str(tmp_path / "nowhere.pt")}, bundle_root=str(BUNDLE))


# ---- Figure 3


def test_dice_of_a_slice_is_the_mean_of_the_organs_in_either_map():
    true, predicted = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    true[0, :2], predicted[0, :2] = 1, 1
    predicted[0, 3] = 3  # invented
    true[1, :2], predicted[1, :1] = 2, 2

    dice = emerging_mask.slice_dice(predicted, true, organs=4)

    assert dice.tolist() == pytest.approx([0.5, 2 / 3])


@pytest.fixture(scope="module")
def network():
    return make_diffusam(make_backbone(), steps=4)


@pytest.fixture(scope="module")
def features(network):
    with torch.no_grad():
        return network.backbone.encode_image(torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("show", ["prediction", "sample"])
def test_the_chain_ends_where_inference_does(network, features, show):
    rows = emerging_mask.chain(network, features, steps=4, shown=[1, 2, 4], show=show)

    assert len(rows) == 4
    torch.testing.assert_close(rows[-1], network.synthesise(features))


def test_the_chain_begins_with_noise_on_the_memories_scale(network, features):
    network.prior.memory_mean.fill_(3.0)
    try:
        noise = emerging_mask.chain(network, features, steps=1, shown=[1], show="sample")[0]
    finally:
        network.prior.memory_mean.fill_(0.0)

    assert noise.shape[0] == 2 * len(network.organs) and noise.shape[-1] == TOKENS
    assert noise.mean().item() == pytest.approx(3, abs=0.1) and noise.std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(noise[:2], noise[2:])  # both slices start from the same


def test_a_picture_has_a_block_for_each_configuration(project, tmp_path):
    config_files = {"CT": project.config_file, "MR": project.config_file}

    options = {"steps": 2, "shown": (1, 2), "bundle_root": str(BUNDLE)}
    emerging_mask.main(config_files, output=str(tmp_path), **options)

    content = read(tmp_path, "emerging_mask")
    assert content["rows"] == [0, 1, 2]
    for block in content["blocks"].values():
        assert block["case"] == "c" and len(block["slices"]) == 2
        dice = np.array(block["dice"])
        assert dice.shape == (3, 2) and (dice >= 0).all() and (dice <= 1).all()


@pytest.mark.parametrize("shown", [[], [0, 1], [2, 1], [1, 11]], ids=str)
def test_steps_that_are_not_of_the_chain_are_refused(tmp_path, shown):
    with pytest.raises(ValueError, match="steps from 1 to 10"):
        emerging_mask.main({}, str(tmp_path), shown=shown)
