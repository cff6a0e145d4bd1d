"""What lies below and above the organs of painted patients: the pelvis and the chest.

Scans of the trunk show both, and a network that has never seen them finds organs there: gluteal muscles and bladders of
the grey of a liver. What is painted here belongs to no organ.
"""

from __future__ import annotations

import numpy as np

from ..data import phantom_anatomy
from ..data import phantom_shapes as shapes
from .patient import CREST, TISSUE_INDEX, Patient


def hips(patient: Patient, thickness: float) -> np.ndarray:
    """Distance to the hips' outer surface, which is wider than the abdomen's; ``thickness`` in mm of the fat."""
    rng, points = patient.rng, patient.points
    wide = rng.uniform(0.86, 1.12)
    distance = np.full(patient.shape, np.inf, np.float32)
    for side in (1, -1):
        centre = np.array((76 * side, -22, -232))
        radii = np.array((94 * wide + 0.5 * thickness, 88 + thickness, 150))
        distance = np.minimum(distance, shapes.ellipsoid(points, centre, radii))
    return distance


def paint_pelvis(patient: Patient) -> None:
    """Bones and muscles around the funnel, and within it bladder, bowel, vessels and what differs between the sexes."""
    _paint_hip_muscles(patient)
    _paint_hip_bones(patient)
    _paint_sacrum(patient)
    with patient.labelled("bowel"):
        _paint_pelvic_bowel(patient)
    _paint_iliac_vessels(patient)
    _paint_pelvic_organs(patient)


def _paint_hip_muscles(patient: Patient) -> None:
    rng = patient.rng
    region = patient.near((-260, -200, -420), (260, 200, CREST + 4))
    x, y, z = patient.at(region)
    cone, strong = patient.funnel[region], rng.uniform(0.82, 1.12)
    below = z - CREST + 6 * patient.bumps[region]
    wall = np.where(patient.tissue[region] == TISSUE_INDEX["muscle"], below + 30, 1.0)
    patient.paint("fat", np.maximum(wall, -cone), region)  # the abdominal wall ends above the hips
    # iliacus and obturator line the funnel; the spine's lower end, painted before, makes room for the sacrum
    patient.paint("fat", np.maximum(np.maximum(cone, below + 14), np.abs(x) - 60), region)
    patient.paint("muscle", np.maximum(np.maximum(-cone, cone - 26 * strong), below), region)
    for side in (1, -1):
        glutei = (
            ((80, -72, -185), (58, 42, 86)),  # maximus
            ((112, -18, -175), (32, 50, 66)),  # medius, minimus
            ((92, 38, -262), (36, 34, 62)),  # flexors of the thigh
            ((118, 2, -268), (34, 46, 70)),
            ((84, -62, -272), (52, 42, 62)),
            ((58, -10, -292), (34, 40, 48)),  # adductors
        )
        for centre, radii in glutei:
            place = np.array(centre) * (side, 1, 1) + patient.jitter(5, 5, 8)
            size = np.array(radii) * strong * rng.uniform(0.9, 1.1, 3)
            part = patient.near(place - size, place + size)
            distance = shapes.ellipsoid(patient.at(part), place, size) + 2.0 * patient.bumps[part]
            distance = np.maximum(distance, 6 - patient.funnel[part])
            patient.paint("fat", distance - rng.uniform(0.5, 4), part)
            patient.paint("muscle", distance, part)
        psoas = [(50 * side, -26, -100), (60 * side, -14, -165), (74 * side, 26, -215), (86 * side, 22, -275)]
        patient.tube("fat", psoas, np.array((22, 21, 19, 17)) * strong)
        patient.tube("muscle", psoas, np.array((20, 19, 17, 15)) * strong)
        piriformis = [(22 * side, -66, -190), (80 * side, -52, -225)]
        patient.tube("muscle", piriformis, np.array((11, 9)) * strong)


def _paint_hip_bones(patient: Patient) -> None:
    rng = patient.rng
    for side in (1, -1):
        region = patient.near((20 if side > 0 else -150, -90, -250), (150 if side > 0 else -20, 80, -80))
        x, y, z = patient.at(region)
        offset = 13 + 5 * np.sin((y + 20) / 40) + rng.uniform(-2, 3)
        sheet = np.abs(patient.funnel[region] - offset) - rng.uniform(3, 4.5) - 2.5 * np.clip((-60 - y) / -20, 0, 1)
        crest = z - CREST + 0.006 * (y + 8) ** 2 + rng.uniform(0, 16)
        front = y - 56 + 0.45 * np.clip(-150 - z, 0, 60)
        sheet = np.maximum(np.maximum(sheet, crest), np.maximum(front, -74 - y))
        sheet = np.maximum(sheet, np.maximum(-236 - z, 24 - x * side))
        patient.paint("cortical bone", sheet, region)
        patient.paint("marrow", sheet + 2.2, region)
        head = np.array((91 * side, 0, -243)) + patient.jitter(3, 3, 5)
        for tissue, thick in (("cortical bone", 0.0), ("marrow", 3.0)):
            patient.ellipsoid(tissue, head + (4 * side, 0, 8), np.array((34, 33, 34)) - thick)  # acetabulum
            rami = [head + (-22 * side, 16, -2), (44 * side, 44, -250), (8 * side, 46, -262)]
            patient.tube(tissue, rami, np.array((13, 9, 15)) - thick)
            ischium = [head + (-14 * side, -26, 0), (62 * side, -46, -286), (50 * side, -38, -304)]
            patient.tube(tissue, ischium, np.array((16, 15, 15)) - thick)
        patient.ellipsoid("cartilage", head, (26.5, 26.5, 26.5))
        neck = [head, head + (26 * side, -6, -12), head + (48 * side, -10, -26), head + (46 * side, -6, -90)]
        for tissue, thick in (("cortical bone", 0.0), ("marrow", 3.5)):
            patient.ellipsoid(tissue, head, np.full(3, 24.5 - thick / 2))
            patient.tube(tissue, neck, np.array((18, 17, 22, 17)) - thick)


def _paint_sacrum(patient: Patient) -> None:
    rng = patient.rng
    region = patient.near((-75, -140, -270), (75, -20, CREST - 4))
    x, y, z = patient.at(region)
    down = np.clip((CREST - 10 - z) / 100, 0, 1.4)  # from its base to its tip
    front = -42 - 48 * down + 26 * np.clip(down - 0.75, 0, 1) * 2  # hollow towards the pelvis
    wide, thick = np.clip(56 * (1 - 0.68 * down), 9, 60), np.clip(22 * (1 - 0.5 * down), 6, 30)
    middle = front - thick
    distance = 0.9 * (np.hypot(x / wide, (y - middle) / thick) - 1) * np.minimum(wide, thick)
    distance = np.maximum(distance, np.maximum(z - CREST + 10, -240 - z)) + 0.8 * patient.bumps[region]
    behind = np.maximum(np.hypot(x / 44, (y - middle + thick + 14) / 18) - 1, z - CREST + 6) * 18
    patient.paint("muscle", behind, region)
    patient.paint("cortical bone", distance, region)
    patient.paint("marrow", distance + rng.uniform(2, 3), region)
    for level in (-128, -150, -171, -190):  # the foramina
        for side in (1, -1):
            share = (CREST - 10 - level) / 100
            place = [
                (side * (24 - 8 * share), -38 - 48 * share, level),
                (side * (22 - 8 * share), -92 - 30 * share, level),
            ]
            patient.tube("fat", place, (4.5, 3.5))


def _paint_pelvic_bowel(patient: Patient) -> None:
    rng = patient.rng
    cavity, patient.cavity = patient.cavity, np.maximum(patient.cavity, patient.funnel)
    for _ in range(rng.integers(4, 30)):
        start = np.array([rng.uniform(-70, 70), rng.uniform(-25, 55), rng.uniform(-200, -110)])
        points = start + np.vstack([np.zeros(3), np.cumsum(rng.normal(0, 1, (2, 3)) * (17, 13, 9), 0)])
        content = rng.choice(["bowel fluid", "bowel oral", "bowel oral"])
        phantom_anatomy.paint_loop(
            patient, points, np.full(3, rng.uniform(8, 14)), content=content, gas=rng.choice([0, 0, 0.25])
        )
    filling = ("stool", "stool", "bowel fluid", "bowel oral")
    calibre = rng.uniform(16, 30)
    caecum = [(96, -18, -100), (90, 4, -128), (78, 16, -150)]
    phantom_anatomy.paint_loop(
        patient,
        caecum + patient.jitter(8, 14, 14),
        calibre * rng.uniform(0.9, 1.3, 3),
        content=rng.choice(filling),
        gas=rng.uniform(0, 0.6),
        haustra=1.8,
    )
    calibre = rng.uniform(9, 20)
    rectum = [(0, -58, -175), (0, -70, -210), (0, -62, -245), (0, -56, -300)] + patient.jitter(5, 6, 6)
    phantom_anatomy.paint_loop(
        patient, rectum, calibre * rng.uniform(0.6, 1.3, 4), content=rng.choice(filling), gas=rng.uniform(0, 0.7)
    )
    sigmoid = [(-98, -18, -115), (-88, 8, -150), (-40, rng.uniform(-30, 40), -165), (rng.uniform(-25, 30), -30, -170)]
    sigmoid = np.array([*sigmoid, (0, -58, -180)]) + patient.jitter(6, 8, 8)
    phantom_anatomy.paint_loop(
        patient, sigmoid, rng.uniform(10, 20, 5), content=rng.choice(filling), gas=rng.uniform(0, 0.7), haustra=1.2
    )
    patient.cavity = cavity


def _paint_iliac_vessels(patient: Patient) -> None:
    rng = patient.rng
    for tissue, start, aside, calibre in (("aorta", -6, 0, 6.5), ("vein", 12, -9, 8.0)):
        for side in (1, -1):
            course = [(start, -8, -96), (34 * side, -18 + aside, -140), (58 * side, 4 + aside, -185)]
            course = np.array([*course, (72 * side, 42 + aside, -232), (76 * side, 46 + aside, -300)])
            patient.tube(tissue, course + patient.jitter(3, 3, 3), calibre * rng.uniform(0.6, 1.15, 5))
            inner = [course[1], (48 * side, -40, -180), (52 * side, -42, -225)]
            patient.tube(tissue, inner, calibre * rng.uniform(0.4, 0.8, 3))


def _paint_pelvic_organs(patient: Patient) -> None:
    """Bladder from empty to full, and behind it a uterus, or prostate and seminal vesicles."""
    rng = patient.rng
    middle = np.array((0, 18, -238)) + patient.jitter(6, 6, 6)
    female = patient.chance(0.5)
    if female and patient.chance(0.85):
        size = np.exp(rng.uniform(np.log(0.6), np.log(1.9)))
        body = middle + (rng.uniform(-14, 14), -26, 22) + np.array((0, 0, 14)) * size
        patient.ellipsoid("fat", body, np.array((31, 24, 32)) * size + 2)
        patient.ellipsoid("muscle" if patient.chance(0.4) else "heart", body, np.array((30, 23, 31)) * size)
        patient.ellipsoid("lesion" if patient.chance(0.3) else "bowel wall", body, np.array((12, 5, 15)) * size)
        for side in (1, -1):
            ovary = body + (side * (34 * size + 8), -4, 4)
            radii = rng.uniform(8, 15, 3) * (rng.uniform(1.5, 3.5) if patient.chance(0.1) else 1)
            patient.ellipsoid(str(rng.choice(["cyst", "lesion"])), ovary, radii)
    elif not female:
        size = rng.uniform(0.7, 1.7)
        patient.ellipsoid(
            "lesion" if patient.chance(0.5) else "muscle", middle - (0, 14, 34), np.array((26, 19, 20)) * size
        )
        for side in (1, -1):
            patient.ellipsoid("cyst", middle - (18 * side, 32, 10), (17, 6, 9))
    filled = np.exp(rng.uniform(np.log(14), np.log(58)))
    radii = filled * np.array((1.1, 0.85, 0.85)) * rng.uniform(0.85, 1.15, 3)
    centre = middle + (0, 8 + 0.1 * filled, 0.55 * radii[2] - 12)
    region = patient.near(centre - radii, centre + radii)
    distance = shapes.ellipsoid(patient.at(region), centre, radii) + patient.bumps[region]
    distance = np.maximum(distance, patient.funnel[region] + 3)
    with patient.labelled("collection"):
        patient.paint("bowel wall", distance - rng.uniform(1, 6), region)
        patient.paint("renal pelvis", distance, region)  # urine, with or without contrast medium
    if patient.chance(0.08):  # free fluid
        pool = np.array((rng.uniform(-20, 20), -44, -215))
        patient.ellipsoid("ascites", pool, rng.uniform(10, 40, 3))


def paint_upper_chest(patient: Patient) -> None:
    """Vessels and airways above the heart, and the muscles and blades of the shoulders."""
    rng = patient.rng
    arch = [(16, 26, 138), (10, 20, 168), (-8, 0, 184), (-18, -26, 172), (-15, -24, 140)] + patient.jitter(4, 4, 6)
    wide = rng.uniform(11, 18)
    patient.tube("fat", [(0, 0, 130), (0, 0, 215)], (38, 30))
    patient.tube("aorta", arch, wide * np.array((1.1, 1, 0.95, 0.9, 0.85)))
    patient.tube("vein", [(28, 14, 112), (28, 14, 200)], (10, 9))
    patient.tube("vein", [(-14, 36, 136), (-10, 18, 152), (26, -2, 150)], np.array((15, 13, 9)) * rng.uniform(0.8, 1.2))
    patient.tube("gas", [(4, -8, 215), (3, -10, 162), (34, -16, 138)], (8.5, 8.5, 5))
    patient.tube("gas", [(3, -10, 162), (-36, -16, 136)], (7.5, 5))
    patient.tube("muscle", [(-4, -22, 215), (-6, -24, 130)], (8, 8))  # oesophagus
    for _ in range(rng.integers(20, 60)):
        side = rng.choice([-1, 1])
        start = np.array((36 * side, -12, 144)) + rng.normal(0, 12, 3)
        stop = np.array((side * rng.uniform(50, 115), rng.uniform(-70, 70), rng.uniform(85, 215)))
        distance, region = patient.tube_distance([start, (start + stop) / 2 + rng.normal(0, 8, 3), stop], (4, 2.6, 1.2))
        inside = np.where(patient.tissue[region] == TISSUE_INDEX["lung"], distance, 1.0)
        patient.paint("vein", inside, region)
    for side in (1, -1):
        for centre, radii in (((112, -70, 190), (46, 30, 70)), ((70, 92, 178), (52, 14, 48))):
            place = np.array(centre) * (side, 1, 1) + patient.jitter(8, 6, 10)
            region = patient.near(place - radii, place + radii)
            distance = shapes.ellipsoid(patient.at(region), place, np.array(radii) * rng.uniform(0.8, 1.15))
            distance = np.maximum(distance + 2 * patient.bumps[region], 3 - patient.cavity[region])
            patient.paint("muscle", distance, region)
        blade = [(70 * side, -98, 120), (104 * side, -92, 200)]
        for tissue, radius in (("cortical bone", 7.0), ("marrow", 4.0)):
            patient.tube(tissue, blade, (radius - 3, radius))
