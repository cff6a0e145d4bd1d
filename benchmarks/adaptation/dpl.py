"""DPL: adaptation by denoised pseudo labels.

C. Chen, Q. Liu, Y. Jin, Q. Dou, P.-A. Heng: Source-Free Domain Adaptive Fundus Image Segmentation with Denoised
Pseudo-Labeling, MICCAI 2021 (arXiv:2109.09735). Constants and order of steps are those of the published code
(github.com/cchen-cc/SFDA-DPL, ``generate_pseudo.py`` and ``train_target.py``):

1. T = 10 passes of the source model with dropout on; an organ's pseudo label is 1 where its mean probability is above
   0.75 (gamma).
2. Pixel level: a pixel counts for an organ if the standard deviation of its probabilities, softened by a temperature of
   2, is below 0.05 (eta).
3. Class level: prototypes of the organ and of what is not the organ are the means of the features of pixels that
   passed, weighted by their probability. A pixel counts only if its feature is nearer (Euclidean) to the prototype of
   its own pseudo label.
4. A copy of the model is trained for two epochs on the pixels that count, with binary cross-entropy and Adam.

Readings taken. The paper has two overlapping classes with sigmoids; here every organ's softmax probability is treated
as one of those, against everything else. Dropout stays at the rate of the source's training (0.1, also that of the
published classifier), in all layers of the UNet. Prototypes are of one volume at a time, where the code has batches of
eight photographs: a batch of neighbouring slices may lack an organ. They are compared at 128 x 128 pixels, the code's
feature map. In training the code changes light, noise and patches of the photographs; here brightness, contrast and
gamma change, as in DFG's rerun of DPL on these data (its ``dataloaders/transformations.py``, "dpl_train").
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.baselines.supervised import check_loss

from .source_model import FeatureUNet
from .target_images import change_intensity, joined

TEMPERATURE = 2.0
FEATURE_SIZE = 128


@dataclass(frozen=True)
class Estimates:
    """What T passes with dropout say of the slices of a volume, for each of K organs.

    Attributes:
        probability: mean ``(N, K, S, S)``.
        deviation: standard deviation of the softened probabilities ``(N, K, S, S)``.
        features: mean ``(N, F, h, w)``, h at most :data:`FEATURE_SIZE`.
    """

    probability: Tensor
    deviation: Tensor
    features: Tensor


@dataclass(frozen=True)
class DenoisedLabels:
    """Pseudo labels and which of their pixels count, both ``(N, K, S, S)`` bool."""

    pseudo: Tensor
    counts: Tensor


@torch.no_grad()
def monte_carlo(network: FeatureUNet, images: Tensor, passes: int = 10, batch: int = 8) -> Estimates:
    """Passes with dropout on (step 1).

    Args:
        network: stays in the mode it was in.
        images: ``(N, 1, S, S)`` in [0, 1], any float dtype.
        passes: T, at least 2.
        batch: slices at a time.

    Raises:
        ValueError: fewer than two passes, whose spread is undefined.
    """
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes}.")
    device = next(network.parameters()).device
    size = min(FEATURE_SIZE, images.shape[-1])
    was_training = network.training
    network.train()  # instance norms keep no running statistics: dropout is all that this changes
    parts = []
    for chunk in images.split(batch):
        chunk = chunk.float().to(device)
        soft, mean, features = [], 0.0, 0.0
        for _ in range(passes):
            drawn = network.features(chunk)
            logits = network.classify(drawn)
            soft.append((logits / TEMPERATURE).softmax(1)[:, 1:])
            mean = mean + logits.softmax(1)[:, 1:] / passes
            features = features + F.adaptive_avg_pool2d(drawn, size) / passes
        parts.append((mean.cpu(), torch.stack(soft).std(0).cpu(), features.cpu()))
    network.train(was_training)
    return Estimates(*(torch.cat(each) for each in zip(*parts)))


def denoise(estimates: Estimates, certainty: float = 0.75, max_deviation: float = 0.05) -> DenoisedLabels:
    """Pseudo labels of one volume and the pixels that both levels leave (steps 1 to 3).

    Args:
        estimates: of :func:`monte_carlo`.
        certainty: gamma.
        max_deviation: eta.
    """
    pseudo = estimates.probability > certainty
    certain = estimates.deviation < max_deviation
    nearest = prototype_labels(estimates, pseudo, max_deviation)
    return DenoisedLabels(pseudo, certain & (nearest == pseudo))


def prototype_labels(estimates: Estimates, pseudo: Tensor, max_deviation: float = 0.05) -> Tensor:
    """Where a feature is nearer to the organ's prototype than to that of the rest: ``(N, K, S, S)`` bool (step 3).

    An organ without a certain pixel has no prototype, and nothing is near to it.
    """
    features, size = estimates.features, estimates.features.shape[-2:]
    probability, deviation = (
        F.interpolate(each, size, mode="bilinear", align_corners=True)
        for each in (estimates.probability, estimates.deviation)
    )
    small = F.interpolate(pseudo.float(), size, mode="nearest")
    certain = (deviation < max_deviation).float()
    distances = []
    for weight in (probability * small * certain, (1 - probability) * (1 - small) * certain):
        total = weight.sum((0, 2, 3))
        prototypes = torch.einsum("nkhw,nfhw->kf", weight, features) / total[:, None]  # NaN where there is no pixel
        distance = torch.stack([(features - each.view(1, -1, 1, 1)).square().sum(1) for each in prototypes], 1)
        distances.append(distance)
    nearer = (distances[0] < distances[1]).float()  # False where either is NaN
    return F.interpolate(nearer, pseudo.shape[-2:], mode="nearest").bool()


def masked_loss(logits: Tensor, labels: DenoisedLabels) -> Tensor:
    """Binary cross-entropy over the pixels that count, of softmax probabilities; 0 if there is none (step 4)."""
    probability = logits.softmax(1)[:, 1:].clamp(1e-7, 1 - 1e-7)
    loss = F.binary_cross_entropy(probability, labels.pseudo.float(), reduction="none")
    return (loss * labels.counts).sum() / labels.counts.sum().clamp_min(1)


def adapt(
    source: FeatureUNet,
    volumes: Mapping[str, Tensor],
    passes: int = 10,
    certainty: float = 0.75,
    max_deviation: float = 0.05,
    epochs: int = 2,
    slices_per_step: int = 8,
    learning_rate: float = 2e-3,
) -> FeatureUNet:
    """An adapted copy of the source model.

    Args:
        source: left as it is.
        volumes: target images, ``(slices, 1, S, S)`` for each case.
        passes, certainty, max_deviation: see above.
        epochs: over all slices.
        slices_per_step: of one step.
        learning_rate: of Adam, with betas 0.9 and 0.99.
    """
    device = next(source.parameters()).device
    found = [
        denoise(monte_carlo(source, images, passes), certainty, max_deviation)
        for images in tqdm(volumes.values(), desc="pseudo labels")
    ]
    labels = DenoisedLabels(torch.cat([each.pseudo for each in found]), torch.cat([each.counts for each in found]))
    images, network = joined(volumes), copy.deepcopy(source).train()
    optimizer = torch.optim.Adam(network.parameters(), learning_rate, betas=(0.9, 0.99))
    for _ in range(epochs):
        for index in tqdm(torch.randperm(len(images)).split(slices_per_step), desc="adapting"):
            batch = DenoisedLabels(labels.pseudo[index].to(device), labels.counts[index].to(device))
            optimizer.zero_grad()
            loss = masked_loss(network(change_intensity(images[index].float().to(device))), batch)
            check_loss(loss, "the adaptation")
            loss.backward()
            optimizer.step()
    return network.eval()
