"""``--tracking mlflow``: MONAI's own settings for it, with the runs in a local database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.workflows import SETTINGS, new_workflow, write_overlay

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install -e '.[tracking]'")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, write_dataset, backbone_file) -> Path:
    """A user's folder after training, evaluating and inferring with ``--tracking mlflow``."""
    folder = tmp_path_factory.mktemp("tracked")
    dataset = write_dataset(tmp_path_factory.mktemp("dataset"))
    place = f"$'{folder}'"  # MONAI appends the name of the stored configuration to an expression
    settings = {"output_dir": place, "test_cases": ["c"], "input": str(dataset / "image_c.nii.gz")}
    overlay = write_overlay(folder, dataset, backbone_file, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for command in ("training", "evaluating", "inferring"):
            workflow = new_workflow(command, overlay, tracking="mlflow")
            workflow.initialize()
            workflow.run()
            workflow.finalize()
    return folder


def the_run(folder: Path, name: str):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("DiffuSAM")
    (found,) = [run for run in client.search_runs(experiment.experiment_id) if run.info.run_name == name]
    return client, found


@pytest.mark.parametrize("command", ["training", "evaluating", "inferring"])
def test_each_command_is_a_run_that_has_ended(tracked, command):
    _, found = the_run(tracked, command)

    assert found.info.status == "FINISHED"


def test_a_training_has_its_loss_of_every_iteration(tracked):
    client, found = the_run(tracked, "training")

    losses = client.get_metric_history(found.info.run_id, "train_loss")
    assert [each.step for each in losses] == list(range(1, SETTINGS["iterations"] + 1))
    assert all(each.value > 0 for each in losses)


def test_a_training_keeps_its_configuration(tracked):
    client, found = the_run(tracked, "training")

    (stored,) = client.list_artifacts(found.info.run_id)
    content = json.loads(Path(client.download_artifacts(found.info.run_id, stored.path)).read_text())
    assert content["iterations"] == SETTINGS["iterations"]


def test_an_evaluation_has_the_means_that_it_reports(tracked):
    _, found = the_run(tracked, "evaluating")
    reported = json.loads((tracked / "evaluation" / "metrics.json").read_text())

    assert found.data.metrics["dice"] == pytest.approx(reported["dice"]["mean"], abs=1e-6)
    assert found.data.metrics["surface_dice_2mm"] == pytest.approx(reported["surface_dice_2mm"]["mean"], abs=1e-6)
