"""Which files are volumes, and what their cases are called, by their names alone: known before anything is imported
that reads them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
HEADER_SUFFIXES = {".hdr.gz": ".img.gz", ".hdr": ".img"}  # of a pair, and those of its voxels
MGH_SUFFIXES = (".mgz", ".mgh", ".mgh.gz")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, ".mha", ".mhd", *HEADER_SUFFIXES, *MGH_SUFFIXES)
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima", ".acr")  # by which slices are called, where they are called so
_PACKED = "gz|bz2|xz|zst|zip|z|lz4|lzma|br|gpg|pgp|aes|age|enc"  # or encrypted
_COPIED = "part|partial|filepart|tmp|bak|backup|old|orig|download|crdownload"
_COPY = re.compile(rf"(\.({_COPIED})|~)+$", re.IGNORECASE)
_ADDED = re.compile(rf"(\.({_PACKED}|{_COPIED})|~)+$")


def case_name(path: str | os.PathLike) -> str:
    """The name of a file without its suffix, or of a folder.

    Example:
        >>> case_name("/data/patient.1.nii.gz"), case_name("/data/1.2.840/")
        ('patient.1', '1.2.840')
    """
    path = Path(path).absolute()
    suffixes = () if path.is_dir() else (*IMAGE_SUFFIXES, ".dcm")
    suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def told_by_suffix(names: Sequence[str], images: Sequence[str], places: Sequence[object]) -> list[str]:
    """The names of cases, with the suffixes of their files where these alone tell them apart.

    Args:
        names: of all cases, each with what :func:`case_name` says at its end, or of somebody's own.
        images: their files, or folders.
        places: cases of one name in different places are not told apart here.

    Example:
        >>> told_by_suffix(["a", "a", "b"], ["a.nii", "a.nii.gz", "b.nii"], [0, 0, 0])
        ['a.nii', 'a.nii.gz', 'b']
    """
    times = Counter(zip(places, names))
    suffixes = [os.path.basename(image)[len(case_name(image)) :] for image in images]
    return [
        name + suffix if times[place, name] > 1 and name.endswith(case_name(image)) else name
        for name, image, place, suffix in zip(names, images, places, suffixes)
    ]


# in a list that `diffusam` made of folders, the reason of what is left out: no key that a list of a user's has
CANNOT_BE_TAKEN = "cannot_be_taken"


def without_added(name: str) -> str:
    """The name of a file, in lower case, without what compressing, copying and broken downloads add to it.

    Example:
        >>> without_added("0002.DCM.part")
        '0002.dcm'
    """
    return _ADDED.sub("", name.lower())


def original_of(path: Path) -> Path | None:
    """The file beside, of which one is a copy by its name, such as ``a.nii.gz`` of ``a.nii.gz.bak``; None of others."""
    original = path.with_name(_COPY.sub("", path.name) or path.name)
    return original if original != path and original.is_file() else None


def is_image_file(path: Path) -> bool:
    """Whether a path is, by its name, a NIfTI, NRRD, MetaImage or MGH file, or the header of a pair."""
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")
