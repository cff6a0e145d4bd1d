"""Random contrasts: an image of what is a map of tissues, as some scanner might have made it.

Each tissue draws its grey anew: at random most of the time, else in the order of CT or of T1- or T2-weighted MR.
Touching organs differ, or have fat between them, as they do in bodies; then come texture, partial volume, blur,
shading, ghosts and noise. Everything is computed in tensors on the device that trains.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.phantom_anatomy import ORGANS
from ..data.phantom_rendering import TISSUES as PHANTOM_TISSUES
from .patient import LABEL_INDEX, TISSUE_INDEX, TISSUES

_T = TISSUE_INDEX

# Greys of T1- and T2-weighted MR without fat saturation, roughly, air 0 and the brightest usual tissue 1; what is not
# named is drawn at random. T2 with fat saturation and CT come from the phantoms' table.
_T1 = {
    **{"air": 0.01, "gas": 0.02, "lung": 0.06, "skin": 0.5, "fat": 0.9, "muscle": 0.36, "liver": 0.52, "spleen": 0.36},
    **{"hepatic vessel": 0.3, "renal cortex": 0.45, "renal medulla": 0.34, "renal sinus": 0.7, "renal pelvis": 0.2},
    **{"gallbladder": 0.3, "pancreas": 0.52, "vein": 0.25, "aorta": 0.2, "heart": 0.35, "bowel wall": 0.38},
    **{"bowel fluid": 0.2, "bowel oral": 0.4, "stool": 0.45, "stomach content": 0.25, "cortical bone": 0.08},
    **{"marrow": 0.6, "disc": 0.35, "cartilage": 0.35, "canal": 0.15, "cord": 0.35, "cyst": 0.15, "ascites": 0.15},
    **{"effusion": 0.15, "gland": 0.5, "adrenal": 0.42, "stone": 0.05, "lesion": 0.35},
}
_T2 = {
    **{"air": 0.01, "gas": 0.02, "lung": 0.06, "skin": 0.4, "fat": 0.7, "muscle": 0.16, "liver": 0.25, "spleen": 0.48},
    **{"hepatic vessel": 0.1, "renal cortex": 0.5, "renal medulla": 0.65, "renal sinus": 0.6, "renal pelvis": 0.95},
    **{"gallbladder": 0.95, "pancreas": 0.36, "vein": 0.1, "aorta": 0.06, "heart": 0.2, "bowel wall": 0.3},
    **{"bowel fluid": 0.85, "bowel oral": 0.6, "stool": 0.3, "stomach content": 0.8, "cortical bone": 0.05},
    **{"marrow": 0.4, "disc": 0.4, "cartilage": 0.2, "canal": 0.95, "cord": 0.4, "cyst": 0.98, "ascites": 0.95},
    **{"effusion": 0.9, "gland": 0.5, "adrenal": 0.35, "stone": 0.03, "lesion": 0.5},
}


class Draw:
    """Random numbers on one device from one seed."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.host = np.random.default_rng(seed)  # for what must be known before anything is computed

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, spread: float, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device) * spread

    def chance(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) < share

    def integer(self, stop: int, *shape: int) -> Tensor:
        """0 ... stop - 1."""
        return torch.randint(0, stop, shape, generator=self.generator, device=self.device)


def _table(greys: Mapping[str, float], draw: Draw, count: int) -> Tensor:
    """``(count, tissues)`` of a table of greys; what it does not name is random."""
    means = draw.uniform(0, 1, count, len(TISSUES))
    for name, grey in greys.items():
        means[:, _T[name]] = grey
    return means


def draw_means(draw: Draw, count: int) -> tuple[Tensor, Tensor]:
    """A grey for each tissue, ``(count, tissues)``, and which of the contrasts are CT's, ``(count,)`` bool."""
    device = draw.device
    random = draw.uniform(0, 1, count, len(TISSUES))
    random[:, _T["air"]] *= 0.06
    random[:, _T["gas"]] *= 0.2
    random[:, _T["lung"]] *= 0.3
    random = _told_apart(random, draw)

    hounsfield = torch.tensor(
        [PHANTOM_TISSUES[name].ct[0] for name in PHANTOM_TISSUES], device=device, dtype=torch.float
    )
    extra = {"lesion": 70, "cyst": 8, "stone": 600, "ascites": 10, "effusion": 12, "gland": -20, "adrenal": 70}
    extra |= {"table": 200, "spleen pulp": 150, "liver fat": 50}
    hounsfield = torch.cat([hounsfield, torch.tensor([float(value) for value in extra.values()], device=device)])
    soft = (hounsfield.abs() < 400) & (hounsfield > -60)
    # from without contrast (everything near 50 HU) to the arterial phase (cortex, vessels far above)
    phase = draw.uniform(0.0, 1.7, count, 1)
    ct = torch.where(soft, 50 + (hounsfield - 50) * phase + draw.normal(14, count, len(hounsfield)), hounsfield)
    ct = ct + draw.normal(6, count, len(hounsfield))
    low = -125 + draw.normal(25, count, 1)
    ct = ((ct - low) / (400 * torch.exp(draw.normal(0.15, count, 1)))).clamp(0, 1.2)

    fat_saturated = {name: tissue.mr[0] / 1200 for name, tissue in PHANTOM_TISSUES.items()}
    fat_saturated |= {"cyst": 1.0, "ascites": 0.95, "effusion": 0.9, "lesion": 0.5, "gland": 0.3, "adrenal": 0.3}
    tables = [_table(greys, draw, count) for greys in (fat_saturated, _T1, _T2)]
    mr = torch.stack(tables)[draw.integer(3, count), torch.arange(count, device=device)]
    mr = mr * torch.exp(draw.normal(0.35, count, len(TISSUES)) * draw.uniform(0.3, 1.3, count, 1))
    # saturated fat, or fat left bright
    saturated = draw.chance(0.3, count)
    mr[saturated, _T["fat"]] *= 0.2
    # iron: black liver and spleen
    iron = draw.chance(0.12, count)
    mr[iron, _T["liver"]] *= 0.25
    mr[iron & draw.chance(0.7, count), _T["spleen"]] *= 0.25
    # after contrast medium
    enhanced = draw.chance(0.3, count)
    for name, gain in (("renal cortex", 1.7), ("aorta", 3), ("vein", 3), ("hepatic vessel", 2.5), ("spleen", 1.4)):
        mr[enhanced, _T[name]] *= gain
    # blood that hardly flows is bright where water is
    slow = draw.chance(0.35, count)
    for name in ("hepatic vessel", "vein"):
        mr[:, _T[name]] = torch.where(slow, mr[:, _T["liver"]] * draw.uniform(1.4, 3.2, count), mr[:, _T[name]])

    kind = draw.uniform(0, 1, count)
    means = torch.where((kind < 0.35)[:, None], random, torch.where((kind < 0.7)[:, None], mr, ct))
    # the pulp and patchy fat are variations of their organ
    for part, whole in (("spleen pulp", "spleen"), ("liver fat", "liver")):
        means[:, _T[part]] = means[:, _T[whole]] * torch.exp(draw.normal(0.25, count))
    # what bodies usually share: vessels near their organ, medulla near cortex, fluid alike
    for part, whole, share in (("hepatic vessel", "liver", 0.6), ("renal medulla", "renal cortex", 0.7)):
        near = draw.chance(share, count) & (kind < 0.35)
        means[:, _T[part]] = torch.where(near, means[:, _T[whole]] + draw.normal(0.09, count), means[:, _T[part]])
    # stool that only its texture and its place tell from a liver, and other contents that only their place does
    for name, share in (("stool", 0.35), ("bowel fluid", 0.2), ("bowel oral", 0.2)):
        alike = draw.chance(share, count)
        means[:, _T[name]] = torch.where(alike, means[:, _T["liver"]] + draw.normal(0.04, count), means[:, _T[name]])
    means[:, _T["table"]] *= draw.chance(0.6, count)
    return means.clamp_min(0), kind >= 0.7


def _told_apart(means: Tensor, draw: Draw) -> Tensor:
    """Draws random greys again until tissues that touch differ, in most of the contrasts, as they do in bodies."""
    pairs = [("renal cortex", "liver", 0.1), ("renal cortex", "spleen", 0.1), ("liver", "spleen", 0.05)]
    pairs += [(organ, "fat", 0.1) for organ in ("liver", "spleen", "renal cortex")]
    pairs += [(organ, "muscle", 0.06) for organ in ("liver", "spleen", "renal cortex")]
    pairs += [("spleen", "stomach content", 0.06), ("liver", "stomach content", 0.06)]
    names = sorted({name for first, second, _ in pairs for name in (first, second)})
    columns = {name: index for index, name in enumerate(names)}
    drawn = draw.uniform(0, 1, len(means), 64, len(names))  # of so many, one nearly always will do
    apart = torch.ones(drawn.shape[:2], dtype=torch.bool, device=means.device)
    for first, second, least in pairs:
        apart &= (drawn[..., columns[first]] - drawn[..., columns[second]]).abs() >= least
    apart[:, 0] |= draw.chance(0.12, len(means))  # and some contrasts tell nothing apart
    chosen = apart.float().argmax(1).view(-1, 1, 1).expand(-1, 1, len(names))
    means[:, [_T[name] for name in names]] = drawn.gather(1, chosen)[:, 0]
    return means


def _field(draw: Draw, count: int, frames: int, cells: int, size: int) -> Tensor:
    """Smooth unit noise ``(count, frames, S, S)`` that changes slowly from slice to slice."""
    ends = F.interpolate(draw.normal(1, 2 * count, 1, cells, cells), (size, size), mode="bicubic", align_corners=True)
    ends = ends.view(count, 2, size, size)
    share = torch.linspace(0, 1, frames, device=draw.device).view(1, -1, 1, 1) * draw.uniform(0, 1, count, 1, 1, 1)
    mixed = (1 - share) * ends[:, :1] + share * ends[:, 1:]
    return mixed / (share.square() + (1 - share).square()).sqrt()


def render(tissue: Tensor, label: Tensor, draw: Draw) -> Tensor:
    """A random image ``(V, T, 1, S, S)`` in [0, 1] of tissues ``(V, T, samples, S, S)``."""
    count, frames, samples, size, _ = tissue.shape
    means, is_ct = draw_means(draw, count)
    # some tissues fall into two clusters, of which a smooth field says which is where
    second = means + torch.where(draw.chance(0.4, *means.shape), draw.normal(0.12, *means.shape), 0.0)
    second[:, : _T["lung"] + 1] = means[:, : _T["lung"] + 1]
    where = (_field(draw, count, frames, 9, size) > draw.normal(0.7, count, 1, 1, 1)).long()
    greys = torch.stack([means, second], 2).flatten(1)  # (V, tissues * 2)
    image = torch.zeros(count, frames, size, size, device=draw.device)
    for sample in range(samples):
        image += greys.gather(1, (tissue[:, :, sample] * 2 + where).flatten(1)).view_as(image)
    image /= samples

    image = _branches(_edges(image, label, means, draw), label, means, draw)
    image = _mottled(image, tissue[:, :, 0], means, draw)
    roughness = draw.uniform(0, 0.09, count, len(TISSUES)) * draw.uniform(0, 1, count, 1)
    for rough in ("bowel wall", "bowel fluid", "bowel oral", "stool", "stomach content", "renal sinus"):
        roughness[:, _T[rough]] *= 2
    roughness = roughness.gather(1, tissue[:, :, 0].flatten(1)).view_as(image)
    texture = 0.5 * draw.normal(1, *image.shape)
    for cells, weight in ((size // 2, 1.0), (size // 6, 0.7), (size // 16, 0.5)):
        noise = draw.normal(weight, count * frames, 1, cells, cells)
        texture += F.interpolate(noise, (size, size), mode="bilinear").view_as(image)
    image = image + roughness * texture
    image = _scanner(image.flatten(0, 1)[:, None], count, frames, draw).view(count, frames, size, size)
    return _normalise(image, is_ct, draw)[:, :, None]


def _edges(image: Tensor, label: Tensor, means: Tensor, draw: Draw) -> Tensor:
    """A thin plane of fat, or a capsule, where two organs touch, in most of the clips."""
    count = len(image)
    touching = torch.zeros_like(image)
    for organ in range(1, 1 + len(ORGANS)):
        touching += F.max_pool2d((label == organ).float(), 3, 1, 1)
    strength = draw.uniform(0.2, 1, count, 1, 1, 1) * draw.chance(0.7, count, 1, 1, 1)
    grey = torch.where(draw.chance(0.7, count), means[:, _T["fat"]], draw.uniform(0, 1, count)).view(-1, 1, 1, 1)
    return torch.lerp(image, grey.expand_as(image), strength * (touching > 1))


def _branches(image: Tensor, label: Tensor, means: Tensor, draw: Draw) -> Tensor:
    """Vessels that are thinner than a patient's map can hold: of the liver, in half of the clips and mostly brighter
    than it; and of the lungs, which are as dark as a liver full of iron, brighter at the back and no less branched.
    """
    count, frames, size = len(image), image.shape[1], image.shape[-1]
    sign = torch.where(draw.chance(0.75, count), 1.0, -1.0)
    strength = draw.uniform(0.2, 2.0, count) * (means[:, _T["liver"]] + 0.05) * sign * draw.chance(0.5, count)
    liver = strength.view(-1, 1, 1, 1) * _ridges(draw, count, frames, size) * (label == 1 + ORGANS.index("liver"))
    strength = draw.uniform(0.05, 0.6, count) * draw.chance(0.7, count)
    behind = torch.linspace(-0.5, 1, size, device=image.device).clamp_min(0).view(1, 1, -1, 1)
    behind = behind * draw.uniform(0, 0.2, count, 1, 1, 1) * draw.chance(0.5, count, 1, 1, 1)
    lung = strength.view(-1, 1, 1, 1) * _ridges(draw, count, frames, size) + behind
    return image + liver + lung * (label == LABEL_INDEX["lung"])


def _ridges(draw: Draw, count: int, frames: int, size: int) -> Tensor:
    """Pieces of the lines along which smooth fields are zero, ``(V, T, S, S)`` in [0, 1]."""
    ridge = torch.zeros(count, frames, size, size, device=draw.device)
    for _ in range(2):
        cells = int(draw.host.integers(10, 30))
        line = _field(draw, count, frames, cells, size) / draw.uniform(0.06, 0.3, count, 1, 1, 1)
        there = _field(draw, count, frames, cells, size) > draw.uniform(-0.5, 0.8, count, 1, 1, 1)
        ridge = torch.maximum(ridge, torch.exp(-line.square()) * there)
    return ridge


def _mottled(image: Tensor, tissue: Tensor, means: Tensor, draw: Draw) -> Tensor:
    """Stool, and meals, with bubbles of gas and crumbs of other greys, in most of the clips: as large and as grey as a
    liver, and yet none.
    """
    count, frames, size = len(image), image.shape[1], image.shape[-1]
    fine = draw.uniform(0.3, 2.5, count, 1, 1, 1)
    spots = _field(draw, count, frames, int(draw.host.integers(size // 12, size // 3)), size)
    spots = (spots + fine * _field(draw, count, frames, size // 2, size)) / (1 + fine.square()).sqrt()
    sharp = draw.uniform(0.08, 0.4, count, 1, 1, 1)
    gas = torch.sigmoid((spots - draw.uniform(0.4, 1.8, count, 1, 1, 1)) / sharp) * draw.uniform(0.3, 1, count, 1, 1, 1)
    crumbs = torch.sigmoid((-spots - draw.uniform(0.3, 2, count, 1, 1, 1)) / sharp)
    there = torch.zeros_like(image)
    for name, share in (("stool", 0.9), ("stomach content", 0.3), ("bowel oral", 0.4), ("bowel fluid", 0.15)):
        there += (tissue == _T[name]) * draw.chance(share, count, 1, 1, 1)
    image = image + there * crumbs * draw.normal(0.15, count, 1, 1, 1)
    return torch.lerp(image, means[:, _T["gas"]].view(-1, 1, 1, 1).expand_as(image), there * gas)


def _scanner(image: Tensor, count: int, frames: int, draw: Draw) -> Tensor:
    """Blur, coarse sampling, shading, ghosts and noise of ``(V * T, 1, S, S)``."""
    size = image.shape[-1]
    reach = 4
    offset = torch.arange(-reach, reach + 1, device=image.device)
    for axis in (2, 3):
        blur = draw.uniform(0.3, 1.3, count, 1).repeat_interleave(frames, 0) * size / 256
        kernel = torch.exp(-0.5 * (offset / blur).square())
        kernel = kernel / kernel.sum(1, keepdim=True)
        padded = F.pad(image, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="replicate")
        # each slice has a kernel of its own: nine shifted copies cost less than a convolution in as many groups
        image = sum(kernel[:, tap].view(-1, 1, 1, 1) * padded.narrow(axis, tap, size) for tap in range(2 * reach + 1))
    if draw.host.random() < 0.4:  # of the whole batch: coarse sampling, often of one axis alone
        factors = draw.host.uniform(0.3, 0.95, 2)
        if draw.host.random() < 0.5:
            factors[draw.host.integers(2)] = 1.0
        coarse = [max(32, int(size * factor)) for factor in factors]
        image = F.interpolate(F.interpolate(image, coarse, mode="area"), (size, size), mode="bilinear")
    image = image.view(count, frames, size, size)
    shade = _field(draw, count, frames, 4, size) * draw.uniform(0, 0.45, count, 1, 1, 1)
    shade = shade + torch.linspace(-1, 1, frames, device=image.device).view(1, -1, 1, 1) * draw.normal(
        0.3, count, 1, 1, 1
    )
    image = torch.where(draw.chance(0.6, count, 1, 1, 1), image * torch.exp(shade), image)
    ghost = draw.uniform(0, 0.12, count, 1, 1, 1) * draw.chance(0.1, count, 1, 1, 1)
    shift = int(draw.host.integers(size // 8, size // 2))
    image = image + ghost * image.roll(shift, 2)
    noise = draw.uniform(0, 0.07, count, 1, 1, 1) * draw.uniform(0, 1, count, 1, 1, 1)
    rician = draw.chance(0.4, count, 1, 1, 1)
    first, other = (draw.normal(1, *image.shape) * noise for _ in range(2))
    return torch.where(rician, torch.hypot(image + first, other), image + first)


def _normalise(image: Tensor, is_ct: Tensor, draw: Draw) -> Tensor:
    """To [0, 1]: CT by its window, which has been applied, MR by percentiles as real volumes are; then gamma, and
    cuts.
    """
    count, _, size, _ = image.shape
    flat = image[:, :, ::4, ::4].flatten(1)
    low = torch.quantile(flat, 0.005, dim=1)
    high = torch.quantile(flat, 0.99, dim=1)
    # a volume's percentiles are not one clip's: what is brightest may lie elsewhere, or here alone; far from the coil,
    # at the ends of a volume, all is dim
    dim = torch.where(draw.chance(0.15, count), draw.uniform(1, 5, count), 1.0)
    high = low + (high - low).clamp_min(1e-3) * torch.exp(draw.normal(0.18, count) + 0.12) * dim
    low, high = torch.where(is_ct, 0.0, low), torch.where(is_ct, 1.0, high)
    image = ((image - low.view(-1, 1, 1, 1)) / (high - low).view(-1, 1, 1, 1)).clamp(0, 1)
    gamma = torch.exp(draw.normal(0.3, count)).view(-1, 1, 1, 1)
    image = image**gamma
    line = torch.linspace(0, 1, size, device=image.device)
    cut = draw.chance(0.12, count)
    edges = torch.where(cut[:, None], draw.uniform(-0.15, 0.15, count, 4), torch.zeros(count, 4, device=image.device))
    edges = edges.clamp_min(0).view(count, 4, 1, 1)
    rows, columns = line.view(1, -1, 1), line.view(1, 1, -1)
    kept = (rows >= edges[:, 0]) & (rows <= 1 - edges[:, 1]) & (columns >= edges[:, 2]) & (columns <= 1 - edges[:, 3])
    return image * kept[:, None]
