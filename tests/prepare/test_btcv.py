"""Preparing BTCV: from what is downloaded, whole or not, to a trained and evaluated prior."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scripts.errors import DatasetError
from scripts.prepare.btcv import prepare_btcv

from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers.archives import contents, train_and_evaluate, zipped
from tests.helpers.workflows import BUNDLE, ORGANS

# simple_label() has the values 1 spleen, 2 right kidney, 3 left kidney, 4 liver
BTCV_VALUES = np.array([0, 1, 2, 3, 6])


@pytest.fixture(scope="module")
def btcv(tmp_path_factory) -> Path:
    """RawData as extracted: three labelled volumes, one without a label, and what macOS adds."""
    folder = tmp_path_factory.mktemp("btcv") / "download"
    for seed, case in enumerate(("0001", "0002", "0025")):
        label = simple_label()
        save_volume(folder / f"RawData/Training/img/img{case}.nii.gz", simple_image(label, seed))
        save_volume(folder / f"RawData/Training/label/label{case}.nii.gz", BTCV_VALUES[label].astype(np.uint8))
    save_volume(folder / "RawData/Testing/img/img0061.nii.gz", simple_image(simple_label()))
    (folder / "RawData/Training/img/._img0001.nii.gz").write_bytes(b"Mac OS X")
    return folder


def test_btcv_volumes_are_copied_as_they_are(btcv, tmp_path):
    prepare_btcv(zipped(btcv), tmp_path)

    training = contents(btcv / "RawData/Training")
    assert contents(tmp_path) == {name: data for name, data in training.items() if "._" not in name}


def test_btcv_says_what_it_found_left_out_and_missed(btcv, tmp_path):
    report = prepare_btcv(btcv, tmp_path)

    liver = 16 * 16 * 6 * (2 * 2 * 5) / 1000
    row = next(line for line in report.splitlines() if line.startswith("0025"))
    assert row.split()[1:9] == "40 x 36 x 8 2 x 2".split() and f"{liver:.1f}" in row.split()
    assert "published: 512 x 512 x 85...198" in row
    assert "Left out: 1 image without labels" in report
    assert "27 of the 30 published volumes missing: 0003, 0004" in report
    assert f"--dataset_dir {tmp_path}" in report


@pytest.mark.parametrize("below", ["RawData", "RawData/Training"])
def test_btcv_is_found_from_any_level(btcv, tmp_path, below):
    prepare_btcv(btcv / below, tmp_path / "a")
    shutil.copytree(btcv, tmp_path / "too/deep/RawData")
    report = prepare_btcv(tmp_path / "too", tmp_path / "b")

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "found in 'deep/RawData/RawData/Training/'" in report


def test_a_second_call_writes_only_what_is_missing(btcv, tmp_path):
    prepare_btcv(btcv, tmp_path)
    before = contents(tmp_path)
    (tmp_path / "img/img0002.nii.gz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.gz")}

    report = prepare_btcv(zipped(btcv), tmp_path)

    assert "1 file written" in report and "5 were there already" in report
    assert contents(tmp_path) == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_another_file_is_replaced_only_when_told(btcv, tmp_path):
    changed = save_volume(tmp_path / "label/label0002.nii.gz", simple_label())
    before = changed.read_bytes()

    with pytest.raises(DatasetError, match=f"{changed}.*--overwrite True"):
        prepare_btcv(btcv, tmp_path)
    assert changed.read_bytes() == before

    prepare_btcv(btcv, tmp_path, overwrite=True)
    assert changed.read_bytes() == (btcv / "RawData/Training/label/label0002.nii.gz").read_bytes()


def test_an_output_inside_the_source_is_no_source(btcv, tmp_path):
    shutil.copytree(btcv, tmp_path / "data")

    prepare_btcv(tmp_path / "data", tmp_path / "data/prepared")
    report = prepare_btcv(tmp_path / "data", tmp_path / "data/prepared")

    assert "6 were there already" in report


def test_a_volume_without_its_label_is_refused(btcv, tmp_path):
    shutil.copytree(btcv, tmp_path / "data")
    (tmp_path / "data/RawData/Training/label/label0002.nii.gz").unlink()

    with pytest.raises(DatasetError, match="0002 without label"):
        prepare_btcv(tmp_path / "data", tmp_path / "out")


def test_two_copies_of_the_data_are_refused(btcv, tmp_path):
    for name in ("old", "new"):
        shutil.copytree(btcv, tmp_path / "data" / name)

    with pytest.raises(DatasetError, match="2 places .*new/RawData.*old/RawData"):
        prepare_btcv(tmp_path / "data", tmp_path / "out")


def damaged(path: Path) -> Path:
    """An archive with other bytes in the middle of its largest member."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def webpage(path: Path) -> Path:
    path.write_text("<html>Please log in</html>")
    return path


@pytest.mark.parametrize(
    "harm, found",
    [
        (truncated, r"its end is missing.*syn3193805"),
        (webpage, r"it is no zip archive \(26 bytes\)"),
        (damaged, r"img\d{4}.nii.gz': cannot be extracted"),
        (Path.unlink, r"RawData.zip' is not there.*syn3193805"),
    ],
)
def test_an_archive_that_cannot_be_read_is_refused(btcv, tmp_path, harm, found):
    archive = shutil.copy(zipped(btcv), tmp_path / "RawData.zip")
    harm(archive)

    with pytest.raises(DatasetError, match=found):
        prepare_btcv(archive, tmp_path / "out")
    written = contents(tmp_path / "out") if (tmp_path / "out").exists() else {}
    assert written.items() <= contents(btcv / "RawData/Training").items()  # nothing temporary, no half of a file


def test_paths_that_lead_out_of_an_archive_are_not_followed(btcv, tmp_path):
    archive = shutil.copy(zipped(btcv), tmp_path / "RawData.zip")
    link = zipfile.ZipInfo("RawData/Training/img/img0040.nii.gz")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as opened:
        for name in ("../../RawData/Training/img/img0003.nii.gz", "/RawData/Training/img/img0004.nii.gz", link):
            opened.writestr(name, "/etc/passwd")

    report = prepare_btcv(archive, tmp_path / "a/b/out")

    assert "Ignored: 3 members" in report
    assert len(list((tmp_path / "a").rglob("*.nii.gz"))) == 6


def test_btcv_trains_and_evaluates(btcv, tmp_path, backbone_file):
    prepare_btcv(zipped(btcv), tmp_path / "btcv")
    cases = {"train_cases": ["0001", "0025"], "dataset_dir": str(tmp_path / "btcv")}

    metrics = train_and_evaluate(tmp_path, backbone_file, BUNDLE / "configs/btcv.json", **cases)

    assert (metrics["organs"], metrics["cases"]) == (ORGANS, ["0002"])
