"""``docs/tour.ipynb``: kept without outputs, and every cell runs."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.workflows import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.fixture
def tour() -> nbformat.NotebookNode:
    return nbformat.read(TOUR, as_version=4)


def test_the_tour_is_a_notebook_without_outputs(tour):
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]

    assert len(code) > 5
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []


def test_every_cell_of_the_tour_runs(tour, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSAM_TOUR", str(tmp_path))
    kernel = NotebookClient(tour, timeout=1200, resources={"metadata": {"path": str(TOUR.parent)}})

    kernel.execute()

    pictures = [out for cell in tour.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(pictures) == 2  # the slices, and the losses
    metrics = json.loads((tmp_path / "training" / "evaluation" / "metrics.json").read_text())
    assert metrics["cases"] == ["ct003"]
    assert metrics["dice"]["mean"] > 0.5  # as the shipped model, from which training starts, is far above
