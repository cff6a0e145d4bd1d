"""The rows of prompted SAM and SAM2: frozen, each slice and organ by itself, prompts drawn from the true mask.

The paper says "random points from the ground-truth masks" (section 3.2), and takes the numbers from FATE-SAM; how many
points that were is not said. The reading taken here: by default one point for each organ in each slice that holds it,
uniformly among its voxels on the file's own grid. Slices without the organ get no prompt and no mask, which helps these
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor, optional_import
from scripts.networks.logits import NO_OBJECT_LOGIT
from scripts.networks.sam2_backbone import FrozenSAM2
from torch import Tensor, nn

from .prompts import PROMPTS, prompt_points
from .slicewise import SlicewiseInferer, encoded_slices, oriented_like

TOKENS = ("auto", "single", "best_iou")


class PromptedInferer(SlicewiseInferer):
    """Prompts from the true label map, a mask for each, the organ of highest logit in each voxel.

    Args:
        organs: K.
        prompt: one of ``prompts.PROMPTS``.
        points: how many, for ``"points"``.
        seed: of the points; those of a slice and organ depend on nothing else but its mask.

    Raises:
        ValueError: an unknown prompt, or no point at all.
    """

    def __init__(self, organs: int, prompt: str = "points", *, points: int = 1, seed: int = 0) -> None:
        super().__init__(organs)
        if prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got '{prompt}'.")
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}.")
        self.prompt, self.points, self.seed = prompt, points, seed

    def segment(
        self, inputs: Tensor, network: PromptedSAM2 | PromptedSAM, truth: Tensor
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the slices that hold an organ; ``truth`` is ``(1, 1, ...)`` on the file's own grid."""
        labels = oriented_like(truth, inputs)
        for index in range(inputs.shape[-1]):
            plane = labels[..., index].numpy()
            held = [organ for organ in range(1, self.organs + 1) if (plane == organ).any()]
            if not held:
                continue
            drawn = [
                prompt_points(
                    plane == organ, self.prompt, self.points, np.random.default_rng([self.seed, index, organ])
                )
                for organ in held
            ]
            masks = network.decode(inputs, index, *padded(drawn))
            logits = masks.new_full((1, self.organs, *masks.shape[1:]), NO_OBJECT_LOGIT)
            logits[0, [organ - 1 for organ in held]] = masks
            yield [index], logits


class PromptedSAM2(nn.Module):
    """SAM2 as a prompted image segmenter.

    Args:
        backbone: the frozen SAM2.
        token: ``"single"`` or ``"best_iou"`` (see ``FrozenSAM2.decode``), or ``"auto"``, SAM2's own rule: the best of
            three masks for one point, which says little, and the single mask for a box or several points.

    Raises:
        ValueError: an unknown token.
    """

    def __init__(self, backbone: FrozenSAM2, token: str = "auto") -> None:
        super().__init__()
        if token not in TOKENS:
            raise ValueError(f"token must be one of {', '.join(TOKENS)}, got '{token}'.")
        self.backbone, self.token = backbone, token

    def decode(self, inputs: Tensor, index: int, points: Tensor, labels: Tensor) -> Tensor:
        """Mask logits ``(n, S/4, S/4)`` of one slice.

        Args:
            inputs: the volume ``(1, 1, H, W, slices)``.
            index: of the slice.
            points: ``(n, P, 2)`` as (x, y) in voxels of the slice.
            labels: ``(n, P)``, SAM's labels of points.
        """
        size, device = self.backbone.image_size, next(self.backbone.parameters()).device
        features = encoded_slices(inputs, [index], self.backbone)
        features = features.repeat_interleave(len(points))
        scale = torch.tensor([size / inputs.shape[3], size / inputs.shape[2]])
        points = (points + 0.5) * scale - 0.5  # of the voxels' centres
        token = self.token
        if token == "auto":
            token = "best_iou" if labels.shape[1] == 1 else "single"
        conditioned = self.backbone.condition(features)
        return self.backbone.decode(
            conditioned, features, points=(points.to(device), labels.to(device)), token=token
        ).mask_logits[:, 0]


class PromptedSAM(nn.Module):
    """The first SAM, through Meta's package ``segment-anything``.

    Args:
        checkpoint: such as ``sam_vit_b_01ec64.pth``, under its published name, which says the architecture.
        device: to run on.
        model_type: ``"vit_b"``, ``"vit_l"`` or ``"vit_h"``, where the name does not say it.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: its name does not say the architecture.
    """

    def __init__(self, checkpoint: str | Path, device: torch.device, *, model_type: str | None = None) -> None:
        super().__init__()
        checkpoint = Path(checkpoint)
        if not checkpoint.is_file():
            raise FileNotFoundError(f"SAM checkpoint '{checkpoint}' is not there: point --checkpoint at your copy.")
        types = (
            [model_type] if model_type else [each for each in ("vit_b", "vit_l", "vit_h") if each in checkpoint.name]
        )
        if len(types) != 1:
            raise ValueError(
                f"The name of '{checkpoint}' does not say which SAM it is: give --model_type vit_b, vit_l or vit_h."
            )
        segment_anything, _ = optional_import("segment_anything")
        self.model = segment_anything.sam_model_registry[types[0]](checkpoint=str(checkpoint)).to(device)
        self.predictor = segment_anything.SamPredictor(self.model)

    def decode(self, inputs: Tensor, index: int, points: Tensor, labels: Tensor) -> Tensor:
        """Mask logits ``(n, H, W)`` of one slice; see :meth:`PromptedSAM2.decode`."""
        plane = convert_to_tensor(inputs[0, 0, ..., index], track_meta=False).float().cpu()
        grey = (plane.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        self.predictor.set_image(np.repeat(grey[..., None], 3, -1))
        return torch.stack([self._decode_one(each, kinds) for each, kinds in zip(points, labels)])

    def _decode_one(self, points: Tensor, labels: Tensor) -> Tensor:
        points, labels = points[labels >= 0].numpy(), labels[labels >= 0].numpy()
        box = np.concatenate([points[labels == 2][0], points[labels == 3][0]]) if 2 in labels else None
        prompt: dict[str, Any] = {"box": box} if box is not None else {"point_coords": points, "point_labels": labels}
        # several masks for one point, which says little, as Meta's own example has it
        masks, scores, _ = self.predictor.predict(**prompt, multimask_output=len(points) == 1, return_logits=True)
        return torch.as_tensor(masks[int(np.argmax(scores))])


def padded(prompts: list[tuple[list[list[int]], list[int]]]) -> tuple[Tensor, Tensor]:
    """Prompts of several organs as tensors ``(n, P, 2)`` and ``(n, P)``, shorter ones with points labelled -1."""
    longest = max(len(labels) for _, labels in prompts)
    points = [[*each, *[[0, 0]] * (longest - len(each))] for each, _ in prompts]
    labels = [[*each, *[-1] * (longest - len(each))] for _, each in prompts]
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels, dtype=torch.int32)
