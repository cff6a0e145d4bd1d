"""What one correction is worth: a simulated click, or box, on the worst slice of each organ of each test volume.

The worst slice is the one with most wrong voxels of the organ. The click is what evaluations of interactive
segmentation make: at the voxel farthest from the edge of the largest connected region of wrong voxels, positive where
the organ was missed, negative where it was invented. The box is that of the true mask, on slices that hold the organ.
Each organ is corrected by itself. The result is volumetric Dice on the files' own grid, before the correction and after
it with each reach, and Dice of the corrected slice alone where that holds the organ, of label maps as `run inferring`
would write them; and for each case a picture of these slices before and after the click. Run from the bundle's folder,
with the configuration of an evaluation:

    CONFIG="['configs/train.json','configs/evaluate.json']"
    python -m benchmarks.corrections --config_file $CONFIG
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose
from monai.utils import set_determinism
from scipy.ndimage import distance_transform_edt, label
from scripts import errors
from scripts.files import whole_file
from scripts.networks.logits import resize_logits, with_background
from scripts.output.previews import COLOURS, save_figure
from scripts.segmentation.corrected_slices import Corrector, SlicePrompt
from torch import Tensor
from tqdm import tqdm

from benchmarks.baselines.prompts import prompt_points
from benchmarks.baselines.slicewise import oriented_like
from benchmarks.configuration import finishing, load_prior, parse
from benchmarks.program import run_command

KINDS = ("click", "box")
SCORES = ("dice", "slice_dice")


def main(config_file, output: str | None = None, reaches: Sequence[int] = (0, 1, 2, 3), **overrides) -> None:
    """Simulates the corrections, and writes what they change.

    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        output: JSON file of the result, by default ``corrections.json`` in ``output_dir``.
        reaches: values of ``correction_reach`` to compare.
        overrides: values of the configuration to change, such as ``--prior_file``.
    """
    parser = parse(config_file, overrides)

    errors.install()
    get = parser.get_parsed_content
    set_determinism(get("seed"))
    network, inferer, organs = load_prior(parser), get("validate#inferer"), get("organs")
    finish = finishing(parser)
    path = Path(output or f"{get('output_dir')}/corrections.json")
    trials: list[dict[str, Any]] = []
    for item, data in tqdm(list(zip(get("test_data"), get("validate#dataset")))):
        batch = list_data_collate([data])
        truth = oriented_like(batch["label"], batch["image"]).numpy()
        finished = _finisher(finish, data["image"])
        simulation = Simulation(item["case"], truth, organs=organs, reaches=reaches, trials=trials, finish=finished)
        inferer(batch["image"], network, corrector=simulation)
        save_picture(path.with_suffix("") / f"{item['case']}.png", batch["image"][0, 0], truth, simulation.clicked)
        content = {"organs": organs, "reaches": list(reaches), "summary": summarise(trials, organs), "trials": trials}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=4) + "\n")
    for row in content["summary"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def _finisher(finish: Compose, image: MetaTensor) -> Callable[[np.ndarray], np.ndarray]:
    """What ``finish`` makes of label maps ``(H, W, slices)`` on the grid of their image ``(1, H, W, slices)``."""

    def finished(labels: np.ndarray) -> np.ndarray:
        labelled = MetaTensor(torch.from_numpy(labels.copy())[None], affine=image.affine)
        return finish({"pred_labels": labelled, "image": image})["pred_labels"][0].numpy()

    return finished if finish.transforms else lambda labels: labels


class Simulation:
    """Stands in a walk's ``corrector``'s place and tries corrections on its result, without changing it.

    Args:
        case: its name.
        truth: ``(H, W, slices)`` true labels.
        organs: names.
        reaches: see ``main``.
        trials: gets one entry for each organ and kind of prompt.
        finish: what is done to a label map ``(H, W, slices)`` before it is written.
    """

    def __init__(
        self,
        case: str,
        truth: np.ndarray,
        *,
        organs: Sequence[str],
        reaches: Sequence[int],
        trials: list[dict[str, Any]],
        finish: Callable[[np.ndarray], np.ndarray] = lambda labels: labels,
    ) -> None:
        self.finish = finish
        self.case, self.truth, self.organs, self.reaches, self.trials = case, truth, organs, reaches, trials
        self.clicked: list[tuple[Any, np.ndarray, np.ndarray]] = []  # prompt, mask of its slice before and after

    def needs(self, index: int) -> bool:
        return True

    def __call__(self, source, decoded: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:

        shape = self.truth.shape[:2]
        walk = np.empty_like(self.truth)
        for index, logits in decoded.items():
            walk[..., index] = labels_of(resize_logits(logits[None].to(source.device), shape))
        finished = self.finish(walk)
        for organ, name in enumerate(self.organs):
            true, before = self.truth == organ + 1, finished == organ + 1
            for kind in KINDS:
                prompt, told = simulated_prompt(true, before, organ, kind)
                if prompt is None:
                    continue
                trial = {"case": self.case, "organ": name, "kind": kind, "slice": prompt.slice, **told}
                trial["dice"], trial["slice_dice"] = [dice(before, true)], [dice_of(before, true, prompt.slice)]
                corrector = Corrector([prompt], max(self.reaches))
                corrected = dict(corrector(source, {each: decoded[each] for each in decoded if corrector.needs(each)}))
                for reach in self.reaches:  # a slice does not depend on how much farther the walk goes
                    labels = walk.copy()
                    for index, logits in corrected.items():
                        if abs(index - prompt.slice) <= reach:
                            labels[..., index] = labels_of(logits)
                    after = self.finish(labels) == organ + 1
                    trial["dice"].append(dice(after, true))
                    trial["slice_dice"].append(dice_of(after, true, prompt.slice))
                self.trials.append(trial)
                if kind == "click":
                    self.clicked.append((prompt, *(mask[..., prompt.slice] for mask in (before, after))))
        return iter(())


def simulated_prompt(true: np.ndarray, before: np.ndarray, organ: int, kind: str):
    """The prompt for the worst slice of ``(H, W, slices)`` masks, and what to tell of it; None where there is none."""
    wrong = true != before
    index = int(wrong.sum((0, 1)).argmax())
    points = dict.fromkeys(("positive", "negative", "box"), np.empty((0, 2), int))
    if kind == "box":
        if not true[..., index].any():
            return None, {}
        corners = prompt_points(true[..., index], "box")[0]
        points["box"] = np.array(corners)[:, ::-1]
        return SlicePrompt(organ, index, **points), {}
    regions = []
    for sign, mask in (("positive", true), ("negative", before)):
        labelled, number = label(wrong[..., index] & mask[..., index])
        regions += [(int((labelled == each).sum()), sign, labelled == each) for each in range(1, number + 1)]
    if not regions:
        return None, {}
    voxels, sign, region = max(regions, key=lambda each: each[0])
    depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    points[sign] = np.array([np.unravel_index(depth.argmax(), depth.shape)])
    return SlicePrompt(organ, index, **points), {"sign": sign, "voxels": voxels, "point": points[sign][0].tolist()}


def labels_of(logits: Tensor) -> np.ndarray:

    return with_background(logits.cpu())[0].argmax(0).numpy()


def dice(mask: np.ndarray, true: np.ndarray) -> float | None:
    """Of a mask; None where there is no organ, be the mask empty or not: a piece that a click takes away would count 0
    before it, and nothing after.
    """
    held = int(true.sum())
    return 2 * int((mask & true).sum()) / (held + int(mask.sum())) if held else None


def dice_of(mask: np.ndarray, true: np.ndarray, index: int) -> float | None:
    return dice(mask[..., index], true[..., index])


def summarise(trials: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> list[dict[str, Any]]:
    """Means over cases, before the correction and after it with each reach: of organs, and of all trials. Each is of
    the trials that have all of its values; of Dice of the slice alone those on slices that hold the organ, ``slices``.
    """
    rows = []
    for kind in KINDS:
        for name in (*organs, "all"):
            held = [each for each in trials if each["kind"] == kind and name in (each["organ"], "all")]
            if held:
                whole = {key: [each[key] for each in held if None not in each[key]] for key in SCORES}
                means = {key: np.mean(each, 0).round(4).tolist() if each else None for key, each in whole.items()}
                counts = {"trials": len(held), "slices": len(whole["slice_dice"])}
                rows.append({"kind": kind, "organ": name, **counts, **means})
    return rows


def save_picture(path: Path, image: Tensor, truth: np.ndarray, clicked: Sequence[tuple]) -> None:
    """Worst slices before (above) and after (below) a click: filled what is predicted, dashed what is true."""
    figure = Figure(figsize=(3 * max(len(clicked), 1), 6), facecolor="black", layout="tight")
    axes = figure.subplots(2, max(len(clicked), 1), squeeze=False)
    for column, (prompt, *masks) in enumerate(clicked):
        plane = image[..., prompt.slice].cpu().numpy()
        for axis, mask in zip(axes[:, column], masks):
            axis.imshow(plane, cmap="gray")
            colour = COLOURS[prompt.organ % len(COLOURS)]
            if mask.any():
                axis.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.45)
            true = truth[..., prompt.slice] == prompt.organ + 1
            if true.any():
                axis.contour(true, levels=[0.5], colors="white", linewidths=0.8, linestyles="dashed")
            for points, marker in ((prompt.positive, "+"), (prompt.negative, "x")):
                axis.scatter(points[:, 1], points[:, 0], c="red", marker=marker, s=70)
            axis.set_title(f"slice {prompt.slice}", color="white", fontsize=8)
            axis.axis("off")
    save_figure(figure, path)


if __name__ == "__main__":
    run_command(main)
