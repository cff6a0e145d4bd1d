"""The convolutional trunk gives SAM2's neck what it asks for."""

import pytest
import torch
from scripts.networks.convolutional_trunk import ConvolutionalTrunk
from scripts.networks.sam2_backbone import SAM2


def test_maps_at_the_strides_and_widths_that_the_neck_asks_for():
    trunk = ConvolutionalTrunk((4, 6, 8, 10, 12))
    maps = trunk(torch.rand(2, 3, 96, 96))
    assert [tuple(each.shape) for each in maps] == [(2, 6, 24, 24), (2, 8, 12, 12), (2, 10, 6, 6), (2, 12, 3, 3)]
    assert trunk.channel_list == [12, 10, 8, 6]


def test_every_map_but_the_coarsest_sees_what_is_far():
    """The finest map depends on a pixel that lies beyond the reach of its own few convolutions."""
    torch.manual_seed(0)
    trunk = ConvolutionalTrunk((4, 6, 8, 10, 12)).eval()
    image = torch.rand(1, 3, 128, 128, requires_grad=True)
    trunk(image)[0][0, :, 0, 0].sum().backward()
    assert image.grad[0, :, 100:, 100:].abs().sum() > 0


def test_the_backbone_takes_its_widths_from_the_trunk():
    sam2 = SAM2("sam2_nano", 64)
    encoder = sam2.model.image_encoder
    assert isinstance(encoder.trunk, ConvolutionalTrunk)
    assert encoder.trunk.channel_list == encoder.neck.backbone_channel_list


@pytest.mark.parametrize("size", [64, 96, 160])
def test_any_multiple_of_32_pixels(size):
    features = SAM2("sam2_nano", size).encode_image(torch.rand(1, 1, size, size))
    assert features.embedding.shape[-1] == size // 16


def test_each_channel_is_normalised_by_itself_as_instance_normalisation_does():
    torch.manual_seed(0)
    trunk, image = ConvolutionalTrunk((4, 6, 8, 10, 12)), torch.rand(2, 3, 96, 96)
    maps = trunk(image)
    norms = [(module, name) for module in trunk.modules() for name, child in module.named_children() if name == "N"]
    for module, name in norms:
        setattr(module, name, torch.nn.InstanceNorm2d(getattr(module, name).num_channels))
    assert len(norms) == 5 * 2 + 3
    torch.testing.assert_close(maps, trunk(image), rtol=1e-4, atol=1e-5)
