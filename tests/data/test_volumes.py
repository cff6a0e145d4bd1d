"""Reading volumes in every format: the same voxels at the same places, or one error that says what is wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage
from nibabel import imageglobals
from nibabel.affines import apply_affine
from nibabel.eulerangles import euler2mat
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, RLELossless
from scripts.data.file_names import case_name
from scripts.data.intensity import NOTES
from scripts.data.volumes import VolumeReader, VolumeWriter, files_of, load_volume, output_name
from scripts.errors import DatasetError, user_error
from scripts.files import whole_file

ROOT = Path(__file__).resolve().parents[2]
REAL_SERIES = ROOT.parent / "shared" / "data" / "totalsegmentator" / "example_ct_dicom"

SHAPE = (5, 6, 4)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 20
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# along none of the patient's axes, different spacings, and right-handed, as the slices of a DICOM series are ordered
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = euler2mat(z=0.3, y=-0.2, x=0.4) @ np.diag([1.5, 2.5, 4.0])
OBLIQUE[:3, 3] = 10, -20, 30


def refusal(path, **kwargs) -> str:
    """The message with which a volume is refused."""
    with pytest.raises(DatasetError) as caught:
        load_volume(path, **kwargs)
    return str(caught.value)


# ---- the same volume in every format


def write_nifti(path: Path, voxels=VOXELS, affine=OBLIQUE, **fields) -> Path:
    """A NIfTI file whose header fields can be set to anything."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    for name, value in ({"vox_offset": 352} | fields).items():
        image.header[name] = value
    # nibabel would correct what it is told to write
    path.write_bytes(image.header.binaryblock + bytes(4) + np.asarray(voxels).tobytes(order="F"))
    return path


def write_itk(path: Path, voxels=VOXELS, affine=OBLIQUE) -> Path:
    affine = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(affine[:3, :3] / spacing)
    itk.imwrite(image, str(path))
    return path


def write_nrrd(path: Path, voxels=VOXELS, **fields) -> Path:
    """An NRRD file with the header fields given beside those that say how the data are stored."""
    lines = ["NRRD0004", "type: int16", f"dimension: {voxels.ndim}", f"sizes: {' '.join(map(str, voxels.shape))}"]
    lines += ["endian: little", "encoding: raw", *(f"{name.replace('_', ' ')}: {fields[name]}" for name in fields)]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + voxels.tobytes(order="F"))
    return path


def write_metaimage(path: Path, voxels=VOXELS, **fields) -> Path:
    """Likewise a MetaImage file."""
    lines = [f"NDims = {voxels.ndim}", f"DimSize = {' '.join(map(str, voxels.shape))}", "BinaryData = True"]
    lines += ["ElementType = MET_SHORT", *(f"{name} = {value}" for name, value in fields.items())]
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + voxels.tobytes(order="F"))
    return path


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_millimetres_that_are_taken_for_another_unit_are_refused(tmp_path, write_volume, factor):
    """Numbers of millimetres in a file that says micrometres, or of metres in one that says nothing."""
    affine = np.diag([1.5 * factor, 1.5 * factor, 5 * factor, 1])
    path = write_volume(tmp_path / "a.nii.gz", VOXELS, affine)

    with pytest.raises(DatasetError, match="a.nii.gz'.* mm apart, expected 0.01 to 1000 mm.*unit wrong"):
        load_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "A.NII.GZ", "series"])
def test_every_format_gives_the_same_volume(tmp_path, write_volume, write_dicom_series, name):
    path = tmp_path / name
    if name == "series":
        write_dicom_series(path, VOXELS, OBLIQUE)
    elif "nii" in name.lower():
        write_volume(path, VOXELS, OBLIQUE)
    else:
        write_itk(path)

    volume = load_volume(path)

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.spacing == pytest.approx((1.5, 2.5, 4.0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_voxels_keep_the_type_they_are_stored_in(tmp_path, write_volume, suffix, dtype):
    voxels = np.abs(VOXELS).astype(dtype)
    path = tmp_path / f"a{suffix}"
    write_volume(path, voxels) if suffix == ".nii.gz" else write_itk(path, voxels)

    volume = load_volume(path)

    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_one_slice_is_a_volume(tmp_path, write_volume, suffix):
    path = tmp_path / f"a{suffix}"
    write_volume(path, VOXELS[..., :1], OBLIQUE) if suffix == ".nii" else write_itk(path, VOXELS[..., :1])

    volume = load_volume(path)

    assert volume.voxels.shape == (5, 6, 1)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".dcm", ""])
def test_a_file_without_content_is_named(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.touch()
    message = refusal(path)
    assert f"'{path}': " in message and "expected" in message or "again" in message


def test_a_truncated_file_is_named(tmp_path):
    path = write_itk(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes()[:-40])
    assert f"'{path}': cannot be read" in refusal(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_colour_is_named(tmp_path, suffix):
    colour = itk.image_from_array(np.zeros((4, 6, 5, 3), np.uint8), is_vector=True)
    itk.imwrite(colour, str(tmp_path / f"a{suffix}"))
    message = refusal(tmp_path / f"a{suffix}")
    assert "voxels of 3 values" in message and "greyscale" in message


# ---- NIfTI


def test_a_scaled_volume_is_in_real_units(tmp_path):
    path = write_nifti(tmp_path / "a.nii", scl_slope=0.1, scl_inter=-3)

    volume = load_volume(path)

    np.testing.assert_array_equal(volume.voxels, (VOXELS * np.float64(np.float32(0.1)) - 3).astype(np.float32))


def test_big_endian_voxels_are_read(tmp_path):
    image = nib.Nifti1Image(VOXELS.astype(">i2"), OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "a.nii.gz")

    tensor = LoadImage(reader=VolumeReader())(tmp_path / "a.nii.gz")

    np.testing.assert_array_equal(tensor.numpy(), VOXELS)


@pytest.mark.parametrize("unit, size", [(1, 1e-3), (2, 1), (3, 1e3), (0, 1)])
def test_metres_and_micrometres_become_millimetres(tmp_path, unit, size):
    stored = np.diag([size, size, size, 1]) @ OBLIQUE
    volume = load_volume(write_nifti(tmp_path / "a.nii", affine=stored, xyzt_units=unit))
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-5)


def test_the_qform_serves_where_there_is_no_sform(tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform_code=0, qform_code=3, srow_x=(7, 7, 7, 7))

    volume = load_volume(path)

    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.space == 3


def test_reading_takes_little_more_memory_than_the_volume(tmp_path):
    voxels = np.zeros((128, 128, 100), np.int16)
    path = write_nifti(tmp_path / "a.nii", voxels, scl_slope=0.5, scl_inter=1)

    tracemalloc.start()
    load_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1.2 * (voxels.nbytes + 2 * voxels.nbytes)  # as stored, and once as float32; float64 would be 4 more


# ---- where voxels are is not said


UNPLACED = {
    "NIfTI": lambda folder: write_nifti(
        folder / "a.nii", sform_code=0, qform_code=0, pixdim=(1, 1.5, 2.5, 4, 1, 1, 1, 1)
    ),
    "NRRD, spacings alone": lambda folder: write_nrrd(folder / "a.nrrd", spacings="1.5 2.5 4"),
    "NRRD, directions in no space": lambda folder: write_nrrd(
        folder / "a.nrrd", space_dimension=3, space_directions="(1.5,0,0) (0,2.5,0) (0,0,4)"
    ),
    "NRRD, space of the scanner": lambda folder: write_nrrd(
        folder / "a.nrrd", space="scanner-xyz", space_directions="(1.5,0,0) (0,2.5,0) (0,0,4)"
    ),
    "MetaImage": lambda folder: write_metaimage(folder / "a.mha", ElementSpacing="1.5 2.5 4"),
}


@pytest.mark.parametrize("write", UNPLACED.values(), ids=UNPLACED)
def test_axes_that_a_file_does_not_name_are_refused(tmp_path, write):
    path = write(tmp_path)
    message = refusal(path)
    assert f"'{path}': its header does not say where its axes point" in message
    assert "left and right" in message and "--default_axcodes" in message


@pytest.mark.parametrize(("sform", "qform"), [(99, 0), (-1, 0), (0, 99), (-1, 99)])
def test_codes_that_there_are_not_are_told_as_they_are_in_the_file(tmp_path, sform, qform):
    path = write_nifti(tmp_path / "a.nii", sform_code=sform, qform_code=qform)

    assert f"its sform_code is {sform} and its qform_code is {qform}, and only codes from 1 to 5" in refusal(path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sform_code": 99, "qform_code": 1}, "sform_code 99 not valid; setting to 0"),
        ({"pixdim": (1, 0, 0, 0, 1, 1, 1, 1), "qform_code": 0}, "pixdim[1,2,3] should be non-zero"),
        ({"pixdim": (1, -1.5, 2.5, 4, 1, 1, 1, 1), "qform_code": 0}, "pixdim[1,2,3] should be positive"),
    ],
    ids=["a code that there is not", "no spacing", "a negative spacing"],
)
def test_what_is_odd_about_a_header_is_said_once_of_its_file(tmp_path, caplog, capfd, fields, said):
    path = write_nifti(tmp_path / "a.nii", **fields)

    (note,) = load_volume(path).notes

    assert said in note
    assert [(each.name, each.levelname, each.message) for each in caplog.records] == [
        ("scripts.data.nifti", "WARNING", f"'{path}': {note}.")
    ]
    assert said not in capfd.readouterr().err
    assert note in VolumeReader().get_data([path])[1][NOTES]


def test_what_is_odd_about_a_header_is_said_of_one_that_is_refused(tmp_path, caplog):
    path = write_nifti(tmp_path / "a.nii", sform_code=99, qform_code=0)

    refusal(path)

    assert [each.name for each in caplog.records] == ["scripts.data.nifti"] and str(path) in caplog.text
    assert imageglobals.logger.filters == []  # others read as they did


@pytest.mark.parametrize("write", UNPLACED.values(), ids=UNPLACED)
def test_axes_that_a_file_does_not_name_can_be_stated(tmp_path, write):
    volume = load_volume(write(tmp_path), default_axcodes="PIR")

    # the first axis to the back, the second to the bottom, the third to the right
    expected = [[0, 0, 4, 0], [-1.5, 0, 0, 0], [0, -2.5, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_stated_axes_do_not_change_a_file_that_names_its_own(tmp_path):
    volume = load_volume(write_nifti(tmp_path / "a.nii"), default_axcodes="PIR")
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("axcodes", ["RA", "RAR", "XYZ", "RASS"])
def test_stated_axes_must_be_three_different_ones(axcodes):
    with pytest.raises(ValueError, match=f"default_axcodes is '{axcodes}'"):
        VolumeReader(default_axcodes=axcodes)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_nifti(folder / "a.nii", sform_code=0, qform_code=0, pixdim=(1, 0, 0, 0, 1, 1, 1, 1)),
        lambda folder: write_nifti(folder / "a.nii", sform_code=0, qform_code=1, pixdim=(1, 1, 1, 0, 1, 1, 1, 1)),
        lambda folder: write_nrrd(folder / "a.nrrd"),
        lambda folder: write_nrrd(folder / "a.nrrd", spacings="1 1 nan"),
        lambda folder: write_metaimage(folder / "a.mha", TransformMatrix="1 0 0 0 1 0 0 0 1"),
    ],
    ids=["NIfTI", "NIfTI with a qform", "NRRD", "NRRD with a NaN", "MetaImage"],
)
def test_a_missing_spacing_is_refused(tmp_path, write):
    message = refusal(write(tmp_path), default_axcodes="RAS")
    assert "does not say how far voxels are apart" in message and "set its spacing" in message


@pytest.mark.parametrize(
    ("space", "signs"), [("right-anterior-superior", (1, 1)), ("left-anterior-superior", (-1, 1)), ("LPS", (-1, -1))]
)
def test_nrrd_spaces_are_told_apart(tmp_path, space, signs):
    directions = "(1.5,0,0) (0,2.5,0) (0,0,4)"
    path = write_nrrd(tmp_path / "a.nrrd", space=space, space_directions=directions, space_origin="(1,2,3)")
    # an axis along the first coordinate leads to the right in RAS, to the left in LAS and LPS
    expected = np.diag([*signs, 1, 1]) @ [[1.5, 0, 0, 1], [0, 2.5, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(load_volume(path).affine, expected)


# ---- DICOM: what makes a volume


def test_slices_are_ordered_by_their_positions(tmp_path, write_dicom_series):
    for index in range(4):  # names and instance numbers in other orders
        position = (OBLIQUE @ [0, 0, index, 1])[:3] * [-1, -1, 1]
        write_dicom_series(
            tmp_path / "series",
            VOXELS[..., index : index + 1],
            OBLIQUE,
            name=f"{(2 * index + 1) % 5}.dcm",
            SeriesInstanceUID="1.2.3",
            ImagePositionPatient=position.tolist(),
            InstanceNumber=10 - index,
        )

    volume = load_volume(tmp_path / "series")

    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("axcodes", ["LPS", "PSL", "SLP", "RAS", "LAI", "ASR"], ids="series towards {}".format)
def test_axial_sagittal_and_coronal_slices_are_placed(tmp_path, write_dicom_series, axcodes):
    turn = nib.orientations.axcodes2ornt(axcodes)
    straight = nib.Nifti1Image(VOXELS, np.diag([1.5, 2.5, 4.0, 1.0]))
    stored = straight.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(straight.affine), turn))

    volume = load_volume(write_dicom_series(tmp_path / "series", np.asarray(stored.dataobj), stored.affine))

    read = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, volume.affine))
    np.testing.assert_array_equal(np.asarray(read.dataobj), VOXELS)
    np.testing.assert_allclose(read.affine, straight.affine, atol=1e-5)


def test_slices_of_a_tilted_gantry_are_placed(tmp_path, write_dicom_series):
    sheared = np.diag([-1.5, -2.5, 4.0, 1.0])
    sheared[1, 2] = 1.2  # each slice 1.2 mm further to the front
    volume = load_volume(write_dicom_series(tmp_path / "series", VOXELS, sheared))
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-5)


def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path, write_dicom_series):
    series = write_dicom_series(
        tmp_path / "series", VOXELS, RescaleSlope=lambda index: index + 0.5, RescaleIntercept=lambda index: -10 * index
    )
    index = np.arange(4)
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS * (index + 0.5) - 10 * index)


def test_whole_hounsfield_units_stay_small_integers(tmp_path, write_dicom_series):
    stored = (VOXELS + 1024).astype(np.uint16)
    volume = load_volume(write_dicom_series(tmp_path / "series", stored, RescaleSlope=1, RescaleIntercept=-1024))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_values_beyond_16_bits_are_kept(tmp_path, write_dicom_series):
    volume = load_volume(write_dicom_series(tmp_path / "series", VOXELS, RescaleSlope=1000, RescaleIntercept=0))
    np.testing.assert_array_equal(volume.voxels, VOXELS.astype(np.int32) * 1000)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 12), (np.int16, 16)]
)
def test_monochrome1_is_read_like_its_monochrome2_twin(tmp_path, write_dicom_series, dtype, bits):
    signed = np.dtype(dtype).kind == "i"
    stored = (VOXELS if signed else np.abs(VOXELS)).astype(dtype)
    common = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 2, "RescaleIntercept": -1024}
    twin = write_dicom_series(tmp_path / "twin", stored, **common)
    inverted = ((-1 if signed else 2**bits - 1) - stored.astype(int)).astype(dtype)  # the range from end to end
    series = write_dicom_series(tmp_path / "series", inverted, PhotometricInterpretation="MONOCHROME1", **common)

    np.testing.assert_array_equal(load_volume(series).voxels, load_volume(twin).voxels)


def test_files_without_suffix_and_preamble_are_read(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS, OBLIQUE, name="IM{index}")
    assert load_volume(series).voxels.shape == SHAPE
    for file in series.iterdir():  # what follows the preamble and the group of file meta elements
        content = file.read_bytes()
        length = pydicom.dcmread(file).file_meta.FileMetaInformationGroupLength
        file.unlink()
        file.with_suffix(".dcm").write_bytes(content[132 + 12 + length :])

    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)


LARGE = np.tile(VOXELS, (13, 11, 1))  # run lengths shorten nothing in images of a few pixels


def write_compressed(folder: Path, write_dicom_series) -> Path:
    series = write_dicom_series(folder, LARGE)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    return series


def test_compressed_slices_are_read(tmp_path, write_dicom_series):
    series = write_compressed(tmp_path / "series", write_dicom_series)
    np.testing.assert_array_equal(load_volume(series).voxels, LARGE)


def test_a_truncated_compressed_slice_is_named(tmp_path, write_dicom_series):
    series = write_compressed(tmp_path / "series", write_dicom_series)
    path = series / "0002.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    assert "the pixels of '0002.dcm' cannot be decoded (stored as RLE Lossless" in refusal(series)


def test_other_files_in_the_folder_are_no_slices(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS)
    for name in ("DICOMDIR", "notes.txt", "._0000.dcm"):
        (series / name).write_bytes(bytes(128) + b"DICM" if name == "DICOMDIR" else b"text")
    assert load_volume(series).voxels.shape == SHAPE


def test_one_file_is_a_volume_as_thick_as_it_says(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS, OBLIQUE)
    volume = load_volume(series / "0002.dcm")
    np.testing.assert_array_equal(volume.voxels, VOXELS[..., 2:3])
    np.testing.assert_allclose(volume.affine[:, :3], OBLIQUE[:, :3], atol=1e-5)
    np.testing.assert_allclose(volume.affine[:, 3], OBLIQUE @ [0, 0, 2, 1], atol=1e-5)


@pytest.mark.parametrize("between, distance", [(7, 7), (-7, 7), (0, 4), (None, 4)])
def test_the_distance_of_slices_comes_before_their_thickness(tmp_path, write_dicom_series, between, distance):
    """Of one slice, which has no neighbour to say it."""
    series = write_dicom_series(tmp_path / "series", VOXELS[..., :1], OBLIQUE, SpacingBetweenSlices=between)
    assert load_volume(series).spacing == pytest.approx((1.5, 2.5, distance))


def element(**values) -> list[pydicom.Dataset]:
    """A sequence of one item."""
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def write_enhanced(path: Path, order: tuple[int, ...], write_dicom_series, slope=lambda frame: 2.0) -> Path:
    """A multi-frame file with the slices of :data:`VOXELS` in another order."""
    affine = LPS_TO_RAS @ OBLIQUE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    frames = [
        element(
            PlanePositionSequence=element(ImagePositionPatient=(affine @ [0, 0, index, 1])[:3].round(6).tolist()),
            PixelValueTransformationSequence=element(RescaleSlope=slope(index), RescaleIntercept=5.0, RescaleType="US"),
        )[0]
        for index in order
    ]
    shared = element(
        PlaneOrientationSequence=element(ImageOrientationPatient=(affine[:3, :2] / spacing[:2]).T.ravel().tolist()),
        PixelMeasuresSequence=element(PixelSpacing=[2.5, 1.5], SliceThickness=4.0),
    )
    nothing = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"])
    write_dicom_series(
        path.parent,
        VOXELS[..., :1],
        name=path.name,
        SOPClassUID=EnhancedMRImageStorage,
        NumberOfFrames=len(order),
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=shared,
        PixelData=b"".join(VOXELS[..., index].T.tobytes() for index in order),
        **nothing,
    )
    return path


@pytest.mark.parametrize("as_folder", [False, True])
def test_frames_of_one_file_are_slices(tmp_path, write_dicom_series, as_folder):
    path = write_enhanced(tmp_path / "series" / "enhanced.dcm", (2, 0, 3, 1), write_dicom_series)

    volume = load_volume(path.parent if as_folder else path)

    np.testing.assert_array_equal(volume.voxels, 2 * VOXELS + 5)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("slopes", [(1.0, 2.0, 3.0, 4.0), (1.0, 0.5, 0.37, 2.0)])
def test_each_frame_is_rescaled_by_its_own_slope(tmp_path, write_dicom_series, slopes):
    path = write_enhanced(tmp_path / "a.dcm", (2, 0, 3, 1), write_dicom_series, slope=lambda frame: slopes[frame])

    voxels = load_volume(path).voxels

    np.testing.assert_array_equal(voxels, (VOXELS * np.array(slopes) + 5).astype(voxels.dtype))
    assert voxels.dtype == (np.int16 if all(map(float.is_integer, slopes)) else np.float32)


# ---- DICOM: what makes none


def drop(series: Path, *indices: int) -> None:
    for index in indices:
        (series / f"{index:04d}.dcm").unlink()


def test_missing_slices_are_counted_with_their_neighbours(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", np.zeros((5, 6, 9), np.int16), SeriesDescription="portal")
    drop(series, 2, 5, 6)
    message = refusal(series)
    assert f"'{series}', series 'portal' (" in message
    assert "3 slices missing, 5 mm being the distance" in message
    assert "5 mm ('0001.dcm') and 15 mm ('0003.dcm'), 20 mm ('0004.dcm') and 35 mm ('0007.dcm')" in message


def test_repeated_slices_are_named_with_what_tells_them_apart(tmp_path, write_dicom_series):
    for echo in (1, 2):
        series = write_dicom_series(
            tmp_path / "series", VOXELS, name=f"{echo}_{{index}}.dcm", EchoTime=2.3 * echo, SeriesInstanceUID="1.2.3"
        )
    message = refusal(series)
    assert "4 slices at the position of another: 0 mm ('1_0.dcm') and 0 mm ('2_0.dcm')" in message
    assert "several volumes in this series, of EchoTime 2.3, 4.6" in message


def test_uneven_distances_are_named(tmp_path, write_dicom_series):
    heights = [0, 5, 10, 17, 22]
    series = write_dicom_series(
        tmp_path / "series", np.zeros((5, 6, 5), np.int16), ImagePositionPatient=lambda index: [0, 0, heights[index]]
    )
    message = refusal(series)
    assert "slices at uneven distances, 5 to 7 mm" in message
    assert "between 10 mm ('0002.dcm') and 17 mm ('0003.dcm')" in message and "the usual 5 mm" in message


def test_distances_that_differ_by_rounding_are_even(tmp_path, write_dicom_series):
    series = write_dicom_series(
        tmp_path / "series",
        np.zeros((5, 6, 7), np.int16),
        ImagePositionPatient=lambda index: [0, 0, round(0.75 * index, 1)] if index else [0, 0, 0.04],
    )
    message = refusal(series)  # 0.7 and 0.8 mm differ by more than 5 percent
    assert "uneven distances" in message
    series = write_dicom_series(
        tmp_path / "fine",
        np.zeros((5, 6, 7), np.int16),
        ImagePositionPatient=lambda index: [0, 0, round(2 / 3 * index, 2)],
    )
    np.testing.assert_allclose(load_volume(series).affine[2, 2], 2 / 3, atol=1e-3)


def test_a_shifted_slice_is_named(tmp_path, write_dicom_series):
    series = write_dicom_series(
        tmp_path / "series", VOXELS, ImagePositionPatient=lambda index: [3.0 * (index == 1), 0, 5 * index]
    )
    message = refusal(series)
    assert "1 slice shifted against the others: '0001.dcm', by up to 1.5 voxels" in message  # 3 mm of 2 mm pixels


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImageOrientationPatient": lambda index: [1, 0, 0, 0, index % 2, 1 - index % 2]}, "2 different directions"),
        ({"PixelSpacing": lambda index: [2, 2 + (index == 3)]}, "2 different pixel spacings: [2.0, 2.0] in 3 slices"),
        ({"ImagePositionPatient": lambda index: None if index == 3 else [0, 0, index]}, "no ImagePositionPatient in 1"),
        ({"PixelSpacing": None}, "no PixelSpacing in 4 slices"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "expected two perpendicular directions"),
        ({"SamplesPerPixel": 3}, "colour in 4 files: 0000.dcm"),
        ({"PixelData": lambda index: None if index == 2 else VOXELS[..., 0].tobytes()}, "no pixel data in '0002.dcm'"),
        ({"PixelData": VOXELS[..., 0].tobytes()[:-30]}, "incomplete pixel data in '0000.dcm', expected 60 bytes"),
        ({"Rows": lambda index: None if index == 1 else 6, "Modality": "SR"}, "1 file without an image (SR): 0001.dcm"),
        ({"Modality": "RTDOSE"}, "4 files without an image (RTDOSE)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_slices_that_make_no_volume_are_named(tmp_path, write_dicom_series, tags, expected):
    series = write_dicom_series(tmp_path / "series", VOXELS, SeriesDescription="portal", **tags)
    message = refusal(series)
    assert f"'{series}', series 'portal' (" in message and expected in message


def test_slices_of_different_sizes_are_named(tmp_path, write_dicom_series):
    write_dicom_series(tmp_path / "series", VOXELS, SeriesInstanceUID="1.2.3")
    series = write_dicom_series(
        tmp_path / "series",
        VOXELS[:3, :, :1],
        name="scout.dcm",
        SeriesInstanceUID="1.2.3",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    message = refusal(series)
    assert "slices of 2 different sizes: [6, 5] in 4 slices such as '0000.dcm', [6, 3] in 1 slice such as" in message
    assert "there are localizers among them" in message


def test_one_slice_that_is_not_said_to_be_thick_is_refused(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS[..., :1], SliceThickness=None)
    assert "one slice, without SliceThickness" in refusal(series)


def test_a_file_only_named_like_dicom_is_named(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS)
    (series / "9999.dcm").write_bytes(b"<html>please log in</html>" * 20)
    assert f"'{series / '9999.dcm'}': " in refusal(series)


# ---- DICOM: several series in a folder


@pytest.fixture
def study(tmp_path, write_dicom_series) -> Path:
    """A folder with a scout, two series of four slices, and a report."""
    folder = tmp_path / "study"
    series = [
        ("CT", 1, "Topogram", VOXELS[..., :1], {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("CT", 2, "Abdomen arterial", VOXELS, {}),
        ("CT", 3, "Abdomen portal venous", VOXELS + 1, {}),
        ("SR", 99, "Report", VOXELS[..., :1], {"Rows": None, "Columns": None, "PixelData": None}),
    ]
    for modality, number, description, voxels, tags in series:
        write_dicom_series(
            folder,
            voxels,
            name=f"{number}_{{index}}.dcm",
            SOPClassUID=CTImageStorage,
            Modality=modality,
            SeriesNumber=number,
            SeriesInstanceUID=f"1.2.{number}",
            SeriesDescription=description,
            **tags,
        )
    return folder


def test_several_series_are_listed(study):
    message = refusal(study)
    assert f"'{study}': 4 DICOM series in one folder, expected one. Set --series" in message
    assert "- 'Topogram' (1.2.1), number 1, CT, 1 slice (localizer)" in message
    assert "- 'Abdomen portal venous' (1.2.3), number 3, CT, 4 slices" in message
    assert "- 'Report' (1.2.99), number 99, SR, no image" in message


@pytest.mark.parametrize(("number", "modality"), [("88.67", "SR"), ("11.1", "PR"), ("88.59", "KO"), ("66.4", "SEG")])
@pytest.mark.parametrize("name", ["a{index}.dcm", "z{index}.dcm"])  # before the images, and behind them
def test_what_holds_no_image_is_no_second_one(tmp_path, write_dicom_series, caplog, number, modality, name):
    caplog.set_level("INFO")
    write_dicom_series(tmp_path, VOXELS, name="m{index}.dcm", SOPClassUID=CTImageStorage, Modality="CT")
    nothing = {} if modality == "SEG" else dict.fromkeys(("Rows", "Columns", "PixelData"))
    write_dicom_series(
        tmp_path,
        VOXELS[..., :1],
        name=name,
        SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{number}",
        Modality=modality,
        SeriesInstanceUID="1.2.9",
        SeriesDescription="Dose",
        **nothing,
    )
    np.testing.assert_array_equal(load_volume(tmp_path).voxels, VOXELS)
    assert f"beside the images there is 'Dose' (1.2.9), number unknown, {modality}, no image" in caplog.text
    assert load_volume(tmp_path).modality == "CT"


@pytest.mark.parametrize("series", ["1.2.3", "3", "portal", "abdomen PORTAL venous"])
def test_a_series_is_chosen(study, series):
    np.testing.assert_array_equal(load_volume(study, series=series).voxels, VOXELS + 1)


@pytest.mark.parametrize(("series", "matching"), [("abdomen", "2"), ("CT", "3"), ("delayed", "none"), ("SR", "none")])
def test_a_choice_must_be_of_one_series(study, series, matching):
    message = refusal(study, series=series)
    assert f"{matching} of the DICOM series in it match series '{series}', expected one" in message
    assert "Abdomen arterial" in message


def test_a_modality_chooses_a_series(tmp_path, write_dicom_series):
    write_dicom_series(tmp_path, VOXELS, name="mr{index}.dcm", Modality="MR")
    write_dicom_series(tmp_path, VOXELS + 1, name="pt{index}.dcm", Modality="PT")
    np.testing.assert_array_equal(load_volume(tmp_path, series="pt").voxels, VOXELS + 1)


def test_a_wrong_choice_is_not_ignored_where_there_is_one_series(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS, SeriesDescription="arterial")
    assert "none of the DICOM series" in refusal(series, series="portal")


# ---- a real series


@pytest.mark.external
@pytest.mark.skipif(not REAL_SERIES.is_dir(), reason=f"no real DICOM series in '{REAL_SERIES}'")
def test_a_real_series_is_read_like_its_conversion_to_nifti():
    volume = load_volume(REAL_SERIES)

    slices = sorted(map(pydicom.dcmread, REAL_SERIES.iterdir()), key=lambda each: each.ImagePositionPatient[2])
    expected = np.stack([each.pixel_array.T * each.RescaleSlope + each.RescaleIntercept for each in slices], axis=-1)
    np.testing.assert_array_equal(volume.voxels, expected.astype(int))
    grid = nib.load(REAL_SERIES.parent / "example_seg_dicom.nii.gz")  # converted by another program
    read = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, volume.affine))
    assert read.shape == grid.shape
    np.testing.assert_allclose(read.affine, nib.as_closest_canonical(grid).affine, atol=1e-4)


# ---- through MONAI


def test_a_volume_is_loaded_as_a_tensor_with_its_affine(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "1.2.840", VOXELS, OBLIQUE)

    tensor = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(series)

    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (1, *SHAPE))
    np.testing.assert_array_equal(tensor[0].numpy(), VOXELS)
    np.testing.assert_allclose(tensor.affine.numpy(), OBLIQUE, atol=1e-5)
    assert tensor.meta["filename_or_obj"] == str(series)


def test_what_is_refused_is_not_left_to_readers_that_guess(tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform_code=0, qform_code=0)
    with pytest.raises(DatasetError, match="where its axes point") as caught:
        LoadImage(reader=VolumeReader())(path)
    assert user_error(caught.value) is caught.value


def test_the_reader_passes_its_choices_on(study, tmp_path):
    np.testing.assert_array_equal(VolumeReader(series=3).load(study).voxels, VOXELS + 1)
    path = write_nifti(tmp_path / "a.nii", sform_code=0, qform_code=0)
    assert nib.aff2axcodes(VolumeReader(default_axcodes="PIR").load(path).affine) == ("P", "I", "R")


def save(tensor: torch.Tensor, folder: Path) -> nib.Nifti1Image:
    """The file that ``SaveImage`` writes with this module's writer and names."""
    saver = SaveImage(
        folder,
        "seg",
        output_dtype=np.uint8,
        separate_folder=False,
        print_log=False,
        writer=VolumeWriter,
        output_name_formatter=output_name,
    )
    saver(tensor)
    (path,) = (path for path in folder.iterdir() if "_upright" not in path.name)
    return nib.load(path)


def test_label_maps_are_named_by_file_or_folder(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "1.2.840.7", VOXELS, OBLIQUE)
    load = LoadImage(reader=VolumeReader(), ensure_channel_first=True)
    saved = save(load(series), tmp_path / "output")
    assert Path(saved.get_filename()).name == "1.2.840.7_seg.nii.gz"
    assert [case_name(f"/data/{name}") for name in ("p.1.nii.gz", "p.1.MHA", "IM1.dcm", "IM1")] == [
        "p.1",
        "p.1",
        "IM1",
        "IM1",
    ]


@pytest.mark.parametrize("slices", [4, 1])
def test_label_maps_lie_on_the_grid_of_their_image(tmp_path, slices):
    path = write_itk(tmp_path / "a.nrrd", VOXELS[..., :slices])

    saved = save(LoadImage(reader=VolumeReader(), ensure_channel_first=True)(path) * 0 + 3, tmp_path / "output")

    assert saved.shape == (5, 6, slices)
    np.testing.assert_allclose(saved.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(saved.get_qform(), OBLIQUE, atol=1e-3)
    assert saved.header.get_xyzt_units()[0] == "mm"
    assert (saved.get_data_dtype(), np.unique(saved.dataobj).tolist()) == (np.uint8, [3])


def test_label_maps_are_in_the_space_of_their_image(tmp_path):
    path = write_nifti(tmp_path / "a.nii", sform_code=4, qform_code=1)
    saved = save(LoadImage(reader=VolumeReader(), ensure_channel_first=True)(path), tmp_path / "output")
    assert (int(saved.header["sform_code"]), int(saved.header["qform_code"])) == (4, 4)


def test_a_sheared_grid_is_not_written_as_a_qform(tmp_path):
    sheared = np.diag([1.5, 2.5, 4.0, 1.0])
    sheared[1, 2] = 1.2
    saved = save(MetaTensor(torch.ones(1, *SHAPE), affine=sheared, meta={"filename_or_obj": "a"}), tmp_path / "output")
    np.testing.assert_allclose(saved.affine, sheared)
    assert int(saved.header["qform_code"]) == 0


@pytest.mark.parametrize("shear", [(1, 2, 1.2), (0, 2, -3.0), (0, 1, 0.7), (2, 1, 1.5)])
@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1, 1, 1]), euler2mat(z=0.3, y=-0.2, x=0.4)])
def test_beside_a_sheared_grid_lies_one_that_itk_opens(tmp_path, shear, turn, caplog):
    sheared = np.diag([1.5, 2.5, 4.0, 1.0])
    sheared[shear[:2]] = shear[2]
    sheared[:3, :3] = turn @ sheared[:3, :3]
    sheared[:3, 3] = 10, -20, 30
    label = np.zeros((20, 18, 12), np.uint8)
    label[6:12, 5:14, 3:9] = 3
    image = MetaTensor(torch.as_tensor(label)[None], affine=sheared, meta={"filename_or_obj": "a"})
    save(image, tmp_path / "output")

    (path,) = (tmp_path / "output").glob("*_upright.nii.gz")
    upright = load_volume(path)

    assert "which ITK and 3D Slicer do not open" in caplog.text and upright.voxels.dtype == np.uint8
    opened = itk.imread(str(path))
    np.testing.assert_array_equal(itk.array_view_from_image(opened).T, upright.voxels)
    # each labelled place is labelled in both, but for what rounding to voxels moves at edges
    inside = apply_affine(sheared, np.argwhere(label)).mean(0)
    np.testing.assert_allclose(apply_affine(upright.affine, np.argwhere(upright.voxels == 3)).mean(0), inside, atol=0.5)
    volume = np.count_nonzero(upright.voxels) * abs(np.linalg.det(upright.affine[:3, :3]))
    assert volume == pytest.approx(np.count_nonzero(label) * abs(np.linalg.det(sheared[:3, :3])), rel=0.08)
    lps = [opened.TransformIndexToPhysicalPoint(list(map(int, index))) for index in np.argwhere(upright.voxels == 3)]
    np.testing.assert_allclose(np.mean([list(point) for point in lps], 0) * [-1, -1, 1], inside, atol=0.5)


def test_no_other_grid_is_written_twice(tmp_path):
    save(MetaTensor(torch.ones(1, *SHAPE), affine=OBLIQUE, meta={"filename_or_obj": "a"}), tmp_path / "output")
    assert len(list((tmp_path / "output").iterdir())) == 1


# ---- the files of a volume


def test_files_of_a_volume(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS)
    (series / "notes.txt").touch()
    assert [path.name for path in files_of(series)] == ["0000.dcm", "0001.dcm", "0002.dcm", "0003.dcm"]
    assert [path.name for path in files_of(write_itk(tmp_path / "a.mhd"))] == ["a.mhd", "a.raw"]
    assert {path.name for path in files_of(write_itk(tmp_path / "b.nhdr"))} >= {"b.nhdr", "b.raw"}
    assert files_of(tmp_path / "c.nii.gz") == [tmp_path / "c.nii.gz"]


# ---- files that are there only when they are complete


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.name.startswith(".") and temporary.name.endswith("a.nii.gz")
    assert [(each.name, each.read_text()) for each in path.parent.iterdir()] == [("a.nii.gz", "half")]


def test_a_file_stays_as_it_was_if_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise OSError
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.txt", "before")]


def test_a_label_map_is_written_as_a_whole(tmp_path, monkeypatch):
    seen = []
    write = nib.save
    monkeypatch.setattr(nib, "save", lambda image, path: (write(image, path), seen.append(Path(path).name)))

    saved = save(MetaTensor(torch.ones(1, *SHAPE), affine=OBLIQUE, meta={"filename_or_obj": "a"}), tmp_path / "output")

    (name,) = seen
    assert name.startswith(".part-") and name.endswith("-a_seg.nii.gz")
    assert np.asarray(saved.dataobj).all()
