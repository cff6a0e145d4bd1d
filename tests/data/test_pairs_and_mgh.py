"""NIfTI and Analyze as a header beside its voxels, and FreeSurfer's MGH: what one NIfTI file would hold, or words."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalists import inference_inputs
from scripts.data.volumes import load_volume, volume_digest
from scripts.errors import DatasetError

from tests.data.test_orientations import AXCODES, TILT, reoriented

SHAPE = (5, 7, 4)
VOXELS = np.random.default_rng(3).integers(-1000, 1500, SHAPE).astype(np.int16)
AFFINE = np.eye(4)
AFFINE[:3, :3] = TILT @ np.diag([2.0, 2.5, 5.0])
AFFINE[:3, 3] = (-31.0, 12.0, 200.0)
IMAGE = nib.Nifti1Image(VOXELS, AFFINE)

KINDS = {
    "pair.hdr": nib.Nifti1Pair,
    "pair.hdr.gz": nib.Nifti1Pair,
    "second.hdr": nib.Nifti2Pair,
    "free.mgz": nib.MGHImage,
    "free.mgh": nib.MGHImage,
}
each_kind = pytest.mark.parametrize("name", KINDS)


def save(image: nib.Nifti1Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = next(kind for name, kind in KINDS.items() if path.name.endswith(name[name.index(".") :]))
    if path.name.startswith("second"):
        kind = nib.Nifti2Pair
    kind(np.asarray(image.dataobj), image.affine).to_filename(path)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        load_volume(path, **options)
    return str(caught.value)


@each_kind
@pytest.mark.parametrize("axcodes", AXCODES)
def test_every_voxel_keeps_its_place_in_all_48_orientations(tmp_path, name, axcodes):
    image = reoriented(IMAGE, axcodes)

    volume = load_volume(save(image, tmp_path / name))

    np.testing.assert_array_equal(volume.voxels, np.asarray(image.dataobj))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
    assert nib.aff2axcodes(volume.affine) == tuple(axcodes)


@each_kind
def test_small_integers_stay_small_integers(tmp_path, name):
    assert load_volume(save(IMAGE, tmp_path / name)).voxels.dtype.newbyteorder("=") == np.int16


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_order_of_bytes(tmp_path, order):
    header = nib.Nifti1Pair.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    nib.Nifti1Pair(VOXELS, AFFINE, header).to_filename(tmp_path / "a.hdr")

    np.testing.assert_array_equal(load_volume(tmp_path / "a.hdr").voxels, VOXELS)


def test_a_scale_factor_is_applied(tmp_path):
    image = nib.Nifti1Pair(VOXELS / 3.0, AFFINE)
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "a.hdr")

    np.testing.assert_allclose(load_volume(tmp_path / "a.hdr").voxels, VOXELS / 3.0, atol=0.05)


def test_metres_count(tmp_path):
    image = nib.Nifti1Pair(VOXELS, np.diag([0.002, 0.002, 0.005, 1]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.hdr")

    assert load_volume(tmp_path / "a.hdr").spacing == pytest.approx((2, 2, 5))


def test_voxels_may_be_compressed_alone(tmp_path):
    path = save(IMAGE, tmp_path / "a.hdr")
    (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "a.img").unlink()

    np.testing.assert_array_equal(load_volume(path).voxels, VOXELS)


@pytest.mark.parametrize("header", ["A.HDR", "A.hdr", "A.HDR.GZ", "A.hdr.gz"])
@pytest.mark.parametrize("voxels", ["A.IMG", "A.img", "A.IMG.GZ", "A.img.gz"])
def test_names_in_capitals(tmp_path, header, voxels):
    """Of one of the two, or of both, as whoever renamed them left them."""
    save(IMAGE, tmp_path / "a.hdr")
    for old, name in (("a.hdr", header), ("a.img", voxels)):
        content = (tmp_path / old).read_bytes()
        (tmp_path / old).unlink()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)

    np.testing.assert_array_equal(load_volume(tmp_path / header).voxels, VOXELS)


def test_a_header_prefers_voxels_that_are_called_like_it(tmp_path):
    save(IMAGE, tmp_path / "A.hdr")
    for name in ("A.IMG", "A.img.gz", "A.IMG.GZ"):
        (tmp_path / name).write_bytes(b"of something else")
    np.testing.assert_array_equal(load_volume(tmp_path / "A.hdr").voxels, VOXELS)


# ---- Analyze, which does not say where left is


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze_is_refused_unless_its_axes_are_told(tmp_path, kind):
    kind(VOXELS, np.diag([-2.0, 2.5, 5.0, 1])).to_filename(tmp_path / "a.hdr")

    assert "does not say where its axes point (it is Analyze" in refusal(tmp_path / "a.hdr")

    volume = load_volume(tmp_path / "a.hdr", default_axcodes="LAS")
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert nib.aff2axcodes(volume.affine) == ("L", "A", "S") and volume.spacing == pytest.approx((2, 2.5, 5))


def test_the_scale_factor_of_spm_is_applied(tmp_path):
    image = nib.Spm2AnalyzeImage(VOXELS, np.diag([-2.0, 2.5, 5.0, 1]))
    image.to_filename(tmp_path / "a.hdr")
    content = bytearray((tmp_path / "a.hdr").read_bytes())
    content[112:116] = np.float32(0.5).tobytes()
    (tmp_path / "a.hdr").write_bytes(content)

    np.testing.assert_array_equal(load_volume(tmp_path / "a.hdr", default_axcodes="LAS").voxels, VOXELS / 2)


# ---- damage


def damaged(path: Path, change) -> Path:
    content = bytearray(path.read_bytes())
    changed = change(content)
    path.write_bytes(content if changed is None else changed)
    return path


def cut(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


@each_kind
def test_fewer_voxels_than_declared_are_refused(tmp_path, name):
    path = save(IMAGE, tmp_path / name)
    voxels = path.with_name(name.replace(".hdr", ".img"))

    message = refusal(path) if damaged(voxels, cut) is None else refusal(path)

    assert str(voxels) in message and ("too early" in message or "damaged" in message)


def test_more_voxels_than_declared_are_refused(tmp_path):
    path = save(IMAGE, tmp_path / "a.hdr")
    damaged(tmp_path / "a.img", lambda content: content + bytes(1) * 999 + b"\1")
    assert "more voxels than its header declares" in refusal(path)


def test_a_footer_of_freesurfer_is_no_voxel(tmp_path):
    path = save(IMAGE, tmp_path / "a.mgh")
    damaged(path, lambda content: content + b"\0\0\0\1\0\0\0\5hello")
    np.testing.assert_array_equal(load_volume(path).voxels, VOXELS)


@pytest.mark.parametrize("name", ["a.mgz", "a.hdr.gz"])
def test_every_flipped_bit_under_a_checksum_is_found(tmp_path, name):
    path = save(IMAGE, tmp_path / name)
    voxels = path.with_name(name.replace(".hdr", ".img"))
    whole = voxels.read_bytes()
    for place in range(12, len(whole), 3):
        voxels.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            volume = load_volume(path)
        except DatasetError:
            continue
        np.testing.assert_array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize(
    "name, said", [("a.hdr", "no header of a NIfTI or Analyze pair"), ("a.mgz", "not as MGH does"), ("a.mgh", "MGH")]
)
@pytest.mark.parametrize("content", [b"", b"text", bytes(400), b"\x1f\x8b", gzip.compress(b"no image", mtime=0)])
def test_something_else_of_that_name(tmp_path, name, said, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "a.img").write_bytes(bytes(8))

    message = refusal(tmp_path / name)

    assert said in message or "too early" in message


def test_a_header_without_voxels(tmp_path):
    path = save(IMAGE, tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    assert "a.img', is not there" in refusal(path)


def test_a_pipe_in_place_of_voxels(tmp_path):
    path = save(IMAGE, tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    os.mkfifo(tmp_path / "a.img")
    assert "a.img', is not there" in refusal(path)


def test_mgh_that_does_not_state_its_grid(tmp_path):
    path = damaged(save(IMAGE, tmp_path / "a.mgh"), lambda content: content[:28] + b"\0\0" + content[30:])
    assert "does not say how far voxels are apart" in refusal(path)


@pytest.mark.parametrize("name", ["a.hdr", "a.mgz"])
def test_several_volumes_in_one_file(tmp_path, name):
    save(nib.Nifti1Image(np.stack([VOXELS, VOXELS], -1), AFFINE), tmp_path / name)
    assert "expected one volume of three dimensions" in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["RGB", "complex"])
def test_voxels_of_several_values(tmp_path, kind):
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if kind == "RGB" else np.complex64
    nib.Nifti1Pair(np.zeros(SHAPE, dtype), AFFINE).to_filename(tmp_path / "a.hdr")
    assert "expected one real number a voxel" in refusal(tmp_path / "a.hdr")


# ---- in a folder


def test_a_pair_is_one_image_and_both_of_its_files_count(tmp_path):
    for name in ("pair.hdr", "free.mgz", "zipped.hdr.gz"):
        save(IMAGE, tmp_path / name)

    items = inference_inputs(tmp_path)

    assert {item["case"]: os.path.basename(item["image"]) for item in items} == {
        "free": "free.mgz",
        "pair": "pair.hdr",
        "zipped": "zipped.hdr.gz",
    }
    assert not any("problem" in item for item in items)
    before = volume_digest(tmp_path / "pair.hdr")
    damaged(tmp_path / "pair.img", lambda content: content[:-1] + b"\7")
    assert volume_digest(tmp_path / "pair.hdr") != before
