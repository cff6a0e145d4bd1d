"""Series of real hospitals, whose headers are not what the standard says: each gets its DICOM SEG."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from scripts.data.dicom import load_series
from scripts.inference.case_records import LOST_SEG, CaseRecords, FailedCases
from scripts.output.dicom_headers import mend_headers
from scripts.output.dicom_seg import DicomSegSaver, UnsuitableSeries, make_segmentation

from tests.helpers.results import write_label_map

SHAPE = (12, 10, 4)
WHOLE = {
    "SOPClassUID": CTImageStorage,
    "Modality": "CT",
    "StudyInstanceUID": "1.2.3",
    "FrameOfReferenceUID": "1.2.4",
    "PatientID": "P1",
    "PatientName": "Doe^Jane",
    "PatientSex": "F",
    "PatientBirthDate": "19500101",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "StudyID": "1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Roe^R",
    "SeriesNumber": 3,
}


@pytest.fixture
def write(tmp_path, write_dicom_series, monkeypatch):
    """``write(**tags)``: a series, in which an element may be anything."""

    def series(**tags) -> Path:
        monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        folder = write_dicom_series(tmp_path / "series", np.ones(SHAPE, np.int16), **(WHOLE | tags))
        monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.RAISE)
        return folder

    return series


def labels() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 3:7, 1:3], label[8:10, 2:5, 2] = 1, 2
    return label


def segment(series: Path) -> hd.seg.Segmentation:
    """A DICOM SEG, written and read again by highdicom."""
    path = series.parent / "seg.dcm"
    make_segmentation(series, labels(), load_series(series)[1], organs=["spleen", "liver"], organ_codes={}).save_as(
        path
    )
    read = hd.seg.segread(path)
    assert int(read.NumberOfFrames) == 3
    return read


JAPANESE, KOREAN = "Yamada^Tarou=山田^太郎=やまだ^たろう", "Hong^Gildong=洪^吉洞=홍^길동"


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        (["", "ISO 2022 IR 87"], JAPANESE),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], JAPANESE),
        (["", "ISO 2022 IR 149"], KOREAN),
        ("", "Doe^Jane"),
        (None, "Doe^Jane"),
        ("ISO_IR 6", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO-IR 100", "Müller^Jörg"),
        ("ISO IR 100", "Doe^Jane"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "Müller^Jörg"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_every_character_set_are_kept(write, stated, name):
    segmentation = segment(write(SpecificCharacterSet=stated, PatientName=name))
    assert str(segmentation.PatientName) == name
    assert segmentation.SpecificCharacterSet == "ISO_IR 192"


def rewritten(series: Path, old: bytes, new: bytes) -> Path:
    """The series with other bytes in the headers, as pydicom would not write them."""
    assert len(old) == len(new)
    for file in series.iterdir():
        content = file.read_bytes()
        assert content.count(old) == 1
        file.write_bytes(content.replace(old, new))
    return series


JAPANESE_BYTES = b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"


def written_in(write, stated: str | None, name: bytes) -> Path:
    """A series with the bytes of a name as that of the patient, as the patient's ID, and in a sequence."""
    keywords = ("PatientName", "PatientID", "StudyDescription")
    own = {keyword: letter * len(name) for keyword, letter in zip(keywords, "NIS")}
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = "O" * len(name), "TEXT"
    series = write(SpecificCharacterSet=stated and "X" * len(stated), OtherPatientIDsSequence=[item], **own)
    for letter in "NISO":
        rewritten(series, letter.encode() * len(name), name)
    return rewritten(series, b"X" * len(stated), stated.encode()) if stated else series


def assert_named(series: Path, name: str) -> None:
    """All texts of a segmentation that a series has are right."""
    segmentation = segment(series)
    assert [str(segmentation[each].value) for each in ("PatientName", "PatientID", "StudyDescription")] == [name] * 3
    headers = {file: pydicom.dcmread(file) for file in series.iterdir()}
    mend_headers(headers)
    assert all(header.OtherPatientIDsSequence[0].PatientID == name for header in headers.values())


@pytest.mark.parametrize(
    ("stated", "meant", "name"),
    [
        *((each, "ISO_IR 192", "山田^太郎") for each in ("ISO_IR_192", "iso_ir 192", "ISO-IR-192", "ISOIR192")),
        *((each, "ISO_IR 192", "山田^太郎") for each in ("UTF-8", "utf8", "ISO 2022 IR 192")),
        ("iso2022 ir 100", "ISO 2022 IR 100", "Müller^Jörg"),
        ("gb2312", "GBK", "王^小东"),
    ],
)
def test_character_sets_that_are_written_otherwise_are_meant(write, stated, meant, name, caplog):
    written = name.encode({"ISO_IR 192": "utf-8", "GBK": "gbk"}.get(meant, "latin-1"))
    assert_named(written_in(write, stated, written), name)
    assert f"SpecificCharacterSet '['{stated}']' is {meant}" in caplog.text


@pytest.mark.parametrize("stated", ["\\iso 2022 ir 87", "ISO_IR 6\\ISO_IR 87", "ISO 2022 IR 87", "ISO_IR 87"])
def test_sets_that_escapes_lead_to_stand_behind_another(write, stated, caplog):
    assert_named(written_in(write, stated, JAPANESE_BYTES), "山田^太郎")
    assert "SpecificCharacterSet '[" in caplog.text


@pytest.mark.parametrize("stated", [None, "ISO_IR 6", "ISO 2022 IR 6", "UNICODE"])
def test_utf_8_is_known_where_no_character_set_is_stated(write, stated, caplog):
    assert_named(written_in(write, stated, "Müller^Jörg".encode()), "Müller^Jörg")
    assert "texts are read as UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"Muller^Jorg", "read as the default one"),
        ("Müller^Jörg".encode(), "texts are read as UTF-8"),
        ("Müller^Jörg".encode("latin-1"), "read as the default one"),
    ],
)
def test_how_texts_of_an_unknown_character_set_are_read_is_said_once(write, written, said):
    files = written_in(write, "ISO_IR 999", written).iterdir()
    notes = mend_headers({file: pydicom.dcmread(file) for file in files})
    assert [each for each in notes if "read as" in each] == [
        f"SpecificCharacterSet 'ISO_IR 999' is not known, and {said}"
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [("Müller^Jörg".encode("latin-1"), "read as ISO_IR 100"), (JAPANESE_BYTES, "PatientID is in a character set that")],
)
def test_letters_of_no_stated_character_set_are_named(write, written, said, caplog):
    segment(written_in(write, None, written))
    assert said in caplog.text


def test_what_leads_from_one_character_set_to_another_stays_in_no_name(write):
    written = b"Wang=\x1b$)A\xcd\xf5"
    series = write(SpecificCharacterSet=["", "ISO 2022 IR 58"], PatientName="N" * len(written))
    assert str(segment(rewritten(series, b"N" * len(written), written)).PatientName) == "Wang=王"


@pytest.mark.parametrize(
    ("keyword", "stated", "mended"),
    [
        ("PatientName", "a\x1b[2Jb", "a/x1b[2Jb"),
        ("ReferringPhysicianName", "\u202eab", "/u202eab"),
        ("OtherPatientIDs", ["a\x07", "b"], ["a/x07", "b"]),
    ],
)
def test_controls_are_in_no_name_and_none_of_several_values(write, keyword, stated, mended):
    series = write(SpecificCharacterSet="ISO_IR 192", **{keyword: stated})
    assert segment(series).get(keyword, mended) == mended  # of other IDs a segmentation copies none
    headers = {file: pydicom.dcmread(file) for file in series.iterdir()}
    mend_headers(headers)
    assert all(header[keyword].value == mended for header in headers.values())


@pytest.mark.parametrize("line", ["a\r\nb", "a\nb", "a\rb", "a\tb\x0cc"])
@pytest.mark.parametrize("keyword", ["InstitutionAddress", "AdditionalPatientHistory", "PatientComments"])
def test_lines_of_a_paragraph_stay_lines(keyword, line):
    header = pydicom.Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    setattr(header, keyword, line)
    assert mend_headers({Path("a.dcm"): header}) == []
    assert header[keyword].value == line
    setattr(header, keyword, line + "\x1b[2J")
    assert len(mend_headers({Path("a.dcm"): header})) == 1
    assert header[keyword].value == line + r"\x1b[2J"


def test_an_element_that_cannot_be_read_is_left_out_and_named(write, caplog):
    series = rewritten(write(PatientComments="QQQQ"), b"LT\x04\x00QQQQ", b"FD\x04\x00QQQQ")
    assert str(segment(series).PatientName) == "Doe^Jane"
    assert "the element (0010,4000) is left out" in caplog.text


def test_slices_that_share_their_uid_have_no_segmentation(write):
    series = write(SOPInstanceUID=lambda index: f"1.2.9.{max(index, 1)}")
    with pytest.raises(UnsuitableSeries, match="slices with the SOPInstanceUID of another"):
        segment(series)


@pytest.mark.parametrize(
    ("keyword", "stated", "mended"),
    [
        ("PatientSex", "f", "F"),
        ("PatientSex", "male", "M"),
        ("PatientSex", "unknown", ""),
        ("PatientBirthDate", "1950", ""),
        ("PatientBirthDate", "00000000", ""),
        ("PatientBirthDate", "19501332", ""),
        ("StudyDate", "2020.01.02", "20200102"),
        ("StudyDate", "2020-01-02", "20200102"),
        ("StudyTime", "10:11:12", "101112"),
        ("StudyTime", "1011", "1011"),
        ("StudyTime", "101112.123456", "101112.123456"),
        ("StudyTime", "25:00:00", ""),
        ("PatientAge", "045Y", "045Y"),
        ("PatientAge", "45y", "045Y"),
        ("PatientAge", "45", ""),
        ("PatientID", "a\nb", "a/nb"),
        ("PatientID", "a\\b", "a/b"),
        ("PatientID", "1" * 64, "1" * 64),
        ("PatientName", "x" * 200, "x" * 64),
        ("PatientName", f"{'x' * 64}={'y' * 65}", f"{'x' * 64}={'y' * 64}"),
        ("PatientName", "a=b=c=d", "a=b=c"),
        ("AccessionNumber", "1\\2", "1/2"),
        ("PatientName", "a^b^c^d^e^f^g=h", "a^b^c^d^e f g=h"),
        ("StudyDescription", "d" * 90, "d" * 64),
        ("PatientComments", "c" * 10300, "c" * 10240),
    ],
)
def test_what_the_standard_forbids_is_mended_or_emptied_and_named(write, keyword, stated, mended, caplog):
    segmentation = segment(write(**{keyword: stated}))
    assert str(segmentation.get(keyword) or "") == mended
    assert (f"{keyword} '" in caplog.text) == (stated != mended)


@pytest.mark.parametrize(
    ("keyword", "stated"),
    [("PatientID", "1" * 65), ("AccessionNumber", "2026-11-27/000123456"), ("StudyID", "STUDY 12345678901234567890")],
)
def test_an_identifier_that_is_too_long_stays_and_is_named(write, keyword, stated, caplog):
    """Without it, or cut off, the SEG would be of another patient or study."""
    assert segment(write(**{keyword: stated})).get(keyword) == stated
    assert f"{keyword} is kept, though it has more than" in caplog.text


@pytest.mark.parametrize(
    "tags",
    [
        {"NumberOfFrames": 1},
        {"SOPClassUID": "1.3.46.670589.5.0.1.1"},
        {"SOPClassUID": "1.2.840.113619.4.30"},
        {"SOPClassUID": "1.2.3.4.5"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.20"},
        {"SeriesNumber": -3},
        {"SeriesDescription": ["abdomen", "portal"]},
        {"SeriesDescription": "a\x1b[2J\nb" * 9},
        {"PatientName": "anonymous patient 1"},
        {"StudyInstanceUID": "ANON123"},
        {"StudyID": None, "AccessionNumber": None, "StudyTime": None, "PatientSex": None},
    ],
    ids=str,
)
def test_other_peculiarities_cost_no_segmentation(write, tags):
    series = write(**tags)
    segmentation = segment(series)

    slices = {
        header.SOPInstanceUID: header.SOPClassUID
        for header in (pydicom.dcmread(file, stop_before_pixels=True) for file in series.iterdir())
    }
    references = [
        item
        for element in segmentation.iterall()
        if element.VR == "SQ"
        for item in element.value
        if item.get("ReferencedSOPInstanceUID") in slices
    ]
    assert references
    assert all(item.ReferencedSOPClassUID == slices[item.ReferencedSOPInstanceUID] for item in references)
    assert segmentation.SeriesDescription.isprintable() and len(segmentation.SeriesDescription) <= 64


@pytest.mark.parametrize(
    ("kind", "keyword", "stated", "mended"),
    [
        ("LO", "PixelSpacing", ["0,75", "0,75"], [0.75, 0.75]),
        ("DS", "PixelSpacing", ["0,75", "0,75"], [0.75, 0.75]),
        ("DS", "SliceThickness", "2,5", [2.5]),
        ("DS", "ImageOrientationPatient", ["1,0", "0", "0", "0", "1,0", "0"], [1, 0, 0, 0, 1, 0]),
        ("DS", "PatientWeight", "75,5", [75.5]),
        ("DS", "PatientWeight", "75.5000000000000001", [75.5]),
        ("DS", "PixelSpacing", ["0.74218750000000000001", "0.7421875"], [0.7421875, 0.7421875]),
    ],
)
def test_decimal_commas_and_too_many_digits_are_mended_in_one_value_and_in_several(
    write, kind, keyword, stated, mended, caplog
):
    placeholder = "X" * len("\\".join(np.atleast_1d(stated)))
    series = write(**{keyword: None})
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.add_new(keyword, "LO", placeholder)
        dataset.save_as(file)
    old, new = placeholder.encode(), "\\".join(np.atleast_1d(stated)).encode()
    size = (len(old) + len(old) % 2).to_bytes(2, "little")
    rewritten(series, b"LO" + size + old, kind.encode() + size + new)
    segmentation = segment(series)
    found = [each for each in segmentation.iterall() if each.keyword == keyword]
    assert found and all(np.allclose(np.atleast_1d(each.value).astype(float), mended) for each in found)
    assert f"{keyword} '" in caplog.text


@pytest.mark.parametrize("thickness", ["", 0, None])
def test_slices_that_do_not_say_how_thick_they_are_have_a_segmentation(write, thickness, caplog):
    measures = segment(write(SliceThickness=thickness)).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 5  # as far as they are apart
    assert "is 5, the slices' distance" in caplog.text


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_what_differs_between_slices_is_named(write, keyword):
    with pytest.raises(UnsuitableSeries, match=f"4 values of {keyword} in place of one"):
        segment(write(**{keyword: lambda index: f"1.2.3.{index}"}))


@pytest.mark.parametrize("uid", ["1.2.03.4", "1.2.abc", "1." + "2" * 80])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])
def test_a_uid_that_is_none_is_kept_and_named(write, keyword, uid, caplog):
    segmentation = segment(write(**{keyword: uid}))
    stated = [each.value for each in segmentation.iterall() if each.keyword == keyword]
    assert uid in stated
    assert f"{keyword} '{uid}' is kept" in caplog.text


@pytest.mark.parametrize(
    ("stated", "written", "said"),
    [
        ("FOO", b"Doe", "SpecificCharacterSet 'FOO' is not known"),
        ("ISO_IR 192", b"D\xf6e", "PatientName has lost characters"),
    ],
)
def test_names_that_cannot_be_decoded_are_named(write, stated, written, said, caplog):
    series = write(SpecificCharacterSet=stated, PatientName="NNN")
    segment(rewritten(series, b"NNN ", written + b" "))
    assert said in caplog.text


def test_what_pydicom_says_without_a_name_reaches_no_log(write, caplog):
    segment(write(StudyInstanceUID="1.2.03.4", AccessionNumber="1" * 40, SpecificCharacterSet="FOO"))
    assert not [each for each in caplog.records if each.name.startswith("pydicom")]


def test_the_series_itself_is_not_changed(write):
    series = write(PatientSex="f", SpecificCharacterSet="ISO_IR 6")
    before = {file: file.read_bytes() for file in series.iterdir()}
    segment(series)
    assert {file: file.read_bytes() for file in series.iterdir()} == before


def test_a_right_header_is_not_mended(write):
    series = write(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    assert mend_headers({file: pydicom.dcmread(file) for file in series.iterdir()}) == []


@pytest.mark.external
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": JAPANESE},
        {"PatientSex": "f", "PatientBirthDate": "1950", "StudyTime": "10:11:12"},
        {"SOPClassUID": "1.3.46.670589.5.0.1.1"},
        {"NumberOfFrames": 1},
    ],
    ids=str,
)
def test_dciodvfy_finds_no_error(write, tags):
    series = write(**(tags | {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}))
    segment(series)
    done = subprocess.run(["dciodvfy", series.parent / "seg.dcm"], capture_output=True)
    said = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    assert [line for line in said if line.startswith("Error")] == []


# ---- a segmentation that cannot be made


def test_a_lost_segmentation_changes_how_the_run_ends_every_time(write, tmp_path):
    series = write(StudyInstanceUID=None)
    output = {"image": MetaTensor(np.zeros((1, *SHAPE)), meta={"filename_or_obj": str(series), "case": "a"})}
    output["pred"] = MetaTensor(labels()[None], affine=load_series(series)[1])
    DicomSegSaver(tmp_path / "out", ["spleen", "liver"])(SimpleNamespace(state=SimpleNamespace(output=[output])))
    (tmp_path / "prior.pt").touch()
    items = [{"image": str(series), "case": "a"}]
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})
    records.begin(items[0])
    write_label_map(tmp_path / "out" / "a_seg.nii.gz")

    records.complete(items[0], seconds=1.0, shape=SHAPE, lost_seg=output[LOST_SEG])

    for again in (records, CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})):
        assert again is records or again.pending(items) == []
        with pytest.raises(FailedCases, match="(?s)1 case with a label map, but without a DICOM SEG.*StudyInstanceUID"):
            again.check()
    without = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={}, dicom_seg=False)
    assert without.pending(items) == []
    without.check()


def test_texts_of_organs_fit_a_segmentation(write):
    series = write()
    made = make_segmentation(
        series, labels(), load_series(series)[1], organs=["a\x1b[2J\n\\b", "x" * 90], organ_codes={}
    )
    made.save_as(series.parent / "seg.dcm")
    found = [item.SegmentLabel for item in hd.seg.segread(series.parent / "seg.dcm").SegmentSequence]
    assert all(label.isprintable() and len(label) <= 64 for label in found)
    assert isinstance(made, Dataset)
