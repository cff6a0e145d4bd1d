"""Patients without end: procedurally painted abdomens, wider than any population, for pretraining.

The phantoms of the demo stand for one kind of patient in one kind of scan. Here each seed draws a patient anew, from
child to obese, with organs of any usual shape and many unusual ones, and what is kept is no image but the *tissue* of
each voxel and the *label* of the organ it belongs to. Contrasts are drawn later, again and again (:mod:`.contrasts`).
The distributions are wider than the published populations they are drawn around (:data:`.patient.POPULATION`), because
a network that has seen more than occurs is not surprised by what does.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ..data import phantom_anatomy
from ..data import phantom_shapes as shapes
from ..errors import SettingError
from ..files import whole_file
from .organs import (
    paint_adrenals,
    paint_aorta,
    paint_cava,
    paint_kidney,
    paint_lesions,
    paint_liver,
    paint_spleen,
    paint_stomach,
)
from .patient import CENTRE, LABEL_INDEX, SHAPE, SPACING, TISSUE_INDEX, Patient
from .pelvis import hips, paint_pelvis, paint_upper_chest

logger = logging.getLogger(__name__)


def make_patient(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One patient.

    Args:
        seed: 0 or more; the same seed gives the same patient.

    Returns:
        tissue and label ``SHAPE`` uint8, indices into :data:`.patient.TISSUES` and :data:`.patient.LABELS`, along the
        patient's right, anterior and superior direction.
    """
    if seed < 0:
        raise SettingError(f"The seed must be 0 or more, but is {seed}.")
    axes = [(np.arange(n) - (n - 1) / 2) * step + middle for n, step, middle in zip(SHAPE, SPACING, CENTRE)]
    patient = Patient(np.random.default_rng([seed, 7]), axes)
    _paint_trunk(patient)
    with patient.labelled("lung"):
        phantom_anatomy.paint_chest(patient)
    _relabel_chest(patient)
    _paint_fluid(patient)
    with patient.labelled("bowel"):
        phantom_anatomy.paint_bowel(patient)
        _paint_flexures(patient)
    with patient.labelled("stomach"):
        paint_stomach(patient)
    _paint_collection(patient)
    with patient.labelled("pancreas"):
        phantom_anatomy.paint_pancreas(patient)
    if not patient.chance(0.02):
        paint_spleen(patient)
    paint_liver(patient)
    phantom_anatomy.paint_renal_vessels(patient)
    paint_adrenals(patient)
    for side, label in ((1, phantom_anatomy.RIGHT_KIDNEY), (-1, phantom_anatomy.LEFT_KIDNEY)):
        if not patient.chance(0.02):
            paint_kidney(patient, side, label)
    with patient.labelled("aorta"):
        paint_aorta(patient)
    with patient.labelled("vena cava"):
        paint_cava(patient)
    with patient.labelled("spine"):
        phantom_anatomy.paint_spine(patient)
    phantom_anatomy.paint_ribs(patient)
    paint_upper_chest(patient)
    paint_pelvis(patient)
    paint_lesions(patient)
    _paint_outside(patient)
    return patient.tissue, patient.label


def _paint_trunk(patient: Patient) -> None:
    """As the phantoms', with a wall from thin to obese and muscles from slight to strong."""
    rng, everywhere, (x, y, z) = patient.rng, patient.everywhere, patient.points
    angle = np.arctan2(y, x)
    thickness = rng.uniform(25, 65) if patient.chance(0.2) else rng.uniform(2, 28)
    front, side = rng.uniform(-0.35, 0.15), rng.uniform(-0.3, 0.3)
    fat = thickness * (1 + 0.3 * np.sin(angle) * rng.uniform(-1, 1) + front * np.cos(2 * angle))
    fat = fat + side * thickness * np.sin(2 * angle) * 0.3 - 0.002 * thickness * z * rng.uniform(-1, 1)
    outer = patient.cavity - patient.wall - np.maximum(fat, 1.5)
    if patient.chance(0.4):  # breasts
        for x0 in (70, -70):
            centre = np.array([x0, 112 + thickness * 0.8, rng.uniform(60, 110)])
            radii = np.array([rng.uniform(35, 60), rng.uniform(20, 50), rng.uniform(35, 60)])
            outer = shapes.smooth_minimum(outer, shapes.ellipsoid((x, y, z), centre, radii), 8.0)
    outer = shapes.smooth_minimum(outer, hips(patient, thickness), 24.0)
    patient.paint("skin", outer - rng.uniform(1.5, 3), everywhere)
    patient.paint("fat", outer, everywhere)
    patient.paint("muscle", patient.cavity - patient.wall * (1 + 0.12 * patient.bumps), everywhere)
    seam = np.abs(patient.cavity - 0.5 * patient.wall + patient.bumps) - rng.uniform(0.3, 1.5)
    patient.paint("fat", np.maximum(seam, np.maximum(z + 25, -35 - y)), everywhere)
    patient.paint("fat", patient.cavity, everywhere)
    strong = rng.uniform(0.8, 1.15)
    for side in (1, -1):
        patient.ellipsoid("muscle", (35 * side, -79, 0), np.array((32, 21, 400)) * strong)  # erector spinae
        patient.ellipsoid("muscle", (64 * side, -66, -75), np.array((19, 9, 75)) * strong)  # quadratus lumborum
        psoas = [(24 * side, -32, 5), (42 * side, -33, -60), (50 * side, -26, -130)]
        patient.tube("muscle", psoas, np.array((6, 16, 21)) * strong)
        patient.tube("muscle", [(13 * side, -16, -30), (14 * side, -10, 60)], np.array((5, 7)) * strong)  # crura
        rectus = (
            patient.near((5, 68, -200), (75, 100, 50)) if side > 0 else patient.near((-75, 68, -200), (-5, 100, 50))
        )
        sheet = np.abs(patient.cavity[rectus] - 1.0) - 5 * strong
        sheet = np.maximum(sheet, np.abs(patient.points[0][rectus] - 38 * side) - 30)
        patient.paint("muscle", np.maximum(sheet, 40 - patient.points[1][rectus]), rectus)


def _relabel_chest(patient: Patient) -> None:
    """Of the chest only air is lung; the heart has a label of its own."""
    patient.label[(patient.label == LABEL_INDEX["lung"]) & (patient.tissue != TISSUE_INDEX["lung"])] = 0
    patient.label[patient.tissue == TISSUE_INDEX["heart"]] = LABEL_INDEX["heart"]


def _paint_fluid(patient: Patient) -> None:
    """Pleural effusion, which lies at the back of the lungs, and ascites along the wall."""
    rng, (_, y, z) = patient.rng, patient.points
    if patient.chance(0.12):
        side = np.sign(patient.points[0]) * rng.choice([-1, 1])
        fluid = np.where(patient.tissue == TISSUE_INDEX["lung"], np.maximum(y - rng.uniform(-75, -30), side), 1.0)
        patient.paint("effusion", fluid, patient.everywhere)
    if patient.chance(0.08):
        depth = rng.uniform(4, 22)
        rim = np.maximum(np.maximum(patient.cavity, -depth - patient.cavity), patient.dome)
        patient.paint("ascites", np.maximum(rim, z - 200), patient.everywhere)


def _paint_flexures(patient: Patient) -> None:
    """More bowel: loops that crowd a lean abdomen, and the colon's flexures, high or low beside liver and spleen."""
    rng = patient.rng
    for _ in range(rng.integers(0, 40)):
        start = np.array([rng.uniform(-95, 95), rng.uniform(-15, 68), rng.uniform(-120, -10)])
        points = start + np.vstack([np.zeros(3), np.cumsum(rng.normal(0, 1, (2, 3)) * (17, 13, 9), 0)])
        content = rng.choice(["bowel fluid", "bowel oral", "bowel wall"])
        phantom_anatomy.paint_loop(
            patient, points, np.full(3, rng.uniform(7, 14)), content=content, gas=rng.choice([0, 0, 0, 0.4])
        )
    for side in (1, -1):
        if patient.chance(0.7):
            start = np.array([side * rng.uniform(70, 108), rng.uniform(-25, 55), rng.uniform(-60, 5)])
            steps = rng.normal(0, 1, (2, 3)) * (16, 22, 14)
            points = start + np.vstack([np.zeros(3), np.cumsum(steps, 0)])
            content = rng.choice(["stool", "stool", "bowel fluid", "bowel oral"])
            phantom_anatomy.paint_loop(
                patient, points, rng.uniform(12, 26, 3), content=content, gas=rng.uniform(0, 0.8), haustra=1.6
            )
    _paint_stool(patient)


def _paint_stool(patient: Patient) -> None:
    """The colon where it is most like a liver: wide, full of stool, and low."""
    rng = patient.rng
    if patient.chance(0.4):  # a caecum as large as the tip of a liver, and below it
        start = np.array([rng.uniform(62, 104), rng.uniform(-25, 35), rng.uniform(-150, -105)])
        points = start + np.array([(0, 0, 0), (rng.uniform(-8, 8), -4, 28), (rng.uniform(-6, 10), -8, 62)])
        gas = rng.choice([0, 0.2, 0.5])
        phantom_anatomy.paint_loop(patient, points, rng.uniform(20, 36, 3), content="stool", gas=gas, haustra=1.6)
    if patient.chance(0.35):  # a transverse colon that hangs down, as far as into the pelvis
        low, middle = rng.uniform(-190, -85), rng.uniform(-40, 40)
        ends = [(88, 22, rng.uniform(-70, -40)), (-85, 26, rng.uniform(-40, -5))]
        front = rng.uniform(45, 66)
        for end, width in zip(ends, rng.uniform(14, 28, 2)):
            points = [end, (0.6 * end[0] + 0.4 * middle, front, 0.45 * end[2] + 0.55 * low), (middle, front, low)]
            content = rng.choice(["stool", "stool", "bowel fluid"])
            gas = rng.choice([0, 0.2, 0.6])
            phantom_anatomy.paint_loop(patient, points, np.full(3, width), content=content, gas=gas, haustra=1.6)


def _paint_collection(patient: Patient) -> None:
    """A large cyst or collection anywhere in the abdomen, which is no organ however bright it is."""
    if not patient.chance(0.12):
        return
    rng = patient.rng
    centre = np.array([rng.uniform(-95, 95), rng.uniform(-40, 60), rng.uniform(-90, 50)])
    radii = np.exp(rng.uniform(np.log(12), np.log(60))) * rng.uniform(0.6, 1.3, 3)
    region = patient.near(centre - radii, centre + radii)
    distance = shapes.ellipsoid(patient.at(region), centre, radii) + 1.5 * patient.bumps[region]
    distance = np.maximum(distance, np.maximum(patient.cavity[region] + 2, patient.dome[region] + 2))
    with patient.labelled("collection"):
        patient.paint("bowel wall", distance - 2, region)
        patient.paint(rng.choice(["cyst", "cyst", "lesion"]), distance, region)


def _paint_outside(patient: Patient) -> None:
    """What else a scan shows: the table under the patient, and arms beside the body."""
    rng = patient.rng
    air = patient.tissue == TISSUE_INDEX["air"]
    x, y, z = np.meshgrid(*patient.raw_axes, indexing="ij", sparse=True)
    if patient.chance(0.5):
        body = np.flatnonzero((~air).any((0, 2)))
        back = patient.raw_axes[1][body[0]]
        top = back - rng.uniform(-4, 18) + rng.uniform(0, 0.0012) * x**2
        sheet = np.abs(y - top + rng.uniform(4, 12)) - rng.uniform(1, 4)
        patient.tissue[air & (sheet + 0 * z < 0)] = TISSUE_INDEX["table"]
    if patient.chance(0.2):
        columns = np.flatnonzero((~air).any((1, 2)))
        for edge, side in ((columns[-1], 1), (columns[0], -1)):
            if patient.chance(0.2):
                continue
            thick = rng.uniform(28, 48)
            middle = (patient.raw_axes[0][edge] + side * (thick + rng.uniform(-12, 12)), rng.uniform(-50, 30))
            ray = np.hypot(x - middle[0] - 0.05 * side * z, y - middle[1])
            for tissue, radius in (("skin", thick), ("fat", thick - 2), ("muscle", 0.8 * thick), ("cortical bone", 11)):
                patient.tissue[air & (ray < radius)] = TISSUE_INDEX[tissue]
            patient.tissue[air & (ray < 7)] = TISSUE_INDEX["marrow"]


def _write_patient(folder: Path, seed: int) -> None:
    tissue, label = make_patient(seed)
    with whole_file(folder / f"patient_{seed:05d}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, tissue=tissue, label=label)


def write_patients(folder: str | Path, count: int, *, first_seed: int = 0, workers: int = 1) -> list[Path]:
    """Tissue and label maps of ``count`` patients, painted on first use: ``patient_00000.npz``, ...

    One that is there is left as it is. About two seconds and 290 kB a patient.

    Args:
        folder: made where it is missing.
        count: of patients.
        first_seed: seeds count upwards from it.
        workers: processes that paint.

    Returns:
        the files, in the order of the seeds.
    """
    if count < 1:
        raise SettingError(f"The count of patients must be 1 or more, but is {count}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {seed: folder / f"patient_{seed:05d}.npz" for seed in range(first_seed, first_seed + count)}
    missing = [seed for seed, path in files.items() if not path.exists()]
    if missing:
        logger.info("Painting %d patients into %s (%d are there already).", len(missing), folder, count - len(missing))
    if workers > 1 and missing:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_write_patient, [folder] * len(missing), missing, chunksize=4))
    else:
        for seed in missing:
            _write_patient(folder, seed)
    return list(files.values())
