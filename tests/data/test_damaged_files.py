"""Damaged and hostile files of volumes: read as they are, or refused; never other voxels without a word."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import time
import zlib
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from scripts.data.volumes import files_of, load_volume
from scripts.errors import DatasetError

from tests.conftest import save_volume

SHAPE = (12, 11, 9)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype("<i2")
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
RAW = VOXELS.tobytes(order="F")


def outcome(path: Path, **options) -> str:
    """What becomes of a file: "same", "different", or the message with which it is refused."""
    try:
        volume = load_volume(path, **options)
    except DatasetError as error:
        return str(error)
    same = volume.voxels.shape == SHAPE and np.array_equal(volume.voxels, VOXELS)
    return "same" if same else "different"


def nifti(**fields) -> bytes:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    for name, value in ({"vox_offset": 352} | fields).items():
        image.header[name] = value
    return image.header.binaryblock + bytes(4) + RAW


def metaimage(path: Path, data: bytes = RAW, place: str = "LOCAL", **fields) -> Path:
    header = {"ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False}
    header |= {"TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "2 2 5"}
    header |= {"DimSize": " ".join(map(str, SHAPE)), "ElementType": "MET_SHORT", **fields, "ElementDataFile": place}
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    path.write_bytes(text.encode() + (data if place == "LOCAL" else b""))
    return path


def nrrd(path: Path, data: bytes = RAW, **fields) -> Path:
    header = {"type": "short", "dimension": 3, "space": "left-posterior-superior", "sizes": " ".join(map(str, SHAPE))}
    header |= {"space directions": "(2,0,0) (0,2,0) (0,0,5)", "endian": "little", "encoding": "raw", **fields}
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in header.items()) + "\n"
    path.write_bytes(text.encode() + data)
    return path


def compressed(folder: Path, kind: str) -> Path:
    """The same volume in a format with a checksum."""
    if kind == "nii.gz":
        path = folder / "a.nii.gz"
        path.write_bytes(gzip.compress(nifti(), 1))
        return path
    if kind == "stored nii.gz":
        path = folder / "a.nii.gz"
        path.write_bytes(gzip.compress(nifti(), 0))
        return path
    if kind == "mha":
        data = zlib.compress(RAW)
        return metaimage(folder / "a.mha", data, CompressedData=True, CompressedDataSize=len(data))
    if kind == "mhd":
        (folder / "a.zraw").write_bytes(zlib.compress(RAW))
        return metaimage(folder / "a.mhd", place="a.zraw", CompressedData=True)
    if kind == "nrrd":
        return nrrd(folder / "a.nrrd", gzip.compress(RAW), encoding="gzip")
    (folder / "a.raw.gz").write_bytes(gzip.compress(RAW))
    return nrrd(folder / "a.nhdr", b"", encoding="gzip", **{"data file": "a.raw.gz"})


COMPRESSED = ["nii.gz", "stored nii.gz", "mha", "mhd", "nrrd", "nhdr"]


def data_file(path: Path) -> Path:
    """The file with the voxels."""
    return files_of(path)[-1]


@pytest.mark.parametrize("kind", COMPRESSED)
def test_an_undamaged_file_is_read(tmp_path, kind):
    assert outcome(compressed(tmp_path, kind)) == "same"


@pytest.mark.parametrize("kind", COMPRESSED)
def test_no_flipped_bit_that_a_checksum_covers_changes_voxels_without_a_word(tmp_path, kind):
    header = compressed(tmp_path, kind)
    path = data_file(header)
    content, random = path.read_bytes(), np.random.default_rng(0)
    start = max(len(content) - len(zlib.compress(RAW)) + 4, 12)  # behind any header in text
    found = []
    for position in random.integers(start, len(content), 40):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        found.append(outcome(header))

    assert "different" not in found
    assert sum("compressed data are damaged" in text or "ends too early" in text for text in found) > 30


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_says_so(tmp_path, kind, share):
    path = compressed(tmp_path, kind)
    data = data_file(path)
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])

    assert "cannot be read" in outcome(path)


PLANE = RAW[: len(RAW) // SHAPE[2]]
AMOUNTS = {
    "nii, a plane fewer": lambda folder: write(folder / "a.nii", nifti()[: -len(PLANE)]),
    "nii, a plane more": lambda folder: write(folder / "a.nii", nifti() + PLANE),
    "nii.gz, a plane fewer": lambda folder: write(folder / "a.nii.gz", gzip.compress(nifti()[: -len(PLANE)])),
    "nii.gz, a plane more": lambda folder: write(folder / "a.nii.gz", gzip.compress(nifti() + PLANE)),
    "nii.gz, far more than it can hold": lambda folder: write(folder / "a.nii.gz", claim((32767,) * 3)),
    "nii, far more than it can hold": lambda folder: write(folder / "a.nii", gzip.decompress(claim((32767,) * 3))),
    "mha, a plane fewer": lambda folder: metaimage(folder / "a.mha", RAW[: -len(PLANE)]),
    "mha, a plane more": lambda folder: metaimage(folder / "a.mha", RAW + PLANE),
    "mha, compressed, a plane more": lambda folder: metaimage(
        folder / "a.mha", zlib.compress(RAW + PLANE), CompressedData=True
    ),
    "mha, far more": lambda folder: metaimage(folder / "a.mha", DimSize="60000 60000 60000"),
    "nrrd, a plane fewer": lambda folder: nrrd(folder / "a.nrrd", RAW[: -len(PLANE)]),
    "nrrd, a plane more": lambda folder: nrrd(folder / "a.nrrd", RAW + PLANE),
    "nrrd, gzip, a plane fewer": lambda folder: nrrd(
        folder / "a.nrrd", gzip.compress(RAW[: -len(PLANE)]), encoding="gzip"
    ),
    "nrrd, gzip, a plane more": lambda folder: nrrd(folder / "a.nrrd", gzip.compress(RAW + PLANE), encoding="gzip"),
}


# headers whose numbers would keep the reader busy, or lead it beside the voxels
NUMBERS = {
    "nii, an infinite slope": lambda folder: write(folder / "a.nii", nifti(scl_slope=np.inf)),
    "nii, metres for millimetres": lambda folder: write(folder / "a.nii", metres(nifti())),
    "nii, a grain of dust": lambda folder: write(folder / "a.nii", nifti(srow_x=[1e-9, 0, 0, 0])),
    "nii.gz, a bomb behind the voxels": lambda folder: write(folder / "a.nii.gz", gzip.compress(nifti() + BOMB, 1)),
    "nrrd, a bomb": lambda folder: nrrd(folder / "a.nrrd", gzip.compress(RAW + BOMB, 1), encoding="gzip"),
    "mha, a bomb": lambda folder: metaimage(folder / "a.mha", zlib.compress(RAW + BOMB, 1), CompressedData=True),
    "nrrd, lines without end": lambda folder: nrrd(folder / "a.nrrd", **{"line skip": 10**12}),
    "nrrd, a byte before the voxels": lambda folder: nrrd(folder / "a.nrrd", **{"byte skip": -2}),
    "nrrd, a direction that is missing": lambda folder: nrrd(
        folder / "a.nrrd", **{"space directions": "(2,0,0) none (0,0,5)"}
    ),
    "nhdr, files without end": lambda folder: nrrd(folder / "a.nhdr", **{"data file": f"a%d.raw 0 {10**30} 1"}),
    "mhd, files without end": lambda folder: metaimage(folder / "a.mhd", place=f"a%d.raw 0 {10**30} 1"),
}
BOMB = bytes(64 << 20)


def metres(content: bytes) -> bytes:
    """The same NIfTI file in metres; its unit stands at byte 123."""
    return content[:123] + b"\x01" + content[124:]


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_cannot_be_meant_are_refused_at_once(tmp_path, make):
    path = make(tmp_path)
    began = time.process_time()

    assert "a." in outcome(path)
    assert time.process_time() - began < 5


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def claim(shape) -> bytes:
    return gzip.compress(nifti(dim=[3, *shape, 1, 1, 1, 1]))


@pytest.mark.parametrize("make", AMOUNTS.values(), ids=AMOUNTS)
def test_fewer_or_more_voxels_than_declared_are_reported(tmp_path, make):
    message = outcome(make(tmp_path))
    assert "cannot be read" in message and ("ends too early" in message or "more voxels than" in message), message


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"NDims": -1}, "NDims -1, and the sizes of 3 axes"),  # of which ITK never ends to make room
        ({"NDims": 99999999}, "NDims 99999999"),
        ({"NDims": "x"}, "NDims x"),
        ({"NDims": 2}, "NDims 2"),
        ({"Offset": "1 2"}, "'1 2' for offset"),
        ({"ElementSpacing": "2 2"}, "'2 2' for elementspacing"),
        ({"ElementSpacing": "nan 1 1"}, "'nan 1 1' for elementspacing"),
        ({"TransformMatrix": "1 2 3"}, "expected 9 finite numbers"),
        ({"TransformMatrix": "a b c d e f g h i"}, "expected 9 finite numbers"),
        ({"elementspacing": "1 1 1"}, "expected 'ElementSpacing' in these capitals"),
        ({"ndims": -1}, "expected 'NDims' in these capitals"),
    ],
    ids=str,
)
def test_numbers_of_a_metaimage_header_are_compared_with_its_axes(tmp_path, fields, said):
    assert said in outcome(metaimage(tmp_path / "a.mha", **fields))


TEXT = " ".join(map(str, VOXELS.ravel(order="F")))
WRITTEN_OUT = {
    "MetaImage": lambda path, text: metaimage(path / "a.mha", f"{text}\n".encode(), BinaryData=False),
    "NRRD": lambda path, text: nrrd(path / "a.nrrd", text.encode(), encoding="ascii"),
}


@pytest.mark.parametrize("kind", WRITTEN_OUT)
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda text: text, "same"),
        (lambda text: text.replace(" ", "\n"), "same"),
        (lambda text: text[: len(text) // 2].rsplit(" ", 1)[0], "ends too early"),
        (lambda text: text + " 1 2", "more voxels than its header declares"),
        (lambda text: text.replace(" ", " x", 1), "a part is no number"),
    ],
    ids=["whole", "in lines", "fewer", "more", "letters"],
)
def test_voxels_that_are_written_out_are_counted(tmp_path, kind, change, said):
    assert said in outcome(WRITTEN_OUT[kind](tmp_path, change(TEXT)))


@pytest.mark.parametrize("change, said", [("", "same"), ("00", "more voxels"), ("cut", "ends too early")])
def test_voxels_in_hexadecimal_are_counted(tmp_path, change, said):
    text = RAW.hex()[: -8 if change == "cut" else None] + (change if change != "cut" else "")
    assert said in outcome(nrrd(tmp_path / "a.nrrd", text.encode(), encoding="hex"))


@pytest.mark.parametrize("by", [-1, 1, 99_999, None])
def test_another_size_of_compressed_voxels_than_there_is_is_refused(tmp_path, by):
    """ITK reads as much as the header says, and leaves the rest of the voxels as it found the memory."""
    data = zlib.compress(RAW)
    stated = 0 if by is None else len(data) + by

    found = outcome(metaimage(tmp_path / "a.mha", data, CompressedData=True, CompressedDataSize=stated))

    assert f"states {stated} bytes of compressed voxels (CompressedDataSize), of which there are {len(data)}" in found


def test_zeros_that_fill_up_a_block_are_no_voxels(tmp_path):
    assert outcome(write(tmp_path / "a.nii.gz", gzip.compress(nifti() + bytes(200)))) == "same"


@pytest.mark.parametrize("name, content", [("a.nii", gzip.compress(nifti())), ("a.nii.gz", nifti())])
def test_what_is_compressed_is_seen_by_the_content_and_not_by_the_name(tmp_path, name, content):
    assert outcome(write(tmp_path / name, content)) == "same"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"x", b"\x1f\x8b", b"\x1f\x8b\x08broken", b"<html>" * 100, bytes(400)])
def test_what_is_no_nifti_says_so(tmp_path, name, content):
    assert "expected a complete NIfTI file" in outcome(write(tmp_path / name, content))


# ---- headers that name other files


def secret(folder: Path) -> Path:
    """A folder for the header, with a file of the right size beside it, not in it."""
    (folder / "in").mkdir()
    (folder / "secret.raw").write_bytes(RAW)
    (folder / "in" / "a.raw").write_bytes(RAW)
    os.symlink(folder / "secret.raw", folder / "in" / "link.raw")
    os.mkfifo(folder / "in" / "pipe.raw")
    return folder / "in"


ELSEWHERE = {
    "absolute": "/etc/passwd",
    "above": "../secret.raw",
    "around": "x/../../secret.raw",
    "a link that leads out": "link.raw",
    "a device": "/dev/zero",
    "a pipe": "pipe.raw",
    "a folder": ".",
    "not there": "missing.raw",
    "a list without names": "LIST",
    "a list that leads out": "LIST\n../secret.raw",
    "a list of too few": "LIST\na.raw\na.raw",
    "a pattern without end": "%03d.raw 1 999999999 1",
    "a pattern that leads out": "../secret%0.0s.raw 1 2 1",
    "a pattern that fills memory": "%0999999999d.raw 1 2 1",
}


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("kind", ["mhd", "nhdr"])
def test_headers_name_nothing_but_files_in_their_own_folder(tmp_path, place, kind):
    folder = secret(tmp_path)
    if kind == "mhd":
        path = metaimage(folder / "a.mhd", place=place)
    else:
        path = nrrd(folder / "a.nhdr", b"", **{"data file": place})

    message = outcome(path)

    assert message not in ("same", "different") and f"'{path}'" in message
    assert files_of(path) == [path] or all(folder in file.parents for file in files_of(path))


@pytest.mark.parametrize("place", ["a.raw", "sub/a.raw"])
def test_a_file_in_or_below_the_folder_of_its_header_is_read(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(RAW)
    assert outcome(metaimage(tmp_path / "a.mhd", place=place)) == "same"
    assert outcome(nrrd(tmp_path / "a.nhdr", b"", **{"data file": place})) == "same"


def test_a_list_of_planes_is_read(tmp_path):
    names = [f"plane{index}.raw" for index in range(SHAPE[2])]
    for index, name in enumerate(names):
        (tmp_path / name).write_bytes(RAW[index * len(PLANE) : (index + 1) * len(PLANE)])
    for place in (
        "LIST\n" + "\n".join(names),
        "LIST 2\n" + "\n".join(names) + "\n\n",
        f"plane%d.raw 0 {SHAPE[2] - 1} 1",
    ):
        path = metaimage(tmp_path / "a.mhd", place=place)
        assert outcome(path) == "same" and len(files_of(path)) == 1 + SHAPE[2]


# by which ITK would read a slice from each file, and take what is in memory for the others
NO_SLICE_EACH = {
    "all slices in a file": ("LIST\nall.raw", "names 1 file by 'LIST' for 9 slices"),
    "three slices a file": ("LIST\npart0.raw\npart1.raw\npart2.raw", "names 3 files by 'LIST' for 9 slices"),
    "three slices a file, by number": ("part%d.raw 0 2 1", "names 3 files by 'part%d.raw 0 2 1' for 9 slices"),
    "a number too many": ("plane%d.raw 0 8 1 2", "by 'plane%d.raw 0 8 1 2', expected a pattern such as"),
    "numbers that go down": ("part%d.raw 2 0 -1", "counts the files with its voxels down"),
    "volumes": ("LIST 3\nall.raw", "names the files with its voxels by 'LIST 3', expected 'LIST'"),
    "a stated dimension that is none": ("LIST x\nall.raw", "names the files with its voxels by 'LIST x'"),
    "an empty line": ("LIST\n\nall.raw", "has an empty line among the names"),
}


@pytest.mark.parametrize("place, said", NO_SLICE_EACH.values(), ids=NO_SLICE_EACH)
def test_files_of_a_metaimage_that_do_not_hold_a_slice_each_are_refused(tmp_path, place, said):
    (tmp_path / "all.raw").write_bytes(RAW)
    for index in range(3):
        (tmp_path / f"part{index}.raw").write_bytes(RAW[index * 3 * len(PLANE) : (index + 1) * 3 * len(PLANE)])

    message = outcome(metaimage(tmp_path / "a.mhd", place=place))

    assert said in message and str(tmp_path / "a.mhd") in message


KEYS = ["TransformMatrix", "ElementSpacing", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "Offset", "DimSize"]
KEYS += ["CompressedData", "ElementType", "ElementToIntensityFunctionSlope", "DistanceUnits", "HeaderSize"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("other", [str.lower, str.upper])
def test_a_key_of_a_metaimage_in_other_capitals_is_refused(tmp_path, key, other):
    path = metaimage(tmp_path / "a.mha", **({} if key in metaimage_text(tmp_path) else {key: "1"}))
    head, tail = path.read_bytes().split(b"LOCAL\n", 1)
    path.write_bytes(head.replace(key.encode() + b" =", other(key).encode() + b" =") + b"LOCAL\n" + tail)

    assert f"its header has '{other(key)}', expected '{key}' in these capitals" in outcome(path)


def metaimage_text(folder: Path) -> str:
    return metaimage(folder / "a.mha", b"").read_text()


@pytest.mark.parametrize("key", ["My.Key", "dicom_tag", "comment", "NAME"])
def test_other_keys_of_a_metaimage_are_passed_over(tmp_path, key):
    assert outcome(metaimage(tmp_path / "a.mha", **{key: "1"})) == "same"


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("compression", [True, False])
def test_what_itk_writes_is_read(tmp_path, suffix, compression):
    image = itk.image_from_array(np.ascontiguousarray(VOXELS.T))
    image.SetSpacing([2, 2, 5])
    itk.imwrite(image, str(tmp_path / f"a{suffix}"), compression=compression)
    assert outcome(tmp_path / f"a{suffix}") == "same"


@pytest.mark.parametrize("name", ["A.MHA", "A.Mha", "A.MHD", "A.NRRD", "A.NHDR"])
def test_a_name_may_end_in_capitals(tmp_path, name):
    (tmp_path / "a.raw").write_bytes(RAW)
    apart = name.upper() in ("A.MHD", "A.NHDR")
    if "M" in name:
        path = metaimage(tmp_path / name, place="a.raw" if apart else "LOCAL")
    else:
        path = nrrd(tmp_path / name, b"" if apart else RAW, **({"data file": "a.raw"} if apart else {}))
    assert outcome(path) == "same"


def test_the_type_of_voxels_must_be_known(tmp_path):
    assert "voxels of type 'block'" in outcome(nrrd(tmp_path / "a.nrrd", type="block"))
    assert "encoding 'zip'" in outcome(nrrd(tmp_path / "a.nrrd", encoding="zip"))
    assert "sizes in its header are '4 x 2'" in outcome(nrrd(tmp_path / "a.nrrd", sizes="4 x 2"))
    assert "encoding 'bzip2', expected" in outcome(nrrd(tmp_path / "a.nrrd", bz2.compress(RAW), encoding="bzip2"))


def test_a_scale_in_a_metaimage_header_is_applied(tmp_path):
    scale = {"ElementToIntensityFunctionSlope": 2, "ElementToIntensityFunctionOffset": -1024}
    volume = load_volume(metaimage(tmp_path / "a.mha", **scale))
    np.testing.assert_array_equal(volume.voxels, VOXELS * 2.0 - 1024)
    assert "expected finite numbers" in outcome(metaimage(tmp_path / "a.mha", ElementToIntensityFunctionSlope="x"))
    assert outcome(metaimage(tmp_path / "a.mha", ElementToIntensityFunctionSlope=0)) == "same"  # none, as in NIfTI


def test_two_orders_of_bytes_are_refused(tmp_path):
    assert "two orders of bytes" in outcome(metaimage(tmp_path / "a.mha", ElementByteOrderMSB=True))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"dimension": 4, "sizes": "2 12 11 9", "kinds": "vector domain domain domain"}, "voxels of 2 values"),
        (
            {"dimension": 4, "sizes": "12 11 9 2", "kinds": "domain domain domain list"},
            "one of its axes is a list of 2",
        ),
        ({"dimension": 4, "sizes": "12 11 9 3", "kinds": "domain domain domain RGB-color"}, "voxels of 3 values"),
        ({"dimension": 4, "sizes": "12 11 9 1", "kinds": "domain domain domain list"}, "no images of 4 dimensions"),
    ],
)
def test_what_itk_cannot_hold_is_told_in_words(tmp_path, fields, said):
    data = bytes(2 * math.prod(map(int, fields["sizes"].split())))
    directions = "(2,0,0) (0,2,0) (0,0,5)"
    directions = f"none {directions}" if fields["kinds"].startswith("vector") else f"{directions} none"
    assert said in outcome(nrrd(tmp_path / "a.nrrd", data, **{"space directions": directions}, **fields))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_voxels_do_not_begin_within_the_header(tmp_path, compress):
    """An image that ends in zeros would be moved by the length of the header, with nothing left but zeros."""
    path = tmp_path / ("a.nii" if compress is bytes else "a.nii.gz")
    data = np.where(np.arange(VOXELS.size) < VOXELS.size - 352, VOXELS.ravel(order="F"), 0).astype("<i2").tobytes()
    path.write_bytes(compress(nifti(vox_offset=0)[:352] + data))
    assert "voxels begin at byte 0 (vox_offset), which is within the header, expected 352 at least" in outcome(path)


# ---- units, and two statements of one place


@pytest.mark.parametrize(
    "unit, factor", [("mm", 1), ("cm", 10), ("m", 1000), ("um", 0.001), ("millimeter", 1), ("centimeters", 10)]
)
def test_units_of_an_nrrd_header_are_honoured(tmp_path, unit, factor):
    directions = " ".join(
        "(" + ",".join(f"{size / factor:.9g}" if axis == other else "0" for other in range(3)) + ")"
        for axis, size in enumerate((2, 2, 5))
    )
    fields = {"space directions": directions, "space units": " ".join([f'"{unit}"'] * 3)}
    volume = load_volume(nrrd(tmp_path / "a.nrrd", **fields, **{"space origin": "(0,0,0)"}))
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize("units", ['"inch" "inch" "inch"', '"mm" "mm" "cm"', '"s" "s" "s"'])
def test_other_units_of_an_nrrd_header_are_refused(tmp_path, units):
    assert "its header measures in" in outcome(nrrd(tmp_path / "a.nrrd", **{"space units": units}))


@pytest.mark.parametrize("unit, factor", [("mm", 1), ("cm", 10), ("m", 1000)])
def test_units_of_a_metaimage_header_are_honoured(tmp_path, unit, factor):
    spacing = " ".join(f"{size / factor:.9g}" for size in (2, 2, 5))
    volume = load_volume(metaimage(tmp_path / "a.mha", ElementSpacing=spacing, DistanceUnits=unit))
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)


def forms(path: Path, sform: np.ndarray, qform: np.ndarray, codes=(1, 1)) -> Path:
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms(nib.affines.voxel_sizes(qform))
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    nib.save(image, path)
    return path


FLIPPED = np.diag([-1.0, 1, 1, 1]) @ AFFINE
SHIFTED = AFFINE + np.array([[0, 0, 0, 30], [0, 0, 0, 20], [0, 0, 0, 10], [0, 0, 0, 0]])
SHEARED = AFFINE + np.array([[0, 0, 0, 0], [0, 0, 1.2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
WIDER = AFFINE @ np.diag([1.1, 1, 1, 1])


FEET_FIRST = np.diag([-1.0, 1, -1, 1]) @ AFFINE
PRONE = np.diag([-1.0, -1, 1, 1]) @ AFFINE
CORONAL = AFFINE[[0, 2, 1, 3]]


def turned(degrees: float) -> np.ndarray:
    """The grid, nodding."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ AFFINE


@pytest.mark.parametrize(
    "qform, codes",
    [
        *((qform, (1, 1)) for qform in (FLIPPED, SHIFTED, WIDER)),
        *((qform, (2, 1)) for qform in (FLIPPED, FEET_FIRST, PRONE, CORONAL, turned(90), turned(60), WIDER)),
        *((qform, (4, 1)) for qform in (FLIPPED, FEET_FIRST, PRONE, CORONAL, turned(90))),
        *((qform, (1, 2)) for qform in (PRONE, WIDER)),
    ],
)
def test_forms_that_contradict_each_other_are_refused_unless_one_is_trusted(tmp_path, qform, codes):
    path = forms(tmp_path / "a.nii.gz", AFFINE, qform, codes)

    message = outcome(path)
    assert "its sform" in message and "its qform" in message and "--trusted_form" in message
    np.testing.assert_allclose(load_volume(path, trusted_form="sform").affine, AFFINE)
    np.testing.assert_allclose(load_volume(path, trusted_form="qform").affine, qform, atol=1e-5)


@pytest.mark.parametrize(
    "sform, qform, codes",
    [
        (AFFINE, AFFINE, (1, 1)),
        *((SHIFTED, AFFINE, (space, 1)) for space in (2, 3, 4)),  # the place in another image, or an atlas
        *((WIDER, AFFINE, (space, 1)) for space in (3, 4)),  # and its size
        (AFFINE @ np.diag([1.04, 1, 1, 1]), AFFINE, (2, 1)),
        *((turned(30), AFFINE, (space, 1)) for space in (2, 4)),
        (turned(50), turned(40), (2, 1)),  # to each side of where names of axes change
        (SHEARED @ np.diag([1, 1.2, 1, 1]), AFFINE, (2, 1)),  # an alignment that is no movement
        (SHEARED, AFFINE, (1, 1)),  # a qform holds no shear
        (FLIPPED, AFFINE, (1, 0)),  # not stated
    ],
)
def test_forms_that_do_not_contradict_each_other_are_read(tmp_path, sform, qform, codes):
    path = forms(tmp_path / "a.nii.gz", sform, qform, codes)
    np.testing.assert_allclose(load_volume(path).affine, sform, atol=1e-5)


def test_left_and_right_may_not_be_swapped_between_spaces(tmp_path):
    assert "contradict" not in outcome(forms(tmp_path / "a.nii.gz", FLIPPED, AFFINE, (4, 1))) != "same"


# ---- words


def test_what_the_system_refuses_is_told_in_its_words(tmp_path, monkeypatch):
    path = save_volume(tmp_path / "a.nii.gz", VOXELS)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("scripts.data.nifti.open", refuse, raising=False)
    message = outcome(path)
    assert "permission denied" in message and "truncated" not in message


def test_too_little_memory_is_no_truncation(tmp_path, monkeypatch):
    path = save_volume(tmp_path / "a.nii.gz", VOXELS)
    monkeypatch.setattr("scripts.data.nifti.bytearray", lambda size: bytearray(1 << 60), raising=False)
    message = outcome(path)
    assert "does not fit into memory" in message and "truncated" not in message


# ---- what is wrong with the program, and not with a file


def test_a_mistake_in_the_program_is_not_taken_for_a_damaged_file(tmp_path, write_volume, monkeypatch):
    def mistaken(*_):
        raise AttributeError("no such attribute")

    monkeypatch.setattr("scripts.data.volumes.load_nifti", mistaken)
    with pytest.raises(AttributeError, match="no such attribute"):
        load_volume(write_volume(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.int16)))


def test_a_volume_that_memory_cannot_hold_is_not_called_truncated(tmp_path, write_volume, monkeypatch):
    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("scripts.data.volumes.load_nifti", too_large)
    with pytest.raises(DatasetError, match="does not fit into memory") as info:
        load_volume(write_volume(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.int16)))
    assert "truncated" not in str(info.value)
