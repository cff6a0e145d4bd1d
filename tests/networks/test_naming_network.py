"""A head with an image encoder of its own: what it begins with, what it reads, and what training leaves alone."""

from copy import deepcopy

import pytest
import torch
from scripts.descriptions import describe, given
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.naming_head import NamingHead, naming_classes
from scripts.networks.naming_network import NamingNetwork, naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.starting_prior import StartingPrior

SIZE, ORGANS = 64, ["spleen", "liver"]


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def network(backbone, names: NamingHead) -> DiffuSAM:
    prior = MemoryPrior(32, 128, organs=len(ORGANS), block_out_channels=(32, 64), attention_levels=1)
    prior.fitted.fill_(True)
    return DiffuSAM(backbone, prior, organs=ORGANS, names=names).eval()


def test_it_begins_as_a_head_on_the_frozen_encoder(backbone, image):
    head, own = naming(backbone, ORGANS), naming(backbone, ORGANS, own_encoder=True)
    assert type(head) is NamingHead and type(own) is NamingNetwork
    own.take_over(head.state_dict(), head.classes)
    shown = network(backbone, own).encode(image)
    assert torch.equal(shown.image, image)

    for ours, expected in zip(own(shown), head(backbone.encode_image(image))):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_of_it_has_no_second_backbone(backbone):
    """A moving average of a training is one; what it was built with is none of its weights, but was copied too."""
    own = naming(backbone, ORGANS, own_encoder=True)
    copied = deepcopy(own)

    assert given(copied)["backbone"] is backbone
    assert copied.fine.weight is not own.fine.weight and torch.equal(copied.fine.weight, own.fine.weight)
    assert describe(copied) == describe(own)


def test_a_head_without_an_encoder_keeps_no_images(backbone, image):
    assert network(backbone, naming(backbone, ORGANS)).encode(image).image is None


def test_its_encoder_learns_and_the_backbones_does_not(backbone, image):
    own = naming(backbone, ORGANS, own_encoder=True)
    frozen = {key: value.clone() for key, value in backbone.state_dict().items()}
    shown = network(backbone, own).encode(image)

    own(shown)[1].square().mean().backward()
    torch.optim.SGD(own.parameters(), 1.0).step()

    assert own.sam2.image_encoder.trunk.down[0].conv.unit0.conv.weight.grad.abs().max() > 0
    assert own.sam2.sam_mask_decoder.conv_s0.weight.grad.abs().max() > 0
    assert all(torch.equal(value, frozen[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_features_that_came_without_their_images_are_refused(backbone, image):
    with pytest.raises(ValueError, match="came without theirs"):
        naming(backbone, ORGANS, own_encoder=True)(backbone.encode_image(image))


def test_memories_are_those_of_its_masks_and_an_image_follows_its_slice(backbone, image):
    own = naming(backbone, ORGANS, own_encoder=True)
    torch.nn.init.normal_(own.fine.weight, std=30.0)
    net = network(backbone, own)

    together = net.synthesise(net.encode(image)).unflatten(0, (3, 2))

    torch.testing.assert_close(net.synthesise(net.encode(image)[[2]]), together[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net.synthesise(net.encode(image), organs=[1]), together[:, 1], atol=1e-4, rtol=1e-4)


def test_training_starts_with_the_encoder_of_the_backbone_as_it_is_then(image, tmp_path):
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE)
    own = naming(backbone, ORGANS, own_encoder=True)
    torch.nn.init.normal_(backbone.model.image_encoder.trunk.up[0].conv.unit0.conv.weight)  # as when weights are loaded
    trained = network(backbone, naming(backbone, ORGANS))
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")
    net = network(backbone, own)

    StartingPrior(net, tmp_path / "model.pt", statistics=[])()

    expected = trained.names(backbone.encode_image(image))[1]
    torch.testing.assert_close(net.names(net.encode(image))[1], expected, atol=1e-5, rtol=1e-5)


def test_a_trained_one_is_loaded_with_its_encoder(backbone, image, tmp_path):
    trained = network(backbone, naming(backbone, ORGANS, own_encoder=True))
    torch.nn.init.normal_(trained.names.sam2.image_encoder.neck.convs[0].conv.weight)
    other = network(backbone, naming(backbone, ORGANS, own_encoder=True))

    other.load_state_dict(trained.state_dict())
    again = NamingNetwork(backbone, naming_classes(ORGANS))
    again.take_over(trained.names.state_dict(), trained.names.classes)

    expected = trained.names(trained.encode(image))[1]
    assert torch.equal(other.names(other.encode(image))[1], expected)
    assert torch.equal(again(trained.encode(image))[1], expected)
