"""Clips of painted patients in random contrasts: the anatomical half of what ``sam2_nano`` and its prior learn from.

A patient (:mod:`.anatomy`) is a map of tissues. A clip is a few parallel slices of one, bent, tilted, scaled and cut
as scans are, in which each tissue has drawn its grey anew: at random most of the time, else in the order of CT or of
    T1- or T2-weighted MR. Everything runs on the device that trains, in tensors, and follows one seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.phantom_anatomy import ORGANS
from ..descriptions import Described, given
from ..files import sha256_of
from ..networks.naming_head import STRUCTURES
from ..networks.sam2_backbone import between_neighbours
from .contrasts import Draw, render
from .patient import LABEL_INDEX, SPACING, TISSUE_INDEX, TISSUES
from .synthetic_clips import stage_of

CLASSES = STRUCTURES  # what a head names in every pixel: the labels, and of the rest the kind of tissue


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
            table[TISSUE_INDEX[tissue]] = CLASSES.index(kind)
    return table


def class_weights(device: torch.device) -> Tensor:
    """Of :data:`CLASSES` in a cross-entropy: organs count three times as much as other structures."""
    weight = torch.ones(len(CLASSES), device=device)
    weight[: len(ORGANS)] = 3.0
    return weight


class PatientPool(Described):
    """Tissues and labels of many patients, as ``(N, Z, H, W)`` uint8 with H towards the back and W to the left.

    Args:
        files: of :func:`anatomy.write_patients`.
        device: that holds them: 10 MB a patient.
    """

    def __init__(self, files: Sequence[str | Path], device: torch.device | str = "cpu") -> None:
        self.files = list(files)
        first = _read_patient(files[0])
        self.tissue, self.label = (np.empty((len(files), *each.shape), np.uint8) for each in first)
        with ThreadPoolExecutor(8) as pool:  # most of the time goes into decompression, which threads share
            extents = list(pool.map(self._take, range(len(files)), files))
        organs, box = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*extents))
        # where along z organs are, and where the body lies in plane at their height, in mm from the volume's middle
        self.organs, self.box = organs, box
        self.tissue, self.label = (torch.from_numpy(each).to(device) for each in (self.tissue, self.label))

    def _take(self, place: int, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
        """Reads a patient into its place; where its organs lie along z, and its body back-front and left-right."""
        tissue, label = _read_patient(path)
        self.tissue[place], self.label[place] = tissue, label
        organs = ((label > 0) & (label <= len(ORGANS))).any((1, 2))
        body = ~np.isin(tissue[organs], [TISSUE_INDEX["air"], TISSUE_INDEX["table"]])
        rows, columns = body.any((0, 2)), body.any((0, 1))
        box = np.stack([_extent(rows, SPACING[1]), _extent(columns, SPACING[0])])
        return _extent(organs, SPACING[2]), box

    def described(self) -> dict[str, Any]:
        """Which patients they are, by what their files hold, wherever these lie."""
        content = hashlib.sha256("".join(map(sha256_of, self.files)).encode()).hexdigest()
        return {"patients": len(self), "content": content}

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
        tissue = self.tissue[patient, places[0], places[1], places[2]].long().masked_fill(outside, TISSUE_INDEX["air"])
        label = self.label[patient, places[0], places[1], places[2]].long().masked_fill(outside, 0)
        return tissue, label


def _read_patient(path: str | Path) -> list[np.ndarray]:
    with np.load(path) as content:
        return [np.ascontiguousarray(content[name][::-1, ::-1].transpose(2, 1, 0)) for name in ("tissue", "label")]


def _extent(present: np.ndarray, step: float) -> np.ndarray:
    """First and last True, in mm from the middle: ``(2,)`` float32."""
    found = np.flatnonzero(present)[[0, -1]]
    return ((found - (len(present) - 1) / 2) * step).astype(np.float32)


class Positions(NamedTuple):
    """Where the pixels of clips lie in their patients, in mm from the middle of each.

    Attributes:
        patient: ``(V,)``.
        step: from slice to slice in mm, ``(V,)``.
        z, y, x: ``(V, T, S, S)``.
    """

    patient: Tensor
    step: Tensor
    z: Tensor
    y: Tensor
    x: Tensor


class EpochBatches:
    """Batches that are drawn by epoch and index, ``length`` in an epoch."""

    length: int
    epoch = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(self.length):
            yield self.batch(index)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the present epoch."""
        raise NotImplementedError


class AnatomyClips(EpochBatches, Described):
    """Batches of clips of painted patients, deterministic by seed, epoch and index.

    Args:
        pool: the patients.
        stages: the curriculum, as :class:`.synthetic_clips.SyntheticClips` takes it: dictionaries of ``epochs``,
            ``clips``, ``frames`` and ``image_size``; the last one stays after its end. With ``followed``, objects are
            given for so many of the clips alone, or for none: the others are named only, at a third of the cost. With
            ``context`` each frame lies between its neighbours, in three channels.
        organs_per_clip: organs followed in a clip; fewer than there are are drawn at random, those in sight more often.
        extra_objects: structures followed beside the organs.
        spacing: smallest and largest distance of a clip's slices in mm.
        breathing: share of the clips whose slices are displaced against one another, and by how many mm (standard
            deviation): a mask that is copied from slice to slice is wrong there.
        tilt: standard deviations of the slices' slopes along back-front and right-left. A tilted slice meets kidneys
            and liver at heights that no straight one has together.
        slide: standard deviation in mm of how much higher the front half of a body is cut than its back half: liver and
            bowel lie at all heights before the kidneys, as they do in bodies.
        beyond: how far below the lowest organ and above the highest one clips may lie, as shares of the organs'
            height.
        anywhere: share of the clips that may lie anywhere in the trunk, from the thighs to the shoulders, instead.
        length: batches in an epoch.
        seed: of everything drawn.

    Iterating gives ``image`` ``(clips, frames, 1 or 3, S, S)`` in [0, 1], ``mask`` ``(followed, organs_per_clip +
    extra_objects, frames, S, S)`` bool, the organs first, ``organ`` ``(followed, organs_per_clip)``, which organs they
    are from 0, and ``classes`` ``(clips, frames, S, S)``, indices into :data:`CLASSES`.
    """

    def __init__(
        self,
        pool: PatientPool,
        stages: Sequence[Mapping[str, int]],
        *,
        organs_per_clip: int = len(ORGANS),
        extra_objects: int = 2,
        spacing: Sequence[float] = (1.2, 10.0),
        beyond: Sequence[float] = (0.12, 0.12),
        breathing: Sequence[float] = (0.0, 0.0),
        tilt: Sequence[float] = (0.05, 0.05),
        slide: float = 0.0,
        anywhere: float = 0.0,
        length: int = 100,
        seed: int = 0,
    ) -> None:
        self.pool, self.stages = pool, list(stages)
        self.organs_per_clip, self.extra_objects = organs_per_clip, extra_objects
        self.spacing, self.beyond, self.breathing = tuple(spacing), tuple(beyond), tuple(breathing)
        self.tilt = torch.tensor(tilt, device=pool.tissue.device)
        self.slide, self.anywhere, self.length, self.seed = slide, anywhere, length, seed
        self.class_table = _class_table().to(pool.tissue.device)

    def described(self) -> dict[str, Any]:
        """All that a batch depends on besides its place: not how many there are."""
        return {name: value for name, value in given(self).items() if name != "length"}

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the present epoch."""
        seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        draw, stage = Draw(int(seed), self.pool.tissue.device), stage_of(self.stages, self.epoch)
        tissue, label = self._slices(draw, stage)
        image = render(tissue, label, draw)
        if stage.get("context", False):
            tissue, label, image = tissue[:, 1:-1], label[:, 1:-1], between_neighbours(image)[:, 1:-1]
        classes = torch.where(label > 0, label - 1, self.class_table[tissue[:, :, 0]])
        label = label[: stage.get("followed", len(label))]
        organ = self._organs(label, draw)
        organ_masks = label[:, None] == (organ + 1)[..., None, None, None]
        mask = torch.cat([organ_masks, self._others(label, draw)], 1)
        return {"image": image, "mask": mask, "organ": organ, "classes": classes}

    def _slices(self, draw: Draw, stage: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """Tissues ``(V, T, samples, S, S)``, the first sample the slice's middle, and labels ``(V, T, S, S)``."""
        return self._sampled(self._positions(draw, stage), draw)

    def _positions(self, draw: Draw, stage: Mapping[str, int]) -> Positions:
        """Where the pixels of a batch of clips lie in their patients."""
        device, count, size = draw.device, stage["clips"], stage["image_size"]
        frames = stage["frames"] + 2 * stage.get("context", False)
        patient = draw.integer(len(self.pool), count)
        step = torch.exp(draw.uniform(*(math.log(limit) for limit in self.spacing), count))
        low, high = self.pool.organs[patient].unbind(1)
        centre = low + (high - low) * draw.uniform(-self.beyond[0], 1 + self.beyond[1], count)
        if self.anywhere > 0:
            height = self.pool.tissue.shape[1] * SPACING[2]
            centre = torch.where(draw.chance(self.anywhere, count), draw.uniform(-0.5, 0.5, count) * height, centre)
        direction = torch.where(draw.chance(0.5, count), 1.0, -1.0)
        along = (torch.arange(frames, device=device) - draw.integer(frames, count)[:, None]) * (direction * step)[
            :, None
        ]
        z = (centre[:, None] + along)[..., None, None]

        y, x = self._plane(patient, size, draw)
        tilt = draw.normal(1.0, count, 2) * self.tilt
        y, x = y[:, None], x[:, None]
        if self.breathing[0] > 0:
            moved = draw.chance(self.breathing[0], count).view(-1, 1, 1, 1, 1)
            moved = moved * draw.normal(self.breathing[1], count, frames, 2, 1, 1)
            y, x = y + moved[:, :, 0], x + moved[:, :, 1]
        z = z + tilt[:, 0].view(-1, 1, 1, 1) * y + tilt[:, 1].view(-1, 1, 1, 1) * x
        if self.slide > 0:
            back_front = self.pool.box[patient][:, 0]
            middle, extent = back_front.mean(1), back_front[:, 1] - back_front[:, 0]
            depth = (y - middle.view(-1, 1, 1, 1)) / (0.12 * extent.view(-1, 1, 1, 1))
            z = z + 0.5 * draw.normal(self.slide, count).view(-1, 1, 1, 1) * torch.tanh(depth)
        # two smooth fields, of which the clip's slices see more and more of the second
        share = ((z.mean((2, 3), keepdim=True) - centre.view(-1, 1, 1, 1)) / 90 + 0.5).clamp(0, 1)
        for knots, spread in ((5, 7.0), (12, 2.2)):
            field = draw.normal(spread, 2 * count, 3, knots, knots)
            field = F.interpolate(field, (size, size), mode="bicubic", align_corners=True).view(count, 2, 3, size, size)
            field = field * draw.uniform(0, 1, count).view(-1, 1, 1, 1, 1)
            bent = [torch.lerp(field[:, 0, None, axis], field[:, 1, None, axis], share) for axis in range(3)]
            z, y, x = z + 0.7 * bent[0], y + bent[1], x + bent[2]
        return Positions(patient, step, z, y, x)

    def _sampled(self, positions: Positions, draw: Draw, samples: int = 4) -> tuple[Tensor, Tensor]:
        """Tissues and labels at positions; see :meth:`_slices`.

        The other samples lie off the middle, across the slice's thickness and within the voxel: their mean grey has
        the partial volume of thick slices.
        """
        patient, step, z, y, x = positions
        count, device = len(patient), draw.device
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

    def _plane(self, patient: Tensor, size: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Positions ``(V, S, S)`` in mm of the pixels: a field of view about the body, turned, stretched and cut."""
        count, device = len(patient), draw.device
        box = self.pool.box[patient]  # (V, 2, 2): back-front and left-right, from and to
        middle, extent = box.mean(2), box[:, :, 1] - box[:, :, 0]
        # the body fills the width in most scans; some show as much air as body, some cut its sides
        width = extent[:, 1] * torch.where(
            draw.chance(0.6, count), draw.uniform(0.98, 1.25, count), draw.uniform(0.82, 2.1, count)
        )
        square = torch.maximum(width, extent[:, 0] * 1.02)
        tight = torch.maximum(extent[:, 0] * draw.uniform(0.95, 1.25, count), 0.55 * width)
        kind = draw.uniform(0, 1, count)
        height = torch.where(kind < 0.6, square, torch.where(kind < 0.9, tight, width * draw.uniform(0.75, 1.0, count)))
        middle = middle + draw.normal(0.03, count, 2) * extent
        line = (torch.arange(size, device=device) + 0.5) / size - 0.5
        v = line.view(1, -1, 1) * height.view(-1, 1, 1)
        u = line.view(1, 1, -1) * width.view(-1, 1, 1)
        angle = torch.where(draw.chance(0.08, count), draw.normal(0.35, count), draw.normal(0.07, count)).view(-1, 1, 1)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        return (
            cosine * v + sine * u + middle[:, 0].view(-1, 1, 1),
            cosine * u - sine * v + middle[:, 1].view(-1, 1, 1),
        )

    def _organs(self, label: Tensor, draw: Draw) -> Tensor:
        """Which organs are followed in each clip, ``(V, organs_per_clip)``, from 0."""
        every = torch.arange(len(ORGANS), device=label.device)
        if self.organs_per_clip == len(ORGANS):
            return every.expand(len(label), -1)
        seen = _seen(label, every + 1) > 0
        return torch.multinomial(seen.float() + 0.3, self.organs_per_clip, generator=draw.generator)

    def _others(self, label: Tensor, draw: Draw) -> Tensor:
        """Masks ``(V, extra_objects, T, S, S)`` of structures that are no organs of the prior's."""
        names = ("gallbladder", "stomach", "aorta", "vena cava", "pancreas", "spine", "heart", "collection")
        others = torch.tensor([LABEL_INDEX[name] for name in names], device=label.device)
        weight = (_seen(label, others) > 0.001).float() + 1e-4
        chosen = torch.multinomial(weight, self.extra_objects, generator=draw.generator)
        return label[:, None] == others[chosen][..., None, None, None]


def _seen(label: Tensor, values: Tensor) -> Tensor:
    """The largest share of a slice that each value takes in each clip, ``(V, values)``."""
    return (label[..., None, ::2, ::2] == values.view(-1, 1, 1)).flatten(3).float().mean(3).amax(1)
