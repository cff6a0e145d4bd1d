"""The objective of Equations 1 and 2 against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.training.losses import DiffuSAMLoss

SIDE = 8
LN2 = math.log(2)


def half_mask(batch: int = 1) -> torch.Tensor:
    """Masks that hold the left half of the slice."""
    mask = torch.zeros(batch, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    return mask


def undecided(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Predictions of 0 everywhere, probability one half."""
    return {
        "prior_error": torch.zeros(len(mask)),
        "mask_logits": torch.zeros_like(mask, requires_grad=True),
        "object_score": torch.zeros(len(mask), 1, requires_grad=True),
        "mask": mask,
    }


def test_dice_bce_of_an_undecided_prediction():
    # BCE is ln 2 anywhere; Dice is 1 - 2 * (n/2 * 1/2) / (n * 1/2 + n/2) = 1/2 for n pixels, half of them in the mask
    losses = DiffuSAMLoss(object_weight=0.0)(**undecided(half_mask()))

    assert losses["seg_loss"].item() == pytest.approx(LN2 + 0.5, abs=1e-5)


def test_focal_dice_of_an_undecided_prediction():
    # focal: (1 - 1/2)^2 * ln 2, by 0.25 in the mask and 0.75 outside it, each half of the pixels; times 20
    losses = DiffuSAMLoss(segmentation="focal_dice", object_weight=0.0)(**undecided(half_mask()))

    assert losses["seg_loss"].item() == pytest.approx(20 * 0.5 * 0.25 * LN2 + 0.5, abs=1e-5)


def test_object_score_adds_its_weighted_cross_entropy():
    with_objects, without = (DiffuSAMLoss(object_weight=weight)(**undecided(half_mask())) for weight in (0.3, 0.0))

    assert (with_objects["seg_loss"] - without["seg_loss"]).item() == pytest.approx(0.3 * LN2, abs=1e-6)


def test_a_perfect_prediction_costs_nothing():
    mask = half_mask()

    losses = DiffuSAMLoss()(torch.zeros(1), mask * 100 - 50, torch.full((1, 1), 50.0), mask)

    assert losses["loss"].item() == pytest.approx(0, abs=1e-5)


def test_naming_of_an_undecided_head():
    """Two organs and three other structures with equal logits: the background has 3/5, each organ 1/5."""
    label = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    label[:, :, : SIDE // 2] = 1  # half the slice is the first organ; there is nothing of the second

    loss = DiffuSAMLoss().naming(torch.zeros(1, 5, SIDE // 2, SIDE // 2), label, organs=2)

    pixels = (SIDE // 2) ** 2
    entropy = (3 * math.log(5) + math.log(5 / 3)) / 4  # organs count three times
    smooth = 1e-5
    first = 1 - (2 * pixels / 2 / 5 + smooth) / (pixels / 2 + pixels / 5 + smooth)
    second = 1 - smooth / (pixels / 5 + smooth)
    assert loss.item() == pytest.approx(entropy + (first + second) / 2, abs=1e-5)


@pytest.mark.parametrize("pixel, counts", [((2, 2), True), ((0, 0), False), ((0, 2), False), ((2, 0), False)], ids=str)
def test_a_cell_is_named_what_lies_at_its_centre(pixel, counts):
    """Of 4 x 4 pixels."""
    label, logits = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8), torch.zeros(1, 3, SIDE // 4, SIDE // 4)
    nothing = DiffuSAMLoss().naming(logits, label, organs=2)
    label[(0, *pixel)] = 1
    assert (DiffuSAMLoss().naming(logits, label, organs=2) != nothing).item() is counts


def test_the_prior_loss_is_the_mean_error():
    losses = DiffuSAMLoss()(**{**undecided(half_mask(2)), "prior_error": torch.tensor([1.0, 4.0])})

    assert losses["prior_loss"].item() == 2.5


@pytest.mark.parametrize("lambda_prior, lambda_seg", [(1.0, 1.0), (0.0, 1.0), (2.0, 0.5)])
def test_the_loss_is_equation_2(lambda_prior, lambda_seg):
    arguments = {**undecided(half_mask()), "prior_error": torch.tensor([3.0])}

    losses = DiffuSAMLoss(lambda_prior, lambda_seg)(**arguments)

    expected = lambda_prior * losses["prior_loss"] + lambda_seg * losses["seg_loss"]
    assert losses["loss"].item() == pytest.approx(expected.item())


def test_an_absent_organ_trains_the_object_score_and_not_the_mask():
    arguments = undecided(torch.zeros(1, 1, SIDE, SIDE))

    DiffuSAMLoss()(**arguments)["loss"].backward()

    assert not arguments["mask_logits"].grad.any()
    assert arguments["object_score"].grad.item() == pytest.approx(0.1 * 0.5)  # weight * (sigmoid(0) - 0)


def test_mask_losses_are_averaged_over_present_organs_alone():
    alone = DiffuSAMLoss(object_weight=0.0)(**undecided(half_mask()))
    beside_absent = torch.cat([half_mask(), torch.zeros(3, 1, SIDE, SIDE)])

    losses = DiffuSAMLoss(object_weight=0.0)(**undecided(beside_absent))

    assert losses["seg_loss"].item() == pytest.approx(alone["seg_loss"].item())


def test_boolean_masks_are_taken_as_they_come_from_the_cache():
    arguments = undecided(half_mask())

    losses = DiffuSAMLoss()(**{**arguments, "mask": arguments["mask"].bool()})

    assert losses["loss"].item() == DiffuSAMLoss()(**arguments)["loss"].item()


def test_an_unknown_segmentation_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="'dice_bce' or 'focal_dice', got 'lovasz'"):
        DiffuSAMLoss(segmentation="lovasz")
