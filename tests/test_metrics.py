"""Dice for each organ against overlaps counted by hand, and the table, CSV and JSON made of it."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import from_engine
from scripts.metrics import OrganDice, OrganDiceHandler, OrganMetricsSaver, format_table

ORGANS = ["spleen", "liver"]


def one_hot(*organs: torch.Tensor) -> torch.Tensor:
    """Organ masks to ``(1 + organs, ...)`` with background first."""
    organs = torch.stack(organs).float()
    return torch.cat([1 - organs.amax(0, keepdim=True), organs])


def box(start: int, stop: int) -> torch.Tensor:
    """A 2 x 2 column from ``start`` to ``stop`` along the last axis of a (4, 4, 8) grid."""
    mask = torch.zeros(4, 4, 8)
    mask[1:3, 1:3, start:stop] = 1
    return mask


NOTHING = box(0, 0)


def dice(prediction: torch.Tensor, truth: torch.Tensor) -> list[float]:
    return OrganDice()([prediction], [truth])[0].tolist()


def test_partial_overlap():
    # 4 * 4 voxels against 4 * 2, 4 * 1 of them shared: 2 * 4 / (16 + 8)
    found = dice(one_hot(box(0, 4), NOTHING), one_hot(box(3, 5), NOTHING))

    assert found[0] == pytest.approx(2 * 4 / (16 + 8))


def test_a_perfect_organ_beside_a_missed_one():
    found = dice(one_hot(box(0, 2), NOTHING), one_hot(box(0, 2), box(4, 6)))

    assert found == [1.0, 0.0]


def test_an_organ_absent_from_both_is_undefined():
    found = dice(one_hot(box(0, 2), NOTHING), one_hot(box(0, 2), NOTHING))

    assert math.isnan(found[1])


def test_an_invented_organ_counts_as_zero():
    found = dice(one_hot(box(0, 2), box(4, 6)), one_hot(box(0, 2), NOTHING))

    assert found[1] == 0.0


def test_the_mean_leaves_undefined_values_out():
    metric = OrganDice()
    metric([one_hot(box(0, 2), NOTHING)], [one_hot(box(0, 2), NOTHING)])  # 1, undefined

    assert metric.aggregate().item() == 1.0


VALUES = torch.tensor([[0.8, math.nan], [0.6, 0.9], [0.4, 0.7]])


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_the_table_names_its_rows_and_columns():
    lines = format_table(VALUES, ["img1", "img2", "img3"], ORGANS).splitlines()

    assert lines[0].split() == ["spleen", "liver", "mean"]
    assert [line.split()[0] for line in lines[1:]] == ["img1", "img2", "img3", "mean"]


def test_the_table_has_a_dash_for_undefined_and_leaves_it_out_of_the_mean():
    assert rows_of(format_table(VALUES, ["img1", "img2", "img3"], ORGANS))["img1"] == ["0.8000", "-", "0.8000"]


def test_the_last_mean_is_over_organ_means():
    # organ means 0.6 and 0.8, not the mean of five values, 0.68
    assert rows_of(format_table(VALUES, ["img1", "img2", "img3"], ORGANS))["mean"] == ["0.6000", "0.8000", "0.7000"]


@pytest.fixture
def saved(tmp_path):
    """The folder of an evaluation of two volumes: Dice (1/3, undefined), then (1, 0)."""
    outputs = [
        [{"pred": one_hot(box(0, 4), NOTHING), "label": one_hot(box(3, 5), NOTHING)}],
        [{"pred": one_hot(box(0, 2), NOTHING), "label": one_hot(box(0, 2), box(4, 6))}],
    ]
    batches = [[{"filename_or_obj": f"/somewhere/img{index}.nii.gz"}] for index in (1, 2)]
    engine = Engine(lambda engine, batch: outputs[engine.state.iteration - 1])
    engine.state.metric_details = {}  # as MONAI's engines have it
    OrganDiceHandler(output_transform=from_engine(["pred", "label"])).attach(engine, "dice")
    OrganMetricsSaver(str(tmp_path), ORGANS, about={"steps": 2}).attach(engine)
    engine.run(batches)
    return tmp_path


def test_csv_has_the_organs_as_columns(saved):
    with open(saved / "dice_raw.csv", newline="") as file:
        header, *rows = csv.reader(file)

    assert header == ["filename", "spleen", "liver", "mean"]
    assert float(rows[0][1]) == pytest.approx(1 / 3, abs=1e-4)
    assert [row[0].endswith(f"img{index}.nii.gz") for index, row in enumerate(rows, 1)] == [True, True]


def test_json_has_the_numbers_and_what_they_are_of(saved):
    content = json.loads((saved / "metrics.json").read_text())

    assert content["about"] == {"steps": 2}
    assert (content["cases"], content["organs"]) == (["img1", "img2"], ORGANS)
    assert content["dice"]["values"] == [[pytest.approx(1 / 3, abs=1e-6), None], [1.0, 0.0]]
    assert content["dice"]["organ_means"] == [pytest.approx(2 / 3, abs=1e-6), 0.0]


def test_metrics_leave_no_unfinished_file(saved):
    assert not list(saved.glob("*.part"))
