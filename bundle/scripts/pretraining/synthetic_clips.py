"""Procedurally generated, domain-randomised clips: the pretraining data of ``sam2_nano``. They contain no anatomy.

A clip is a few parallel slices of a random volume together with the masks of some of its objects. The geometry is an
arg-max of smooth random fields, overlaid in most clips with warped ellipsoids, half of them inside a body outline;
every label draws its own mean, noise and texture; the image is then blurred, shaded, gamma-mapped and inverted at
random. Learning to follow objects through such clips teaches SAM2's blocks to work together on slices of any contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import SettingError


class SyntheticClips(Dataset):
    """Batches of random clips, deterministic by seed, epoch and index.

    Args:
        stages: the curriculum, in order; each a dictionary of ``epochs`` it lasts, ``image_size`` (side of a slice in
            pixels), ``frames`` in a clip (the first is the one that memories and prompts are made on), ``clips`` in
            a batch and, optionally, ``prompt_share`` of objects that are prompted on the first frame (default 0.4).
        objects: objects followed in each clip; objects vanish from, and enter, the later frames.
        length: batches in an epoch.
        seed: of everything drawn.

    Returns of ``dataset[i]``: ``image`` ``(clips, frames, 1, S, S)`` in [0, 1], ``mask`` ``(clips, objects, frames,
    S, S)`` bool and the stage's ``prompt_share``.
    """

    def __init__(
        self, stages: Sequence[Mapping[str, int]], *, objects: int = 4, length: int = 100, seed: int = 0
    ) -> None:
        needed, known = {"epochs", "image_size", "frames", "clips"}, {"prompt_share"}
        if not stages or any(not needed <= set(stage) <= needed | known for stage in stages):
            raise SettingError(f"Each stage needs {sorted(needed)} and may have {sorted(known)}, got {list(stages)}.")
        self.stages, self.objects, self.length, self.seed = list(stages), objects, length, seed
        self.epoch = 1

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage["epochs"] for stage in self.stages)

    def set_epoch(self, epoch: int) -> None:
        """Draws new clips in each epoch (counted from 1), and the same ones again when an interrupted training
        resumes.
        """
        self.epoch = epoch

    def stage(self) -> Mapping[str, int]:
        """The stage of the present epoch; the last one stays after its end."""
        return stage_of(self.stages, self.epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        stage = self.stage()
        seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        clips = [self._clip(stage["image_size"], stage["frames"], generator) for _ in range(stage["clips"])]
        batch = {key: torch.stack([clip[key] for clip in clips]) for key in ("image", "mask")}
        return {**batch, "prompt_share": torch.tensor(stage.get("prompt_share", 0.4))}

    def _clip(self, size: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
        while True:  # a draw without any usable object is rare; draw again
            labels = random_labels(size, frames, generator)
            masks = random_objects(labels, self.objects, generator)
            if masks is not None:
                return {"image": render(labels, generator), "mask": masks}


def stage_of(stages: Sequence[Mapping[str, int]], epoch: int) -> Mapping[str, int]:
    """The stage of a curriculum that an epoch, counted from 1, belongs to; the last one stays after its end."""
    for stage in stages:
        if epoch <= stage["epochs"]:
            return stage
        epoch -= stage["epochs"]
    return stages[-1]


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    """An integer in low...high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def smooth_field(
    channels: int, shape: tuple[int, int, int], grid: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """Unit normal noise on a coarse ``grid``, interpolated to ``shape``: ``(channels, *shape)``."""
    coarse = torch.randn(1, channels, *grid, generator=generator)
    # slices first: a clip has few of them, so the in-plane interpolation that follows stays cheap
    coarse = F.interpolate(coarse, (shape[0], *grid[1:]), mode="trilinear", align_corners=True)[0]
    return F.interpolate(coarse.transpose(0, 1), shape[1:], mode="bicubic", align_corners=True).transpose(0, 1)


def random_labels(size: int, frames: int, generator: torch.Generator) -> Tensor:
    """A random label map ``(frames, size, size)``, long; slices are a few millimetres to centimetres apart in
    spirit.
    """
    shape = (frames, size, size)
    depth = _uniform(generator, 0.02, 0.25).item() * (frames - 1)  # extent of the clip, as a share of the slice's width
    # coarse cells along z: the thicker the clip, the more the slices differ
    cells = _integer(generator, 3, 9)
    grid = (max(2, round(depth * cells) + 1), cells, cells)
    labels = smooth_field(_integer(generator, 4, 10), shape, grid, generator).argmax(0)

    warp = smooth_field(2, shape, (2, 5, 5), generator) * _uniform(generator, 0.0, 0.06).item()
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    y, x = y + warp[0], x + warp[1]
    z = torch.linspace(-depth, depth, frames).view(-1, 1, 1) if frames > 1 else torch.zeros(1, 1, 1)
    next_label = int(labels.max()) + 1
    if torch.rand((), generator=generator) < 0.8:
        for _ in range(_integer(generator, 2, 9)):
            centre = _uniform(generator, -0.75, 0.75, 2)
            # a centre off the clip's middle and a finite depth make objects vanish before or after their extent
            centre_z = _uniform(generator, -1.0, 1.0).item() * max(depth, 0.05)
            radii = torch.exp(_uniform(generator, float(np.log(0.05)), float(np.log(0.45)), 2))
            radius_z = _uniform(generator, 0.35, 2.0).item() * float(radii.mean())
            angle = _uniform(generator, 0.0, float(np.pi)).item()
            dy, dx = y - centre[0], x - centre[1]
            u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
            bend = _uniform(generator, -1.5, 1.5).item()  # kidney- and banana-shaped rather than convex
            v = v + bend * u.square() / float(radii.max())
            inside = (u / radii[0]).square() + (v / radii[1]).square() + ((z - centre_z) / radius_z).square() < 1
            labels[inside] = next_label
            next_label += 1
    if torch.rand((), generator=generator) < 0.5:
        half = _uniform(generator, 0.65, 1.0, 2)
        labels[(y / half[0]).square() + (x / half[1]).square() > 1] = next_label
    return labels


def random_objects(labels: Tensor, count: int, generator: torch.Generator) -> Tensor | None:
    """Masks ``(count, frames, S, S)`` of random connected components, most of them seen in the first frame.

    Returns None where no component has a usable size.
    """
    frames, size, _ = labels.shape
    coarse = labels[:, ::2, ::2].numpy()  # connectivity at half resolution: four times faster, as good
    candidates: list[tuple[int, np.ndarray]] = []
    for label in np.unique(coarse):
        components, found = ndimage.label(coarse == label)
        if not found:
            continue
        areas = ndimage.sum_labels(np.ones_like(components), components, range(1, found + 1))
        for component in np.argsort(areas)[::-1][:2] + 1:
            mask = components == component
            area = mask.reshape(frames, -1).mean(1)
            if 0.002 < area.max() < 0.45:
                candidates.append((int(label), mask))
    if not candidates:
        return None
    first = [index for index, (_, mask) in enumerate(candidates) if mask[0].mean() > 0.002]
    order = []
    for _ in range(count):
        later = torch.rand((), generator=generator) < 0.12 or not first
        pool = list(range(len(candidates))) if later else first
        order.append(pool[_integer(generator, 0, len(pool) - 1)])
    masks = []
    for index in order:
        label, mask = candidates[index]
        near = torch.from_numpy(ndimage.binary_dilation(mask, iterations=1, structure=np.ones((1, 3, 3))))
        near = near.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :size, :size]
        masks.append((labels == label) & near)
    return torch.stack(masks)


def render(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random image ``(frames, 1, S, S)`` in [0, 1] of a label map."""
    frames, size, _ = labels.shape
    count = int(labels.max()) + 1
    means = _uniform(generator, 0.0, 1.0, count)
    if torch.rand((), generator=generator) < 0.5:
        means[-1] = means[-1] * 0.1  # often air outside the last label drawn
    if torch.rand((), generator=generator) < 0.5:  # low contrast between many labels, as soft tissue in CT has
        means = 0.5 + (means - 0.5) * _uniform(generator, 0.25, 0.8).item()
    texture = _uniform(generator, 0.0, 0.12, count)
    image = means[labels]
    for cells in (8, 24, 64):
        cells = min(cells, size)
        noise = smooth_field(1, (frames, size, size), (2, cells, cells), generator)[0]
        weight = texture[torch.randperm(count, generator=generator)] * (0.6 if cells < 64 else 0.4)
        image = image + noise * weight[labels]
    blur = _uniform(generator, 0.0, 1.2).item() * size / 128
    if blur > 0.3:
        taps = torch.arange(-int(3 * blur) - 1, int(3 * blur) + 2, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (taps / blur).square())
        kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
        image = F.pad(image[:, None], (len(taps) // 2,) * 4, mode="replicate")
        image = F.conv2d(F.conv2d(image, kernel), kernel.transpose(2, 3))[:, 0]
    if torch.rand((), generator=generator) < 0.5:
        bias = smooth_field(1, (frames, size, size), (2, 3, 3), generator)[0]
        image = image * torch.exp(_uniform(generator, 0.0, 0.3).item() * bias)
    image = image + torch.randn(image.shape, generator=generator) * _uniform(generator, 0.0, 0.08).item()
    low, high = torch.quantile(image.flatten()[::7], torch.tensor([0.005, 0.995]))
    image = ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
    image = image ** torch.exp(_uniform(generator, -0.6, 0.6)).item()
    if torch.rand((), generator=generator) < 0.3:
        image = 1 - image
    return image[:, None]
