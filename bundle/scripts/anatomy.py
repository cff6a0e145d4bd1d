"""Patients without end: procedurally painted abdomens, wider than any population, for pretraining.

The phantoms of the demo stand for one kind of patient in one kind of scan. Here each seed draws a patient anew, from child
to obese, with organs of any usual shape and many unusual ones, and what is kept is no image but the *tissue* of each
voxel and the *label* of the organ it belongs to. Contrasts are drawn later, again and again (:mod:`.contrasts`). The
distributions are wider than the published populations they are drawn around (:data:`POPULATION`), because a network that
has seen more than occurs is not surprised by what does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from . import phantoms
from .files import whole_file

logger = logging.getLogger(__name__)

SHAPE, SPACING = (224, 192, 64), (2.0, 2.0, 4.0)  # voxels and mm along right, anterior, superior
TISSUES = (
    *phantoms.TISSUES,
    *("lesion", "cyst", "stone", "ascites", "effusion", "gland", "adrenal", "table", "spleen pulp", "liver fat"),
)
LABELS = (
    "background",
    *phantoms.ORGANS,
    *("gallbladder", "stomach", "aorta", "vena cava", "pancreas", "spine", "bowel", "heart", "lung", "collection"),
)
#: Volume in ml, mean and standard deviation over adults, of CT volumetry (liver and spleen: Geraghty et al., Radiology
#: 2004; kidneys with their sinus: Cheong et al., CJASN 2007, and the patients of CHAOS).
POPULATION = {
    "spleen": (215.0, 110.0),
    "right kidney": (190.0, 45.0),
    "left kidney": (195.0, 45.0),
    "liver": (1550.0, 350.0),
}
_TISSUE = {name: index for index, name in enumerate(TISSUES)}
_LABEL = {name: index for index, name in enumerate(LABELS)}
_OF_AN_ORGAN = len(phantoms.ORGANS)  # labels up to this one are kept when fat or a vessel is laid over them


class Patient(phantoms._Body):
    """A patient under construction, as :class:`phantoms._Body`, painted as tissues rather than as layers of grey."""

    def __init__(self, rng: np.random.Generator, axes: Sequence[np.ndarray]) -> None:
        super().__init__(rng, axes)
        self.raw_axes = axes
        self.tissue = np.zeros(self.shape, np.uint8)
        self.context: int | None = None
        # child to tall, flat to round, short to long; the phantoms' own draw is undone
        frame = rng.uniform(0.74, 1.0) if rng.random() < 0.15 else rng.uniform(0.92, 1.2)
        scale = frame * np.array([rng.uniform(0.92, 1.08), rng.uniform(0.82, 1.25), rng.uniform(0.88, 1.22)])
        shift = rng.uniform(-1, 1, 3) * (12, 12, 12)
        self.axes = [(axis - offset) / size for axis, offset, size in zip(axes, shift, scale)]
        mesh = np.meshgrid(*(axis.astype(np.float32) for axis in self.axes), indexing="ij", sparse=True)
        self.points = []
        coarse, fine = rng.uniform(3, 8), rng.uniform(0.6, 2.2)
        for line in mesh:
            warp = coarse * phantoms._smooth_field(rng, self.axes, 75.0)
            warp += fine * phantoms._smooth_field(rng, self.axes, 35.0)
            self.points.append(line + np.clip(warp, -phantoms._LARGEST_WARP, phantoms._LARGEST_WARP))
        self.bumps = rng.uniform(0.5, 1.8) * phantoms._smooth_field(rng, self.axes, 22.0)
        self.wall = rng.uniform(8.0, 20.0)
        self.cavity, self.dome = self._cavity(), self._dome() + rng.uniform(-16, 8)

    def paint(self, tissue: str, distance: np.ndarray, region, label: int | None = None) -> None:
        """Lays a tissue over what is there; see :meth:`phantoms._Body.paint`.

        Without a label, and outside :meth:`labelled`, organs keep theirs and everything else loses it.
        """
        inside = distance < 0
        self.tissue[region][inside] = _TISSUE[tissue]
        labels = self.label[region]
        if label is None and self.context is None:
            inside = inside & (labels > _OF_AN_ORGAN)
        labels[inside] = label or self.context or 0

    @contextmanager
    def labelled(self, name: str) -> Iterator[None]:
        """Everything painted in this block belongs to one structure."""
        self.context = _LABEL[name]
        try:
            yield
        finally:
            self.context = None

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def inside_organ(self, label: int) -> np.ndarray | None:
        """A random voxel of an organ, in reference millimetres; None where it is not there."""
        voxels = np.flatnonzero(self.label == label)
        if not len(voxels):
            return None
        voxel = np.unravel_index(self.rng.choice(voxels), self.shape)
        return np.array([axis[voxel] for axis in self.points])


def make_patient(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One patient.

    Args:
        seed: 0 or more; the same seed gives the same patient.

    Returns:
        tissue and label ``SHAPE`` uint8, indices into :data:`TISSUES` and :data:`LABELS`, along the patient's right,
        anterior and superior direction.
    """
    if seed < 0:
        raise ValueError(f"The seed must be 0 or more, but is {seed}.")
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE, SPACING)]
    patient = Patient(np.random.default_rng([seed, 7]), axes)
    _paint_trunk(patient)
    with patient.labelled("lung"):
        phantoms._paint_chest(patient)
    _relabel_chest(patient)
    _paint_fluid(patient)
    with patient.labelled("bowel"):
        phantoms._paint_bowel(patient)
        _paint_flexures(patient)
    with patient.labelled("stomach"):
        _paint_stomach(patient)
    _paint_collection(patient)
    with patient.labelled("pancreas"):
        phantoms._paint_pancreas(patient)
    if not patient.chance(0.02):
        _paint_spleen(patient)
    _paint_liver(patient)
    phantoms._paint_renal_vessels(patient)
    _paint_adrenals(patient)
    for side, label in ((1, phantoms._RIGHT_KIDNEY), (-1, phantoms._LEFT_KIDNEY)):
        if not patient.chance(0.02):
            _paint_kidney(patient, side, label)
    with patient.labelled("aorta"):
        _paint_aorta(patient)
    with patient.labelled("vena cava"):
        _paint_cava(patient)
    with patient.labelled("spine"):
        phantoms._paint_spine(patient)
    phantoms._paint_ribs(patient)
    _paint_pelvis(patient)
    _paint_lesions(patient)
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
            outer = phantoms._smooth_minimum(outer, phantoms._ellipsoid((x, y, z), centre, radii), 8.0)
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
        rectus = patient.near((5, 68, -200), (75, 100, 50)) if side > 0 else patient.near((-75, 68, -200), (-5, 100, 50))
        sheet = np.abs(patient.cavity[rectus] - 1.0) - 5 * strong
        sheet = np.maximum(sheet, np.abs(patient.points[0][rectus] - 38 * side) - 30)
        patient.paint("muscle", np.maximum(sheet, 40 - patient.points[1][rectus]), rectus)


def _relabel_chest(patient: Patient) -> None:
    """Of the chest only air is lung; the heart has a label of its own."""
    patient.label[(patient.label == _LABEL["lung"]) & (patient.tissue != _TISSUE["lung"])] = 0
    patient.label[patient.tissue == _TISSUE["heart"]] = _LABEL["heart"]


def _paint_fluid(patient: Patient) -> None:
    """Pleural effusion, which lies at the back of the lungs, and ascites along the wall."""
    rng, (_, y, z) = patient.rng, patient.points
    if patient.chance(0.12):
        side = np.sign(patient.points[0]) * rng.choice([-1, 1])
        fluid = np.where(patient.tissue == _TISSUE["lung"], np.maximum(y - rng.uniform(-75, -30), side), 1.0)
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
        phantoms._paint_loop(patient, points, np.full(3, rng.uniform(7, 14)), content, rng.choice([0, 0, 0, 0.4]))
    for side in (1, -1):
        if patient.chance(0.7):
            start = np.array([side * rng.uniform(70, 108), rng.uniform(-25, 55), rng.uniform(-60, 5)])
            steps = rng.normal(0, 1, (2, 3)) * (16, 22, 14)
            points = start + np.vstack([np.zeros(3), np.cumsum(steps, 0)])
            content = rng.choice(["stool", "stool", "bowel fluid", "bowel oral"])
            phantoms._paint_loop(patient, points, rng.uniform(12, 26, 3), content, rng.uniform(0, 0.8), haustra=1.6)


def _paint_stomach(patient: Patient) -> None:
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


def _paint_collection(patient: Patient) -> None:
    """A large cyst or collection anywhere in the abdomen, which is no organ however bright it is."""
    if not patient.chance(0.12):
        return
    rng = patient.rng
    centre = np.array([rng.uniform(-95, 95), rng.uniform(-40, 60), rng.uniform(-90, 50)])
    radii = np.exp(rng.uniform(np.log(12), np.log(60))) * rng.uniform(0.6, 1.3, 3)
    region = patient.near(centre - radii, centre + radii)
    distance = phantoms._ellipsoid(patient.at(region), centre, radii) + 1.5 * patient.bumps[region]
    distance = np.maximum(distance, np.maximum(patient.cavity[region] + 2, patient.dome[region] + 2))
    with patient.labelled("collection"):
        patient.paint("bowel wall", distance - 2, region)
        patient.paint(rng.choice(["cyst", "cyst", "lesion"]), distance, region)


def _paint_spleen(patient: Patient) -> None:
    """A crescent that hugs the wall from the back to the side (most), or an ellipsoid hollowed by stomach and kidney."""
    rng = patient.rng
    size = rng.uniform(1.2, 1.55) if patient.chance(0.12) else rng.uniform(0.78, 1.2)
    if patient.chance(0.75):
        distance, region = _crescent(patient, size)
    else:
        distance, region = _hollow_ellipsoid(patient, size)
    distance = distance + rng.uniform(0.6, 1.8) * patient.bumps[region]
    distance = phantoms._smooth_maximum(distance, patient.cavity[region] + rng.uniform(1, 4), 3.0)
    distance = phantoms._smooth_maximum(distance, patient.dome[region] + rng.uniform(0, 4), 4.0)
    patient.paint("fat", distance - rng.uniform(0, 3), region)
    patient.paint("spleen", distance, region, phantoms._SPLEEN)
    if patient.chance(0.3):  # the pulp is uneven in an early contrast phase
        stripes = 2.2 * patient.bumps[region] * np.cos(0.15 * distance) - rng.uniform(0, 2)
        patient.paint("spleen pulp", np.maximum(stripes, distance + 1), region, phantoms._SPLEEN)


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
        notch = phantoms._ellipsoid((x, y, z), (-58 + rng.uniform(-12, 8), -18 + rng.uniform(-12, 12), 18), (22, 20, 38))
        distance = phantoms._smooth_maximum(distance, -notch, 6.0)
    return distance, region


def _hollow_ellipsoid(patient: Patient, size: float) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    rng = patient.rng
    centre = np.array([-95, -28, 20]) + patient.jitter(8, 14, 18)
    radii = np.array([34, 60, 52]) * size * rng.uniform(0.8, 1.2, 3)
    region = patient.near(centre - radii.max(), centre + radii.max())
    turn = Rotation.from_euler("zyx", [25, 8, 12] + patient.jitter(25, 12, 16), degrees=True).as_matrix()
    local = phantoms._turned(patient.at(region), centre, turn)
    distance = phantoms._ellipsoid(local, (0, 0, 0), radii)
    hollow = (rng.uniform(36, 60) * size, rng.uniform(-10, 20), 0)
    hollow = phantoms._ellipsoid(local, hollow, (37, rng.uniform(45, 80), 95))
    return phantoms._smooth_maximum(distance, -hollow, 7.0), region


def _paint_liver(patient: Patient) -> None:
    """As the phantoms', with short and long right lobes, left lobes from none to the spleen, caudate, fissures, fat."""
    rng = patient.rng
    region = patient.near((-120, -100, -130), (150, 110, 110))
    x, y, z = points = patient.at(region)
    size = rng.uniform(0.86, 1.16)
    tip = rng.uniform(-105, -35)
    right = phantoms._ellipsoid(
        points, np.array([80, 2, 12]) + patient.jitter(6, 8, 10), np.array([78, 90, rng.uniform(85, 122)]) * size
    )
    slope = rng.uniform(0.35, 0.95)  # of the visceral surface, from the tip to the middle
    floor = tip + np.minimum(slope * (112 - x) + rng.uniform(-0.05, 0.35) * (y - 10), rng.uniform(60, 95))
    right = phantoms._smooth_maximum(right, 0.8 * (floor - z), rng.uniform(6, 18))
    bed = phantoms._ellipsoid(points, (58 + rng.uniform(-8, 6), -66, -34), (38, 40, rng.uniform(44, 60)))
    right = phantoms._smooth_maximum(right, -bed, 6.0)
    reach = rng.uniform(-105, -20) if patient.chance(0.85) else rng.uniform(-20, 30)
    middle = (reach + 70) / 2
    front, thick = 48 + rng.uniform(-10, 12), rng.uniform(24, 46)
    left = phantoms._ellipsoid(points, (middle, front, 27 + rng.uniform(-14, 10)), (70 - middle, 37, thick))
    left = phantoms._smooth_maximum(left, 0.85 * (rng.uniform(-14, 8) - 0.22 * (x - 30) - z), 8.0)
    if patient.chance(0.35):  # the lobe hangs in front of stomach and pancreas
        low = (rng.uniform(5, 40), 62 + rng.uniform(-8, 8), rng.uniform(-35, 5))
        left = phantoms._smooth_minimum(left, phantoms._ellipsoid(points, low, (36, 22, rng.uniform(28, 50))), 10.0)
    caudate = phantoms._ellipsoid(points, (20, 12, 30), np.array((24, 19, 27)) * rng.uniform(0.7, 1.25))
    distance = phantoms._smooth_minimum(phantoms._smooth_minimum(right, left, 12.0), caudate, 6.0)
    distance = distance + rng.uniform(0.6, 2.0) * patient.bumps[region]
    distance = phantoms._smooth_maximum(distance, patient.cavity[region] + rng.uniform(0.5, 4), 4.0)
    distance = phantoms._smooth_maximum(distance, patient.dome[region] + rng.uniform(0, 3), 3.0)
    distance = phantoms._smooth_maximum(distance, -phantoms._ellipsoid((x, y), (-4, -24), (31, 31)), 6.0)
    patient.paint("fat", distance - rng.uniform(0, 2.5), region)
    patient.paint("liver", distance, region, phantoms._LIVER)
    if patient.chance(0.15):  # patchy fat
        patches = 3 * phantoms._smooth_field(rng, patient.axes, 45.0)[region] - rng.uniform(0, 4)
        patient.paint("liver fat", np.maximum(patches, distance + 1), region, phantoms._LIVER)
    _paint_liver_details(patient, distance, region, tip)


def _paint_liver_details(patient: Patient, liver: np.ndarray, region, tip: float) -> None:
    rng = patient.rng
    if patient.chance(0.9):
        phantoms._paint_hepatic_vessels(patient, liver, region)
    fissure = rng.uniform(8, 34)
    if patient.chance(0.75):
        wide = rng.uniform(0.5, 1.4)
        place = [(fissure, 84, 22), (fissure - 2, 58, 14), (fissure - 2, 46, 8)]
        patient.tube("fat", place, np.array((5, 4, 3)) * wide, 0)
    if patient.chance(0.85):
        bed = np.array([56, 40, tip + 46]) + patient.jitter(20, 16, 14)
        calibre, long = rng.uniform(7, 21), rng.uniform(0.7, 1.8)
        place = [bed + np.array((-10, -14, 12)) * long, bed + np.array((4, 12, -10)) * long]
        with patient.labelled("gallbladder"):
            if patient.chance(0.3):
                patient.tube("bowel wall", place, (8, calibre + rng.uniform(1, 4)), _LABEL["gallbladder"])
            patient.tube("gallbladder", place, (6, calibre), _LABEL["gallbladder"])


def _paint_kidney(patient: Patient, side: int, label: int) -> None:
    """A bean of any usual size, place and turn; sinus from none to wide, pelvis from none to hydronephrosis."""
    rng = patient.rng
    centre = phantoms._kidney_centre(side) + patient.jitter(9, 9, 26)
    if patient.chance(0.04):
        centre = centre + (rng.uniform(-20, 0) * side, rng.uniform(0, 20), rng.uniform(-60, -25))
    size = rng.uniform(0.55, 0.82) if patient.chance(0.1) else rng.uniform(0.85, 1.13)
    radii = np.array([29.0, 26.5, 51.0]) * size * rng.uniform(0.9, 1.1, 3)
    region = patient.near(centre - radii.max(), centre + radii.max())
    x, y, z = (axis - np.float32(middle) for axis, middle in zip(patient.at(region), centre))
    turn = Rotation.from_euler("zyx", [28, 13, 12] + patient.jitter(30, 12, 12), degrees=True).as_matrix()
    medial, anterior, long = phantoms._turned((-side * x, y, z), (0, 0, 0), turn)
    bent = medial - rng.uniform(3, 13) * (long / radii[2]) ** 2 + 3
    distance = phantoms._ellipsoid((bent, anterior, long), (0, 0, 0), radii)
    distance = distance + rng.uniform(0.4, 1.8) * patient.bumps[region]
    local = (medial, anterior, long)
    notch = phantoms._ellipsoid(local, (radii[0] + rng.uniform(-3, 5), 0, 0), (17, 8.5, rng.uniform(10, 22)))
    distance = phantoms._smooth_maximum(distance, -notch, 4.0)
    rim = rng.uniform(0.0, 3.0) if patient.chance(0.5) else rng.uniform(3.0, 14.0)
    around = phantoms._smooth_maximum(distance - rim, patient.cavity[region] - 1, 2.0)
    patient.paint("fat", around, region, 0)
    hilum = [(radii[0] - 6, 1, 2), (radii[0] + 20, 2, 4)]
    spread = np.hypot(anterior - hilum[0][1], long - hilum[0][2]) - 4
    patient.paint("vein", np.maximum(spread, np.maximum(hilum[0][0] - medial, medial - hilum[1][0])), region, 0)
    patient.paint("renal cortex", distance, region, label)
    pyramids = np.cos(long * (2 * np.pi / rng.uniform(12, 19))) * 1.6 + 1.4 * patient.bumps[region]
    patient.paint("renal medulla", distance + rng.uniform(5, 10) + pyramids, region)
    wide = rng.uniform(0.3, 1.25)
    sinus = phantoms._ellipsoid(local, (11, 0, 0), np.array((15, 8, 22)) * wide) + 1.5 * patient.bumps[region]
    patient.paint("renal sinus", np.maximum(sinus, distance + 1), region)
    swollen = rng.uniform(1.2, 2.2) if patient.chance(0.08) else rng.uniform(0.3, 1.0)
    pelvis = phantoms._ellipsoid(local, (14, 0, -4), np.array((12, 4.5, rng.uniform(8, 14))) * swollen)
    patient.paint("renal pelvis", np.maximum(pelvis, distance + 1), region)
    if patient.chance(0.06):
        patient.ellipsoid("stone", centre + patient.jitter(10, 8, 20), rng.uniform(2, 7, 3))


def _paint_adrenals(patient: Patient) -> None:
    for side in (1, -1):
        top = phantoms._kidney_centre(side) * (0.7, 0.8, 1) + (0, 8, 48)
        for end in ((10 * side, -14, -14), (-4 * side, -16, -14)):
            patient.tube("adrenal", [top, top + end], (3, 2))


def _paint_aorta(patient: Patient) -> None:
    rng = patient.rng
    calibre = rng.uniform(14, 24) if patient.chance(0.05) else rng.uniform(7.5, 13.5)
    bend = patient.jitter(7, 3, 0)
    course = [(-14, -12, 150), np.array((-9, -6, 20)) + bend, np.array((-6, -4, -150)) - bend]
    patient.tube("aorta", course, (1.1 * calibre, calibre, 0.85 * calibre), _LABEL["aorta"])


def _paint_cava(patient: Patient) -> None:
    calibre = np.array([12, 11.5, 10.5, 10]) * patient.rng.uniform(0.55, 1.2)
    course = np.array([(17, 0, 74), (21, -6, 30), (20, -8, -30), (16, -8, -150)]) + patient.jitter(4, 3, 0)
    patient.tube("vein", course, calibre, _LABEL["vena cava"])


def _paint_pelvis(patient: Patient) -> None:
    """The wings of the ilium, where the field of view reaches them."""
    for side in (1, -1):
        centre = np.array((92 * side, -30, -150))
        region = patient.near(centre - (60, 75, 70), centre + (60, 75, 70))
        shell = np.abs(phantoms._ellipsoid(patient.at(region), centre, (40, 62, 58))) - 5
        shell = np.maximum(shell, (centre[0] - patient.points[0][region]) * side)
        patient.paint("cortical bone", shell, region)
        patient.paint("marrow", shell + 2.5, region)


def _paint_lesions(patient: Patient) -> None:
    """Cysts and tumours in organs: they stay part of the organ's label."""
    rng = patient.rng
    for label, share in (
        (phantoms._LIVER, 0.3),
        (phantoms._SPLEEN, 0.08),
        (phantoms._RIGHT_KIDNEY, 0.2),
        (phantoms._LEFT_KIDNEY, 0.2),
    ):
        if not patient.chance(share):
            continue
        tissue = str(rng.choice(["cyst", "lesion"]))
        for _ in range(rng.integers(1, 6)):
            centre = patient.inside_organ(label)
            if centre is None:
                break
            radii = np.exp(rng.uniform(np.log(3), np.log(22 if label == phantoms._LIVER else 13))) * rng.uniform(0.8, 1.2, 3)
            region = patient.near(centre - radii, centre + radii)
            distance = phantoms._ellipsoid(patient.at(region), centre, radii) + 0.5 * patient.bumps[region]
            distance = np.where(patient.label[region] == label, distance, 1.0)
            patient.paint(tissue, distance, region, label)


def _paint_outside(patient: Patient) -> None:
    """What else a scan shows: the table under the patient, and arms beside the body."""
    rng = patient.rng
    air = patient.tissue == _TISSUE["air"]
    x, y, z = np.meshgrid(*patient.raw_axes, indexing="ij", sparse=True)
    if patient.chance(0.5):
        body = np.flatnonzero((~air).any((0, 2)))
        back = patient.raw_axes[1][body[0]]
        top = back - rng.uniform(-4, 18) + rng.uniform(0, 0.0012) * x**2
        sheet = np.abs(y - top + rng.uniform(4, 12)) - rng.uniform(1, 4)
        patient.tissue[air & (sheet + 0 * z < 0)] = _TISSUE["table"]
    if patient.chance(0.2):
        columns = np.flatnonzero((~air).any((1, 2)))
        for edge, side in ((columns[-1], 1), (columns[0], -1)):
            if patient.chance(0.2):
                continue
            thick = rng.uniform(28, 48)
            middle = (patient.raw_axes[0][edge] + side * (thick + rng.uniform(-12, 12)), rng.uniform(-50, 30))
            ray = np.hypot(x - middle[0] - 0.05 * side * z, y - middle[1])
            for tissue, radius in (("skin", thick), ("fat", thick - 2), ("muscle", 0.8 * thick), ("cortical bone", 11)):
                patient.tissue[air & (ray < radius)] = _TISSUE[tissue]
            patient.tissue[air & (ray < 7)] = _TISSUE["marrow"]


def _write_patient(folder: Path, seed: int) -> None:
    tissue, label = make_patient(seed)
    with whole_file(folder / f"patient_{seed:05d}.npz", unique=True) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, tissue=tissue, label=label)


def write_patients(folder: str | Path, count: int, first_seed: int = 0, workers: int = 1) -> list[Path]:
    """Tissue and label maps of ``count`` patients, painted on first use: ``patient_00000.npz``, ...

    One that is there is left as it is. About a second and 60 kB a patient.

    Args:
        folder: made where it is missing.
        count: of patients.
        first_seed: seeds count upwards from it.
        workers: processes that paint.

    Returns:
        the files, in the order of the seeds.
    """
    if count < 1:
        raise ValueError(f"The count of patients must be 1 or more, but is {count}.")
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
