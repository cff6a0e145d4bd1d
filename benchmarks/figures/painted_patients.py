"""Slices of painted patients in random contrasts, with the outlines of their organs: what pretraining sees.

python -m benchmarks.figures.painted_patients --patients_dir data/patients --output painted_patients.png
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from scripts.data.phantom_anatomy import ORGANS
from scripts.files import BUNDLE
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.patient_clips import AnatomyClips, PatientPool

from benchmarks.program import run_command

COLOURS = ("lime", "cyan", "yellow", "red")


def draw(
    patients_dir: str, output: str, patients: int = 8, rows: int = 6, columns: int = 6, size: int = 256, seed: int = 0
) -> None:
    """Draws one clip a row.

    Args:
        patients_dir: where the patients are, or will be painted.
        output: file of the picture.
        patients: how many to draw from.
        rows: clips.
        columns: slices of a clip.
        size: side of a slice in pixels.
        seed: of what is drawn.
    """
    matplotlib.use("Agg")
    stage = {"epochs": 1, "clips": rows, "frames": columns, "image_size": size}
    config = json.loads((BUNDLE / "configs/pretrain_anatomy.json").read_text(encoding="utf-8"))
    where = {key: config[key] for key in ("beyond", "tilt", "slide", "anywhere")}
    pool = PatientPool(write_patients(patients_dir, patients))
    batch = AnatomyClips(pool, [stage], seed=seed, **where).batch(0)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.7 * rows), squeeze=False)
    for row in range(rows):
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(batch["image"][row, column, 0], cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
            for organ, colour in zip(range(len(ORGANS)), COLOURS):
                mask = batch["mask"][row, organ, column].numpy()
                if mask.any():
                    axis.contour(mask, [0.5], colors=colour, linewidths=0.7)
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    run_command(draw)
