"""Painted patients: the same seed the same patient, organs as large and as varied as people's, nothing out of place."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.data.phantom_anatomy import ORGANS
from scripts.pretraining.anatomy import make_patient, write_patients
from scripts.pretraining.patient import CENTRE, LABEL_INDEX, LABELS, POPULATION, SHAPE, SPACING, TISSUE_INDEX, TISSUES

MILLILITRES = float(np.prod(SPACING)) / 1000


def test_a_seed_is_a_patient():
    first, again, other = make_patient(3), make_patient(3), make_patient(4)

    for one, two in zip(first, again):
        np.testing.assert_array_equal(one, two)
    assert (first[0] != other[0]).mean() > 0.05


def test_maps_hold_known_tissues_and_labels_on_one_grid():
    tissue, label = make_patient(0)

    assert tissue.shape == label.shape == SHAPE
    assert tissue.max() < len(TISSUES) and label.max() < len(LABELS)
    # organs are made of what they are made of
    liver = tissue[label == LABEL_INDEX["liver"]]
    allowed = {"liver", "liver fat", "hepatic vessel", "lesion", "cyst", "stone", "fat"}
    assert set(np.unique(liver)) <= {TISSUE_INDEX[name] for name in allowed}
    # the patient's right is where the axis points
    right, left = (np.argwhere(label == LABEL_INDEX[name])[:, 0].mean() for name in ("right kidney", "left kidney"))
    assert right > SHAPE[0] / 2 > left


def test_below_the_organs_there_is_a_pelvis_and_above_them_a_chest():
    tissue, label = make_patient(0)
    height = CENTRE[2] + (np.arange(SHAPE[2]) - (SHAPE[2] - 1) / 2) * SPACING[2]
    organs = ((label > 0) & (label <= len(ORGANS))).any((0, 1))
    assert height[organs].min() > -150 and height[organs].max() < 130

    def share(names, low, high):
        """Of the voxels of the body between two heights in mm."""
        part = tissue[:, :, (height > low) & (height < high)]
        body = part != TISSUE_INDEX["air"]
        return np.isin(part, [TISSUE_INDEX[name] for name in names])[body].mean()

    assert share(["muscle"], -240, -160) > 1.3 * share(["muscle"], -60, 20)  # the glutei
    assert share(["cortical bone", "marrow"], -240, -160) > 1.3 * share(["cortical bone", "marrow"], -60, 20)
    urine = (tissue == TISSUE_INDEX["renal pelvis"]) & (label == LABEL_INDEX["collection"])
    assert urine.any() and height[urine.any((0, 1))].max() < -100
    assert share(["lung"], 120, 180) > 0.15


def test_some_colons_hang_down_full_of_stool():
    """Below the liver stool is easily taken for it, so there must be patients who have much of it there."""
    height = CENTRE[2] + (np.arange(SHAPE[2]) - (SHAPE[2] - 1) / 2) * SPACING[2]
    below = (height > -190) & (height < -90)
    stool = [(make_patient(seed)[0][:, :, below] == TISSUE_INDEX["stool"]).sum() * MILLILITRES for seed in (0, 1)]

    assert stool[1] > 150 > 3 * stool[0]


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="0 or more, but is -1"):
        make_patient(-1)


def test_written_patients_are_read_back_and_left_alone(tmp_path):
    files = write_patients(tmp_path, 1, first_seed=5)
    before = files[0].stat().st_mtime_ns

    assert write_patients(tmp_path, 1, first_seed=5) == files
    assert files[0].stat().st_mtime_ns == before
    with np.load(files[0]) as content:
        np.testing.assert_array_equal(content["label"], make_patient(5)[1])
    with pytest.raises(ValueError, match="1 or more, but is 0"):
        write_patients(tmp_path, 0)


@pytest.mark.slow
def test_the_drawn_population_is_centred_on_people_and_wider():
    volumes = np.array(
        [
            [(label == 1 + index).sum() * MILLILITRES for index in range(len(ORGANS))]
            for label in (make_patient(seed)[1] for seed in range(80))
        ]
    )

    for organ, drawn in zip(ORGANS, volumes.T):
        mean, spread = POPULATION[organ]
        there = drawn[drawn > 0]
        assert len(there) >= 70  # few have lost the organ
        assert 0.75 * mean < there.mean() < 1.3 * mean, organ
        assert there.std() > spread, organ
        assert there.min() < mean - 1.3 * spread and there.max() > mean + 1.5 * spread, organ
