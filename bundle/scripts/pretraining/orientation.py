"""What the orientation head learns from: painted patients, mirrored at random, and what is no axial abdomen.

Of the latter there are patients cut in other planes, random shapes, and, in clips of their own, bodies that are none of
an abdomen (:mod:`.other_bodies`): of these layers in shells the painted patients alone would say that they are one.

The backbone is frozen, so slices are encoded once, into files that an interrupted run finds again; the head itself is
fitted in seconds. Where a volume is called mirrored follows from volumes of other painted patients.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..descriptions import Described, describe
from ..errors import SettingError, UnusableFileError
from ..networks.orientation import (
    HEIGHT_UNIT,
    Evidence,
    OrientationHead,
    gather_evidence,
    mirrored_logits,
    save_head,
    to_mirror,
)
from ..networks.sam2_backbone import SAM2, between_neighbours
from ..weights import load_tensors, save_atomically
from .contrasts import Draw, render
from .other_bodies import BodyClips
from .patient_clips import AnatomyClips, Positions
from .synthetic_clips import SyntheticClips, stage_of

KINDS = ("axial", "turned", "shapes")  # painted patients as scans show them, cut in another plane, no patients at all

logger = logging.getLogger(__name__)


class OrientationClips(Described):
    """Batches of clips that are mirrored at random, deterministic by seed and index.

    Args:
        anatomy: clips of painted patients; those of its first stage are drawn.
        every: of so many batches the last two are none of an axial abdomen: one of painted patients cut in the coronal
            or sagittal plane, one of random shapes. 0 draws axial clips alone.
        length: how many batches there are.
    """

    def __init__(self, anatomy: AnatomyClips, *, every: int = 6, length: int = 100) -> None:
        if every and every < 3:
            raise SettingError(f"every must be 0, or 3 or more, got {every}.")
        self.anatomy, self.every, self.length = anatomy, every, length
        self.shapes = SyntheticClips(anatomy.stages, objects=1, length=length, seed=anatomy.seed)

    def described(self) -> dict[str, Any]:
        """All that a batch depends on besides its place: not how many there are."""
        return {"every": self.every, "anatomy": self.anatomy}

    def __len__(self) -> int:
        return self.length

    @torch.no_grad()
    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index``: V clips of T slices.

        Returns:
            ``image`` ``(V, T, 1, S, S)`` in [0, 1]; ``left_right`` and ``front_back`` ``(V,)``, whether these are
            exchanged; ``height`` ``(V, T)``, mm above the organs' middle; ``place`` ``(V, T)``, mm along the clip;
            ``axial`` ``(V,)``; ``abdomen`` ``(V, T)``, whether it is an axial slice between the lowest and the highest
            of the organs.
        """
        kind = KINDS[max(0, index % self.every - self.every + 3)] if self.every else KINDS[0]
        anatomy = self.anatomy
        seed = np.random.SeedSequence([anatomy.seed, 3, index]).generate_state(1)[0]
        draw = Draw(int(seed), anatomy.pool.tissue.device)
        positions = anatomy._positions(draw, stage_of(anatomy.stages, anatomy.epoch))
        low, high = anatomy.pool.organs[positions.patient].unbind(1)
        level = positions.z.mean((2, 3))
        inside = (level >= low[:, None]) & (level <= high[:, None])
        if kind == "shapes":
            image = self.shapes[index]["image"].to(level.device)
        else:
            if kind == "turned":
                positions = turned(positions, draw)
            image = render(*anatomy._sampled(positions, draw), draw)
        count = len(image)
        left_right, front_back = draw.chance(0.5, count), draw.chance(0.5, count)
        image = torch.where(left_right.view(-1, 1, 1, 1, 1), image.flip(4), image)
        image = torch.where(front_back.view(-1, 1, 1, 1, 1), image.flip(3), image)
        axial = torch.full((count,), kind == "axial", device=level.device)
        return {
            "image": image,
            **{"left_right": left_right, "front_back": front_back, "axial": axial},
            "height": level - ((low + high) / 2)[:, None],
            "place": level,
            "abdomen": inside & axial[:, None],
        }


def turned(positions: Positions, draw: Draw) -> Positions:
    """The same field of view through the same middle, cut in the coronal or the sagittal plane."""
    patient, step, z, y, x = positions
    coronal = draw.chance(0.5, len(patient)).view(-1, 1, 1, 1)
    through, rows = z - z.mean((1, 2, 3), keepdim=True), y - y.mean((2, 3), keepdim=True)
    height = z.mean((1, 2, 3), keepdim=True) - rows  # row by row from the top of the body downwards
    return Positions(patient, step, height, torch.where(coronal, through, x), torch.where(coronal, x, through))


def encode_clips(
    clips: OrientationClips | BodyClips, backbone: SAM2, head: OrientationHead, folder: str | Path
) -> dict[str, Tensor]:
    """Pooled image embeddings of all batches, from files where they are there.

    In every second batch slices are shown between their neighbours, in the others alone: a head serves both.

    Args:
        clips: what is shown.
        backbone: frozen, on the device of the clips.
        head: that pools.
        folder: of the files, one a batch.

    Returns:
        What :meth:`OrientationClips.batch` returns of all clips, but for images, in whose place are ``pooled`` and
        ``mirrored`` ``(V, T, C, grid, grid)``, of slices as they are and mirrored.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown_as = {"pooled": (), "mirrored": (-1,)}  # axes that are reversed
    identity = describe({"clips": clips, "weights": backbone.fingerprint(), "grid": head.grid, "shown": [*shown_as]})
    batches = []
    for index in range(len(clips)):
        path = folder / f"clips_{index:05d}.pt"
        content = _read_batch(path)
        if content.get("identity") != identity:
            batch = clips.batch(index)
            image = batch.pop("image")
            shown = image if index % 2 else between_neighbours(image)
            for name, axes in shown_as.items():
                with torch.no_grad():
                    pooled = head.pool(backbone.encode_image(shown.flip(axes).flatten(0, 1)).embedding)
                batch[name] = pooled.unflatten(0, image.shape[:2]).half()
            content = {"identity": identity, **{key: value.cpu() for key, value in batch.items()}}
            save_atomically(content, path)
            if index % 20 == 19:
                logger.info("Encoded %d of %d batches into '%s'.", index + 1, len(clips), folder)
        batches.append(content)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0] if key != "identity"}


def _read_batch(path: Path) -> dict[str, Any]:
    """The content of a file, or nothing where it must be made."""
    try:
        return load_tensors(path, "batch of encoded clips", remedy="") if path.is_file() else {}
    except UnusableFileError:
        return {}


def fit_head(
    head: OrientationHead,
    rows: Mapping[str, Tensor],
    *,
    iterations: int = 800,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.3,
    seed: int = 0,
) -> float:
    """Trains a head in place; returns the mean loss of the last tenth.

    Args:
        head: with weights of its initialisation.
        rows: of :func:`encode_clips`.
        iterations, batch_size, learning_rate, weight_decay: of AdamW, whose rate falls to 0 along a cosine.
        seed: of the batches and the dropout.
    """
    frames = rows["abdomen"].shape[1]
    pooled, mirrored = (rows[name].flatten(0, 1).float() for name in ("pooled", "mirrored"))
    target = torch.stack([each_slice(rows, name).float() for name in ("left_right", "front_back")], 1)
    height, abdomen = rows["height"].flatten() / HEIGHT_UNIT, rows["abdomen"].flatten().float()
    axial = rows["axial"].repeat_interleave(frames).float()
    head.fit_statistics(pooled)
    optimizer = torch.optim.AdamW(head.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    generator, losses = torch.Generator().manual_seed(seed), []
    torch.manual_seed(seed)
    head.train()
    for _ in range(iterations):
        chosen = torch.randint(len(pooled), (batch_size,), generator=generator)
        output, organs, painted = head(pooled[chosen]), abdomen[chosen], axial[chosen]
        exchanged = torch.stack([mirrored_logits(output, head(mirrored[chosen])), output[:, 1]], 1)
        sides = F.binary_cross_entropy_with_logits(exchanged, target[chosen], reduction="none").sum(1)
        error = F.smooth_l1_loss(output[:, 2], height[chosen], reduction="none")
        loss = (sides * organs).sum() / organs.sum().clamp_min(1) + (error * painted).sum() / painted.sum().clamp_min(1)
        loss = loss + F.binary_cross_entropy_with_logits(output[:, 3], organs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    head.eval()
    last = losses[-max(1, iterations // 10) :]
    return sum(last) / len(last)


def each_slice(rows: Mapping[str, Tensor], name: str) -> Tensor:
    """A value of each clip for each of its slices, in the order of the flattened slices."""
    return rows[name].repeat_interleave(rows["abdomen"].shape[1])


@torch.no_grad()
def painted_evidence(head: OrientationHead, rows: Mapping[str, Tensor]) -> list[tuple[Evidence, bool, bool]]:
    """Of each axial clip, taken as a volume, the evidence, and whether left and right, front and back are exchanged."""
    found = []
    for clip in range(len(rows["axial"])):
        if rows["axial"][clip] and rows["abdomen"][clip].any():
            outputs = head(rows["pooled"][clip].float())
            mirrored = head(rows["mirrored"][clip][to_mirror(outputs)].float())
            evidence = gather_evidence(outputs, rows["place"][clip], mirrored)
            found.append((evidence, bool(rows["left_right"][clip]), bool(rows["front_back"][clip])))
    return found


def find_limits(
    found: Sequence[tuple[Evidence, bool, bool]],
    extent: float = 40.0,
    *,
    false_alarms: float = 0.01,
    found_share: float = 0.95,
) -> dict[str, Any]:
    """From which evidence on a volume is called exchanged, and up to which as stated.

    The limit is the strictest that finds ``found_share`` of the exchanged volumes, but none that calls more than
    ``false_alarms`` of the others exchanged. Exchanging the sides of a volume exchanges its evidence's sign, but for
    chance, so both kinds stand for both limits.

    Args:
        found: of :func:`painted_evidence`, of patients that the head was not trained on.
        extent: mm along the body that must be seen.
        false_alarms: share of volumes that may be called exchanged, and no abdomen, though they are not.
        found_share: share of exchanged volumes to be found.

    Returns:
        what :func:`scripts.inference.orientation.verdicts` takes.

    Raises:
        SettingError: no volume shows enough of the body.
    """
    found = [each for each in found if each[0].extent >= extent]
    if not found:
        raise SettingError(f"No calibration volume shows {extent} mm of organs. Draw more, or more slices in each.")
    against = {
        "left_right": [-each.left_right if mirrored else each.left_right for each, mirrored, _ in found],
        "front_back": [-each.front_back if mirrored else each.front_back for each, _, mirrored in found],
        "upside_down": [each.upside_down for each, _, _ in found],
    }
    limits: dict[str, Any] = {"extent": extent}
    for side, values in against.items():
        above = max(np.quantile(values, 1 - false_alarms), np.quantile(np.negative(values), 1 - found_share))
        limits[side] = [round(-float(above), 3), round(float(above), 3)]
    limits["abdomen"] = round(float(np.quantile([each.abdomen for each, _, _ in found], false_alarms)), 3)
    return limits


def pretrain_orientation(
    head: OrientationHead,
    backbone: SAM2,
    *,
    training: OrientationClips,
    bodies: BodyClips,
    calibration: OrientationClips,
    cache_dir: str | Path,
    path: str | Path,
    extent: float = 40.0,
    false_alarms: float = 0.01,
    **fitting: Any,
) -> None:
    """Encodes, fits, calibrates and writes a head.

    Args:
        head: with weights of its initialisation.
        backbone: frozen.
        training: what the head learns from.
        bodies: what else it learns from, none of them an abdomen.
        calibration: clips of other patients, each as long as a volume.
        cache_dir: of the encoded clips, by which an interrupted run goes on.
        path: of the head's file.
        extent, false_alarms: see :func:`find_limits`.
        fitting: see :func:`fit_head`.
    """
    cache_dir = Path(cache_dir)
    parts = [
        encode_clips(clips, backbone, head, cache_dir / name)
        for name, clips in (("training", training), ("bodies", bodies))
    ]
    loss = fit_head(head, {key: torch.cat([part[key] for part in parts]) for key in parts[0]}, **fitting)
    rows = encode_clips(calibration, backbone, head, cache_dir / "calibration")
    found = painted_evidence(head, rows)
    limits = find_limits(found, extent, false_alarms=false_alarms)
    clips = {"clips": training, "bodies": bodies, "calibration": calibration}
    about = {"training": describe({**clips, "volumes": len(found), **fitting})}
    save_head(head, path, backbone=backbone, about={"limits": limits, **about})
    logger.info("Loss %.3f; limits by %d painted volumes: %s. Wrote '%s'.", loss, len(found), limits, path)
