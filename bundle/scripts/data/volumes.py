"""Volumes as users have them: NIfTI, NRRD, MetaImage and DICOM, read into voxels and one kind of affine; label maps
written back on their grids.

Training, evaluation and inference read by this module alone, and so does the check before them. It never guesses where
voxels lie: left and right kidney differ by nothing else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, ITKReader, NibabelWriter
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, convert_data_type, ensure_tuple
from nibabel.affines import voxel_sizes
from nibabel.orientations import axcodes2ornt

from ..errors import DatasetError, listed
from ..files import whole_file
from .dicom import dicom_files, is_dicom_file, load_series

NIFTI_SUFFIXES = (".nii.gz", ".nii")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, ".mha", ".mhd")

_SCANNER = 1  # NIfTI's code for the scanner's coordinates
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # in NIfTI's units of metres and micrometres; no unit at all means millimetres
# the NRRD spaces that ITK converts; the others do not say where the patient's left is
_NRRD_SPACES = ("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps")

logger = logging.getLogger(__name__)
# LoadImage builds MONAI's own readers as well, though it never asks them; one warns that it has no GPU to decode with
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Volume:
    """A volume as it is stored.

    Attributes:
        voxels: ``(I, J, K)`` along the axes of the file, in real units, such as Hounsfield units: scaled as the header
            says.
        affine: ``(4, 4)``, from voxel indices to millimetres towards the patient's right, front and top (RAS+).
        space: NIfTI's code for what these coordinates mean: 1 the scanner's, 2 aligned to another image, 3 Talairach,
            4 MNI. Always 1 in other formats.
    """

    voxels: np.ndarray
    affine: np.ndarray
    space: int = _SCANNER

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each axis."""
        return tuple(float(size) for size in voxel_sizes(self.affine))


def load_volume(path: PathLike, series: str | None = None, default_axcodes: str | None = None) -> Volume:
    """Reads one volume.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a folder with the slices of a DICOM series, or one DICOM file.
        series: which of several DICOM series in one folder: its SeriesInstanceUID, number, modality or description, or
            a part of the description. Formats that hold one volume ignore it.
        default_axcodes: where the axes of a file point that does not say so itself, such as ``"LAS"``: the first to the
            patient's left, the second to the front, the third to the top. None refuses such files.

    Raises:
        DatasetError: there is nothing, or nothing that can be read to its end; not one greyscale volume of three
            dimensions; spacing or axes that are missing or cannot be used; several DICOM series and no choice among
            them; a series with slices that are missing, repeated, unevenly spaced, or of different size or direction.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"'{path}': the file is not there. Restore it, or leave the case out.")
    name = path.name.lower()
    try:
        if name.endswith(NIFTI_SUFFIXES) and path.is_file():
            volume = _load_nifti(path, default_axcodes)
        elif name.endswith(IMAGE_SUFFIXES) and path.is_file():
            volume = _load_itk(path, default_axcodes)
        elif path.is_dir() or is_dicom_file(path):
            volume = Volume(*load_series(path, series))
        else:
            raise DatasetError(
                f"'{path}': no image in a supported format, expected a file ending in {', '.join(IMAGE_SUFFIXES)}, a "
                "DICOM file, or a folder of DICOM slices. Convert it."
            )
    except DatasetError:
        raise
    except Exception as error:  # each format's library fails in its own ways; all of them mean the same here
        raise DatasetError(_unreadable(path, error)) from error
    if not _is_usable(volume.affine):
        raise DatasetError(
            f"'{path}': its affine {np.round(volume.affine[:3], 3).tolist()} cannot be inverted or is not finite, "
            "expected three independent axes in millimetres. Export the file again, or set its affine from the "
            "original series."
        )
    return volume


class VolumeReader(ImageReader):
    """:func:`load_volume` for ``monai.transforms.LoadImaged``.

    Args:
        series: see :func:`load_volume`.
        default_axcodes: see :func:`load_volume`.

    Raises:
        ValueError: ``default_axcodes`` that are not one letter each of R or L, A or P, S or I.

    Example:
        >>> LoadImaged("image", reader=VolumeReader(series="portal venous"))  # doctest: +SKIP
    """

    def __init__(self, series: str | int | None = None, default_axcodes: str | None = None) -> None:
        super().__init__()
        self.series = None if series is None else str(series)
        self.default_axcodes = default_axcodes
        if default_axcodes is not None:
            _oriented(default_axcodes, (1, 1, 1))

    def load(self, path: PathLike) -> Volume:
        """Reads one volume; see :func:`load_volume`."""
        return load_volume(path, self.series, self.default_axcodes)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[PathLike, ...]:
        # reading happens in `get_data`: where `read` fails, LoadImage tries its other readers, which do guess
        return ensure_tuple(data)

    def get_data(self, img: Sequence[PathLike]) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels ``(I, J, K)`` and what MONAI wants to know about them.

        Raises:
            DatasetError: see :func:`load_volume`.
            ValueError: more than one path.
        """
        if len(img) != 1:
            raise ValueError(f"Expected one volume, got {len(img)} paths: {listed(img)}.")
        volume = self.load(img[0])
        meta = {
            MetaKeys.AFFINE: volume.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(volume.voxels.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channels"
            "nifti_space": volume.space,
        }
        return _in_tensor_order(volume.voxels), meta


class VolumeWriter(NibabelWriter):
    """Writes label maps as NIfTI for ``monai.transforms.SaveImaged``, on the grid of the volume that was read.

    Beyond what MONAI's own writer does, a volume of one slice stays a volume, and the header says that the unit is
    millimetres and in which space the image was. An affine that is sheared, as in CT with a tilted gantry, goes into
    the sform alone: a qform cannot hold it.
    """

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Takes ``(1, I, J, K)``, or ``(I, J, K)`` with ``channel_dim`` None."""
        kwargs["squeeze_end_dims"] = False
        super().set_data_array(data_array, channel_dim=channel_dim, **kwargs)
        self.data_obj = self.data_obj[..., 0] if self.data_obj.shape[-1] == 1 else self.data_obj

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        if resample:
            super().set_metadata(meta_dict, resample=resample, **options)
        else:  # without the copy in float32 that MONAI makes before it finds that there is nothing to do
            affine = self.get_meta_info(meta_dict)[1]
            self.affine = np.eye(4) if affine is None else convert_data_type(affine, np.ndarray, dtype=np.float64)[0]
        self.space = int((meta_dict or {}).get("nifti_space", _SCANNER))

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Writes the file, through a temporary name.

        Raises:
            OSError: it cannot be written.
        """
        if verbose:
            logger.info("writing: %s", filename)
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **kwargs)
        image.set_sform(image.affine, self.space)
        image.set_qform(image.affine, self.space)
        if not np.allclose(image.get_qform(), image.affine, atol=1e-3):
            image.set_qform(None, 0)  # which leaves the sform alone to say where voxels are
        image.header.set_xyzt_units("mm")
        with whole_file(filename) as temporary:
            nib.save(image, temporary)


def _in_tensor_order(voxels: np.ndarray) -> np.ndarray:
    """Voxels with the last axis running fastest, while they are small integers: LoadImage would copy float32."""
    if voxels.flags.c_contiguous:
        return voxels
    result = np.empty(voxels.shape, voxels.dtype)
    for start in range(
        0, voxels.shape[2], 16
    ):  # in one go it takes five times as long, since each write misses the cache
        result[..., start : start + 16] = voxels[..., start : start + 16]
    return result


def output_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """``output_name_formatter`` of ``monai.transforms.SaveImaged``: files named by :func:`result_name`.

    MONAI's own takes what follows the last dot for a suffix, although folders of DICOM series are named by numbers with
    dots, which then would share one file.
    """
    return {"subject": result_name(meta) + NIFTI_SUFFIXES[0], "idx": None}


def result_name(meta: Mapping[str, Any]) -> str:
    """What the results of an image are called: its case, if a transform has put that into its ``meta``, or its file."""
    return meta.get("case") or case_name(meta[ImageMetaKey.FILENAME_OR_OBJ])


def case_name(path: PathLike) -> str:
    """The name of a file without its suffix, or of a folder.

    Example:
        >>> case_name("/data/patient.1.nii.gz"), case_name("/data/1.2.840/")
        ('patient.1', '1.2.840')
    """
    path = Path(path).absolute()
    suffixes = () if path.is_dir() else (*IMAGE_SUFFIXES, ".dcm")
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def is_image_file(path: Path) -> bool:
    """Whether a path is, by its name, a NIfTI, NRRD or MetaImage file."""
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")


def files_of(path: PathLike) -> list[Path]:
    """The files that a volume is read from: one, a header and its data, or the DICOM files of a folder, by name."""
    path = Path(path)
    if path.is_dir():
        return list(dicom_files(path))
    if not path.name.lower().endswith((".nhdr", ".mhd")):
        return [path]
    fields = _header_fields(path)
    data = path.parent / (fields.get("data file") or fields.get("elementdatafile", ""))
    # where the header gives a list or a pattern in place of a name, whatever lies beside it may be meant
    return [path, data] if data.is_file() else sorted(each for each in path.parent.iterdir() if each.is_file())


# ---- NIfTI


def _load_nifti(path: Path, default_axcodes: str | None) -> Volume:
    image = nib.load(path)
    header, data = image.header, image.dataobj
    dtype = header.get_data_dtype()
    _check_components(path, 1 if dtype.kind in "biuf" else f"type {dtype}, which is of several")
    _check_dimensions(path, image.shape)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    affine = np.asarray(image.affine, dtype=float)
    if not sform:
        # on loading, nibabel makes 1 of spacings that are 0
        with image.file_map["image"].get_prepare_fileobj("rb") as file:
            spacing = np.abs(type(header).from_fileobj(file, check=False)["pixdim"][1:4])
        _check_spacing(path, spacing)
        if not qform:
            affine = _unplaced(path, default_axcodes, spacing, "its sform_code and qform_code are both 0")
    affine[:3] *= _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    voxels = np.asanyarray(data.get_unscaled())
    voxels = voxels.reshape(voxels.shape[:3], order="A")
    if (data.slope, data.inter) != (1, 0):
        stored = voxels
        voxels = np.empty(stored.shape, np.float32, order="F")
        for index in range(stored.shape[2]):  # a plane at a time: nibabel would make float64 of the whole volume
            voxels[..., index] = stored[..., index] * np.float64(data.slope) + data.inter
    return Volume(voxels, affine, sform or qform or _SCANNER)


# ---- NRRD and MetaImage


def _load_itk(path: Path, default_axcodes: str | None) -> Volume:
    fields = _header_fields(path)
    _check_components(path, int(fields.get("elementnumberofchannels", 1)))
    reader = ITKReader()
    image = reader.read(path)
    voxels, meta = reader.get_data(image)
    voxels = np.asarray(voxels)  # of ITK's own kind of array, which keeps the image it is a view of
    _check_components(path, image.GetNumberOfComponentsPerPixel())
    _check_dimensions(path, voxels.shape)
    voxels = voxels.reshape(voxels.shape[:3], order="A")
    affine = np.asarray(meta[MetaKeys.AFFINE], dtype=float)
    if path.name.lower().endswith(NRRD_SUFFIXES):
        spaced = "space directions" in fields or "nan" not in fields.get("spacings", "nan").lower()
        placed = "space directions" in fields and fields.get("space", "").lower() in _NRRD_SPACES
        found = "its header names no space such as 'left-posterior-superior' with 'space directions'"
    else:
        spaced = "elementspacing" in fields or "elementsize" in fields
        placed = any(key in fields for key in ("transformmatrix", "rotation", "orientation"))
        found = "its header has no TransformMatrix"
    _check_spacing(path, voxel_sizes(affine) if spaced else (0, 0, 0))
    if not placed:
        affine = _unplaced(path, default_axcodes, voxel_sizes(affine), found)
    return Volume(voxels, affine)


def _header_fields(path: Path) -> dict[str, str]:
    """Names, in lower case, and values of an NRRD or MetaImage header."""
    separator = ":" if path.name.lower().endswith(NRRD_SUFFIXES) else "="
    fields = {}
    with open(path, "rb") as file:
        for raw in file:
            line = raw.decode("latin-1").strip()
            if separator == ":" and not line:  # NRRD: the data follow
                break
            name, _, value = line.partition(separator)
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":  # MetaImage: the data follow
                break
    return fields


# ---- what every format must have


def _check_components(path: Path, components: int | str) -> None:
    if components != 1:
        raise DatasetError(
            f"'{path}': voxels of {components} values, expected one real number a voxel. Convert colour or complex "
            "images to greyscale."
        )


def _check_dimensions(path: Path, shape: tuple[int, ...]) -> None:
    """Three dimensions, and any number of further ones of length 1."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DatasetError(
            f"'{path}': {len(shape)} dimensions, shape {tuple(shape)}; expected one volume of three dimensions. Store "
            "each volume of a series, or the stack of slices, as a file of its own."
        )
    if 0 in shape:
        raise DatasetError(f"'{path}': shape {tuple(shape)}, expected at least one voxel. Export the file again.")


def _check_spacing(path: Path, spacing: Iterable[float]) -> None:
    spacing = np.asarray(list(spacing), float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise DatasetError(
            f"'{path}': its header does not say how far voxels are apart (spacing {spacing.tolist()}), expected "
            "millimetres along each axis. Export the file again, or set its spacing from the original series."
        )


def _unplaced(path: Path, default_axcodes: str | None, spacing: Iterable[float], found: str) -> np.ndarray:
    """The affine of a file that does not say where its axes point.

    Readers fill this in, nibabel with LAS+, ITK with LPS+, and a left kidney becomes a right one without a word.
    """
    if default_axcodes is None:
        raise DatasetError(
            f"'{path}': its header does not say where its axes point ({found}), so left and right cannot be told "
            "apart. Export the file again from the original series; or, if you know the axes, state them for all such "
            "files, as in --default_axcodes LAS: the first axis towards the patient's left, the second to the front, "
            "the third to the top."
        )
    logger.warning("'%s': %s; taken as %s.", path, found, default_axcodes)
    return _oriented(default_axcodes, spacing)


def _oriented(axcodes: str, spacing: Iterable[float]) -> np.ndarray:
    """The affine ``(4, 4)`` with axes towards ``axcodes`` and the first voxel at the origin."""
    if len(axcodes) != 3 or sorted("RLAPSI".find(code) // 2 for code in axcodes.upper()) != [0, 1, 2]:
        raise ValueError(
            f"default_axcodes is '{axcodes}'; expected one letter each of R or L, A or P, S or I, such as 'LAS'."
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, ((world, sign), size) in enumerate(zip(axcodes2ornt(axcodes.upper()), spacing)):
        affine[int(world), axis] = sign * size
    return affine


def _is_usable(affine: np.ndarray) -> bool:
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    spacing = voxel_sizes(affine)
    # the determinant of the unit axes: 1 for a box, 0 for axes in one plane
    return bool((spacing > 0).all()) and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        expected = "a complete NIfTI file"
    elif name.endswith(IMAGE_SUFFIXES):
        expected = "a complete NRRD or MetaImage file"
    else:
        expected = "a complete DICOM file"
    return f"'{path}': cannot be read ({reason}), expected {expected}. It may be truncated: copy or download it again."
