"""DiffuSAM on single slices: repeatability, averaged memories, the object gate, a prior that does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scripts.networks.diffusam import DiffuSAM, check_prior_file
from scripts.networks.logits import NO_OBJECT_LOGIT
from scripts.networks.sam2_types import Decoded

from tests.helpers.networks import MEMORY_CHANNELS, SIZE, TOKENS, make_backbone, make_prior
from tests.helpers.networks import make_diffusam as make_network

ORGANS = ("spleen", "liver")


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def network(backbone):
    """Without the object gate, which random weights may close everywhere."""
    return make_network(backbone, object_gate=False)


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def features(backbone, image):
    return backbone.encode_image(image)


# -------------------------------------------------------------------------------------------- output


def test_logits_of_a_slice_are_those_of_its_organs(network):
    """Items are (slice 0, organ 0), (slice 0, organ 1), (slice 1, organ 0), ..."""
    ones = torch.ones(6, 1)
    logits = network.organ_logits(Decoded(torch.arange(6.0).view(6, 1, 1, 1), ones, ones, ones))
    assert logits[..., 0, 0].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("options", [{}, {"samples": 2}, {"eta": 1.0}, {"steps": 1}], ids=str)
def test_slice_does_not_depend_on_the_batch_it_is_in(backbone, image, options):
    network = make_network(backbone, object_gate=False, **options)
    with torch.no_grad():
        together = network(image)
        singles = torch.cat([network(single[None]) for single in image])
    torch.testing.assert_close(together, singles, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_same_slices_twice_are_identical(backbone, image, eta):
    network = make_network(backbone, object_gate=False, eta=eta)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


# ------------------------------------------------------------------------------------- samples, gate


def test_memories_of_several_samples_are_averaged(backbone, features, monkeypatch):
    """With a prior that returns its noise, the result is the average of as many draws from the seed."""
    network = make_network(backbone, samples=3)
    network.seed = 7
    monkeypatch.setattr(network.prior, "sample", lambda features, organ, steps, eta, generator, noise: noise)

    memory = network.synthesise(features)

    draws = torch.randn(3, 2, MEMORY_CHANNELS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(memory, draws.mean(0).repeat(len(features), 1, 1, 1))


def test_memories_run_through_the_organs_of_each_slice(backbone, features, monkeypatch):
    network, seen = make_network(backbone), {}

    def sample(features, organ, steps, eta, generator, noise):
        seen.update(organ=organ.tolist(), embedding=features.embedding)
        return noise

    monkeypatch.setattr(network.prior, "sample", sample)
    network.synthesise(features)

    assert seen["organ"] == [0, 1, 0, 1, 0, 1]
    assert torch.equal(seen["embedding"], features.embedding)


@pytest.fixture
def first_organ_absent(backbone, monkeypatch):
    """A decoder that finds the second organ in every slice, and the first in none."""
    decode = backbone.decode

    def decode_with_score(*args, **kwargs):
        decoded = decode(*args, **kwargs)
        score = torch.tensor([[-1.0], [1.0]]).repeat(len(decoded.object_score) // 2, 1)
        return replace(decoded, object_score=score)

    monkeypatch.setattr(backbone, "decode", decode_with_score)


def test_object_gate_closes_absent_organs_alone(first_organ_absent, backbone, network, image):
    with torch.no_grad():
        gated = make_network(backbone, object_gate=True)(image)
        ungated = network(image)
    assert (gated[:, 1] == NO_OBJECT_LOGIT).all()
    assert torch.equal(gated[:, 2], ungated[:, 2])


def test_without_the_gate_absent_organs_keep_their_logits(first_organ_absent, network, features):
    repeated = features.repeat_interleave(2)
    decoded = network.backbone.decode(network.backbone.condition(repeated), repeated)
    assert torch.equal(network.organ_logits(decoded).flatten(0, 1), decoded.mask_logits[:, 0])


# -------------------------------------------------------------------------------------- construction


def test_prior_of_other_memory_channels(backbone):
    with pytest.raises(ValueError, match="memories of 16 channels, backbone 'sam2_nano' has 32"):
        DiffuSAM(backbone, make_prior(memory_channels=16), organs=ORGANS)


def test_untrained_network_runs_so_that_its_shapes_can_be_verified(backbone, image):
    network = make_network(backbone)
    network.prior.fitted.fill_(False)
    with torch.no_grad():
        assert network(image).shape == (3, 1 + len(ORGANS), SIZE, SIZE)


# -------------------------------------------------------------------------------------- prior file


def test_prior_file_that_is_not_there_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt.*Run `training`.*`prior_file`"):
        check_prior_file(tmp_path / "nowhere.pt")


def test_prior_file_that_is_there(tmp_path):
    (tmp_path / "model.pt").touch()
    check_prior_file(tmp_path / "model.pt")
