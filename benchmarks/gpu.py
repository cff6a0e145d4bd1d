"""What a GPU is needed for, in one command of at most eight minutes: speed, memory, bfloat16, and the same results.

Run from the bundle's folder, on a machine with a GPU; nothing is downloaded, weights that are not at hand are random:

    python -m benchmarks.gpu suite --output gpu.json

Steps run one after the other, each in a process of its own and for no longer than what is left of the time; one that
fails or is cut off says so in the result, and the others go on. On a CPU (``--device cpu --quick True``) the same steps
run at a small size, which is how they are tested.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures, Memory

from benchmarks.program import run_command

from .configuration import parse
from .speed_table import _network
from .timing import GivenMasks, in_turns, stages

TINY = {
    "backbone_name": "sam2.1_hiera_tiny",
    "backbone_checkpoint": None,
    "image_size": 512,
    "use_high_res": False,
    "prior_channels": [128, 256, 256],
    "attention_levels": 2,
    "encode_batch_size": 8,
}
STEPS = ("agreement", "recipe", "walk", "demo")


def agreement(device: str = "cuda:0", quick: bool = False) -> None:
    """Largest differences of the backbone's four functions from the CPU, in float32 and bfloat16, of their range."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    size = 64 if quick else 512
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano" if quick else "sam2.1_hiera_tiny", size)
    image, logits = torch.rand(2, 1, size, size), torch.randn(8, 1, size, size)
    memory = torch.randn(8, backbone.memory_channels, *[backbone.embedding_size] * 2)
    expected, found = _functions(backbone, image, logits, memory), {}
    backbone = backbone.to(device)
    for name, enabled in (("float32", False), ("bfloat16", True)):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            values = _functions(backbone, *(each.to(device) for each in (image, logits, memory)))
        found[name] = {
            key: float(f"{((values[key].float().cpu() - value).abs().max() / value.abs().max()).item():.2g}")
            for key, value in expected.items()
        }
    print(json.dumps(found))


@torch.no_grad()
def _functions(backbone: FrozenSAM2, image: Any, logits: Any, memory: Any) -> dict[str, Any]:
    features: ImageFeatures = backbone.encode_image(image)
    conditioned = backbone.condition(features, [Memory(memory), Memory(memory.flip(0), 1)])
    return {
        "encode_image": features.embedding,
        "condition": conditioned,
        "decode": backbone.decode(conditioned, features, token="single").mask_logits,
        "encode_memory": backbone.encode_memory(features, logits),
    }


def walk(device: str = "cuda:0", quick: bool = False, slices: int = 64) -> None:
    """Milliseconds a slice and peak memory of a volume with four organs in two thirds of its slices, by precision."""
    options = {"image_size": 64} if quick else TINY
    slices = 6 if quick else slices
    files = ["configs/train.json", "configs/evaluate.json"]
    parser = parse(files, {"device": f"$torch.device('{device}')", "prior_file": "", "dataset_dir": ".", **options})
    network, _ = _network(parser)
    size = network.backbone.image_size
    volume, masks = torch.rand(1, 1, size, size, slices), torch.zeros(4, 128, 128, slices, dtype=torch.bool)
    for organ in range(4):
        masks[organ, 30 * organ : 30 * organ + 25, 40:80, slices // 6 : -slices // 6] = True
    walks = {ended: GivenMasks(masks, batch_size=8, ended_after=ended) for ended in (0, 2)}

    def run(ended: int, bfloat16: bool) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            walks[ended](volume, network)

    cases = {f"{name}, ended_after {ended}": (ended, half) for name, half in _PRECISIONS for ended in walks}
    found = in_turns({name: lambda case=case: run(*case) for name, case in cases.items()}, 1 if quick else 2)
    result: dict[str, Any] = {name: {"ms_a_slice": round(each.wall / slices, 2)} for name, each in found.items()}
    methods = [(network.backbone, name) for name in ("encode_image", "condition", "decode", "encode_memory")]
    with stages(*methods, (network, "name"), (network, "synthesise")) as spent:
        run(0, True)
    result["stages, bfloat16"] = {name: round(each.wall / slices, 2) for name, each in spent.items()}
    if torch.cuda.is_available():
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(result))


_PRECISIONS = (("float32", False), ("bfloat16", True))


def _commands(device: str, quick: bool, folder: Path) -> dict[str, list[list[str]]]:
    """What each step runs, one process after the other."""
    python, here = [sys.executable, "-m"], [f"--device={device}", f"--quick={quick}"]
    small = {"backbone_name": "sam2_nano", "image_size": 64, "prior_channels": [16, 32], "attention_levels": 1}
    recipe = {"iterations": 2, "slices": 2, **small} if quick else {"iterations": 60, "slices": 24}
    demo = [f"--output_dir={folder / 'demo'}", "--report=False", f"--phantoms={4 if quick else 8}"]
    if quick:
        demo += ["--image_size=64", "--iterations=2", "--iterations_per_epoch=2", "--variants=1"]
    run = [*python, "monai.bundle", "run"]
    train, evaluate = "'configs/train.json'", "'configs/train.json','configs/evaluate.json'"
    evaluate = [*run, "evaluating", f"--config_file=[{evaluate}]", *demo]
    where = f"--device=$torch.device('{device}')"
    return {
        "agreement": [[*python, "benchmarks.gpu", "agreement", *here]],
        "recipe": [
            [
                *[*python, "benchmarks.speed", "recipe", f"--device={device}", f"--amp={amp}"],
                *(f"--{key}={value}" for key, value in {**recipe, "backbone_checkpoint": None}.items()),
            ]
            for amp in (False, True)
        ],
        "walk": [[*python, "benchmarks.gpu", "walk", *here]],
        # trained and evaluated on the device, then evaluated on the CPU with the same prior
        "demo": [
            [*run, "training", f"--config_file=[{train}]", where, *demo],
            [*evaluate, where, f"--evaluation_dir={folder / 'on_device'}"],
            [*evaluate, "--device=$torch.device('cpu')", f"--evaluation_dir={folder / 'on_cpu'}"],
        ],
    }


def suite(
    device: str = "cuda:0", minutes: float = 8.0, quick: bool = False, output: str = "gpu.json", steps=STEPS
) -> dict[str, Any]:
    """All steps; writes the result after each, so that nothing is lost where time ends.

    Args:
        device: such as "cuda:0".
        minutes: for all steps together.
        quick: a small size, for tests.
        output: JSON.
        steps: which of :data:`STEPS`.
    """
    end, folder = time.monotonic() + 60 * minutes, Path(output).resolve().parent / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    result: dict[str, Any] = {"device": name, "torch": torch.__version__}
    commands = _commands(device, quick, folder)
    for step in steps:
        result[step] = found = []
        for command in commands[step]:
            found.append(_run(command, end - time.monotonic()))
            Path(output).write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    for place in ("on_device", "on_cpu"):
        metrics = folder / place / "metrics.json"
        if metrics.is_file():
            result.setdefault("dice", {})[place] = json.loads(metrics.read_text(encoding="utf-8"))["dice"]
    Path(output).write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    return result


def _run(command: list[str], seconds: float) -> dict[str, Any]:
    """What a process has printed last, as JSON where it is, and how long it took; or why there is nothing."""
    start = time.monotonic()
    if seconds <= 0:
        return {"cut_off": "no time was left"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"cut_off": f"after {seconds:.0f} s", "command": command[2:]}
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    if done.returncode:
        return {**found, "failed": done.stderr.strip().splitlines()[-3:], "command": command[2:]}
    text = done.stdout[done.stdout.find("{") :]
    try:
        return {**found, **json.loads(text)}
    except ValueError:
        return found


if __name__ == "__main__":
    run_command({"suite": suite, "agreement": agreement, "walk": walk})
