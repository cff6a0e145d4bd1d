"""Label maps as DICOM Segmentations: beside the series they belong to, with organs that other programs know."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from ignite.engine import Engine
from monai.utils import ImageMetaKey
from nibabel.affines import voxel_sizes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..data.dicom import series_slices
from ..data.volumes import result_name
from ..errors import DatasetError, listed
from ..files import whole_file
from ..inference.case_records import LOST_SEG, bundle_version, is_dicom
from ..inference.result_files import DICOM_SEG
from .dicom_headers import UTF_8, mend_headers, plain_classes, restore_classes, text
from .previews import COLOURS

if TYPE_CHECKING:
    import highdicom as hd

NAME = "DiffuSAM"
PRIVATE_SCHEME = "99DIFFUSAM"  # DICOM leaves schemes that begin with 99 to everybody's own use
SNOMED_CT = "SCT"
CATEGORY = Code("123037004", SNOMED_CT, "Anatomical Structure")
GRID_TOLERANCE = 1e-3  # millimetres, between the affine of a label map and that of its series

# what a segmentation cannot do without, and what it copies where the series has it
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)

_MADE_BY = {
    **{"manufacturer": NAME, "manufacturer_model_name": NAME, "device_serial_number": "1"},
    **{"content_label": NAME.upper(), "content_description": "organs, segmented automatically"},
}

logger = logging.getLogger(__name__)
# it tells of every group of elements that it copies, of label maps without an organ, and of names of one word
logging.getLogger("highdicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "(?s)The string .* is unlikely to represent the intended person name")

OrganCodes = Mapping[str, "str | Sequence[str]"]


class UnsuitableSeries(DatasetError):
    """A series that can be read, but to which no segmentation can belong."""


class DicomSegSaver:
    """Writes ``{save_dir}/{case}_seg.dcm`` for a segmented case whose image is a DICOM series.

    Where a series cannot have one, as many that were stripped of their identifiers, a warning says so, and the output
    of its case holds the reason, by which the run ends with an error.

    Args:
        save_dir: folder of the results.
        organs: names; label values 1...K in this order.
        codes: what each organ is in a standard terminology, see :func:`organ_code`.
        series: the choice among several series that the image was read with.
        enabled: False writes nothing.
        prediction_key: of the label map in the engine's output.

    Raises:
        DatasetError: an unusable entry in ``codes``.
    """

    def __init__(
        self,
        save_dir: str | Path,
        organs: Sequence[str],
        *,
        codes: OrganCodes | None = None,
        series: str | int | None = None,
        enabled: bool = True,
        prediction_key: str = "pred",
    ) -> None:
        self.save_dir, self.organs, self.codes = Path(save_dir), list(organs), dict(codes or {})
        self.series, self.enabled, self.prediction_key = series, enabled, prediction_key
        self._uncoded = uncoded(self.organs, self.codes)

    def __call__(self, engine: Engine) -> None:
        for output in engine.state.output if self.enabled else ():
            meta, labels = output["image"].meta, output[self.prediction_key]
            source = Path(meta[ImageMetaKey.FILENAME_OR_OBJ])
            if is_dicom(source):
                voxels = labels[0].cpu().numpy().astype(np.uint8 if len(self.organs) < 256 else np.uint16)
                problem = self._save(source, voxels, np.asarray(labels.affine), result_name(meta))
                if problem:
                    output[LOST_SEG] = problem

    def _save(self, source: Path, labels: np.ndarray, affine: np.ndarray, case: str) -> str | None:
        """Writes one; or says why it cannot be made."""
        path = self.save_dir / DICOM_SEG.format(case=case)
        try:
            segmentation = make_segmentation(
                source, labels, affine, organs=self.organs, organ_codes=self.codes, series=self.series
            )
        except UnsuitableSeries as error:
            path.unlink(missing_ok=True)  # an older one would not go with the new label map
            logger.warning("%s: no DICOM SEG, its label map is written as NIfTI alone. %s", case, error)
            return str(error)
        if self._uncoded:
            message = "No standard code for %s: DICOM SEG names them by the private scheme %s. Add them to organ_codes."
            logger.warning(message, listed(self._uncoded), PRIVATE_SCHEME)
            self._uncoded = []  # said once
        with whole_file(path) as temporary:
            segmentation.save_as(temporary)
        return None


def make_segmentation(
    source: Path,
    labels: np.ndarray,
    affine: np.ndarray,
    *,
    organs: Sequence[str],
    organ_codes: OrganCodes | None = None,
    series: str | int | None = None,
) -> hd.seg.Segmentation:
    """A label map as a DICOM Segmentation of the series that it belongs to.

    Its frames have the position, direction and spacing of the series' own; those without an organ are left out, as is
    usual. It belongs to the patient and study of the series, as a new series.

    Args:
        source: folder or file of the series.
        labels: ``(columns, rows, slices)``, 0 background, 1...K organs, unsigned integers.
        affine: ``(4, 4)`` of the label map, to millimetres, RAS+.
        organs: names of the organs.
        organ_codes: see :func:`organ_code`.
        series: see :func:`scripts.data.volumes.load_volume`.

    Raises:
        DatasetError: the label map is on another grid.
        UnsuitableSeries: the series does not say which study it is of, or is stored in a way that highdicom refuses.
    """
    slices = _slices_below(source, labels, affine, series)
    headers = _mended_headers(source, [file for file, _ in slices], float(voxel_sizes(affine)[2]))
    classes = plain_classes(headers)
    first = next(iter(headers.values()))
    frames = labels.transpose(2, 1, 0)  # slices, rows, columns
    if "NumberOfFrames" in first:  # frames of one file follow one another as they are stored
        frames = frames[np.argsort([frame for _, frame in slices])]
    import highdicom as hd  # a sixth of the whole start, for results that few inputs have

    try:
        segmentation = hd.seg.Segmentation(
            source_images=list(headers.values()),
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _described(number, organ, organ_code(organ, organ_codes)) for number, organ in enumerate(organs, 1)
            ],
            series_instance_uid=generate_uid(),
            # behind the series of the scanner, and the same for every segmentation of one series
            series_number=100 * (_number(first.get("SeriesNumber")) % 10**6) + 1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            software_versions=bundle_version(),
            **_MADE_BY,
            series_description=text(f"{NAME}: {text(first.get('SeriesDescription') or 'segmentation', 64)}", 64),
            specific_character_set=UTF_8,
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UnsuitableSeries(
            f"'{source}': no DICOM SEG can be made of this series ({type(error).__name__}: {error}). Export the "
            "original series, or do without: --dicom_seg False."
        ) from error
    restore_classes(segmentation, classes)
    return segmentation


def _slices_below(
    source: Path, labels: np.ndarray, affine: np.ndarray, series: str | int | None
) -> list[tuple[Path, int]]:
    """File and frame of each slice of the series that a label map lies on."""
    slices, expected = series_slices(source, None if series is None else str(series))
    if len(slices) != labels.shape[2] or not np.allclose(affine, expected, atol=GRID_TOLERANCE):
        raise DatasetError(
            f"'{source}': the label map of shape {labels.shape} is not on the grid of the series, which has "
            f"{len(slices)} slices. Were files added or removed meanwhile?"
        )
    return slices


def _mended_headers(source: Path, files: Iterable[Path], distance: float) -> dict[Path, pydicom.Dataset]:
    """Headers of a series as a segmentation can refer to them."""
    headers = {file: pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files}
    changes = mend_headers(headers, distance)
    if changes:
        logger.warning("'%s': mended for its DICOM SEG: %s.", source, listed(changes))
    _check_headers(source, headers)
    for header, keyword in product(headers.values(), _COPIED):
        if keyword not in header:
            setattr(header, keyword, None)
    return headers


def _described(number: int, organ: str, code: Code) -> hd.seg.SegmentDescription:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=text(organ, 64),
        segmented_property_category=CATEGORY,
        segmented_property_type=code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            NAME, family=codes.cid7162.ArtificialIntelligence, version=bundle_version()
        ),
        display_color=hd.color.CIELabColor.from_string(COLOURS[(number - 1) % len(COLOURS)]),
    )


def organ_code(organ: str, organ_codes: OrganCodes | None = None) -> Code:
    """What an organ is called in a standard terminology.

    Args:
        organ: its name.
        organ_codes: for each organ its code in SNOMED CT, or ``[code, scheme, meaning]`` in any terminology.

    Returns:
        The code; for an organ that is not in ``organ_codes`` one of the private scheme ``99DIFFUSAM``, which keeps its
        name but means nothing to other programs.

    Raises:
        DatasetError: an entry that is neither.

    Example:
        >>> organ_code("right kidney", {"right kidney": "9846003"})
        Code(value='9846003', scheme_designator='SCT', meaning='Right kidney', scheme_version=None)
    """
    entry = (organ_codes or {}).get(organ)
    if entry is None:
        return Code(text(organ, 64), PRIVATE_SCHEME, text(organ, 64))
    if isinstance(entry, (str, int)):
        entry = [str(entry), SNOMED_CT, organ[:1].upper() + organ[1:]]
    if not isinstance(entry, Sequence) or len(entry) != 3 or not all(isinstance(each, str) and each for each in entry):
        raise DatasetError(
            f"organ_codes has {entry} for {organ}; expected its code in SNOMED CT as text, such as '10200004', or "
            "['10200004', 'SCT', 'Liver']. Correct it."
        )
    return Code(*entry)


def uncoded(organs: Sequence[str], organ_codes: OrganCodes | None = None) -> list[str]:
    """The organs without a standard code.

    Raises:
        DatasetError: an unusable entry in ``organ_codes``.
    """
    return [organ for organ in organs if organ_code(organ, organ_codes).scheme_designator == PRIVATE_SCHEME]


def _number(value: object) -> int:
    """A whole number as far as there is one."""
    try:
        return int(str(value))
    except ValueError:
        return 0


def _check_headers(source: Path, headers: Mapping[Path, pydicom.Dataset]) -> None:
    missing = {keyword for header in headers.values() for keyword in _REQUIRED if not header.get(keyword)}
    if missing:
        raise UnsuitableSeries(
            f"'{source}': no {listed(sorted(missing))} in the series, without which no DICOM SEG can belong to it. "
            "Export the original series, or do without it: --dicom_seg False."
        )
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if (found := len({header[keyword].value for header in headers.values()})) > 1:
            raise UnsuitableSeries(
                f"'{source}': no DICOM SEG can be made of this series, whose slices have {found} values of {keyword} "
                "in place of one. Export the original series, or do without: --dicom_seg False."
            )
    if len({header.SOPInstanceUID for header in headers.values()}) < len(headers):
        raise UnsuitableSeries(
            f"'{source}': slices with the SOPInstanceUID of another, by which a DICOM SEG refers to each. Export the "
            "original series, or do without it: --dicom_seg False."
        )
    if len(headers) > 1 and any("NumberOfFrames" in header for header in headers.values()):
        raise UnsuitableSeries(
            f"'{source}': a series of {len(headers)} files that may hold several frames each, expected one such file, "
            "or one slice a file. Export the series in another way."
        )
