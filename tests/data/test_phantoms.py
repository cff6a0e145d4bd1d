"""The abdominal phantoms: determinism, anatomy in world coordinates, intensities and the files."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scripts.data.phantom_anatomy import ORGANS
from scripts.data.phantoms import make_phantom, phantom_dataset, write_phantoms

GRID = {"shape": (64, 64, 16), "spacing": (6.0, 6.0, 12.0)}
SEEDS = range(6)
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER = range(1, 5)


@pytest.fixture(scope="module")
def patients():
    """CT phantoms by seed."""
    return {seed: make_phantom(seed, "ct", **GRID) for seed in SEEDS}


def centroid(label: np.ndarray, value: int, affine: np.ndarray) -> np.ndarray:
    """World coordinates (right, anterior, superior) in millimetres."""
    return nib.affines.apply_affine(affine, np.argwhere(label == value).mean(0))


def core(mask: np.ndarray) -> np.ndarray:
    """The inside of an organ, away from partial volume, in plane; the organ itself where it is thin."""
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3, 1)))
    return eroded if eroded.any() else mask


def test_organ_order_is_that_of_the_output_channels():
    assert ORGANS == ("spleen", "right kidney", "left kidney", "liver")


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_same_seed_gives_identical_arrays(modality):
    first, second = (make_phantom(3, modality, **GRID) for _ in range(2))
    for one, other in zip(first, second):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_types_and_affine(patients):
    image, label, affine = patients[0]
    assert image.shape == label.shape == GRID["shape"]
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), GRID["spacing"])
    np.testing.assert_allclose(nib.affines.apply_affine(affine, [31.5, 31.5, 7.5]), 0, atol=1e-9)


def test_seeds_differ(patients):
    for organ in range(1, 5):
        masks = [label == organ for _, label, _ in patients.values()]
        assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_modalities_share_the_geometry(patients):
    image, label, _ = make_phantom(0, "mr", **GRID)
    np.testing.assert_array_equal(label, patients[0][1])
    assert not np.array_equal(image, patients[0][0])


def test_geometry_does_not_depend_on_the_grid():
    coarse = make_phantom(1, **GRID)[1]
    fine = make_phantom(1, shape=(192, 192, 16), spacing=(2.0, 2.0, 12.0))[1]
    # with three times the voxels, the middle one of each three lies where the coarse voxel lies
    np.testing.assert_array_equal(coarse, fine[1::3, 1::3])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_organ_is_present_inside_and_in_one_piece(patients, seed):
    _, label, affine = patients[seed]
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}
    for organ in range(1, 5):
        mask = label == organ
        assert all(index.min() > 0 and index.max() < size - 1 for index, size in zip(np.nonzero(mask), mask.shape))
        pieces, found = ndimage.label(mask, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.98 * mask.sum(), f"{ORGANS[organ - 1]} in {found} pieces"


@pytest.mark.parametrize("seed", SEEDS)
def test_some_slices_lack_each_organ(patients, seed):
    label = patients[seed][1]
    for organ in range(1, 5):
        assert not (label == organ).any((0, 1)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_lie_on_their_side(patients, seed):
    _, label, affine = patients[seed]
    spleen, right, left, liver = (centroid(label, organ, affine) for organ in range(1, 5))
    # in world coordinates x grows to the patient's right, y forwards and z upwards
    assert right[0] > 0 and liver[0] > 0
    assert left[0] < 0 and spleen[0] < 0
    assert spleen[0] < left[0]  # lateral of the kidney
    assert min(right[1], left[1]) < liver[1]  # kidneys lie behind the liver
    assert liver[2] > right[2] and spleen[2] > left[2]


def test_right_kidney_lies_lower_on_average(patients):
    below = [
        centroid(label, LEFT_KIDNEY, affine)[2] - centroid(label, RIGHT_KIDNEY, affine)[2]
        for _, label, affine in patients.values()
    ]
    assert np.mean(below) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_volumes_are_those_of_adults(patients, seed):
    _, label, affine = patients[seed]
    millilitres = np.bincount(label.ravel(), minlength=5)[1:] * abs(np.linalg.det(affine[:3, :3])) / 1000
    limits = {SPLEEN: (60, 400), RIGHT_KIDNEY: (80, 260), LEFT_KIDNEY: (80, 260), LIVER: (800, 2200)}
    for organ, (low, high) in limits.items():
        assert low < millilitres[organ - 1] < high, ORGANS[organ - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_ct_intensities_are_portal_venous(patients, seed):
    image, label, _ = patients[seed]
    limits = {SPLEEN: (90, 145), RIGHT_KIDNEY: (95, 205), LEFT_KIDNEY: (95, 205), LIVER: (85, 135)}
    for organ, (low, high) in limits.items():
        assert low < np.median(image[core(label == organ)]) < high, ORGANS[organ - 1]
    assert -1060 < np.median(image[0]) < -940  # air beside the patient
    assert image.max() > 300  # bone


@pytest.mark.parametrize("seed", [0, 1])
def test_mr_intensities_are_fat_suppressed_t2(seed):
    image, label, _ = make_phantom(seed, "mr", **GRID)
    spleen, right, left, liver = (np.median(image[core(label == organ)]) for organ in range(1, 5))
    assert liver < spleen < min(right, left)
    assert image.min() >= 0
    assert np.median(image[0]) < 0.25 * liver  # the air holds nothing but Rician noise


def test_files_are_written_and_read_back(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        cases = write_phantoms(tmp_path / "new", 2, modality="mr", first_seed=4, **GRID)
    assert len(caplog.records) == 1
    names = [f"{key}_mr{seed:03d}.nii.gz" for seed in (4, 5) for key in ("image", "label")]
    assert [path for case in cases for path in case.values()] == [str(tmp_path / "new" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)  # no temporary file is left
    arrays = dict(zip(("image", "label", "affine"), make_phantom(4, "mr", **GRID)))
    for key, dtype in (("image", np.int16), ("label", np.uint8)):
        volume = nib.load(cases[0][key])
        assert volume.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asarray(volume.dataobj), arrays[key])
        for matrix, code in (volume.get_qform(coded=True), volume.get_sform(coded=True)):
            assert code == 1
            np.testing.assert_allclose(matrix, arrays["affine"], atol=1e-4)


def test_existing_cases_stay_and_incomplete_ones_are_completed(tmp_path):
    first, second = write_phantoms(tmp_path, 2, **GRID)
    for path in first.values():
        with open(path, "wb") as file:
            file.write(b"kept")
    (tmp_path / "label_ct001.nii.gz").unlink()
    assert write_phantoms(tmp_path, 2, **GRID) == [first, second]
    assert all(Path(path).read_bytes() == b"kept" for path in first.values())
    assert nib.load(second["label"]).shape == GRID["shape"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(volume, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path, 1, **GRID)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"modality": "pet"}, "Unknown modality 'pet'; allowed are 'ct', 'mr'"),
        ({"seed": -1}, "0 or more, but is -1"),
        ({"shape": (64, 64)}, "three positive integers, but is"),
        ({"shape": (64, 64, 0)}, "three positive integers, but is"),
        ({"spacing": (6.0, 6.0, -12.0)}, "three positive numbers"),
        ({"shape": (64, 64, 8)}, "an abdomen needs at least"),
        ({"shape": (10, 10, 10), "spacing": (40.0, 40.0, 40.0)}, "too coarse"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**{"seed": 0, **GRID, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"count": 0}, "1 or more, but is 0"),
        ({"count": 1, "first_seed": -2}, "0 or more, but is -2"),
        ({"count": 1, "modality": "PET"}, "Unknown modality 'PET'"),
        ({"count": 1, "shape": (8, 8, 8)}, "needs at least"),
    ],
)
def test_bad_requests_write_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "absent", **{**GRID, **arguments})
    assert not (tmp_path / "absent").exists()


def test_a_data_set_with_more_phantoms_than_asked_for_is_refused(tmp_path):
    write_phantoms(tmp_path, 1, modality="ct", first_seed=3, **GRID)
    write_phantoms(tmp_path, 2, modality="mr", **GRID)

    assert phantom_dataset(tmp_path, 1, modality="ct", first_seed=3) == str(tmp_path)
    with pytest.raises(ValueError, match="holds 2 mr phantoms, but 1 were asked for.*image_mr001.nii.gz.*--phantoms 2"):
        phantom_dataset(tmp_path, 1, modality="mr")
