"""Whatever lies in an input is taken, or listed with the reason, in the log, the record and the program's exit code."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import check_output, inference_inputs
from scripts.data.found_files import found_below
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError
from scripts.files import whole_file
from scripts.inference.case_records import CaseRecords, FailedCases

from tests.helpers.results import write_label_map

VOXELS = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def taken(path: Path, **options) -> dict[str, str]:
    """Where the images of the cases that are taken lie, below ``path``."""
    items = inference_inputs(path, **options)
    return {item["case"]: os.path.relpath(item["image"], path) for item in items if "problem" not in item}


def refused(path: Path, **options) -> dict[str, str]:
    return {item["case"]: item["problem"] for item in inference_inputs(path, **options) if "problem" in item}


def test_every_folder_is_looked_into_and_named(tmp_path):
    touch(tmp_path, "a.nii.gz", "p1/1.dcm", "p2/CT/1.dcm", "p3/study/series/1.dcm", "p3/study/mr.nrrd", "p4/p5/x.mha")
    assert taken(tmp_path) == {
        "a": "a.nii.gz",
        "p1": "p1",
        "p2_CT": "p2/CT",
        "p3_study_series": "p3/study/series",
        "p3_study_mr": "p3/study/mr.nrrd",
        "p4_p5_x": "p4/p5/x.mha",
    }


def test_folders_within_the_folder_of_a_series_are_looked_into(tmp_path):
    touch(tmp_path, "series/1.dcm", "series/second/1.dcm")
    assert taken(tmp_path / "series") == {"series": ".", "second": "second"}


def test_what_a_pattern_names_with_its_folder_is_one_image(tmp_path):
    touch(tmp_path, "p1/a.nii.gz", "p2/1.dcm", "p2/2.dcm", "b.nii.gz")
    assert sorted(taken(tmp_path / "**/*")) == ["b", "p1_a", "p2"]


def test_folders_that_a_pattern_names_are_looked_into(tmp_path):
    touch(tmp_path, "p1/CT/1.dcm", "p2/1.dcm", "p3.nii.gz", "p4/x.nii.gz", "notes.txt")
    assert list(taken(tmp_path / "p*")) == ["p1_CT", "p2", "p3", "p4_x"]


OTHERS = {
    "brain.mnc": "format that is not read (.mnc)",
    "alone.img": "whose header 'alone.hdr' is not there",
    "scan.nii.bz2": "format that is not read (.nii.bz2)",
    "export.zip": "an archive (.zip)",
    "export.tar.gz": "an archive (.tar.gz)",
    "slices.dcm.gz": "format that is not read (.dcm.gz)",
    "dangling.nii.gz": "a link to",
    "pipe.nii.gz": "no regular file",
    "brain+orig.HEAD": "format that is not read (.head)",
    "brain+orig.BRIK": "format that is not read (.brik)",
    "pet.v": "format that is not read (.v)",
    "pet.h33": "format that is not read (.h33)",
    "brain.minc": "format that is not read (.minc)",
    "brain.mnc2": "format that is not read (.mnc2)",
    "rat.fdf": "format that is not read (.fdf)",
    "alone.raw": "voxels without a header (.raw), expected one such as 'alone.mhd'",
    "alone.zraw": "voxels without a header (.zraw)",
    "cut.dicom": "named like a DICOM file (.dicom), but without DICOM in it",
    "cut.IMA": "named like a DICOM file (.ima)",
    "cut.dcm.part": "called like an image, 'cut.dcm', but for its ending",
    "old.mha.bak": "called like an image, 'old.mha', but for its ending",
    "safe.nii.gz.gpg": "called like an image, 'safe.nii', but for its ending",
    "small.nrrd.br": "called like an image, 'small.nrrd', but for its ending",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """One image, and beside it all kinds of others."""
    folder = touch(tmp_path / "in", "a.nii.gz", "notes.txt", "a.json", ".hidden.nii.gz", "sub/deep.mnc")
    touch(folder, *(name for name in OTHERS if name not in ("dangling.nii.gz", "pipe.nii.gz")))
    (folder / "dangling.nii.gz").symlink_to("/nowhere/x.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    return folder


def test_what_cannot_be_taken_is_listed_with_the_reason(folder, caplog):
    with caplog.at_level("INFO"):
        problems = refused(folder)

    assert problems.keys() == {*OTHERS, "sub_deep.mnc"}
    assert all(reason in problems[name] and f"'{folder / name}'" in problems[name] for name, reason in OTHERS.items())
    assert taken(folder) == {"a": "a.nii.gz"}
    assert "notes.txt" in caplog.text and "a.json" in caplog.text and "brain.mnc" in caplog.text
    assert "hidden" not in caplog.text


def test_volumes_in_pieces_are_listed_by_their_folders(tmp_path):
    touch(
        tmp_path,
        "a.nii.gz",
        "rat/pdata/1/2dseq",
        "ct.ome.zarr/0/0.0.0",
        "ct.ome.zarr/.zattrs",
        "deep/mr.N5/s0/0",
        "deep/mr.N5/s0/attributes.json",
        "named.zarr/b.nii.gz",
    )
    problems = refused(tmp_path)
    assert problems.keys() == {"rat_pdata_1_2dseq", "ct.ome.zarr", "deep_mr.N5"}
    assert "format that is not read (2dseq)" in problems["rat_pdata_1_2dseq"]
    assert "a folder with a volume in a format that is not read (.zarr)" in problems["ct.ome.zarr"]
    assert taken(tmp_path) == {"a": "a.nii.gz", "named.zarr_b": "named.zarr/b.nii.gz"}  # a folder like any other


def test_an_image_that_is_called_by_a_space_takes_no_others_along(tmp_path):
    touch(tmp_path, "a.nii.gz", " .nii")
    assert taken(tmp_path) == {"a": "a.nii.gz", " .nii": " .nii"}


def test_what_cannot_be_taken_is_recorded_and_ends_the_run_with_an_error(folder, tmp_path):
    (folder / "a.nii.gz").write_bytes(b"voxels")
    (tmp_path / "prior.pt").touch()
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})

    assert [item["case"] for item in records.pending(inference_inputs(folder))] == ["a"]

    with pytest.raises(FailedCases, match="brain.mnc"):
        records.check()
    recorded = json.loads(records.path.read_text())["cases"]
    assert {case: record["status"] for case, record in recorded.items()} == dict.fromkeys(refused(folder), "failed")


def test_a_folder_of_nothing_but_others_is_no_empty_folder(tmp_path):
    assert refused(touch(tmp_path, "a.mnc")).keys() == {"a.mnc"}


def test_files_that_belong_to_a_header_are_no_images_of_their_own(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(2))
    (tmp_path / "b.img").write_bytes(bytes(2))
    for name, data in (("a.mhd", "a.raw"), ("b.mhd", "b.img")):
        (tmp_path / name).write_text(f"NDims = 3\nDimSize = 1 1 1\nElementType = MET_SHORT\nElementDataFile = {data}\n")
    assert taken(tmp_path) == {"a": "a.mhd", "b": "b.mhd"} and not refused(tmp_path)


def test_a_link_that_leads_round_is_followed_once(tmp_path):
    touch(tmp_path, "in/a.nii.gz")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert taken(tmp_path / "in") == {"a": "a.nii.gz"}


def test_each_folder_is_listed_once_and_each_match_of_a_pattern_looked_at_a_few_times(tmp_path, monkeypatch):
    """Ten thousand scans would take hours otherwise."""
    touch(tmp_path, *(f"p{number}/scan.nii.gz" for number in range(60)))
    listings, looks = [], []
    iterdir, is_dir = Path.iterdir, Path.is_dir
    monkeypatch.setattr(Path, "iterdir", lambda path: listings.append(str(path)) or iterdir(path))
    monkeypatch.setattr(Path, "is_dir", lambda path: looks.append(path) or is_dir(path))

    assert len(inference_inputs(tmp_path)) == len(inference_inputs(str(tmp_path / "p*"))) == 60

    folders = [str(tmp_path), *(str(tmp_path / f"p{number}") for number in range(60))]
    assert sorted(listings) == sorted(folders + folders[1:])  # the pattern does not list the folder that it lies in
    assert len(looks) < 20 * 60


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_a_folder_is_no_index_of_a_medium(tmp_path, name):
    touch(tmp_path, f"{name}/p1/1.dcm", "a.nii.gz")
    assert taken(tmp_path) == {"a": "a.nii.gz", f"{name}_p1": f"{name}/p1"}


def test_voxels_in_a_folder_below_their_header_are_no_image_of_their_own(tmp_path):
    header = "NDims = 3\nDimSize = 1 1 1\nElementType = MET_SHORT\nElementDataFile = data/a.raw\n"
    touch(tmp_path, "data/a.raw")
    (tmp_path / "a.mhd").write_text(header)
    assert taken(tmp_path) == {"a": "a.mhd"} and not refused(tmp_path)


def test_a_second_name_of_a_folder_is_listed(tmp_path):
    touch(tmp_path, "p1/CT/1.dcm", "p2/x.nii.gz", "notes/about.txt")
    (tmp_path / "p2" / "CT").symlink_to(tmp_path / "p1" / "CT")
    (tmp_path / "p2" / "notes").symlink_to(tmp_path / "notes")
    (tmp_path / "p2" / "up").symlink_to(tmp_path)

    assert list(taken(tmp_path)) == ["p1_CT", "p2_x"]
    (reason,) = refused(tmp_path).values()
    assert f"'{tmp_path}/p2/CT': a link to what was found as '{tmp_path}/p1/CT', which is taken once" in reason


@pytest.mark.parametrize("name", ["report.dcm", "empty.dcm"])
@pytest.mark.parametrize("folder", ["", "p1"])
def test_what_is_called_like_a_slice_beside_images_ends_no_run(tmp_path, name, folder):
    touch(tmp_path / folder, "a.nii.gz", "b.nii.gz")
    (tmp_path / folder / name).write_text("Befund" * 100 if name == "report.dcm" else "")
    prefix = f"{folder}_" if folder else ""
    assert list(taken(tmp_path)) == [f"{prefix}a", f"{prefix}b"]
    assert "named like a DICOM file (.dcm), but without DICOM in it" in refused(tmp_path)[prefix + name]


DROPPINGS = ["._a.nii.gz", ".DS_Store", "Thumbs.db", "desktop.ini"]
COPIES = ["a.nii.gz" + added for added in (".bak", "~", ".orig", ".tmp", ".part", ".crdownload", ".BAK", ".bak~")]


@pytest.mark.parametrize("pattern", ["", "*"])
def test_droppings_and_copies_of_what_is_taken_are_no_failure(tmp_path, caplog, pattern):
    touch(tmp_path, "a.nii.gz")
    for name in (*DROPPINGS, *COPIES):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
    with caplog.at_level("INFO"):
        items = inference_inputs(str(tmp_path / pattern))
    assert [item["case"] for item in items] == ["a"]
    assert "Copies of files beside them, and not taken" in caplog.text and "a.nii.gz.bak" in caplog.text


def test_a_copy_of_what_is_not_there_is_a_failure(tmp_path):
    """Nobody else would say that a scan is missing."""
    touch(tmp_path, "b.nii.gz", *COPIES)
    assert refused(tmp_path).keys() == set(COPIES)


# ---- results among the images


@pytest.mark.parametrize("options", [{}, {"leave_out": "out"}])
def test_images_among_results_are_listed_and_results_are_not(tmp_path, options):
    touch(tmp_path, "a.nii.gz", "out/scan.nii.gz", "out/deep/1.dcm", "out/scan.zip", "out/notes.txt")
    touch(tmp_path, *(f"out/a_{kind}.nii.gz" for kind in ("seg", "seg_upright", "prob", "uncertainty")))
    touch(tmp_path, "out/a_seg.dcm", "out/previews/a.png", "out/report.html")
    (tmp_path / "out" / "results.json").write_text('{"configurations": {}, "cases": {}}')
    options = {name: tmp_path / folder for name, folder in options.items()}

    assert taken(tmp_path, **options) == {"a": "a.nii.gz"}
    problems = refused(tmp_path, **options)
    assert problems.keys() == {"out_scan.nii.gz", "out_deep", "out_scan.zip"}
    assert f"results, '{tmp_path}/out', of which no image is taken" in problems["out_scan.nii.gz"]
    check_output(tmp_path, inference_inputs(tmp_path, **options), tmp_path / "out")


def test_results_below_the_images_are_not_segmented_again(tmp_path):
    touch(tmp_path, "a.nii.gz", "out/a_seg.nii.gz", "out/a_seg.dcm")
    assert taken(tmp_path, leave_out=tmp_path / "out") == {"a": "a.nii.gz"}
    check_output(tmp_path, inference_inputs(tmp_path, tmp_path / "out"), tmp_path / "out")


def test_results_of_earlier_inferences_are_recognised(tmp_path):
    touch(tmp_path, "a.nii.gz", "out/a_seg.nii.gz")
    (tmp_path / "out" / "results.json").write_text('{"configurations": {}, "cases": {}}')
    assert taken(tmp_path) == {"a": "a.nii.gz"} and not refused(tmp_path)


@pytest.mark.parametrize("pattern", ["out", "out/*", "o*"])
def test_results_that_are_given_as_input_are_no_scans(tmp_path, write_dicom_series, caplog, pattern):
    out = touch(
        tmp_path / "out", *(f"a{end}" for end in ("_seg.nii.gz", "_prob.nii.gz", "_uncertainty_upright.nii.gz"))
    )
    write_dicom_series(out, VOXELS[..., :1], name="a_seg.dcm")
    touch(out, "previews/a.png")
    (out / "results.json").write_text('{"configurations": {}, "cases": {"a": {}, "d_seg": {}}}')

    with pytest.raises(FileNotFoundError) as info:
        inference_inputs(str(tmp_path / pattern))
    assert pattern != "out" or f"'{out}' holds the results of an inference, of which no image is taken" in str(
        info.value
    )

    touch(out, "b.nii.gz", "b_seg.nii.gz")  # of nothing that was recorded
    with caplog.at_level("INFO"):
        items = inference_inputs(str(tmp_path / pattern))
    assert [item["image"] for item in items] == [f"{out}/b.nii.gz", f"{out}/b_seg.nii.gz"]
    assert f"Results of an inference, of which no image is taken: '{out}'" in caplog.text


def test_results_may_not_go_where_images_are_looked_for(tmp_path):
    touch(tmp_path, "p1/a.nii.gz")
    with pytest.raises(DatasetError, match="the one that the images are read from"):
        check_output(tmp_path, inference_inputs(tmp_path), tmp_path)


# ---- two images of one name


class Runs:
    """Inferences without a network, into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "prior.pt").touch()
        for name in ("one", "two"):
            (folder / name).mkdir()
            (folder / name / "a.nii.gz").write_bytes(name.encode())

    def __call__(self, name: str, **options) -> list[str]:
        records = CaseRecords(self.folder / "out", self.folder / "prior.pt", settings={}, **options)
        items = records.pending(inference_inputs(self.folder / name))
        for item in items:
            records.begin(item)
            label_map = self.folder / "out" / f"{item['case']}_seg.nii.gz"
            write_label_map(label_map, Path(item["image"]).read_text())
            records.complete(item, seconds=1.0, shape=(1, 1, 1))
        return [item["case"] for item in items]


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_results_of_two_patients_of_one_name_are_told_apart(tmp_path, options):
    run = Runs(tmp_path)

    assert (run("one"), run("two", **options)) == (["a"], ["two_a"])

    maps = (tmp_path / "out").glob("*_seg.nii.gz")
    results = {path.name: nib.load(path).header["descrip"].item() for path in maps}
    assert results == {"a_seg.nii.gz": b"one", "two_a_seg.nii.gz": b"two"}
    assert (run("one"), run("two")) == ([], [])


def test_an_image_that_was_moved_keeps_its_name(tmp_path):
    run = Runs(tmp_path)
    run("one")
    (tmp_path / "one").rename(tmp_path / "three")
    assert run("three") == []


def test_results_of_an_image_that_was_cleared_away_stay(tmp_path):
    """As where scans that are done leave the folder in which others come in."""
    run = Runs(tmp_path)
    run("one")
    (tmp_path / "one").rename(tmp_path.parent / f"{tmp_path.name}_elsewhere")
    assert run("two") == ["two_a"]
    maps = {path.name: nib.load(path).header["descrip"].item() for path in (tmp_path / "out").glob("*_seg.nii.gz")}
    assert maps == {"a_seg.nii.gz": b"one", "two_a_seg.nii.gz": b"two"}


def test_the_name_of_a_case_that_failed_is_free_when_its_image_is_gone(tmp_path):
    run = Runs(tmp_path)
    (tmp_path / "one/a.nii.gz").write_bytes(b"")
    assert run("one") == []
    (tmp_path / "one/a.nii.gz").unlink()
    assert run("two") == ["a"]


def test_folders_of_one_name_are_told_apart_too(tmp_path):
    run = Runs(tmp_path)
    run("one")
    run("two")
    (tmp_path / "deeper" / "two").mkdir(parents=True)
    (tmp_path / "deeper" / "two" / "a.nii.gz").write_text("third")

    (case,) = run("deeper/two")

    assert case.startswith("a_") and len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3


# ---- what ended the program comes last


def test_a_case_that_ended_the_program_is_begun_before_it_is_read_and_comes_last(tmp_path, caplog):
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    (tmp_path / "prior.pt").touch()
    items = inference_inputs(str(tmp_path / "*.nii.gz"))
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})
    records.begin(items[0])

    pending = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={}).pending(items)

    assert [item["case"] for item in pending] == ["b", "c", "a"]
    assert "A run ended while it was at a" in caplog.text


# ---- slices of a series


@pytest.fixture
def series(tmp_path, write_dicom_series) -> Path:
    return write_dicom_series(tmp_path / "series", VOXELS)


def test_a_slice_that_is_a_link_to_nowhere_is_missed(series):
    last = series / "0002.dcm"
    last.unlink()
    last.symlink_to("/nowhere/2.dcm")
    with pytest.raises(DatasetError, match="1 link to files that are not there: 0002.dcm"):
        load_volume(series)
    assert list(taken(series.parent)) == ["series"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(os.devnull)], ids=["a pipe", "a link to a device"]
)
def test_a_slice_that_is_no_file_is_missed(series, make):
    make(series / "0099.dcm")

    with pytest.raises(DatasetError, match="0099.dcm is no file, but a pipe, a socket or a device"):
        load_volume(series)


def test_a_slice_without_preamble_and_suffix_is_one(series):
    for name in ("0000.dcm", "0002.dcm"):
        content = (series / name).read_bytes()
        length = int.from_bytes(content[140:144], "little")  # of the group of file meta elements
        (series / name).unlink()
        (series / name.removesuffix(".dcm")).write_bytes(content[132 + 12 + length :])
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)
    assert not refused(series)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x00", b"\x08\x00" * 500, b"\x02\x00\xff" * 99, gzip.compress(b"x")],
    ids=["nothing", "a tag's half", "tags", "others", "gzip"],  # gzip keeps the time, and processes must agree on names
)
def test_other_bytes_are_no_slice(series, content):
    (series / "readme").write_bytes(content)
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)


@pytest.mark.parametrize("name", ["0002.dcm.gz", "0002.DCM.part", "0002.dcm~", "0003.dcm.zip"])
def test_a_last_slice_that_was_compressed_or_copied_half_is_missed(series, name):
    content = (series / "0002.dcm").read_bytes()
    (series / "0002.dcm").unlink()
    (series / name).write_bytes(gzip.compress(content) if name.endswith(("gz", "zip")) else content[:100])
    with pytest.raises(DatasetError, match="1 file named like the slices beside, but without DICOM in them"):
        load_volume(series)
    assert "series" in taken(series.parent)


@pytest.mark.parametrize("name", ["0001.dcm.bak", "0001.dcm~"])
@pytest.mark.parametrize("content", ["the same", "others"])
def test_a_copy_of_a_slice_that_is_there_is_none(series, name, content):
    (series / name).write_bytes((series / "0001.dcm").read_bytes() if content == "the same" else b"x" * 200)
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)


@pytest.mark.parametrize("name", ["0000.dcm.old", "0000.dcm.bak"])
def test_a_slice_that_is_called_like_a_copy_of_another_is_one(series, name, caplog):
    (series / "0001.dcm").rename(series / name)

    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)
    assert "series" in taken(series.parent)


@pytest.mark.parametrize("name", ["IM0003", "IM3"])
@pytest.mark.parametrize("content", [b"", b"x" * 200])
def test_a_slice_without_suffix_that_is_empty_or_something_else_is_missed(tmp_path, write_dicom_series, name, content):
    series = write_dicom_series(tmp_path / "series", VOXELS, name="IM{index:04d}")
    (series / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"without DICOM in them: {name}. Expected every slice"):
        load_volume(series)


@pytest.mark.parametrize("names", ["{index:d}D4C3B2A", "{index:d}D4C3B2A.IMA", "{index:d}D4C3B2A.dcm"])
@pytest.mark.parametrize("content", [b"", bytes(100), gzip.compress(b"x")], ids=["empty", "cut off", "compressed"])
def test_a_slice_of_a_hashed_name_that_is_empty_or_something_else_is_missed(
    tmp_path, write_dicom_series, names, content
):
    series = write_dicom_series(tmp_path / "series", VOXELS, name=names)
    last = "FEDCBA" + Path(names).suffix + (".part" if names.endswith(".dcm") else "")
    for name in ("DICOMDIR", last):
        (series / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"without DICOM in them: {last}. Expected every slice"):
        load_volume(series)


@pytest.mark.parametrize("name", ["LOCKFILE", "VERSION", "done", "_SUCCESS", "Icon\r", "INDEX"])
@pytest.mark.parametrize("content", [b"", bytes(100)], ids=["empty", "binary"])
def test_what_has_no_number_beside_slices_with_numbers_is_none(tmp_path, write_dicom_series, name, content):
    series = write_dicom_series(tmp_path / "series", VOXELS, name="{index:d}D4C3B2A")
    (series / name).write_bytes(content)
    assert load_volume(series).voxels.shape == VOXELS.shape


def test_a_corrected_label_map_among_results_is_no_scan(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text('{"configurations": {}, "cases": {}}')
    for name in ("a_seg.nii.gz", "a_seg_corrected.nii.gz", "a_seg.seg.nrrd"):
        nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "label.nii.gz")
        (tmp_path / "label.nii.gz").rename(out / name)

    assert not found_below(tmp_path).problems


def test_a_series_in_several_folders_is_said(tmp_path, write_dicom_series, caplog):
    whole = write_dicom_series(tmp_path / "in" / "A", VOXELS)
    other = write_dicom_series(tmp_path / "in" / "other", VOXELS)
    (tmp_path / "in" / "B").mkdir()
    (whole / "0002.dcm").rename(tmp_path / "in" / "B" / "0002.dcm")
    (tmp_path / "prior.pt").touch()
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})

    found = {item["case"]: item.get("remark") for item in records.pending(inference_inputs(tmp_path / "in"))}

    assert found.keys() == {"A", "B", "other"} and found["other"] is None and other.name not in caplog.text
    assert f"slices of its series lie in {tmp_path}/in/B too" in found["A"] and found["A"] in caplog.text
    assert f"slices of its series lie in {tmp_path}/in/A too" in found["B"] and found["B"] in caplog.text


@pytest.mark.parametrize(("series", "said"), [("portal", True), ("arterial", False), ("nothing", False)])
def test_only_the_series_that_is_chosen_is_looked_for_in_other_folders(tmp_path, write_dicom_series, series, said):
    for folder, number in (("A", 1), ("B", 2)):  # the first series of each is its own, the second the same
        for name, uid in (("arterial", f"1.2.{number}"), ("portal", "1.2.9")):
            options = {"SeriesInstanceUID": uid, "SeriesDescription": name}
            write_dicom_series(tmp_path / "in" / folder, VOXELS, name=name + "{index}.dcm", **options)
    (tmp_path / "prior.pt").touch()
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={}, series=series)

    found = {item["case"]: item.get("remark", "") for item in records.pending(inference_inputs(tmp_path / "in"))}

    assert found.keys() == {"A", "B"}
    assert ["slices of its series lie in" in found[case] for case in "AB"] == [said, said]


@pytest.mark.parametrize(("name", "said"), [("0001.dcm", True), ("alone.dcm", False), ("more", False)])
def test_a_slice_that_is_given_without_its_folder_is_said(tmp_path, write_dicom_series, caplog, name, said):
    folder = write_dicom_series(tmp_path / "in", VOXELS)
    write_dicom_series(folder, VOXELS[..., :1], name="alone.dcm")
    write_dicom_series(folder / "more", VOXELS)
    (tmp_path / "prior.pt").touch()
    records = CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={})

    (item,) = records.pending(inference_inputs(folder / name))

    remark = f"it is one of {VOXELS.shape[2]} files of its series in '{folder}', and segmented without the others"
    assert (remark in item.get("remark", "")) == (remark in caplog.text) == said
    assert said or "remark" not in item


@pytest.mark.parametrize("total, missing", [(3, False), (4, True), (None, False)])
def test_an_object_of_which_parts_are_missing_is_refused(tmp_path, write_dicom_series, total, missing):
    tags = {"ConcatenationUID": "1.2.3", "InConcatenationTotalNumber": total}
    series = write_dicom_series(tmp_path / "series", VOXELS, InConcatenationNumber=lambda index: index + 1, **tags)
    if missing:
        with pytest.raises(DatasetError, match="3 of the 4 parts"):
            load_volume(series)
    else:
        np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)


def test_a_text_beside_slices_without_suffix_is_no_slice(tmp_path, write_dicom_series):
    series = write_dicom_series(tmp_path / "series", VOXELS, name="{index:d}D4C3B2A")
    (series / "README").write_text("Aufnahmen von Gästen, für Übungen")
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DicomDir"])
def test_the_index_of_a_medium_is_no_image(series, name):
    for folder in (series, series.parent):
        (folder / name).write_bytes(bytes(128) + b"DICM")
    np.testing.assert_array_equal(load_volume(series).voxels, VOXELS)
    assert taken(series.parent) == {"series": "series"} and not refused(series.parent)


# ---- images under other names


def header_of(kind: str) -> bytes:
    if kind == "NRRD":
        return b"NRRD0005\ntype: short\n"
    if kind == "MetaImage":
        return b"ObjectType = Image\nNDims = 3\n"
    make = nib.Nifti2Image if kind == "NIfTI 2" else nib.Nifti1Image
    return make(VOXELS, np.eye(4)).to_bytes()


@pytest.mark.parametrize("kind", ["NIfTI", "NIfTI 2", "NRRD", "MetaImage"])
@pytest.mark.parametrize("name", ["b", "b.nii.bak", "b.dat", "b.txt", "b.nii~", "b (copy)"])
def test_an_image_under_another_name_is_listed(tmp_path, kind, name):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / name).write_bytes(header_of(kind))
    assert list(taken(tmp_path)) == ["a"]
    assert f"{kind.split()[0]} by its content, but not by its name" in refused(tmp_path)[name]


@pytest.mark.parametrize(
    "name, start, kind",
    [
        ("b", gzip.compress(b"x"), "gzip"),
        ("b.nii.gz.1", gzip.compress(b"x"), "gzip"),
        ("b.nii.gz.crdownload", gzip.compress(b"x"), "gzip"),
        ("b.data", b"PK\3\4", "zip"),
        ("b", bytes(257) + b"ustar", "tar"),
        ("b", b"7z\xbc\xaf\x27\x1c", "7z"),
        ("b", b"(\xb5/\xfd", "zstd"),
    ],
    ids=["gzip", "a second copy", "a download", "zip", "tar", "7z", "zstd"],
)
def test_an_archive_under_another_name_is_listed(tmp_path, name, start, kind):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / name).write_bytes(start)
    assert f"compressed by its content ({kind}), but not by its name" in refused(tmp_path)[name]


def test_documents_and_weights_are_no_archives(tmp_path):
    touch(tmp_path, "a.nii.gz")
    for name in ("list.xlsx", "model.pt", "softmax.npz"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    assert not refused(tmp_path)


# ---- names over the limit


def test_a_name_that_leaves_no_room_for_results_is_refused_before_the_work(tmp_path):
    touch(tmp_path, "L" * 228 + ".nii.gz", "M" * 234 + ".nii")
    assert list(taken(tmp_path)) == ["L" * 228]
    (reason,) = refused(tmp_path).values()
    assert "6 bytes longer than a file's name can be" in reason


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path):
    path = tmp_path / ("L" * 243 + "_seg.nii.gz"[-12:])
    with whole_file(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("x")
    assert path.read_text() == "x"
    shutil.rmtree(tmp_path)


# ---- DICOM without a volume

SR, KEY_NOTE, DOSE_REPORT = (
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.88.59",
    "1.2.840.10008.5.1.4.1.1.88.67",
)
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NO_PIXELS = dict.fromkeys(["Rows", "Columns", "PixelData", "ImagePositionPatient", "ImageOrientationPatient"])
NO_PLACE = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
WITHOUT_VOLUME = {
    "Basic Text SR Storage": (1, {"SOPClassUID": SR, "Modality": "SR", **NO_PIXELS}),
    "X-Ray Radiation Dose SR Storage": (2, {"SOPClassUID": DOSE_REPORT, "Modality": "SR", **NO_PIXELS}),
    "Key Object Selection Document Storage": (1, {"SOPClassUID": KEY_NOTE, "Modality": "KO", **NO_PIXELS}),
    "Segmentation Storage": (3, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}),
    "Secondary Capture Image Storage": (1, {"SOPClassUID": CAPTURE, "Modality": "CT", **NO_PLACE}),
    "Multi-frame True Color Secondary Capture Image Storage": (
        2,
        {"SOPClassUID": CAPTURE + ".4", "Modality": "OT", **NO_PLACE, **COLOUR},
    ),
}


@pytest.mark.parametrize("pattern", ["", "*", "*/*"])
@pytest.mark.parametrize("kind", WITHOUT_VOLUME)
def test_reports_and_pages_of_text_beside_series_are_left_out_with_the_reason(
    tmp_path, write_dicom_series, caplog, kind, pattern
):
    number, tags = WITHOUT_VOLUME[kind]
    write_dicom_series(tmp_path / "p1", VOXELS[..., :1])
    write_dicom_series(tmp_path / "report", VOXELS[..., :number], **tags)

    with caplog.at_level("INFO"):
        items = inference_inputs(str(tmp_path / pattern))
    assert [item["case"] for item in items] == ["0000" if pattern == "*/*" else "p1"]
    assert f"/report': DICOM that holds no volume ({kind})" in caplog.text or pattern == "*/*"
    assert "Not taken" not in caplog.text


@pytest.mark.parametrize("kind", WITHOUT_VOLUME)
def test_where_nothing_else_is_there_a_report_is_a_failure(tmp_path, write_dicom_series, kind):
    number, tags = WITHOUT_VOLUME[kind]
    write_dicom_series(tmp_path / "report", VOXELS[..., :number], **tags)
    assert f"holds no volume ({kind})" in refused(tmp_path / "report")["report"]


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"SOPClassUID": CAPTURE},  # with places
        {"SOPClassUID": CAPTURE, **NO_PLACE},  # several in grey: a volume that has lost its places
        {"SOPClassUID": CAPTURE, **NO_PLACE, "SeriesInstanceUID": lambda index: f"1.2.{index}"},
        {"SOPClassUID": "1.2.3.4", **NO_PLACE},  # private
        {"SOPClassUID": "1.2.3.4", "Rows": None},
        {"Rows": None},  # damaged
        {"SOPClassUID": lambda index: "1.2.840.10008.5.1.4.1.1.2" if index else SR},
    ],
    ids=[
        *("slices", "captures with places", "captures without", "captures of several series", "private"),
        *("private and damaged", "damaged", "a report and slices"),
    ],
)
def test_what_may_be_a_volume_is_no_report(tmp_path, write_dicom_series, tags):
    write_dicom_series(tmp_path / "p1", VOXELS, **tags)
    write_dicom_series(tmp_path / "p2", VOXELS)
    assert list(taken(tmp_path)) == ["p1", "p2"]


def test_a_damaged_slice_beside_a_report_is_no_report(tmp_path, write_dicom_series):
    tags = WITHOUT_VOLUME["Basic Text SR Storage"][1]
    write_dicom_series(tmp_path / "p1", VOXELS[..., :1], name="IM{index}", **tags)
    (tmp_path / "p1" / "IM1").touch()
    touch(tmp_path, "p2/1.dcm")
    assert list(taken(tmp_path)) == ["p1", "p2"]
