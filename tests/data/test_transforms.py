"""Reproducible augmentation variants, in-plane deformation, and descriptions of transforms."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    KeepLargestConnectedComponent,
    LoadImaged,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandGaussianNoised,
    Resized,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from scripts.data.transforms import (
    AugmentedVariant,
    InSlabsd,
    KeepLargestComponentsd,
    RandInPlaneDeformd,
    RandOrganContrastd,
    ResizeLabeld,
    describe,
)
from scripts.data.volumes import VolumeReader

KEYS = ["image", "label"]


def augmentation(noise: float = 0.05) -> Compose:
    """Random transforms of every kind that the training uses."""
    return Compose(
        [
            RandAffined(KEYS, prob=1.0, rotate_range=[0, 0, 0.3], mode=["bilinear", "nearest"], padding_mode="zeros"),
            RandInPlaneDeformd(KEYS, prob=0.8, mode=["bilinear", "nearest"]),
            RandAdjustContrastd("image", prob=0.7, gamma=[0.6, 1.6]),
            RandBiasFieldd("image", prob=0.5, degree=2, coeff_range=[-0.15, 0.15]),
            RandGaussianNoised("image", prob=1.0, std=noise),
        ]
    )


@pytest.fixture
def volume():
    image = torch.rand(1, 24, 20, 5, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 24, 20, 5)
    label[:, 6:16, 5:14, 1:4] = 1
    label[:, 10:20, 12:18, 2:5] = 3
    return {"image": image, "label": label}


def test_a_variant_does_not_depend_on_what_was_drawn_before(volume):
    fresh, used = AugmentedVariant(augmentation(), seed=1), AugmentedVariant(augmentation(), seed=1)
    for variant in (3, 1, 5):
        used(volume, "other", variant)
    np.random.seed(0)

    one, other = fresh(volume, "case", 2), used(volume, "case", 2)

    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["label"], other["label"])


def test_variant_0_is_the_volume_itself(volume):
    unaugmented = AugmentedVariant(augmentation())(volume, "case", 0)

    assert all(torch.equal(unaugmented[key], volume[key]) for key in KEYS)


def test_augmenting_leaves_the_volume_itself_alone(volume):
    before = {key: value.clone() for key, value in volume.items()}

    AugmentedVariant(augmentation())(volume, "case", 1)

    assert all(torch.equal(before[key], volume[key]) for key in KEYS)


@pytest.mark.parametrize("seed, case, variant", [(1, "a", 1), (0, "b", 1), (0, "a", 2), (0, os.fsdecode(b"a\xe9"), 1)])
def test_another_seed_case_or_variant_differs(volume, seed, case, variant):
    reference = AugmentedVariant(augmentation(), seed=0)(volume, "a", 1)

    other = AugmentedVariant(augmentation(), seed=seed)(volume, case, variant)

    assert not torch.equal(other["image"], reference["image"])


def deform(volume, prob: float = 1.0, magnitude: float = 0.03, seed: int = 0, mode=("bilinear", "nearest")):
    transform = RandInPlaneDeformd(list(volume), prob=prob, magnitude=magnitude, mode=mode[: len(volume)])
    return transform.set_random_state(seed)(volume)


def test_probability_0_leaves_the_volume(volume):
    assert all(torch.equal(deform(volume, prob=0.0)[key], volume[key]) for key in KEYS)


def test_magnitude_0_leaves_labels(volume):
    assert torch.equal(deform(volume, magnitude=0.0)["label"], volume["label"])


def test_deformation_keeps_shapes_and_changes_the_image(volume):
    deformed = deform(volume)

    assert all(deformed[key].shape == volume[key].shape for key in KEYS)
    assert not torch.equal(deformed["image"], volume["image"])


@pytest.mark.parametrize("seed", range(3))
def test_nearest_interpolation_invents_no_label(volume, seed):
    deformed = deform(volume, magnitude=0.05, seed=seed)["label"]

    assert set(deformed.unique().tolist()) == {0, 1, 3}


def test_slices_are_not_mixed():
    image = torch.zeros(1, 24, 20, 5)
    image[..., 2] = 1

    deformed = deform({"image": image})["image"]

    assert deformed[..., 2].any()
    assert not deformed[..., [0, 1, 3, 4]].any()


def test_image_and_label_are_deformed_alike():
    mask = torch.zeros(1, 64, 64, 3)
    mask[:, 16:44, 20:50] = 1

    deformed = deform({"image": mask, "label": mask})

    assert not torch.equal(deformed["label"], mask)
    # bilinear and nearest interpolation of one mask part only within half a pixel of its outline, 116 pixels long
    disagreement = ((deformed["image"] > 0.5) != (deformed["label"] > 0.5)).float().sum() / 3
    assert disagreement < 0.25 * 116


def test_equal_builds_have_equal_descriptions():
    assert describe(augmentation()) == describe(augmentation())


def test_a_parameter_shows_in_the_description():
    assert describe(augmentation(noise=0.05)) != describe(augmentation(noise=0.06))


def test_the_order_of_transforms_shows_in_the_description():
    first, second = ScaleIntensityRanged("image", 0, 1, 0, 2), Resized("image", (8, 8, -1))

    assert describe(Compose([first, second])) != describe(Compose([second, first]))


def test_what_was_drawn_does_not_show_in_the_description(volume):
    transform = augmentation()
    before = describe(transform)

    for seed in range(3):  # enough for every transform to have been applied and left out
        transform.set_random_state(seed)(volume)

    assert describe(transform) == before


def test_having_been_used_does_not_show_in_the_description(volume):
    transform = Compose([ScaleIntensityRanged(KEYS, 0, 1, 0, 2), Resized(KEYS, (8, 8, -1), mode="nearest")])
    before = describe(transform)

    transform(volume)

    assert describe(transform) == before


def test_descriptions_are_plain_json():
    description = describe(Compose([LoadImaged(KEYS, ensure_channel_first=True), augmentation()]))

    assert json.loads(json.dumps(description)) == description


def contrasted(prob, factor_range, seed=0):
    """Before and after :class:`RandOrganContrastd` of the second of two organs, two cubes in grey."""
    label = torch.zeros(1, 12, 20, 3)
    label[:, 3:9, 3:9] = 2
    label[:, 3:9, 12:18] = 1
    data = {"image": torch.full_like(label, 0.4), "label": label}
    transform = RandOrganContrastd("image", ["spleen", "liver"], factor_ranges={"liver": factor_range}, prob=prob)
    transform.set_random_state(seed)
    return data, transform(data)


def test_organ_contrast_changes_the_named_organ_and_nothing_else():
    before, after = contrasted(prob=1.0, factor_range=(0.5, 0.5))

    assert torch.allclose(after["image"][:, 4:8, 4:8], torch.tensor(0.2))  # inside the organ: halved
    # on both sides of its edge by the share of the organ in 3 x 3 voxels: one third, then two
    assert after["image"][0, 5, 1:5, 1].tolist() == pytest.approx([0.4, 0.4 * 5 / 6, 0.4 * 2 / 3, 0.2])
    elsewhere = torch.ones(12, 20, dtype=torch.bool)
    elsewhere[2:10, 2:10] = False  # the organ's edge is softened by one voxel
    assert torch.equal(after["image"][0, elsewhere], before["image"][0, elsewhere])
    assert torch.equal(after["label"], before["label"])


@pytest.mark.parametrize("prob, factor_range", [(0.0, (0.1, 0.2)), (1.0, (1.0, 1.0))])
def test_organ_contrast_can_be_switched_off(prob, factor_range):
    before, after = contrasted(prob, factor_range)

    assert torch.equal(after["image"], before["image"])


@pytest.mark.parametrize(
    "ranges, match", [({"liver": (0.0, 1.0)}, "0 < low <= high"), ({"heart": (0.5, 1.0)}, "names 'heart'")]
)
def test_organ_contrast_refuses_what_it_cannot_draw(ranges, match):
    with pytest.raises(ValueError, match=match):
        RandOrganContrastd("image", ["spleen", "liver"], factor_ranges=ranges)


@pytest.mark.parametrize("options", [{"series": "portal"}, {"default_axcodes": "LAS"}], ids=str)
def test_what_a_reader_was_told_is_part_of_a_description(options):
    """Another series of a folder, or axes that point elsewhere, are other images."""

    def described(**options):
        return describe(LoadImaged("image", reader=VolumeReader(**options)))

    assert described(**options) == described(**options) != described()


# ---- label maps in another size


def boxes(shape=(48, 40, 5)) -> torch.Tensor:
    label = torch.zeros((1, *shape))
    label[:, 9:21, 7:18, 1:4] = 1
    label[:, 26:39, 20:33] = 2
    return label


def centre(label: torch.Tensor, value: int) -> torch.Tensor:
    """Of an organ, as a share of each side."""
    places = torch.nonzero(label[0] == value).float() + 0.5
    return places.mean(0) / torch.tensor(label.shape[1:])


@pytest.mark.parametrize("size", [(24, 20), (24, 40), (16, 10), (36, 30), (24, 60)])
@pytest.mark.parametrize("value", [1, 2])
def test_a_label_that_shrinks_stays_where_its_image_is(size, value):
    label = boxes()
    resized = ResizeLabeld("label", (*size, -1))({"label": label})["label"]

    assert resized.shape == (1, *size, 5) and set(resized.unique().tolist()) == {0, 1, 2}
    # rounding to voxels moves an edge by half of one at most, of a box both edges the same way by less; halved by
    # nearest neighbours, both move by half
    assert ((centre(resized, value) - centre(label, value)).abs()[:2] * torch.tensor(size)).max() < 0.4


@pytest.mark.parametrize("axis", [1, 2])
def test_shrinking_knows_no_direction(axis):
    label, shrink = boxes(), ResizeLabeld("label", (24, 20, -1))
    turned = shrink({"label": label.flip(axis)})["label"].flip(axis)
    assert torch.equal(turned, shrink({"label": label})["label"])


@pytest.mark.parametrize("values, kept", [((0, 2), 0), ((2, 0), 0), ((1, 2), 1), ((2, 1), 1)])
def test_of_labels_that_have_as_much_the_lowest_is_kept(values, kept):
    """An edge in the middle of a voxel: background comes before organs, and of two organs the same on either side."""
    label = torch.full((1, 8, 8, 1), values[0])
    label[:, :, 3:] = values[1]
    shrunk = ResizeLabeld("label", (4, 4, -1))({"label": label})["label"]
    assert shrunk[0, 0, :, 0].tolist() == [values[0], kept, values[1], values[1]]


@pytest.mark.parametrize("size", [(48, 40), (96, 80), (64, 64)])
def test_a_label_that_grows_has_nearest_neighbours(size):
    expected = Resized("label", (*size, -1), mode="nearest-exact")({"label": boxes()})["label"]
    assert torch.equal(ResizeLabeld("label", (*size, -1))({"label": boxes()})["label"], expected)


def test_the_place_of_a_shrunk_label_is_that_of_the_image():
    label = MetaTensor(boxes(), affine=torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0])))
    resized = ResizeLabeld("label", (24, 20, -1))({"label": label})["label"]
    expected = Resized("label", (24, 20, -1), mode="trilinear")({"label": label})["label"]
    assert torch.equal(resized.affine, expected.affine)


# -------------------------------------------------------------------------------- largest components


@pytest.mark.parametrize("seed", range(4))
def test_largest_components_within_boxes_are_monais(seed):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy((rng.integers(0, 4, (1, 9, 8, 7)) * (rng.random((1, 9, 8, 7)) < 0.3)).astype(np.uint8))
    expected = KeepLargestConnectedComponent(applied_labels=[1, 2, 3, 4], is_onehot=False)(labels.clone())
    found = KeepLargestComponentsd("pred", organs=4)({"pred": MetaTensor(labels.clone())})["pred"]
    assert torch.equal(found.as_tensor(), expected.as_tensor()) and not torch.equal(expected.as_tensor(), labels)
    assert found.dtype == torch.uint8


def test_largest_components_of_an_empty_label_map():
    labels = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    assert not KeepLargestComponentsd("pred", organs=2)({"pred": MetaTensor(labels)})["pred"].any()


# ------------------------------------------------------------------------------------------- in slabs


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "transform",
    [
        ScaleIntensityRanged("image", a_min=-125, a_max=275, b_min=0, b_max=1, clip=True),
        ScaleIntensityRangePercentilesd("image", lower=0, upper=99.5, b_min=0, b_max=1, clip=True),
    ],
    ids=["range", "percentiles"],
)
def test_intensities_in_slabs_are_those_of_the_whole(transform, dtype):
    generator = torch.Generator().manual_seed(0)
    stored = (torch.randn(1, 7, 6, 11, generator=generator) * 100 + 100).to(dtype)
    image = MetaTensor(stored.flip(1).transpose(1, 2), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    expected = transform({"image": image.float()})["image"]

    found = InSlabsd(transform, slices=4)({"image": image, "case": "a"})

    assert torch.equal(found["image"].as_tensor(), expected.as_tensor()) and found["image"].dtype == torch.float32
    assert torch.equal(found["image"].affine, image.affine) and found["case"] == "a"
    assert torch.equal(image.as_tensor(), stored.flip(1).transpose(1, 2))


def test_no_more_than_a_slab_is_scaled_at_once():
    seen = []

    class Recording(ScaleIntensityRanged):
        def __call__(self, data):
            seen.append(data["image"].shape[-1])
            return super().__call__(data)

    transform = Recording("image", a_min=0, a_max=1, b_min=0, b_max=1)
    InSlabsd(transform, slices=4)({"image": MetaTensor(torch.rand(1, 2, 3, 10))})
    assert seen == [4, 4, 2]
