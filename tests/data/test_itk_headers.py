"""Headers of MetaImage and NRRD that ITK understands in its own way: the voxels that are meant, or words."""

from __future__ import annotations

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


SAME_THING = {"TransformMatrix": ("Rotation", "Orientation"), "Offset": ("Position", "Origin")}


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
