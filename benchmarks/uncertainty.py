"""Whether the uncertainty tells the truth: predicted against real Dice, voxels against errors, flags of organs.

Run from the bundle's folder, with the configuration of an evaluation and a trained prior:

    CONFIG="['configs/train.json','configs/evaluate.json']"
    python -m benchmarks.uncertainty --config_file $CONFIG --samples 4

It keeps what it measured of every test case, so that the same command goes on where it was interrupted, and then writes

* ``uncertainty.json``: rank correlation and calibration error of the predicted Dice, before and after calibration, the
  latter with each case left out of its own calibration; calibration of the uncertainty of voxels; organs flagged, good
  and bad ones;
* ``uncertainty.png``, the same as a picture;
* ``uncertainty_calibration.json``, fitted on all cases, for inference: ``run inferring --uncertainty 4
  --uncertainty_calibration FILE``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.transforms import Invertd
from monai.utils import set_determinism
from scipy.stats import spearmanr
from scripts import errors
from scripts.descriptions import describe
from scripts.errors import DatasetError
from scripts.files import sha256_of, whole_file
from scripts.inference.calibration import Calibration
from scripts.inference.quality import Thresholds, find_flags, measure_organs, read_training_volumes
from scripts.output.metrics import OrganDice
from scripts.output.previews import COLOURS
from scripts.segmentation.uncertainty import UncertaintyInferer
from scripts.training.identity import case_digests

from benchmarks.configuration import finishing, load_prior, parse
from benchmarks.program import run_command

STEPS = 256  # values of a voxel's uncertainty, stored as a byte
GOOD, BAD = 0.8, 0.7  # Dice from which on an organ should get no flag, and below which it should


def main(
    config_file,
    samples: int = 4,
    output: str | None = None,
    calibration: str = "linear",
    bins: int = 5,
    overwrite: bool = False,
    **overrides,
) -> None:
    """Measures every test case, and writes what the uncertainty is worth.

    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        samples: of the memory, 2 or more.
        output: folder of the results, by default ``uncertainty`` in ``output_dir``.
        calibration: "linear" or "isotonic".
        bins: equally many organs in each, of the calibration error of Dice.
        overwrite: whether cases are measured again.
        overrides: values of the configuration to change, such as ``--prior_file``.
    """
    parser = parse(config_file, overrides)

    errors.install()
    get = parser.get_parsed_content
    folder = Path(output or f"{get('output_dir')}/uncertainty")
    set_determinism(get("seed"))
    cases = measure_cases(parser, samples, folder / "cases", overwrite)
    about = {"samples": samples, "prior_sha256": sha256_of(get("prior_file")), "cases": sorted(cases)}
    result = summarise(cases, calibration, bins, about)
    fitted = result.pop("fitted")
    fitted.save(folder / "uncertainty_calibration.json")
    with whole_file(folder / "uncertainty.json") as temporary:
        temporary.write_text(json.dumps(result, indent=4) + "\n")
    with whole_file(folder / "uncertainty.png") as temporary:
        draw(result, fitted).savefig(temporary, format="png", dpi=110)
    print(as_text(result))
    print(f"Results are in '{folder}'.")


# ---- measuring


def measure_cases(parser: ConfigParser, samples: int, folder: Path, overwrite: bool) -> dict[str, dict[str, Any]]:
    """What :func:`measure_case` found of every test case, from its file where that is there."""
    get = parser.get_parsed_content
    options = {key: get(f"validate#inferer#{key}") for key in parser["validate#inferer"] if key != "_target_"}
    inferer = UncertaintyInferer(samples, **{**options, "output": "labels"})
    network, transform, finish = load_prior(parser), get("validate#preprocessing"), finishing(parser)
    shared = {
        **{"samples": samples, "inferer": describe(inferer), "amp": get("amp"), "network": describe(network)},
        **{"prior": sha256_of(get("prior_file")), "transform": describe(transform), "finishing": describe(finish)},
    }
    measured = {}
    for item in get("test_data"):
        path, identity = folder / f"{item['case']}.json", {**shared, "files": case_digests([item])}
        found = json.loads(path.read_text()) if path.is_file() and not overwrite else {}
        if found.get("identity") != json.loads(json.dumps(identity)):
            found = {"identity": identity, **measure_case(item, transform, inferer, network, get("prior_file"), finish)}
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(found) + "\n")
        measured[item["case"]] = found
        print(f"{item['case']}: " + ", ".join(f"{o} {d}" for o, d in _both_dice(found).items()), flush=True)
    return measured


def measure_case(item: dict[str, str], transform, inferer, network, prior_file: str, finish) -> dict[str, Any]:
    """Of the label map as `run inferring` would write it, after ``finish``: the predicted and the real Dice of each
    organ (null where there is none), how many voxels of each uncertainty have a right and a wrong label, the measures
    of quality, and the seconds that the inferer took.
    """
    data = transform(dict(item))
    start = time.perf_counter()
    prediction = inferer(data["image"][None], network)[0]
    seconds = time.perf_counter() - start
    inverted = Invertd("pred", transform, orig_keys="image", nearest_interp=True)({**data, "pred": prediction})["pred"]
    uncertainty, truth = inverted[1].as_tensor().flatten().long(), data["label"]
    labels = finish({"pred_labels": inverted[:1], "image": data["image"]})["pred_labels"]
    dice = OrganDice(len(network.organs))(y_pred=[labels], y=[truth])[0]
    wrong = (labels.as_tensor() != truth.as_tensor()).flatten()
    measures = measure_organs(labels[0].cpu().numpy(), np.asarray(labels.affine), network.organs)
    return {
        "organs": list(network.organs),
        "predicted": inferer.predicted_dice,
        "dice": [None if value != value else round(value, 6) for value in dice.flatten().tolist()],
        "right": torch.bincount(uncertainty[~wrong], minlength=STEPS).tolist(),
        "wrong": torch.bincount(uncertainty[wrong], minlength=STEPS).tolist(),
        "measures": measures,
        "training_volumes": read_training_volumes(prior_file),
        "seconds": round(seconds, 1),
    }


def _both_dice(case: dict[str, Any]) -> dict[str, str]:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    pairs = zip(case["organs"], case["predicted"], case["dice"])
    return {organ: f"{text(predicted)} ({text(true)})" for organ, predicted, true in pairs}


# ---- what it is worth


def summarise(cases: dict[str, dict], kind: str, bins: int, about: dict[str, Any]) -> dict[str, Any]:
    """Numbers over all cases; ``fitted`` is the calibration on all of them.

    Raises:
        DatasetError: without any one case, fewer than two organs are left that were found and are there.
    """
    rows = [
        {"case": name, "organ": organ, "predicted": predicted, "dice": dice}
        for name, case in cases.items()
        for organ, predicted, dice in zip(case["organs"], case["predicted"], case["dice"])
        if predicted is not None and dice is not None
    ]
    for name in cases:
        others = [row for row in rows if row["case"] != name]
        if len(others) < 2:
            raise DatasetError(
                f"Calibrating without case '{name}' leaves {len(others)} organs that were found and are there, needs "
                "2. Name more test_cases, or a prior that finds organs (prior_file)."
            )
        fitted = Calibration.fit(*_columns(others), kind)
        for row in rows:
            if row["case"] == name:
                row["calibrated"] = fitted(row["predicted"])
    predicted, dice = _columns(rows)
    return {
        "about": about,
        "spearman": float(spearmanr(predicted, dice).statistic),
        "before": calibration_error(predicted, dice, bins),
        "after": calibration_error([row["calibrated"] for row in rows], dice, bins),
        "voxels": voxel_calibration(*(np.sum([case[key] for case in cases.values()], 0) for key in ("right", "wrong"))),
        "flags": count_flags(cases, rows),
        "seconds": {name: case["seconds"] for name, case in cases.items()},
        "organs": rows,
        "fitted": Calibration.fit(predicted, dice, kind, about),
    }


def _columns(rows: Sequence[dict]) -> tuple[list[float], list[float]]:
    return [row["predicted"] for row in rows], [row["dice"] for row in rows]


def calibration_error(predicted: Sequence[float], true: Sequence[float], bins: int) -> dict[str, float]:
    """Expected calibration error (``ece``) over bins of equally many organs, by predicted value: the mean distance
    between the means of both in a bin; and ``mae``, the mean distance between both of an organ.
    """
    x, y = np.asarray(predicted), np.asarray(true)
    groups = [each for each in np.array_split(np.argsort(x, kind="stable"), bins) if len(each)]
    ece = sum(len(group) * abs(x[group].mean() - y[group].mean()) for group in groups) / len(x)
    return {"ece": float(ece), "mae": float(np.abs(x - y).mean())}


def voxel_calibration(right: np.ndarray, wrong: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """How uncertainty goes with errors.

    Args:
        right: voxels of each uncertainty, 0 to 255, whose label is right.
        wrong: voxels whose label is wrong.
        bins: of uncertainty, equally wide.

    Returns:
        ``uncertain``, the share of voxels with any uncertainty; ``wrong_and_certain``, the share of wrong voxels
        without any; ``ece``, over the uncertain voxels; ``auroc``, the probability that a wrong voxel is more uncertain
        than a right one; and for each bin its mean ``uncertainty``, its ``error`` rate and number of ``voxels``.
    """
    total, uncertainty = right + wrong, np.arange(STEPS) / (STEPS - 1)
    below = np.cumsum(right) - right
    auroc = (wrong * (below + right / 2)).sum() / max(right.sum() * wrong.sum(), 1)
    groups = [group for group in np.array_split(np.arange(1, STEPS), bins) if total[group].sum()]
    table = [
        {
            "uncertainty": float((uncertainty * total)[group].sum() / total[group].sum()),
            "error": float(wrong[group].sum() / total[group].sum()),
            "voxels": int(total[group].sum()),
        }
        for group in groups
    ]
    voxels = sum(each["voxels"] for each in table)
    return {
        "uncertain": float(voxels / total.sum()),
        "wrong_and_certain": float(wrong[0] / max(wrong.sum(), 1)),
        "ece": sum(each["voxels"] * abs(each["uncertainty"] - each["error"]) for each in table) / max(voxels, 1),
        "auroc": float(auroc),
        "bins": table,
    }


def count_flags(cases: dict[str, dict], rows: Sequence[dict]) -> dict[str, Any]:
    """Flagged organs among good and bad ones, with the default thresholds; by the shape alone, and with uncertainty."""
    calibrated = {(row["case"], row["organ"]): row["calibrated"] for row in rows}
    groups: dict[str, dict[str, Any]] = {
        name: {"organs": 0, "flagged": 0, "flagged_without_uncertainty": 0, "flags": {}} for name in ("good", "bad")
    }
    for name, case in cases.items():
        for organ, dice in zip(case["organs"], case["dice"]):
            if dice is None or BAD <= dice < GOOD:
                continue
            group = groups["good" if dice >= GOOD else "bad"]
            measures = {**case["measures"][organ], "predicted_dice": calibrated.get((name, organ))}
            found = {each["flag"] for each in find_flags({organ: measures}, Thresholds(), case["training_volumes"])}
            group["organs"] += 1
            group["flagged"] += bool(found)
            group["flagged_without_uncertainty"] += bool(found - {"uncertainty"})
            for flag in sorted(found):
                group["flags"][flag] = group["flags"].get(flag, 0) + 1
    return groups


# ---- showing it


def as_text(result: dict[str, Any]) -> str:
    """The numbers on a terminal."""
    before, after, voxels = result["before"], result["after"], result["voxels"]
    lines = [
        f"{len(result['organs'])} organs of {len(result['seconds'])} cases",
        f"Spearman correlation of predicted and real Dice: {result['spearman']:.2f}",
        f"calibration error of Dice: {before['ece']:.3f}, calibrated {after['ece']:.3f} (each case left out)",
        f"mean error of the predicted Dice: {before['mae']:.3f}, calibrated {after['mae']:.3f}",
        f"voxels: calibration error {voxels['ece']:.3f} where there is uncertainty, {voxels['uncertain']:.1%} of all; "
        f"AUROC {voxels['auroc']:.3f}; {voxels['wrong_and_certain']:.1%} of the wrong ones without uncertainty",
    ]
    for name, group in result["flags"].items():
        flags = ", ".join(f"{flag} {number}" for flag, number in group["flags"].items())
        lines.append(
            f"{name} organs: {group['flagged']} of {group['organs']} flagged, {group['flagged_without_uncertainty']} "
            f"without the predicted Dice ({flags or 'no flags'})"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], fitted) -> Figure:
    """Predicted against real Dice with the calibration; uncertainty of voxels against their error rate."""
    figure = Figure(figsize=(11, 5))
    FigureCanvasAgg(figure)
    organs, voxels = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["organ"] for row in result["organs"]))
    for colour, name in zip(COLOURS, names):
        rows = [row for row in result["organs"] if row["organ"] == name]
        organs.scatter(*_columns(rows), color=colour, label=name, zorder=3)
    line = np.linspace(*np.percentile([row["predicted"] for row in result["organs"]], [0, 100]), 101)
    organs.plot(line, [fitted(each) for each in line], color="black", label="calibration, all cases")
    organs.set(xlabel="predicted Dice (agreement of the samples)", ylabel="real Dice")
    organs.set_title(
        f"Spearman {result['spearman']:.2f}; calibration error {result['before']['ece']:.3f}, "
        f"calibrated {result['after']['ece']:.3f}",
        fontsize=10,
    )
    table = result["voxels"]["bins"]
    voxels.plot([each["uncertainty"] for each in table], [each["error"] for each in table], "o-", color=COLOURS[1])
    voxels.set(xlabel="uncertainty of a voxel", ylabel="share of wrong labels")
    voxels.set_title(
        f"calibration error {result['voxels']['ece']:.3f}, AUROC {result['voxels']['auroc']:.3f}", fontsize=10
    )
    for axis in (organs, voxels):
        axis.plot([0, 1], [0, 1], color="grey", linestyle="dashed", linewidth=1, zorder=1)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    organs.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run_command(main)
