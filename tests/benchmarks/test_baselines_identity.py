"""Which result is taken for that of a command, which prior is tested on which cases, and what a diverged network is."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts.errors import DatasetError, RefusedError, UnusableFileError

from benchmarks import corrections, uncertainty
from benchmarks.baselines import supervised
from benchmarks.baselines.evaluation import open_row, open_training, run_row, training_settings
from benchmarks.baselines.run import COMMANDS
from benchmarks.configuration import load_prior, parse
from benchmarks.figures import emerging_mask
from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers.workflows import BUNDLE, train, write_overlay

CONFIGS = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
UNET = {"steps": 2, "slices_per_step": 2, "channels": (4, 8)}
ROOT = {"bundle_root": str(BUNDLE)}


@pytest.fixture(scope="module")
def project(tmp_path_factory, write_dataset, backbone_file) -> SimpleNamespace:
    """A trained prior, of the cases a and b."""
    folder = tmp_path_factory.mktemp("project")
    dataset = write_dataset(folder / "dataset")
    overlay = write_overlay(folder / "run", dataset, backbone_file, test_cases=["d"])
    train(overlay)
    return SimpleNamespace(prior=folder / "run" / "model.pt", config_file=[*CONFIGS, str(overlay)], dataset=dataset)


OTHER = {
    "intensity": {"intensity#a_max": 200},
    "label_map": {"label_map": {"spleen": 1, "liver": 4, "kidneys": [2, 3]}},
    "body_fill": {"body_fill": 0.5},
    "body_air": {"body_air": True},
    "slice_context": {"slice_context": True},
    "amp": {"amp": True},
    "surface_tolerance": {"surface_tolerance": 3.0},
    "dataset_dir": {},
}


@pytest.mark.parametrize("setting", OTHER)
def test_a_result_of_another_setting_is_not_taken_over(project, tmp_path, setting):
    """Whatever changes a number is part of what a result is of; moving the files is not."""
    moved = shutil.copytree(project.dataset, tmp_path / "moved")

    def identity(**overrides) -> dict:
        given = {**ROOT, "dataset_dir": str(moved), **overrides}
        options = {"output": tmp_path / "row.json", "settings": {}, "trains": False, "backbone": True}
        return open_row("row", project.config_file, given, **options).identity

    before = identity()
    assert before == identity(dataset_dir=str(project.dataset))
    if setting == "dataset_dir":  # a case of the same name
        save_volume(moved / "image_d.nii.gz", simple_image(simple_label(), 99))
    assert identity(**OTHER[setting]) != before


@pytest.mark.parametrize("setting", ["neighbours", "decoder_token", "prior_file"])
def test_a_result_of_a_prior_used_otherwise_is_not_taken_over(project, tmp_path, setting):
    def run(**overrides) -> dict:
        given = {**ROOT, "prior_file": str(project.prior), **overrides}
        return COMMANDS["diffusam"](project.config_file, output=str(tmp_path / "row.json"), **given)

    run()
    other = {"neighbours": 0, "decoder_token": "single", "prior_file": str(tmp_path / "other.pt")}
    content = torch.load(project.prior, weights_only=True)
    torch.save({**content, "more": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds another result"):
        run(**{setting: other[setting]})


def test_a_result_is_of_the_network_that_it_was_made_with(project, tmp_path):
    network = tmp_path / "network.pt"

    def run() -> dict:
        options = {**UNET, "network_file": str(network), "output": str(tmp_path / "row.json")}
        return COMMANDS["unet"](project.config_file, **options, **ROOT)

    first = run()
    assert run() == first
    saved = torch.load(network, weights_only=True)
    torch.save({**saved, "network": {key: 2 * value for key, value in saved["network"].items()}}, network)
    with pytest.raises(ValueError, match="holds another result"):
        run()
    network.unlink()  # it may be thrown away
    assert run() == first


def test_a_network_of_other_intensities_is_not_taken_over_but_one_that_says_nothing_of_them_is(project, tmp_path):
    settings = training_settings(steps=1, slices_per_step=1, learning_rate=1e-3, dice_by_slice=False)

    def run(**overrides) -> None:
        parser = parse(project.config_file, {**ROOT, **overrides})
        supervised.train(open_training("small", parser, tmp_path / "network.pt", settings), torch.nn.Conv2d(1, 5, 1))

    run()
    with pytest.raises(ValueError, match="what differs: training_preprocessing"):
        run(**{"intensity#a_max": 200})
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    for key in supervised.NEW_IN_ABOUT:
        del saved["identity"]["about"][key]
    torch.save(saved, tmp_path / "network.pt")
    run(**{"intensity#a_max": 200})


# ---- priors and the cases of their training


def refused_rows(project) -> dict:
    given = {**ROOT, "prior_file": str(project.prior), "train_cases": ["a"], "test_cases": ["b"]}
    files = project.config_file
    return {
        "diffusam": lambda output, **more: COMMANDS["diffusam"](files, output=f"{output}.json", **given, **more),
        "load_prior": lambda output, **more: load_prior(parse(files, {**given, **more})),
        "emerging_mask": lambda output, **more: emerging_mask.main(
            {"CT": files}, output=str(output), steps=1, shown=[1], columns=1, **given, **more
        ),
    }


@pytest.mark.parametrize("row", ["diffusam", "load_prior", "emerging_mask"])
def test_a_prior_is_not_tested_on_the_cases_of_its_training_unless_told(project, tmp_path, row):
    run = refused_rows(project)[row]

    with pytest.raises(DatasetError, match="was trained on 1 test case: b.*allow_training_cases"):
        run(tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    run(tmp_path / "out", allow_training_cases=True)


@pytest.mark.parametrize("command", [COMMANDS["naming"], uncertainty.main, corrections.main])
def test_so_do_all_others_that_test_a_prior(project, tmp_path, command):
    given = {**ROOT, "prior_file": str(project.prior), "train_cases": ["a"], "test_cases": ["b"]}
    with pytest.raises(DatasetError, match="was trained on 1 test case: b"):
        command(project.config_file, output=str(tmp_path / "out"), **given)


# ---- what training leaves, and networks that have diverged


def small_training(project, path: Path, **settings):
    budget = {"steps": 2, "slices_per_step": 1, "learning_rate": 1e-3, "dice_by_slice": False, **settings}
    return open_training("small", parse(project.config_file, ROOT), path, training_settings(**budget))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_beside_the_network_is_left_alone(project, tmp_path, overwrite):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "precious.txt").write_text("x")

    for _ in range(2):
        supervised.train(small_training(project, tmp_path / "network.pt"), torch.nn.Conv2d(1, 5, 1), overwrite)

    assert (tmp_path / "network" / "precious.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network", "network.pt"]


def test_a_training_that_diverges_ends_in_words_and_spoils_no_file(project, tmp_path):
    supervised.train(small_training(project, tmp_path / "network.pt"), torch.nn.Conv2d(1, 5, 1))
    before = (tmp_path / "network.pt").read_bytes()

    with pytest.raises(RefusedError, match="not finite .*smaller --learning_rate"):
        training = small_training(project, tmp_path / "network.pt", steps=4, learning_rate=1e30)
        supervised.train(training, torch.nn.Conv2d(1, 5, 1), overwrite=True)

    assert (tmp_path / "network.pt").read_bytes() == before


def test_weights_that_are_not_finite_are_refused(project, tmp_path):
    training = small_training(project, tmp_path / "network.pt")
    supervised.train(training, torch.nn.Conv2d(1, 5, 1))
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    saved["network"]["bias"][0] = float("nan")
    torch.save(saved, tmp_path / "network.pt")

    with pytest.raises(UnusableFileError, match="its training failed"):
        supervised.train(training, torch.nn.Conv2d(1, 5, 1))
    with pytest.raises(UnusableFileError, match="its training failed"):
        supervised.start_network(torch.nn.Conv2d(1, 5, 1), tmp_path / "network.pt")

    network = torch.nn.Conv2d(1, 5, 1)
    torch.nn.init.constant_(network.weight, float("inf"))
    row = open_row("row", project.config_file, ROOT, output=tmp_path / "row.json", settings={}, trains=False)
    with pytest.raises(RefusedError, match="Row 'row'.*nothing but Dice 0"):
        run_row(row, lambda: (network, None, 0.0), False)
    assert not (tmp_path / "row.json").exists()
