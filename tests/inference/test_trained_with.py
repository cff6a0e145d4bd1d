"""What a prior says of its training, against how it is used: what cannot work is refused, what is unwise is said."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from scripts.data.dataset_check import check_dataset
from scripts.data.volumes import VolumeReader, volume_digest
from scripts.descriptions import describe
from scripts.errors import DatasetError, MissingFileError, SettingError, UnusableFileError
from scripts.inference.trained_with import CheckModalityd, check_prior, check_test_cases
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.identity import about_training

from tests.conftest import save_dicom_series, save_volume, simple_image, simple_label
from tests.helpers.networks import NAMES, make_backbone, make_diffusam

WINDOW = ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True)


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    return make_backbone()


@pytest.fixture
def network(backbone) -> DiffuSAM:
    return make_diffusam(backbone)


@pytest.fixture
def prior_file(tmp_path, network):
    """``prior_file(**training)``: a prior that says so much of its training."""

    def write(**training):
        path = tmp_path / "model.pt"
        torch.save({"model": network.state_dict(), "training": {"intensity": describe(WINDOW), **training}}, path)
        return path

    return write


def test_a_prior_is_good_for_what_it_was_trained_for(prior_file, network, caplog):
    check_prior(prior_file(), network, WINDOW)

    assert not caplog.records


def test_priors_of_earlier_versions_still_load(tmp_path, backbone, network):
    state = network.state_dict()
    state["_extra_state"] = {key: state["_extra_state"][key] for key in ("backbone", "organs", "weights")}
    torch.save({"model": state}, tmp_path / "model.pt")

    check_prior(tmp_path / "model.pt", make_diffusam(backbone, weights=1), ScaleIntensityRanged("image", 0, 1))
    check_test_cases(tmp_path / "model.pt", [])


def test_a_prior_that_is_not_there_is_named(tmp_path, network):
    with pytest.raises(MissingFileError, match="nowhere.pt"):
        check_prior(tmp_path / "nowhere.pt", network, WINDOW)


@pytest.mark.parametrize("content", [b"", b"no tensors\n" * 99, None], ids=["empty", "text", "cut off"])
def test_a_damaged_prior_is_named_in_one_line(prior_file, network, content):
    path = prior_file()
    path.write_bytes(path.read_bytes()[:9999] if content is None else content)

    with pytest.raises(UnusableFileError) as info:
        check_prior(path, network, WINDOW)

    assert str(path) in str(info.value) and "prior_file" in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, [torch.ones(2)], {"model": torch.ones(2)}], ids=str)
def test_a_file_of_something_else_is_no_prior(tmp_path, network, content):
    torch.save(content, tmp_path / "other.pt")

    with pytest.raises(UnusableFileError, match="is no trained prior"):
        check_prior(tmp_path / "other.pt", network, WINDOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(prior_file, backbone, network, value):
    with torch.no_grad():
        network.prior.condition.bias[0] = value

    with pytest.raises(UnusableFileError, match=r"1 of the prior's tensors hold NaN.*prior.condition.bias"):
        check_prior(prior_file(), make_diffusam(backbone), WINDOW)


def test_another_size_is_refused(prior_file):
    other = make_diffusam(FrozenSAM2("sam2_nano", 96))
    other.backbone.load_state_dict(make_backbone().state_dict())

    with pytest.raises(SettingError, match="trained on slices of 64 pixels, the configuration has them in 96"):
        check_prior(prior_file(), other, WINDOW)


def test_another_diffusion_is_refused_and_the_difference_named(prior_file, backbone, network):
    path = prior_file()
    prior = network.prior
    config = {key: value for key, value in prior.scheduler.config.items() if key[0] != "_"}
    for change in ({"prediction_type": "epsilon"}, {"num_train_timesteps": 500}, {"beta_end": 0.02}):
        scheduler = type(prior.scheduler)(**{**config, **change})
        options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
        other = DiffuSAM(backbone, MemoryPrior(32, 128, organs=2, scheduler=scheduler, **options), organs=NAMES)

        with pytest.raises(SettingError, match=f"{next(iter(change))}: .* then, {next(iter(change.values()))} now"):
            check_prior(path, other, WINDOW)


def test_a_network_of_another_shape_is_refused_in_one_line(prior_file, backbone):
    prior = MemoryPrior(32, 128, organs=2, condition_channels=32, block_out_channels=(16, 32), attention_levels=1)

    with pytest.raises(SettingError, match="does not fit the network of this configuration") as info:
        check_prior(prior_file(), DiffuSAM(backbone, prior, organs=NAMES), WINDOW)

    assert "prior_channels" in str(info.value) and "\n" not in str(info.value)


def test_another_window_of_intensities_is_refused(prior_file, network):
    with pytest.raises(SettingError, match=r"another window.*a_max: 275 then, 400 now.*Set `intensity`"):
        check_prior(prior_file(), network, ScaleIntensityRanged("image", -125, 400, 0, 1, clip=True))


def test_another_kind_of_scaling_is_said(prior_file, network, caplog):
    """As in adaptation from CT to MR, where a window cannot be used again."""
    check_prior(prior_file(), network, ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1))

    assert "scaled in another way" in caplog.text


@pytest.mark.parametrize("trained, said", [([999], "visits 499 too"), ([999, 499], ""), (None, "")], ids=str)
def test_diffusion_times_that_were_never_trained_are_said(prior_file, network, caplog, trained, said):
    check_prior(prior_file(settings={"trainer_timesteps": trained}), network, WINDOW)

    assert said in caplog.text and bool(said) == bool(caplog.records)


def test_another_token_of_the_decoder_is_said(prior_file, caplog):
    single = make_diffusam(make_backbone(decoder_token="single"))

    check_prior(prior_file(), single, WINDOW)

    assert "decoder_token 'best_iou', which is 'single' now" in caplog.text


# ---- training cases


@pytest.fixture
def cases(tiny_dataset):
    return [{"image": str(tiny_dataset / f"image_{case}.nii.gz"), "case": case} for case in "abcd"]


@pytest.fixture
def trained_on_a(prior_file, cases):
    return prior_file(cases={"a": {"image": volume_digest(cases[0]["image"])}})


def test_a_prior_is_not_tested_on_its_training_cases(trained_on_a, cases):
    check_test_cases(trained_on_a, cases[1:])

    with pytest.raises(DatasetError, match=r"trained on 1 test case: a\..*--allow_training_cases True"):
        check_test_cases(trained_on_a, cases)


def test_a_training_case_is_known_by_its_content(trained_on_a, cases):
    renamed, other = {**cases[0], "case": "x"}, {**cases[1], "case": "a"}

    check_test_cases(trained_on_a, [other])
    with pytest.raises(DatasetError, match=r"x \(there called a\)"):
        check_test_cases(trained_on_a, [renamed])


def _with_header(source, target):
    image = nib.load(source)
    image.header["descrip"] = b"anonymised"
    nib.save(image, target.with_suffix(".nii.gz"))


def _stored_otherwise(source, target):
    nib.save(nib.load(source).as_reoriented([[1, -1], [2, 1], [0, -1]]), target.with_suffix(".nii.gz"))


def _of_another_type(source, target):
    image = nib.load(source)
    values = np.asarray(image.dataobj)
    scaled = nib.Nifti1Image((values.astype(int) + 2048).astype(np.uint16), image.affine)
    scaled.header.set_slope_inter(1, -2048)
    nib.save(scaled, target.with_suffix(".nii.gz"))


def _as_series(source, target):
    image = nib.load(source)
    save_dicom_series(target, np.asarray(image.dataobj), image.affine)


CONVERSIONS = {
    "not compressed": lambda source, target: nib.save(nib.load(source), target.with_suffix(".nii")),
    "compressed again": lambda source, target: target.with_suffix(".nii.gz").write_bytes(
        gzip.compress(gzip.decompress(source.read_bytes()), 1)
    ),
    "another header": _with_header,
    "NIfTI pair": lambda source, target: nib.save(
        nib.Nifti1Pair(np.asarray(nib.load(source).dataobj), nib.load(source).affine), target.with_suffix(".hdr")
    ),
    "NRRD": lambda source, target: itk.imwrite(itk.imread(source), target.with_suffix(".nrrd"), compression=True),
    "MetaImage": lambda source, target: itk.imwrite(itk.imread(source), target.with_suffix(".mha")),
    "MGZ": lambda source, target: nib.save(
        nib.MGHImage(np.asarray(nib.load(source).dataobj, np.float32), nib.load(source).affine),
        target.with_suffix(".mgz"),
    ),
    "stored along other axes": _stored_otherwise,
    "another type and an intercept": _of_another_type,
    "DICOM": _as_series,
}


@pytest.fixture
def summarised(prior_file, cases):
    """A prior that knows the files and the voxels of case a."""
    digests = {"image": volume_digest(cases[0]["image"]), "voxels": check_dataset(cases[:1], {"liver": 4})[0].digest}
    return prior_file(cases={"a": digests})


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_training_case_is_known_by_its_voxels(summarised, cases, tmp_path, convert):
    folder = tmp_path / "converted"
    folder.mkdir()
    convert(Path(cases[0]["image"]), folder / "x")
    (image,) = [path for path in folder.iterdir() if path.suffix != ".img"]
    items = [{"image": str(image), "case": "x"}]
    assert volume_digest(image) != volume_digest(cases[0]["image"])

    with pytest.raises(DatasetError, match=r"x \(there called a\)"):
        check_test_cases(summarised, items, summaries=check_dataset(items, {"liver": 4}))


def test_another_volume_has_other_voxels(summarised, cases, tmp_path):
    """So have one that is cut, and one that is turned in truth, and not on the disk alone."""
    image = nib.load(cases[0]["image"])
    values = np.asarray(image.dataobj)
    others = {
        "cut": values[..., 1:],
        "mirrored": values[::-1],
        "one voxel": values + (np.arange(values.size) == 7).reshape(values.shape),
    }
    items = [
        cases[1],
        *(
            {"image": str(save_volume(tmp_path / f"{name}.nii", each.astype(np.int16), image.affine)), "case": name}
            for name, each in others.items()
        ),
    ]

    check_test_cases(summarised, items, summaries=check_dataset(items, {"liver": 4}))


def test_who_says_so_tests_on_training_cases(trained_on_a, cases, caplog):
    check_test_cases(trained_on_a, cases, allowed=True)

    assert "how well it fits its training" in caplog.text


# ---- modality


@pytest.mark.parametrize(
    "trained, modality, said",
    [
        (["CT"], "MR", True),
        (["CT"], "CT", False),
        (["CT", "MR"], "MR", False),
        ([], "MR", False),
        (["CT"], None, False),
    ],
)
def test_another_modality_than_the_trainings_is_said(prior_file, tmp_path, caplog, trained, modality, said):
    caplog.set_level(logging.WARNING)
    series = save_dicom_series(tmp_path / "series", simple_image(simple_label()), Modality=modality)
    image = LoadImage(reader=VolumeReader())(series)

    result = CheckModalityd("image", prior_file(modalities=trained))({"image": image})["image"]

    assert ("its Modality is MR, the prior was trained on CT" in result.meta.get("notes", "")) == bool(said)
    assert len(caplog.records) == said


@pytest.fixture
def two_series(tmp_path):
    """A folder with a series of CT and one of MR."""
    for modality in ("CT", "MR"):
        save_dicom_series(tmp_path / "two", simple_image(simple_label()), name=modality + "{index}", Modality=modality)
    return tmp_path / "two"


def test_the_modality_of_the_series_that_is_chosen_counts(prior_file, two_series):
    image = LoadImage(reader=VolumeReader("MR"))(two_series)

    result = CheckModalityd("image", prior_file(modalities=["CT"]))({"image": image})["image"]

    assert "its Modality is MR, the prior was trained on CT" in result.meta.get("notes", "")


@pytest.mark.parametrize("series", ["CT", "MR"])
def test_a_prior_says_the_modality_of_the_series_that_it_was_trained_on(two_series, series):
    summaries = check_dataset([{"case": "a", "image": str(two_series)}], {"spleen": 1}, reader=VolumeReader(series))

    assert about_training({"files": {}}, None, summaries=summaries)["modalities"] == [series]


def test_the_check_of_the_modality_changes_no_record(tmp_path):
    assert describe(CheckModalityd("image", tmp_path / "a.pt")) == describe(CheckModalityd("image", tmp_path / "b.pt"))
