"""Speed and memory: training with the embedding cache and without it, and the paper's recipe end to end.

Run from the bundle's folder:

    python ../benchmarks/speed.py cache  --config_file "['configs/train.json','configs/demo.json']"
    python ../benchmarks/speed.py recipe --device cpu
"""

from __future__ import annotations

import json
import platform
import resource
import time

import fire
import torch
from configuration import parse


def _machine() -> dict:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def _peak_gib(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cache(config_file, iterations: int = 10, **overrides) -> None:
    """Training iterations a second from the cache, against encoding every drawn slice anew (image and true memory)."""
    parser = parse(config_file, overrides)
    trainer = parser.get_parsed_content("train#trainer")
    network, dataset = parser.get_parsed_content("network"), parser.get_parsed_content("train#dataset")
    network.prior.fit_statistics(dataset.statistics_batches())
    volume = dataset.transform(dict(dataset.data[0]))
    size, count = parser.get_parsed_content("batch_size"), len(dataset.organs)

    def cached() -> None:
        trainer._iteration(trainer, next(batches))

    def uncached() -> None:
        # what an iteration without a cache does: transform is left out, only SAM2's share is counted
        index = torch.randint(0, volume["image"].shape[-1], (size,))
        part = {key: volume[key][..., index] for key in ("image", "label")}
        encoded = dataset.encode(part)
        organ = torch.randint(0, count, (size,))
        rows = torch.arange(size)
        batch = {key: encoded[key] for key in ("embedding", "high_res_fine", "high_res_coarse")}
        batch["memory"] = encoded["memory"][rows, organ]
        batch["mask"] = (encoded["label"] == (organ + 1).view(-1, 1, 1))[:, None]
        batch["organ"] = organ
        trainer._iteration(trainer, batch)

    rates = {}
    for name, step in (("cached", cached), ("uncached", uncached)):
        batches = iter(parser.get_parsed_content("train#dataloader"))
        step()
        start = time.perf_counter()
        for _ in range(iterations):
            step()
        rates[name] = iterations / (time.perf_counter() - start)
    print(
        json.dumps(
            {**_machine(), "iterations_per_second": rates, "ratio": rates["cached"] / rates["uncached"]}, indent=4
        )
    )


def recipe(
    iterations: int = 20,
    slices: int = 8,
    device: str = "cuda:0" if torch.cuda.is_available() else "cpu",
    config_file=("configs/train.json", "configs/evaluate.json"),
    **overrides,
) -> None:
    """The paper's recipe (SAM2.1 tiny, 512 pixels, batch 4) on random slices: seconds and peak memory.

    Weights are random where the checkpoint is not at hand, which changes neither.

    Args:
        iterations: training iterations timed.
        slices: of the volume that is segmented.
        device: "cpu" or "cuda:0".
    """
    parser = parse(list(config_file), {"device": f"$torch.device('{device}')", "batch_size": 4, **overrides})
    network = parser.get_parsed_content("network")
    from scripts.trainer import DiffuSAMTrainer

    backbone, size = network.backbone, network.backbone.image_size
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.no_grad():
        features = backbone.encode_image(torch.rand(4, 1, size, size, device=device))
        memory = backbone.encode_memory(features, torch.randn(4, 1, size, size, device=device))
    encode_seconds = (time.perf_counter() - start) / 4
    network.prior.fit_statistics([(memory.cpu(), features.embedding.cpu())])
    batch = {
        "embedding": features.embedding,
        "high_res_fine": features.high_res[0],
        "high_res_coarse": features.high_res[1],
        "memory": memory,
        "mask": torch.rand(4, 1, size, size, device=device) > 0.5,
        "organ": torch.arange(4, device=device),
    }
    trainer = DiffuSAMTrainer(
        device=torch.device(device),
        max_epochs=1,
        train_data_loader=[batch] * iterations,
        network=network,
        optimizer=parser.get_parsed_content("train#optimizer"),
        loss_function=parser.get_parsed_content("train#loss"),
        amp=parser.get_parsed_content("amp"),
    )
    start = time.perf_counter()
    trainer.run()
    iteration_seconds = (time.perf_counter() - start) / iterations
    training_peak = _peak_gib(device)
    start = time.perf_counter()
    parser.get_parsed_content("validate#inferer")(torch.rand(1, 1, size, size, slices), network.eval())
    slice_seconds = (time.perf_counter() - start) / slices
    result = {
        **_machine(),
        "device": device,
        "backbone": backbone.name,
        "weights": "checkpoint" if backbone.loaded else "random",
        "seconds_per_iteration": round(iteration_seconds, 3),
        "seconds_per_slice": round(slice_seconds, 3),
        "of_which_encoding": round(encode_seconds, 3),
        "peak_gib_training": round(training_peak, 2),
        "peak_gib": round(_peak_gib(device), 2),
    }
    print(json.dumps(result, indent=4))


if __name__ == "__main__":
    fire.Fire({"cache": cache, "recipe": recipe})
