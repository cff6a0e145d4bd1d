"""Where a prior's training starts: what is taken over from an earlier prior, and what is said where nothing is."""

from __future__ import annotations

import pytest
import torch
from scripts.automedsam.network import AutoMedSAM, ClassPromptEncoder
from scripts.errors import SettingError, UnusableFileError
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.starting_prior import StartingPrior, share_learned

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


@pytest.mark.parametrize(
    "organs, fitted", [(["spleen", "liver"], True), (["pancreas", "liver"], False), (["pancreas", "stomach"], False)]
)
def test_a_prior_that_is_not_trained_generates_memories_of_organs_that_it_knows_all(earlier, organs, fitted, caplog):
    starting = network(organs, seed=2)

    with caplog.at_level("INFO"):
        StartingPrior(starting, earlier[1], statistics=pytest.fail, trained=False)()

    assert bool(starting.prior.fitted) == fitted
    assert ("will not generate memories: " in caplog.text) == (not fitted)
    assert fitted or "pancreas" in caplog.text


def test_a_prior_that_was_never_trained_is_no_start(earlier, statistics, caplog):
    trained, path = earlier
    trained.prior.fitted.fill_(False)
    torch.save({"model": trained.state_dict()}, path)
    starting = network(["spleen", "liver"], seed=2)

    with caplog.at_level("INFO"):
        StartingPrior(starting, path, statistics=statistics)()

    assert starting.prior.fitted and "starts from scratch: the prior of" in caplog.text
    assert not torch.equal(starting.prior.state_dict()[EMBEDDING], trained.prior.state_dict()[EMBEDDING])


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


@pytest.fixture
def named(tmp_path, statistics):
    """``named(trained_encoder, encoder, change)``: starts a training from a file whose head has been changed."""

    def start(trained_encoder, encoder, change):
        trained, starting = network(["spleen", "liver"], seed=1), network(["liver", "pancreas"], seed=2)
        trained.names = naming(trained.backbone, trained.organs, own_encoder=trained_encoder)
        starting.names = naming(starting.backbone, starting.organs, own_encoder=encoder)
        state = trained.state_dict()
        change(state)
        torch.save({"model": state}, tmp_path / "model.pt")
        StartingPrior(starting, tmp_path / "model.pt", statistics=statistics)()
        return trained, starting

    return start


def _narrower(state):
    for key, value in state.items():
        if key.startswith("names.mix."):
            state[key] = value[:64]


@pytest.mark.parametrize(
    "trained_encoder, encoder, change, reason",
    [
        (True, False, lambda state: None, "has an encoder of its own (`names_encoder` True), this one has none"),
        (False, False, _narrower, "has other widths (2 of its tensors differ, such as 'mix.bias')"),
        (False, True, _narrower, "has other widths (2 of its tensors differ, such as 'mix.bias')"),
        (True, True, lambda state: state.pop("names.sam2.sam_mask_decoder.conv_s0.bias"), "has other widths (1 of"),
        (False, False, lambda state: state.pop("names.coarse.bias"), "such as 'coarse.bias'"),
        (False, False, lambda state: state["_extra_state"]["organs"].append("x"), "such as 'coarse.bias'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_in_words(named, trained_encoder, encoder, change, reason):
    with pytest.raises(SettingError) as info:
        named(trained_encoder, encoder, change)

    assert reason in str(info.value) and "`start_from`" in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("trained_encoder, encoder", [(False, False), (True, True), (False, True)])
def test_a_head_that_fits_is_taken_over_for_any_organs(named, trained_encoder, encoder):
    trained, starting = named(trained_encoder, encoder, lambda state: None)

    assert torch.equal(starting.names.mix.weight, trained.names.mix.weight)
    liver, then = starting.names.classes.index("liver"), trained.names.classes.index("liver")
    assert torch.equal(starting.names.fine.weight[liver], trained.names.fine.weight[then])


@pytest.mark.parametrize(
    "content, said",
    [
        ({"prior": {"a": torch.ones(2)}}, "is no trained prior: it holds prior"),
        ({"model": {"a": torch.ones(2)}}, "is no trained prior"),
        ({"model": [1]}, "is no trained prior"),
        (None, "hold NaN or infinite numbers (such as 'prior."),
    ],
)
def test_a_file_that_is_no_prior_is_refused_in_words(earlier, statistics, content, said):
    trained, path = earlier
    trained.prior.memory_mean[0] = float("nan")
    torch.save({"model": trained.state_dict()} if content is None else content, path)

    with pytest.raises(UnusableFileError) as info:
        StartingPrior(network(["spleen", "liver"], seed=2), path, statistics=statistics)()

    assert said in str(info.value) and str(path) in str(info.value) and "`start_from`" in str(info.value)


@pytest.mark.parametrize("start_from", [None, "nowhere.pt"])
def test_without_an_earlier_prior_statistics_are_fitted(statistics, start_from):
    starting = network(["spleen", "liver"], seed=2)

    StartingPrior(starting, start_from, statistics=statistics)()

    assert starting.prior.fitted


@pytest.mark.parametrize(("volumes", "share"), [(1, 0.2), (2, 0.4), (3, 0.6), (8, 0.6)])
def test_few_volumes_change_the_names_of_known_organs_less(earlier, volumes, share):
    _, path = earlier

    assert share_learned(volumes, ["liver", "spleen"], path, most=0.6, enough=3) == pytest.approx(share)
    assert share_learned(volumes, ["liver", "heart"], path, most=0.6) == 0.6
    assert share_learned(volumes, ["liver"], path.with_name("none.pt"), most=0.6) == 0.6
    assert share_learned(volumes, ["liver"], None, most=0.6) == 0.6


@pytest.mark.parametrize("model", [torch.zeros(2), None, {"_extra_state": torch.zeros(2)}, {"_extra_state": {}}])
def test_what_is_learned_from_a_file_that_is_no_prior_is_not_asked(tmp_path, model):
    torch.save({"model": model}, tmp_path / "other.pt")

    with pytest.raises(UnusableFileError, match="'.*other.pt' is no trained prior: it holds model"):
        share_learned(3, ["liver"], tmp_path / "other.pt")
