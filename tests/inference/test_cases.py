"""Inference over many volumes, as people use it: what fails is said and skipped, what is there is not done again."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from nibabel.affines import apply_affine
from scripts.data.datalists import inference_inputs
from scripts.data.intensity import NOTES
from scripts.errors import DatasetError, user_error
from scripts.inference.case_records import CaseRecords, FailedCases
from scripts.inference.cases import CaseDataset, CaseProgress, FiniteVolumeReader, LogitsToProbabilitiesd
from scripts.inference.record_files import read_records
from scripts.output.previews import PreviewSaver
from scripts.segmentation.propagation import VolumetricInferer

from tests.helpers import started
from tests.helpers.results import write_label_map
from tests.helpers.workflows import BUNDLE, SETTINGS, Killed, command_line, new_workflow, run, write_overlay

# ---- a user's files: scans, a trained prior, an overlay


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, backbone_file, write_dataset) -> Path:
    """Settings, and beside them a prior; what its label maps are worth does not matter here."""
    folder = tmp_path_factory.mktemp("project")
    path = write_overlay(folder, write_dataset(folder / "dataset"), backbone_file)
    torch.manual_seed(0)
    network = new_workflow("inferring", path).parser.get_parsed_content("network_def")
    network.prior.fitted.fill_(True)
    torch.save({"model": network.state_dict()}, folder / "model.pt")
    return path


@pytest.fixture
def scans(tmp_path, overlay) -> Path:
    """A folder with the volumes a and b."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for case in "ab":
        content = (overlay.parent / "dataset" / f"image_{case}.nii.gz").read_bytes()
        (folder / f"{case}.nii.gz").write_bytes(content)
    return folder


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def records(output: Path) -> dict[str, dict]:
    return json.loads((output / "results.json").read_text())["cases"]


def statuses(output: Path) -> dict[str, str]:
    return {case: record["status"] for case, record in records(output).items()}


def label_map(output: Path, case: str) -> np.ndarray:
    return np.asarray(nib.load(output / f"{case}_seg.nii.gz").dataobj)


def failure(overlay: Path, **overrides) -> str:
    """The message with which a run ends."""
    with pytest.raises(Exception) as caught:
        run("inferring", overlay, **overrides)
    found = user_error(caught.value)
    assert isinstance(found, FailedCases), found
    return str(found)


# ---- the command line


def test_a_folder_with_a_bad_file_and_a_dicom_series(overlay, scans, write_dicom_series):
    """The bad file is said and skipped, the exit code tells, and the same command does nothing twice."""
    (scans / "c.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes())
    truncate(scans / "b.nii.gz")
    uids = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4"}
    voxels = np.asarray(nib.load(scans / "c.nii.gz").dataobj)
    write_dicom_series(scans / "series", voxels, SeriesDescription="portal", **uids)
    output = scans.parent / "out"
    arguments = ["-m", "monai.bundle", "run", "inferring", "--input", str(scans), "--output", str(output)]
    arguments += ["--config_file", str(["configs/inference.json", str(overlay)])]

    result = command_line(arguments, BUNDLE)

    said = result.stdout + result.stderr
    assert result.returncode == 3
    assert "Traceback" not in said
    assert said.count(f"'{scans / 'b.nii.gz'}': cannot be read") == 2  # at once, and at the end
    assert "error: 1 of 4 cases failed" in result.stderr
    assert statuses(output) == {"a": "done", "b": "failed", "c": "done", "series": "done"}
    assert {path.name for path in output.iterdir()} == {
        *("a_seg.nii.gz", "c_seg.nii.gz", "series_seg.nii.gz", "series_seg.dcm"),
        *("previews", "results.json", "report.html"),
    }
    saved = nib.load(output / "series_seg.nii.gz")
    assert_equal_voxels(hd.seg.segread(output / "series_seg.dcm"), saved)

    written = {path: path.stat().st_mtime_ns for path in output.glob("*_seg.*")}
    again = failure(overlay, input=str(scans), output=str(output))

    assert again.startswith("1 of 4 cases failed:\n  1. b: ")
    assert {path: path.stat().st_mtime_ns for path in output.glob("*_seg.*")} == written


def assert_equal_voxels(segmentation: hd.seg.Segmentation, saved: nib.Nifti1Image) -> None:
    volume = segmentation.get_volume(combine_segments=True)
    found = np.argwhere(volume.array)
    to_voxels = np.linalg.inv(saved.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    voxels = apply_affine(to_voxels, found).round().astype(int)
    read = np.zeros(saved.shape, int)
    read[tuple(voxels.T)] = volume.array[tuple(found.T)]
    np.testing.assert_array_equal(read, np.asarray(saved.dataobj))
    assert read.any()


# ---- one case fails, the others go on


def test_a_case_that_runs_out_of_memory_does_not_stop_the_others(overlay, scans, monkeypatch, caplog):
    segment = VolumetricInferer.__call__
    calls = []

    def sometimes(self, inputs, *args, **kwargs):
        calls.append(inputs)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 90 GiB.")
        return segment(self, inputs, *args, **kwargs)

    monkeypatch.setattr(VolumetricInferer, "__call__", sometimes)
    output = scans.parent / "out"

    message = failure(overlay, input=str(scans), output=str(output))

    assert statuses(output) == {"a": "failed", "b": "done"}
    assert "1. a: out of memory (Tried to allocate 90 GiB.). Set --encode_batch_size" in message
    assert not (output / "a_seg.nii.gz").exists()


@pytest.mark.parametrize("what", ["the label map", "the preview"])
def test_results_that_cannot_be_written_fail_their_case_alone(overlay, scans, monkeypatch, what):
    output = scans.parent / "out"
    blocked = output / ("a_seg.nii.gz" if what == "the label map" else "previews/a.png")
    (blocked / "in the way").mkdir(parents=True)

    message = failure(overlay, input=str(scans), output=str(output))

    assert statuses(output) == {"a": "failed", "b": "done"}
    assert "1. a: " in message and "IsADirectoryError" in message
    assert not list(output.rglob(".part-*"))


def test_what_follows_a_segmentation_is_set_up_before_any_begins(overlay, scans, tmp_path):
    workflow = new_workflow("inferring", overlay, input=str(scans), output=str(tmp_path / "o"), solid_organs=["livr"])

    with pytest.raises(Exception) as caught:
        workflow.initialize()

    assert "`solid_organs` names 'livr'" in str(user_error(caught.value))


def test_what_is_wrong_for_every_case_ends_the_run_at_once(overlay, scans, tmp_path):
    other = tmp_path / "other.pt"
    content = torch.load(overlay.parent / "model.pt", weights_only=True)
    content["model"]["_extra_state"]["organs"] = ["pancreas"]
    torch.save(content, other)

    with pytest.raises(Exception) as caught:
        run("inferring", overlay, input=str(scans), output=str(tmp_path / "out"), prior_file=str(other))

    assert "pancreas" in str(user_error(caught.value))
    assert not (tmp_path / "out" / "results.json").exists()


def test_voxels_that_are_no_numbers_are_counted(tmp_path, write_volume):
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[1, 2, 3], voxels[0, 0, 0] = np.nan, np.inf
    path = write_volume(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(DatasetError, match=r"a.nii.gz': 2 of 120 voxels are NaN or infinite"):
        FiniteVolumeReader().load(path)


# ---- interrupted, and run again


def test_a_killed_run_goes_on_with_what_is_missing(overlay, scans, monkeypatch, caplog):
    draw = PreviewSaver.__call__

    def killed_at_b(self, engine):
        if engine.state.iteration == 2:
            raise Killed
        draw(self, engine)

    output = scans.parent / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PreviewSaver, "__call__", killed_at_b)
        run("inferring", overlay, input=str(scans), output=str(output))
    assert statuses(output) == {"a": "done", "b": "running"}
    first = (output / "a_seg.nii.gz").stat().st_mtime_ns

    with caplog.at_level("INFO"):
        workflow = run("inferring", overlay, input=str(scans), output=str(output))

    assert "1 of 2 were there already" in caplog.text
    assert workflow.parser.get_parsed_content("records").done == ["b"]
    assert statuses(output) == dict.fromkeys("ab", "done")
    assert (output / "a_seg.nii.gz").stat().st_mtime_ns == first

    with caplog.at_level("INFO"):
        run("inferring", overlay, input=str(scans), output=str(output))

    assert "0 cases segmented, 2 there already; results are in" in caplog.text


class Recorded:
    """Cases of an inference without a network: what is recorded, and what would be segmented next time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.items = []
        for case in "ab":
            self.items.append({"image": str(folder / f"{case}.nii.gz"), "case": case})
            (folder / f"{case}.nii.gz").write_bytes(b"voxels")
        (folder / "prior.pt").write_bytes(b"prior")

    def records(self, **options) -> CaseRecords:
        return CaseRecords(**{"output": self.output, "prior_file": self.folder / "prior.pt", "settings": {}} | options)

    def pending(self, **options) -> list[str]:
        return [item["case"] for item in self.records(**options).pending(self.items)]

    def segment(self, write: Callable[[Path], None] = lambda output: None, **options) -> None:
        records = self.records(**options)
        for item in records.pending(self.items):
            records.begin(item)
            write_label_map(self.output / f"{item['case']}_seg.nii.gz")
            write(self.output)
            records.complete(item, seconds=1.5, shape=(4, 5, 6))


@pytest.fixture
def recorded(tmp_path) -> Recorded:
    """The cases a and b, both segmented."""
    recorded = Recorded(tmp_path)
    assert recorded.pending() == ["a", "b"]
    recorded.segment()
    return recorded


def test_nothing_is_done_twice(recorded):
    assert recorded.pending() == []


@pytest.mark.parametrize("image", ["\ud800.nii.gz", "a\0b.nii.gz", "a\ud800/b.nii.gz", "x" * 5000, "~no one/a.nii"])
def test_a_path_that_no_file_can_have_is_one_case_that_failed(recorded, image):
    path = recorded.folder / "list.json"
    path.write_text(json.dumps([{"image": image, "case": "c"}, "a.nii.gz"]))
    records = recorded.records(overwrite=True)

    assert [item["case"] for item in records.pending(inference_inputs(path))] == ["a"]
    with pytest.raises(FailedCases) as caught:
        records.check()
    assert "1 of 1 case failed" in str(caught.value) and list(records.failures) == ["c"]
    assert json.loads((recorded.output / "results.json").read_text(encoding="utf-8"))


def test_everything_is_done_again_if_asked_for(recorded):
    assert recorded.pending(overwrite=True) == ["a", "b"]


def test_another_prior_counts_by_its_content(recorded):
    (recorded.folder / "moved.pt").write_bytes(b"prior")
    assert recorded.pending(prior_file=recorded.folder / "moved.pt") == []
    (recorded.folder / "prior.pt").write_bytes(b"another prior")
    assert recorded.pending() == ["a", "b"]


def test_other_settings_are_said_and_segmented_again(recorded, caplog):
    with caplog.at_level("INFO"):
        assert recorded.pending(settings={"no_3d": True}) == ["a", "b"]
    assert "2 of 2 were made from another input, or with another prior, settings or version" in caplog.text


@pytest.mark.parametrize(
    "transform",
    [
        ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True),
        ScaleIntensityRanged("image", -125, 200, 0, 1, clip=True),
        ScaleIntensityRangePercentilesd("image", 0, 99, 0, 1, clip=True),
    ],
    ids=["the same", "another number", "another kind"],
)
def test_transforms_are_settings(recorded, transform, request):
    recorded.segment(settings={"intensity": ScaleIntensityRanged("image", -125, 275, 0, 1, clip=True)})
    same = request.node.callspec.id == "the same"
    assert recorded.pending(settings={"intensity": transform}) == ([] if same else ["a", "b"])


def test_a_changed_input_is_segmented_again(recorded):
    (recorded.folder / "b.nii.gz").write_bytes(b"other voxels")
    assert recorded.pending() == ["b"]


def test_a_removed_label_map_is_made_again(recorded):
    (recorded.output / "a_seg.nii.gz").unlink()
    assert recorded.pending() == ["a"]


@pytest.mark.parametrize("content", [b"", b"garbage", gzip.compress(b"", mtime=0), gzip.compress(bytes(400), mtime=0)])
def test_a_label_map_without_a_header_is_made_again(recorded, content):
    (recorded.output / "a_seg.nii.gz").write_bytes(content)
    assert recorded.pending() == ["a"]


@pytest.mark.parametrize("place", [0, 40_000, 79_999])
def test_another_scan_of_the_same_name_size_and_time_is_not_there_already(recorded, place):
    """As where one patient's folder takes another's place, and a program gave all files one time."""
    for folder, voxel in (("one", 1), ("two", 2)):
        (recorded.folder / folder).mkdir()
        (recorded.folder / folder / "c.nii").write_bytes(bytes(place) + bytes([voxel]) + bytes(79_999 - place))
        os.utime(recorded.folder / folder / "c.nii", (1e9, 1e9))
    recorded.items = [{"image": str(recorded.folder / "one" / "c.nii"), "case": "c"}]
    recorded.segment()
    (recorded.folder / "one").rename(recorded.folder / "three")
    recorded.items[0]["image"] = str(recorded.folder / "three" / "c.nii")
    assert recorded.pending() == []

    (recorded.folder / "three" / "c.nii").unlink()
    recorded.items[0]["image"] = str(recorded.folder / "two" / "c.nii")

    assert recorded.pending() == ["two_c"]  # beside the first one's results


def test_results_that_were_not_asked_for_before_are_made(recorded):
    assert recorded.pending(probabilities=True) == ["a", "b"]


def test_what_could_not_be_made_is_not_tried_again(recorded, write_dicom_series):
    """Of a series without identifiers there is no DICOM SEG; one that was removed is made again."""
    for case in ("stripped", "removed"):
        series = write_dicom_series(recorded.folder / case, np.ones((4, 4, 2), np.int16))
        recorded.items.append({"image": str(series), "case": case})
    (recorded.output / "removed_seg.dcm").write_bytes(bytes(128) + b"DICM")
    recorded.segment()
    assert recorded.pending() == []

    (recorded.output / "removed_seg.dcm").unlink()

    assert recorded.pending() == ["removed"]
    assert recorded.pending(dicom_seg=False) == []


BESIDE = ("a_prob.nii.gz", "previews/a.png", "a_seg_upright.nii.gz", "a_notes.txt")


def write_beside(output: Path) -> None:
    """What a run writes beside the label map of a, and a file of somebody else's."""
    (output / "previews").mkdir(exist_ok=True)
    for name in BESIDE:
        (output / name).write_text("earlier")


@pytest.mark.parametrize("ends", ["at once", "after a failure", "after a kill"])
def test_what_lies_beside_a_label_map_is_of_the_same_image(recorded, caplog, ends):
    """Probabilities of another image of the same name go when its label map is replaced, and not before."""
    recorded.segment(probabilities=True, overwrite=True, write=write_beside)
    (recorded.folder / "a.nii.gz").write_bytes(b"another patient's voxels")
    if ends != "at once":
        records = recorded.records()
        (item,) = records.pending(recorded.items)
        records.begin(item)
        if ends == "after a failure":
            records.fail(item, "no space left")
        assert all((recorded.output / name).is_file() for name in BESIDE)
        del records

    with caplog.at_level("INFO"):
        recorded.segment()

    assert [name for name in BESIDE if (recorded.output / name).is_file()] == ["a_notes.txt"]
    assert (
        caplog.text.count("a: removed a_prob.nii.gz, previews/a.png, a_seg_upright.nii.gz, of an earlier label map")
        == 1
    )
    assert records_of(recorded)["a"]["files"] == {"label_map": "a_seg.nii.gz", "preview": None}
    assert "earlier_files" not in records_of(recorded)["a"]


def test_what_lies_beside_a_label_map_stays_where_the_same_is_segmented_again(recorded):
    recorded.segment(probabilities=True, overwrite=True, write=write_beside)

    recorded.segment(overwrite=True)

    assert (recorded.output / "a_prob.nii.gz").read_text() == "earlier"
    assert records_of(recorded)["a"]["files"]["probabilities"] == "a_prob.nii.gz"


@pytest.mark.parametrize("name", ["../outside.nii.gz", "{folder}/outside.nii.gz", "x/../../outside.nii.gz"])
def test_a_record_that_names_a_file_elsewhere_is_none(recorded, name):
    outside = recorded.folder / "outside.nii.gz"
    outside.write_text("kept")
    content = json.loads((recorded.output / "results.json").read_text())
    content["cases"]["a"]["files"]["probabilities"] = name.format(folder=recorded.folder)
    (recorded.output / "results.json").write_text(json.dumps(content))

    assert recorded.pending() == ["a"]
    recorded.segment()
    assert outside.read_text() == "kept"
    assert recorded.pending() == []


def records_of(recorded: Recorded) -> dict[str, dict]:
    return records(recorded.output)


def test_a_case_that_was_begun_again_is_not_done(recorded):
    records = recorded.records(overwrite=True)
    records.begin(records.pending(recorded.items)[1])
    assert recorded.pending() == ["b"]


def test_a_failed_case_is_tried_again(recorded):
    records = recorded.records()
    records.fail(recorded.items[0], "no space left")
    assert recorded.pending() == ["a"]
    assert json.loads(records.path.read_text())["cases"]["a"]["error"] == "no space left"


def test_missing_and_empty_files_fail_before_anything_starts(recorded):
    (recorded.folder / "a.nii.gz").unlink()
    (recorded.folder / "b.nii.gz").write_bytes(b"")
    records = recorded.records()

    assert records.pending(recorded.items) == []
    with pytest.raises(FailedCases, match=r"(?s)2 of 2 cases failed:.*a.nii.gz': the file is not there.*is empty"):
        records.check()


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", '{"configurations": {}, "cases": null}', '{"configurations": {}, "cases": {"a": "done"}}'],
    ids=["too deep", "a list", "no cases", "a text for a case"],
)
def test_records_of_something_else_are_refused_in_words(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DatasetError, match=r"results.json' is not the record of an inference \("):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"files": None}, "files of case 'a' is None"),
        ({"files": {"label_map": 7}}, "files.label_map of case 'a' is 7"),
        ({"image": 7}, "image of case 'a' is 7"),
        ({"image": ["x"]}, r"image of case 'a' is \['x'\]"),
        ({"image": "a\0b"}, r"image of case 'a' is 'a\\x00b', which no file can be called"),
        ({"configuration": ["x"]}, "configuration of case 'a' is"),
        ({"configuration": {"x": 1}}, "configuration of case 'a' is"),
        ({"status": 1}, "status of case 'a' is 1"),
        ({"seconds": "long"}, "seconds of case 'a' is 'long'"),
        ({"shape": 3}, "shape of case 'a' is 3"),
        ({"warnings": [3]}, "warnings of case 'a' is 3"),
        ({"quality": {"flags": {"x": 1}}}, "quality.flags of case 'a' is"),
        ({"quality": {"organs": {"liver": 3}}}, "quality of case 'a' is 3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("journal", [False, True])
def test_fields_of_a_record_that_are_something_else_are_refused_in_words(recorded, fields, said, journal):
    path, kind = recorded.output / "results.json", "record"
    content = json.loads(path.read_text())
    if journal:
        path, kind = recorded.output / ".running" / "1.jsonl", "journal"
        path.parent.mkdir()
        path.write_text('{"cases": []}\n' + json.dumps(["a", {**content["cases"]["a"], **fields}]) + "\n")
    else:
        content["cases"]["a"] |= fields
        path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"'{path}' is not the {kind} of an inference \(TypeError: {said}"):
        recorded.pending()


def test_settings_of_a_record_that_are_no_object_are_refused_in_words(recorded):
    path = recorded.output / "results.json"
    content = json.loads(path.read_text())
    (configuration,) = content["configurations"].values()
    configuration["settings"] = ["x"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="settings of configuration"):
        recorded.pending()


def test_the_record_says_what_each_result_was_made_with(recorded):
    content = json.loads((recorded.output / "results.json").read_text())
    case = content["cases"]["a"]
    made_with = content["configurations"][case["configuration"]]

    assert (case["image"], case["seconds"], case["shape"]) == (recorded.items[0]["image"], 1.5, [4, 5, 6])
    assert case["files"] == {"label_map": "a_seg.nii.gz", "preview": None}
    assert made_with["prior_file"] == str(recorded.folder / "prior.pt")
    assert len(made_with["prior_sha256"]) == 64


def test_configurations_without_a_case_are_forgotten(recorded):
    recorded.segment(settings={"no_3d": True})
    content = json.loads((recorded.output / "results.json").read_text())
    assert [each["settings"] for each in content["configurations"].values()] == [{"no_3d": True}]


@pytest.mark.parametrize("content", ["{", "[]", '{"cases": 3, "configurations": {}}'])
def test_a_record_of_something_else_is_refused(recorded, content):
    (recorded.output / "results.json").write_text(content)
    with pytest.raises(DatasetError, match="is not the record of an inference.*Remove it"):
        recorded.pending()


def test_what_is_odd_about_a_case_beside_the_others_is_a_remark_on_its_image():
    def load(item: dict) -> dict:
        return {
            "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta={NOTES: "grey values"} if item["case"] == "a" else {})
        }

    data = CaseDataset([{"case": case, "remark": "slices elsewhere"} for case in "ab"] + [{"case": "c"}], load)

    assert [each["image"].meta.get(NOTES) for each in data] == [
        "grey values\nslices elsewhere",
        "slices elsewhere",
        None,
    ]


def test_ct_that_is_not_in_hounsfield_units_is_said_in_record_and_report(overlay, scans):
    image = nib.load(scans / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1024, image.affine), scans / "a.nii.gz")
    output = scans.parent / "out"

    run("inferring", overlay, input=str(scans / "a.nii.gz"), output=str(output), report=True)

    (note,) = (note for note in records(output)["a"]["warnings"] if "no Hounsfield units" in note)
    assert "no Hounsfield units" in (output / "report.html").read_text("utf-8")


# ---- what changes meanwhile


def test_an_input_that_changes_while_it_is_segmented_is_not_done(recorded):
    records = recorded.records(overwrite=True)
    item = records.pending(recorded.items)[0]
    records.begin(item)
    (recorded.folder / "a.nii.gz").write_bytes(b"replaced meanwhile")
    records.complete(item, seconds=1.0, shape=(4, 5, 6))

    with pytest.raises(FailedCases, match="a: its input changed while it was segmented"):
        records.check()
    assert recorded.pending() == ["a"]


def test_an_input_that_changes_before_it_is_read_is_segmented_again_the_next_time(recorded):
    """Workers read ahead: which of the two they have read is not known."""
    records = recorded.records(overwrite=True)
    item = records.pending(recorded.items)[0]
    (recorded.folder / "a.nii.gz").write_bytes(b"replaced meanwhile")
    records.begin(item)
    records.complete(item, seconds=1.0, shape=(4, 5, 6))

    assert records.failures.keys() == {"a"} and recorded.pending() == ["a"]


def test_a_run_without_its_report_is_not_a_success(recorded):
    records = recorded.records()
    assert records.pending(recorded.items) == []

    with pytest.raises(
        FailedCases, match="The label maps are there, but no report was written: disk full. The"
    ) as info:
        records.check("disk full.")
    assert info.value.exit_code == 3


@pytest.mark.parametrize("lost", ["a_seg.nii.gz", "results.json"])
def test_results_that_are_gone_at_the_end_are_noticed(recorded, lost):
    records = recorded.records()
    assert records.pending(recorded.items) == []
    (recorded.output / lost).unlink()

    with pytest.raises(FailedCases, match=f"a: its results are gone since they were written: {lost}"):
        records.check()


def test_previews_that_are_gone_fail_nothing_for_nothing_would_make_them_again(recorded):
    preview = recorded.output / "previews" / "a.png"
    preview.parent.mkdir()
    preview.touch()
    recorded.segment(overwrite=True)
    assert json.loads((recorded.output / "results.json").read_text())["cases"]["a"]["files"]["preview"]
    preview.unlink()
    records = recorded.records()

    assert records.pending(recorded.items) == []
    records.check()


RECORDERS = """
import os, sys; sys.path.insert(0, {bundle!r})
from scripts.inference.case_records import CaseRecords
other = os.fork()
name = "x" if other else "y"
records = CaseRecords({output!r}, {prior!r}, settings={{}})
for number in range(30):
    records.begin({{"image": {image!r}, "case": f"{{name}}{{number}}"}})
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_programs_that_share_a_folder_keep_one_anothers_records(recorded):
    places = {"output": recorded.output, "prior": recorded.folder / "prior.pt", "image": recorded.items[0]["image"]}
    program = RECORDERS.format(bundle=str(BUNDLE), **{key: str(value) for key, value in places.items()})

    both = started.python(["-c", program], warn=False)

    assert both.returncode == 0, both.stderr
    cases = json.loads((recorded.output / "results.json").read_text())["cases"]
    assert {f"{name}{number}" for name in "xy" for number in range(30)} <= cases.keys()


# ---- probabilities


def test_probabilities_are_written_beside_the_same_label_map(overlay, scans):
    output = scans.parent / "out"
    run("inferring", overlay, input=str(scans / "a.nii.gz"), output=str(output))
    labels = label_map(output, "a")

    run("inferring", overlay, input=str(scans / "a.nii.gz"), output=str(output), probabilities=True)

    np.testing.assert_array_equal(label_map(output, "a"), labels)
    saved = nib.load(output / "a_prob.nii.gz")
    assert saved.get_data_dtype() == np.uint8
    assert saved.shape == (*labels.shape, len(SETTINGS["label_map"]))
    np.testing.assert_allclose(saved.affine, nib.load(scans / "a.nii.gz").affine)
    probabilities = saved.get_fdata()
    # where an organ wins, its logit is positive and no other organ is more likely; steps are of 1/255
    best = np.take_along_axis(probabilities, np.maximum(labels[..., None].astype(int) - 1, 0), -1)[..., 0]
    assert labels.any() and (best[labels > 0] >= 0.5 - 1 / 255).all()
    assert (best[labels > 0] >= probabilities.max(-1)[labels > 0] - 1e-6).all()
    assert (probabilities[labels == 0] <= 0.5 + 1 / 255).all()
    assert records(output)["a"]["files"]["probabilities"] == "a_prob.nii.gz"


def test_probabilities_are_sigmoids_in_steps_of_bytes():
    logits = torch.tensor([0.0, -40.0, 40.0, 1.0]).reshape(4, 1, 1, 1)

    result = LogitsToProbabilitiesd("pred")({"pred": logits})

    assert result["probabilities"].flatten().tolist() == [0, 255, round(255 / (1 + np.exp(-1)))]
    assert result["pred"].flatten().tolist() == [2]


# ---- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_case_slice_and_time_left():
    terminal = Terminal()
    progress = CaseProgress(terminal)
    shown = []

    def segment(engine, batch):
        for index in range(1, 5):
            engine.inferer.on_slices(index, 4)
            shown.append(progress.progress.bar.n)
            progress.progress.bar.refresh()

    engine = Engine(segment)
    engine.inferer = SimpleNamespace(on_slices=None)
    progress.attach(engine)
    engine.run([{"item": {"image": [case], "case": [case]}} for case in "ab"])

    assert shown == pytest.approx([0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2])
    assert "a (1 of 2), slice 3 of 4:  38%" in terminal.getvalue()
    assert "b (2 of 2), slice 4 of 4: 100%" in terminal.getvalue()
    assert "<" in terminal.getvalue()  # elapsed<remaining


def test_the_bar_moves_on_past_a_case_that_failed():
    progress = CaseProgress(Terminal())
    engine = Engine(lambda engine, batch: None)
    engine.inferer = SimpleNamespace()  # of another kind, that reports no slices
    progress.attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(progress.progress.bar.n))

    engine.run([{"item": {"image": [case], "case": [case]}} for case in "abc"])

    assert seen == [1, 2, 3]
