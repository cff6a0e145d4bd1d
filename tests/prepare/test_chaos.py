"""Preparing CHAOS: from slices and masks, as they are downloaded, to a trained and evaluated prior."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scripts.errors import DatasetError, user_error
from scripts.prepare.chaos import prepare_chaos

from tests.conftest import save_dicom_series, simple_image, simple_label
from tests.helpers.archives import AXIAL, canonical, train_and_evaluate, zipped
from tests.helpers.workflows import BUNDLE, ORGANS

# simple_label() has the values 1 spleen, 2 right kidney, 3 left kidney, 4 liver
CHAOS_VALUES = np.array([0, 4, 2, 3, 1])
ROTATED = np.block(
    [
        [nib.eulerangles.euler2mat(0.1, 0.05, 0.2) @ np.diag([-2.0, -2.0, 5.0]), np.array([[78], [70], [-30]])],
        [0, 0, 0, 1],
    ]
)
TOP_DOWN = AXIAL @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 7], [0, 0, 0, 1]])  # the first slice is the highest


def save_chaos_case(
    folder: Path, seed: int = 0, affine: np.ndarray = AXIAL, names: str = "IMG-0004-{index:05d}", **tags
) -> None:
    """``T2SPIR`` of one patient: simple_label() as slices along an affine, and as grey values."""
    label = simple_label()
    image = nib.Nifti1Image(simple_image(label, seed) + 1100, np.diag([2.0, 2.0, 5.0, 1.0]))
    label = nib.Nifti1Image(CHAOS_VALUES[label].astype(np.int16) * 63, image.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.io_orientation(affine))
    image, label = (np.asarray(volume.as_reoriented(turn).dataobj) for volume in (image, label))
    save_dicom_series(folder / "T2SPIR/DICOM_anon", image.astype(np.uint16), affine, names + ".dcm", **tags)
    (folder / "T2SPIR/Ground").mkdir(parents=True)
    for index, plane in enumerate(np.moveaxis(label, -1, 0)):
        Image.fromarray(plane.T.astype(np.uint8)).save(folder / f"T2SPIR/Ground/{names.format(index=index)}.png")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory) -> Path:
    """CHAOS_Train_Sets as extracted: three T2-SPIR volumes, beside them T1-DUAL, CT and what macOS adds."""
    folder = tmp_path_factory.mktemp("chaos") / "download"
    for seed, case in enumerate(("3", "10", "15")):
        save_chaos_case(folder / "Train_Sets/MR" / case, seed)
    mr = folder / "Train_Sets/MR/3"
    shutil.copytree(mr / "T2SPIR/DICOM_anon", mr / "T1DUAL/DICOM_anon/InPhase")
    shutil.copytree(mr / "T2SPIR/Ground", mr / "T1DUAL/Ground")
    shutil.copytree(mr / "T2SPIR", folder / "Train_Sets/CT/3")
    (mr / "T2SPIR/Ground/._IMG-0004-00000.png").write_bytes(b"Mac OS X")
    return folder


def assert_as_made(folder: Path, case: str, seed: int, affine: np.ndarray = AXIAL) -> None:
    """Voxels and places of a prepared volume are those of simple_label(), by its affine or a rotated one."""
    label = simple_label()
    image = simple_image(label, seed) + 1100
    for name, expected in (("image", image), ("label", CHAOS_VALUES[label])):
        prepared = canonical(folder / f"{name}_{case}.nii.gz")
        np.testing.assert_array_equal(prepared.get_fdata(), expected)
        made = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(prepared.shape, np.uint8), affine))
        np.testing.assert_allclose(prepared.affine, made.affine, atol=1e-4)


@pytest.mark.parametrize("archive", [False, True])
def test_chaos_slices_and_masks_become_volumes(chaos, tmp_path, archive):
    report = prepare_chaos(zipped(chaos) if archive else chaos, tmp_path)

    for seed, case in enumerate(("3", "10", "15")):
        assert_as_made(tmp_path, case, seed)
    assert "paired by their names" in report and "found in 'Train_Sets/MR/'" in report
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("affine", [ROTATED, TOP_DOWN], ids=["oblique", "from the top down"])
def test_chaos_slices_lie_where_their_headers_say(tmp_path, affine):
    save_chaos_case(tmp_path / "MR/1", 0, affine)

    prepare_chaos(tmp_path / "MR", tmp_path / "out")

    assert_as_made(tmp_path / "out", "1", 0, affine)


def test_masks_belong_to_slices_of_the_same_name_whatever_the_order(tmp_path):
    save_chaos_case(tmp_path / "MR/1")
    for folder, suffix in (("DICOM_anon", "dcm"), ("Ground", "png")):
        for index, other in enumerate((5, 2, 7, 0, 3, 6, 1, 4)):
            path = tmp_path / f"MR/1/T2SPIR/{folder}/IMG-0004-{index:05d}.{suffix}"
            path.rename(path.with_name(f"slice{other}.{suffix}"))

    report = prepare_chaos(tmp_path, tmp_path / "out")

    assert_as_made(tmp_path / "out", "1", 0)
    assert "paired by their names" in report


def rename_masks(folder: Path) -> None:
    for number, mask in enumerate(sorted((folder / "T2SPIR/Ground").iterdir()), 1):
        mask.rename(mask.with_name(f"liver_GT_{number}.png"))


def test_masks_of_other_names_are_paired_from_the_feet_upwards(tmp_path):
    save_chaos_case(tmp_path / "MR/1")
    rename_masks(tmp_path / "MR/1")

    report = prepare_chaos(tmp_path, tmp_path / "out")

    assert_as_made(tmp_path / "out", "1", 0)
    assert "in the order of their names, in the cases 1" in report


def top_down_with_other_names(case: Path) -> None:
    shutil.rmtree(case)
    save_chaos_case(case, 0, TOP_DOWN)
    rename_masks(case)


def masks(case: Path) -> list[Path]:
    return sorted((case / "T2SPIR/Ground").iterdir())


def reverse_masks(case: Path) -> None:
    pictures = [mask.read_bytes() for mask in masks(case)]
    for mask, picture in zip(masks(case), reversed(pictures)):
        mask.write_bytes(picture)


def mirror_masks(case: Path) -> None:
    for mask in masks(case):
        Image.fromarray(np.asarray(Image.open(mask))[:, ::-1]).save(mask)


def save_mask(case: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(masks(case)[3])


@pytest.mark.parametrize(
    "harm, found",
    [
        (lambda case: masks(case)[3].unlink(), "8 slices and 7 masks"),
        (lambda case: save_mask(case, np.full((36, 40), 64)), "00003.png': grey values 64, expected only 0, 63"),
        (lambda case: save_mask(case, np.zeros((40, 36))), "00003.png': 40 rows and 36 columns, expected 36 and 40"),
        (lambda case: masks(case)[3].write_bytes(b"\x89PNG"), "00003.png': cannot be read"),
        (
            lambda case: [masks(case)[3].unlink(), next(case.rglob("*3.dcm")).rename(case / "T2SPIR/DICOM_anon/3")],
            "8 slices, 7 of them in files ending in .dcm|1 slice missing",
        ),
        (top_down_with_other_names, "uncertain which belong together"),
        (reverse_masks, "liver is not above"),
        (mirror_masks, "right kidney is not to the right of left kidney"),
        (
            lambda case: [next(case.rglob(f"*3.{suffix}")).unlink() for suffix in ("dcm", "png")],
            "1 slice missing.*00002.dcm.*00004.dcm",
        ),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_slices_and_masks_that_do_not_fit_are_refused(tmp_path, harm, found, archive):
    for case in "12":
        save_chaos_case(tmp_path / "data/MR" / case)
    harm(tmp_path / "data/MR/1")
    source = zipped(tmp_path / "data") if archive else tmp_path / "data"

    with pytest.raises(DatasetError, match=found) as info:
        prepare_chaos(source, tmp_path / "out")

    assert str(source) in str(user_error(info.value)) and "MR/1/T2SPIR" in str(user_error(info.value))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image_2.nii.gz", "label_2.nii.gz"]


def test_all_problems_are_told_at_once(tmp_path):
    for case in "123":
        save_chaos_case(tmp_path / "MR" / case)
    for case in "13":
        masks(tmp_path / "MR" / case)[0].unlink()

    with pytest.raises(DatasetError, match="(?s)2 volumes of CHAOS.*MR/1/T2SPIR.*MR/3/T2SPIR"):
        prepare_chaos(tmp_path, tmp_path / "out")


def test_a_folder_without_volumes_says_where_they_are(tmp_path):
    (tmp_path / "notes.txt").touch()

    with pytest.raises(DatasetError, match="notes.txt.*zenodo.org/records/3431873"):
        prepare_chaos(tmp_path, tmp_path / "out")


def test_chaos_trains_and_evaluates(chaos, tmp_path, backbone_file):
    prepare_chaos(zipped(chaos), tmp_path / "chaos")
    cases = {"train_cases": ["3", "10"], "test_cases": ["15"], "dataset_dir": str(tmp_path / "chaos")}

    metrics = train_and_evaluate(tmp_path, backbone_file, BUNDLE / "configs/chaos.json", **cases)

    assert (metrics["organs"], metrics["cases"]) == (ORGANS, ["15"])
