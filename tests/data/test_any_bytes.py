"""Files of any content: a volume, or an error in words; never a traceback, a hang, or other voxels without a word.

Slow, since each is thousands of files. ``FAULTS_SCALE=0.01`` takes a hundredth of them.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import math
import os
import signal
import zlib
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, JPEGLSLossless, RLELossless
from scripts.data.datalists import inference_inputs
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError, printable
from scripts.inference.corrections import Corrections

from tests.conftest import save_dicom_series

pytestmark = pytest.mark.slow

SCALE = float(os.environ.get("FAULTS_SCALE", "1"))
LONGEST = 120  # seconds for one file, on a busy machine
SHAPE = (9, 8, 7)
VOXELS = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype("<i2")
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def many(number: int):
    return settings(
        max_examples=max(20, math.ceil(number * SCALE)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )


class Hang(BaseException):
    pass


def outcome(read) -> str:
    """What becomes of a file: "same", "different", "refused"; anything else is an error of the program."""

    def late(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    faulthandler.dump_traceback_later(2 * LONGEST, exit=True)  # of a hang in a library, which sees no signal
    try:
        volume = read()
    except (DatasetError, FileNotFoundError) as error:
        assert str(error) and str(error) == printable(error)
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if not hasattr(volume, "voxels"):
        return "read"
    same = volume.voxels.shape == SHAPE and np.array_equal(volume.voxels, VOXELS)
    return "same" if same and np.allclose(volume.affine, AFFINE, atol=1e-4) else "different"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("any")


@pytest.fixture
def counts():
    """Of outcomes, printed after each test: run with ``-s``."""
    counts: dict[str, Counter] = {}
    yield counts
    for kind, each in counts.items():
        print(f"\n{kind}: {dict(each)}")


def nifti() -> bytes:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    image.header["vox_offset"] = 352
    return image.header.binaryblock + bytes(4) + VOXELS.tobytes(order="F")


changes = st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=8)


@many(10_000)
@given(changed=changes, compressed=st.booleans())
def test_any_header_of_a_nifti(folder, counts, changed, compressed):
    content = bytearray(nifti())
    for place, value in changed:
        content[place] = value
    path = folder / ("a.nii.gz" if compressed else "a.nii")
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    # a header is covered by no checksum: other numbers in it mean another volume
    counts.setdefault("NIfTI headers", Counter())[outcome(lambda: load_volume(path))] += 1


@pytest.fixture(scope="module")
def checked() -> dict[str, bytes]:
    """Files of which a checksum covers every voxel, and where that begins."""
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "CompressedData = True", "Offset = 0 0 0"]
    lines += ["TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 2 2 5", f"DimSize = {' '.join(map(str, SHAPE))}"]
    header = "\n".join([*lines, "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]).encode()
    nrrd = ["NRRD0005", "type: short", "dimension: 3", "space: LPS", f"sizes: {' '.join(map(str, SHAPE))}"]
    nrrd += ["space directions: (2,0,0) (0,2,0) (0,0,5)", "endian: little", "encoding: gzip", "", ""]
    data = VOXELS.tobytes(order="F")
    return {
        "a.nii.gz": gzip.compress(nifti(), 6),
        "b.nii.gz": gzip.compress(nifti(), 0),
        "a.mha": header + zlib.compress(data),
        "a.nrrd": "\n".join(nrrd).encode() + gzip.compress(data),
    }


@pytest.mark.parametrize("name", ["a.nii.gz", "b.nii.gz", "a.mha", "a.nrrd"])
@many(1_000)
@given(data=st.data())
def test_no_flipped_bit_under_a_checksum_changes_a_voxel_without_a_word(folder, counts, checked, name, data):
    content = bytearray(checked[name])
    start = 0 if name.endswith("gz") else len(content) - len(zlib.compress(VOXELS.tobytes(order="F")))
    place = data.draw(st.integers(start, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)

    found = outcome(lambda: load_volume(folder / name))

    counts.setdefault(f"flipped bits, {name}", Counter())[found] += 1
    assert found in ("same", "refused")


@many(1_000)
@given(
    content=st.binary(max_size=600), name=st.sampled_from(["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.dcm"])
)
def test_any_bytes_under_the_name_of_a_volume(folder, counts, content, name):
    (folder / name).write_bytes(content)
    found = outcome(lambda: load_volume(folder / name))
    counts.setdefault("any bytes", Counter())[found] += 1
    assert found == "refused"


WHOLE = (
    *("ObjectType = Image", "NDims = 3", "BinaryData = True", "TransformMatrix = 1 0 0 0 1 0 0 0 1"),
    *("Offset = 0 0 0", "ElementSpacing = 2 2 5", "DimSize = 9 8 7", "ElementType = MET_SHORT"),
)
lines = st.sampled_from(
    [
        *("NDims = 3", "NDims = -1", "DimSize = 9 8 7", "DimSize = 0 0 0", "DimSize = 99999999 9 9", "DimSize = x"),
        *("ElementType = MET_SHORT", "ElementType = MET_UCHAR", "ElementType = MET_OTHER", "CompressedData = True"),
        *("ElementSpacing = 2 2 5", "ElementSpacing = 0 0 0", "ElementSpacing = nan 1 1", "HeaderSize = -1"),
        *("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 2 3", "ElementNumberOfChannels = 2"),
        *("BinaryData = False", "ElementNumberOfChannels = x", "HeaderSize = 5", "Offset = 1 2"),
    ]
)


@many(1_000)
@given(header=st.lists(lines, max_size=4), place=st.sampled_from(["LOCAL", "LIST", "a.mha", "..", "%d.raw 1 9 1", ""]))
def test_any_header_of_a_metaimage(folder, counts, header, place):
    fields = dict(line.split(" = ") for line in [*WHOLE, *header])
    text = "\n".join([*map(" = ".join, fields.items()), f"ElementDataFile = {place}", ""]).encode()
    (folder / "h.mha").write_bytes(text + VOXELS.tobytes(order="F"))
    counts.setdefault("MetaImage headers", Counter())[outcome(lambda: load_volume(folder / "h.mha"))] += 1


@pytest.fixture(scope="module")
def series(folder) -> tuple[Path, bytes]:
    tags = {"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
    path = save_dicom_series(folder / "series", VOXELS, **tags)
    return path, (path / "0003.dcm").read_bytes()


@many(2_000)
@given(data=st.data())
def test_any_header_of_a_dicom_slice(series, counts, data):
    path, raw = series
    content = bytearray(raw)
    pixels = len(raw) - VOXELS[..., 0].nbytes
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, pixels - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 9)) == 0:
        content = content[: data.draw(st.integers(0, len(content)))]
    (path / "0003.dcm").write_bytes(content)

    counts.setdefault("DICOM headers", Counter())[outcome(lambda: load_volume(path))] += 1


@pytest.fixture(scope="module")
def streams(folder) -> dict[str, tuple[Path, bytes]]:
    """One slice in each compression that there is an encoder for."""
    found = {}
    for syntax in (RLELossless, JPEGLSLossless):
        tags = {"SOPClassUID": CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}
        path = save_dicom_series(folder / syntax.keyword, VOXELS[..., :1], **tags) / "0000.dcm"
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path, enforce_file_format=True)
        found[syntax.keyword] = path, path.read_bytes()
    return found


@pytest.mark.parametrize("name", ["RLELossless", "JPEGLSLossless"])
@many(1_000)
@given(data=st.data())
def test_any_stream_of_a_compressed_dicom_slice(streams, counts, name, data):
    path, raw = streams[name]
    content = bytearray(raw)
    start = raw.rindex(b"\xe0\x7f\x10\x00")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(start, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.integers(0, 9)) == 0:
        content = content[: data.draw(st.integers(start, len(content)))]
    path.write_bytes(content)

    # no checksum covers such a stream: other bits are other voxels; one slice is never the "same" as all of them
    counts.setdefault(f"compressed DICOM, {name}", Counter())[outcome(lambda: load_volume(path))] += 1


elements = st.dictionaries(
    st.sampled_from(
        [
            *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
            *("SamplesPerPixel", "PixelPaddingValue", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
            *("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "Modality"),
        ]
    ),
    st.one_of(
        st.integers(-3, 2**31),
        st.sampled_from(
            ["", "x", "PALETTE COLOR", "MONOCHROME1", "RGB", "1e300", "0,5", "nan", [0, 0], [0] * 6, [1e9] * 3]
        ),
    ),
    min_size=1,
    max_size=4,
)


@many(2_000)
@given(changed=elements)
def test_any_elements_of_a_dicom_slice(series, counts, changed):
    path, raw = series
    dataset = pydicom.dcmread(io.BytesIO(raw))
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        for keyword, value in changed.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path / "0003.dcm")
    except Exception:  # nothing that can be written
        return
    finally:
        pydicom.config.settings.writing_validation_mode = mode
    for where in (path, path / "0003.dcm"):
        counts.setdefault("DICOM elements", Counter())[outcome(lambda where=where: load_volume(where))] += 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keyed = st.fixed_dictionaries(
    {},
    optional={
        "cases": values | st.dictionaries(st.text(max_size=4), st.lists(values, max_size=3), max_size=3),
        "coordinates": values | st.sampled_from(["voxel", "LPS"]),
        "test": values | st.lists(st.text(max_size=8) | st.fixed_dictionaries({"image": values, "case": values})),
    },
)


@many(2_000)
@given(content=st.one_of(values, keyed), cut=st.integers(0, 400))
def test_any_json_of_inputs_and_corrections(folder, counts, content, cut):
    path = folder / "any.json"
    text = json.dumps(content)
    path.write_text(text if cut > 300 else text[:cut], encoding="utf-8", errors="surrogatepass")
    for read in (lambda: inference_inputs(path), lambda: Corrections(path, ["liver"])):
        counts.setdefault("JSON", Counter())[outcome(read)] += 1
