"""Several frames in one DICOM file: one volume, in order and in real units, or refused with what is in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, generate_uid
from scripts.data.volumes import load_volume
from scripts.errors import DatasetError

from tests.conftest import save_dicom_series

FRAMES = 6
STORED = np.random.default_rng(0).integers(0, 2000, (12, 10, FRAMES)).astype(np.uint16)
NOTHING = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
AXIAL = [1, 0, 0, 0, 1, 0]
SHUFFLED = (3, 0, 5, 1, 4, 2)
TURN = np.linalg.qr(np.array([[1, 0.2, 0.1], [0, 1, 0.3], [0.1, 0, 1]]))[0]


def sequence(**values) -> list[pydicom.Dataset]:
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def upwards(index: int) -> list[float]:
    return [0, 0, 5 * index]


def rescale(slope: float = 1, intercept: float = -1024) -> dict:
    return {"PixelValueTransformationSequence": sequence(RescaleSlope=slope, RescaleIntercept=intercept)}


HOUNSFIELD = rescale()


def enhanced(
    folder: Path,
    order=range(FRAMES),
    *,
    position: Callable = upwards,
    axes=AXIAL,
    shared=HOUNSFIELD,
    of_frame: Callable = lambda index: {},
    sop: str = EnhancedCTImageStorage,
    number: int | None = None,
    **tags,
) -> Path:
    """One file with the planes of :data:`STORED` in an order; groups are dictionaries of sequences."""
    groups = []
    for index in order:
        place = position(index)
        own = (
            {}
            if place is None
            else {"PlanePositionSequence": sequence(ImagePositionPatient=[float(f"{x:.6g}") for x in place])}
        )
        groups += sequence(**(own | of_frame(index)))
    measures = {"PixelMeasuresSequence": sequence(PixelSpacing=[2, 3], SliceThickness=5)}
    if axes is not None:
        measures["PlaneOrientationSequence"] = sequence(ImageOrientationPatient=[float(f"{x:.6g}") for x in axes])
    modality = "CT" if sop == EnhancedCTImageStorage else "MR"
    return save_dicom_series(
        folder,
        STORED[..., :1],
        SOPClassUID=sop,
        Modality=modality,
        NumberOfFrames=number or len(groups),
        SharedFunctionalGroupsSequence=sequence(**(measures | (shared or {}))),
        PerFrameFunctionalGroupsSequence=groups,
        PixelData=b"".join(STORED[..., index % FRAMES].T.tobytes() for index in order),
        **(dict.fromkeys(NOTHING) | tags),
    )


SLOPES, FRACTIONS = np.arange(1, FRAMES + 1), np.array([1, 0.5, 0.25, 2, 3, 0.37])
READ = {
    "in order": ({}, 1),
    "in another order": ({"order": SHUFFLED}, 1),
    "downwards": ({"order": range(FRAMES - 1, -1, -1)}, 1),
    "oblique": ({"order": SHUFFLED, "axes": TURN.T[:2].ravel(), "position": lambda index: TURN @ [7, 8, 5 * index]}, 1),
    "of a tilted gantry": ({"order": SHUFFLED, "position": lambda index: [0, 1.25 * index, 5 * index]}, 1),
    "a slope for each": ({"order": SHUFFLED, "shared": None, "of_frame": lambda index: rescale(SLOPES[index])}, SLOPES),
    "a fraction for each": (
        {"order": SHUFFLED, "shared": None, "of_frame": lambda index: rescale(FRACTIONS[index])},
        FRACTIONS,
    ),
    "a shared slope, and another for one": (
        {"of_frame": lambda index: rescale(2) if index == 2 else {}},
        np.where(np.arange(FRAMES) == 2, 2, 1),
    ),
    "stacks that follow one another": (
        {"of_frame": lambda index: {"FrameContentSequence": sequence(StackID=str(index // 3))}},
        1,
    ),
    "acquired by turns": (
        {"of_frame": lambda index: {"FrameContentSequence": sequence(FrameAcquisitionNumber=1 + index % 2)}},
        1,
    ),
    "a time for each": (
        {
            "of_frame": lambda index: {
                "TemporalPositionSequence": sequence(TemporalPositionTimeOffset=float((5 * index) % 7))
            }
        },
        1,
    ),
}


@pytest.mark.parametrize("sop", [EnhancedCTImageStorage, EnhancedMRImageStorage], ids=["CT", "MR"])
@pytest.mark.parametrize("options, slopes", READ.values(), ids=READ)
def test_frames_are_slices_in_order_and_in_real_units(tmp_path, options, slopes, sop):
    volume = load_volume(enhanced(tmp_path / "a", sop=sop, **options))

    np.testing.assert_array_equal(
        volume.voxels, (STORED * (slopes * np.ones(FRAMES)) - 1024).astype(volume.voxels.dtype)
    )
    assert volume.voxels.dtype == (np.float32 if slopes is FRACTIONS else np.int16)
    position, axes = options.get("position", upwards), np.reshape(options.get("axes", AXIAL), (2, 3))
    step = np.subtract(position(1), position(0))
    expected = np.column_stack([axes[0] * 3, axes[1] * 2, step, position(0)])
    np.testing.assert_allclose(volume.affine[:3], np.diag([-1, -1, 1]) @ expected, atol=1e-3)


def between(values: str) -> Callable:
    """Positions of two volumes, each plane of the second half way to the next of the first."""
    return lambda index: {
        "FrameContentSequence": sequence(**{values: "AB"[index % 2] if values == "StackID" else 1 + index % 2})
    }


TWICE = {"order": [*range(3), *range(FRAMES, FRAMES + 3)], "position": lambda index: [0, 0, 5 * (index % FRAMES)]}
REFUSED = {
    "no positions": ({"position": lambda index: None}, "no ImagePositionPatient in 6 slices"),
    "one position, for all": (
        {"position": lambda index: None, "ImagePositionPatient": [0, 0, 0], "SliceThickness": 5},
        "no ImagePositionPatient in 6 slices",
    ),
    "no position in one": (
        {"position": lambda index: None if index == 2 else upwards(index)},
        "in 1 slice: '0000.dcm' frame 3",
    ),
    "no directions": ({"axes": None}, "no ImageOrientationPatient in 6 slices"),
    "no slope in one": (
        {"shared": None, "of_frame": lambda index: {} if index == 2 else rescale()},
        "no RescaleSlope and RescaleIntercept in 1 of 6 slices: '0000.dcm' frame 3",
    ),
    "a gap": ({"position": lambda index: [0, 0, 5 * index + 5 * (index > 2)]}, "1 slice missing"),
    "uneven": ({"position": lambda index: [0, 0, 5 * index + 2 * (index > 2)]}, "slices at uneven distances"),
    "stacks of other directions": (
        {
            "axes": None,
            "of_frame": lambda index: {
                "PlaneOrientationSequence": sequence(
                    ImageOrientationPatient=AXIAL if index < 3 else [0, 1, 0, 0, 0, -1]
                )
            },
        },
        "slices of 2 different directions",
    ),
    "times": (
        TWICE
        | {"of_frame": lambda index: {"FrameContentSequence": sequence(TemporalPositionIndex=1 + index // FRAMES)}},
        "several volumes in this series, of TemporalPositionIndex 1, 2",
    ),
    "echoes": (
        TWICE | {"of_frame": lambda index: {"MREchoSequence": sequence(EffectiveEchoTime=10.0 + index // FRAMES)}},
        "several volumes in this series, of EffectiveEchoTime 10.0, 11.0",
    ),
    "diffusion": (
        TWICE | {"of_frame": lambda index: {"MRDiffusionSequence": sequence(DiffusionBValue=50.0 * (index // FRAMES))}},
        "several volumes in this series, of DiffusionBValue 0.0, 50.0",
    ),
    "stacks between one another": (
        {"of_frame": between("StackID")},
        "2 volumes lie between one another, of StackID 'A' in 3 slices, 'B' in 3 slices",
    ),
    "times between one another": (
        {"of_frame": between("TemporalPositionIndex")},
        "of TemporalPositionIndex '1' in 3 slices, '2' in 3 slices",
    ),
    "times between one another, by seconds": (
        {
            "of_frame": lambda index: {
                "TemporalPositionSequence": sequence(TemporalPositionTimeOffset=1.5 * (index % 2))
            }
        },
        "of TemporalPositionTimeOffset '0' in 3 slices, '1.5' in 3 slices",
    ),
    "phases between magnitudes": (
        {
            "of_frame": lambda index: {
                "MRImageFrameTypeSequence": sequence(ComplexImageComponent=("MAGNITUDE", "PHASE")[index % 2])
            }
        },
        "of ComplexImageComponent 'MAGNITUDE' in 3 slices, 'PHASE' in 3 slices",
    ),
    "water and fat between one another": (
        {
            "of_frame": lambda index: {
                "MRImageFrameTypeSequence": sequence(FrameType=["DERIVED", "PRIMARY", "DIXON", "WF"[index % 2]])
            }
        },
        "of FrameType 'DIXON\\W' in 3 slices, 'DIXON\\F' in 3 slices",
    ),
    "more groups than frames": ({"number": 5}, "NumberOfFrames 5, and 6 items in its PerFrameFunctionalGroupsSequence"),
    "fewer groups than frames": (
        {"number": 7},
        "NumberOfFrames 7, and 6 items in its PerFrameFunctionalGroupsSequence",
    ),
}


@pytest.mark.parametrize("options, said", REFUSED.values(), ids=REFUSED)
def test_what_is_no_volume_or_several_is_refused(tmp_path, options, said):
    with pytest.raises(DatasetError) as caught:
        load_volume(enhanced(tmp_path / "a", **options))
    assert said in str(caught.value) and str(tmp_path / "a") in str(caught.value)


def test_a_volume_may_go_on_in_a_second_file(tmp_path):
    uid = generate_uid()
    series = enhanced(tmp_path / "a", SeriesInstanceUID=uid)
    above = enhanced(tmp_path / "b", position=lambda index: upwards(index + FRAMES), SeriesInstanceUID=uid)
    next(above.iterdir()).rename(series / "b.dcm")

    voxels = load_volume(series).voxels

    np.testing.assert_array_equal(voxels, np.concatenate([STORED, STORED], -1).astype(int) - 1024)
