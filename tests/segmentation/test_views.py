"""Views: what they show, the way back, and the mean over them."""

from __future__ import annotations

import pytest
import torch
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.views import MeanOverViews, View, read_views

SIDE = 64


def square(half: int = 8) -> torch.Tensor:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[..., SIDE // 2 - half : SIDE // 2 + half, SIDE // 2 - half : SIDE // 2 + half] = 1
    return image


@pytest.fixture(scope="module")
def network() -> DiffuSAM:
    torch.manual_seed(0)
    options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
    prior = MemoryPrior(32, 128, organs=2, **options)
    prior.fitted.fill_(True)
    return DiffuSAM(FrozenSAM2("sam2_nano", SIDE), prior, organs=["spleen", "liver"], object_gate=False).eval()


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return torch.rand(1, 1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))


def probabilities(volume, network, **options) -> torch.Tensor:
    return VolumetricInferer(output="logits", batch_size=2, **options)(volume, network)[:, 1:].sigmoid()


@pytest.mark.parametrize("scale", [0.75, 1.5])
def test_a_view_enlarges_by_its_scale(scale):
    assert View(scale=scale).show(square()).sum().item() == pytest.approx(256 * scale**2, rel=0.05)


def test_a_quarter_turn_leads_from_the_y_axis_to_the_x_axis():
    image = torch.rand(2, 3, SIDE, SIDE)
    low = torch.zeros(1, 1, SIDE, SIDE)
    low[..., 50, 32] = 1  # towards the end of the y axis

    torch.testing.assert_close(View(90).show(image), image.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert View(90).show(low)[0, 0, :, 40:].sum() > 0.9


@pytest.mark.parametrize("view", [View(10), View(-10, 0.8), View(0, 1.2)], ids=str)
def test_the_way_back_ends_where_it_began(view):
    rows, columns = torch.meshgrid(torch.linspace(-3, 3, SIDE), torch.linspace(-3, 3, SIDE), indexing="ij")
    smooth = torch.exp(-((rows - 0.5) ** 2) - columns**2)[None, None]

    back, seen = view.back(view.show(smooth))

    assert (back - smooth).abs().max() < 0.02
    assert seen[SIDE // 2, SIDE // 2] == pytest.approx(1)
    assert (seen[0, 0] < 0.5) == (view != View(-10, 0.8))  # all of a slice that is made smaller is seen


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_a_mirrored_view_exchanges_left_and_right_first(degrees):
    slices = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mirrored, plain = View(degrees, mirrored=True), View(degrees)
    assert torch.equal(mirrored.show(slices), plain.show(slices.flip(-1)))
    back, seen = mirrored.back(mirrored.show(slices))
    again, also = plain.back(plain.show(slices.flip(-1)))
    assert torch.equal(back, again.flip(-1)) and torch.equal(seen, also.flip(-1))


def test_a_view_of_a_volume_as_it_is_changes_no_bit():
    image = torch.rand(2, 1, SIDE, SIDE)
    back, seen = View().back(View().show(image))
    assert torch.equal(back, image) and torch.equal(seen, torch.ones(SIDE, SIDE))


def test_the_mean_is_over_the_views_that_have_seen_a_pixel():
    mean, enlarged = MeanOverViews(), View(0, 2)
    mean.add(View(), [4], torch.full((1, 1, SIDE, SIDE), 0.2).logit())
    mean.add(enlarged, [4], torch.full((1, 1, SIDE, SIDE), 0.8).logit())

    result = mean.pop(4).sigmoid()[0]

    assert result[32, 32].item() == pytest.approx(0.5, abs=1e-4) and result[2, 2].item() == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"no_3d": True}], ids=str)
def test_a_turned_volume_is_segmented_turned(network, volume, options):
    """By quarter turns, between which nothing is lost in interpolation."""
    turned = probabilities(volume.rot90(1, (2, 3)), network, **options).rot90(-1, (2, 3))

    torch.testing.assert_close(probabilities(volume, network, views=[[90, 1]], **options), turned, atol=2e-3, rtol=0)


def test_views_are_averaged_and_counted(network, volume):
    reported = []
    views = [[0, 1], [90, 1]]
    both = probabilities(volume, network, views=views, on_slices=lambda *counts: reported.append(counts))
    each = [probabilities(volume, network, views=[view]) for view in views]

    # at a quarter of the resolution; enlarging logits and their mean is not the same between pixels
    torch.testing.assert_close(
        both[..., 1::4, 1::4, :], torch.stack(each).mean(0)[..., 1::4, 1::4, :], atol=0.05, rtol=0
    )
    assert reported[0][1] == 6 and reported[-1] == (6, 6)


@pytest.mark.parametrize(
    "views, message",
    [
        *(([], "at least one"), ([[0]], "pair"), ([0, 1], "pair"), ([[0, 0]], "positive"), (["01x"], "pair")),
        *(([["a", "b"]], "pair"), (["ab"], "pair"), ([[0, 1e9]], "1/100 to 100"), ([[float("nan"), 1]], "pair")),
    ],
)
def test_views_that_are_none(views, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        read_views(views)


@pytest.mark.parametrize("views", [[[0, 1]], [[7, 1]], [[7, 1], [0, 1]]])
def test_features_are_shown_once_as_the_first_view_has_them(volume, network, views):
    shown = []
    inferer = VolumetricInferer(
        no_3d=True, views=views, on_features=lambda slices, indices, _: shown.extend((i, slices.view) for i in indices)
    )

    inferer(volume, network)

    first = View(*views[0])
    assert sorted(index for index, _ in shown) == list(range(volume.shape[-1]))
    assert {view for _, view in shown} == {first}
