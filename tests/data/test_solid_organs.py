"""Of a solid organ nothing stays that its own grey, its largest piece and its thickness speak against."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Pad, SpatialCrop
from scripts.data.grids import seen_on
from scripts.data.solid_organs import KeepSolidOrgansd, solid_among
from scripts.data.stored import WINDOW
from scripts.errors import SettingError

ORGANS = ["spleen", "liver"]
SHAPE = (60, 50, 24)
SPACING = (1.5, 1.5, 4.0)
LIVER = 2


def scan(grey=0.5, other=0.1, *, noise=0.03):
    """A liver, and above it something that was taken for it; a spleen; and where liver and the other are."""
    labels, image = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 0.3)
    liver, lung, spleen = (np.zeros(SHAPE, bool) for _ in range(3))
    liver[10:40, 10:40, 4:16], lung[10:40, 10:40, 16:20], spleen[45:55, 20:35, 6:14] = True, True, True
    labels[liver | lung], labels[spleen] = LIVER, 1
    for part, value in ((liver, grey), (lung, other), (spleen, grey)):
        image[part] = value
    image += np.random.default_rng(0).normal(0, noise, SHAPE)
    affine = np.diag([*SPACING, 1.0])
    data = {"pred": MetaTensor(torch.from_numpy(labels)[None], affine=affine)}
    return data | {"image": MetaTensor(torch.from_numpy(image.clip(0, 1))[None].float(), affine=affine)}, liver, lung


def kept(data, **options):
    before = data["pred"].clone()
    result = KeepSolidOrgansd("pred", ORGANS, **{"solid": ["liver"], **options})(data)
    changed = (result["pred"] != before)[0].numpy()
    assert not result["pred"][0].numpy()[changed].any()  # nothing but taken away
    return changed


@pytest.mark.parametrize(("grey", "other"), [(0.5, 0.1), (0.3, 0.98), (0.9, 0.2), (0.01, 0.4)])
def test_what_is_much_darker_or_brighter_than_the_organ_is_none_of_it(grey, other):
    data, liver, lung = scan(grey, other)

    changed = kept(data)

    assert changed[lung].mean() > 0.97
    assert changed[liver].mean() < 0.03


def test_shading_vessels_and_noise_stay():
    """A factor of three from one side of the body to the other, and vessels three times as bright as the organ."""
    data, liver, _ = scan(0.3, 0.3, noise=0.05)
    image = data["image"].as_tensor()
    image *= torch.from_numpy(3 ** np.linspace(-0.5, 0.5, SHAPE[0]))[:, None, None]
    image[:, 15:38:6, 12:38:8] *= 3

    assert not kept(data).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_what_lies_around_is_counted_in_millimetres(axis):
    """A dark vessel 6 mm wide stays in 17 mm around, however many pixels they are along either axis."""
    data, _, _ = scan(other=0.5)
    spacing = [4.0, 4.0, 4.0]
    spacing[axis] = 1.0
    data = {key: MetaTensor(value.as_tensor(), affine=np.diag([*spacing, 1.0])) for key, value in data.items()}
    data["image"].as_tensor().narrow(1 + axis, 22, 6).fill_(0.05)

    assert not kept(data).any()


def test_only_solid_organs_are_looked_at():
    data, _, _ = scan()

    assert not kept(data, solid=["spleen"]).any()
    assert not kept(data, solid=[]).any()


def test_an_organ_that_is_nowhere_or_black():
    data, _, _ = scan()
    data["pred"][data["pred"] == LIVER] = 0
    assert not kept(data).any()

    for noise in (0.0, 0.02):  # of which what lies below black is cut off, and the median is 0 or next to it
        data, _, _ = scan(0.0, 0.0, noise=noise)
        assert not kept(data).any()


def test_one_slice_that_was_missed_is_filled_in_shape():
    data, liver, lung = scan(other=0.5)
    labels = data["pred"][0].numpy()
    labels[lung] = 0
    labels[:14, :, 8:][labels[:14, :, 8:] == LIVER] = 0
    labels[:, :, 7] = 0
    labels[45:55, 20:35, 7] = 1  # the spleen is there still

    filled = KeepSolidOrgansd("pred", ORGANS, solid=["liver"])(data)["pred"][0].numpy()

    # between an edge at 10 below and at 14 above lies one at 12
    assert np.flatnonzero(filled[:, 20, 7] == LIVER).tolist() == list(range(12, 40))
    assert (filled[45:55, 20:35, 7] == 1).all() and (filled[:, :, 4:16] == LIVER).any((0, 1)).all()


@pytest.mark.parametrize("gone", [slice(7, 9), slice(4, 5)], ids=["two slices", "the organ's end"])
def test_other_slices_without_the_organ_stay_so(gone):
    data, _, lung = scan()
    labels = data["pred"][0].numpy()
    labels[lung] = 0
    labels[:, :, gone][labels[:, :, gone] == LIVER] = 0

    filled = KeepSolidOrgansd("pred", ORGANS, solid=["liver"])(data)["pred"][0].numpy()

    assert not (filled[:, :, gone] == LIVER).any()


@pytest.mark.parametrize("columns", [slice(30, 40), slice(16, 30)], ids=["apart", "a part"])
def test_of_two_pieces_that_hardly_overlap_nothing_is_between(columns):
    data, _, lung = scan()
    labels = data["pred"][0].numpy()
    labels[labels == LIVER] = 0
    labels[10:20, 10:40, 4:8] = labels[columns, 10:40, 9:16] = LIVER

    filled = KeepSolidOrgansd("pred", ORGANS, solid=["liver"])(data)["pred"][0].numpy()

    assert not (filled[:, :, 8] == LIVER).any()


def test_of_pieces_the_largest_stays():
    data, _, _ = scan(0.5, 0.5)
    data["pred"][0, 50:55, 40:45, 20:22] = LIVER

    changed = kept(data)

    assert changed[50:55, 40:45, 20:22].all() and changed.sum() == 50


@pytest.mark.parametrize("axcodes", ["RAS", "PLS", "SAR", "IPL", "LAI"])
def test_images_are_seen_turned_and_cropped_as_preprocessing_does(axcodes):
    """The same voxels go whatever way the file's axes point, on an image that was turned and cropped since."""
    expected = kept(scan()[0])
    data, _, _ = scan()
    data = {key: Orientation(axcodes=axcodes)(value) for key, value in data.items()}
    data["image"] = SpatialCrop(roi_start=(5, 5, 0), roi_end=(58, 48, 24))(Orientation(axcodes="RAS")(data["image"]))

    changed = kept(data)

    back = MetaTensor(torch.from_numpy(changed[None].astype(np.uint8)), affine=data["pred"].affine)
    assert (Orientation(axcodes="RAS")(back)[0].numpy().astype(bool) == expected).all()


def test_images_as_they_are_stored_are_scaled_by_their_note():
    expected = kept(scan()[0])
    data, _, _ = scan()
    data["image"] = (data["image"] * 400 - 125).round().to(torch.int16)
    data["image"].meta[WINDOW] = torch.tensor([-125.0, 275.0, 0.0, 1.0, 1.0]).double()

    assert (kept(data) != expected).mean() < 1e-3


@pytest.mark.parametrize("size", [4, 3, 1], ids="{} of 4, reversed".format)
def test_a_grid_is_seen_from_another_as_a_view(size):
    voxels = np.arange(24).reshape(2, 3, 4)
    onto = np.array([[0, 0, -1, 1], [0, 1.0, 0, 1], [-1, 0, 0, 3], [0, 0, 0, 1]])  # from k, j, i, reversed, from j = 1

    seen = seen_on(voxels, np.eye(4), onto, (size, 2, 2))

    assert seen.base is not None
    np.testing.assert_array_equal(seen, voxels.transpose(2, 1, 0)[::-1, 1:, ::-1][:size])
    seen[0, 0, 0] = -5
    assert voxels[1, 1, 3] == -5


def test_organs_that_are_none_are_refused():
    expected = r"`solid_organs` names 'kidney', expected some of the organs 'spleen', 'liver'"
    with pytest.raises(SettingError, match=expected):
        KeepSolidOrgansd("pred", ORGANS, solid=["liver", "kidney"])


def test_which_organs_are_solid_is_seen_in_what_experts_have_drawn():
    """A liver of one grey and a spleen of two halves that nothing joins, in one of two cases; a third organ in none."""
    cases = []
    for halves in (False, True):
        data, _, lung = scan()
        label = data["pred"].clone()
        label[0][torch.from_numpy(lung)] = 0
        if halves:
            label[0, 45:55, 26:29] = 0
        cases.append({"image": data["image"], "label": label.float()})
    before = [case["label"].clone() for case in cases]

    assert solid_among([*ORGANS, "stomach"], cases) == ["liver"]
    assert solid_among(ORGANS, cases[:1]) == ORGANS
    assert solid_among(ORGANS, []) == []
    assert all(torch.equal(case["label"], label) for case, label in zip(cases, before))


def test_an_image_that_air_was_added_to_is_looked_at_where_the_labels_are():
    data, liver, lung = scan()
    expected = kept({**data, "pred": data["pred"].clone()})
    padded = Pad([(0, 0), (7, 3), (0, 12), (0, 0)])(data["image"])
    assert padded.shape[1:] != SHAPE

    assert (kept({**data, "image": padded}) == expected).all() and expected[lung].any()
