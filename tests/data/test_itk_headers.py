"""Headers of MetaImage and NRRD that ITK understands in its own way: the voxels that are meant, or words."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from scripts.data.volumes import load_volume

from tests.data.test_damaged_files import AFFINE, RAW, SHAPE, VOXELS, metaimage, nrrd, outcome

TURNED = "-1 0 0 0 1 0 0 0 1"
ALIKE = "1 0 0 0 1 0 0 0 1.00000001"


# ---- where the voxels begin


def text_of(voxels: np.ndarray) -> bytes:
    return (" ".join(map(str, voxels.ravel(order="F"))) + "\n").encode()


PACKED = {
    "raw": (lambda voxels: voxels.tobytes(order="F"), {}),
    "zlib": (lambda voxels: zlib.compress(voxels.tobytes(order="F")), {"CompressedData": True}),
    "text": (text_of, {"BinaryData": False}),
}
JUNK = b"7 7 7 7 "


def placed(folder: Path, place: str, packing: str, *, junk: bytes = b"", behind: bytes = b"", **fields) -> Path:
    """The voxels behind the header, in a file of their own, or a slice a file, with something before and behind them.

    ``HeaderSize="own"`` stands for how long the header itself is, and ``CompressedDataSize="own"`` for what there is.
    """
    pack, stated = PACKED[packing]
    whole = pack(VOXELS)
    if fields.get("CompressedDataSize") == "own":
        fields["CompressedDataSize"] = len(whole)
    data = junk + whole + behind
    if place != "behind the header" and fields.get("HeaderSize") == "own":
        fields["HeaderSize"] = 0  # of the header, which is in a file of its own, nothing is to be left out
    if place == "a list":
        for index in range(SHAPE[2]):
            (folder / f"{index}.dat").write_bytes(junk + pack(VOXELS[..., index]) + behind)
        names = "\n".join(f"{index}.dat" for index in range(SHAPE[2]))
        return metaimage(folder / "a.mhd", place=f"LIST\n{names}", **stated, **fields)
    if place == "a file":
        (folder / "a.dat").write_bytes(data)
        return metaimage(folder / "a.mhd", place="a.dat", **stated, **fields)
    if fields.get("HeaderSize") == "own":
        fields["HeaderSize"] = 100  # as long as any such number
        fields["HeaderSize"] = len(metaimage(folder / "a.mha", b"", **stated, **fields).read_bytes())
    return metaimage(folder / "a.mha", data, **stated, **fields)


@pytest.mark.parametrize("place", ["behind the header", "a file", "a list"])
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"CompressedDataSize": "own"},
        {"HeaderSize": 0},
        {"HeaderSize": -1},
        {"HeaderSize": "own"},
        {"HeaderSize": "own", "CompressedDataSize": "own"},
        {"HeaderSize": -1, "CompressedDataSize": "own"},
        {"HeaderSize": len(JUNK)},
        {"HeaderSize": len(JUNK), "junk": JUNK},
        {"HeaderSize": len(JUNK), "junk": JUNK, "CompressedDataSize": "own"},
        {"HeaderSize": -1, "junk": JUNK},
        {"HeaderSize": -1, "junk": JUNK, "CompressedDataSize": "own"},
        {"junk": JUNK},
        {"behind": JUNK},
        {"behind": JUNK, "CompressedDataSize": "own"},
    ],
    ids=str,
)
def test_voxels_of_a_metaimage_are_found_where_they_begin_or_it_is_refused(tmp_path, place, packing, options):
    """Of compressed ones that it looks for elsewhere, ITK makes voxels of what it finds in memory, without an error."""
    assert outcome(placed(tmp_path, place, packing, **options)) != "different"


@pytest.mark.parametrize(
    "place, packing, options",
    [
        *((place, packing, {}) for place in ("a file", "a list") for packing in PACKED),
        ("behind the header", "raw", {}),
        ("behind the header", "text", {}),
        ("behind the header", "zlib", {"CompressedDataSize": "own"}),
        ("behind the header", "zlib", {"CompressedDataSize": "own", "HeaderSize": "own"}),
        ("behind the header", "raw", {"HeaderSize": "own"}),
        ("behind the header", "raw", {"HeaderSize": -1, "junk": JUNK}),
        ("a file", "raw", {"HeaderSize": len(JUNK), "junk": JUNK}),
        ("a file", "zlib", {"HeaderSize": len(JUNK), "junk": JUNK, "CompressedDataSize": "own"}),
    ],
)
def test_what_says_where_they_begin_is_read(tmp_path, place, packing, options):
    assert outcome(placed(tmp_path, place, packing, **options)) == "same"


def test_a_missing_size_of_compressed_voxels_is_told_and_mends_the_file(tmp_path):
    path, size = placed(tmp_path, "behind the header", "zlib"), len(zlib.compress(RAW))
    line = f"CompressedDataSize = {size}"

    message = outcome(path)

    assert f"expected '{line}'. Write that line into it" in message and str(path) in message
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile", f"{line}\nElementDataFile".encode(), 1))
    assert outcome(path) == "same"


def test_a_header_that_states_another_size_of_itself_is_refused(tmp_path):
    message = outcome(placed(tmp_path, "behind the header", "raw", junk=JUNK, HeaderSize=len(JUNK)))
    assert f"states a size of {len(JUNK)} bytes (HeaderSize)" in message


@pytest.mark.parametrize("place, name", [("LOCAL", "a.mha"), ("a.txt", "a.txt")])
def test_text_that_ends_within_a_line_is_told(tmp_path, place, name):
    (tmp_path / "a.txt").write_bytes(text_of(VOXELS)[:-1])
    message = outcome(metaimage(tmp_path / "a.mha", text_of(VOXELS)[:-1], place, BinaryData=False))
    assert f"end within a line in '{name}', expected a line break behind the last" in message


# ---- two keys for one thing


SAME_THING = {"TransformMatrix": ("Rotation", "Orientation"), "Offset": ("Position", "Origin", "ImagePosition")}


@pytest.mark.parametrize("key, other", [(key, each) for key, others in SAME_THING.items() for each in others])
def test_keys_of_one_meaning_may_not_contradict_each_other(tmp_path, key, other):
    same, near, another = (
        ("1 0 0 0 1 0 0 0 1", ALIKE, TURNED) if key == "TransformMatrix" else ("0 0 0", "0 0 1e-9", "10 0 0")
    )
    for value in (same, near):
        assert outcome(metaimage(tmp_path / "a.mha", **{key: same, other: value})) == "same"

    message = outcome(metaimage(tmp_path / "a.mha", **{key: same, other: another}))

    assert f"{key.lower()} {same}" in message and f"{other.lower()} {another}" in message
    assert "says in 2 ways where voxels lie, differently" in message and str(tmp_path / "a.mha") in message


@pytest.mark.parametrize("key", ["Rotation", "Orientation"])
def test_each_of_these_keys_alone_counts(tmp_path, key):
    path = metaimage(tmp_path / "a.mha", **{key: TURNED})
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"", 1))
    np.testing.assert_allclose(load_volume(path).affine, np.diag([-1, 1, 1, 1]) @ AFFINE)


# ---- directions and spacings that are none


@pytest.mark.parametrize(
    "directions, said",
    [
        ("(nan,nan,nan) (0,2,0) (0,0,5)", "expected three of three finite numbers each"),
        ("(2,0,0) (0,2,0) (nan,nan,nan)", "expected three of three finite numbers each"),
        ("(2,0,0) (nan,nan,nan) (nan,nan,nan)", "expected three of three finite numbers each"),
        ("(2,0,0) (nan,2,0) (0,0,5)", "expected three of three finite numbers each"),
        ("(2,0,0) (0,inf,0) (0,0,5)", "expected three of three finite numbers each"),
        ("(2,0,0) (0,2,0) none", "expected three of three finite numbers each"),
        ("(2,0,0) (0,0,0) (0,0,5)", "do not span space"),
        ("(2,0,0) (4,0,0) (0,0,5)", "do not span space"),
    ],
)
def test_directions_that_an_nrrd_does_not_have_are_not_made_up(tmp_path, directions, said):
    message = outcome(nrrd(tmp_path / "a.nrrd", **{"space directions": directions}))
    assert said in message and directions in message


@pytest.mark.parametrize("key", ["TransformMatrix", "Rotation", "Orientation"])
def test_directions_of_a_metaimage_span_space(tmp_path, key):
    message = outcome(metaimage(tmp_path / "a.mha", **{key: "1 0 0 0 0 0 0 0 1"}))
    assert "do not span space (1 0 0 0 0 0 0 0 1)" in message


@pytest.mark.parametrize("key", ["ElementSpacing", "ElementSize"])
@pytest.mark.parametrize("spacing", ["2 -2 5", "-2 -2 -5", "0 2 5"])
def test_spacings_of_a_metaimage_are_above_0(tmp_path, key, spacing):
    """By one below it, ITK mirrors the image."""
    path = metaimage(tmp_path / "a.mha", ElementSpacing=spacing)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", key.encode(), 1))
    assert "does not say how far voxels are apart" in outcome(path)


def test_the_size_of_voxels_that_have_a_spacing_is_no_spacing(tmp_path):
    assert outcome(metaimage(tmp_path / "a.mha", ElementSize="1 -1 1")) == "same"


def test_spacings_of_an_nrrd_are_above_0(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", spacings="2 -2 5")
    path.write_bytes(path.read_bytes().replace(b"space directions: (2,0,0) (0,2,0) (0,0,5)\n", b""))
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior\n", b""))
    assert "does not say how far voxels are apart (spacing [2.0, -2.0, 5.0])" in outcome(path, default_axcodes="LPS")


def test_words_of_itk_are_told_without_places_in_memory(tmp_path):
    fields = {"dimension": 4, "sizes": "12 11 9 1", "space directions": "(2,0,0) (0,2,0) (0,0,5) none"}
    message = outcome(nrrd(tmp_path / "a.nrrd", **fields))
    assert "(RuntimeError: ReadImageInformation: number of domain axes" in message and "0x" not in message


# ---- types of which ITK has no images


TYPES = {
    "int8": ("MET_CHAR", ["signed char", "int8", "int8_t"]),
    "int64": ("MET_LONG_LONG", ["long long", "long long int", "longlong", "int64", "int64_t", "signed long long"]),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", TYPES)
def test_integers_of_8_and_64_bits_are_read(tmp_path, kind, order):
    limits = np.iinfo(kind)
    voxels = np.random.default_rng(0).integers(limits.min, limits.max, SHAPE, kind, endpoint=True)
    voxels.flat[:4] = limits.min, limits.max, -1, 0
    data = voxels.astype(np.dtype(kind).newbyteorder(order)).tobytes(order="F")
    metaio, names = TYPES[kind]
    stated = {"ElementType": metaio, "BinaryDataByteOrderMSB": order == ">"}
    packed = zlib.compress(data)
    (tmp_path / "b.raw").write_bytes(data)
    paths = [
        metaimage(tmp_path / "A.MHA", data, **stated),
        metaimage(tmp_path / "b.mhd", place="b.raw", **stated),
        metaimage(tmp_path / "c.mha", packed, CompressedData=True, CompressedDataSize=len(packed), **stated),
    ]
    for number, name in enumerate(names):
        stated = {"type": name, "endian": "big" if order == ">" else "little"}
        paths.append(nrrd(tmp_path / f"{number}.nrrd", data, **stated))
        paths.append(nrrd(tmp_path / f"{number}.gz.nrrd", gzip.compress(data), encoding="gzip", **stated))
    for path in paths:
        volume = load_volume(path)
        np.testing.assert_array_equal(volume.voxels, voxels, strict=kind == "int64")
        np.testing.assert_allclose(volume.affine, AFFINE)


# ---- pairs of keys and values that are called like fields


@pytest.mark.parametrize(
    "name, value",
    [
        ("endian", "big"),
        ("type", "float"),
        ("sizes", "1 1 1"),
        ("space units", '"cm" "cm" "cm"'),
        ("space directions", "(9,0,0) (0,9,0) (0,0,9)"),
        ("space", "right-anterior-superior"),
        ("kinds", "list domain domain"),
        ("byte skip", "8"),
        ("line skip", "1"),
        ("encoding", "gzip"),
        ("data file", "missing.raw"),
        ("data file", "LIST"),
        ("somebody's own", "a: b := c"),
    ],
)
def test_a_pair_is_no_field_of_an_nrrd(tmp_path, name, value):
    path = nrrd(tmp_path / "a.nrrd")
    head, data = path.read_bytes().split(b"\n\n", 1)
    path.write_bytes(head + f"\n{name}:={value}\n\n".encode() + data)

    assert outcome(path) == "same"
    np.testing.assert_allclose(load_volume(path).affine, AFFINE)


def test_a_field_that_only_a_pair_states_is_missing(tmp_path):
    """Of which the reader takes none either."""
    path = nrrd(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", b"encoding:=raw"))
    assert "encoding ''" in outcome(path)
