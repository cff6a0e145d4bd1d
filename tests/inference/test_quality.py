"""What speaks against a result: measures of organs whose values are known, flags, and where they end up."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scripts.data.dataset_check import CaseSummary, check_dataset
from scripts.inference.calibration import Calibration
from scripts.inference.quality import (
    QualityCheck,
    Thresholds,
    find_flags,
    largest_jump,
    measure_organs,
    read_training_volumes,
    training_volumes,
)
from scripts.training.handlers import PriorExporter

from tests.conftest import save_volume
from tests.helpers.workflows import ORGANS, new_workflow, run, write_overlay, write_prior

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])  # a voxel has 0.02 ml
FINE = {
    **{"volume_ml": 100.0, "components": 1, "outside": 0.0, "largest_jump": 0.1, "touches_edge": False},
    **{"predicted_dice": 0.9, "object_score": None},
}


def boxes(*corners, shape=(20, 20, 10)) -> np.ndarray:
    """A label map with value 1 in each box ((from, to), (from, to), (from, to))."""
    labels = np.zeros(shape, np.uint8)
    for box in corners:
        labels[tuple(slice(*side) for side in box)] = 1
    return labels


def measured(labels: np.ndarray, affine: np.ndarray = AFFINE) -> dict:
    return measure_organs(labels, affine, ["liver"])["liver"]


# ---- measures


def test_a_box_has_its_volume_one_piece_and_no_jump():
    found = measured(boxes(((2, 12), (3, 8), (1, 5))))

    assert found["volume_ml"] == 10 * 5 * 4 * 0.02
    assert (found["components"], found["outside"], found["largest_jump"]) == (1, 0.0, 0.0)
    assert found["touches_edge"] is False


def test_the_volume_on_a_sheared_grid_is_that_of_its_voxels():
    """Slices whose step leans to the back by 3 mm are 5 mm apart nevertheless."""
    leaning = AFFINE.copy()
    leaning[1, 2] = -3

    assert measured(boxes(((2, 12), (3, 8), (1, 5))), leaning)["volume_ml"] == 10 * 5 * 4 * 0.02


def test_pieces_are_counted_and_weighed():
    """80 voxels, 16 apart from them, and 4 that touch the first at a corner."""
    labels = boxes(((2, 6), (2, 6), (1, 6)), ((10, 14), (10, 14), (1, 2)), ((6, 8), (6, 8), (6, 7)))
    found = measured(labels)

    assert found["components"] == 2
    assert found["outside"] == pytest.approx(16 / 100)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_the_edge_is_any_of_six_faces(axis, last):
    box = [(5, 9), (5, 9), (3, 7)]
    box[axis] = ((20, 20, 10)[axis] - 3, (20, 20, 10)[axis]) if last else (0, 3)

    assert measured(boxes(box))["touches_edge"] is True


@pytest.mark.parametrize("corner", [(0, 0, 0), (19, 19, 9)])
def test_a_stray_piece_at_the_edge_is_not_the_organ(corner):
    stray = [(place, place + 1) for place in corner]
    assert measured(boxes(((5, 9), (5, 9), (3, 7)), stray))["touches_edge"] is False


@pytest.mark.parametrize("axcodes", ["PLS", "SAL", "IPR"])
def test_measures_do_not_depend_on_how_a_file_is_stored(axcodes):
    labels = boxes(((2, 12), (3, 8), (1, 4)), ((2, 6), (3, 8), (4, 7)), ((12, 14), (15, 18), (2, 3)))
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(axcodes))
    turned = measured(apply_orientation(labels, turn), AFFINE @ inv_ornt_aff(turn, labels.shape))

    assert turned == measured(labels)


def test_the_area_jumps_by_a_share_of_the_largest():
    """50, 50, 20, 20 voxels."""
    labels = boxes(((2, 12), (3, 8), (1, 3)), ((2, 6), (3, 8), (3, 5)))

    # the centre moves by 6 mm, which is 0.38 diameters, but with two fifths of the area
    assert measured(labels)["largest_jump"] == pytest.approx(30 / 50)


def test_the_centre_jumps_by_diameters():
    mask = np.zeros((40, 10, 2), bool)
    mask[0:10, :, 0] = mask[30:40, :, 1] = True
    diameter = np.sqrt(4 / np.pi * 100 * 2 * 3)

    assert largest_jump(mask, (2.0, 3.0)) == pytest.approx(30 * 2 / diameter)


@pytest.mark.parametrize("axcodes", ["RAS", "SAL", "IPR", "PLS"])
def test_the_centre_jumps_in_millimetres_however_a_file_is_stored(axcodes):
    """By 6 voxels of 2 mm and 5 of 3 mm."""
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    labels = boxes(((2, 6), (3, 8), (1, 3)), ((8, 12), (8, 13), (3, 5)))
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))

    found = measured(apply_orientation(labels, turn), affine @ inv_ornt_aff(turn, labels.shape))

    diameter = np.sqrt(4 / np.pi * 20 * 2 * 3)
    assert found["largest_jump"] == pytest.approx(np.hypot(6 * 2, 5 * 3) / diameter, abs=1e-4)


def test_a_few_stray_voxels_do_not_count_as_a_leap_of_the_organ():
    mask = np.zeros((40, 10, 2), bool)
    mask[0:10, :, 0] = mask[35, 0:4, 1] = True  # 35 of 11.3 voxels away, with 4 of 100

    assert largest_jump(mask, (1.0, 1.0)) == pytest.approx(0.96)


def test_a_slice_without_the_organ_is_a_whole_jump():
    labels = boxes(((2, 6), (2, 6), (1, 3)), ((2, 6), (2, 6), (4, 6)))
    assert measured(labels)["largest_jump"] == 1.0


def test_an_absent_organ_has_no_measures_that_mean_anything():
    found = measure_organs(boxes(), AFFINE, ["liver"])["liver"]
    assert (found["volume_ml"], found["components"], found["touches_edge"]) == (0.0, 0, False)


# ---- flags


def flags_of(volumes=None, **changes) -> list[str]:
    return [flag["flag"] for flag in find_flags({"liver": {**FINE, **changes}}, Thresholds(), volumes)]


@pytest.mark.parametrize(
    "changes, flags",
    [
        ({}, []),
        ({"components": 0, "volume_ml": 0.0}, ["empty"]),
        ({"components": 9, "outside": 0.15}, []),
        ({"components": 9, "outside": 0.16}, ["components"]),
        ({"largest_jump": 0.55}, []),
        ({"largest_jump": 0.56}, ["jump"]),
        ({"touches_edge": True}, ["edge"]),
        ({"predicted_dice": 0.7}, []),
        ({"predicted_dice": 0.69}, ["uncertainty"]),
        ({"predicted_dice": None}, []),
        ({"largest_jump": 1.0, "predicted_dice": 0.2}, ["jump", "uncertainty"]),
    ],
)
def test_each_threshold_has_its_flag(changes, flags):
    assert flags_of(**changes) == flags


@pytest.mark.parametrize("volume, flagged", [(49, True), (51, False), (399, False), (401, True)])
def test_volumes_are_compared_with_the_training_set(volume, flagged):
    assert flags_of({"liver": [100.0, 200.0, 150.0]}, volume_ml=volume) == (["volume"] if flagged else [])


def test_organs_without_a_range_are_not_compared():
    assert flags_of({}, volume_ml=1e6) == flags_of({"liver": []}, volume_ml=1e6) == []


def test_a_message_is_a_sentence_with_the_numbers():
    (flag,) = find_flags({"liver": {**FINE, "volume_ml": 20.0}}, Thresholds(), {"liver": [100.0, 200.0]})

    assert flag == {
        "organ": "liver",
        "flag": "volume",
        "message": "liver: 20 ml, expected 50 to 400 ml by the training volumes.",
    }


@pytest.mark.parametrize("threshold", [{"volume_factor": 0.5}, {"max_jump": -1}])
def test_thresholds_that_cannot_be_are_refused(threshold):
    with pytest.raises(ValueError, match=f"{next(iter(threshold))} must .*got"):
        Thresholds(**threshold)


# ---- what the training set says


def test_training_volumes_are_of_the_cases_that_have_the_organ():
    summaries = [
        CaseSummary("a", (9, 9, 9), (2.0, 2.0, 5.0), {"liver": 1000, "spleen": 0}),
        CaseSummary("b", (9, 9, 9), (1.0, 1.0, 5.0), {"liver": 1000, "spleen": 10}),
    ]
    assert training_volumes(summaries) == {"liver": [20.0, 5.0], "spleen": [0.05]}


def test_training_volumes_on_a_sheared_grid_are_those_of_its_voxels(tmp_path):
    leaning = AFFINE.copy()
    leaning[1, 2] = -3
    labels = boxes(((2, 12), (3, 8), (1, 5)))
    item = {"case": "a"}
    for name, voxels in (("image", labels + 40), ("label", labels)):
        item[name] = str(save_volume(tmp_path / f"{name}.nii.gz", voxels, leaning))

    assert training_volumes(check_dataset([item], {"liver": 1})) == {"liver": [10 * 5 * 4 * 0.02]}


def test_a_prior_carries_them(tmp_path):
    exporter = PriorExporter(torch.nn.Module(), tmp_path / "model.pt", about={"organ_volumes": {"liver": [20.0]}})
    exporter.export(None)
    torch.save({"model": {}}, tmp_path / "older.pt")

    assert read_training_volumes(tmp_path / "model.pt") == {"liver": [20.0]}
    assert read_training_volumes(tmp_path / "older.pt") == {}


def test_training_writes_them(tmp_path, tiny_dataset, backbone_file):
    overlay = write_overlay(tmp_path / "run", tiny_dataset, backbone_file)
    exporter = new_workflow("training", overlay).parser.get_parsed_content("train#handlers#0")

    # the boxes of the test label, twice
    assert exporter.about["organ_volumes"]["liver"] == [16 * 16 * 6 * 0.02] * 2
    assert exporter.about["organ_volumes"].keys() == set(ORGANS)


# ---- a case


@pytest.fixture
def older_prior(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def check(prior, labels: np.ndarray, predicted_dice=(), **options) -> dict:
    label = MetaTensor(labels[None], affine=torch.from_numpy(AFFINE))
    output = {"pred": label, "image": MetaTensor(label, meta={**label.meta, "case": "a"})}
    engine = SimpleNamespace(
        state=SimpleNamespace(output=[output]), inferer=SimpleNamespace(predicted_dice=list(predicted_dice))
    )
    QualityCheck(["liver", "spleen"], prior_file=prior, **options)(engine)
    return output["quality"]


def test_all_flags_of_a_case_are_one_line(older_prior, caplog):
    with caplog.at_level(logging.WARNING):
        quality = check(older_prior, boxes(((0, 12), (3, 8), (1, 5))))

    assert [(flag["organ"], flag["flag"]) for flag in quality["flags"]] == [("liver", "edge"), ("spleen", "empty")]
    (line,) = caplog.messages
    assert line.startswith("a: 2 flags. liver: it reaches the edge of the volume")


def test_nothing_is_said_of_a_plausible_case(older_prior, caplog):
    labels = boxes(((2, 12), (3, 8), (1, 5)))
    labels[15:18, 2:9, 2:6] = 2
    with caplog.at_level(logging.WARNING):
        quality = check(older_prior, labels)

    assert quality["flags"] == [] and caplog.messages == []
    assert quality["organs"]["spleen"]["predicted_dice"] is None


def test_the_predicted_dice_is_calibrated(older_prior, tmp_path):
    Calibration([0.0, 1.0], [0.0, 0.8]).save(tmp_path / "calibration.json")
    labels = boxes(((2, 12), (3, 8), (1, 5)))

    quality = check(older_prior, labels, [0.8, None], calibration=tmp_path / "calibration.json", min_dice=0.65)

    assert quality["organs"]["liver"]["predicted_dice"] == pytest.approx(0.64)
    assert [flag["flag"] for flag in quality["flags"]] == ["uncertainty", "empty"]


def test_an_unknown_threshold_is_refused(older_prior):
    with pytest.raises(ValueError, match="quality has no max_jumps; it has .*max_jump"):
        QualityCheck(["liver"], prior_file=older_prior, max_jumps=1)


def test_inference_records_and_says_them(tmp_path, tiny_dataset, backbone_file, caplog):
    overlay = write_overlay(tmp_path / "run", tiny_dataset, backbone_file, input=str(tiny_dataset / "image_c.nii.gz"))
    write_prior(overlay, organ_volumes={"liver": [1e6]})

    with caplog.at_level(logging.WARNING, "scripts.inference.quality"):
        run("inferring", overlay)

    record = json.loads((tmp_path / "run" / "inference" / "results.json").read_text())["cases"]["image_c"]
    flags = {(flag["organ"], flag["flag"]) for flag in record["quality"]["flags"]}
    assert ("liver", "volume") in flags or ("liver", "empty") in flags
    assert record["quality"]["organs"].keys() == set(ORGANS)
    assert any(message.startswith("image_c: ") for message in caplog.messages)
