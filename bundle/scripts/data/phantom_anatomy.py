"""The anatomy of the phantoms: a body of implicit shapes, painted in order.

The anatomy is a list of shapes of :mod:`scripts.data.phantom_shapes`, painted in order, later ones over earlier ones,
so confounders and organs cut into one another as they do in a body.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from .phantom_shapes import Body, Region, Vector, Vectors, ellipsoid, smooth_maximum, smooth_minimum, turned

ORGANS = ("spleen", "right kidney", "left kidney", "liver")

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER = range(1, 5)


def build_body(rng: np.random.Generator, axes: Sequence[np.ndarray]) -> Body:
    """Paints a patient from the outside in; the order decides what cuts into what."""
    body = Body(rng, axes)
    _paint_trunk(body)
    paint_chest(body)
    paint_bowel(body)
    _paint_stomach(body)
    paint_pancreas(body)
    _paint_spleen(body)
    _paint_liver(body)
    paint_renal_vessels(body)
    for side, label in ((1, RIGHT_KIDNEY), (-1, LEFT_KIDNEY)):
        _paint_kidney(body, side, label)
    _paint_great_vessels(body)
    paint_spine(body)
    paint_ribs(body)
    return body


def _paint_trunk(body: Body) -> None:
    """Skin, subcutaneous fat, the muscles of the wall and the fat that fills the cavity."""
    everywhere, (x, y, z) = body.everywhere, body.points
    angle = np.arctan2(y, x)
    thickness = body.rng.uniform(7.0, 25.0)
    fat = thickness * (1 + 0.3 * np.sin(angle) * body.rng.uniform(-1, 1) - 0.25 * np.cos(2 * angle) - 0.002 * z)
    outer = body.cavity - body.wall - fat
    body.paint("skin", outer - 2, everywhere)
    body.paint("fat", outer, everywhere)
    body.paint("muscle", body.cavity - body.wall * (1 + 0.12 * body.bumps), everywhere)
    # layers of the lateral wall are parted by thin sheets of fat below the ribs
    seam = np.abs(body.cavity - 0.5 * body.wall + body.bumps) - 0.6
    body.paint("fat", np.maximum(seam, np.maximum(z + 25, -35 - y)), everywhere)
    body.paint("fat", body.cavity, everywhere)
    for side in (1, -1):
        body.ellipsoid("muscle", (35 * side, -79, 0), (32, 21, 400))  # erector spinae
        body.ellipsoid("muscle", (64 * side, -66, -75), (19, 9, 75))  # quadratus lumborum
        body.tube("muscle", [(24 * side, -32, 5), (42 * side, -33, -60), (50 * side, -26, -130)], (6, 16, 21))  # psoas
        body.tube("muscle", [(13 * side, -16, -30), (14 * side, -10, 60)], (5, 7))  # crura
        rectus = body.near((5, 68, -200), (75, 100, 50)) if side > 0 else body.near((-75, 68, -200), (-5, 100, 50))
        sheet = np.maximum(np.abs(body.cavity[rectus] - 1.0) - 5, np.abs(body.points[0][rectus] - 38 * side) - 30)
        body.paint("muscle", np.maximum(sheet, 40 - body.points[1][rectus]), rectus)


def paint_chest(body: Body) -> None:
    """Lung bases over the diaphragm, the mediastinum between them, and the heart on the diaphragm."""
    x, y, z = body.points
    everywhere = body.everywhere
    lung = smooth_maximum(body.cavity + 1.5, -body.dome, 4.0)
    mediastinum = ellipsoid((x, y), (-3, -28), (36, 34))
    body.paint("muscle", np.maximum(body.cavity, np.maximum(np.abs(body.dome) - 2, 20 - z)), everywhere)
    body.paint("lung", smooth_maximum(lung, -mediastinum, 4.0), everywhere)
    centre = np.array([-22, 34, 104]) + body.jitter(8, 5, 3)
    body.ellipsoid("fat", centre, (63, 50, 46))
    body.ellipsoid("heart", centre + (0, 0, 4), (56, 43, 42))
    body.tube("muscle", [(-6, 2, 120), (-8, 4, 55), (-24, 12, 46)], (8, 8, 7))  # oesophagus


def paint_loop(body: Body, points: Vectors, radii: Vector, *, content: str, gas: float, haustra: float = 0) -> None:
    """A piece of bowel: wall, content, and gas in the share ``gas`` of its calibre that lies most anterior."""
    distance, region = body.tube_distance(points, radii)
    distance = distance + (0.8 + haustra) * body.bumps[region]
    distance = np.maximum(distance, body.cavity[region] + 3)
    # bowel stays below the diaphragm even where a loop is drawn high
    distance = np.maximum(distance, body.dome[region] + 4)
    body.paint("bowel wall", distance, region)
    body.paint(content, distance + 2.6, region)
    if gas > 0:
        # the level is horizontal in a supine patient; a tube that climbs takes its level along
        x, y, z = body.at(region)
        start, stop = np.asarray(points[0], float), np.asarray(points[-1], float)
        along = stop - start
        share = sum((axis - origin) * step for axis, origin, step in zip((x, y, z), start, along)) / (along @ along)
        level = start[1] + np.clip(share, 0, 1) * along[1] + (1 - 2 * gas) * max(radii)
        body.paint("gas", np.maximum(distance + 2.6, level - y), region)


def paint_bowel(body: Body) -> None:
    """Small bowel in the lower middle with mesenteric vessels, and the colon around it."""
    rng = body.rng
    for _ in range(36):
        start = np.array([rng.uniform(-85, 75), rng.uniform(2, 62), rng.uniform(-120, -28)])
        steps = rng.normal(0, 1, (2, 3)) * (17, 13, 9)
        points = start + np.vstack([np.zeros(3), np.cumsum(steps, 0)])
        content = ("bowel fluid", "bowel oral", "bowel oral")[rng.integers(3)]
        paint_loop(body, points, np.full(3, rng.uniform(9, 13)), content=content, gas=rng.choice([0, 0, 0, 0.25]))
    for _ in range(26):
        start = np.array([rng.uniform(-70, 60), rng.uniform(-5, 50), rng.uniform(-120, -15)])
        body.tube("vein", [start, start + rng.normal(0, 1, 3) * (13, 9, 18)], np.full(2, rng.uniform(1.4, 2.6)))
    calibre = rng.uniform(16, 22)
    colon: Sequence[Vectors] = (
        [(98, -24, -130), (100, -14, -78), (88, 12, -52)],  # ascending, hepatic flexure
        [(84, 38, -48), (38, 60, -40 + rng.uniform(-12, 8)), (-28, 62, -34 + rng.uniform(-12, 8))],  # transverse
        [(-30, 62, -33), (-76, 48, -14), (-104, 14, -4)],  # towards the splenic flexure
        [(-106, 8, -4), (-112, -20, -48), (-106, -22, -130)],  # descending
    )
    for bends, width in zip(colon, (1.15, 1.0, 0.95, 0.75)):
        radii = width * calibre * rng.uniform(0.8, 1.1, 3)
        paint_loop(body, bends, radii, content="stool", gas=rng.uniform(0, 0.5), haustra=1.6)


def _paint_stomach(body: Body) -> None:
    rng = body.rng
    fill = rng.uniform(0.75, 1.08)
    shift = body.jitter(5, 4, 5)
    points = np.array([(-66, -2, 40), (-62, 28, 26), (-40, 46, 4), (-2, 44, -6), (30, 32, -8)]) + shift
    radii = np.array([34, 36, 26, 17, 11]) * fill
    distance, region = body.tube_distance(points, radii)
    distance = (
        np.maximum(distance, np.maximum(body.cavity[region] + 4, body.dome[region] + 4)) + 1.2 * body.bumps[region]
    )
    body.paint("bowel wall", distance, region)
    inner = distance + rng.uniform(3.0, 5.0)
    body.paint("stomach content", inner, region)
    level = shift[1] + rng.uniform(30, 58)
    body.paint("gas", np.maximum(inner, level - body.points[1][region]), region)


def paint_pancreas(body: Body) -> None:
    """Duodenum, pancreas, the splenic vein along its back and the mesenteric vessels through it."""
    shift = body.jitter(4, 4, 6)
    head, neck, tail = np.array([36, 8, -18]) + shift, np.array([4, 22, 2]) + shift, np.array([-66, -8, 20]) + shift
    paint_loop(
        body, [head + (12, 8, 16), head + (20, 2, -8), head + (8, -6, -30)], (11, 12, 11), content="bowel oral", gas=0
    )
    thickness = body.rng.uniform(0.85, 1.15)
    points = [head + (0, 0, -12), head, neck, neck + (-34, -8, 10), tail]
    body.tube("pancreas", points, np.array([10, 13, 9, 10, 8]) * thickness, uneven=2.2)
    body.tube("vein", [neck + (4, -10, -4), neck + (-32, -17, 8), tail + (-6, -8, 2)], (5, 4, 4))
    body.tube("vein", [neck + (4, -10, -2), neck + (6, -6, -45), neck + (8, 2, -130)], (6, 5, 4))  # mesenteric vein
    body.tube("aorta", [(-8, -4, -8), neck + (-9, -8, -30), neck + (-6, 0, -130)], (3.5, 3.5, 3))  # its artery


def _paint_spleen(body: Body) -> None:
    """A crescent under the left ribs: an ellipsoid hollowed from the side of the stomach."""
    rng = body.rng
    size = rng.uniform(0.93, 1.12)
    centre = np.array([-99, -33, 20]) + body.jitter(3, 6, 5)
    radii = np.array([37, 47, 49]) * size * rng.uniform(0.93, 1.07, 3)
    reach = radii.max()
    region = body.near(centre - reach, centre + reach)
    turn = Rotation.from_euler("zyx", [-18, 8, 12] + body.jitter(12, 8, 10), degrees=True).as_matrix()
    local = turned(body.at(region), centre, turn)
    distance = ellipsoid(local, (0, 0, 0), radii) + 1.3 * body.bumps[region]
    hollow = ellipsoid(local, (48 * size + rng.uniform(-2, 7), 13, 0), (37, 42, 75))
    distance = smooth_maximum(distance, -hollow, 7.0)
    distance = smooth_maximum(distance, body.cavity[region] + 2.5, 4.0)
    distance = smooth_maximum(distance, body.dome[region] + 2, 4.0)
    body.paint("fat", distance - rng.uniform(1, 3), region)
    body.paint("spleen", distance, region, label=SPLEEN)


def _paint_liver(body: Body) -> None:
    """A wedge: the right lobe under the right cupola, the left lobe over the midline, an oblique visceral surface."""
    rng = body.rng
    region = body.near((-90, -90, -90), (140, 100, 90))
    x, y, z = points = body.at(region)
    size = rng.uniform(0.93, 1.05)
    tip = -52 + rng.uniform(-12, 12)
    right = ellipsoid(points, np.array([80, 2, 14]) + body.jitter(3, 4, 3), np.array([76, 88, 92]) * size)
    # the visceral surface rises from the tip towards the middle, and its back is cut by the kidney's bed
    floor = tip + np.minimum(0.56 * (110 - x) + 0.12 * (y - 10), 70 + 0.1 * (110 - x))
    right = smooth_maximum(right, 0.8 * (floor - z), 14.0)
    # the kidney lies behind the liver, never within it
    right = smooth_maximum(right, -ellipsoid(points, (58, -64, -30), (38, 40, 52)), 6.0)
    reach = rng.uniform(-85, -35)  # how far the left lobe goes beyond the midline
    middle = (reach + 70) / 2
    left = ellipsoid(points, (middle, 48 + rng.uniform(-4, 4), 27 + rng.uniform(-4, 4)), (70 - middle, 37, 35))
    # the left lobe thins towards its end
    left = smooth_maximum(left, 0.85 * (3 - 0.22 * (x - 30) - z), 8.0)
    caudate = ellipsoid(points, (20, 12, 30), (24, 19, 27))
    distance = smooth_minimum(smooth_minimum(right, left, 12.0), caudate, 6.0) + 1.2 * body.bumps[region]
    distance = smooth_maximum(distance, body.cavity[region] + 2.5, 4.0)
    distance = smooth_maximum(distance, body.dome[region] + 1.5, 3.0)
    # crura, oesophagus and spine keep the posterior middle free
    distance = smooth_maximum(distance, -ellipsoid((x, y), (-4, -24), (31, 31)), 6.0)
    body.paint("fat", distance - rng.uniform(0.5, 2), region)
    body.paint("liver", distance, region, label=LIVER)
    paint_hepatic_vessels(body, distance, region)
    # the fissure of the falciform ligament, and the gallbladder in its bed
    fissure = rng.uniform(14, 26)
    body.tube("fat", [(fissure, 84, 22), (fissure - 2, 58, 14), (fissure - 2, 46, 8)], (5, 4, 3), label=0)
    bed = np.array([56, 40, tip + 46]) + body.jitter(6, 6, 5)
    body.tube("gallbladder", [bed + (-10, -14, 12), bed + (4, 12, -10)], (6, rng.uniform(10, 16)), label=0)


def paint_hepatic_vessels(body: Body, liver: np.ndarray, region: Region) -> None:
    """Portal branches from the hilum and hepatic veins into the cava; they belong to the liver's label inside it."""
    hilum, cava = np.array([28, 14, 14]), np.array([21, -2, 60])
    ends = {
        "portal": [(66, 2, 16), (92, -26, 6), (94, 26, 2), (74, -30, 30), (30, 48, 30), (-10, 54, 34), (84, 36, 26)],
        "hepatic": [(96, -14, 34), (70, 44, 40), (30, 56, 44), (104, 24, 30), (-14, 52, 46)],
    }
    inside = np.zeros(body.shape, np.float32)
    inside[region] = liver
    for kind, root, width in (("portal", hilum, 6.0), ("hepatic", cava, 4.8)):
        for end in ends[kind]:
            end = np.asarray(end) + body.jitter(9, 9, 7)
            bend = 0.5 * (root + end) + body.jitter(7, 7, 5)
            distance, near = body.tube_distance([root, bend, end], (width, 0.7 * width, 0.25 * width))
            body.paint("hepatic vessel", np.maximum(distance, inside[near] + 2), near)
    body.tube("vein", [(6, 12, -4), hilum], (7, 7), label=0)


def kidney_centre(side: int) -> np.ndarray:
    """Reference position in millimetres; ``side`` is 1 on the right, -1 on the left. The right one lies lower."""
    return np.array([65.0 * side, -41.0, -27.0 if side > 0 else -14.0])


def paint_renal_vessels(body: Body) -> None:
    for side, trunk in ((1, (20, -4)), (-1, (-9, -2))):
        hilum = kidney_centre(side) + (-18 * side, 10, 0)
        body.tube("vein", [hilum, (*trunk, hilum[2] + 6)], (4.5, 5))
        body.tube("aorta", [hilum + (0, -6, 2), (-9 + 8 * side, -12, hilum[2] + 8)], (2.4, 2.8))
    # the left renal vein crosses in front of the aorta
    body.tube("vein", [(-30, -8, -10), (-9, 8, -9), (18, -2, -8)], (4.5, 4, 4.5))


def _paint_kidney(body: Body, side: int, label: int) -> None:
    """A bean with cortex, medulla, sinus and pelvis; the label is the whole bean, as in BTCV and CHAOS."""
    rng = body.rng
    centre = kidney_centre(side) + body.jitter(4, 5, 6)
    radii = np.array([28.0, 25.0, 50.0]) * rng.uniform(0.92, 1.07) * rng.uniform(0.95, 1.05, 3)
    region = body.near(centre - radii.max(), centre + radii.max())
    # local axes: medial, anterior, superior; upper poles lean medially and backwards, the hilum looks forward
    x, y, z = (axis - np.float32(middle) for axis, middle in zip(body.at(region), centre))
    turn = Rotation.from_euler("zyx", [28, 13, 12] + body.jitter(10, 5, 5), degrees=True).as_matrix()
    medial, anterior, long = turned((-side * x, y, z), (0, 0, 0), turn)
    bent = medial - 9 * (long / radii[2]) ** 2 + 3
    distance = ellipsoid((bent, anterior, long), (0, 0, 0), radii) + 0.9 * body.bumps[region]
    local = (medial, anterior, long)
    notch = ellipsoid(local, (radii[0] + 1, 0, 0), (17, 8.5, 17))
    distance = smooth_maximum(distance, -notch, 4.0)
    body.paint("fat", distance - rng.uniform(2.0, 6.0), region, label=0)  # perirenal fat parts it from liver and spleen
    # the vessels of the hilum reach through that fat
    hilum = [(radii[0] - 6, 1, 2), (radii[0] + 20, 2, 4)]
    spread = np.hypot(anterior - hilum[0][1], long - hilum[0][2]) - 4
    vessel = np.maximum(spread, np.maximum(hilum[0][0] - medial, medial - hilum[1][0]))
    body.paint("vein", vessel, region, label=0)
    body.paint("renal cortex", distance, region, label=label)
    pyramids = np.cos(long * (2 * np.pi / 15)) * 1.6 + 1.4 * body.bumps[region]
    body.paint("renal medulla", distance + rng.uniform(6.5, 8.5) + pyramids, region)
    sinus = ellipsoid(local, (11, 0, 0), (15, 8, 22)) + 1.5 * body.bumps[region]
    body.paint("renal sinus", np.maximum(sinus, distance + 1), region)
    pelvis = ellipsoid(local, (14, 0, -4), (12, 4.5, rng.uniform(8, 14)))
    body.paint("renal pelvis", np.maximum(pelvis, distance + 1), region)


def _paint_great_vessels(body: Body) -> None:
    calibre = body.rng.uniform(9, 12.5)
    aorta = [(-14, -12, 150), (-9, -6, 20), (-6, -4, -150)]
    body.tube("aorta", aorta, (1.1 * calibre, calibre, 0.85 * calibre), label=0)
    cava = [(17, 0, 74), (21, -6, 30), (20, -8, -30), (16, -8, -150)]
    body.tube("vein", cava, np.array([12, 11.5, 10.5, 10]) * body.rng.uniform(0.85, 1.1), label=0)


def paint_spine(body: Body) -> None:
    """Vertebrae and discs, one every 33 mm or so, with arch, processes and the canal."""
    rng = body.rng
    region = body.near((-55, -115, -400), (55, -15, 400))
    x, y, z = body.at(region)
    period = rng.uniform(31, 35)
    phase = np.mod(z + rng.uniform(0, period), period) - period / 2  # 0 in the middle of a vertebra
    height = np.abs(phase)
    column = ellipsoid((x, y), (0, -37), (24, 18))
    # a waist in the middle of each vertebra; the flat back faces the canal
    column = smooth_maximum(column + 1.5 - 0.006 * phase**2, -52 - y, 2.0)
    canal = ellipsoid((x, y), (0, -61), (10, 8))
    arch = ellipsoid((x, y), (0, -62), (17, 13.5))
    spinous = np.maximum(np.abs(x) - 3.2, np.abs(y + 84) - 14)
    spinous = np.maximum(spinous, np.abs(phase + 5) - 10)
    transverse = np.maximum(np.hypot(y + 64 - 0.06 * np.abs(x), phase - 4) - 5, np.abs(x) - 37)
    body.paint("disc", column, region, label=0)
    body.paint("cortical bone", np.maximum(column, height - period / 2 + 4.0), region)
    body.paint("marrow", np.maximum(column + 2.5, height - period / 2 + 6.0), region)
    bones = smooth_minimum(np.minimum(arch, transverse), spinous, 3.0)
    body.paint("cortical bone", np.maximum(bones, y + 50), region)
    body.paint("marrow", np.maximum(bones + 3, y + 53), region)
    # between two arches there are joints and ligaments rather than bone
    body.paint("muscle", np.maximum(np.maximum(arch, y + 56), period / 2 - 4.5 - height), region)
    body.paint("fat", canal, region)
    body.paint("canal", canal + 1.8, region)
    body.paint("cord", np.maximum(ellipsoid((x, y), (0, -61), (4.5, 3.8)), -30 - z), region)


def paint_ribs(body: Body) -> None:
    """Ribs inside the wall: they fall towards the front, so a slice cuts several as ovals; cartilage ends them."""
    x, y, z = body.points
    rng = body.rng
    period = rng.uniform(24, 28)
    fall = z + 0.62 * y + rng.uniform(0, period)
    along = np.mod(fall, period) - period / 2
    depth = body.cavity - 0.5 * body.wall
    # an oval cross-section: thin across the wall, tall along it
    distance = 3.6 * (np.sqrt((depth / 3.6) ** 2 + (along / 6.2) ** 2) - 1)
    margin = 0.6 * ((-38 + 0.75 * (y + 70)) - z)  # the costal margin: below it there are no ribs
    distance = np.maximum(distance, np.maximum(margin, 34 - np.abs(x)))
    body.paint("cartilage", distance, body.everywhere)
    bone = np.maximum(distance, y - 42)
    body.paint("cortical bone", bone, body.everywhere)
    body.paint("marrow", bone + 2.2, body.everywhere)
