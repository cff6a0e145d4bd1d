"""What SAM2 learns behind a frozen image encoder: to carry a mask to a slice far away.

Between slices that touch, a mask is as good as copied. Farther off the organ has moved and changed its shape, and what
carries it is what it is made of: the memory must hold the kind of tissue that lies under the mask, and memory attention
look for it. From clips that are followed frame by frame this is hardly ever learned, since copying does nearly as well
there. So here a slice sees the memory of any other slice of its clip, however far, and two small heads, thrown away
afterwards, ask for the tissues in the memory and for the mask in the conditioned embedding.

Pairs of slices need no order, so the clips are painted and encoded once, and drawn from again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch import Tensor, nn

from ..data.phantom_anatomy import ORGANS
from ..errors import SettingError
from ..networks.logits import mask_to_logits
from ..networks.sam2_backbone import SAM2
from ..networks.sam2_releases import EMBEDDING_STRIDE
from ..networks.sam2_types import ImageFeatures, Memory
from .backbone import ClipModel, random_prompts
from .patient_clips import CLASSES, AnatomyClips, EpochBatches, class_weights


class EncodedClips(EpochBatches):
    """Rows of slices and one object, drawn from clips of painted patients that are encoded once.

    A row is a slice to decode (the target), one whose memory it is given, which holds the object (the source), and the
    slices that a walk from the source would have decoded last, the nearest first, a fifth of them any others.

    Args:
        anatomy: clips in which the organs come first among the objects.
        backbone: whose frozen image encoder encodes them.
        batches: of ``anatomy`` that are encoded; ten slices of four clips are 24 MB.
        rows: in a batch.
        reach: how many slices there are beside target and source.
        absent_share: of the targets drawn without the object that are kept.
        others_share: of the rows drawn for other structures than organs that are kept.
        length: batches in an epoch.
        seed: of the rows drawn.

    Raises:
        SettingError: clips of one slice, of which none is far from another.

    Iterating gives ``embedding``, ``high_res_fine`` and ``high_res_coarse`` ``(2 + reach, rows, ...)`` of target,
    source and the others, ``mask`` ``(2 + reach, rows, 1, S, S)`` bool and ``classes`` ``(2 + reach, rows, S/16,
    S/16)``, indices into :data:`.patient_clips.CLASSES`.
    """

    def __init__(
        self,
        anatomy: AnatomyClips,
        backbone: SAM2,
        *,
        batches: int = 130,
        rows: int = 24,
        reach: int = 3,
        absent_share: float = 0.4,
        others_share: float = 0.35,
        length: int = 40,
        seed: int = 0,
    ) -> None:
        if (frames := min(stage["frames"] for stage in anatomy.stages)) < 2:
            raise SettingError(
                f"Masks are carried from slice to slice of a clip: `frames` must be 2 or more, got {frames}."
            )
        self.anatomy, self.backbone, self.batches = anatomy, backbone, batches
        self.rows, self.reach = rows, reach
        self.absent_share, self.others_share = absent_share, others_share
        self.length, self.seed = length, seed
        self.encoded: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def encode(self) -> None:
        """Paints and encodes the clips, where that has not been done."""
        half, device = EMBEDDING_STRIDE // 2, next(self.backbone.parameters()).device
        for index in range(len(self.encoded), self.batches):
            drawn = self.anatomy.batch(index)
            features = self.backbone.encode_image(drawn["image"].flatten(0, 1).to(device))
            shape = drawn["classes"].shape[:2]
            maps = {"embedding": features.embedding}
            maps |= {"high_res_fine": features.high_res[0], "high_res_coarse": features.high_res[1]}
            clip = {name: each.half().cpu().unflatten(0, shape) for name, each in maps.items()}
            clip["mask"] = drawn["mask"].cpu()
            clip["classes"] = drawn["classes"][..., half::EMBEDDING_STRIDE, half::EMBEDDING_STRIDE].cpu()
            self.encoded.append(clip)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the present epoch."""
        self.encode()
        generator = np.random.default_rng([self.seed, self.epoch, index])
        rows = [self._row(generator) for _ in range(self.rows)]
        batch = {}
        for name in ("embedding", "high_res_fine", "high_res_coarse", "classes"):
            batch[name] = torch.stack([clips[name][clip, places] for clips, clip, _, places in rows], 1)
        batch["mask"] = torch.stack([clips["mask"][clip, item, places] for clips, clip, item, places in rows], 1)
        batch["mask"] = batch["mask"][:, :, None]
        return {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}

    def _row(self, generator: np.random.Generator) -> tuple[dict[str, Tensor], int, int, list[int]]:
        """Clips, which of them, which object, and the slices."""
        while True:
            clips = self.encoded[generator.integers(len(self.encoded))]
            count, objects, frames = clips["mask"].shape[:3]
            clip, item = int(generator.integers(count)), int(generator.integers(objects))
            held = clips["mask"][clip, item].flatten(1).any(1).nonzero()[:, 0].tolist()
            if not held or (item >= len(ORGANS) and generator.random() > self.others_share):
                continue
            source, target = int(generator.choice(held)), int(generator.integers(frames))
            if target == source or (target not in held and generator.random() > self.absent_share):
                continue
            towards = 1 if source > target else -1
            passed = [min(max(target + towards * (step + 1), 0), frames - 1) for step in range(self.reach)]
            others = [frame for frame in range(frames) if frame != target]
            passed = [int(generator.choice(others)) if generator.random() < 0.2 else frame for frame in passed]
            return clips, clip, item, [target, source, *passed]


def _slices(embedding: Tensor, fine: Tensor, coarse: Tensor) -> list[ImageFeatures]:
    """Features of target, source and the others, each of all rows."""
    return [ImageFeatures(each, (first, second)) for each, first, second in zip(embedding, fine, coarse)]


class CarryingModel(ClipModel):
    """SAM2 and its losses on rows of :class:`EncodedClips`; the image encoder is not among what learns.

    Args:
        backbone: the trainable SAM2.
        own_share: of batches in which the slice has its own memory beside the other's, as in Equation 3.
        prompt_share: of batches that are prompted, without any memory, so that prompts are not forgotten.
        passed: how many memories of slices that were decoded before are added, drawn anew for each batch.
        given_share: of those that are of the true mask.
        tissue_weight, place_weight: of what the two heads are asked for: the tissues of a memory's tokens, the mask in
            the tokens of the conditioned embedding.
        kwargs: of :class:`ClipModel`.
    """

    def __init__(
        self,
        backbone: SAM2,
        *,
        own_share: float = 0.25,
        prompt_share: float = 0.1,
        passed: Sequence[int] = (0, 0, 1, 1, 2, 3),
        given_share: float = 0.3,
        tissue_weight: float = 0.3,
        place_weight: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(backbone, own_share=own_share, **kwargs)
        self.prompt_share, self.passed, self.given_share = prompt_share, list(passed), given_share
        self.tissue_weight, self.place_weight = tissue_weight, place_weight
        self.tissues = nn.Linear(backbone.memory_channels, len(CLASSES))
        self.place = nn.Linear(backbone.embedding_channels, 1)
        backbone.model.image_encoder.requires_grad_(False)
        for projection in ("conv_s0", "conv_s1"):  # what they give is encoded already
            getattr(backbone.model.sam_mask_decoder, projection).requires_grad_(False)

    def forward(
        self, embedding: Tensor, high_res_fine: Tensor, high_res_coarse: Tensor, mask: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """Losses of a batch of :class:`EncodedClips`: those of :class:`ClipModel`, and ``tissue`` and ``place``."""
        slices = _slices(embedding, high_res_fine, high_res_coarse)
        masks, target = mask.float(), mask[0].float()
        drawn = torch.rand(())
        if drawn < self.prompt_share:
            points = random_prompts(target)
            outputs = self.backbone.predict_all_masks(self.backbone.condition(slices[0]), slices[0], points=points)
            return self._summary(self._losses(outputs, target))
        own = bool(drawn < self.prompt_share + self.own_share)
        source = self.backbone.encode_memory(slices[1], mask_to_logits(masks[1]))
        # beside its own memory the other is a neighbour's; alone it is what SAM2 was shown
        distance = int(torch.tensor([1, 2, 4])[torch.randint(3, ())]) if own else 0
        memories = [Memory(self._own_memory(slices[0], target))] if own else []
        memories.append(Memory(source, distance))
        for step in range(self.passed[int(torch.randint(len(self.passed), ()))]):
            memory = self._passed_memory(slices[2 + step], masks[2 + step], source.detach())
            memories.append(Memory(memory, step + 1))
        conditioned = self.backbone.condition(slices[0], memories)
        losses = self._losses(self.backbone.predict_all_masks(conditioned, slices[0]), target)
        weight = class_weights(mask.device)
        found = self.tissues(source.flatten(2).transpose(1, 2)).transpose(1, 2)
        losses["tissue"] = F.cross_entropy(found.float(), classes[1].flatten(1), weight)
        share = F.adaptive_avg_pool2d(target, conditioned.shape[-2:]).flatten(1)
        place = self.place(conditioned.flatten(2).transpose(1, 2))[..., 0].float()
        losses["place"] = F.binary_cross_entropy_with_logits(place, share, 1 + 4 * share)
        return self._summary(losses)

    def _passed_memory(self, features: ImageFeatures, mask: Tensor, source: Tensor) -> Tensor:
        """Memories of what is decoded on slices from the source's alone, some of the true masks."""
        with torch.no_grad():
            decoded = self.backbone.decode(self.backbone.condition(features, [Memory(source)]), features)
        return self._some_given(features, mask, decoded.gated(), decoded.object_score, self.given_share)

    def _summary(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = {"mask": self.mask_weight, "dice": self.dice_weight, "iou": self.iou_weight}
        weights |= {"object": self.object_weight, "tissue": self.tissue_weight, "place": self.place_weight}
        summary = {name: losses[name] for name in weights if name in losses}
        summary["loss"] = torch.stack([weights[name] * value for name, value in summary.items()]).sum()
        summary["hard_dice"] = 1 - losses["hard_dice_loss"]
        return summary


class RecogniseTissues:
    """Once, at the start of an epoch: memory attention is given to look for tokens of the same tissue as its own.

    Its last layer asks, in the rotary channels that turn slowest and so know hardly any place, what kind of tissue a
    token is, as two linear regressions tell it from the token and from the memory; where both agree, attention grows.
    Nothing that was learned is taken away. Left to itself training has to find this while it costs nothing to copy.

    Args:
        model: in training.
        clips: that it is fitted on.
        epoch: at whose start, when memories hold tissues already; 0 leaves it out.
        strength: of the agreement, in units of attention's logits.
        batches: that it is fitted on.
    """

    def __init__(
        self, model: CarryingModel, clips: EncodedClips, *, epoch: int = 4, strength: float = 4.0, batches: int = 12
    ) -> None:
        self.model, self.clips, self.epoch, self.strength, self.batches = model, clips, epoch, strength, batches

    def attach(self, engine: Engine) -> None:
        if self.epoch:
            engine.add_event_handler(Events.EPOCH_STARTED(once=self.epoch), self)

    @torch.no_grad()
    def __call__(self, engine: Engine | None = None) -> None:
        backbone = self.model.backbone
        attention = backbone.model.memory_attention.layers[-1].cross_attn_image
        projections = (attention.q_proj, attention.k_proj)
        asked: dict[nn.Module, list[Tensor]] = {projection: [] for projection in projections}
        hooks = [
            each.register_forward_hook(lambda module, inputs, _: asked[module].append(inputs[0]))
            for each in projections
        ]
        classes: list[list[Tensor]] = [[], []]
        device = next(backbone.parameters()).device
        for index in range(self.batches):
            batch = {key: value.to(device) for key, value in self.clips.batch(index).items()}
            slices = _slices(batch["embedding"], batch["high_res_fine"], batch["high_res_coarse"])
            memory = backbone.encode_memory(slices[1], mask_to_logits(batch["mask"][1].float()))
            backbone.condition(slices[0], [Memory(memory)])
            for place in range(2):
                classes[place].append(batch["classes"][place].flatten())
        for hook in hooks:
            hook.remove()
        scale = (self.strength * attention.internal_dim**0.5) ** 0.5
        for projection, found in zip(projections, classes):
            tokens = torch.cat(asked[projection])
            weight, bias = _regression(tokens.flatten(0, 1), torch.cat(found))
            for channel, kind in zip(_slowest_channels(attention.internal_dim), range(len(CLASSES))):
                projection.weight[channel] += scale * weight[kind]
                projection.bias[channel] += scale * bias[kind]


def _slowest_channels(channels: int, pairs: int = 7) -> list[int]:
    """One of each pair of rotary channels that turn slowest with x, and then with y."""
    half = channels // 2
    return [end - 2 * (pair + 1) for end in (half, channels) for pair in range(pairs)]


def _regression(tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``(classes, C)`` and bias of the ridge regression of which class a token ``(N, C)`` is; each class counts
    the same, however rare.
    """
    kinds = F.one_hot(classes, len(CLASSES)).float()
    weight = 1 / kinds.sum(0).clamp_min(50)[classes]
    inputs = torch.cat([tokens, torch.ones_like(tokens[:, :1])], 1).float()
    weighted = inputs * weight[:, None]
    ridge = 1e-3 * torch.diag((weighted * inputs).sum(0))
    solution = torch.linalg.solve(weighted.T @ inputs + ridge, weighted.T @ kinds)
    return solution[:-1].T, solution[-1]
