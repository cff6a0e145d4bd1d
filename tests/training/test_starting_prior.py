"""Where a prior's training starts: what is taken over from an earlier prior, and what is said where nothing is."""

from __future__ import annotations

import pytest
import torch
from scripts.automedsam.network import AutoMedSAM, ClassPromptEncoder
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.starting_prior import StartingPrior

EMBEDDING = "unet.class_embedding.weight"


def network(organs, seed, backbone_seed=0, widths=(32, 64)):
    torch.manual_seed(backbone_seed)
    backbone = FrozenSAM2("sam2_nano", image_size=64)
    torch.manual_seed(seed)
    prior = MemoryPrior(32, 128, organs=len(organs), block_out_channels=widths, attention_levels=1)
    return DiffuSAM(backbone, prior, organs=organs)


@pytest.fixture
def earlier(tmp_path):
    """A trained prior of two organs, and its file."""
    trained = network(["spleen", "liver"], seed=1)
    trained.prior.memory_mean += 3.0
    trained.prior.fitted.fill_(True)
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")
    return trained, tmp_path / "model.pt"


@pytest.fixture
def statistics():
    return [(torch.randn(4, 32, 4, 4), torch.randn(4, 128, 4, 4))]


def test_the_same_organs_start_as_the_earlier_prior_ended(earlier, statistics):
    trained, path = earlier
    starting = network(["spleen", "liver"], seed=2)

    StartingPrior(starting, path, statistics=statistics)()

    for key, value in trained.prior.state_dict().items():
        assert torch.equal(starting.prior.state_dict()[key], value), key


def test_organs_are_matched_by_name_and_new_ones_keep_their_own_embedding(earlier, statistics, caplog):
    trained, path = earlier
    starting = network(["pancreas", "liver"], seed=2)
    own = starting.prior.state_dict()[EMBEDDING][0].clone()

    with caplog.at_level("INFO"):
        StartingPrior(starting, path, statistics=statistics)()

    rows = starting.prior.state_dict()[EMBEDDING]
    assert torch.equal(rows[0], own)
    assert torch.equal(rows[1], trained.prior.state_dict()[EMBEDDING][1])
    assert "knows liver; from scratch: pancreas" in caplog.text


def test_automedsam_starts_from_an_automedsam(tmp_path, statistics, caplog):
    def automedsam(organs: list[str]) -> AutoMedSAM:
        encoder = ClassPromptEncoder(128, len(organs), block_out_channels=(32, 64), attention_levels=1)
        return AutoMedSAM(network(organs, seed=0).backbone, encoder, organs=organs)

    trained, starting = automedsam(["spleen", "liver"]), automedsam(["liver", "pancreas"])
    trained.prior.fitted.fill_(True)
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")

    with caplog.at_level("INFO"):
        StartingPrior(starting, tmp_path / "model.pt", statistics=statistics)()

    rows = starting.prior.organ_embedding.weight
    assert torch.equal(rows[0], trained.prior.organ_embedding.weight[1])
    assert torch.equal(starting.prior.conv_in.weight, trained.prior.conv_in.weight)
    assert "knows liver; from scratch: pancreas" in caplog.text


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"backbone_seed": 5}, "was trained for other weights than those of 'sam2_nano'"),
        ({"widths": (32, 32)}, "has other widths"),
        ({"organs": ["pancreas", "stomach"]}, "knows none of the organs"),
    ],
)
def test_what_does_not_fit_is_left_and_the_log_says_why(earlier, statistics, caplog, change, reason):
    _, path = earlier
    starting = network(**{"organs": ["spleen", "liver"], "seed": 2, **change})
    before = {key: value.clone() for key, value in starting.prior.unet.state_dict().items()}

    with caplog.at_level("INFO"):
        StartingPrior(starting, path, statistics=statistics)()

    assert reason in caplog.text and "starts from scratch" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in starting.prior.unet.state_dict().items())
    assert starting.prior.fitted  # statistics are those of the training volumes
    assert starting.prior.memory_mean.abs().max() < 1


@pytest.mark.parametrize("start_from", [None, "nowhere.pt"])
def test_without_an_earlier_prior_statistics_are_fitted(statistics, start_from):
    starting = network(["spleen", "liver"], seed=2)

    StartingPrior(starting, start_from, statistics=statistics)()

    assert starting.prior.fitted
