"""Speed and memory: a volume beside SAM2's own encoder and video predictor, an inference stage by stage, training with
and without the cache, the paper's recipe end to end, long volumes.

Run from the bundle's folder; for ratios that mean something, with one thread (`OMP_NUM_THREADS=1`):

    python -m benchmarks.speed table  --config_file "['configs/train.json','configs/evaluate.json']"
    python -m benchmarks.speed stages --input SCAN
    python -m benchmarks.speed cache  --config_file configs/train.json
    python -m benchmarks.speed recipe --device cpu
    python -m benchmarks.speed volume --config_file configs/inference.json --prior_file runs/train/model.pt
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scripts.networks.sam2_types import ImageFeatures
from scripts.training.trainer import DiffuSAMTrainer
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.configuration import parse
from benchmarks.program import run_command
from benchmarks.speed_table import memory, table
from benchmarks.stages import stages
from benchmarks.timing import cost


def _machine() -> dict:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def _peak_gib(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cache(config_file, iterations: int = 10, **overrides) -> None:
    """Training iterations a second from the cache, and without it in two ways.

    * ``encoders``: the batch's slices go through SAM2's image and memory encoder anew; they are at hand, augmented.
    * ``uncached``: one training volume, preprocessed and in memory, is augmented anew for each iteration as well, and
      the batch's slices are drawn from it. An iteration that drew its slices from as many volumes would augment each.
    """
    parser = parse(config_file, overrides)
    trainer = parser.get_parsed_content("train#trainer")
    network, dataset = parser.get_parsed_content("network"), parser.get_parsed_content("train#dataset")
    network.prior.fit_statistics(dataset.statistics_batches())
    volume, case = dataset.transform(dict(dataset.data[0])), dataset.data[0]["case"]
    size, count = parser.get_parsed_content("batch_size"), len(dataset.organs)

    def cached() -> None:
        trainer._iteration(trainer, next(batches))

    def encode(volume) -> None:
        index = torch.randint(0, volume["image"].shape[-1], (size,))
        encoded = dataset.encode({key: volume[key][..., index] for key in ("image", "label")})
        organs = torch.randint(0, count, (size,)).tolist()
        pairs = [dataset.pair(encoded, position, organ) for position, organ in enumerate(organs)]
        trainer._iteration(trainer, default_collate(pairs))

    variants = iter(range(1, 10**6))
    steps = {
        "cached": cached,
        "encoders": lambda: encode(volume),
        "uncached": lambda: encode(dataset.augment(volume, case, next(variants))),
    }
    rates = {}
    for name, step in steps.items():
        batches = iter(parser.get_parsed_content("train#dataloader"))
        step()
        start = time.perf_counter()
        for _ in range(iterations):
            step()
        rates[name] = round(iterations / (time.perf_counter() - start), 3)
    ratios = {name: round(rates["cached"] / rates[name], 2) for name in ("encoders", "uncached")}
    print(json.dumps({**_machine(), "iterations_per_second": rates, "cached_is_times_faster": ratios}, indent=4))


def volume(config_file, slices: int = 1500, shape: tuple[int, int] = (512, 512), **overrides) -> None:
    """Seconds and peak memory of `run inferring` on one random int16 volume of many slices.

    Args:
        config_file: config files as for ``monai.bundle run inferring``; the prior must have been trained.
        slices: of the volume.
        shape: of a slice.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.nii"
        voxels = np.random.default_rng(0).integers(-200, 300, (*shape, slices), dtype=np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)
        input_gib = voxels.nbytes / 2**30
        del voxels
        options = [f"--{key}={value}" for key, value in {"input": path, "output": folder, **overrides}.items()]
        command = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "inferring",
            "--config_file",
            str(config_file),
            *options,
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    result = {"slices": slices, "seconds": round(seconds), "peak_gib": round(peak, 2), "file_gib": round(input_gib, 2)}
    print(json.dumps({**_machine(), **result}, indent=4))


def recipe(
    iterations: int = 20,
    slices: int = 8,
    device: str = "cuda:0" if torch.cuda.is_available() else "cpu",
    config_file=("configs/train.json", "configs/evaluate.json", "configs/paper.json"),
    **overrides,
) -> None:
    """The paper's recipe (SAM2.1 tiny, 512 pixels, batch 4) on random slices: seconds and peak memory. The image
    encoder's seconds are those of four slices together, after a call that is not counted.

    Weights are random where the checkpoint is not at hand, which changes neither.

    Args:
        iterations: training iterations timed.
        slices: of the volume that is segmented.
        device: "cpu" or "cuda:0".
    """
    parser = parse(list(config_file), {"device": f"$torch.device('{device}')", **overrides})
    network = parser.get_parsed_content("network")

    backbone, size = network.backbone, network.backbone.image_size
    torch.manual_seed(0)
    with torch.no_grad():
        images = torch.rand(4, 3 if backbone.slice_context else 1, size, size, device=device)
        features = backbone.encode_image(images)
        memory = backbone.encode_memory(features, torch.randn(4, 1, size, size, device=device))
        encode_seconds = cost(lambda: backbone.encode_image(images)).wall / 1e3 / len(images)
    network.prior.fit_statistics([(memory.cpu(), features.embedding.cpu())])
    batch = _random_batch(features, memory, size)
    trainer = DiffuSAMTrainer(
        device=torch.device(device),
        max_epochs=1,
        train_data_loader=[batch] * iterations,
        network=network,
        optimizer=parser.get_parsed_content("train#optimizer"),
        loss_function=parser.get_parsed_content("train#loss"),
        amp=parser.get_parsed_content("amp"),
    )
    iteration_seconds = cost(trainer.run).wall / 1e3 / iterations
    training_peak = _peak_gib(device)
    inferer, volume = parser.get_parsed_content("validate#inferer"), torch.rand(1, 1, size, size, slices)
    slice_seconds = cost(lambda: inferer(volume, network.eval())).wall / 1e3 / slices
    result = {
        **_machine(),
        "device": device,
        "backbone": backbone.name,
        "weights": "checkpoint" if backbone.loaded else "random",
        "seconds_per_iteration": round(iteration_seconds, 3),
        "seconds_per_slice": round(slice_seconds, 3),
        "of_which_image_encoder": round(encode_seconds, 3),
        "peak_gib_training": round(training_peak, 2),
        "peak_gib": round(_peak_gib(device), 2),
    }
    print(json.dumps(result, indent=4))


def _random_batch(features: ImageFeatures, memory: Tensor, size: int) -> dict[str, Tensor]:
    """What a training sees of four slices, with masks drawn at random."""
    return {
        "embedding": features.embedding,
        "high_res_fine": features.high_res[0],
        "high_res_coarse": features.high_res[1],
        "memory": memory,
        "mask": torch.rand(4, 1, size, size, device=memory.device) > 0.5,
        "organ": torch.arange(4, device=memory.device),
    }


if __name__ == "__main__":
    commands = {"table": table, "stages": stages, "cache": cache, "recipe": recipe, "volume": volume, "memory": memory}
    run_command(commands, serialize=lambda _: None)
