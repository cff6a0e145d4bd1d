"""Scans in a wide, a narrow or a long field of view: what the network sees of them, and results on the file's grid
again.
"""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, ScaleIntensityRanged
from scripts.data.body import ABSENT, CropToBodyd, field_of_body, on_grid
from scripts.data.stored import ScaleLaterd, scaled
from scripts.networks.logits import NO_OBJECT_LOGIT

AFFINE = torch.tensor([[0.0, -2.5, 0, 90], [-3.0, 0, 0, 120], [0, 0, 5, -40], [0, 0, 0, 1]], dtype=torch.float64)


def scan(rows: slice, columns: slice, *, shape=(120, 160), slices: int = 6, affine=AFFINE) -> MetaTensor:
    """A body of random greys, between the given rows and columns, in air: 360 mm by 400."""
    image = torch.zeros(1, *shape, slices)
    image[:, rows, columns] = 0.3 + 0.5 * torch.rand(image[:, rows, columns].shape, generator=torch.manual_seed(0))
    return MetaTensor(image, affine=affine)


def millimetres(*sizes: float) -> torch.Tensor:
    """Of a voxel along rows, columns and slices."""
    return torch.diag(torch.tensor([*sizes, 1.0], dtype=torch.float64))


def crop(fill: float = 0.8, organs: int = 2) -> CropToBodyd:
    return CropToBodyd(["image"], fill=fill, organs=organs, air=True)


def test_a_body_in_a_wide_field_is_cropped_to_in_the_fields_shape():
    image = scan(slice(20, 80), slice(70, 140))

    rows, columns = field_of_body(image, 0.8, air=True)

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
    alone = field_of_body(image, 0.8, air=True)
    image[:, 110:113, 5:155] = 0.9  # a table
    image += 0.05 * torch.rand(image.shape, generator=torch.manual_seed(1))

    assert field_of_body(image, 0.8, air=True) == alone


def test_legs_are_both_parts_of_the_body():
    image = scan(slice(20, 80), slice(30, 60))
    image[:, 20:80, 90:120] = 0.5

    _, columns = field_of_body(image, 0.8, air=True)

    assert columns.start <= 30 and columns.stop >= 120


@pytest.mark.parametrize("more", [0, 30])
def test_the_part_is_in_the_field_wherever_the_body_lies(more):
    image = torch.nn.functional.pad(scan(slice(0, 40), slice(100, 160)).as_tensor(), (0, 0, 0, more, 0, more))

    rows, columns = field_of_body(image, 0.8, air=True)

    assert rows.start == 0 and rows.stop >= 40 and columns.start <= 100
    assert 160 <= columns.stop <= 160 + more


def test_it_is_found_in_many_large_slices_as_in_small_ones():
    rows, columns = slice(40, 160), slice(140, 280)
    image = scan(rows, columns, shape=(240, 320), slices=60)
    large = torch.nn.functional.interpolate(image.as_tensor()[0].permute(2, 0, 1)[:, None], scale_factor=4)
    large = large[:, 0].permute(1, 2, 0)[None]

    for small, big in zip(field_of_body(image, 0.8, air=True), field_of_body(large, 0.8)):
        assert big.start == pytest.approx(4 * small.start, abs=8) and big.stop == pytest.approx(4 * small.stop, abs=8)


def test_images_that_are_scaled_later_are_cropped_alike():
    image = scan(slice(20, 80), slice(70, 140))
    window = ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True)
    stored = MetaTensor((image * 400 - 125).round().short(), affine=AFFINE)

    (now, later) = (crop()(step({"image": stored.clone()}))["image"] for step in (window, ScaleLaterd(window)))

    assert later.dtype == torch.int16 and later.shape == now.shape != image.shape
    assert torch.equal(now.affine, later.affine)


# in a wide field, in a usual one, in one that is narrow, of 240 mm by 240, and in one that is long, of 120 mm by 400
SEEN = {
    "wide": ((slice(20, 80), slice(70, 140)), AFFINE),
    "usual": ((slice(0, 120), slice(0, 160)), AFFINE),
    "narrow": ((slice(20, 120), slice(0, 160)), millimetres(2.0, 1.5, 5)),
    "long": ((slice(20, 120), slice(40, 100)), millimetres(1.0, 2.5, 5)),
    "long and turned": ((slice(20, 120), slice(40, 100)), millimetres(-1.0, 2.5, -5)),
}


@pytest.mark.parametrize(("body", "affine"), SEEN.values(), ids=SEEN)
def test_results_are_put_back_where_they_were(body, affine):
    image = scan(*body, affine=affine)
    transform = Compose([crop()])
    seen = transform({"image": image})
    labels = (seen["image"] > 0.5).to(torch.uint8).copy_meta_from(seen["image"])
    shown = torch.as_tensor(seen["image"]).clone()

    result = Invertd("pred", transform, orig_keys="image", nearest_interp=True)({**seen, "pred": labels})["pred"]

    assert torch.equal(result.as_tensor(), (image.as_tensor() > 0.5).to(torch.uint8))
    assert torch.allclose(result.affine, affine) and not result.applied_operations
    assert torch.equal(shown, cut(image, *field_of_body(image, 0.8, air=True)))  # and nothing was resampled
    assert torch.equal(on_grid(seen["image"], result).as_tensor(), inside(image))


def cut(image: MetaTensor, rows: slice, columns: slice) -> torch.Tensor:
    """Rows and columns of an image, and air beyond it."""
    height, width = image.shape[1:3]
    around = (
        0,
        0,
        max(-columns.start, 0),
        max(columns.stop - width, 0),
        max(-rows.start, 0),
        max(rows.stop - height, 0),
    )
    whole = torch.nn.functional.pad(image.as_tensor(), around)
    top, left = max(rows.start, 0), max(columns.start, 0)
    return whole[:, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def inside(image: MetaTensor) -> torch.Tensor:
    rows, columns = (slice(max(side.start, 0), side.stop) for side in field_of_body(image, 0.8, air=True))
    return image.as_tensor()[:, rows, columns]


def shown_as(image: MetaTensor) -> list[float]:
    """Height and width in mm of what the network sees, and the place in it of the body's first row and column."""
    seen = crop()({"image": image})["image"].as_tensor()[0]
    spacing = image.affine[:3, :3].square().sum(0).sqrt()[:2]
    first = [(seen > 0).any(2).any(1 - axis).nonzero()[0, 0] for axis in range(2)]
    return [float(value) for value in (*(torch.tensor(seen.shape[:2]) * spacing), *(torch.stack(first) * spacing))]


def test_a_narrow_field_that_ends_in_the_body_is_shown_in_as_much_air_as_others_have():
    body = slice(5, 120), slice(0, 160)  # of 240 mm by 240: it ends at three sides

    assert shown_as(scan(*body, affine=millimetres(2.0, 1.5, 5))) == pytest.approx([340, 340.5, 60, 51], abs=0.1)
    assert shown_as(scan(*body, affine=millimetres(2.7, 2.0, 5)))[:2] == [324, 320]  # which is wide enough


@pytest.mark.parametrize("body", ["narrow", "long", "long and turned"])
def test_without_air_every_field_is_stretched_as_it_is(body):
    place, affine = SEEN[body]
    assert field_of_body(scan(*place, affine=affine), 0.8) == (slice(0, 120), slice(0, 160))


@pytest.mark.parametrize(("rows", "shown"), [(slice(20, 90), 240), (slice(10, 100), 273)])
def test_a_narrow_field_of_a_small_body_is_no_narrow_one(rows, shown):
    """A child's, of 140 mm from front to back, is not much wider than 210; of 180 mm, it is about as wide as 270."""
    image = scan(rows, slice(0, 160), affine=millimetres(2.0, 1.5, 5))

    assert shown_as(image)[1] == pytest.approx(shown, abs=4)


def test_a_long_field_becomes_a_square_about_the_body():
    """Stretched to a square slice, the body would be 2.5 times as high as it is wide."""
    image = scan(slice(20, 120), slice(50, 100), affine=millimetres(1.0, 2.0, 5))  # 100 mm by 100, of 120 by 320

    height, width, top, left = shown_as(image)

    assert height == width == 120 and top == 20 and left == 10

    wider = scan(slice(20, 120), slice(10, 150), affine=millimetres(1.0, 2.0, 5))  # 100 mm by 280
    height, width, top, left = shown_as(wider)
    assert height == width == pytest.approx(1.04 * 284, abs=2) and top == pytest.approx(20 + (height - 120) / 2, abs=1)


def test_labels_have_nothing_in_the_air_that_is_added_and_stored_images_what_is_scaled_to_nought():
    image = scan(slice(5, 120), slice(0, 160), affine=millimetres(2.0, 1.5, 5))
    stored = MetaTensor((image * 400 - 125).round().short(), affine=image.affine)
    window = ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True)
    both = CropToBodyd(["image", "label"], fill=0.8, organs=2, air=True)

    seen = both(ScaleLaterd(window)({"image": stored.clone(), "label": (stored > 0).to(torch.uint8)}))

    assert seen["image"].dtype == torch.int16 and seen["label"].dtype == torch.uint8
    assert seen["image"].shape == seen["label"].shape == (1, 170, 227, 6)
    assert torch.equal(scaled(seen["image"].as_tensor(), seen["image"]) > 0, seen["image"].as_tensor() > -125)
    assert not seen["label"][:, :25].any() and (seen["image"][:, :25] == -125).all()


def test_the_affine_of_what_is_cropped_says_where_it_is():
    image = scan(slice(20, 80), slice(70, 140))
    rows, columns = field_of_body(image, 0.8, air=True)

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

    rows, columns = field_of_body(image, 0.8, air=True)
    outside = torch.ones(120, 160, dtype=torch.bool)
    outside[rows, columns] = False
    assert [channel[outside].unique().tolist() for channel in whole] == [[0], [ABSENT], [ABSENT], [0]]
    assert (whole[:, rows, columns] == 1).all()
