"""What holds for both networks over the frozen SAM2: the output's channels, repeatability, the prior's checkpoint."""

from __future__ import annotations

import pytest
import torch
from scripts.automedsam.network import AutoMedSAM
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.logits import NO_OBJECT_LOGIT

from tests.helpers.networks import NAMES, SIZE, make_automedsam, make_backbone, make_diffusam, make_encoder, make_prior


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module", params=[make_diffusam, make_automedsam], ids=["DiffuSAM", "AutoMedSAM"])
def make_network(request):
    return request.param


@pytest.fixture(scope="module")
def network(make_network, backbone):
    """Without the object gate, which random weights may close everywhere."""
    return make_network(backbone, object_gate=False)


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def logits(network, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(image)


# ---- output


def test_one_channel_for_each_organ_after_a_background_of_zeros(network, image):
    output = logits(network, image)

    assert output.shape == (3, 1 + len(NAMES), SIZE, SIZE)
    assert (output[:, 0] == 0).all() and (output[:, 1:] != 0).any()


def test_slice_does_not_depend_on_the_batch_it_is_in(network, image):
    singles = torch.cat([logits(network, single[None]) for single in image])

    torch.testing.assert_close(logits(network, image), singles, rtol=1e-3, atol=1e-4)


def test_one_seed_gives_one_result_whatever_the_global_random_state(network, image):
    torch.manual_seed(1)
    first = logits(network, image)
    torch.manual_seed(2)

    assert torch.equal(first, logits(network, image))


@pytest.mark.parametrize("seed", [1, None], ids=["another", "none"])
def test_other_noise_gives_other_logits(make_network, backbone, network, image, seed):
    other = make_network(backbone, object_gate=False, seed=seed)

    assert not torch.equal(logits(other, image), logits(network, image))


def test_absent_organs_are_left_out_of_a_slice(make_network, image):
    network = make_network(make_backbone())
    # the frozen decoder finds every organ absent
    torch.nn.init.constant_(network.backbone.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, -100.0)

    assert (logits(network, image)[:, 1:] == NO_OBJECT_LOGIT).all()


# ---- construction


@pytest.mark.parametrize("network, make_part", [(DiffuSAM, make_prior), (AutoMedSAM, make_encoder)])
def test_prior_of_another_number_of_organs(backbone, network, make_part):
    with pytest.raises(ValueError, match="built for 3 organs, but 2 are named"):
        network(backbone, make_part(3), organs=NAMES)


@pytest.mark.parametrize("network, make_part", [(DiffuSAM, make_prior), (AutoMedSAM, make_encoder)])
def test_prior_of_other_embedding_channels(backbone, network, make_part):
    with pytest.raises(ValueError, match="64 channels, backbone 'sam2_nano' has 128"):
        network(backbone, make_part(channels=64), organs=NAMES)


# ---- checkpoints


def test_state_holds_the_prior_alone(network):
    assert network.state_dict().keys() - {"_extra_state"} == {f"prior.{key}" for key in network.prior.state_dict()}


def test_state_loads_strictly_from_disk_without_pickled_code(make_network, network, backbone, image, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = make_network(backbone, weights=1, object_gate=False)

    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)

    assert torch.equal(logits(other, image), logits(network, image))


def test_a_prior_that_tells_of_an_option_since_gone_loads(make_network, network, backbone, image):
    """A prior file says what it was made with; an option that was off then, and is no longer, changes nothing."""
    state = network.state_dict()
    state["_extra_state"] = state["_extra_state"] | {"an_option_since_gone": False}
    other = make_network(backbone, weights=1, object_gate=False)

    other.load_state_dict(state)

    assert torch.equal(logits(other, image), logits(network, image))


def test_loading_leaves_the_backbone_alone(network, backbone):
    before = backbone.fingerprint()

    network.load_state_dict(network.state_dict())

    assert backbone.fingerprint() == before


def test_incomplete_prior_is_refused(network):
    state = network.state_dict()
    del state["prior.embedding_mean"]

    with pytest.raises(RuntimeError, match="prior.embedding_mean"):
        network.load_state_dict(state)


@pytest.mark.parametrize(
    "make_other, other, own", [(make_diffusam, "DiffuSAM", "AutoMedSAM"), (make_automedsam, "AutoMedSAM", "DiffuSAM")]
)
def test_a_prior_of_the_other_network_is_refused(backbone, make_other, other, own):
    (make_own,) = {make_diffusam, make_automedsam} - {make_other}

    with pytest.raises(ValueError, match=f"holds a prior of {other}, .*'liver'.*builds {own}.*automedsam.json.*{own}"):
        make_own(backbone).load_state_dict(make_other(backbone).state_dict())


def test_a_prior_that_does_not_name_its_network_is_of_diffusam(backbone):
    network = make_diffusam(backbone)
    state = network.state_dict()
    del state["_extra_state"]["network"]

    network.load_state_dict(state)
    with pytest.raises(ValueError, match="holds a prior of DiffuSAM"):
        make_automedsam(backbone).load_state_dict(state)


def test_prior_trained_for_another_number_of_organs(make_network, network, backbone):
    other = make_network(backbone, ("spleen", "liver", "pancreas"))

    with pytest.raises(ValueError, match="'pancreas'.*Name each of them in `label_map`, in that order"):
        network.load_state_dict(other.state_dict())


@pytest.mark.parametrize("organs", [("spleen", "pancreas"), ("liver", "spleen")], ids=["names", "order"])
def test_prior_trained_for_other_organs_or_another_order(make_network, network, backbone, organs):
    with pytest.raises(ValueError, match=f"{organs[0]}.*Use the same names and order in `label_map`"):
        network.load_state_dict(make_network(backbone, organs).state_dict())


def test_prior_trained_with_another_backbone(network):
    state = network.state_dict()
    state["_extra_state"] = state["_extra_state"] | {"backbone": "sam2.1_hiera_tiny"}
    state["prior.embedding_mean"] = torch.zeros(1, 256, 1, 1)  # the backbone is named before sizes are compared

    with pytest.raises(ValueError, match="'sam2.1_hiera_tiny'.*Set `backbone_name`"):
        network.load_state_dict(state)


def test_prior_trained_with_other_weights_of_the_backbone(make_network, network):
    with pytest.raises(ValueError, match="other weights.*`backbone_checkpoint`"):
        network.load_state_dict(make_network(make_backbone(seed=1)).state_dict())


def test_refused_prior_leaves_the_network_as_it_was(make_network, network, backbone, image):
    before = logits(network, image)

    with pytest.raises(ValueError):
        network.load_state_dict(make_network(backbone, ("spleen", "pancreas"), weights=1).state_dict())

    assert torch.equal(logits(network, image), before)
