"""What speed is measured with: the same walk with given masks, SAM2's video predictor, clocks and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.trainer import DiffuSAMTrainer

from benchmarks import gpu, speed, speed_table, timing
from benchmarks.timing import Cost, GivenMasks
from tests.helpers.networks import SIZE, make_backbone, make_diffusam
from tests.helpers.workflows import BUNDLE, save_start


@pytest.fixture(scope="module")
def network():
    return make_diffusam(make_backbone())


@pytest.fixture
def masks() -> torch.Tensor:
    """Two organs in seven slices: one in the middle three, one in all."""
    masks = torch.zeros(2, 32, 32, 7, dtype=torch.bool)
    masks[0, :10, :10, 2:5] = masks[1, 20:30, 20:30] = True
    return masks


def test_walk_with_given_masks_finds_them(network, masks):
    labels = GivenMasks(masks)(torch.rand(1, 1, 32, 32, 7), network)[0, 0]
    for organ in range(2):
        found, given = labels == organ + 1, masks[organ]
        assert (found & given).sum() > 0.7 * given.sum() and (found & ~given).sum() < 0.7 * given.sum()
        assert torch.equal(found.any(0).any(0), given.any(0).any(0))


def test_walk_with_given_masks_still_decodes(network, masks):
    with timing.stages((network.backbone, "decode"), (network, "synthesise")) as spent:
        GivenMasks(masks, ended_after=1)(torch.rand(1, 1, 32, 32, 7), network)
    assert set(spent) == {"decode", "synthesise"} and min(each.cpu for each in spent.values()) > 0
    assert "decode" not in vars(network.backbone)


def test_video_predictor_has_the_backbones_weights_and_tracks_every_slice(network, capfd):
    predictor = timing.video_predictor(network.backbone)
    assert FrozenSAM2.fingerprint(_Named(network.backbone.name, predictor)) == network.backbone.fingerprint()
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[:, 10:40, 10:40] = True
    assert timing.track(predictor, torch.rand(5, 3, SIZE, SIZE), masks) == 6  # 2, 3, 4 and back over 2, 1, 0
    assert timing.video.torch is torch


class _Named:
    """What a fingerprint is taken of."""

    def __init__(self, name, model):
        self.name, self.model = name, model


def test_every_function_has_its_turn_in_each_round_and_one_before():
    called = []
    found = timing.in_turns({name: lambda name=name: called.append(name) for name in "ab"}, rounds=2)
    assert called == ["a", "b"] * 3
    assert all(spent.cpu >= 0 and spent.wall > 0 for spent in found.values())


def test_cost_is_of_the_process_not_of_the_clock():
    spent = timing.cost(lambda: timing.time.sleep(0.05))
    assert spent.wall >= 50 > 25 > spent.cpu


def test_ratios_are_to_the_unit():
    rows = speed_table.Table(Cost(10.0, 20.0))
    rows.add("volume", Cost(25.0, 30.0), "as segmented")
    rows.add("start", None, "1 s")
    assert rows.markdown().splitlines()[2:] == [
        "| volume | 25.0 | 30.0 | 2.5 | as segmented |",
        "| start |  |  |  | 1 s |",
    ]


@pytest.mark.slow
def test_memory_around_the_walk_grows_by_less_than_eight_bytes_a_voxel(bundle):
    """Two of the file, four of the image that the walk reads, one of the label map; MONAI's own scaling takes 16."""
    found = []
    for slices in (100, 400):
        options = [f"--slices={slices}", "--shape=[256,256]"]
        command = [sys.executable, "-m", "benchmarks.speed", "memory", *options]
        path = os.pathsep.join([str(bundle.parent), str(bundle)])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=bundle, env=environment, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1])["mib"])
    assert 2 < (found[1] - found[0]) * 2**20 / (300 * 256 * 256) < 8


def test_table_compares_with_the_predictor(bundle, tiny_dataset, tmp_path, monkeypatch, capsys, backbone_file):
    monkeypatch.chdir(bundle)
    speed.table(
        rounds=1,
        parts=("around", "organs", "training"),
        organs=(1, 4),
        sizes=(64,),
        output=str(tmp_path / "speed.json"),
        dataset_dir=str(tiny_dataset),
        train_cases=["a"],
        prior_file=str(tmp_path / "none.pt"),
        output_dir=str(tmp_path),
        backbone_checkpoint=str(backbone_file),
        image_size=SIZE,
        batch_size=2,
        prior_channels=[16, 32],
    )
    said = capsys.readouterr().out
    for row in ("sam2's image encoder", "a volume, 4 organs", "SAM2VideoPredictor", "its picture", "a training step"):
        assert f"| {row}" in said.replace("`", "")
    assert "masks given" in said and "times four organs" in said
    assert (tmp_path / "speed.json").is_file()


def test_iterations_with_and_without_the_cache_see_the_same(bundle, tiny_dataset, tmp_path, monkeypatch, backbone_file):
    """Whatever the configuration trains, here a head that reads slices beside the prior."""
    monkeypatch.chdir(bundle)
    save_start(tmp_path / "start.pt", backbone_file)
    seen, plain = [], DiffuSAMTrainer._iteration

    def iteration(trainer, engine, batch):
        seen.append({key: value.shape for key, value in batch.items() if isinstance(value, torch.Tensor)})
        return plain(trainer, engine, batch)

    monkeypatch.setattr(DiffuSAMTrainer, "_iteration", iteration)
    speed.cache(
        "configs/train.json",
        iterations=1,
        dataset_dir=str(tiny_dataset),
        train_cases=["a"],
        variants=1,
        output_dir=str(tmp_path),
        backbone_checkpoint=str(backbone_file),
        start_from=str(tmp_path / "start.pt"),
        image_size=SIZE,
        batch_size=2,
        named_memories=True,
        names_encoder=True,
        use_high_res=True,
    )

    assert len(seen) == 6
    for each in seen:
        assert {**each, "present": None} == {**seen[0], "present": None}


def test_the_image_encoders_time_is_its_own(monkeypatch, capsys):
    """Neither that of its first call nor that of the memory encoder."""
    encode, remember, calls = FrozenSAM2.encode_image, FrozenSAM2.encode_memory, []

    def slow_at_first(self, image):
        calls.append(len(image))
        time.sleep(2.0 if len(calls) == 1 else 0.0)
        return encode(self, image)

    def slow_before_training(self, *args):
        time.sleep(2.0 if len(calls) == 1 else 0.0)
        return remember(self, *args)

    monkeypatch.setattr(FrozenSAM2, "encode_image", slow_at_first)
    monkeypatch.setattr(FrozenSAM2, "encode_memory", slow_before_training)
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
    options = {"image_size": SIZE, "backbone_checkpoint": "", "bundle_root": str(BUNDLE)}

    speed.recipe(iterations=1, slices=2, device="cpu", config_file=configs, **options)

    result = json.loads(capsys.readouterr().out)
    assert calls[:2] == [4, 4] and 0 < result["of_which_image_encoder"] < 0.4


def test_gpu_steps_that_fail_or_are_cut_off_do_not_end_the_suite(tmp_path, monkeypatch):
    commands = {
        "agreement": [[sys.executable, "-c", "print('log'); print('{\"condition\": 0.5}')"]],
        "recipe": [[sys.executable, "-c", "raise ValueError('out of memory')"]],
        "walk": [[sys.executable, "-c", "import time; time.sleep(600)"]],
        "demo": [[sys.executable, "-c", "print('{}')"]],
    }
    monkeypatch.setattr(gpu, "_commands", lambda *_: commands)

    gpu.suite(device="cpu", minutes=0.1, output=str(tmp_path / "new" / "gpu.json"))

    result = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert result["agreement"][0]["condition"] == 0.5
    assert "out of memory" in result["recipe"][0]["failed"][-1]
    assert "cut_off" in result["walk"][0] and "cut_off" in result["demo"][0]


def test_gpu_agreement_is_exact_where_the_device_is_the_cpu(capsys):
    gpu.agreement(device="cpu", quick=True)
    found = json.loads(capsys.readouterr().out)
    assert max(found["float32"].values()) < 1e-6 < max(found["bfloat16"].values()) < 0.1


def test_gpu_walk_names_both_precisions(bundle, monkeypatch, capsys):
    monkeypatch.chdir(bundle)
    gpu.walk(device="cpu", quick=True, slices=6)
    assert {"float32, ended_after 0", "bfloat16, ended_after 2"} <= set(json.loads(capsys.readouterr().out))


def test_gpu_commands_are_those_of_the_bundle(tmp_path):
    commands = gpu._commands("cuda:0", False, tmp_path)
    assert set(commands) == set(gpu.STEPS)
    assert [command[2] for command in commands["demo"]] == ["monai.bundle"] * 3
