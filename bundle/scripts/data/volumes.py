"""Volumes as users have them: NIfTI, NRRD, MetaImage, MGH and DICOM, read into voxels and one kind of affine; label
maps written back on their grids.

Training, evaluation and inference read by this module alone, and so does the check before them. It never guesses where
voxels lie: left and right kidney differ by nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, NibabelWriter
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, convert_data_type, ensure_tuple
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.processing import resample_from_to

from ..arguments import as_typed
from ..descriptions import Described
from ..errors import DatasetError, SettingError, listed
from ..files import sha256_of, whole_file
from .dicom import load_series
from .dicom_files import dicom_files, is_dicom_file
from .file_names import HEADER_SUFFIXES, IMAGE_SUFFIXES, MGH_SUFFIXES, NIFTI_SUFFIXES, case_name
from .grids import is_mistake, is_sheared, is_usable, oriented, unreadable, upright_grid, voxel_volume
from .intensity import NOTES, STATED
from .itk_files import load_itk
from .itk_headers import data_files, header_fields
from .mgh import load_mgh
from .nifti import FORMS, SCANNER, load_nifti, voxels_beside

UPRIGHT = "_upright.nii.gz"  # the end of the name of what is written beside results on a sheared grid
_SLAB = 16  # slices looked at together
_SMALLEST, _LARGEST = 0.01, 1000  # millimetres between voxels; beyond them, a header has another unit than it says

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
        notes: what is odd about it, as its header says.
        modality: that a DICOM series states, such as ``"CT"``; None where it states none, and in other formats.
    """

    voxels: np.ndarray
    affine: np.ndarray
    space: int = SCANNER
    notes: tuple[str, ...] = ()
    modality: str | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each axis."""
        return tuple(float(size) for size in voxel_sizes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """Cubic millimetres that a voxel takes."""
        return voxel_volume(self.affine)


def load_volume(
    path: PathLike, *, series: str | None = None, default_axcodes: str | None = None, trusted_form: str | None = None
) -> Volume:
    """Reads one volume.

    Args:
        path: a NIfTI, NRRD, MetaImage or MGH file, the header (``.hdr``) of a NIfTI or Analyze pair, a folder with the
            slices of a DICOM series, or one DICOM file.
        series: which of several DICOM series in one folder: its SeriesInstanceUID, number, modality or description, or
            a part of the description. Formats that hold one volume ignore it.
        default_axcodes: where the axes of a file point that does not say so itself, such as ``"LAS"``: the first to the
            patient's left, the second to the front, the third to the top. None refuses such files.
        trusted_form: which of the two places in a NIfTI header that say where voxels lie is right where they contradict
            each other, ``"sform"`` or ``"qform"``. None refuses such files.

    Raises:
        DatasetError: there is nothing, or nothing that can be read to its end; voxels that are damaged, fewer or more
            than the header declares, or in a file that it must not name; not one greyscale volume of three dimensions;
            spacing or axes that are missing, cannot be used or are stated twice in contradiction; several DICOM series
            and no choice among them; a series with slices that are missing, repeated, unevenly spaced, or of different
            size or direction.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"'{path}': the file is not there. Restore it, or leave the case out.")
    name = path.name.lower()
    try:
        if name.endswith((*NIFTI_SUFFIXES, *HEADER_SUFFIXES)) and path.is_file():
            volume = Volume(*load_nifti(path, default_axcodes, trusted_form))
        elif name.endswith(MGH_SUFFIXES) and path.is_file():
            volume = Volume(*load_mgh(path))
        elif name.endswith(IMAGE_SUFFIXES) and path.is_file():
            volume = Volume(*load_itk(path, default_axcodes))
        elif path.is_dir() or is_dicom_file(path):
            found = load_series(path, series)
            volume = Volume(found.voxels, found.affine, notes=tuple(found.notes), modality=found.modality)
        else:
            raise DatasetError(
                f"'{path}': no image in a supported format, expected a file ending in {', '.join(IMAGE_SUFFIXES)}, a "
                "DICOM file, or a folder of DICOM slices. Convert it."
            )
    except DatasetError:
        raise
    except Exception as error:  # each format's library fails in its own ways; all of them mean the same here
        if is_mistake(error):
            raise
        raise DatasetError(unreadable(path, error, _kind(path))) from error
    if not is_usable(volume.affine):
        raise DatasetError(
            f"'{path}': its affine {np.round(volume.affine[:3], 3).tolist()} cannot be inverted or is not finite, "
            "expected three independent axes in millimetres. Export the file again, or set its affine from the "
            "original series."
        )
    if not all(_SMALLEST <= size <= _LARGEST for size in volume.spacing):
        raise DatasetError(
            f"'{path}': its voxels are {' x '.join(f'{size:g}' for size in volume.spacing)} mm apart, expected "
            f"{_SMALLEST:g} to {_LARGEST:g} mm along each axis. Is their unit wrong? Correct the header, or export the "
            "file again."
        )
    return volume


class VolumeReader(Described, ImageReader):
    """:func:`load_volume` for ``monai.transforms.LoadImaged``.

    Args:
        series: see :func:`load_volume`.
        default_axcodes: see :func:`load_volume`.
        trusted_form: see :func:`load_volume`.

    Raises:
        ValueError: ``default_axcodes`` that are not one letter each of R or L, A or P, S or I; a ``trusted_form`` that
            is neither of the two.

    Example:
        >>> LoadImaged("image", reader=VolumeReader(series="portal venous"))  # doctest: +SKIP
    """

    def __init__(
        self, series: str | int | None = None, *, default_axcodes: str | None = None, trusted_form: str | None = None
    ) -> None:
        super().__init__()
        self.series = as_typed("series", series)
        self.default_axcodes, self.trusted_form = default_axcodes, trusted_form
        if default_axcodes is not None:
            oriented(default_axcodes, (1, 1, 1))
        if trusted_form not in (None, *FORMS):
            raise SettingError(f"trusted_form is '{trusted_form}', expected {' or '.join(FORMS)}, or none.")

    def load(self, path: PathLike) -> Volume:
        """Reads one volume; see :func:`load_volume`."""
        return load_volume(
            path, series=self.series, default_axcodes=self.default_axcodes, trusted_form=self.trusted_form
        )

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
        voxels, meta = self.stored(img)
        return _in_tensor_order(voxels), meta

    def stored(self, img: Sequence[PathLike]) -> tuple[np.ndarray, dict[str, Any]]:
        """What :meth:`get_data` gives, with voxels in the order in which they are stored.

        Raises:
            DatasetError: see :func:`load_volume`.
            ValueError: more than one path.
        """
        if len(img) != 1:
            raise SettingError(f"Expected one volume, got {len(img)} paths: {listed(img)}.")
        volume = self.load(img[0])
        meta = {
            MetaKeys.AFFINE: volume.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(volume.voxels.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's word for "no channels"
            "nifti_space": volume.space,
            STATED: volume.modality or "",  # where None is, batches cannot be made
        }
        if volume.notes:
            meta[NOTES] = "\n".join(volume.notes)
        return volume.voxels, meta


class VolumeWriter(NibabelWriter):
    """Writes label maps as NIfTI for ``monai.transforms.SaveImaged``, on the grid of the volume that was read.

    Beyond what MONAI's own writer does, a volume of one slice stays a volume, and the header says that the unit is
    millimetres and in which space the image was. An affine that is sheared, as in CT with a tilted gantry, goes into
    the sform alone: a qform cannot hold it. Since ITK and 3D Slicer refuse such a file, or misplace it, the same on a
    grid with perpendicular axes is written beside it, as ``..._upright.nii.gz``.
    """

    data_obj: Any

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Takes ``(1, I, J, K)``, or ``(I, J, K)`` with ``channel_dim`` None."""
        kwargs["squeeze_end_dims"] = False
        if isinstance(data_array, torch.Tensor):  # over the same memory, which MONAI's conversion would copy
            data_array = data_array.detach().cpu().numpy()
        super().set_data_array(data_array, channel_dim=channel_dim, **kwargs)
        self.data_obj = self.data_obj[..., 0] if self.data_obj.shape[-1] == 1 else self.data_obj

    @classmethod
    def create_backend_obj(
        cls, data_array: Any, affine: Any = None, dtype: Any = None, **kwargs: Any
    ) -> nib.Nifti1Image:
        """The image over the memory of an array, in whichever order its axes lie there, if it is of this type."""
        voxels = np.asarray(data_array) if dtype is None else np.asarray(data_array).astype(dtype, copy=False)
        return nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine, **kwargs)

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        if resample:
            super().set_metadata(meta_dict, resample=resample, **options)
        else:  # without the copy in float32 that MONAI makes before it finds that there is nothing to do
            affine = self.get_meta_info(meta_dict)[1]
            self.affine = np.eye(4) if affine is None else convert_data_type(affine, np.ndarray, dtype=np.float64)[0]
        self.space = int((meta_dict or {}).get("nifti_space", SCANNER))

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
        # what is scaled, as probabilities are, stays on the image's own grid alone
        if is_sheared(image.affine) and image.header.get_slope_inter()[0] is None:
            self._write_upright(Path(filename), image)
        self.data_obj = None  # SaveImage keeps its writer, and with it the label map while the next volume is read

    def _write_upright(self, path: Path, image: nib.Nifti1Image) -> None:
        beside = path.with_name(case_name(path) + UPRIGHT)
        resampled = resample_from_to(image, upright_grid(image.affine, image.shape), order=0)
        upright = nib.Nifti1Image(np.asarray(resampled.dataobj).astype(image.get_data_dtype()), resampled.affine)
        upright.set_sform(upright.affine, self.space)
        upright.set_qform(upright.affine, self.space)
        upright.header.set_xyzt_units("mm")
        with whole_file(beside) as temporary:
            nib.save(upright, temporary)
        logger.warning(
            "'%s': its grid is sheared, as by a tilted gantry, which ITK and 3D Slicer do not open; '%s' holds the "
            "same on a grid with perpendicular axes.",
            *(path, beside.name),
        )


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


def files_of(path: PathLike) -> list[Path]:
    """The files that a volume is read from: one, a header and its data, or the DICOM files of a folder, by name."""
    path = Path(path)
    if path.is_dir():
        return list(dicom_files(path))
    try:
        return [path, *files_beside(path)]
    except DatasetError:  # which reading the volume will put into words
        return [path]


def files_beside(path: Path) -> list[Path]:
    """The files with the voxels of a header, which are no images by themselves; none of another file.

    Raises:
        DatasetError: they are not there, or the header names something else.
    """
    name = path.name.lower()
    if name.endswith((".nhdr", ".mhd")):
        return data_files(path, header_fields(path))
    beside = voxels_beside(path)
    return [] if beside is None else [beside]


def volume_digest(path: PathLike) -> str:
    """SHA-256 of a file; of a volume of many, such as a DICOM series, SHA-256 of theirs in order of name."""
    digests = [sha256_of(file) for file in files_of(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def voxels_digest(volume: Volume) -> str:
    """SHA-256 of a volume's voxels, whatever file they are in: compressed or not, of another format or type, with
    another header, stored along other axes.

    They count as float32, towards the patient's right, front and top: the same image, resampled or cut, is another.
    """
    upright = apply_orientation(volume.voxels, io_orientation(volume.affine))
    digest = hashlib.sha256(repr(upright.shape).encode())
    for start in range(0, upright.shape[2], _SLAB):
        slab = np.asarray(upright[..., start : start + _SLAB].T, "<f4", order="C")
        digest.update((slab + np.float32(0)).tobytes())  # of which -0 becomes 0
    return digest.hexdigest()


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith((*NIFTI_SUFFIXES, *HEADER_SUFFIXES)):
        return "NIfTI file"
    if name.endswith(MGH_SUFFIXES):
        return "MGH file"
    return "NRRD or MetaImage file" if name.endswith(IMAGE_SUFFIXES) else "DICOM file"
