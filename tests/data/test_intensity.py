"""Ranges of intensities: padding and outliers change nothing for the rest, and numbers of another unit are said."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from scripts.data.hounsfield import hounsfield_units, no_hounsfield_units
from scripts.data.intensity import NOTES, CheckUnitsd, LeaveOutPaddingd, modality_in
from scripts.data.transforms import InSlabsd
from scripts.data.volumes import VolumeReader
from scripts.errors import DatasetError
from scripts.prepare.folder import prepare_folder

from tests.conftest import BUNDLE, save_dataset, save_volume, simple_image, simple_label

SHAPE = (1, 48, 40, 12)


def intensity(modality: str):
    content = json.loads((BUNDLE / "configs" / f"{modality}.json").read_text())
    return ConfigParser(content).get_parsed_content("intensity")


def mr(seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    """MR-like: noise around 0 outside the body, tissue up to 900, a few bright vessels."""
    random = np.random.default_rng(seed)
    image = np.abs(random.normal(0, 6, SHAPE))
    image[:, 8:40, 6:34] = random.gamma(9, 30, (1, 32, 28, 12))
    image[:, 20:22, 20:22] = 900
    return torch.as_tensor(image.round() + offset, dtype=torch.float32)


def scaled(image: torch.Tensor) -> torch.Tensor:
    transform = intensity("mr")
    return Compose([LeaveOutPaddingd("image", transform), transform])({"image": image})["image"]


def border(image, value):
    image[:, :2], image[:, -2:], image[:, :, :2], image[:, :, -2:] = (value,) * 4


ODD = {
    "one voxel of -32768": lambda image: image.__setitem__((0, 0, 0, 0), -32768),
    "one voxel of 1e9": lambda image: image.__setitem__((0, 0, 0, 0), 1e9),
    "4 % padding at -1000": lambda image: image[:, :2].fill_(-1000),
    "a border of -2048": lambda image: border(image, -2048),
    "a border of 63536": lambda image: border(image, 63536),
    "2 % at 65535": lambda image: image[:, :1].fill_(65535),
    "scattered dark voxels": lambda image: image.view(-1)[::50].fill_(-32768),
    # with which ITK, ANTs and others fill what a resampled image does not cover
    "a border of the lowest number of single precision": lambda image: border(image, torch.finfo(image.dtype).min),
    "a border of the highest one": lambda image: border(image, torch.finfo(image.dtype).max),
    "a few voxels of both": lambda image: (
        image.view(-1)[:9].fill_(torch.finfo(image.dtype).min),
        image.view(-1)[9:12].fill_(torch.finfo(image.dtype).max),
    ),
    "two kinds of padding and two outliers": lambda image: (
        border(image, -3000),
        image[:, 2:3].fill_(-1000),
        image.view(-1)[:3].copy_(torch.tensor([-32768, 1e9, 40000.0])),
    ),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_padding_and_outliers_leave_the_others_where_they_were(change, caplog):
    plain, odd = mr(), mr()
    change(odd)
    same = odd == plain

    difference = (scaled(odd) - scaled(plain))[same].abs().max()

    assert difference < 0.03  # of the range: what is left out is not counted among the voxels
    assert "taken for padding or errors" in caplog.text


def test_padding_is_as_dark_as_air_and_bright_errors_are_bright():
    image = mr()
    border(image, 63536)
    image[0, 20, 20, 5] = -32768
    result = scaled(image)
    assert result[0, 0, 0, 0] == 0 and result[0, 20, 20, 5] == 0
    image = mr()
    image[0, 20:23, 10:30, 5:8] = 65535
    assert (scaled(image)[0, 20:23, 10:30, 5:8] == 1).all()


@pytest.mark.parametrize("place", [(..., 0), (..., -1)], ids=["the first slice", "the last slice"])
def test_a_slice_of_padding_at_either_end_is_much_of_the_border(place):
    """And a row of the slices' edge, a tenth of the border, is not."""
    for where, grey in ((place, 0), ((0, place[1]), 1)):
        image = mr()
        image[where] = 65535
        assert (scaled(image)[where] == grey).all()


NORMAL = {
    "as it is": lambda image: image,
    "below 0 from interpolation": lambda image: image - 5 * (torch.rand(SHAPE, generator=torch.manual_seed(0)) < 0.01),
    "masked to 0": lambda image: image * (image > 150),
    "shifted": lambda image: image + 500,
    "standardised": lambda image: (image - image.mean()) / image.std(),
    "a few bright voxels": lambda image: image + 400 * (torch.rand(SHAPE, generator=torch.manual_seed(0)) < 0.001),
    "constant": lambda image: torch.full_like(image, 7),
    "two values": lambda image: (image > 100).float(),
}


@pytest.mark.parametrize("change", NORMAL.values(), ids=NORMAL)
@pytest.mark.parametrize("seed", range(3))
def test_without_outliers_the_numbers_are_those_of_percentiles_alone(change, seed, caplog):
    image = change(mr(seed))
    expected = ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1, clip=True)({"image": image.clone()})["image"]

    result = scaled(image.clone())

    assert torch.equal(torch.nan_to_num(result), torch.nan_to_num(expected)) and not caplog.text


def test_a_range_that_noise_of_many_values_takes_for_itself_is_said(caplog):
    image = mr()
    image.view(-1)[::60] = torch.linspace(1000, 60000, len(image.view(-1)[::60]))
    scaled(image)
    assert "96 % of its voxels lie in" in caplog.text and "0 to 4" in caplog.text


def test_a_range_wider_than_the_numbers_of_its_type_is_no_sliver(caplog):
    """With 16 bits and a sign, the difference of the two ends does not fit; that of nearly all voxels does."""
    image = torch.linspace(-15000, 15000, mr().numel()).reshape(mr().shape)
    image.view(-1)[:10], image.view(-1)[-200:] = -20000, 20000
    LeaveOutPaddingd("image", intensity("mr"))({"image": image.to(torch.int16)})
    assert not caplog.text


@pytest.mark.parametrize("value", [0, 40, 3071])
def test_what_surrounds_ct_at_one_value_is_air_and_in_it_nothing_is(value, caplog):
    random = np.random.default_rng(0)
    image = MetaTensor(torch.as_tensor(random.normal(20, 30, SHAPE).round(), dtype=torch.int16))
    image[:, 10:20, 10:20] = value  # such as a cyst
    border(image, value)

    result = LeaveOutPaddingd("image", intensity("ct"))({"image": image.clone()})["image"]

    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[:, 2:-2, 2:-2] = False
    assert result.dtype == torch.int16 and (result[outside] == -125).all()
    changed = (result != image).as_tensor()
    assert changed[~outside].float().mean() < 0.01  # what has the same value, and touches the border
    assert torch.equal(result[:, 10:20, 10:20], image[:, 10:20, 10:20])
    assert f"are {value}: taken for padding, and shown as air" in caplog.text
    assert "shown as air" in result.meta[NOTES]


def test_air_and_a_few_bright_voxels_at_the_border_of_ct_stay(caplog):
    image = MetaTensor(torch.as_tensor(np.random.default_rng(0).normal(-1000, 20, SHAPE), dtype=torch.float32))
    image[:, 8:, 8:30] = 40  # a body that ends at one side

    assert LeaveOutPaddingd("image", intensity("ct"))({"image": image})["image"] is image and not caplog.text


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_bytes_are_compared_as_the_numbers_that_they_are(dtype):
    """PyTorch makes a byte of what a byte is compared with: of -900, 124."""
    values = torch.randint(0, 120, SHAPE, generator=torch.manual_seed(0))
    for check in (hounsfield_units, no_hounsfield_units):
        assert check(values.to(dtype)) == check(values.short())
    with pytest.raises(DatasetError, match="do not say whether it is MR or CT"):
        modality_in(values.to(dtype), "scan.nii.gz")


def test_a_window_that_is_stated_needs_no_range(caplog):
    image = mr()
    image[0, 0, 0, 0] = -32768
    assert LeaveOutPaddingd("image", intensity("ct"))({"image": image})["image"] is image and not caplog.text


def test_what_a_metatensor_knows_stays(tmp_path):
    image = mr()[0].numpy()
    image[0, 0, 0] = -32768
    path = save_volume(tmp_path / "a.nii.gz", image)
    data = LoadImaged("image", reader=VolumeReader(), ensure_channel_first=True)({"image": str(path)})
    result = LeaveOutPaddingd("image")(data)["image"]
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, data["image"].affine)
    assert "-32768" in result.meta[NOTES]


# ---- units


def tissue(*parts: tuple[float, float, float]) -> torch.Tensor:
    """Voxels of some tissues: the mean of each, its noise, and its share."""
    random = np.random.default_rng(0)
    values = [random.normal(mean, noise, round(share * 40_000)) for mean, noise, share in parts]
    return torch.as_tensor(random.permutation(np.concatenate(values)).round(), dtype=torch.float32).view(
        1, 100, 100, -1
    )


CT = torch.as_tensor(simple_image(simple_label()).astype(np.float32))[None]
UNITS = {
    "0...4095": ((CT + 1024).clamp(0, 4095), "1024 too high"),
    "+1024": (CT + 1300, "1024 too high"),
    "0...255": (((CT + 125) / 400).clamp(0, 1) * 255, "grey values"),
    "[0, 1]": (((CT + 125) / 400).clamp(0, 1), "scaled to 0...1"),
    "MR": (mr(), "another unit"),
    "-1024": (CT - 1324, "applied twice"),
    "with the sign turned": (-CT, "the sign is turned"),
    "with the sign turned, padded": (torch.where(CT < -1010, -3024.0, -CT), "the sign is turned"),
    "with the sign turned, in a window": ((-CT).clamp(-300, 200), "the sign is turned"),
    "tenfold": (10 * CT, "10 times too large"),
    "tenfold, without air": (10 * tissue((-100, 15, 0.2), (55, 20, 0.8)), "10 times too large"),
    "a hundredfold": (100 * CT, "100 times too large"),
    "tenfold, with the sign turned": (-10 * CT, "and the sign is turned"),
    "a tenth": (CT / 10, "a tenth of them"),
    "a tenth, whole numbers": ((CT / 10).round().short(), "a tenth of them"),
}


@pytest.mark.parametrize("image, kind", UNITS.values(), ids=UNITS)
def test_a_window_of_ct_expects_hounsfield_units(image, kind, caplog):
    image = MetaTensor(image)
    CheckUnitsd("image", intensity("ct"))({"image": image})
    assert "no Hounsfield units" in caplog.text and kind in caplog.text and kind in image.meta[NOTES]


REAL = {
    "whole": CT,
    "in a window": CT.clamp(-200, 300),
    "in the window of the bundle": CT.clamp(-125, 275),
    "in a narrow window": CT.clamp(-100, 240),
    "padded with -2000": CT - 2000 * (CT < -900),
    "padded with -32768": torch.where(CT < -1010, -32768.0, CT),
    "padded with 3071": torch.where(CT < -1010, 3071.0, CT),
    "small integers": CT.short(),
    "a thigh's bone, no air": tissue((-100, 20, 0.3), (55, 20, 0.3), (300, 150, 0.2), (1100, 250, 0.2)),
    "bone in a window, no air": tissue((-100, 20, 0.3), (55, 20, 0.3), (300, 150, 0.2), (1100, 250, 0.2)).clamp(
        -200, 300
    ),
    "a fatty liver, no air": tissue((-90, 12, 0.1), (5, 15, 0.9)),
    "lung": tissue((-850, 60, 0.8), (40, 20, 0.2)),
    "lung and bone": tissue((-850, 60, 0.5), (40, 20, 0.2), (500, 250, 0.3)),
    "metal": tissue((-1000, 10, 0.4), (40, 20, 0.55), (9000, 3000, 0.05)),
    "fat": tissue((-100, 15, 0.95), (40, 20, 0.05)),
}


@pytest.mark.parametrize("image", REAL.values(), ids=REAL)
def test_hounsfield_units_are_not_questioned(image, caplog):
    CheckUnitsd("image", intensity("ct"))({"image": image})
    assert not caplog.text


def test_mr_expects_no_hounsfield_units(caplog):
    image = CT.clone()
    image[0, 10:14, 10:30] = -100  # fat
    CheckUnitsd("image", intensity("mr"))({"image": image})
    assert "look like Hounsfield units" in caplog.text
    padded = mr()
    padded[:, :2] = -1000
    assert hounsfield_units(mr()) is None and hounsfield_units(padded) is None


def test_big_endian_voxels_are_checked_too():
    assert no_hounsfield_units(np.asarray(CT[0]).astype(">f4")) is None


def test_every_image_that_is_prepared_is_checked(tmp_path):
    folder = save_dataset(tmp_path / "in")
    image = nib.load(folder / "image_c.nii.gz")
    save_volume(folder / "image_c.nii.gz", (np.asarray(image.dataobj) + 1024).clip(0).astype(np.int16), image.affine)

    report = prepare_folder(folder, "image_{case}.nii.gz", "label_{case}.nii.gz", tmp_path / "out")

    warnings = [line for line in report.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1 and "image_c.nii.gz" in warnings[0] and "no Hounsfield units" in warnings[0]


@pytest.mark.parametrize("a_min, a_max", [(0, 0), (275, -125)])
def test_a_window_without_width_is_refused(a_min, a_max):
    with pytest.raises(DatasetError, match="no range. Set a_max above a_min"):
        CheckUnitsd("image", ScaleIntensityRanged("image", a_min, a_max, 0, 1, clip=True))


def test_an_image_of_one_value_is_said(caplog):
    CheckUnitsd("image", intensity("ct"))({"image": MetaTensor(torch.full(SHAPE, -1000.0))})
    assert "all voxels are -1000" in caplog.text


# ---- which of the two scalings an image needs


def by_modality():
    return intensity("by_modality")


def loaded(path, series=None):
    return LoadImaged("image", reader=VolumeReader(series), ensure_channel_first=True)({"image": path})["image"]


def test_the_two_scalings_are_those_of_ct_and_of_mr():
    contents = [json.loads((BUNDLE / "configs" / f"{name}.json").read_text()) for name in ("by_modality", "ct", "mr")]
    both, ct, mr_alone = (content["intensity"] for content in contents)

    assert (both["ct"], both["mr"]) == (ct, mr_alone)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_series_is_scaled_by_the_modality_that_it_states(tmp_path, write_dicom_series, modality):
    folder = write_dicom_series(tmp_path / "series", simple_image(simple_label()), Modality=modality)
    image = {"image": loaded(folder)}
    usual = intensity(modality.lower())
    steps = lambda scaling: Compose(  # noqa: E731
        [CheckUnitsd("image", scaling), LeaveOutPaddingd("image", scaling), InSlabsd(scaling)]
    )

    assert torch.equal(steps(by_modality())(image)["image"], steps(usual)(image)["image"])


def test_hounsfield_units_are_ct(tmp_path):
    path = save_volume(tmp_path / "scan.nii.gz", simple_image(simple_label()))

    assert modality_in(VolumeReader().load(path).voxels, path) == "ct"


@pytest.mark.parametrize("offset", [0, 1024], ids=["of MR", "of CT stored without its offset, or of MR"])
def test_numbers_that_may_be_of_either_are_refused(offset):
    with pytest.raises(DatasetError, match=r"'scan.nii.gz': values from .* do not say.*--modality mr"):
        modality_in(mr(offset=offset), "scan.nii.gz")


INTERCEPTS = {
    "- 1024": lambda image: image - 1024,
    "2 x - 1024": lambda image: 2 * image - 1024,
    "4 x - 2000": lambda image: 4 * image - 2000,
    "from -1000 to 1000": lambda image: image / image.max() * 2000 - 1000,
    "10 (x - mean)": lambda image: (image - image.mean()) * 10,
    "z-scores by the thousand": lambda image: (image - image.mean()) / image.std() * 1000,
}


@pytest.mark.parametrize("change", INTERCEPTS.values(), ids=INTERCEPTS)
def test_mr_that_somebody_has_given_an_intercept_of_ct_is_no_ct(change):
    """It has what may be air, and what may be fat, but hardly anything where all organs are."""
    image = change(mr())

    assert hounsfield_units(image) is None
    with pytest.raises(DatasetError, match="do not say whether it is MR or CT"):
        modality_in(image, "scan.nii.gz")


@pytest.mark.parametrize("name", ["tenfold", "a tenth", "with the sign turned", "-1024"])
def test_ct_in_another_unit_is_not_guessed_to_be_ct(name):
    with pytest.raises(DatasetError, match="do not say whether it is MR or CT"):
        modality_in(UNITS[name][0], "scan.nii.gz")


def test_noisy_ct_is_ct():
    """As of thin slices and sharp kernels: single voxels are far from their tissue, means are not."""
    image = CT.clone()
    image[0, 10:14, 10:30] = -100
    noisy = image + torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * 200 * (image > -500)
    assert modality_in(noisy, "scan.nii.gz") == "ct"


@pytest.mark.parametrize("name", ["whole", "padded with 3071", "small integers"])
def test_real_units_are_ct(name):
    image = torch.cat([REAL[name].float(), torch.full_like(REAL[name][..., :1], -1000.0)], -1)
    image[0, 10:14, 10:30] = -100 + torch.arange(20)[:, None]
    image[..., -1] += torch.arange(image.shape[1])[None, :, None] % 20
    assert modality_in(image, "scan.nii.gz") == "ct"


@pytest.mark.parametrize("value", [0, 7.5])
def test_an_image_of_one_value_is_said_to_be_none(value):
    with pytest.raises(DatasetError, match=f"'scan.nii.gz': all voxels are {value:g}, expected an image"):
        modality_in(torch.full((1, 4, 4, 4), value), "scan.nii.gz")


def test_another_modality_is_refused_by_its_name(tmp_path, write_dicom_series):
    folder = write_dicom_series(tmp_path / "pet", simple_image(simple_label()), Modality="PT")

    with pytest.raises(DatasetError, match="its Modality is PT, expected CT or MR"):
        by_modality().of(loaded(folder))


def test_of_several_series_the_one_that_is_chosen_says_how_it_is_scaled(tmp_path, write_dicom_series):
    values = simple_image(simple_label())
    for at, modality in enumerate(("OT", "CT", "MR")):  # by name the first is neither
        name = f"{at}_{{index}}.dcm"
        write_dicom_series(tmp_path, values, name=name, Modality=modality, SeriesInstanceUID=f"1.2.{at}")
    both = by_modality()

    assert {each: both.of(loaded(tmp_path, each)) for each in ("CT", "MR")} == {
        modality.upper(): transform for modality, transform in both.transforms.items()
    }
    with pytest.raises(DatasetError, match="its Modality is OT, expected CT or MR"):
        both.of(loaded(tmp_path, "OT"))


def test_folders_are_prepared_by_what_their_images_say(tmp_path):
    save_dataset(tmp_path / "data")
    patterns = {"image": "image_{case}.nii.gz", "label": "label_{case}.nii.gz", "modality": "auto"}

    prepare_folder(str(tmp_path / "data"), output=str(tmp_path / "ct"), **patterns)
    save_volume(tmp_path / "data/image_b.nii.gz", np.abs(simple_image(simple_label())))

    assert '"a_min": -125' in (tmp_path / "ct/overlay.json").read_text()
    with pytest.raises(DatasetError, match="image_b.*--modality mr"):
        prepare_folder(str(tmp_path / "data"), output=str(tmp_path / "other"), **patterns)
