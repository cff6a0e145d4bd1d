"""From organ logits of slices to the label map of a volume: what every inferer shares that goes slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from ..descriptions import Described
from ..errors import SettingError
from ..networks.logits import resize_logits, with_background

OUTPUTS = ("labels", "labels_and_organs", "logits")


class LabelMapInferer(Described, Inferer):
    """Base of inferers that take a volume ``(1, 1, H, W, slices)`` and get organ logits of its slices, in any order.

    Args:
        output: ``"labels"``, a label map; ``"labels_and_organs"``, with a second channel whose bit i - 1 is set where
            organ i's own logit is positive, before organs are merged, up to the 64th; ``"logits"``, a channel for the
            background (0 everywhere) and each organ.

    Raises:
        SettingError: an unknown ``output``.
    """

    def __init__(self, output: str = "labels") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise SettingError(f"output must be one of {', '.join(OUTPUTS)}, got '{output}'.")
        self.output = output

    def _volume(self, inputs: Tensor) -> Tensor:
        """The one volume ``(H, W, slices)`` of a batch.

        Raises:
            SettingError: another shape.
        """
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise SettingError(f"Expected one volume of shape (1, 1, H, W, slices), got {tuple(inputs.shape)}.")
        volume = inputs[0, 0]
        return volume.as_tensor() if isinstance(volume, MetaTensor) else volume  # over the same memory

    def _result(self, output: Tensor, inputs: Tensor) -> Tensor:
        """A result over the same memory, with the input's record of transforms, by which ``Invertd`` finds the way back
        to the file's grid.
        """
        return MetaTensor(output).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else output

    def _empty_output(self, volume: Tensor, organs: int) -> Tensor:
        """``(1, channels, H, W, slices)``, of which each slice lies together in memory, as it is written."""
        channels, dtype = OUTPUTS.index(self.output) + 1, torch.uint8 if organs <= 8 else torch.int32
        if self.output == "labels_and_organs" and organs > 32:
            dtype = torch.int64
        if self.output == "logits":
            channels, dtype = 1 + organs, torch.float32
        *size, slices = volume.shape
        return torch.empty((1, channels, slices, *size), dtype=dtype, device=volume.device).permute(0, 1, 3, 4, 2)

    def _write(self, output: Tensor, indices: Sequence[int], logits: Tensor) -> None:
        """Puts the organ logits ``(n, K, S/4, S/4)`` of some slices into the volume, at its own size."""
        size = output.shape[2:4]
        for index, each in zip(indices, logits):
            if self.output == "logits":
                channels = with_background(resize_logits(each[None], size))[0]
            else:
                channels = torch.stack(merged_labels(each, size, output.dtype)[: output.shape[1]])
            output[0, ..., index] = channels.to(output)


def mixed_on_cpu(network: nn.Module, amp: bool) -> torch.autocast:
    """Mixed precision for a network on a CPU, in bfloat16: MONAI's evaluators, whatever ``amp`` says, have none there.

    Args:
        network: that is to be run; on another device its evaluator says in what precision.
        amp: whether it is wanted. It pays on processors that multiply matrices of bfloat16 (AMX).
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return torch.autocast("cpu", torch.bfloat16, enabled=amp and on_cpu)


def merged_labels(logits: Tensor, size: Sequence[int], dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    """A slice's label map, and its organs before they are merged.

    Only the masks of organs that are there are resized: between logits that are not positive none is.

    Args:
        logits: of K organs, ``(K, h, w)``.
        size: (H, W) of the results.
        dtype: of the results.

    Returns:
        ``(H, W)``: 1 + the organ of the highest logit where any is positive, or else 0; and a number whose bit i is set
        where the logit of organ i is positive, as far as the type has bits.
    """
    labels = torch.zeros(tuple(size), dtype=dtype, device=logits.device)
    bits, highest = torch.zeros_like(labels), 0.0
    there = (logits.amax((1, 2)) > 0).nonzero()[:, 0].tolist()
    for organ, values in zip(there, resize_logits(logits[there][None], size)[0] if there else ()):
        labels.masked_fill_(values > highest, organ + 1)
        bits.add_(values > 0, alpha=_bit(organ, dtype))
        highest = values.clamp_min(highest)
    return labels, bits


def _bit(number: int, dtype: torch.dtype) -> int:
    """The integer of a type of which this bit alone is set; 0 where it has fewer."""
    about = torch.iinfo(dtype)
    bit = 2**number if number < about.bits else 0
    return bit if bit <= about.max else bit - 2**about.bits
