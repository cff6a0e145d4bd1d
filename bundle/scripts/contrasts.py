"""Clips of painted patients in random contrasts: the anatomical half of what ``sam2_nano`` and its prior learn from.

A patient (:mod:`.anatomy`) is a map of tissues. A clip is a few parallel slices of one, bent, tilted, scaled and cut
as scans are, in which each tissue has drawn its grey anew: at random most of the time, else in the order of CT or of T1-
or T2-weighted MR. Everything runs on the device that trains, in tensors, and follows one seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .anatomy import LABELS, SPACING, TISSUES
from .phantoms import ORGANS
from .phantoms import TISSUES as PHANTOM_TISSUES

_T = {name: index for index, name in enumerate(TISSUES)}
_L = {name: index for index, name in enumerate(LABELS)}
#: What an auxiliary head names in every pixel: the labels, and of the rest the kind of tissue.
CLASSES = (*LABELS[1:], "air", "skin and fat", "muscle", "bone", "vessel", "other")

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
_FLUIDS = ("cyst", "ascites", "effusion")


def _class_table() -> Tensor:
    """For each tissue the index into :data:`CLASSES` that it has where no label names it."""
    kinds = {
        "air": ("air", "gas", "table"),
        "skin and fat": ("skin", "fat", "gland"),
        "muscle": ("muscle",),
        "bone": ("cortical bone", "marrow", "cartilage", "disc"),
        "vessel": ("vein", "aorta", "hepatic vessel"),
    }
    table = torch.full((len(TISSUES),), CLASSES.index("other"))
    for kind, tissues in kinds.items():
        for tissue in tissues:
            table[_T[tissue]] = CLASSES.index(kind)
    return table


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


class PatientPool:
    """Tissues and labels of many patients, as ``(N, Z, H, W)`` uint8 with H towards the back and W to the left.

    Args:
        files: of :func:`anatomy.write_patients`.
        device: that holds them: 5.5 MB a patient.
    """

    def __init__(self, files: Sequence[str | Path], device: torch.device | str = "cpu") -> None:
        maps: dict[str, list[np.ndarray]] = {"tissue": [], "label": []}
        for path in files:
            with np.load(path) as content:
                for name, arrays in maps.items():
                    arrays.append(np.ascontiguousarray(content[name][::-1, ::-1].transpose(2, 1, 0)))
        self.tissue, self.label = (torch.from_numpy(np.stack(arrays)).to(device) for arrays in maps.values())
        air, table = self.tissue == _T["air"], self.tissue == _T["table"]
        body = ~(air | table)
        # where the body lies in plane, and where along z organs are, in mm from the middle of the volume
        self.box = torch.stack([_extent(body.any(1).any(2), SPACING[1]), _extent(body.any(1).any(1), SPACING[0])], 1)
        organs = (self.label > 0) & (self.label <= len(ORGANS))
        self.organs = _extent(organs.any(3).any(2), SPACING[2])

    def __len__(self) -> int:
        return len(self.tissue)

    def sample(self, patient: Tensor, z: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tissue and label, long, of the voxels nearest to positions in mm from the middle; air outside.

        Args:
            patient: ``(V,)``.
            z, y, x: ``(V, ...)``, broadcastable to one shape.
        """
        places, outside = [], torch.zeros((), dtype=torch.bool, device=z.device)
        for position, length, step in zip((z, y, x), self.tissue.shape[1:], (SPACING[2], SPACING[1], SPACING[0])):
            index = (position / step + (length - 1) / 2).round().long()
            outside = outside | (index < 0) | (index >= length)
            places.append(index.clamp(0, length - 1))
        patient = patient.view(-1, *[1] * (x.ndim - 1))
        tissue = self.tissue[patient, places[0], places[1], places[2]].long().masked_fill(outside, _T["air"])
        label = self.label[patient, places[0], places[1], places[2]].long().masked_fill(outside, 0)
        return tissue, label


def _extent(present: Tensor, step: float) -> Tensor:
    """First and last True of each row of ``(N, L)``, in mm from the middle: ``(N, 2)``."""
    length = present.shape[1]
    first = present.float().argmax(1)
    last = length - 1 - present.flip(1).float().argmax(1)
    return (torch.stack([first, last], 1) - (length - 1) / 2) * step


class AnatomyClips:
    """Batches of clips of painted patients, deterministic by seed, epoch and index.

    Args:
        pool: the patients.
        clips, frames, image_size: of a batch.
        extra_objects: structures followed beside the organs.
        length: batches in an epoch.
        seed: of everything drawn.

    Iterating gives ``image`` ``(clips, frames, 1, S, S)`` in [0, 1], ``mask`` ``(clips, organs + extra_objects, frames, S,
    S)`` bool, the organs first, and ``classes`` ``(clips, frames, S, S)``, indices into :data:`CLASSES`.
    """

    def __init__(
        self,
        pool: PatientPool,
        clips: int,
        frames: int,
        image_size: int,
        extra_objects: int = 2,
        length: int = 100,
        seed: int = 0,
    ) -> None:
        self.pool, self.clips, self.frames, self.image_size = pool, clips, frames, image_size
        self.extra_objects, self.length, self.seed = extra_objects, length, seed
        self.epoch = 1
        self.class_table = _class_table().to(pool.tissue.device)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(self.length):
            yield self.batch(index)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the present epoch."""
        seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        draw = Draw(int(seed), self.pool.tissue.device)
        tissue, label = self._slices(draw)
        image = render(tissue, label, draw)
        centre = tissue[:, :, 0]
        classes = torch.where(label > 0, label - 1, self.class_table[centre])
        return {"image": image, "mask": self._objects(label, draw), "classes": classes}

    def _slices(self, draw: Draw, samples: int = 4) -> tuple[Tensor, Tensor]:
        """Tissues ``(V, T, samples, S, S)``, the first sample the slice's middle, and labels ``(V, T, S, S)``.

        The other samples lie off the middle, across the slice's thickness and within the voxel: their mean grey has
        the partial volume of thick slices.
        """
        count, frames, size, device = self.clips, self.frames, self.image_size, draw.device
        patient = draw.integer(len(self.pool), count)
        step = torch.exp(draw.uniform(math.log(1.2), math.log(10.0), count))
        low, high = self.pool.organs[patient].unbind(1)
        centre = low + (high - low) * draw.uniform(-0.12, 1.12, count)
        direction = torch.where(draw.chance(0.5, count), 1.0, -1.0)
        along = (torch.arange(frames, device=device) - draw.integer(frames, count)[:, None]) * (direction * step)[:, None]
        z = (centre[:, None] + along)[..., None, None]

        y, x = self._plane(patient, draw)
        tilt = draw.normal(0.05, count, 2)
        y, x = y[:, None], x[:, None]
        z = z + tilt[:, 0].view(-1, 1, 1, 1) * y + tilt[:, 1].view(-1, 1, 1, 1) * x
        # two smooth fields, of which the clip's slices see more and more of the second
        share = ((z.mean((2, 3), keepdim=True) - centre.view(-1, 1, 1, 1)) / 90 + 0.5).clamp(0, 1)
        for knots, spread in ((5, 7.0), (12, 2.2)):
            field = draw.normal(spread, 2 * count, 3, knots, knots)
            field = F.interpolate(field, (size, size), mode="bicubic", align_corners=True).view(count, 2, 3, size, size)
            field = field * draw.uniform(0, 1, count).view(-1, 1, 1, 1, 1)
            bent = [torch.lerp(field[:, 0, None, axis], field[:, 1, None, axis], share) for axis in range(3)]
            z, y, x = z + 0.7 * bent[0], y + bent[1], x + bent[2]

        thickness = torch.minimum(step * draw.uniform(0.3, 1.1, count), torch.tensor(9.0, device=device))
        offsets = draw.uniform(-0.5, 0.5, samples, 3)
        offsets[0] = 0
        spread = torch.stack([thickness, torch.full_like(step, SPACING[1]), torch.full_like(step, SPACING[0])], 1)
        tissues = []
        for sample in range(samples):
            shift = (spread * offsets[sample]).view(count, 3, 1, 1, 1)
            tissue, found = self.pool.sample(patient, z + shift[:, 0], y + shift[:, 1], x + shift[:, 2])
            tissues.append(tissue)
            if sample == 0:
                label = found
        return torch.stack(tissues, 2), label

    def _plane(self, patient: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Positions ``(V, S, S)`` in mm of the pixels: a field of view about the body, turned, stretched and cut."""
        count, device = len(patient), draw.device
        box = self.pool.box[patient]  # (V, 2, 2): back-front and left-right, from and to
        middle, extent = box.mean(2), box[:, :, 1] - box[:, :, 0]
        # the body fills the width in most scans; some show much air, some cut its sides
        width = extent[:, 1] * torch.where(
            draw.chance(0.7, count), draw.uniform(0.98, 1.25, count), draw.uniform(0.82, 1.9, count)
        )
        square = torch.maximum(width, extent[:, 0] * 1.02)
        tight = torch.maximum(extent[:, 0] * draw.uniform(0.95, 1.25, count), 0.55 * width)
        kind = draw.uniform(0, 1, count)
        height = torch.where(kind < 0.6, square, torch.where(kind < 0.9, tight, width * draw.uniform(0.75, 1.0, count)))
        middle = middle + draw.normal(0.03, count, 2) * extent
        line = (torch.arange(self.image_size, device=device) + 0.5) / self.image_size - 0.5
        v = line.view(1, -1, 1) * height.view(-1, 1, 1)
        u = line.view(1, 1, -1) * width.view(-1, 1, 1)
        angle = torch.where(draw.chance(0.08, count), draw.normal(0.35, count), draw.normal(0.07, count)).view(-1, 1, 1)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        return (
            cosine * v + sine * u + middle[:, 0].view(-1, 1, 1),
            cosine * u - sine * v + middle[:, 1].view(-1, 1, 1),
        )

    def _objects(self, label: Tensor, draw: Draw) -> Tensor:
        masks = [label == organ for organ in range(1, 1 + len(ORGANS))]
        names = ("gallbladder", "stomach", "aorta", "vena cava", "pancreas", "spine", "heart", "collection")
        others = torch.tensor([_L[name] for name in names], device=label.device)
        seen = (label[..., None, ::2, ::2] == others.view(-1, 1, 1)).flatten(3).float().mean(3).amax(1)  # (V, others)
        weight = (seen > 0.001).float() + 1e-4
        chosen = torch.multinomial(weight, self.extra_objects, generator=draw.generator)
        masks += [label == others[chosen[:, index]].view(-1, 1, 1, 1) for index in range(self.extra_objects)]
        return torch.stack(masks, 1)


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

    hounsfield = torch.tensor([PHANTOM_TISSUES[name].ct[0] for name in PHANTOM_TISSUES], device=device, dtype=torch.float)
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

    kind = draw.uniform(0, 1, count)
    means = torch.where((kind < 0.45)[:, None], random, torch.where((kind < 0.72)[:, None], mr, ct))
    # the pulp and patchy fat are variations of their organ
    for part, whole in (("spleen pulp", "spleen"), ("liver fat", "liver")):
        means[:, _T[part]] = means[:, _T[whole]] * torch.exp(draw.normal(0.25, count))
    # what bodies usually share: vessels near their organ, medulla near cortex, fluid alike
    for part, whole, share in (("hepatic vessel", "liver", 0.6), ("renal medulla", "renal cortex", 0.7)):
        near = draw.chance(share, count) & (kind < 0.45)
        means[:, _T[part]] = torch.where(near, means[:, _T[whole]] + draw.normal(0.09, count), means[:, _T[part]])
    means[:, _T["table"]] *= draw.chance(0.6, count)
    return means.clamp_min(0), kind >= 0.72


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

    image = _edges(image, label, means, draw)
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
    shade = shade + torch.linspace(-1, 1, frames, device=image.device).view(1, -1, 1, 1) * draw.normal(0.15, count, 1, 1, 1)
    image = torch.where(draw.chance(0.6, count, 1, 1, 1), image * torch.exp(shade), image)
    ghost = draw.uniform(0, 0.12, count, 1, 1, 1) * draw.chance(0.1, count, 1, 1, 1)
    shift = int(draw.host.integers(size // 8, size // 2))
    image = image + ghost * image.roll(shift, 2)
    noise = draw.uniform(0, 0.07, count, 1, 1, 1) * draw.uniform(0, 1, count, 1, 1, 1)
    rician = draw.chance(0.4, count, 1, 1, 1)
    first, other = (draw.normal(1, *image.shape) * noise for _ in range(2))
    return torch.where(rician, torch.hypot(image + first, other), image + first)


def _normalise(image: Tensor, is_ct: Tensor, draw: Draw) -> Tensor:
    """To [0, 1]: CT by its window, which has been applied, MR by percentiles as real volumes are; then gamma, and cuts."""
    count, _, size, _ = image.shape
    flat = image[:, :, ::4, ::4].flatten(1)
    low = torch.quantile(flat, 0.005, dim=1)
    high = torch.quantile(flat, 0.99, dim=1)
    # a volume's percentiles are not one clip's: what is brightest may lie elsewhere, or here alone
    high = low + (high - low).clamp_min(1e-3) * torch.exp(draw.normal(0.18, count) + 0.12)
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
