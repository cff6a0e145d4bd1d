"""DiffuSAM on single slices: the output's channels, the prior's checkpoint, repeatability and the object gate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scripts.diffusam import DiffuSAM, check_prior_file
from scripts.diffusion_prior import MemoryPrior
from scripts.sam2_backbone import NO_OBJECT_LOGIT, Decoded, FrozenSAM2

SIZE, TOKENS, CHANNELS, MEMORY_CHANNELS = 64, 4, 128, 32
ORGANS = ("spleen", "liver")


def make_backbone(seed: int = 0) -> FrozenSAM2:
    torch.manual_seed(seed)
    return FrozenSAM2("sam2_nano", SIZE)


def make_prior(
    organs: int = 2, memory_channels: int = MEMORY_CHANNELS, channels: int = CHANNELS, seed: int = 0
) -> MemoryPrior:
    torch.manual_seed(seed)
    options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
    prior = MemoryPrior(memory_channels, channels, organs, **options)
    prior.fitted.fill_(True)
    return prior


def make_network(backbone: FrozenSAM2, organs=ORGANS, seed: int = 0, **options) -> DiffuSAM:
    return DiffuSAM(backbone, make_prior(len(organs), seed=seed), organs, **options).eval()


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


def test_one_channel_for_each_organ_after_a_background_of_zeros(network, image):
    with torch.no_grad():
        logits = network(image)
    assert logits.shape == (3, 1 + len(ORGANS), SIZE, SIZE)
    assert (logits[:, 0] == 0).all() and (logits[:, 1:] != 0).any()


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


def test_global_random_state_does_not_matter(network, features):
    torch.manual_seed(1)
    first = network.synthesise(features)
    torch.manual_seed(2)
    assert torch.equal(first, network.synthesise(features))


def test_other_seed_gives_other_memories(backbone, features):
    first, second = (make_network(backbone, seed=0) for _ in range(2))
    second.seed = 1
    assert (first.synthesise(features) - second.synthesise(features)).abs().max() > 1e-3


def test_without_a_seed_every_call_draws_anew(backbone, features):
    network = make_network(backbone)
    network.seed = None
    assert not torch.equal(network.synthesise(features), network.synthesise(features))


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
    assert torch.equal(seen["embedding"], features.embedding[[0, 0, 1, 1, 2, 2]])


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


def test_prior_of_another_number_of_organs(backbone):
    with pytest.raises(ValueError, match="built for 3 organs, but 2 are named"):
        DiffuSAM(backbone, make_prior(3), ORGANS)


def test_prior_of_other_memory_channels(backbone):
    with pytest.raises(ValueError, match="memories of 16 channels, backbone 'sam2_nano' has 32"):
        DiffuSAM(backbone, make_prior(memory_channels=16), ORGANS)


def test_prior_of_other_embedding_channels(backbone):
    with pytest.raises(ValueError, match="256.*128"):
        DiffuSAM(backbone, make_prior(channels=256), ORGANS)


def test_untrained_network_runs_so_that_its_shapes_can_be_verified(backbone, image):
    network = make_network(backbone)
    network.prior.fitted.fill_(False)
    with torch.no_grad():
        assert network(image).shape == (3, 1 + len(ORGANS), SIZE, SIZE)


# --------------------------------------------------------------------------------------- checkpoints


def test_state_holds_the_prior_alone(network):
    keys = network.state_dict().keys() - {"_extra_state"}
    assert keys == {f"prior.{key}" for key in network.prior.state_dict()}


def test_prior_loads_strictly_from_disk_without_pickled_code(network, backbone, image, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = make_network(backbone, seed=1, object_gate=False)

    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)

    with torch.no_grad():
        assert torch.equal(other(image), network(image))


def test_loading_leaves_the_backbone_alone(network, backbone):
    before = backbone.fingerprint()
    network.load_state_dict(network.state_dict())
    assert backbone.fingerprint() == before


def test_incomplete_prior_is_refused(network):
    state = network.state_dict()
    del state["prior.memory_mean"]
    with pytest.raises(RuntimeError, match="prior.memory_mean"):
        network.load_state_dict(state)


def test_prior_trained_for_another_number_of_organs(network, backbone):
    other = make_network(backbone, ("spleen", "liver", "pancreas"))
    with pytest.raises(ValueError, match="'pancreas'.*Set `backbone_name` and `label_map`"):
        network.load_state_dict(other.state_dict())


@pytest.mark.parametrize("organs", [("spleen", "pancreas"), ("liver", "spleen")], ids=["names", "order"])
def test_prior_trained_for_other_organs_or_another_order(network, backbone, organs):
    with pytest.raises(ValueError, match=f"{organs[0]}.*Use the same names and order in `label_map`"):
        network.load_state_dict(make_network(backbone, organs).state_dict())


def test_prior_trained_with_another_backbone(network):
    state = network.state_dict()
    state["_extra_state"] = state["_extra_state"] | {"backbone": "sam2.1_hiera_tiny"}
    state["prior.memory_mean"] = torch.zeros(1, 64, 1, 1)  # the backbone is named before sizes are compared
    with pytest.raises(ValueError, match="'sam2.1_hiera_tiny'.*Set `backbone_name`"):
        network.load_state_dict(state)


def test_prior_trained_with_other_weights_of_the_backbone(network):
    with pytest.raises(ValueError, match="other weights.*`backbone_checkpoint`"):
        network.load_state_dict(make_network(make_backbone(seed=1)).state_dict())


def test_refused_prior_leaves_the_network_as_it_was(network, backbone, image):
    with torch.no_grad():
        before = network(image)
        with pytest.raises(ValueError):
            network.load_state_dict(make_network(backbone, ("spleen", "pancreas"), seed=1).state_dict())
        assert torch.equal(network(image), before)


def test_prior_file_that_is_not_there_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt.*Run `training`.*`prior_file`"):
        check_prior_file(tmp_path / "nowhere.pt")


def test_prior_file_that_is_there(tmp_path):
    (tmp_path / "model.pt").touch()
    check_prior_file(tmp_path / "model.pt")
