"""The tables, the CSV and the JSON of an evaluation."""

from __future__ import annotations

import csv
import json
import logging
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import from_engine
from scripts.output.metrics import OrganDice, OrganMetricHandler, SurfaceMetrics
from scripts.output.tables import OrganMetricsSaver, format_summary, format_table, summarise, to_csv

ORGANS = ["spleen", "liver"]
CASES = ["img1", "img2", "img3"]
VALUES = torch.tensor([[0.8, math.nan], [0.6, 0.9], [0.4, 0.7]])


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_the_table_names_its_rows_and_columns():
    lines = format_table(VALUES, CASES, ORGANS).splitlines()

    assert lines[0].split() == ["spleen", "liver", "mean"]
    assert [line.split()[0] for line in lines[1:]] == ["img1", "img2", "img3", "mean"]


def test_the_table_has_a_dash_for_undefined_and_leaves_it_out_of_the_mean():
    assert rows_of(format_table(VALUES, CASES, ORGANS))["img1"] == ["0.8000", "-", "0.8000"]


def test_the_last_mean_is_over_organ_means():
    # organ means 0.6 and 0.8, not the mean of five values, 0.68
    assert rows_of(format_table(VALUES, CASES, ORGANS))["mean"] == ["0.6000", "0.8000", "0.7000"]
    assert summarise(VALUES)["mean"] == pytest.approx(0.7)


def test_the_summary_has_spread_and_number_of_volumes_beside_each_mean():
    table = format_summary({"missed": torch.tensor([[0, 1], [0, 0], [0, 0]]), "hd95_mm": VALUES}, ORGANS)

    # deviations 0.2, 0, -0.2 and 0.1, -0.1; counts come last
    assert [line.split() for line in table.splitlines()[1:]] == [
        "hd95_mm 0.60 ± 0.20 (3/3) 0.80 ± 0.14 (2/3) 0.70 (2/2)".split(),
        ["total"],
        "missed 0 1 1".split(),
    ]


@pytest.mark.parametrize(
    ("column", "cells"), [([0.5, math.nan], "0.5000 (1/2) 0.5000 (1/1)"), ([math.nan, math.nan], "- (0/2) - (0/1)")]
)
def test_the_summary_has_no_spread_of_one_volume_or_none(column, cells):
    table = format_summary({"dice": torch.tensor([column]).T}, ["liver"])

    assert rows_of(table)["dice"] == cells.split()


def box(first: int, last: int, value: int) -> torch.Tensor:
    labels = torch.zeros(1, 4, 4, 8)
    labels[:, 1:3, 1:3, first:last] = value
    return labels


@pytest.fixture(params=["names", "meta"])
def saved(request, tmp_path, caplog):
    """The folder of an evaluation of two volumes: Dice (1/3, undefined), then (1, 0)."""
    caplog.set_level(logging.INFO)
    outputs = [
        [{"pred": box(0, 4, 1), "label": MetaTensor(box(3, 5, 1))}],
        [{"pred": box(0, 2, 1), "label": MetaTensor(box(0, 2, 1) + box(4, 6, 2))}],
    ]
    named = {
        "names": lambda index: f"img{index}",
        "meta": lambda index: {"filename_or_obj": f"/some/img{index}.nii.gz"},
    }
    engine = Engine(lambda engine, batch: outputs[engine.state.iteration - 1])
    engine.state.metric_details = {}  # as MONAI's engines have it
    for name, metric in {"dice": OrganDice(2), "surface": SurfaceMetrics(2)}.items():
        OrganMetricHandler(metric, from_engine(["pred", "label"])).attach(engine, name)
    OrganMetricsSaver(str(tmp_path / "new"), ORGANS, about={"steps": 2}).attach(engine)
    engine.run([[named[request.param](index)] for index in (1, 2)])
    return tmp_path / "new"


def test_names_begin_no_line_of_the_csv():
    text = to_csv({"dice": torch.ones(1, 1)}, ["a\nb"], ["\x1b[2Jx"])
    assert text == "case,organ,dice\na\\nb,\\x1b[2Jx,1.0\n"


def test_csv_has_a_row_for_each_case_and_organ(saved):
    with open(saved / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert list(rows[0]) == ["case", "organ", "dice", *SurfaceMetrics(2).names]
    assert [(row["case"], row["organ"]) for row in rows] == [(c, o) for c in ("img1", "img2") for o in ORGANS]
    assert float(rows[0]["dice"]) == pytest.approx(1 / 3, abs=1e-6)
    assert (rows[1]["dice"], rows[1]["missed"]) == ("", "0")
    assert (rows[3]["dice"], rows[3]["hd95_mm"], rows[3]["missed"]) == ("0.0", "", "1")


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name):
    rows = list(csv.reader(to_csv({"dice": torch.ones(1, 1)}, [name], [name]).splitlines()))
    text = "'" + name.replace("\t", "\\t")
    assert rows[1] == [text, text, "1.0"]


def test_json_has_the_numbers_and_what_they_are_of(saved):
    content = json.loads((saved / "metrics.json").read_text())

    assert content["about"] == {"steps": 2}
    assert (content["cases"], content["organs"]) == (["img1", "img2"], ORGANS)
    assert content["dice"] == {
        "mean": pytest.approx(1 / 3, abs=1e-6),
        "organ_means": [pytest.approx(2 / 3, abs=1e-6), 0.0],
        "organ_sds": [pytest.approx(2 / 3 / math.sqrt(2), abs=1e-6), None],
        "organ_volumes": [2, 1],
        "values": [[pytest.approx(1 / 3, abs=1e-6), None], [1.0, 0.0]],
    }
    assert content["hd95_mm"]["organ_volumes"] == [2, 0]
    assert content["missed"] == {"organ_totals": [0, 1], "values": [[0, 0], [0, 1]]}


def test_the_log_has_both_tables(saved, caplog):
    tables = [record.getMessage() for record in caplog.get_records("setup") if record.name == "scripts.output.tables"]

    assert [table.splitlines()[0] for table in tables] == ["all metrics", "dice"]
    assert "img2" in tables[1]


def test_rows_have_the_order_that_is_asked_for(tmp_path):
    """With several processes the cases of one come before those of the next."""
    values = {"c": 0.3, "e": 0.5, "d": 0.4}
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {"dice": torch.tensor(list(values.values()))[:, None]}
    OrganMetricsSaver(str(tmp_path), ["liver"], order=["c", "d", "e"]).attach(engine)

    engine.run([[case] for case in values])

    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["cases"] == ["c", "d", "e"]
    assert content["dice"]["values"] == [[pytest.approx(0.3)], [pytest.approx(0.4)], [pytest.approx(0.5)]]


def test_files_are_whole_or_not_there(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["metrics.csv", "metrics.json"]
