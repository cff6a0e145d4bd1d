"""A volume gives the same label map however it is stored, in each of the 48 orientations and each format: left stays
left.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from scripts.data.volumes import load_volume

from tests.helpers.workflows import ROOT, run, train, write_overlay

REAL = ROOT.parent / "shared" / "data"
AXCODES = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
SPACING = (2.0, 2.0, 5.0)
# closer to the straight axes than to any others, but along none of them
TILT = nib.eulerangles.euler2mat(z=0.3, y=0.2, x=-0.25)

REAL_SERIES = REAL / "totalsegmentator" / "example_ct_dicom"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, write_dataset, backbone_file) -> Path:
    """An overlay beside a trained prior; what the label maps are worth does not matter here."""
    folder = tmp_path_factory.mktemp("project")
    path = write_overlay(folder, write_dataset(folder / "dataset"), backbone_file, variants=0, iterations=2)
    train(path)
    return path


@pytest.fixture
def segment(overlay, tmp_path):
    """``segment(folder)``: label maps of all volumes in a folder, by name, from one run without previews."""

    def segment(folder: Path, **overrides) -> dict[str, nib.Nifti1Image]:
        output = tmp_path / "output"
        checkpoint = {"_target_": "CheckpointLoader", "load_path": "@prior_file", "load_dict": "$dict(model=@network)"}
        run("inferring", overlay, input=str(folder), output=str(output), handlers=[checkpoint], **overrides)
        return {path.name.removesuffix("_seg.nii.gz"): nib.load(path) for path in sorted(output.glob("*_seg.nii.gz"))}

    return segment


def reoriented(image: nib.Nifti1Image, axcodes: str) -> nib.Nifti1Image:
    """The volume with its axes in another order and direction; every voxel keeps its place."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
    return image.as_reoriented(turn)


def store_everywhere(image: nib.Nifti1Image, folder: Path, prefix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    for axcodes in AXCODES:
        nib.save(reoriented(image, axcodes), folder / f"{prefix}{axcodes}.nii.gz")


def upright(label_map: nib.Nifti1Image) -> np.ndarray:
    """Voxels with axes to the patient's right, front and top."""
    return np.asarray(nib.as_closest_canonical(label_map).dataobj)


def assert_no_voxel_differs(label_maps: dict[str, nib.Nifti1Image], stored: Path, prefix: str = "") -> np.ndarray:
    """All 48 label maps agree, lie where their images do, and are of a kind that shows a mirrored one."""
    expected = upright(label_maps[f"{prefix}RAS"])
    assert len(np.unique(expected)) > 2
    assert all((expected != np.flip(expected, axis)).any() for axis in range(3))
    differing = {axcodes: int((upright(label_maps[f"{prefix}{axcodes}"]) != expected).sum()) for axcodes in AXCODES}
    assert differing == dict.fromkeys(AXCODES, 0)
    for axcodes in AXCODES:
        image = nib.load(stored / f"{prefix}{axcodes}.nii.gz")
        label_map = label_maps[f"{prefix}{axcodes}"]
        assert nib.aff2axcodes(label_map.affine) == tuple(axcodes)
        assert label_map.shape == image.shape
        np.testing.assert_allclose(label_map.affine, image.affine, atol=1e-4)
    return expected


def test_label_maps_agree_in_all_48_orientations(segment, tiny_dataset, tmp_path):
    image = nib.load(tiny_dataset / "image_a.nii.gz").slicer[..., 1:6]
    store_everywhere(image, tmp_path / "stored")

    assert_no_voxel_differs(segment(tmp_path / "stored"), tmp_path / "stored")


def test_label_maps_agree_in_all_48_orientations_of_an_oblique_volume(segment, tiny_dataset, tmp_path):
    image = nib.load(tiny_dataset / "image_a.nii.gz").slicer[..., 1:4]
    tilted = np.eye(4)
    tilted[:3, :3] = TILT
    store_everywhere(nib.Nifti1Image(image.dataobj, tilted @ image.affine), tmp_path / "stored", "tilted_")
    nib.save(image, tmp_path / "stored" / "straight.nii.gz")

    label_maps = segment(tmp_path / "stored")

    expected = assert_no_voxel_differs(label_maps, tmp_path / "stored", "tilted_")
    np.testing.assert_array_equal(upright(label_maps["straight"]), expected)


@pytest.mark.external
@pytest.mark.skipif(not REAL_SERIES.is_dir(), reason=f"no real DICOM series in '{REAL_SERIES}'")
def test_label_maps_of_a_real_volume_agree_in_all_48_orientations(segment, tmp_path):
    image = nib.load(REAL / "chaos_t2spir" / "image_15.nii.gz").slicer[::4, ::5, 10:14]
    store_everywhere(image, tmp_path / "stored")

    assert_no_voxel_differs(segment(tmp_path / "stored"), tmp_path / "stored")


# ---- formats


@pytest.fixture
def dicom_image(tiny_dataset) -> nib.Nifti1Image:
    """A volume with the axes of axial DICOM slices."""
    return reoriented(nib.load(tiny_dataset / "image_a.nii.gz").slicer[..., 1:6], "LPS")


def save_itk(image: nib.Nifti1Image, path: Path) -> None:
    written = itk.image_from_array(np.ascontiguousarray(np.asarray(image.dataobj).T))
    affine = np.diag([-1, -1, 1, 1]) @ image.affine
    written.SetSpacing(SPACING)
    written.SetOrigin(affine[:3, 3].tolist())
    written.SetDirection(affine[:3, :3] / SPACING)
    itk.imwrite(written, str(path))


def test_label_maps_agree_in_all_formats(segment, dicom_image, write_dicom_series, tmp_path):
    stored = tmp_path / "stored"
    write_dicom_series(stored / "dicom", np.asarray(dicom_image.dataobj), dicom_image.affine)
    nib.save(dicom_image, stored / "nifti.nii.gz")
    save_itk(dicom_image, stored / "nrrd.nrrd")
    save_itk(reoriented(dicom_image, "SRP"), stored / "metaimage.mha")

    label_maps = segment(stored)

    assert list(label_maps) == ["dicom", "metaimage", "nifti", "nrrd"]
    assert len(np.unique(upright(label_maps["nifti"]))) > 2
    for name, axcodes in {"dicom": "LPS", "nifti": "LPS", "nrrd": "LPS", "metaimage": "SRP"}.items():
        np.testing.assert_array_equal(upright(label_maps[name]), upright(label_maps["nifti"]))
        grid = reoriented(dicom_image, axcodes)
        assert label_maps[name].shape == grid.shape
        np.testing.assert_allclose(label_maps[name].affine, grid.affine, atol=1e-4)


def test_a_series_is_chosen_on_the_command_line(segment, dicom_image, write_dicom_series, tmp_path):
    voxels = np.asarray(dicom_image.dataobj)
    for description, part in (("arterial", voxels[..., :2]), ("portal", voxels)):
        write_dicom_series(
            tmp_path / "study", part, dicom_image.affine, f"{description}{{index}}.dcm", SeriesDescription=description
        )

    (label_map,) = segment(tmp_path / "study", series="portal").values()

    assert label_map.shape == voxels.shape


@pytest.mark.external
@pytest.mark.skipif(not REAL_SERIES.is_dir(), reason=f"no real DICOM series in '{REAL_SERIES}'")
def test_label_maps_of_a_real_dicom_series_and_its_conversion_agree(segment, tmp_path):
    series = REAL / "totalsegmentator" / "example_ct_dicom"
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "dicom").symlink_to(series)
    volume = load_volume(series)
    converted = reoriented(nib.Nifti1Image(volume.voxels, volume.affine), "LAS")  # as dcm2niix does
    nib.save(converted, tmp_path / "stored" / "nifti.nii.gz")

    label_maps = segment(tmp_path / "stored")

    assert label_maps["dicom"].shape == (512, 512, 20)
    np.testing.assert_allclose(label_maps["dicom"].affine, volume.affine, atol=1e-4)
    assert len(np.unique(upright(label_maps["dicom"]))) > 2
    np.testing.assert_array_equal(upright(label_maps["dicom"]), upright(label_maps["nifti"]))


def test_training_reads_dicom_series_and_notices_a_changed_slice(overlay, dicom_image, write_dicom_series, tmp_path):
    dataset, voxels = tmp_path / "dataset", np.asarray(dicom_image.dataobj)
    labels = nib.load(overlay.parent / "dataset" / "label_a.nii.gz").slicer[..., 1:6]
    for case in "ab":
        write_dicom_series(dataset / "series" / case, voxels, dicom_image.affine)
        nib.save(reoriented(labels, "LPS"), dataset / f"label_{case}.nii.gz")
    settings = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "image_pattern": "series/{case}"}

    train(overlay, **settings)
    cached = {path.name for path in (tmp_path / "cache").iterdir()}
    slice_file = dataset / "series" / "a" / "0002.dcm"
    slice_file.write_bytes(slice_file.read_bytes()[:-1] + b"\x07")
    train(overlay, resume=False, **settings)

    added = {path.name for path in (tmp_path / "cache").iterdir()} - cached
    assert sorted(name[0] for name in cached) == ["a", "b"]
    assert [name[0] for name in added] == ["a"]
