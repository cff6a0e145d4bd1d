"""NIfTI files, whole or as a header beside its voxels, and Analyze, its ancestor: read to their end, where checksums
are, and with both statements of where voxels lie compared.
"""

from __future__ import annotations

import gzip
import logging
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes, io_orientation

from ..errors import DatasetError
from .file_names import HEADER_SUFFIXES
from .grids import (
    ENOUGH,
    check_amount,
    check_components,
    check_dimensions,
    check_spacing,
    is_sheared,
    is_usable,
    unplaced,
    unreadable,
)

FORMS = ("sform", "qform")
SCANNER = 1  # NIfTI's code for the scanner's coordinates
_ALIGNED = 2  # and for those of another image of the same patient

_MILLIMETRES = {1: 1000.0, 3: 0.001}  # in NIfTI's units of metres and micrometres; no unit at all means millimetres
_HEADERS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the size that a header begins with
_PAIRS = {348: nib.Nifti1Pair, 540: nib.Nifti2Pair}  # the same of a header beside its voxels
_MAGIC_AT = {348: 344, 540: 4}  # where a NIfTI header of either size says that it is one
_DEFLATED_AT_MOST = 1032  # times smaller: no more is possible in the compression of gzip
_EXTENSION = 16  # bytes of the smallest one of a header
_KIND, _VOXELS = "NIfTI file", "file of voxels"
_BLOCK = 512  # bytes to which archives and tapes fill up files with zeros
_SIZE_TOLERANCE = 0.05  # between the voxels of two forms for spaces of one patient
_FORM_TOLERANCE = 0.5  # of a voxel, between the places of the corners: far above rounding in quaternions

logger = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Voxels ``(I, J, K)``, affine ``(4, 4)`` to RAS+ millimetres, NIfTI's code for its space, and what is odd."""

    voxels: np.ndarray
    affine: np.ndarray
    space: int
    notes: tuple[str, ...] = ()


def load_nifti(path: Path, default_axcodes: str | None, trusted_form: str | None) -> Stored:
    """A NIfTI file as a volume.

    Args:
        path: of the file, compressed by gzip or not, whatever its name says.
        default_axcodes: see :func:`scripts.data.volumes.load_volume`.
        trusted_form: see there.

    Raises:
        DatasetError: see there.
        Exception: whatever else reading raises.
    """
    beside = voxels_beside(path)
    with opened(path) as (stream, compressed):
        with told_of_header(path) as notes:
            image = _header(path, stream) if beside is None else _header_of_pair(path, stream)
        header, data = image.header, image.dataobj
        dtype = header.get_data_dtype()
        check_components(path, 1 if dtype.kind in "biuf" else f"type {dtype}, which is of several")
        check_dimensions(path, image.shape)
        affine, space = _placed(path, image, default_axcodes, trusted_form, stream)
        _check_scale(path, type(header), stream)
        if beside is None:
            if data.offset < int(header["sizeof_hdr"]):
                raise DatasetError(
                    f"'{path}': its header says that voxels begin at byte {data.offset} (vox_offset), which is within "
                    f"the header, expected {int(header['sizeof_hdr']) + 4} at least. Convert the file again."
                )
            crowded = _is_crowded(header, stream, data.offset)
            voxels = stored_voxels(path, data, stream, compressed=compressed, kind=_KIND, exact=crowded)
    if beside is not None:
        try:
            with opened(beside) as (stream, compressed):
                voxels = stored_voxels(beside, data, stream, compressed=compressed, kind=_VOXELS)
        except (EOFError, OSError, zlib.error) as error:
            raise DatasetError(unreadable(beside, error, _VOXELS)) from error
    if "xyzt_units" in header:
        affine[:3] *= _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    voxels = voxels.reshape(voxels.shape[:3], order="A")
    if (data.slope, data.inter) != (1, 0):
        stored: np.ndarray = voxels
        voxels = np.empty(stored.shape, np.float32, order="F")
        for index in range(stored.shape[2]):  # a plane at a time: nibabel would make float64 of the whole volume
            voxels[..., index] = stored[..., index] * np.float64(data.slope) + data.inter
    return Stored(voxels, affine, space, tuple(notes))


def voxels_beside(header: Path) -> Path | None:
    """The file with the voxels of a header, if it is one of a pair by its name.

    Raises:
        DatasetError: it is not there.
    """
    name = header.name
    suffix = next((suffix for suffix in HEADER_SUFFIXES if name.lower().endswith(suffix)), None)
    if suffix is None:
        return None
    stem, capitals = name[: -len(suffix)], name[-len(suffix) :].isupper()
    # a compressed header may stand beside plain voxels, and the other way round; so may one in capitals
    endings = sorted(HEADER_SUFFIXES.values(), key=lambda each: each.endswith(".gz") != suffix.endswith(".gz"))
    for each in (change(ending) for change in (str.upper, str.lower)[:: 1 if capitals else -1] for ending in endings):
        if (beside := header.with_name(stem + each)).is_file():
            return beside
    raise DatasetError(
        f"'{header}': the file with its voxels, '{stem}{HEADER_SUFFIXES[suffix]}', is not there. Copy it as well."
    )


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """A stream of what is in a file, and whether it is compressed, which its content says and not its name."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            yield file, False
            return
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream, True  # type: ignore[misc]


@contextmanager
def told_of_header(path: Path) -> Iterator[list[str]]:
    """What nibabel puts into its own log while it reads a header: without the file's name, and more than once. It is
    said here instead, of the file, and once.

    Args:
        path: of the file.

    Yields:
        What is odd about it, complete at the end.
    """
    told: dict[str, int] = {}
    notes: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        told[record.getMessage()] = record.levelno
        return False

    imageglobals.logger.addFilter(keep)
    try:
        yield notes
    finally:
        imageglobals.logger.removeFilter(keep)
        for text, level in told.items():
            if level >= imageglobals.error_level:  # by which it is refused, in these words
                continue
            note = f"its header is not as the standard has it: {text}"
            logger.log(
                min(level, logging.WARNING), "'%s': %s.", path, note
            )  # nibabel has levels between, without names
            if level >= logging.WARNING:
                notes.append(note)


def _header(path: Path, stream: BinaryIO) -> Any:
    """The image, of which only the header has been read."""
    size = stream.read(4)
    sizes = {int.from_bytes(size, order) for order in ("little", "big")}
    kind = next((kind for size, kind in _HEADERS.items() if size in sizes), None)
    if kind is None:
        raise DatasetError(
            f"'{path}': cannot be read (it begins with {size.hex() or 'nothing'}, and not as NIfTI does), expected a "
            f"complete {_KIND}. Its name may be wrong: copy or download it again, or convert it."
        )
    stream.seek(0)
    return kind.from_stream(stream)


def _header_of_pair(path: Path, stream: BinaryIO) -> Any:
    """The image of a header beside its voxels, which have not been read."""
    start = stream.read(352)
    stream.seek(0)
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")} & _PAIRS.keys()
    size = sizes.pop() if sizes else 0
    magic = start[_MAGIC_AT[size] :][:3] if size else b""
    if magic in (b"ni1", b"ni2"):
        holders = {"header": nib.FileHolder(fileobj=stream), "image": nib.FileHolder(filename=str(path))}
        return _PAIRS[size].from_file_map(holders)
    if size == 348 and magic != b"n+1":  # Analyze, with a scale factor where SPM puts it
        spm = nib.Spm2AnalyzeImage.header_class
        header = (spm if spm.may_contain_header(start) else nib.AnalyzeImage.header_class).from_fileobj(stream)
        data = nib.arrayproxy.ArrayProxy(str(path), header)
        return SimpleNamespace(header=header, dataobj=data, shape=data.shape, affine=header.get_best_affine())
    raise DatasetError(
        f"'{path}': cannot be read (it begins with {start[:4].hex() or 'nothing'}, and is no header of a NIfTI or "
        "Analyze pair), expected one. Its name may be wrong: copy or download it again, or convert it."
    )


def stored_voxels(
    path: Path, data: Any, stream: BinaryIO, *, compressed: bool, kind: str, footer: bool = False, exact: bool = False
) -> np.ndarray:
    """The voxels as they are stored, with nothing missing and nothing left behind them.

    Args:
        path: of the file.
        data: nibabel's proxy of the voxels: where they begin, and of which type and shape they are.
        stream: of :func:`opened`.
        compressed: whether it is.
        kind: of file, for messages.
        footer: whether more may follow, as in formats that put a part of their header there.
        exact: whether not even zeros may follow, by which archives fill up files: they are voxels, moved there by what
            stands before them.

    Raises:
        DatasetError: fewer or more voxels than the header declares.
    """
    expected = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
    size = path.stat().st_size
    if compressed and expected > size * _DEFLATED_AT_MOST or not compressed and expected > size - data.offset:
        found = size * _DEFLATED_AT_MOST if compressed else max(0, size - data.offset)
        check_amount(path, found, expected, kind=kind, where=" at most" if compressed else "")
    if compressed:
        content = bytearray(expected)
        stream.seek(data.offset)
        check_amount(path, stream.readinto(content), expected, kind=kind)  # type: ignore[attr-defined]
        voxels = np.ndarray(data.shape, data.dtype, content, order="F")
    else:
        voxels = np.memmap(path, data.dtype, "c", data.offset, data.shape, order="F")
        stream.seek(data.offset + expected)
    rest, filling = 0, True
    while piece := stream.read(1 << 20):  # to the end: only there gzip compares its checksum
        rest, filling = rest + len(piece), filling and not any(piece)
        if rest > ENOUGH:  # which may go on for a thousand times the size of the file
            check_amount(path, expected + rest, expected, kind=kind, where=" at least")
    if rest and not footer and (exact or not (filling and rest < _BLOCK)):
        check_amount(path, expected + rest, expected, kind=kind)
    return voxels


def _is_crowded(header: Any, stream: BinaryIO, begin: int) -> bool:
    """Whether a header announces an extension, for which there is no room before the voxels.

    Of one for which there is some, and not enough, nibabel finds no end.

    Args:
        header: as nibabel reads it.
        stream: of the file.
        begin: where voxels do, as the header says (vox_offset).
    """
    size = int(header["sizeof_hdr"])
    stream.seek(size)
    return stream.read(1) not in (b"", b"\0") and begin < size + 4 + _EXTENSION


def _check_scale(path: Path, kind: Any, stream: BinaryIO) -> None:
    """Refuses a slope that is infinite: nibabel takes it for none, as 0 and NaN are, other programs do not."""
    stream.seek(0)
    header = kind.from_fileobj(stream, check=False)
    if "scl_slope" in header and np.isinf(header["scl_slope"]):
        raise DatasetError(f"'{path}': its slope (scl_slope) is infinite, expected a number. Export the file again.")


# ---- where voxels lie


def _placed(
    path: Path, image: Any, default_axcodes: str | None, trusted_form: str | None, stream: BinaryIO
) -> tuple[np.ndarray, int]:
    """The affine in the header's own unit, and the code of its space."""
    header = image.header
    sform, qform = (int(header[code]) if code in header else 0 for code in ("sform_code", "qform_code"))
    if sform and qform:
        form = trusted_form or _agreed_form(path, image)
        if form == "qform":
            return np.asarray(header.get_qform(), float), qform
    affine = np.asarray(image.affine, dtype=float)
    if not sform:
        # on loading, nibabel makes 1 of spacings that are 0, and 0 of codes that there are not
        stream.seek(0)
        stored = type(header).from_fileobj(stream, check=False)
        spacing = np.abs(stored["pixdim"][1:4])
        check_spacing(path, spacing)
        if not qform:
            affine = unplaced(path, default_axcodes, spacing=spacing, found=_told_codes(stored))
    return affine, sform or qform or SCANNER


def _told_codes(header: Any) -> str:
    """Why a header does not say where voxels lie, by its codes as they are in the file."""
    if "sform_code" not in header:
        return "it is Analyze, which has no place for it"
    sform, qform = (int(header[code]) for code in ("sform_code", "qform_code"))
    if sform == qform == 0:
        return "its sform_code and qform_code are both 0"
    return f"its sform_code is {sform} and its qform_code is {qform}, and only codes from 1 to 5 say it"


def _agreed_form(path: Path, image: Any) -> str:
    """The form to read where a header states both.

    Raises:
        DatasetError: they contradict each other.
    """
    header = image.header
    sform, qform = (np.asarray(form, float) for form in (header.get_sform(), header.get_qform()))
    if not is_usable(sform) or not is_usable(qform):
        return "sform"  # which is refused then, where it is the one that cannot be used
    shape = image.shape[:3]
    corners = np.array(list(product(*((0, size - 1) for size in shape))))
    apart = np.linalg.norm(apply_affine(sform, corners) - apply_affine(qform, corners), axis=1).max()
    unit = _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    codes = ["".join(aff2axcodes(form)) for form in (sform, qform)]
    same_space = int(header["sform_code"]) == int(header["qform_code"])
    # a form for another space, such as an atlas, lies elsewhere on purpose, and may be turned a little
    agree = apart <= _FORM_TOLERANCE * voxel_sizes(sform).min() if same_space else _say_alike(sform, qform, header)
    if not agree and same_space and is_sheared(sform) and codes[0] == codes[1]:
        # a qform cannot hold a shear: what it can hold is where the first voxel lies, and how far others are apart
        origin = np.linalg.norm(sform[:3, 3] - qform[:3, 3])
        agree = origin <= _FORM_TOLERANCE * voxel_sizes(sform).min() and _same_hand(sform, qform)
    if agree:
        return "sform"
    raise DatasetError(
        f"'{path}': its {_told('sform', sform, unit)} and its {_told('qform', qform, unit)} put voxels up to "
        f"{apart * unit:.3g} mm apart. Export the file again from the original series; or, if you know which is right "
        "for all such files, state it: --trusted_form sform or --trusted_form qform."
    )


def _told(form: str, affine: np.ndarray, unit: float) -> str:
    sizes = " x ".join(f"{size * unit:.3g}" for size in voxel_sizes(affine))
    place = np.round(affine[:3, 3] * unit, 2).tolist()
    return f"{form} (axes {''.join(aff2axcodes(affine))}, voxels of {sizes} mm, the first at {place} mm)"


def _say_alike(sform: np.ndarray, qform: np.ndarray, header: Any) -> bool:
    """Whether the forms for two spaces name the same axes, and, where both are the scanner's or an image's that is
    aligned to it, the same voxels; in an atlas they may have another size.

    Between an sform and a qform of directions that differ by less than half a right angle, the names may differ too.
    """
    turned = io_orientation(np.linalg.solve(sform, qform))
    named_alike = np.array_equal(turned, io_orientation(np.eye(4))) or aff2axcodes(sform) == aff2axcodes(qform)
    if not named_alike or not _same_hand(sform, qform):
        return False
    if is_sheared(sform) or not {int(header["sform_code"]), int(header["qform_code"])} <= {SCANNER, _ALIGNED}:
        return True
    return np.allclose(voxel_sizes(sform), voxel_sizes(qform), rtol=_SIZE_TOLERANCE, atol=0)


def _same_hand(sform: np.ndarray, qform: np.ndarray) -> bool:
    return np.sign(np.linalg.det(sform[:3, :3])) == np.sign(np.linalg.det(qform[:3, :3]))
