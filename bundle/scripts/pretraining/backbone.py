"""Pretraining of ``sam2_nano``: SAM2's own task, on synthetic clips, in the situations DiffuSAM puts it in.

Every object of a clip is decoded on each frame, and each time the mask decoder has something else to go by:

* first frame: either the memory of the object's mask on that very frame, or clicks, a box or a mask as a prompt;
* later frames: the memories of earlier frames, made of true or of predicted masks, alone (SAM2's tracking: the frame
  that was shown, and those decoded last) or beside the frame's own memory (Equation 3 of the paper).

The frame's own memory is what a diffusion prior will supply, imperfectly: so it is made of a warped, shifted or
softened mask, mixed with another's and given noise, while the true mask stays the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from ..descriptions import Described, given
from ..errors import SettingError
from ..networks.logits import MASK_LOGIT, mask_to_logits, resize_logits
from ..networks.sam2_backbone import SAM2
from ..networks.sam2_types import ImageFeatures, MaskPredictions, Memory
from ..weights import on_cpu, save_atomically

OwnMemories = Callable[[int], Tensor]  # of a frame, memories (V * K, M, h, w) of a prior, NaN where it has none


@dataclass(frozen=True)
class _Asked:
    """What the mask decoder is given for a frame: the conditioned embedding, and a prompt if there is one."""

    conditioned: Tensor
    points: tuple[Tensor, Tensor] | None = None
    mask_prompt: Tensor | None = None


class ClipModel(Described, nn.Module):
    """SAM2 with its pretraining losses: ``forward`` takes a batch of clips and returns one scalar for each loss.

    Args:
        backbone: the trainable SAM2.
        memory_noise: upper bound of the noise given to own memories, in units of their standard deviation.
        warp: upper bound of the displacement of own memories' masks, as a share of the image's side.
        own_share: of later frames that are decoded with their own memory beside the neighbours', as in Equation 3; the
            others are tracked, as SAM2 does.
        far_share: of the tracked frames that see the first one alone, however far it is: copying does not help there.
        damage: of own memories' masks of which pieces are missing, or that hold pieces of another object, or nothing:
            what the neighbours' memories and the slice itself must mend.
        mask_weight, dice_weight, iou_weight, object_weight: of the four losses (binary cross-entropy, soft Dice, L1 of
            the IoU estimate, cross-entropy of the object score).
    """

    def __init__(
        self,
        backbone: SAM2,
        *,
        memory_noise: float = 1.0,
        warp: float = 0.08,
        own_share: float = 0.5,
        far_share: float = 0.0,
        damage: float = 0.0,
        mask_weight: float = 5.0,
        dice_weight: float = 1.0,
        iou_weight: float = 0.5,
        object_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.memory_noise, self.warp = memory_noise, warp
        self.own_share, self.far_share, self.damage = own_share, far_share, damage
        self.mask_weight, self.dice_weight = mask_weight, dice_weight
        self.iou_weight, self.object_weight = iou_weight, object_weight

    def described(self) -> dict[str, Any]:
        """What it was built with; of the backbone its name, since the rest of it is what is trained."""
        return {**given(self), "backbone": self.backbone.name}

    def forward(self, image: Tensor, mask: Tensor, prompt_share: float | Tensor = 0.4) -> dict[str, Tensor]:
        """Losses of a batch of clips.

        Args:
            image: ``(V, T, 1, S, S)`` in [0, 1].
            mask: ``(V, K, T, S, S)`` bool.
            prompt_share: of objects that the first frame is prompted for; the others have their own memory.

        Returns:
            ``loss`` (the weighted sum) and its parts ``mask``, ``dice``, ``iou``, ``object``, each a scalar, and
            ``dice_frame_0`` ... without gradient.
        """
        return self.follow(self.encode(image), mask, prompt_share)

    def follow(
        self, encoded: ImageFeatures, mask: Tensor, prompt_share: float | Tensor, own: OwnMemories | None = None
    ) -> dict[str, Tensor]:
        """Losses of the objects of clips that are encoded already, frames running fastest; see :meth:`forward`.

        Args:
            encoded: of :meth:`encode`.
            mask, prompt_share: see :meth:`forward`.
            own: a prior's memories of each frame, for those objects that have one.
        """
        clips, objects, frames = mask.shape[:3]
        truth = mask.flatten(0, 1).float().transpose(0, 1)[:, :, None]  # (T, V * K, 1, S, S)
        rows = torch.arange(clips, device=mask.device).repeat_interleave(objects) * frames

        losses, memories = [], []
        for frame in range(frames):
            features, target = encoded[rows + frame], truth[frame]
            predicted = None if own is None else own(frame)
            if frame == 0:
                asked = self._first_frame(features, target, prompt_share, predicted)
            else:
                asked = _Asked(self._later_frame(features, target, memories, predicted))
            outputs = self.backbone.predict_all_masks(
                asked.conditioned, features, points=asked.points, mask_prompt=asked.mask_prompt
            )
            losses.append(self._losses(outputs, target))
            if frame + 1 < frames:
                memories.append(self._past_memory(features, target, outputs))
        summary = {key: torch.stack([part[key] for part in losses]).mean() for key in ("mask", "dice", "iou", "object")}
        summary["loss"] = (
            self.mask_weight * summary["mask"]
            + self.dice_weight * summary["dice"]
            + self.iou_weight * summary["iou"]
            + self.object_weight * summary["object"]
        )
        summary.update({f"dice_frame_{frame}": 1 - part["hard_dice_loss"] for frame, part in enumerate(losses)})
        return summary

    def encode(self, image: Tensor) -> ImageFeatures:
        """Features of all slices of clips ``(V, T, 1, S, S)``, frames running fastest."""
        if image.shape[-1] != self.backbone.image_size:  # the curriculum has reached a stage of another size
            self.backbone.resize(image.shape[-1])
        return self.backbone.encode_image(image.flatten(0, 1))

    def _first_frame(
        self, features: ImageFeatures, target: Tensor, prompt_share: float | Tensor, predicted: Tensor | None
    ) -> _Asked:
        """Some of the objects from a prompt, the others from their own memory."""
        from_memory = torch.rand(len(target), 1, 1, 1, device=target.device) >= prompt_share
        with_memory = self.backbone.condition(features, [Memory(self._own_memory(features, target, predicted))])
        conditioned = torch.where(from_memory, with_memory, self.backbone.condition(features))
        points, labels = random_prompts(target)
        labels = torch.where(from_memory.flatten(1), -1, labels)
        mask_prompt = None
        if torch.rand(()) < 0.15:
            # a mask prompt goes to the whole batch or to none: SAM2 embeds the absence of masks, not of one mask
            mask_prompt = mask_to_logits(self._imperfect(target))
            conditioned = self.backbone.condition(features)
        return _Asked(conditioned, (points, labels), mask_prompt)

    def _later_frame(
        self, features: ImageFeatures, target: Tensor, past: Sequence[Tensor], predicted: Tensor | None
    ) -> Tensor:
        own = torch.rand(()) < self.own_share
        memories = [Memory(self._own_memory(features, target, predicted))] if own else []
        # one neighbour in most walks; SAM2's tracking sees up to six
        reach = 1 + int(torch.randint(2 if own else 6, ()))
        kept = list(enumerate(past))[-reach:]
        if not own and kept[0][0] > 0 and torch.rand(()) < 0.5:
            kept = [(0, past[0]), *kept]  # the frame where the object was shown stays in sight
        if not own and self.far_share > 0 and torch.rand(()) < self.far_share:
            kept = [(0, past[0])]
        for index, memory in kept:
            # the frame where the object was shown is a conditioning memory when SAM2 tracks, a neighbour in Equation 3
            shown = not own and index == 0 and (len(past) > reach or torch.rand(()) < 0.5)
            distance = 0 if shown else min(len(past) - index, self.backbone.max_distance)
            memories.append(Memory(memory, distance))
        return self.backbone.condition(features, memories)

    def _past_memory(self, features: ImageFeatures, target: Tensor, outputs: MaskPredictions) -> Tensor:
        """Memory for later frames: of some objects the true mask, of the others the predicted one."""
        score = outputs.object_score
        best = outputs.iou[:, 1:].argmax(1) + 1
        logits = outputs.mask_logits[torch.arange(len(best), device=best.device), best][:, None].detach().float()
        logits = torch.where(score.detach()[..., None, None] > 0, logits, -MASK_LOGIT)
        return self._some_given(features, target, logits, score.detach().float(), 0.3)

    def _some_given(
        self, features: ImageFeatures, target: Tensor, logits: Tensor, score: Tensor, share: float
    ) -> Tensor:
        """Memories of decoded masks and object scores, of a share of them those of the true masks."""
        given = torch.rand(len(target), 1, device=target.device) < share
        true_logits = mask_to_logits(target)
        logits = torch.where(given[..., None, None], true_logits, resize_logits(logits, target.shape[-1]))
        true_score = true_logits.flatten(1).amax(1, keepdim=True)
        return self.backbone.encode_memory(features, logits, torch.where(given, true_score, score))

    def _own_memory(self, features: ImageFeatures, target: Tensor, predicted: Tensor | None = None) -> Tensor:
        """The memory of this very frame, as a diffusion prior would give it: close, not exact; of those objects that
        have a ``predicted`` one (the others' are NaN), it is that in half of the cases.
        """
        memory = self.backbone.encode_memory(features, mask_to_logits(target)).float()
        batch = (len(target), 1, 1, 1)
        masks, damaged = self._imperfect(target), torch.zeros(batch, dtype=torch.bool, device=target.device)
        if self.damage > 0:
            damaged = torch.rand(batch, device=target.device) < self.damage
            masks = torch.where(damaged, self._damaged(masks), masks)
        imperfect = self.backbone.encode_memory(features, mask_to_logits(masks)).float()
        share = torch.rand(batch, device=target.device) * (torch.rand(batch, device=target.device) < 0.7)
        share = share.masked_fill(damaged, 1.0)
        memory = torch.lerp(memory, imperfect, share)
        sigma = self.memory_noise * torch.rand(batch, device=target.device).square()
        scale = memory.detach().std((0, 2, 3), keepdim=True)
        memory = memory + sigma * scale * torch.randn_like(memory)
        if predicted is None:
            return memory
        known = ~predicted[:, :1, :1, :1].isnan() & (torch.rand(batch, device=target.device) < 0.6)
        return torch.where(known, predicted.nan_to_num(0.0).to(memory.dtype), memory)

    def _imperfect(self, target: Tensor) -> Tensor:
        """Smoothly displaced and softened masks, ``(N, 1, S, S)`` in [0, 1]."""
        batch, _, size, _ = target.shape
        amount = self.warp * torch.rand(batch, 1, 1, 1, device=target.device)
        displacement = torch.randn(batch, 2, 5, 5, device=target.device) * amount
        displacement = F.interpolate(displacement, (size, size), mode="bilinear", align_corners=True)
        identity = F.affine_grid(torch.eye(2, 3, device=target.device)[None], (1, 1, size, size), align_corners=False)
        return F.grid_sample(target, identity + displacement.permute(0, 2, 3, 1), align_corners=False)

    def _damaged(self, masks: Tensor) -> Tensor:
        """Masks ``(N, 1, S, S)`` without some of their pieces and with some of their neighbour's in the batch, which is
        mostly another object of the same clip; a fifth of them are empty.
        """
        batch, _, size, _ = masks.shape
        field = torch.randn(batch, 2, 6, 6, device=masks.device)
        missing, added = F.interpolate(field, (size, size), mode="bicubic", align_corners=True).split(1, 1)
        limits = torch.rand(batch, 2, 1, 1, device=masks.device) * 2
        kept = masks * (missing < limits[:, :1] - 0.5)
        kept = torch.maximum(kept, masks.roll(1, 0) * (added > limits[:, 1:]))
        return kept * (torch.rand(batch, 1, 1, 1, device=masks.device) >= 0.2)

    def _losses(self, outputs: MaskPredictions, target: Tensor) -> dict[str, Tensor]:
        """SAM2's losses: the single-mask token and the best of the other three; masks only where there is an object."""
        logits = outputs.mask_logits
        size = 2 * logits.shape[-1]  # half the image's resolution: fine enough for soft targets, a quarter of the cost
        soft = F.interpolate(target, (size, size), mode="area")
        logits = resize_logits(logits, size)
        present = (target.flatten(1).amax(1) > 0).float()
        count = present.sum().clamp_min(1)
        # objects are small: without weight on their pixels, the empty mask is a minimum that training never leaves
        share = soft.mean((2, 3), keepdim=True).clamp(1e-3, 0.5)
        weight = 1 + soft * (((1 - share) / share).sqrt() - 1)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, soft.expand_as(logits), weight, reduction="none")
        cross_entropy = cross_entropy.mean((2, 3))
        probability = logits.sigmoid()
        overlap, total = (probability * soft).sum((2, 3)), probability.sum((2, 3)) + soft.sum((2, 3))
        dice = 1 - (2 * overlap + 1) / (total + 1)
        with torch.no_grad():
            hard, truth = logits > 0, soft > 0.5
            both, either = (hard & truth).sum((2, 3)), (hard | truth).sum((2, 3))
            true_iou = both / either.clamp_min(1)
            hard_dice = 2 * true_iou[:, 0] / (1 + true_iou[:, 0])
            combined = self.mask_weight * cross_entropy[:, 1:] + self.dice_weight * dice[:, 1:]
            best = combined.argmin(1, keepdim=True) + 1
        chosen = torch.cat([torch.zeros_like(best), best], 1)
        return {
            "mask": (cross_entropy.gather(1, chosen).mean(1) * present).sum() / count,
            "dice": (dice.gather(1, chosen).mean(1) * present).sum() / count,
            "iou": ((outputs.iou - true_iou).abs().mean(1) * present).sum() / count,
            "object": F.binary_cross_entropy_with_logits(outputs.object_score[:, 0], present),
            "hard_dice_loss": ((1 - hard_dice) * present).sum() / count,
        }


def random_prompts(target: Tensor) -> tuple[Tensor, Tensor]:
    """One click, two clicks or a box for each mask ``(N, 1, S, S)``: coordinates ``(N, 2, 2)`` and labels ``(N, 2)``.

    Labels are SAM2's: 1 inside, 0 outside, 2 and 3 corners, -1 padding. An absent object is clicked beside.
    """
    batch, _, size, _ = target.shape
    flat = target.flatten(1)
    empty = flat.amax(1, keepdim=True) == 0
    inside = torch.multinomial(flat + 1e-9, 2, replacement=True)  # two random pixels of each object
    clicks = torch.stack([inside % size, inside // size], -1).float()
    rows, columns = target.amax(3)[:, 0], target.amax(2)[:, 0]
    box = torch.stack(
        [
            torch.stack([columns.argmax(1), rows.argmax(1)], -1),
            size - 1 - torch.stack([columns.flip(1).argmax(1), rows.flip(1).argmax(1)], -1),
        ],
        1,
    ).float()
    box = box + torch.randn_like(box) * 0.01 * size
    kind = torch.randint(0, 3, (batch, 1), device=target.device)
    one_click, corners = (torch.tensor(pair, device=target.device) for pair in ([1, -1], [2, 3]))
    labels = torch.where(kind == 0, one_click, torch.where(kind == 1, 1, corners))
    points = torch.where(kind[..., None] == 2, box, clicks)
    return points, torch.where(empty, 0, labels).to(torch.int32)


def localise_memory_attention(backbone: SAM2, strength: float = 3.5, frequencies: int = 9) -> None:
    """Initialises memory attention so that every token first looks at the same place of the memories, and around it.

    A constant in the query and key biases of rotary channels adds a term to the attention logits that depends on the
    offset between two tokens alone and is largest at none. From SAM2's default initialisation that alignment has to be
    discovered before any mask can pass through a memory, which takes longer than all that follows.

    Args:
        backbone: changed in place.
        strength: of the constant.
        frequencies: how many of each axis' rotary frequencies, from the highest, carry it.
    """
    for layer in backbone.model.memory_attention.layers:
        attention = layer.cross_attn_image
        channels = attention.internal_dim
        with torch.no_grad():
            for projection in (attention.q_proj, attention.k_proj):
                for axis_start in (0, channels // 2):  # rotary channels: pairs along x, then pairs along y
                    projection.bias[axis_start : axis_start + 2 * frequencies : 2] = strength


def check_schedule(schedule_iterations: int, iterations: int) -> None:
    """Refuses a schedule of learning rates that ends before the pretraining does, which would break off there.

    Args:
        schedule_iterations: length of the schedule.
        iterations: that the stages have.

    Raises:
        SettingError: it is too short.
    """
    if schedule_iterations < iterations:
        raise SettingError(
            f"schedule_iterations is {schedule_iterations}, but the stages have {iterations} iterations. Set it to as "
            "many or more; a shorter pretraining has fewer epochs in its stages."
        )


def pretraining_iteration(engine: SupervisedTrainer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """``iteration_update`` of MONAI's trainer for :class:`ClipModel`: one step; the output holds every loss.

    Where the trainer's ``amp`` is set, in bfloat16, as SAM2 itself is trained.
    """
    batch = {key: value.to(engine.state.device, non_blocking=engine.non_blocking) for key, value in batch.items()}
    engine.network.train()
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(engine.state.device.type, torch.bfloat16, enabled=engine.amp):
        losses = engine.network(**batch)
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    losses["loss"].backward()
    engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
    nn.utils.clip_grad_norm_(engine.network.parameters(), max_norm=1.0)
    engine.optimizer.step()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    engine.state.output = {key: value.detach() for key, value in losses.items()}
    return engine.state.output


def export_backbone(backbone: SAM2, path: str | Path) -> None:
    """Writes a backbone in half precision and in the layout of SAM2's own checkpoints, whole or not at all."""
    state = {key: value.half() for key, value in on_cpu(backbone.model.state_dict()).items()}
    save_atomically({"model": state}, path)
