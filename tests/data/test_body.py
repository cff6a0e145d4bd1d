"""Scans in a wide field of view: what the network sees of them, and results on the file's grid again."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, ScaleIntensityRanged
from scripts.data.body import ABSENT, CropToBodyd, field_of_body
from scripts.data.stored import ScaleLaterd
from scripts.networks.logits import NO_OBJECT_LOGIT

AFFINE = torch.tensor([[0.0, -0.8, 0, 90], [-0.7, 0, 0, 120], [0, 0, 5, -40], [0, 0, 0, 1]], dtype=torch.float64)


def scan(rows: slice, columns: slice, *, shape=(120, 160), slices: int = 6) -> MetaTensor:
    """A body of random greys, between the given rows and columns, in air."""
    image = torch.zeros(1, *shape, slices)
    image[:, rows, columns] = 0.3 + 0.5 * torch.rand(image[:, rows, columns].shape, generator=torch.manual_seed(0))
    return MetaTensor(image, affine=AFFINE)


def crop(fill: float = 0.8, organs: int = 2) -> CropToBodyd:
    return CropToBodyd(["image"], fill=fill, organs=organs)


def test_a_body_in_a_wide_field_is_cropped_to_in_the_fields_shape():
    image = scan(slice(20, 80), slice(70, 140))

    rows, columns = field_of_body(image, 0.8)

    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert rows.start <= 20 and rows.stop >= 80 and columns.start <= 70 and columns.stop >= 140
    assert height / 120 == pytest.approx(width / 160, abs=0.01)
    assert height == 65  # 60, a pixel more on each side by smoothing, 2 % of that on each side, rounded up


@pytest.mark.parametrize(
    ("rows", "columns"), [(slice(2, 118), slice(60, 100)), (slice(50, 70), slice(5, 150)), (slice(0, 0), slice(0, 0))]
)
def test_a_body_that_fills_one_side_and_an_empty_image_stay_whole(rows, columns):
    assert field_of_body(scan(rows, columns), 0.8) == (slice(0, 120), slice(0, 160))


def test_nothing_is_cropped_where_the_share_is_nought():
    assert field_of_body(scan(slice(20, 80), slice(70, 140)), 0) == (slice(0, 120), slice(0, 160))


def test_a_table_and_noise_are_no_part_of_the_body():
    image = scan(slice(20, 80), slice(70, 140))
    alone = field_of_body(image, 0.8)
    image[:, 110:113, 5:155] = 0.9  # a table
    image += 0.05 * torch.rand(image.shape, generator=torch.manual_seed(1))

    assert field_of_body(image, 0.8) == alone


def test_legs_are_both_parts_of_the_body():
    image = scan(slice(20, 80), slice(30, 60))
    image[:, 20:80, 90:120] = 0.5

    _, columns = field_of_body(image, 0.8)

    assert columns.start <= 30 and columns.stop >= 120


@pytest.mark.parametrize("more", [0, 30])
def test_the_part_is_in_the_field_wherever_the_body_lies(more):
    image = torch.nn.functional.pad(scan(slice(0, 40), slice(100, 160)).as_tensor(), (0, 0, 0, more, 0, more))

    rows, columns = field_of_body(image, 0.8)

    assert rows.start == 0 and rows.stop >= 40 and columns.start <= 100
    assert 160 <= columns.stop <= 160 + more


def test_it_is_found_in_many_large_slices_as_in_small_ones():
    rows, columns = slice(40, 160), slice(140, 280)
    image = scan(rows, columns, shape=(240, 320), slices=60)
    large = torch.nn.functional.interpolate(image.as_tensor()[0].permute(2, 0, 1)[:, None], scale_factor=4)
    large = large[:, 0].permute(1, 2, 0)[None]

    for small, big in zip(field_of_body(image, 0.8), field_of_body(large, 0.8)):
        assert big.start == pytest.approx(4 * small.start, abs=8) and big.stop == pytest.approx(4 * small.stop, abs=8)


def test_images_that_are_scaled_later_are_cropped_alike():
    image = scan(slice(20, 80), slice(70, 140))
    window = ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True)
    stored = MetaTensor((image * 400 - 125).round().short(), affine=AFFINE)

    (now, later) = (crop()(step({"image": stored.clone()}))["image"] for step in (window, ScaleLaterd(window)))

    assert later.dtype == torch.int16 and later.shape == now.shape != image.shape
    assert torch.equal(now.affine, later.affine)


@pytest.mark.parametrize("body", [(slice(20, 80), slice(70, 140)), (slice(0, 120), slice(0, 160))])
def test_results_are_put_back_where_they_were(body):
    image = scan(*body)
    transform = Compose([crop()])
    seen = transform({"image": image})
    labels = (seen["image"] > 0.5).to(torch.uint8).copy_meta_from(seen["image"])
    shown = torch.as_tensor(seen["image"]).clone()

    result = Invertd("pred", transform, orig_keys="image", nearest_interp=True)({**seen, "pred": labels})["pred"]

    assert torch.equal(result.as_tensor(), (image.as_tensor() > 0.5).to(torch.uint8))
    assert torch.allclose(result.affine, AFFINE) and not result.applied_operations
    rows, columns = field_of_body(image, 0.8)
    assert torch.equal(shown, image.as_tensor()[:, rows, columns])  # and nothing was resampled


def test_the_affine_of_what_is_cropped_says_where_it_is():
    image = scan(slice(20, 80), slice(70, 140))
    rows, columns = field_of_body(image, 0.8)

    part = crop()({"image": image})["image"]

    expected = AFFINE @ torch.tensor([rows.start, columns.start, 0, 1], dtype=torch.float64)
    assert torch.allclose(part.affine[:, 3], expected)


def test_organs_logits_say_outside_that_nothing_is_there():
    assert ABSENT == NO_OBJECT_LOGIT
    image = scan(slice(20, 80), slice(70, 140))
    transform = crop(organs=2)
    seen = transform({"image": image})["image"]
    # the background, two organs, and one channel more, such as an uncertainty
    logits = MetaTensor(torch.ones(4, *seen.shape[1:])).copy_meta_from(seen)

    whole = transform.inverse({"image": logits})["image"].as_tensor()

    rows, columns = field_of_body(image, 0.8)
    outside = torch.ones(120, 160, dtype=torch.bool)
    outside[rows, columns] = False
    assert [channel[outside].unique().tolist() for channel in whole] == [[0], [ABSENT], [ABSENT], [0]]
    assert (whole[:, rows, columns] == 1).all()
