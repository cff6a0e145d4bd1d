"""Decoders of compressed DICOM run in a process of their own: what ends it is one line about one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, RLELossless
from scripts.data import dicom_decoder
from scripts.data.datalists import inference_inputs
from scripts.data.dicom_decoder import DecodingError, decode
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError
from scripts.inference.cases import CaseDataset

from tests.conftest import save_dicom_series
from tests.helpers.workflows import BUNDLE

SHAPE = (40, 36, 4)
PIXELS = SHAPE[0] * SHAPE[1]
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
CT = {"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def compressed(folder: Path) -> Path:
    series = save_dicom_series(folder, (HU + 1024).astype(np.uint16), **CT)
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(file, enforce_file_format=True)
    return series


def with_tags(file: Path, **tags) -> Path:
    dataset = pydicom.dcmread(file)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)
    return file


@pytest.fixture
def plain(tmp_path) -> Path:
    """One slice, which ITK decodes."""
    return save_dicom_series(tmp_path / "plain", (HU[..., :1] + 1024).astype(np.uint16), **CT) / "0000.dcm"


@pytest.fixture
def aborting(tmp_path) -> Path:
    """A slice at which GDCM aborts its process; its header is refused before, where a series is read."""
    file = save_dicom_series(tmp_path / "aborting", (HU[..., :1] + 1024).astype(np.uint16), **CT) / "0000.dcm"
    return with_tags(file, PhotometricInterpretation="PALETTE COLOR")


def child() -> int:
    """The process that decodes at present."""
    return dicom_decoder._running.process.pid


def test_one_process_decodes_one_file_after_another(plain):
    first = decode(plain, PIXELS, 16)
    process = child()
    np.testing.assert_array_equal(first.values[0].T, HU[..., 0])
    assert first[1:] == (1.0, -1024.0)

    again = decode(plain, PIXELS, 16)

    np.testing.assert_array_equal(again.values, first.values)
    assert child() == process


def test_a_decoder_that_aborts_is_one_line_and_the_next_file_is_decoded(plain, aborting):
    with pytest.raises(DecodingError, match="its decoder ended the process that it ran in, by SIGABRT"):
        decode(aborting, PIXELS, 16)

    np.testing.assert_array_equal(decode(plain, PIXELS, 16).values[0].T, HU[..., 0])


def test_what_itk_refuses_ends_no_process(plain, tmp_path):
    decode(plain, PIXELS, 16)
    process = child()
    (tmp_path / "text.dcm").write_text("no DICOM")

    with pytest.raises(DecodingError):
        decode(tmp_path / "text.dcm", PIXELS, 16)

    decode(plain, PIXELS, 16)
    assert child() == process


def test_a_decoder_that_waits_for_ever_is_ended(plain, tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.dcm"
    os.mkfifo(pipe)  # which ITK opens, and waits
    monkeypatch.setattr(dicom_decoder, "WAITING", 0.01)

    with pytest.raises(DecodingError, match="its decoder was ended after 0.3 seconds"):
        decode(pipe, PIXELS, 16)


def test_a_decoder_that_works_for_ever_is_ended(plain, tmp_path):
    program = "from scripts.data.dicom_decoder import _limit_time\n_limit_time(60, 0.2)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", program], cwd=BUNDLE).returncode == -signal.SIGPROF

    decode(plain, PIXELS, 16)
    pipe = tmp_path / "pipe.dcm"
    os.mkfifo(pipe)
    threading.Timer(0.5, os.kill, (child(), signal.SIGPROF)).start()
    with pytest.raises(DecodingError, match="its decoder was ended after 30 seconds of work"):
        decode(pipe, PIXELS, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_decoder_does_not_take_all_memory(plain, monkeypatch):
    monkeypatch.setattr(dicom_decoder, "SPARE_MEMORY", 1 << 28)
    with_tags(plain, NumberOfFrames=500_000)  # 1.4 GB

    with pytest.raises(DecodingError, match="memory|SIG"):
        decode(plain, PIXELS, 16)


def test_a_process_that_is_gone_is_started_again(plain):
    decode(plain, PIXELS, 16)
    os.kill(child(), signal.SIGKILL)
    dicom_decoder._running.process.wait()

    np.testing.assert_array_equal(decode(plain, PIXELS, 16).values[0].T, HU[..., 0])


def test_a_forked_process_has_a_decoder_of_its_own(plain):
    """As workers of a data loader are: two that read from one pipe would get each other's pixels."""
    decode(plain, PIXELS, 16)
    forked = os.fork()
    if not forked:
        before = child()
        same = np.array_equal(decode(plain, PIXELS, 16).values[0].T, HU[..., 0])
        own = child() != before
        dicom_decoder._end()
        os._exit(0 if same and own else 1)

    assert os.waitpid(forked, 0)[1] == 0
    np.testing.assert_array_equal(decode(plain, PIXELS, 16).values[0].T, HU[..., 0])


def test_the_child_ends_with_the_program(plain):
    code = f"""
from pathlib import Path
from scripts.data import dicom_decoder
dicom_decoder.decode(Path({str(plain)!r}), {PIXELS}, 16)
print(dicom_decoder._running.process.pid, flush=True)
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True)
    process = int(killed.stdout)

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _lives(process):
        time.sleep(0.05)
    assert not _lives(process)


def _lives(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


# ---- a case among others


def test_a_series_that_ends_its_decoder_fails_alone(tmp_path, monkeypatch, aborting):
    scans = tmp_path / "scans"
    for name in "abc":
        compressed(scans / name)
    with_tags(scans / "b" / "0002.dcm", PatientComments="ends its decoder")

    def decoded(file, *limits):
        ends = "PatientComments" in pydicom.dcmread(file, stop_before_pixels=True)
        return decode(aborting if ends else file, *limits)

    monkeypatch.setattr("scripts.data.dicom_pixels.decode", decoded)
    found = CaseDataset(inference_inputs(scans), lambda item: {"image": _WithMeta(item["image"])})

    items = [found[index] for index in range(3)]

    assert [("error" in item) for item in items] == [False, True, False]
    error = items[1]["error"]
    assert "'0002.dcm' cannot be decoded" in error and "by SIGABRT" in error and "\n" not in error
    for index in (0, 2):
        np.testing.assert_array_equal(items[index]["image"].voxels, HU)


class _WithMeta:
    def __init__(self, path: str) -> None:
        self.voxels, self.meta = load_volume(path).voxels, {}


def test_a_stream_of_another_size_than_the_header_says_is_refused(tmp_path, monkeypatch):
    series = compressed(tmp_path / "a")
    other = dicom_decoder.Decoded(np.zeros((1, 8, 8), np.int16), 1.0, -1024.0)
    monkeypatch.setattr("scripts.data.dicom_pixels.decode", lambda *_: other)

    with pytest.raises(DatasetError, match=r"hold \(1, 8, 8\) frames, rows and columns, its header says \(1, 36, 40\)"):
        load_volume(series)
