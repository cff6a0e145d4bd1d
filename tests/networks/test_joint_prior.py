"""The prior of all organs at once: the same interface, one pass a slice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.joint_prior import JointMemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures

MEMORY_CHANNELS, CHANNELS, ORGANS, TOKENS = 8, 16, 3, 4
EVERY = torch.arange(ORGANS)


def make_prior(**changes) -> JointMemoryPrior:
    torch.manual_seed(0)
    options = {"block_out_channels": (16, 32), "attention_levels": 1, "layers_per_block": 1, "condition_channels": 16}
    prior = JointMemoryPrior(MEMORY_CHANNELS, CHANNELS, organs=ORGANS, **(options | changes)).eval()
    prior.memory_mean.normal_()
    prior.memory_std.uniform_(0.5, 2)
    return prior


def make_features(slices: int, tokens: int = TOKENS) -> ImageFeatures:
    draw = torch.Generator().manual_seed(1)
    sides = ((CHANNELS, 1), (CHANNELS // 8, 4), (CHANNELS // 4, 2))
    embedding, fine, coarse = (
        torch.randn(slices, channels, tokens * times, tokens * times, generator=draw) for channels, times in sides
    )
    return ImageFeatures(embedding, (fine, coarse))


def make_memories(slices: int, tokens: int = TOKENS) -> torch.Tensor:
    shape = (slices, ORGANS, MEMORY_CHANNELS, tokens, tokens)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2))


def test_a_slice_costs_one_pass_whatever_the_number_of_organs(monkeypatch):
    prior, seen = make_prior(), []
    unet = prior.unet.forward
    monkeypatch.setattr(
        prior.unet, "forward", lambda sample, *args, **kw: seen.append(len(sample)) or unet(sample, *args, **kw)
    )

    prior.sample(make_features(2), EVERY.repeat(2), steps=2)

    assert seen == [2, 2]  # two steps of two slices


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_slice_has_the_same_memories_alone_and_among_others(eta):
    prior, features = make_prior(), make_features(3)
    noise = torch.randn(ORGANS, MEMORY_CHANNELS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3))

    together, alone = (
        prior.sample(
            of, EVERY.repeat(len(of)), 2, eta, torch.Generator().manual_seed(4), noise.repeat(len(of), 1, 1, 1)
        )
        for of in (features, features[[1]])
    )

    torch.testing.assert_close(together[ORGANS : 2 * ORGANS], alone)


def test_what_one_organ_starts_from_changes_the_others():
    prior, features = make_prior(), make_features(1)
    noise = torch.randn(ORGANS, MEMORY_CHANNELS, TOKENS, TOKENS)
    changed = noise.clone()
    changed[0] += 1

    before, after = (prior.sample(features, EVERY, 1, noise=each) for each in (noise, changed))

    assert (before[1] - after[1]).abs().max() > 1e-4


def test_some_of_the_organs_alone_are_refused():
    with pytest.raises(ValueError, match="all 3 organs of a slice together"):
        make_prior().sample(make_features(2), torch.tensor([0, 1]).repeat(2))


def test_what_is_padded_is_cut_off_where_it_was_added(monkeypatch):
    """Of six tokens, which a UNet of three levels sees as eight: here one that returns what it was given."""
    prior, noised = make_prior(block_out_channels=(16, 32, 32)), make_memories(2, tokens=6)
    given_back = ORGANS * MEMORY_CHANNELS
    monkeypatch.setattr(prior.unet, "forward", lambda given, *_, **__: SimpleNamespace(sample=given[:, :given_back]))
    assert torch.equal(prior.predict(noised, torch.tensor(9), prior.project(make_features(2, tokens=6)), None), noised)


def test_training_counts_the_error_of_all_organs_and_returns_the_memory_of_one():
    prior, memories = make_prior(), make_memories(2)
    organ, timestep = torch.tensor([2, 0]), torch.tensor([999, 10])
    noise = torch.randn(memories.shape)

    error, memory = prior(memories, make_features(2), organ, timestep, noise)

    clean = prior.standardise(memories)
    noised = prior.scheduler.add_noise(clean, noise, timestep)
    predicted = prior.predict(noised, timestep, prior.project(make_features(2)), None)
    torch.testing.assert_close(error, (predicted - clean).square().flatten(1).mean(1))
    torch.testing.assert_close(memory, prior.destandardise(predicted)[[0, 1], organ])


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_gradient_reaches_every_parameter(prediction_type):
    prior = make_prior(use_high_res=True)
    prior.scheduler.register_to_config(prediction_type=prediction_type)

    error, memory = prior(make_memories(2), make_features(2), torch.tensor([1, 2]))
    (error.sum() + memory.square().mean()).backward()

    assert [name for name, each in prior.named_parameters() if each.grad is None or not each.grad.any()] == []


def make_network(kind: type = JointMemoryPrior) -> DiffuSAM:
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", image_size=64)
    channels = backbone.memory_channels, backbone.embedding_channels
    prior = kind(*channels, organs=2, block_out_channels=(32, 64), attention_levels=1)
    prior.fitted.fill_(True)
    return DiffuSAM(backbone, prior, organs=["spleen", "liver"]).eval()


def test_memories_of_some_organs_are_those_among_all():
    network = make_network()
    with torch.no_grad():
        features = network.backbone.encode_image(torch.rand(2, 1, 64, 64))

    every, second = network.synthesise(features), network.synthesise(features, organs=[1])

    assert torch.equal(second, every.unflatten(0, (2, 2))[:, 1])


def test_a_file_of_the_other_kind_is_refused_by_name():
    joint = make_network().state_dict()

    from scripts.networks.diffusion_prior import MemoryPrior

    with pytest.raises(ValueError, match="all organs together.*joint_prior False"):
        make_network(MemoryPrior).load_state_dict(joint)
