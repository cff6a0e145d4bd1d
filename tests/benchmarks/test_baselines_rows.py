"""The rows of Table 1 beside DiffuSAM: each through its command, evaluated like DiffuSAM, and made once."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import Inferer
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scripts.networks.sam2_backbone import FrozenSAM2

from benchmarks.baselines import supervised
from benchmarks.baselines.evaluation import Row, evaluate, open_row, open_training, run_row, training_settings
from benchmarks.baselines.propagated import propagate
from benchmarks.baselines.run import COMMANDS
from benchmarks.baselines.slicewise import oriented_like
from benchmarks.configuration import parse
from tests.helpers.workflows import BUNDLE, ORGANS, SIZE, Killed, write_overlay

METRICS = {"dice", "dice_fate", "dice_dfg", "hd95_mm", "asd_mm", "surface_dice_2mm", "missed", "invented"}
CONFIGS = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
NETWORKS = {
    "unet": {"steps": 2, "slices_per_step": 2, "channels": (4, 8)},
    "unetr": {"steps": 2, "slices_per_step": 2, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4},
}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, write_dataset, backbone_file) -> Path:
    """Two training cases, and a test case that is stored with permuted and flipped axes."""
    folder = tmp_path_factory.mktemp("rows")
    dataset = write_dataset(folder / "dataset")
    for kind in ("image", "label"):
        path = dataset / f"{kind}_d.nii.gz"
        image = nib.load(path)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("SLP"))
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine).as_reoriented(turn), path)
    return write_overlay(folder, dataset, backbone_file, test_cases=["d"])


def command(name: str, overlay: Path, output: Path, **options) -> dict:
    config_file = [*CONFIGS, str(overlay)]
    return COMMANDS[name](config_file=config_file, output=str(output), bundle_root=str(BUNDLE), **options)


def new_row(overlay: Path, output: Path, settings: dict | None = None, **options) -> Row:
    return open_row(
        "row", [*CONFIGS, str(overlay)], {"bundle_root": str(BUNDLE)}, output=output, settings=settings or {}, **options
    )


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        pytest.param("unetr", marks=pytest.mark.skipif(not find_spec("einops"), reason="MONAI's UNETR needs einops")),
        "sam2_points",
        "sam2_click",
        "sam2_box",
        "propagated",
        "fate_sam",
        "protosam",
        "linear_probe",
    ],
)
def test_a_row_is_measured_like_diffusam(tmp_path, overlay, name):
    command(name, overlay, tmp_path / "result.json", **NETWORKS.get(name, {}))

    content = json.loads((tmp_path / "result.json").read_text())
    assert content.keys() >= METRICS
    assert (content["row"], content["cases"], content["organs"]) == (name, ["d"], ORGANS)
    assert content["seconds_per_volume"] > 0
    assert (content["seconds_training"] > 0) == (name in NETWORKS)
    (stored,) = (tmp_path / "result").glob("*d_seg.nii.gz")
    assert nib.load(stored).shape == nib.load(overlay.parent / "dataset" / "label_d.nii.gz").shape


class TruthInferer(Inferer):
    """Answers with the truth it is shown, in one channel."""

    def __call__(self, inputs, network, truth):
        labels = oriented_like(truth, inputs)[None, None]
        return inputs.clone().copy_(labels)


def test_the_truth_itself_is_perfect_however_its_file_is_stored(tmp_path, overlay):
    row = new_row(overlay, tmp_path / "truth.json", trains=False)

    content = evaluate(row, torch.nn.Identity(), TruthInferer(), show_truth=True)

    for metric, best in (("dice", 1), ("dice_fate", 1), ("dice_dfg", 1), ("hd95_mm", 0)):
        assert content[metric]["values"] == [[best] * 4]


def test_a_result_that_is_there_is_not_made_again(tmp_path, overlay):
    built = []

    def run(overwrite: bool = False, **settings) -> dict:
        def build():
            built.append(settings)
            return torch.nn.Identity(), TruthInferer(), 0.0

        row = new_row(overlay, tmp_path / "truth.json", settings, trains=False)
        return run_row(row, build, overwrite, show_truth=True)

    first = run(steps=1)
    assert run(steps=1) == first
    with pytest.raises(ValueError, match="--overwrite True"):
        run(steps=2)
    assert built == [{"steps": 1}]
    run(overwrite=True, steps=2)
    assert built == [{"steps": 1}, {"steps": 2}]


def test_training_cases_are_never_tested_on(tmp_path, overlay):
    with pytest.raises(ValueError, match="both trained and tested on"):
        command("unet", overlay, tmp_path / "unet.json", test_cases=["a", "d"])


@pytest.mark.parametrize("volumes", [0, 3])
def test_prototypes_come_from_training_cases_that_there_are(tmp_path, overlay, volumes):
    with pytest.raises(ValueError, match=r"volumes must lie in 1\.\.\.2"):
        command("protosam", overlay, tmp_path / "protosam.json", volumes=volumes)


# ---- supervised networks


def test_a_network_of_painted_patients_needs_no_training_case(tmp_path, overlay):
    """With no step at all, it is used as it is."""
    start = supervised.plain_unet(5, (4, 8))
    supervised.save_atomically({"network": start.state_dict()}, tmp_path / "start.pt")

    content = command(
        "unet",
        overlay,
        tmp_path / "unet.json",
        **{**NETWORKS["unet"], "steps": 0, "start_from": str(tmp_path / "start.pt")},
        train_cases=[],
        train_data=[],
    )

    used = torch.load(tmp_path / "unet" / "network.pt", weights_only=True)["network"]
    assert all(torch.equal(value, used[key]) for key, value in start.state_dict().items())
    assert content["about"]["test_cases"] == ["d"] and "train_cases" not in content["about"]


@pytest.mark.parametrize("given", [{}, {"learned": 0.5, "random_contrasts": 1.0}], ids=["plain", "few shot"])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, overlay, monkeypatch, given):
    settings = training_settings(steps=4, slices_per_step=2, learning_rate=1e-3, dice_by_slice=False) | given

    def run(name: str, **changed) -> torch.nn.Module:
        parser = parse([*CONFIGS, str(overlay)], {"bundle_root": str(BUNDLE)})
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 5, 3, padding=1), torch.nn.Dropout(0.5))
        supervised.train(
            open_training("small", parser, tmp_path / name, {**settings, **changed}), network, save_every=2
        )
        return network

    whole = run("whole.pt")
    save = supervised.save_atomically

    def save_and_die(content, path):
        save(content, path)
        if content.get("step") == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "save_atomically", save_and_die)
        with pytest.raises(Killed):
            run("killed.pt")
    resumed = run("killed.pt")
    again = run("whole.pt")

    for other in (resumed, again):
        assert all(torch.equal(one, another) for one, another in zip(whole.parameters(), other.parameters()))
    assert [path.name for path in tmp_path.glob("killed*")] == ["killed.pt"]  # nothing is left of the training
    with pytest.raises(ValueError, match="what differs: learning_rate, steps"):
        run("whole.pt", steps=5, learning_rate=1e-2)


def test_a_network_may_keep_what_it_knew_and_learn_from_any_contrast(tmp_path, overlay, monkeypatch):
    """What `configs/few_shot.json` has for its head, for the U-Net beside it."""
    start = supervised.plain_unet(5, (4, 8), dropout=0.0)
    supervised.save_atomically({"network": start.state_dict()}, tmp_path / "start.pt")
    shares, contrasts = [], supervised.RandContrasts.__call__
    monkeypatch.setattr(
        supervised.RandContrasts,
        "__call__",
        lambda self, image, label: (shares.append(self.share), contrasts(self, image, label))[1],
    )

    def learned(**options) -> dict[str, torch.Tensor]:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        given = {**NETWORKS["unet"], "start_from": str(tmp_path / "start.pt"), "network_file": str(file)}
        command("unet", overlay, file.with_suffix(".json"), **given, **options)
        return torch.load(file, weights_only=True)["network"]

    whole, half, other = learned(), learned(learned=0.5), learned(random_contrasts=1.0)

    assert sorted(set(shares)) == [0.0, 1.0]
    for key, before in start.state_dict().items():
        torch.testing.assert_close(half[key], (before + whole[key]) / 2)
    assert any(not torch.equal(whole[key], other[key]) for key in whole)


def test_two_rows_can_share_one_network(tmp_path, overlay, monkeypatch):
    options = {**NETWORKS["unet"], "network_file": str(tmp_path / "network.pt")}

    first = command("unet", overlay, tmp_path / "plain.json", **options)
    monkeypatch.setattr(supervised, "AugmentedSlices", None)  # nothing is trained any more
    second = command("unet", overlay, tmp_path / "largest.json", **options, largest_component=True)

    assert first["seconds_training"] == second["seconds_training"] > 0
    assert (first["about"]["largest_component"], second["about"]["largest_component"]) == (False, True)
    assert first["cases"] == second["cases"] == ["d"]


def test_the_unet_learns_what_it_is_shown(tmp_path, overlay):
    """Boxes of distinct place and brightness; untrained, Dice is next to nothing."""
    content = command("unet", overlay, tmp_path / "unet.json", steps=40, channels=(8, 16, 32), learning_rate=1e-2)

    assert content["dice"]["mean"] > 0.5


# ---- propagation of one true slice


def test_the_middle_true_slice_is_carried_both_ways(backbone_file, monkeypatch):
    """The shown memory comes first in every slice, then those of the slices decoded last, the nearest first."""
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    condition, attended = backbone.condition, []

    def record(features, memories=()):
        attended.append([(memory.features, memory.distance) for memory in memories])
        return condition(features, memories)

    monkeypatch.setattr(backbone, "condition", record)
    encoded = [backbone.encode_image(torch.rand(1, 1, SIZE, SIZE)) for _ in range(6)]
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[16:48, 20:40] = True

    walk = dict(propagate(backbone, encoded, mask, shown=2, neighbours=2))

    assert list(walk) == [2, 1, 0, 3, 4, 5]
    assert (walk[2] > 0).equal(mask[::4, ::4])
    distances = [[distance for _, distance in memories] for memories in attended]
    assert distances == [[0], [0, 1], [0], [0, 1], [0, 1, 2]]
    assert all(memories[0][0] is attended[0][0][0] for memories in attended)
    assert attended[4][2][0] is attended[3][1][0]  # slice 3, from where slice 4 and slice 5 stand


# ---- the first SAM


@pytest.mark.parametrize(
    "name, package, needed", [("sam", "segment_anything", "checkpoint"), ("unetr", "einops", "einops")]
)
def test_a_row_that_cannot_run_says_what_it_needs(tmp_path, overlay, monkeypatch, name, package, needed):
    monkeypatch.setitem(sys.modules, package, None)  # not installed

    content = command(name, overlay, tmp_path / "row.json")

    assert needed in content["not_run"] and "dice" not in content
    assert json.loads((tmp_path / "row.json").read_text()) == content


class BoxPredictor:
    """Stands for ``segment_anything.SamPredictor``: the mask is the box."""

    def __init__(self, model):
        pass

    def set_image(self, image: np.ndarray) -> None:
        assert image.dtype == np.uint8 and image.shape[2] == 3
        self.shape = image.shape[:2]

    def predict(self, box, multimask_output, return_logits):
        rows, columns = np.indices(self.shape)
        inside = (columns >= box[0]) & (rows >= box[1]) & (columns <= box[2]) & (rows <= box[3])
        return np.where(inside, 5.0, -5.0)[None], np.ones(1), None


def test_sam_is_prompted_where_the_organs_are(tmp_path, overlay, monkeypatch):
    """The organs are boxes, so masks that fill the boxes asked for are the truth."""
    built = SimpleNamespace(
        sam_model_registry={"vit_b": lambda checkpoint: torch.nn.Linear(1, 1)}, SamPredictor=BoxPredictor
    )
    monkeypatch.setitem(sys.modules, "segment_anything", built)
    checkpoint = tmp_path / "sam_vit_b_01ec64.pth"
    checkpoint.touch()
    command("sam", overlay, tmp_path / "sam.json")  # says that it was not run

    content = command("sam", overlay, tmp_path / "sam.json", checkpoint=str(checkpoint), prompt="box")

    assert content["dice"]["values"] == [[1] * 4]
