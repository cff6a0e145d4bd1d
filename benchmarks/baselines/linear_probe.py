"""What a linear map reads from the frozen backbone's image embedding: how well it tells organs before anything is
learned on it but one vector an organ. No method of the paper's, but a measure of backbones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from scripts.networks.sam2_backbone import FrozenSAM2
from torch import Tensor, nn

from .slicewise import SlicewiseInferer, encoded_slices
from .supervised import check_loss


class LinearProbe(nn.Module):
    """Logits of background and organs, linear in each place's standardised embedding.

    Args:
        channels: of the embedding.
        organs: K.
    """

    def __init__(self, channels: int, organs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.linear = nn.Conv2d(channels, 1 + organs, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear(self.norm(embedding))


def fit_probe(files: Sequence[str | Path], organs: int, *, penalty: float = 1e-3, steps: int = 200) -> LinearProbe:
    """Logistic regression, by L-BFGS, of the share that each class has of each place.

    Args:
        files: of the embedding cache (``scripts.training.encoded_slices.EncodedSlices``), one for each volume.
        organs: K.
        penalty: half of it times the squared weights is added to the mean cross-entropy.
        steps: at most.

    Returns:
        The probe in evaluation mode, on the CPU.
    """
    contents = [torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in files]
    embedding = torch.cat([content["embedding"].float() for content in contents])
    classes = F.one_hot(torch.cat([content["label"] for content in contents]).long(), 1 + organs)
    shares = F.adaptive_avg_pool2d(classes.permute(0, 3, 1, 2).float(), embedding.shape[-2:])
    probe = LinearProbe(embedding.shape[1], organs)
    probe.norm.momentum = None  # moments of all slices together
    standardised = probe.norm(embedding)
    probe.eval().requires_grad_(False)
    nn.init.zeros_(probe.linear.weight)
    nn.init.zeros_(probe.linear.bias)
    probe.linear.requires_grad_(True)
    optimizer = torch.optim.LBFGS(probe.linear.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.linear(standardised), shares)
        loss = loss + penalty / 2 * probe.linear.weight.square().sum()
        check_loss(loss, "the probe")
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return probe.requires_grad_(False)


class ProbeInferer(SlicewiseInferer):
    """Organ logits of every slice, against the background's.

    Args:
        probe: fitted.
        organs: K.
        batch_size: slices encoded at a time.
    """

    def __init__(self, probe: LinearProbe, organs: int, *, batch_size: int) -> None:
        super().__init__(organs)
        self.probe, self.batch_size = probe, batch_size

    def segment(self, inputs: Tensor, network: FrozenSAM2, *args) -> Iterator[tuple[list[int], Tensor]]:
        """Yields ``batch_size`` slices at a time, logits ``(n, K, S/4, S/4)``."""
        for chunk in torch.arange(inputs.shape[-1]).split(self.batch_size):
            embedding = encoded_slices(inputs, chunk.tolist(), network).embedding.float()
            logits = self.probe.to(embedding.device)(embedding)
            size = (network.image_size // 4, network.image_size // 4)
            yield chunk.tolist(), F.interpolate(logits[:, 1:] - logits[:, :1], size, mode="bilinear")
