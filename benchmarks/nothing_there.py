"""What does a model say of volumes that hold none of its organs? Random shapes, and heads made by code.

    python -m benchmarks.nothing_there --config_file configs/inference.json
        --modality ct --output runs/nothing_there/ct

writes the volumes, lets the bundle's own inference segment them, and counts the volumes in which any organ has more
than 5 ml, and the flags that say so. A head is a skull of two ellipsoids, with brain, ventricles, eyes, sinuses and
what lies below; no head was ever trained on. Random shapes are those that the backbone is pretrained on, of other
seeds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from scripts.data.phantom_shapes import smooth_field
from scripts.errors import SettingError
from scripts.files import whole_file
from scripts.pretraining.synthetic_clips import random_labels, render

from benchmarks.program import run_command

LEAST_ML = 5.0  # an organ of less is as good as none
FIRST_SEED = 10_000  # far from those of any pretraining
KINDS = ("shapes", "head")
# Hounsfield units, and greys of T1- and T2-weighted MR, air 0 and the brightest 1
HEAD_TISSUES = {
    "air": (-1000, 0.0, 0.0),
    "scalp": (-70, 0.9, 0.6),
    "muscle": (55, 0.35, 0.2),
    "bone": (1000, 0.1, 0.05),
    "marrow": (300, 0.7, 0.4),
    "fluid": (8, 0.12, 0.98),
    "grey matter": (38, 0.42, 0.5),
    "white matter": (29, 0.55, 0.35),
    "eye": (15, 0.2, 0.9),
}
_INDEX = {name: index for index, name in enumerate(HEAD_TISSUES)}


def make_head(seed: int, shape: Sequence[int] = (128, 144, 44), spacing: Sequence[float] = (1.7, 1.7, 5.0)):
    """Tissues of a head, ``shape`` uint8, along right, anterior and superior; from the neck to above the skull.

    Args:
        seed: of its sizes and of how it is bent.
        shape, spacing: voxels, and mm between them.
    """
    rng = np.random.default_rng([seed, 11])
    axes = [(np.arange(count) - (count - 1) / 2) * step for count, step in zip(shape, spacing)]
    mesh = np.meshgrid(*axes, indexing="ij", sparse=True)
    scale = rng.uniform(0.88, 1.1) * np.array([rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06), 1.0])
    x, y, z = (line / size + 3 * smooth_field(rng, axes, 60.0) for line, size in zip(mesh, scale))
    tissue = np.zeros(tuple(shape), np.uint8)

    def paint(name: str, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> None:
        inside = sum(((line - at) / radius) ** 2 for line, at, radius in zip((x, y, z), centre, radii)) < 1
        tissue[inside] = _INDEX[name]

    neck = (x / 58) ** 2 + ((y + 12) / 62) ** 2 < 1
    tissue[neck & (z < -20)] = _INDEX["scalp"]
    tissue[((x / 50) ** 2 + ((y + 12) / 53) ** 2 < 1) & (z < -20)] = _INDEX["muscle"]
    paint("scalp", (0, 0, 5), (80, 99, 88))
    paint("scalp", (0, 45, -55), (52, 48, 45))  # the face
    paint("muscle", (0, 42, -55), (46, 42, 40))
    paint("bone", (0, 0, 7), (74, 93, 82))
    paint("marrow", (0, 0, 7), (71, 90, 79))
    paint("bone", (0, 0, 7), (69, 88, 77))
    paint("fluid", (0, 0, 7), (66, 85, 74))
    paint("grey matter", (0, 0, 7), (63, 82, 71))
    paint("white matter", (0, 0, 9), (52, 70, 58))
    tissue[(np.abs(x) < 1.5) & (z > 5) & (tissue >= _INDEX["grey matter"])] = _INDEX["fluid"]  # between the halves
    for side in (1, -1):
        paint("fluid", (13 * side, 8, 14), (rng.uniform(5, 10), rng.uniform(26, 40), rng.uniform(9, 15)))
        paint("grey matter", (15 * side, 2, 0), (9, 15, 9))
        paint("bone", (33 * side, 78, -18), (19, 19, 17))
        paint("eye", (33 * side, 82, -18), (12, 12, 12))
        paint("air", (24 * side, 62, -45), (13, 14, 15))  # sinuses
    paint("air", (0, 62, -30), (9, 20, 14))
    paint("air", (0, 2, -100), (8, 8, 60))
    paint("bone", (0, -40, -90), (22, 20, 55))
    paint("fluid", (0, -46, -90), (6, 6, 55))
    return tissue


def make_image(kind: str, seed: int, modality: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume of a kind as CT, in Hounsfield units, or as MR; and its spacing in mm, along right, anterior, superior.

    Args:
        kind: one of :data:`KINDS`.
        seed: counts from 0.
        modality: ``"ct"`` or ``"mr"``.

    Raises:
        SettingError: another kind or modality.
    """
    if kind not in KINDS or modality not in ("ct", "mr"):
        raise SettingError(f"Expected one of {list(KINDS)} as 'ct' or 'mr', got '{kind}' as '{modality}'.")
    seed += FIRST_SEED
    if kind == "shapes":
        generator = torch.Generator().manual_seed(seed)
        image = render(random_labels(160, 28, generator), generator)[:, 0].permute(1, 2, 0).numpy()
        return (image * 400 - 125 if modality == "ct" else image * 1000), (2.2, 2.2, 6.0)
    rng, spacing = np.random.default_rng([seed, 12]), (1.7, 1.7, 5.0)
    column = 0 if modality == "ct" else int(rng.integers(1, 3))
    greys = np.array([values[column] for values in HEAD_TISSUES.values()], float)
    image = greys[make_head(seed, spacing=spacing)]
    if modality == "ct":
        return image + rng.normal(0, rng.uniform(4, 12), image.shape), spacing
    shade = 1 + rng.uniform(0, 0.3) * np.linspace(-1, 1, image.shape[0])[:, None, None]
    return np.abs(image * shade + rng.normal(0, 0.03, image.shape)) * 1000, spacing


def main(config_file, output: str, modality: str = "ct", count: int = 8, **overrides) -> None:
    """Writes volumes that hold no organ, has them segmented, and says what was found in them.

    Args:
        config_file: config files as for ``monai.bundle run inferring``; of intensities those of the modality.
        output: folder of the volumes, of the results and of ``nothing_there.json``.
        modality: ``"ct"`` or ``"mr"``.
        count: volumes of each kind.
        overrides: values of the configuration to change.
    """
    folder = Path(output)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written: dict[str, list[str]] = {kind: [] for kind in KINDS}  # the folder may hold those of an earlier call
    for kind in KINDS:
        for seed in range(count):
            image, spacing = make_image(kind, seed, modality)
            written[kind].append(f"{kind}_{seed:03d}")
            path = folder / "images" / f"{written[kind][-1]}.nii.gz"
            with whole_file(path) as temporary:
                nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([*spacing, 1.0])), temporary)
    workflow = ConfigWorkflow(
        config_file=config_file,
        logging_file=False,
        run_id="inferring",
        workflow_type="infer",
        input=str(folder / "images"),
        output=str(folder / "results"),
        report=False,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    cases = json.loads((folder / "results" / "results.json").read_text())["cases"]
    found = {kind: summarise([cases[name] for name in names]) for kind, names in written.items()}
    with whole_file(folder / "nothing_there.json") as temporary:
        temporary.write_text(json.dumps(found, indent=4) + "\n")
    print(as_text(found))


def summarise(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of volumes without organs: how many there are, in how many something was found, of how many that is said.

    Args:
        cases: their records in ``results.json``.
    """
    said, flags, largest = 0, Counter[str](), []
    for case in cases:
        volumes = [organ["volume_ml"] for organ in case["quality"]["organs"].values()]
        largest.append(max(volumes))
        flagged = {flag["flag"] for flag in case["quality"]["flags"]}
        flags.update(flagged)
        said += max(volumes) > LEAST_ML and "no abdomen" not in flagged
    return {
        "volumes": len(cases),
        "with_organs": sum(each > LEAST_ML for each in largest),
        "with_organs_unflagged": said,
        "median_ml": float(np.median(largest)) if largest else 0.0,
        "flags": dict(sorted(flags.items())),
    }


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """The numbers as Markdown."""
    lines = [f"| | an organ over {LEAST_ML:.0f} ml | ... without 'no abdomen' | largest, median | flags |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for kind, each in found.items():
        flags = ", ".join(f"{flag} {number}" for flag, number in each["flags"].items()) or "none"
        lines.append(
            f"| {kind} | {each['with_organs']} of {each['volumes']} | {each['with_organs_unflagged']} of "
            f"{each['volumes']} | {each['median_ml']:.0f} ml | {flags} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
