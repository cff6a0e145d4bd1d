"""The organs of painted patients: each of any usual shape, and of many unusual ones."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..data import phantom_anatomy
from ..data import phantom_shapes as shapes
from .patient import LABEL_INDEX, Patient


def paint_stomach(patient: Patient) -> None:
    """Empty to full, with any level of gas, its fundus beside the spleen."""
    rng = patient.rng
    fill, shift = rng.uniform(0.45, 1.25), patient.jitter(12, 10, 12)
    points = np.array([(-62, -8, 44), (-62, 26, 26), (-42, 46, 4), (-2, 46, -6), (30, 34, -8)]) + shift
    points[2:, 2] += rng.uniform(-45, 10)
    distance, region = patient.tube_distance(points, np.array([34, 36, 26, 17, 11]) * fill)
    inside = np.maximum(patient.cavity[region] + 4, patient.dome[region] + 4)
    distance = np.maximum(distance, inside) + 1.6 * patient.bumps[region]
    patient.paint("bowel wall", distance, region)
    inner = distance + rng.uniform(2.0, 7.0)
    patient.paint(rng.choice(["stomach content", "stomach content", "bowel oral", "gas"]), inner, region)
    level = shift[1] + rng.uniform(10, 70)
    patient.paint("gas", np.maximum(inner, level - patient.points[1][region]), region)


def paint_spleen(patient: Patient) -> None:
    """A crescent that hugs the wall from the back to the side (most), or an ellipsoid hollowed by stomach and
    kidney.
    """
    rng = patient.rng
    size = rng.uniform(1.2, 1.55) if patient.chance(0.12) else rng.uniform(0.78, 1.2)
    if patient.chance(0.75):
        distance, region = _crescent(patient, size)
    else:
        distance, region = _hollow_ellipsoid(patient, size)
    distance = distance + rng.uniform(0.6, 1.8) * patient.bumps[region]
    distance = shapes.smooth_maximum(distance, patient.cavity[region] + rng.uniform(1, 4), 3.0)
    distance = shapes.smooth_maximum(distance, patient.dome[region] + rng.uniform(0, 4), 4.0)
    patient.paint("fat", distance - rng.uniform(0, 3), region)
    patient.paint("spleen", distance, region, label=phantom_anatomy.SPLEEN)
    if patient.chance(0.3):  # the pulp is uneven in an early contrast phase
        stripes = 2.2 * patient.bumps[region] * np.cos(0.15 * distance) - rng.uniform(0, 2)
        patient.paint("spleen pulp", np.maximum(stripes, distance + 1), region, label=phantom_anatomy.SPLEEN)


def _crescent(patient: Patient, size: float) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """Distance to a cap on the inner side of the wall, thickest in its middle."""
    rng = patient.rng
    region = patient.near((-150, -110, -110), (-10, 90, 110))
    x, y, z = patient.at(region)
    middle = np.radians(rng.uniform(198, 240))  # from the centre of the cavity; 180 is the patient's left, 270 his back
    arc = (np.arctan2((y - 5.0) / 85.0, x / 131.0) % (2 * np.pi) - middle) * 105.0  # mm along the wall
    height = z - rng.uniform(2, 34) - rng.uniform(-0.35, 0.25) * arc  # its axis falls towards the front
    length, tall = 66 * size * rng.uniform(0.85, 1.25), 58 * size * rng.uniform(0.8, 1.25)
    thick = 68 * size**0.7 * rng.uniform(0.7, 1.2)
    outside = (np.abs(arc) / length) ** 2.2 + (np.abs(height) / tall) ** 2.2
    profile = thick * np.where(outside < 1, np.sqrt(np.maximum(1 - outside, 0)), (1 - outside) * 0.8)
    skew = 1 + rng.uniform(-0.35, 0.35) * np.clip(arc / length, -1, 1)
    # -cavity is the depth under the wall; the slope of the profile makes half of the difference nearer to a distance
    distance = 0.75 * (-patient.cavity[region] - profile * skew)
    if patient.chance(0.5):  # the hilum's notch
        notch = shapes.ellipsoid((x, y, z), (-58 + rng.uniform(-12, 8), -18 + rng.uniform(-12, 12), 18), (22, 20, 38))
        distance = shapes.smooth_maximum(distance, -notch, 6.0)
    return distance, region


def _hollow_ellipsoid(patient: Patient, size: float) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    rng = patient.rng
    centre = np.array([-95, -28, 20]) + patient.jitter(8, 14, 18)
    radii = np.array([34, 60, 52]) * size * rng.uniform(0.8, 1.2, 3)
    region = patient.near(centre - radii.max(), centre + radii.max())
    turn = Rotation.from_euler("zyx", [25, 8, 12] + patient.jitter(25, 12, 16), degrees=True).as_matrix()
    local = shapes.turned(patient.at(region), centre, turn)
    distance = shapes.ellipsoid(local, (0, 0, 0), radii)
    hollow = (rng.uniform(36, 60) * size, rng.uniform(-10, 20), 0)
    hollow = shapes.ellipsoid(local, hollow, (37, rng.uniform(45, 80), 95))
    return shapes.smooth_maximum(distance, -hollow, 7.0), region


def paint_liver(patient: Patient) -> None:
    """As the phantoms', with short and long right lobes, left lobes from none to the spleen, caudate, fissures, fat."""
    rng = patient.rng
    region = patient.near((-120, -100, -130), (150, 110, 110))
    x, y, z = points = patient.at(region)
    size = rng.uniform(0.86, 1.16)
    tip = rng.uniform(-105, -35)
    right = shapes.ellipsoid(
        points, np.array([80, 2, 12]) + patient.jitter(6, 8, 10), np.array([78, 90, rng.uniform(85, 122)]) * size
    )
    slope = rng.uniform(0.35, 0.95)  # of the visceral surface, from the tip to the middle
    floor = tip + np.minimum(slope * (112 - x) + rng.uniform(-0.05, 0.35) * (y - 10), rng.uniform(60, 95))
    right = shapes.smooth_maximum(right, 0.8 * (floor - z), rng.uniform(6, 18))
    bed = shapes.ellipsoid(points, (58 + rng.uniform(-8, 6), -66, -34), (38, 40, rng.uniform(44, 60)))
    right = shapes.smooth_maximum(right, -bed, 6.0)
    reach = rng.uniform(-105, -20) if patient.chance(0.85) else rng.uniform(-20, 30)
    middle = (reach + 70) / 2
    front, thick = 48 + rng.uniform(-10, 12), rng.uniform(24, 46)
    left = shapes.ellipsoid(points, (middle, front, 27 + rng.uniform(-14, 10)), (70 - middle, 37, thick))
    left = shapes.smooth_maximum(left, 0.85 * (rng.uniform(-14, 8) - 0.22 * (x - 30) - z), 8.0)
    if patient.chance(0.35):  # the lobe hangs in front of stomach and pancreas
        low = (rng.uniform(5, 40), 62 + rng.uniform(-8, 8), rng.uniform(-35, 5))
        left = shapes.smooth_minimum(left, shapes.ellipsoid(points, low, (36, 22, rng.uniform(28, 50))), 10.0)
    caudate = shapes.ellipsoid(points, (20, 12, 30), np.array((24, 19, 27)) * rng.uniform(0.7, 1.25))
    distance = shapes.smooth_minimum(shapes.smooth_minimum(right, left, 12.0), caudate, 6.0)
    distance = distance + rng.uniform(0.6, 2.0) * patient.bumps[region]
    distance = shapes.smooth_maximum(distance, patient.cavity[region] + rng.uniform(0.5, 4), 4.0)
    distance = shapes.smooth_maximum(distance, patient.dome[region] + rng.uniform(0, 3), 3.0)
    distance = shapes.smooth_maximum(distance, -shapes.ellipsoid((x, y), (-4, -24), (31, 31)), 6.0)
    patient.paint("fat", distance - rng.uniform(0, 2.5), region)
    patient.paint("liver", distance, region, label=phantom_anatomy.LIVER)
    if patient.chance(0.15):  # patchy fat
        patches = 3 * shapes.smooth_field(rng, patient.axes, 45.0)[region] - rng.uniform(0, 4)
        patient.paint("liver fat", np.maximum(patches, distance + 1), region, label=phantom_anatomy.LIVER)
    _paint_liver_details(patient, distance, region, tip)


def _paint_liver_details(patient: Patient, liver: np.ndarray, region, tip: float) -> None:
    rng = patient.rng
    if patient.chance(0.9):
        phantom_anatomy.paint_hepatic_vessels(patient, liver, region)
    fissure = rng.uniform(8, 34)
    if patient.chance(0.75):
        wide = rng.uniform(0.5, 1.4)
        place = [(fissure, 84, 22), (fissure - 2, 58, 14), (fissure - 2, 46, 8)]
        patient.tube("fat", place, np.array((5, 4, 3)) * wide, label=0)
    if patient.chance(0.85):
        bed = np.array([56, 40, tip + 46]) + patient.jitter(20, 16, 14)
        calibre, long = rng.uniform(7, 21), rng.uniform(0.7, 1.8)
        place = [bed + np.array((-10, -14, 12)) * long, bed + np.array((4, 12, -10)) * long]
        with patient.labelled("gallbladder"):
            if patient.chance(0.3):
                patient.tube("bowel wall", place, (8, calibre + rng.uniform(1, 4)), label=LABEL_INDEX["gallbladder"])
            patient.tube("gallbladder", place, (6, calibre), label=LABEL_INDEX["gallbladder"])


def paint_kidney(patient: Patient, side: int, label: int) -> None:
    """A bean of any usual size, place and turn; sinus from none to wide, pelvis from none to hydronephrosis."""
    rng = patient.rng
    centre = phantom_anatomy.kidney_centre(side) + patient.jitter(9, 9, 26)
    if patient.chance(0.04):
        centre = centre + (rng.uniform(-20, 0) * side, rng.uniform(0, 20), rng.uniform(-60, -25))
    size = rng.uniform(0.55, 0.82) if patient.chance(0.1) else rng.uniform(0.85, 1.13)
    radii = np.array([29.0, 26.5, 51.0]) * size * rng.uniform(0.9, 1.1, 3)
    region = patient.near(centre - radii.max(), centre + radii.max())
    x, y, z = (axis - np.float32(middle) for axis, middle in zip(patient.at(region), centre))
    turn = Rotation.from_euler("zyx", [28, 13, 12] + patient.jitter(30, 12, 12), degrees=True).as_matrix()
    medial, anterior, long = shapes.turned((-side * x, y, z), (0, 0, 0), turn)
    bent = medial - rng.uniform(3, 13) * (long / radii[2]) ** 2 + 3
    distance = shapes.ellipsoid((bent, anterior, long), (0, 0, 0), radii)
    distance = distance + rng.uniform(0.4, 1.8) * patient.bumps[region]
    local = (medial, anterior, long)
    notch = shapes.ellipsoid(local, (radii[0] + rng.uniform(-3, 5), 0, 0), (17, 8.5, rng.uniform(10, 22)))
    distance = shapes.smooth_maximum(distance, -notch, 4.0)
    rim = rng.uniform(0.0, 3.0) if patient.chance(0.5) else rng.uniform(3.0, 14.0)
    around = shapes.smooth_maximum(distance - rim, patient.cavity[region] - 1, 2.0)
    patient.paint("fat", around, region, label=0)
    hilum = [(radii[0] - 6, 1, 2), (radii[0] + 20, 2, 4)]
    spread = np.hypot(anterior - hilum[0][1], long - hilum[0][2]) - 4
    patient.paint("vein", np.maximum(spread, np.maximum(hilum[0][0] - medial, medial - hilum[1][0])), region, label=0)
    patient.paint("renal cortex", distance, region, label=label)
    pyramids = np.cos(long * (2 * np.pi / rng.uniform(12, 19))) * 1.6 + 1.4 * patient.bumps[region]
    patient.paint("renal medulla", distance + rng.uniform(5, 10) + pyramids, region)
    wide = rng.uniform(0.3, 1.25)
    sinus = shapes.ellipsoid(local, (11, 0, 0), np.array((15, 8, 22)) * wide) + 1.5 * patient.bumps[region]
    patient.paint("renal sinus", np.maximum(sinus, distance + 1), region)
    swollen = rng.uniform(1.2, 2.2) if patient.chance(0.08) else rng.uniform(0.3, 1.0)
    pelvis = shapes.ellipsoid(local, (14, 0, -4), np.array((12, 4.5, rng.uniform(8, 14))) * swollen)
    patient.paint("renal pelvis", np.maximum(pelvis, distance + 1), region)
    if patient.chance(0.06):
        patient.ellipsoid("stone", centre + patient.jitter(10, 8, 20), rng.uniform(2, 7, 3))


def paint_adrenals(patient: Patient) -> None:
    for side in (1, -1):
        top = phantom_anatomy.kidney_centre(side) * (0.7, 0.8, 1) + (0, 8, 48)
        for end in ((10 * side, -14, -14), (-4 * side, -16, -14)):
            patient.tube("adrenal", [top, top + end], (3, 2))


def paint_aorta(patient: Patient) -> None:
    rng = patient.rng
    calibre = rng.uniform(14, 24) if patient.chance(0.05) else rng.uniform(7.5, 13.5)
    bend = patient.jitter(7, 3, 0)
    course = [(-14, -14, 150), np.array((-9, -6, 20)) + bend, np.array((-6, -6, -100)) - bend]
    patient.tube("aorta", course, (1.1 * calibre, calibre, 0.85 * calibre), label=LABEL_INDEX["aorta"])


def paint_cava(patient: Patient) -> None:
    calibre = np.array([12, 11.5, 10.5, 10]) * patient.rng.uniform(0.55, 1.2)
    course = np.array([(17, 0, 74), (21, -6, 30), (20, -8, -30), (14, -8, -100)]) + patient.jitter(4, 3, 0)
    patient.tube("vein", course, calibre, label=LABEL_INDEX["vena cava"])


def paint_lesions(patient: Patient) -> None:
    """Cysts and tumours in organs: they stay part of the organ's label."""
    rng = patient.rng
    for label, share in (
        (phantom_anatomy.LIVER, 0.3),
        (phantom_anatomy.SPLEEN, 0.08),
        (phantom_anatomy.RIGHT_KIDNEY, 0.2),
        (phantom_anatomy.LEFT_KIDNEY, 0.2),
    ):
        if not patient.chance(share):
            continue
        tissue = str(rng.choice(["cyst", "lesion"]))
        for _ in range(rng.integers(1, 6)):
            centre = patient.inside_organ(label)
            if centre is None:
                break
            radii = np.exp(rng.uniform(np.log(3), np.log(22 if label == phantom_anatomy.LIVER else 13))) * rng.uniform(
                0.8, 1.2, 3
            )
            region = patient.near(centre - radii, centre + radii)
            distance = shapes.ellipsoid(patient.at(region), centre, radii) + 0.5 * patient.bumps[region]
            distance = np.where(patient.label[region] == label, distance, 1.0)
            patient.paint(tissue, distance, region, label=label)
