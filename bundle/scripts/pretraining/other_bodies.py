"""Bodies that are no abdomen, drawn at random: what heads, limbs, necks and a phantom's bottles have in common.

A body is a rod, an egg or a bottle of layers: skin, fat, muscle, a ring of bone with marrow, fluid, a folded rim and a
core, each of them there or not, as thick as it is drawn, and mostly of the tissue that bodies have there, else of any.
In it lie cavities, rods and lumps, most of them in pairs, as eyes, ventricles, sinuses and the bones of limbs do.
A clip shows one body, a pair of them or several, cut in any plane, on a table or not. Nothing here is the anatomy of
any part of the body: a head that reads scans is to learn that layers around something do not make an abdomen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..descriptions import Described
from .contrasts import Draw, render
from .patient import LABEL_INDEX, TISSUE_INDEX, TISSUES
from .synthetic_clips import stage_of

FIELD_OF_VIEW = (150.0, 480.0)  # mm
SPACING = (1.2, 10.0)  # mm from slice to slice
_SOFT = ("muscle", "liver", "spleen", "pancreas", "cord", "heart", "renal medulla", "gland", "cartilage")
_FLUID = ("canal", "ascites", "cyst", "effusion", "bowel fluid")
_AIR = ("air", "gas")


class Layer(NamedTuple):
    """One of a body's layers.

    Attributes:
        share: of the bodies that have it.
        least, most: its thickness, as shares of the body's radius.
        tissues: of which it may be.
    """

    share: float
    least: float
    most: float
    tissues: Sequence[str]


#: From the outside; what lies within the last is of :data:`CORE`.
LAYERS = (
    Layer(0.85, 0.01, 0.05, ("skin",)),
    Layer(0.6, 0.01, 0.35, ("fat",)),
    Layer(0.6, 0.01, 0.7, ("muscle",)),
    Layer(0.65, 0.01, 0.1, ("cortical bone",)),
    Layer(0.5, 0.01, 0.15, ("marrow",)),
    Layer(0.5, 0.01, 0.06, ("cortical bone",)),
    Layer(0.5, 0.01, 0.12, _FLUID),
    Layer(0.5, 0.02, 0.25, _SOFT),  # folded
)
CORE = (*_SOFT, *_FLUID, "marrow", "fat", "lung", "gas")
FOLDED = len(LAYERS) - 1
LUMPS = (*_SOFT, *_FLUID, *_AIR, "gas", "lung", "marrow", "fat", "vein", "aorta", "stone")


class BodyClips(Described):
    """Batches of clips of bodies that are no abdomen, deterministic by seed and index.

    Args:
        stages: as :class:`.synthetic_clips.SyntheticClips` takes them; clips are those of the first.
        length: how many batches there are.
        seed: of everything drawn.
        device: that draws.
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, int]],
        *,
        length: int = 100,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.stages, self.length, self.seed, self.device = list(stages), length, seed, torch.device(device)

    def described(self) -> dict[str, Any]:
        return {"stages": self.stages, "seed": self.seed}

    def __len__(self) -> int:
        return self.length

    @torch.no_grad()
    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index``: what :meth:`.orientation.OrientationClips.batch` returns, of no abdomen."""
        stage = stage_of(self.stages, 1)
        clips, frames = stage["clips"], stage["frames"]
        draw = Draw(int(np.random.SeedSequence([self.seed, 4, index]).generate_state(1)[0]), self.device)
        tissue, label = draw_bodies(draw, clips=clips, frames=frames, size=stage["image_size"])
        no = torch.zeros(clips, dtype=torch.bool, device=self.device)
        nowhere = torch.zeros(clips, frames, device=self.device)
        return {
            "image": render(tissue, label, draw),
            **{"left_right": no, "front_back": no, "axial": no},
            **{"height": nowhere, "place": nowhere, "abdomen": no[:, None].expand(-1, frames)},
        }


def draw_bodies(draw: Draw, *, clips: int, frames: int, size: int, samples: int = 3) -> tuple[Tensor, Tensor]:
    """Clips of bodies that are no abdomen, as :func:`.contrasts.render` takes them.

    Args:
        draw: of everything.
        clips, frames, size: how many clips of how many slices of how many pixels squared.
        samples: across the thickness of a slice and within its pixels; the first lies in the middle.

    Returns:
        Tissues ``(clips, frames, samples, size, size)``, and labels ``(clips, frames, size, size)``, of which there is
        only that of the lungs, long.
    """
    tissue = torch.stack([_clip(draw, frames, size, samples) for _ in range(clips)])
    lung = tissue[:, :, 0] == TISSUE_INDEX["lung"]
    return tissue, lung.long() * LABEL_INDEX["lung"]


def _clip(draw: Draw, frames: int, size: int, samples: int) -> Tensor:
    """Tissues ``(frames, samples, size, size)`` of one clip."""
    host, device = draw.host, draw.device
    half = host.uniform(*FIELD_OF_VIEW) / 2  # mm that are 1 here
    step = math.exp(host.uniform(*np.log(SPACING))) / half
    pixel = 2 / size
    line = (torch.arange(size, device=device) + 0.5) * pixel - 1
    offsets = torch.rand(3, samples, generator=draw.generator, device=device) - 0.5
    offsets[:, 0] = 0
    offsets = offsets * torch.tensor([[step * host.uniform(0.3, 1.1)], [pixel], [pixel]], device=device)
    along = step * (torch.arange(frames, device=device) - (frames - 1) / 2) * (1 if host.random() < 0.5 else -1)
    stretch = math.exp(host.normal(0, 0.12))  # pixels are not always square
    z = (along.view(-1, 1, 1, 1) + offsets[0].view(1, -1, 1, 1)).expand(-1, -1, size, size)
    y = (line.view(-1, 1) * stretch + offsets[1].view(-1, 1, 1)).expand(frames, -1, -1, size)
    x = (line + offsets[2].view(-1, 1, 1)).expand(frames, -1, size, -1)
    bent = host.uniform(0, 0.05) * _smooth(draw, 5, 2, size) + host.uniform(0, 0.01) * _smooth(draw, 14, 2, size)
    points = torch.stack([z, y + bent[0], x + bent[1]])
    tissue = torch.full_like(z, TISSUE_INDEX["air"], dtype=torch.long)
    kind = host.random()
    if kind < 0.7:
        _paint(tissue, points, draw, radius=host.uniform(0.5, 1.15), centre=host.normal(0, 0.06, 2))
    elif kind < 0.86:
        _paint_pair(tissue, points, draw)
    elif kind < 0.97:  # bottles
        seed = int(host.integers(2**31)) if host.random() < 0.5 else None  # all alike, or none
        for _ in range(int(host.integers(2, 7))):
            same = draw if seed is None else Draw(seed, device)
            _paint(tissue, points, same, radius=host.uniform(0.12, 0.5), centre=host.uniform(-0.7, 0.7, 2))
    if kind >= 0.97 or host.random() < 0.25:
        _paint_table(tissue, points, draw)
    return tissue


def _paint_pair(tissue: Tensor, points: Tensor, draw: Draw) -> None:
    """Two bodies that mirror each other, or are nearly alike: legs, arms, breasts."""
    host, seed = draw.host, int(draw.host.integers(2**31))
    radius = host.uniform(0.25, 0.55)
    apart = min(radius * host.uniform(0.85, 1.4), 0.95 - 0.4 * radius)
    height, larger = host.normal(0, 0.08, 2), math.exp(host.normal(0, 0.05))
    for side in (1, -1):
        mirrored = points * torch.tensor([1.0, 1.0, side], device=points.device).view(3, 1, 1, 1, 1)
        centre = (height[0] + side * 0.3 * height[1], apart)
        _paint(tissue, mirrored, Draw(seed, draw.device), radius=radius * larger**side, centre=centre)


def _paint(tissue: Tensor, points: Tensor, draw: Draw, *, radius: float, centre: Sequence[float]) -> None:
    """Lays one body over what is there, in place.

    Args:
        tissue: ``(T, samples, S, S)``.
        points: ``(3, T, samples, S, S)``: z, y and x of each pixel, from -1 to 1 across the field of view.
        draw: of the body.
        radius: of the body, 1 being half of the field of view.
        centre: y and x of its middle.
    """
    host = draw.host
    middle = torch.tensor([0.0, *centre], device=points.device, dtype=points.dtype).view(3, 1, 1, 1, 1)
    turn = torch.from_numpy(_rotation(host)).to(points)
    w, v, u = torch.einsum("ij,j...->i...", turn, (points - middle) / radius)
    u, v = u * math.exp(host.normal(0, 0.15)), v * math.exp(host.normal(0, 0.15))
    w = w + host.uniform(-1, 1)
    depth = 1 - _radius(u, v, w, host)
    inside = depth > 0
    any_tissue, every_layer = host.random() < 0.25, host.random() < 0.3
    size, tilt = points.shape[-1], host.normal(0, 0.12, 2)
    reached = 0.0
    for number, layer in enumerate((*LAYERS, Layer(1.0, 0, 0, CORE))):
        if host.random() >= (0.95 if every_layer else layer.share):
            continue
        tissue[inside] = _pick(host, TISSUES if any_tissue else layer.tissues)
        thickness = math.exp(host.uniform(math.log(layer.least), math.log(layer.most))) if layer.most else 0.0
        reached += thickness
        # no layer is as thick everywhere
        uneven = 0.3 * thickness * _smooth(draw, 6, 1, size)[0]
        if number == FOLDED:
            uneven = uneven + host.uniform(0.2, 1.2) * thickness * _smooth(draw, int(host.integers(12, 40)), 1, size)[0]
        inside = inside & (depth + uneven + reached * (tilt[0] * u + tilt[1] * v) > reached)
    if host.random() < 0.3:  # a wall through the middle
        wall = (u - 0.1 * host.normal() * v).abs() < host.uniform(0.005, 0.06)
        tissue[wall & (depth > min(0.8, host.uniform(0.5, 1.2) * reached))] = _pick(host, (*_FLUID, *_AIR, "fat"))
    for _ in range(int(host.integers(0, 15))):
        _paint_lump(tissue, (u, v, w), depth, host)


def _radius(u: Tensor, v: Tensor, w: Tensor, host: np.random.Generator) -> Tensor:
    """1 on the surface of a body, less inside: round or lobed across, and along its axis a rod, closed at one end or
    at both, of which a part may be thinner.
    """
    outline = torch.ones_like(u)
    angle = torch.atan2(v, u)
    for lobes in range(2, 6):
        lobe = host.normal(0, 0.14 / lobes) * torch.cos(lobes * angle + host.uniform(0, 6.3) + host.normal(0, 0.5) * w)
        outline = outline + lobe
    if host.random() < 0.5:  # a neck, or a wrist
        thin = torch.sigmoid(
            (w - host.uniform(-1.2, 1.2)) / host.uniform(0.05, 0.4) * (1 if host.random() < 0.5 else -1)
        )
        outline = outline * (1 - (1 - host.uniform(0.3, 0.95)) * thin)
    end = torch.zeros_like(w)
    if host.random() < 0.6:
        end = ((w - host.uniform(-0.5, 1.0)) / host.uniform(0.4, 1.6)).clamp_min(0)
    if host.random() < 0.4:
        end = end + ((-w - host.uniform(-0.5, 1.0)) / host.uniform(0.4, 1.6)).clamp_min(0)
    return ((u.square() + v.square()) / outline.square() + end.square()).sqrt()


def _paint_lump(tissue: Tensor, place: tuple[Tensor, Tensor, Tensor], depth: Tensor, host: np.random.Generator) -> None:
    """An ellipsoid or a rod in a body, or a pair of them on both sides of its middle; half of them have a rim."""
    u, v, w = place
    angle, far = host.uniform(0, 2 * math.pi), 0.8 * math.sqrt(host.random())
    if host.random() < 0.6:
        u = u.abs()
    du, dv, dw = u - far * math.cos(angle), v - far * math.sin(angle), w - host.uniform(-1, 1)
    turn, radii = host.uniform(0, math.pi), np.exp(host.uniform(math.log(0.04), math.log(0.45), 2))
    if host.random() < 0.5:
        radii[1] = radii[0] * host.uniform(0.7, 1.4)
    length = radii.mean() * math.exp(host.uniform(math.log(0.6), math.log(8)))
    across = ((math.cos(turn) * du + math.sin(turn) * dv) / radii[0]).square()
    across = across + ((math.cos(turn) * dv - math.sin(turn) * du) / radii[1]).square() + (dw / length).square()
    inside = (across < 1) & (depth > host.uniform(0, 0.1))
    if host.random() < 0.5:
        tissue[inside] = _pick(host, ("cortical bone",) if host.random() < 0.5 else _SOFT)
        inside = inside & (across < host.uniform(0.4, 0.9))
    tissue[inside] = _pick(host, LUMPS)


def _paint_table(tissue: Tensor, points: Tensor, draw: Draw) -> None:
    """What a body lies on: one or two thin sheets, flat or hollow, across the field of view."""
    host = draw.host
    _, y, x = points
    top, hollow = host.uniform(0.3, 0.9), host.uniform(-0.4, 0.1)
    for sheet in range(int(host.integers(1, 3))):
        distance = y - top - hollow * x.square() - sheet * host.uniform(0.05, 0.2)
        there = (distance.abs() < host.uniform(0.004, 0.02)) & (tissue == TISSUE_INDEX["air"])
        tissue[there] = _pick(host, ("table", "cortical bone", "muscle"))


def _rotation(host: np.random.Generator) -> np.ndarray:
    """From z, y and x to a body's axis and what lies across it: along z in half of the bodies, along another axis in a
    third, askew in the others; ``(3, 3)`` float32.
    """
    kind = host.random()
    matrix, _ = np.linalg.qr(np.eye(3) + (host.normal(0, 0.12, (3, 3)) if kind < 0.8 else host.normal(0, 2, (3, 3))))
    matrix = matrix * np.sign(np.diag(matrix))[:, None]
    if 0.5 <= kind < 0.8:
        matrix = matrix[[1, 0, 2] if host.random() < 0.5 else [2, 1, 0]]
    turn = host.uniform(0, 2 * np.pi) if host.random() < 0.3 else host.normal(0, 0.1)
    cosine, sine = np.cos(turn), np.sin(turn)
    return (np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ matrix).astype(np.float32)


def _smooth(draw: Draw, cells: int, channels: int, size: int) -> Tensor:
    """Smooth unit noise ``(channels, 1, 1, size, size)``."""
    noise = draw.normal(1, 1, channels, cells, cells)
    noise = F.interpolate(noise, (size, size), mode="bicubic", align_corners=True)
    return noise.view(channels, 1, 1, size, size)


def _pick(host: np.random.Generator, tissues: Sequence[str]) -> int:
    return TISSUE_INDEX[tissues[int(host.integers(len(tissues)))]]
