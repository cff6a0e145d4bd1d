"""One table of speed: what a volume costs in units of SAM2's image encoder, part by part. See `benchmarks.speed`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import decollate_batch
from scripts.data.body import on_grid
from scripts.inference.quality import measure_organs
from scripts.networks.diffusam import DiffuSAM
from scripts.output.previews import draw_preview, labels_on, radiological, save_figure
from scripts.output.report_content import Case
from scripts.output.report_slices import draw_view, view_case
from scripts.segmentation.propagation import VolumetricInferer
from scripts.training.trainer import DiffuSAMTrainer
from torch import Tensor, nn

from .configuration import parse
from .timing import Cost, GivenMasks, cost, in_turns, labelled, track, video_predictor

STAGES = {
    "encode_image": "image encoder",
    "name": "naming head",
    "synthesise": "prior",
    "memories_of": "memories of named masks",
    "attend": "memory attention",
    "condition": "memory attention",
    "decode": "mask decoder",
    "_encode_masks": "merging and memory encoder",
    "_write": "writing the label map",
}


@dataclass
class Table:
    """Rows of a measurement, with the unit that ratios are in."""

    unit: Cost
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, spent: Cost | None, note: str = "") -> None:
        row: dict[str, Any] = {"row": name, "note": note}
        if spent is not None:
            row |= {
                "cpu_ms": round(spent.cpu, 1),
                "wall_ms": round(spent.wall, 1),
                "ratio": round(spent.cpu / self.unit.cpu, 2),
            }
        self.rows.append(row)

    def markdown(self) -> str:
        lines = ["| | CPU, ms | clock, ms | ÷ encoder | |", "| --- | --- | --- | --- | --- |"]
        for row in self.rows:
            numbers = (row.get(key, "") for key in ("cpu_ms", "wall_ms", "ratio"))
            lines.append(f"| {row['row']} | {' | '.join(str(each) for each in numbers)} | {row['note']} |")
        return "\n".join(lines)


def table(
    config_file=("configs/train.json", "configs/evaluate.json"),
    slices: int | None = None,
    rounds: int = 3,
    given_masks: bool | None = None,
    organs: Iterable[int] = (1, 4, 13),
    sizes: Iterable[int] = (),
    parts: Iterable[str] = ("around", "organs", "training", "memory", "start"),
    output: str | None = None,
    **overrides,
) -> None:
    """Milliseconds a slice, and ratios to sam2's own image encoder, of the first test case; all in one process.

    Args:
        config_file: config files as for `run evaluating`.
        slices: the middle ones of the volume, by default all.
        rounds: in which everything takes its turn; medians count.
        given_masks: whether the true masks stand for what is decoded, at unchanged cost. By default where there is no
            trained prior, which would find nothing.
        organs: numbers of organs to compare, all of them in every slice.
        sizes: of the input, in pixels, to compare, with the given number of organs.
        parts: of the table beside the comparison with SAM2's video predictor.
        output: JSON with the rows, if named.
        overrides: of the configuration.
    """
    results = tempfile.TemporaryDirectory()  # gone with the function
    files = list(config_file) if isinstance(config_file, tuple) else config_file
    parser = parse(files, {"evaluation_dir": results.name, **overrides})
    get = parser.get_parsed_content
    network, trained = _network(parser)
    data = get("validate#preprocessing")(dict(get("test_data")[0]))
    volume, masks = _middle(data, len(network.organs), slices)
    keys = ("neighbours", "no_3d", "names_smoothing", "ended_after", "skip_absent", "window_margin", "views", "amp")
    options = {key: get(key) for key in keys} | {"batch_size": get("encode_batch_size")}
    given = not trained if given_masks is None else given_masks

    def walk(**changes: Any) -> VolumetricInferer:
        return GivenMasks(masks, **(options | changes)) if given else VolumetricInferer(**(options | changes))

    rows, about = _compared(network, volume, masks, walk, rounds, "masks given" if given else "as segmented")
    if "around" in parts:
        whole = None if slices else walk(output="labels_and_organs")(data["image"][None], network)
        _around(rows, parser, data, whole)
    if "organs" in parts:
        _organs(rows, parser, [*organs])
    for size in sizes:
        _size(rows, network, size, options)
    if "training" in parts:
        _training(rows, parser, network)
    if "memory" in parts:
        _memory(rows)
    if "start" in parts:
        _start(rows)
    print(rows.markdown())
    if output:
        Path(output).write_text(json.dumps({"about": about, "rows": rows.rows}, indent=4) + "\n", encoding="utf-8")


def _middle(data: dict[str, Any], organs: int, slices: int | None) -> tuple[Tensor, Tensor]:
    """The middle slices of a case, or all: the volume ``(1, C, H, W, S)`` and the true masks."""
    image, masks = data["image"], _true_masks(data["label"], organs)
    middle, count = image.shape[-1] // 2, slices or image.shape[-1]
    chosen = slice(max(0, middle - count // 2), max(0, middle - count // 2) + count)
    return image[None, ..., chosen], masks[..., chosen]


def _compared(
    network: DiffuSAM, volume: Tensor, masks: Tensor, walk: Callable[..., VolumetricInferer], rounds: int, kind: str
) -> tuple[Table, str]:
    """The volume beside sam2's encoder and its video predictor, and the stages of it; what it is, in words."""
    backbone, shown = network.backbone, _shown(network, volume)
    here, everywhere = walk(), walk(ended_after=0, skip_absent=False)
    predictor, batches = video_predictor(backbone), shown.split(here.batch_size)
    prompts = torch.nn.functional.interpolate(
        masks[..., masks.shape[-1] // 2][None].float(), (backbone.image_size,) * 2, mode="nearest-exact"
    )
    found = in_turns(
        {
            "encoder": lambda: [_encode(predictor, batch) for batch in batches],
            "here": lambda: here(volume, network),
            "everywhere": lambda: everywhere(volume, network),
            "predictor": lambda: track(predictor, shown, prompts[0] > 0),
        },
        rounds,
    )
    each = {name: spent.of(volume.shape[-1]) for name, spent in found.items()}
    rows = Table(each["encoder"])
    about = f"{backbone.name} at {backbone.image_size}, {volume.shape[-1]} slices of {tuple(volume.shape[2:4])}"
    rows.add("sam2's image encoder", each["encoder"], about)
    rows.add(f"a volume, {len(network.organs)} organs", each["here"], kind)
    rows.add("... every organ in every slice (`ended_after` 0, `skip_absent` False)", each["everywhere"])
    speed = each["predictor"].cpu / each["here"].cpu
    rows.add("`SAM2VideoPredictor`, as many objects", each["predictor"], f"{speed:.2f} times the volume's time")
    methods = [
        (network, "name"),
        (network, "synthesise"),
        (network, "memories_of"),
        (here, "_encode_masks"),
        (here, "_write"),
    ]
    methods += [(backbone, name) for name in ("encode_image", "attend", "condition", "decode")]
    with labelled({(owner, name): STAGES[name] for owner, name in methods}) as spent:
        here(volume, network)
    for label in dict.fromkeys(STAGES.values()):
        rows.add(f"... {label}", spent[label].of(volume.shape[-1]))
    return rows, about


def _network(parser: Any) -> tuple[DiffuSAM, bool]:
    """The network, with the trained prior where there is one, and whether there is."""
    network, path = parser.get_parsed_content("network"), Path(parser.get_parsed_content("prior_file"))
    if path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("model", state))
    else:
        backbone, size = network.backbone, network.backbone.embedding_size
        network.prior.fit_statistics(
            [(torch.randn(4, backbone.memory_channels, size, size), torch.randn(4, backbone.embedding_channels, 8, 8))]
        )
    return network.eval(), path.is_file()


def _true_masks(label: Tensor, organs: int) -> Tensor:
    oriented = torch.from_numpy(radiological(label[0].numpy(), label.affine)[0].copy())
    return torch.stack([oriented == organ for organ in range(1, organs + 1)])


def _shown(network: DiffuSAM, volume: Tensor) -> Tensor:
    """The slices of a volume as SAM2 sees them, ``(slices, 3, S, S)``, normalised."""
    backbone = network.backbone
    slices = volume[0, 0].as_tensor().permute(2, 0, 1)[:, None].float()
    size = (backbone.image_size,) * 2
    resized = torch.nn.functional.interpolate(slices, size, mode="bilinear", antialias=True).to(backbone.pixel_mean)
    return (resized.expand(-1, 3, -1, -1) - backbone.pixel_mean) / backbone.pixel_std


@torch.no_grad()
def _encode(sam2: nn.Module, images: Tensor) -> None:
    sam2.forward_image(images)


def _around(rows: Table, parser: Any, data: dict[str, Any], pred: Tensor | None) -> None:
    """What a case costs before and after the walk."""
    get, slices = parser.get_parsed_content, data["image"].shape[-1]
    rows.add("reading and preparing", cost(lambda: get("validate#preprocessing")(dict(get("test_data")[0]))).of(slices))
    if pred is None:
        return
    result: dict[str, Any] = {}
    spent = cost(lambda: result.update(get("validate#postprocessing")({**data, "pred": pred[0]})))
    rows.add("back to the file's grid, written", spent.of(slices))

    def picture() -> None:
        figure = draw_preview(result["image"], result["pred_labels"], get("organs"))
        save_figure(figure, Path(get("evaluation_dir")) / "picture.png")

    rows.add("its picture", cost(picture).of(slices))
    image = on_grid(data["image"], result["pred_labels"])  # a part of it, perhaps
    pixels, spacing = radiological(image[0].numpy(), image.affine)
    labels, organs = labels_on(image, pixels.shape, result["pred_labels"]), len(get("organs"))
    rows.add("its view in the report", cost(lambda: draw_view(pixels, labels, organs, spacing=spacing)).of(slices))


def _organs(rows: Table, parser: Any, numbers: list[int]) -> None:
    """Organs that are in every slice, a disc each, in a volume of noise: what each of them costs at most."""
    found = {number: _noise_with_organs(parser, number) for number in numbers}
    for number, (spent, beside) in found.items():
        ratio = f"beside the encoder {beside / found[4][1]:.2f} times four organs" if 4 in found else ""
        rows.add(f"{number} organs, all in every slice", spent, ratio)


def _noise_with_organs(parser: Any, number: int, slices: int = 8) -> tuple[Cost, float]:
    """The cost of a slice, and of it the CPU time beside the image encoder."""
    config = parser.get()
    kept = {key: config[key] for key in config if key not in ("train", "validate", "report", "test_data")}
    variant = parse(None, kept | {"organs": [f"organ {index}" for index in range(number)], "prior_file": ""})
    network, _ = _network(variant)
    size = network.backbone.image_size
    volume, masks = torch.rand(1, 1, size, size, slices), torch.zeros(number, 64, 64, slices, dtype=torch.bool)
    masks[:, 20:40, 20:40] = True
    walk = GivenMasks(masks, batch_size=variant.get_parsed_content("encode_batch_size"))
    images = volume[0].permute(3, 0, 1, 2)
    found = in_turns({"walk": lambda: walk(volume, network), "encoder": lambda: _features(network, images)}, 1)
    return found["walk"].of(slices), (found["walk"].cpu - found["encoder"].cpu) / slices


@torch.no_grad()
def _features(network: DiffuSAM, images: Tensor) -> None:
    network.backbone.encode_image(images)


def _size(rows: Table, network: DiffuSAM, size: int, options: dict[str, Any]) -> None:
    before = network.backbone.image_size
    network.backbone.resize(size)
    volume, masks = torch.rand(1, 1, size, size, 4), torch.zeros(len(network.organs), 64, 64, 4, dtype=torch.bool)
    masks[:, 20:40, 20:40] = True
    walk = GivenMasks(masks, **options)
    rows.add(
        f"input of {size}, organs in every slice", in_turns({"walk": lambda: walk(volume, network)}, 1)["walk"].of(4)
    )
    network.backbone.resize(before)


def _training(rows: Table, parser: Any, network: DiffuSAM, iterations: int = 3) -> None:
    """A training step on random features, of the prior alone, and with a fused optimiser."""
    get, backbone = parser.get_parsed_content, network.backbone
    size, batch, device = backbone.image_size, get("batch_size"), next(network.parameters()).device
    with torch.no_grad():
        features = backbone.encode_image(torch.rand(batch, 1, size, size, device=device))
        mask = torch.rand(batch, 1, size, size, device=device) > 0.5
        memory = backbone.encode_memory(features, mask * 20.0 - 10.0)
    organ = torch.arange(batch, device=device) % len(network.organs)
    item = {
        "embedding": features.embedding,
        **dict(zip(("high_res_fine", "high_res_coarse"), features.high_res, strict=True)),
        **{"memory": memory, "mask": mask, "organ": organ},
    }

    def trainer(**options: Any) -> DiffuSAMTrainer:
        return DiffuSAMTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=[item],
            network=network,
            optimizer=torch.optim.Adam(network.prior.parameters(), lr=1e-6, **options),
            loss_function=get("train#loss"),
            amp=get("amp"),
        )

    plain, fused = trainer(), trainer(fused=True)
    optimizer = torch.optim.Adam(network.prior.parameters(), lr=1e-6)

    def prior_alone() -> None:
        optimizer.zero_grad(set_to_none=True)
        network.prior(memory, features, organ)[0].mean().backward()
        optimizer.step()

    functions = {
        "a training step": lambda: plain._iteration(plain, item),
        "... with a fused optimiser": lambda: fused._iteration(fused, item),
        "... of the prior alone": prior_alone,
    }
    found = in_turns(functions, iterations)
    for name, spent in found.items():
        ratio = spent.cpu / found["... of the prior alone"].cpu
        rows.add(name, spent, f"a batch of {batch}, {ratio:.2f} times the prior alone")
    network.eval()


def memory(slices: int = 200, shape: tuple[int, int] = (512, 512)) -> None:
    """Peak memory around the walk, from reading to the report, for :func:`table`: prints MiB beyond what there was."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.nii"
        stored = np.random.default_rng(0).integers(-200, 300, (*shape, slices), dtype=np.int16)
        nib.save(nib.Nifti1Image(stored, np.diag([0.8, 0.8, 1.0, 1.0])), path)
        del stored
        options = {"input": str(path), "output": f"{folder}/out", "largest_component": True}
        parser = parse("configs/inference.json", options)
        organs, finish = parser.get_parsed_content("organs"), parser.get_parsed_content("postprocessing")
        loader = parser.get_parsed_content("dataloader")
        before = _resident()
        with _peak() as peak:
            (batch,) = loader
            inferer = VolumetricInferer()
            pred = inferer._empty_output(batch["image"][0, 0], len(organs))
            logits = torch.full((1, len(organs), 64, 64), -5.0)
            logits[0, 0, 20:40, 20:40] = 5.0
            for index in range(slices):
                inferer._write(pred, [index], logits)
            batch["pred"] = inferer._result(pred, batch["image"])
            (data,) = decollate_batch(batch)
            data = finish(data)
            draw_preview(data["image"], data["pred"], organs)
            measure_organs(data["pred"][0].numpy(), np.asarray(data["pred"].affine), organs)
            label_map = Path(folder) / "out/long_seg.nii.gz"
            del batch, pred, data, loader
            view_case(Case("long", image=path, label_map=label_map), organs, pixels=288, max_slices=120)
    print(json.dumps({"slices": slices, "mib": round(peak["mib"] - before, 1)}))


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class _peak:
    """The most memory the process has while the context lasts; what the allocator holds from before does not count."""

    def __enter__(self) -> dict[str, float]:
        self.found, self.ended = {"mib": _resident()}, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self.found

    def _watch(self) -> None:
        while not self.ended.wait(0.002):
            self.found["mib"] = max(self.found["mib"], _resident())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def _memory(rows: Table, few: int = 50, many: int = 250) -> None:
    found = []
    for slices in (few, many):
        command = [sys.executable, "-m", "benchmarks.speed", "memory", f"--slices={slices}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.strip().splitlines()[-1])["mib"])
    growth = (found[1] - found[0]) / (many - few)
    note = f"{growth:.2f} MiB, of which the file has 0.50 and the label map 0.25 ({few} and {many} slices)"
    rows.add("memory around the walk, for each slice of 512x512", None, note)


def _start(rows: Table) -> None:
    """CPU time of fresh processes until they have imported what they need."""
    needs = {
        "start: `import torch`": "import torch",
        "start: `import monai`": "import monai",
        "start: all that inference imports and builds": (
            "from benchmarks.configuration import parse\n"
            "parser = parse('configs/inference.json', {})\n"
            "[parser.get_parsed_content(key) for key in ('network', 'preprocessing', 'inferer', 'postprocessing')]"
        ),
    }
    for name, code in needs.items():
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows.add(name, None, f"{cpu:.1f} s CPU, {seconds:.1f} s")
