"""Label maps as DICOM SEG: the same voxels at the same places, read back by highdicom, and organs with their codes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from nibabel.eulerangles import euler2mat
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid
from scripts.data.dicom import load_series
from scripts.errors import DatasetError
from scripts.output.dicom_seg import DicomSegSaver, UnsuitableSeries, make_segmentation, organ_code, uncoded

from tests.helpers.workflows import BUNDLE, ORGANS

SHAPE = (10, 8, 6)  # columns, rows, slices
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = euler2mat(z=0.3, y=-0.2, x=0.4) @ np.diag([1.5, 2.5, 4.0])
OBLIQUE[:3, 3] = 10, -20, 30
CODES = ConfigParser.load_config_file(BUNDLE / "configs" / "inference.json")["organ_codes"]


@pytest.fixture
def labels() -> np.ndarray:
    """Every organ somewhere; no organ in the first and the fourth slice."""
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    labels[..., [0, 3]] = 0
    return labels


@pytest.fixture
def write_series(tmp_path, write_dicom_series):
    """``write_series(affine=None, **tags)``: a series with all that a segmentation needs to know."""

    def write(affine: np.ndarray | None = None, **tags) -> Path:
        needed = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "PatientID": "P7"}
        return write_dicom_series(tmp_path / "series", np.ones(SHAPE, np.int16), affine, **(needed | tags))

    return write


def segment(series: Path, labels: np.ndarray, **options) -> hd.seg.Segmentation:
    """The DICOM SEG of a label map, written and read again by highdicom."""
    options = {"organs": ORGANS, "organ_codes": CODES} | options
    path = series.parent / "seg.dcm"
    make_segmentation(series, labels, load_series(series)[1], **options).save_as(path)
    return hd.seg.segread(path)


def assert_same_voxels(segmentation: hd.seg.Segmentation, labels: np.ndarray, affine: np.ndarray) -> None:
    """Each labelled voxel of either has its label in the other, at the same place in the patient."""
    volume = segmentation.get_volume(combine_segments=True)
    found = np.argwhere(volume.array)
    places = apply_affine(LPS_TO_RAS @ volume.affine, found)
    voxels = apply_affine(np.linalg.inv(affine), places)
    np.testing.assert_allclose(voxels, voxels.round(), atol=1e-3)
    read = np.zeros_like(labels)
    read[tuple(voxels.round().astype(int).T)] = volume.array[tuple(found.T)]
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("affine", [None, OBLIQUE], ids=["axial", "oblique"])
def test_it_equals_the_label_map(write_series, labels, affine):
    series = write_series(affine)
    assert_same_voxels(segment(series, labels), labels, load_series(series)[1])


def test_the_order_of_the_files_does_not_matter(write_series, labels):
    """Neither names nor instance numbers say where a slice lies."""
    series = write_series(OBLIQUE, InstanceNumber=lambda index: (5 * index) % 6 + 1)
    for index, path in enumerate(sorted(series.iterdir())):
        path.rename(series / f"IM{(5 * index + 2) % 7}")

    assert_same_voxels(segment(series, labels), labels, load_series(series)[1])


def test_one_series_among_several_is_segmented(write_series, write_dicom_series, labels):
    series = write_series(OBLIQUE, SeriesDescription="portal")
    write_dicom_series(series, np.ones((4, 4, 2), np.int16), name="other{index}.dcm", SeriesDescription="scout")
    affine = load_series(series, "portal")[1]

    segmentation = make_segmentation(series, labels, affine, organs=ORGANS, organ_codes=CODES, series="portal")

    assert segmentation.SeriesDescription == "DiffuSAM: portal"
    assert_same_voxels(segmentation, labels, affine)


def test_frames_of_one_file_need_not_be_in_order(tmp_path, labels):
    affine = LPS_TO_RAS @ OBLIQUE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stored = [3, 0, 5, 1, 4, 2]  # the slice that each frame holds
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.5", "1.2.4"
    image.Modality, image.NumberOfFrames, image.InstanceNumber = "MR", SHAPE[2], 1
    image.Columns, image.Rows, image.SamplesPerPixel = SHAPE[0], SHAPE[1], 1
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = bytes(2 * np.prod(SHAPE))

    def group(name: str, **elements) -> pydicom.Dataset:
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        setattr(outer, name, [inner])
        return outer

    shared = group("PixelMeasuresSequence", PixelSpacing=spacing[1::-1].tolist(), SliceThickness=spacing[2])
    directions = (affine[:3, :2] / spacing[:2]).T.ravel().round(8).tolist()
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=directions))
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        group("PlanePositionSequence", ImagePositionPatient=(affine @ [0, 0, index, 1])[:3].round(6).tolist())
        for index in stored
    ]
    (tmp_path / "series").mkdir()
    image.save_as(tmp_path / "series" / "frames.dcm", enforce_file_format=True)

    assert_same_voxels(segment(tmp_path / "series", labels), labels, OBLIQUE)


def test_it_belongs_to_the_patient_study_and_series(write_series, labels):
    series = write_series(SeriesDescription="portal venous", SeriesNumber=4)
    sources = [pydicom.dcmread(path) for path in sorted(series.iterdir())]

    segmentation = segment(series, labels)

    assert (segmentation.PatientID, segmentation.StudyInstanceUID) == ("P7", "1.2.3")
    assert (segmentation.FrameOfReferenceUID, segmentation.Modality) == ("1.2.4", "SEG")
    assert segmentation.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert (segmentation.SeriesDescription, segmentation.SeriesNumber) == ("DiffuSAM: portal venous", 401)
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert {each.ReferencedSOPInstanceUID for each in referenced.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in sources
    }


def test_segments_are_the_organs_with_their_codes_and_the_algorithm(write_series, labels):
    segmentation = segment(write_series(), labels)

    described = [segmentation.get_segment_description(number) for number in segmentation.segment_numbers]
    assert [each.segment_label for each in described] == ORGANS
    types = [each.segmented_property_type for each in described]
    assert [(each.value, each.scheme_designator, each.meaning) for each in types] == [
        ("78961009", "SCT", "Spleen"),
        ("9846003", "SCT", "Right kidney"),
        ("18639004", "SCT", "Left kidney"),
        ("10200004", "SCT", "Liver"),
    ]
    assert {each.segmented_property_category.value for each in described} == {"123037004"}
    (algorithm,) = described[0].SegmentationAlgorithmIdentificationSequence
    version = ConfigParser.load_config_file(BUNDLE / "configs" / "metadata.json")["version"]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("DiffuSAM", version)


def test_an_empty_label_map_can_be_written(write_series, labels):
    segmentation = segment(write_series(), labels * 0)
    assert len(segmentation.segment_numbers) == 4
    assert not segmentation.pixel_array.any()


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_that_nothing_can_belong_to_is_named(write_series, labels, keyword):
    series = write_series(**{keyword: None})
    with pytest.raises(UnsuitableSeries, match=f"series': no {keyword} in the series.*Export the original"):
        segment(series, labels)


def test_what_highdicom_refuses_is_put_into_words(write_series, labels):
    series = write_series(StudyInstanceUID=lambda index: f"1.2.{index + 1}")
    with pytest.raises(UnsuitableSeries, match="no DICOM SEG can be made of this series"):
        segment(series, labels)


def test_several_files_of_several_frames_are_refused(write_series, labels):
    series = write_series(NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[pydicom.Dataset()])
    with pytest.raises(UnsuitableSeries, match="a series of 6 files that may hold several frames each"):
        segment(series, labels)


def test_a_label_map_of_another_grid_is_refused(write_series, labels):
    series = write_series()
    with pytest.raises(DatasetError, match="not on the grid of the series, which has 6 slices"):
        make_segmentation(series, labels[..., 1:], load_series(series)[1], organs=ORGANS)
    with pytest.raises(DatasetError, match="not on the grid"):
        make_segmentation(series, labels, load_series(series)[1] + np.eye(4), organs=ORGANS)


# ---- codes


@pytest.mark.parametrize("organ", [organ for organ in CODES if " kidney" not in organ])
def test_codes_are_those_of_dicoms_own_dictionary(organ):
    """Right and left kidney are not in it: they come from SNOMED CT itself, 9846003 and 18639004."""
    name = "".join(word.capitalize() for word in organ.split())
    assert CODES[organ] in concepts["SCT"][name]


def test_an_organ_without_a_code_keeps_its_name(write_series, labels, caplog):
    organs = ["spleen", "portal vein and splenic vein", "left kidney", "liver"]
    segmentation = segment(write_series(), labels, organs=organs)

    assert uncoded(organs, CODES) == ["portal vein and splenic vein"]
    code = segmentation.get_segment_description(2).segmented_property_type
    assert (code.scheme_designator, code.meaning) == ("99DIFFUSAM", "portal vein and splenic vein")


def test_a_code_may_be_of_any_terminology():
    code = organ_code("liver", {"liver": ["7197", "FMA", "Liver"]})
    assert (code.value, code.scheme_designator, code.meaning) == ("7197", "FMA", "Liver")


def test_a_code_may_be_a_number_as_a_shell_makes_it():
    assert organ_code("liver", {"liver": 10200004}) == organ_code("liver", {"liver": "10200004"})


@pytest.mark.parametrize("entry", [1.5, ["10200004", "SCT"], "", ["1", "SCT", None]], ids=str)
def test_an_unusable_code_is_refused_before_anything_starts(tmp_path, entry):
    with pytest.raises(DatasetError, match="organ_codes has .* for liver; expected its code in SNOMED CT"):
        DicomSegSaver(tmp_path, ["liver"], codes={"liver": entry})


# ---- at inference


def finished(image: Path, labels: np.ndarray, affine: np.ndarray) -> SimpleNamespace:
    meta = {"filename_or_obj": str(image), "case": "patient 1"}
    output = {"image": MetaTensor(np.zeros((1, *SHAPE)), affine=affine, meta=meta)}
    output["pred"] = MetaTensor(labels[None], affine=affine)
    return SimpleNamespace(state=SimpleNamespace(output=[output]))


def test_dicom_input_gets_a_dicom_seg_named_after_its_case(write_series, labels, tmp_path, caplog):
    series = write_series(OBLIQUE)
    affine = load_series(series)[1]

    DicomSegSaver(tmp_path / "out", ORGANS)(finished(series, labels, affine))

    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "patient 1_seg.dcm"
    assert_same_voxels(hd.seg.segread(path), labels, affine)
    assert "No standard code for spleen, right kidney, left kidney, liver" in caplog.text


def test_a_series_without_identifiers_is_said_and_no_failure(write_series, labels, tmp_path, caplog):
    """Nor is a DICOM SEG left that belongs to an earlier label map."""
    series = write_series(StudyInstanceUID=None)
    (tmp_path / "patient 1_seg.dcm").touch()

    DicomSegSaver(tmp_path, ORGANS, codes=CODES)(finished(series, labels, load_series(series)[1]))

    assert "patient 1: no DICOM SEG, its label map is written as NIfTI alone." in caplog.text
    assert not (tmp_path / "patient 1_seg.dcm").exists()


@pytest.mark.parametrize("case", ["other input", "switched off"])
def test_nothing_is_written_where_it_is_not_wanted(write_series, labels, tmp_path, case):
    image = tmp_path / "a.nii.gz" if case == "other input" else write_series()

    DicomSegSaver(tmp_path / "out", ORGANS, codes=CODES, enabled=case == "other input")(
        finished(image, labels, np.eye(4))
    )

    assert not (tmp_path / "out").exists()
