"""Slices in random contrasts: greys change and geometry does not, and what training makes of it."""

from __future__ import annotations

import pytest
import torch
from scripts.errors import SettingError
from scripts.training.random_contrasts import RandContrasts

SIZE = 48


@pytest.fixture
def slices():
    """200 slices between neighbours: two organs of one grey on a ramp."""
    ramp = torch.linspace(0, 1, SIZE).expand(200, 3, SIZE, SIZE).clone()
    label = torch.zeros(200, SIZE, SIZE, dtype=torch.uint8)
    label[:, 8:20, 8:40], label[:, 30:44, 8:40] = 1, 2
    ramp[(label > 0)[:, None].expand_as(ramp)] = 0.5
    return ramp, label


def drawn(share, image, label, seed=0, **options):
    torch.manual_seed(seed)
    return RandContrasts(share, 2, **options)(image, label)


def test_nothing_is_drawn_where_no_slice_is_to_change(slices):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert RandContrasts(0.0, 2)(*slices) is slices[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_share_of_slices_changes_and_the_others_stay(slices):
    image, label = slices
    new = drawn(0.3, image, label)

    same = (new == image).flatten(1).all(1)
    assert 0.6 < same.float().mean() < 0.8
    assert torch.equal(new, drawn(0.3, image, label)) and not torch.equal(new, drawn(0.3, image, label, seed=1))


def test_greys_follow_one_curve_and_neighbours_get_the_same(slices):
    image, label = slices
    new = drawn(1.0, image, label, organ_share=0.0, noise=0.0)

    outside = new[:, :, 0]  # a row without organs
    assert torch.equal(outside[:, 0], outside[:, 1]) and torch.equal(outside[:, 0], outside[:, 2])
    step = outside[:, 0].diff(dim=1)
    rising, falling = ((each >= 0).all(1).float().mean() for each in (step, -step))
    assert 0.3 < rising < 0.55 and 0.1 < falling < 0.3
    assert new.min() >= 0 and new.max() <= 1
    knots = torch.linspace(0, SIZE - 1, 7).round().long()  # between the knots the curve is straight
    between = outside[:, 0, knots[1] + 1 : knots[2] - 1]
    torch.testing.assert_close(between.diff(n=2, dim=1), torch.zeros_like(between[:, 2:]), atol=1e-5, rtol=0)


def test_organs_of_one_grey_get_greys_of_their_own(slices):
    image, label = slices
    new = drawn(1.0, image, label, noise=0.0)[:, 1]

    inside = torch.stack([new[:, 12:16, 20:30].flatten(1).mean(1), new[:, 34:40, 20:30].flatten(1).mean(1)])
    apart = (inside[0] - inside[1]).abs() > 0.02
    assert 0.6 < apart.float().mean() < 0.85  # three of four have one of the two changed
    untouched = drawn(1.0, image, label, organ_share=0.0, noise=0.0)[:, 1]
    torch.testing.assert_close(new[:, 0], untouched[:, 0])  # and what lies around stays


def test_noise_is_added_of_up_to_the_largest_deviation(slices):
    image, label = slices
    added = drawn(1.0, image, label, noise=0.2) - drawn(1.0, image, label, noise=0.0)

    deviation = added.flatten(1).std(1)
    assert 0.19 < deviation.max() < 0.21 and deviation.min() < 0.01
    assert deviation.mean().item() == pytest.approx(0.1, abs=0.015) and added.mean().abs() < 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "share of random contrasts must lie in .0, 1., got 1.5"),
        ({"share": 0.5, "organ_share": -0.1}, "organ_share of random contrasts"),
        ({"share": 0.5, "rising_share": 0.8, "falling_share": 0.4}, "rising"),
        ({"share": 0.5, "knots": 1}, "2 or more knots, got 1"),
    ],
)
def test_what_is_no_share_is_refused(options, words):
    with pytest.raises(SettingError, match=words):
        RandContrasts(**{"organs": 2, **options})
