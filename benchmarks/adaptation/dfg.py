"""DFG: adaptation by masks that a foundation model makes of boxes found without labels.

Z. Huai et al. (see ``box_search.py``). Constants and order of steps are those of the published code
(github.com/xmed-lab/DFG):

1. Feature aggregation (``trainers/target_adapt_FA_trainer.py``, ``losses/adaptation_loss.py``): a copy of the source
   model is trained to bring the target's features to the classifier's weights, the class prototypes, by a conditional
   transport cost in both directions; the classifier stays.
2. Box search (``box_search.py``) on every slice and organ, with this model's probabilities and features and the
   foundation model's. Where a search finds a mask, it takes the place of the prediction.
3. The largest connected part of each organ in each volume is kept.
4. The model of phase 1 is trained on the result with soft Dice loss; it is the row's network.

Readings taken. The foundation model is this project's frozen SAM2 where the paper has MedSAM; its features are SAM2's
image embedding, and a box is decoded into the single mask token, SAM2's own rule for boxes and MedSAM's only mask. The
code keeps the step of phase 1 that is best on labelled target volumes; here phase 1 has a fixed number of steps, 160 as
in the name of the published checkpoint, and no label is seen. The learning rate falls to 0.8 of itself every five
steps, as there. Phase 4 has 100 epochs in the code, at 0.8 of the learning rate every fifth epoch; here it has a number
of steps, as every row of the table, and the same twenty falls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from scipy import ndimage
from scripts.networks.logits import resize_logits
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures
from torch import Tensor
from tqdm import tqdm, trange

from benchmarks.baselines.supervised import check_loss

from .box_search import GRID, Box, SearchSettings, run_searches, search
from .source_model import FeatureUNet
from .target_images import change_intensity, joined, move

CORNERS = (2, 3)  # SAM's labels of a box's two points
WEIGHT_DECAY = 5e-4
FALL, AGGREGATION_STEPS_A_FALL, RETRAINING_FALLS = 0.8, 5, 20


def aggregation_loss(prototypes: Tensor, features: Tensor) -> Tensor:
    """Conditional transport between prototypes and pixels, each with half of the weight, at temperature 1.

    Pixels go to prototypes with the probability that the classifier gives them, and prototypes, all alike, to pixels
    with a softmax over all of them; the cost is the cosine distance.

    Args:
        prototypes: ``(1 + K, F)``.
        features: ``(B, F, H, W)``.
    """
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    similarity = prototypes @ pixels.T
    cost = 1 - F.normalize(prototypes, dim=1) @ F.normalize(pixels, dim=1).T
    to_prototypes = (cost * similarity.softmax(0)).sum(0).mean()
    to_pixels = (cost * similarity.softmax(1)).sum(1).mean()
    return (to_prototypes + to_pixels) / 2


def aggregate(
    source: FeatureUNet, images: Tensor, *, steps: int = 160, slices_per_step: int = 16, learning_rate: float = 1e-4
) -> FeatureUNet:
    """Phase 1: a copy of the source model, its classifier unchanged.

    Args:
        source: left as it is.
        images: target slices ``(N, 1, S, S)`` in [0, 1].
        steps, slices_per_step, learning_rate: of Adam.
    """
    network = copy.deepcopy(source).train()
    network.classifier.requires_grad_(False)
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.body.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, AGGREGATION_STEPS_A_FALL, FALL)
    for _ in (progress := trange(steps, desc="aggregating features")):
        index = torch.randint(0, len(images), (slices_per_step,))
        optimizer.zero_grad()
        batch, _ = move(change_intensity(images[index].float().to(device)), images[index].to(device))
        loss = aggregation_loss(network.prototypes, network.features(batch))
        check_loss(loss, "the adaptation")
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")
    return network.eval()


@torch.no_grad()
def search_boxes(
    network: FeatureUNet,
    backbone: FrozenSAM2,
    images: Tensor,
    *,
    settings: SearchSettings = SearchSettings(),
    batch: int = 4,
) -> tuple[Tensor, int]:
    """Phases 2 and 3: pseudo labels of one volume.

    Args:
        network: of phase 1, in evaluation mode.
        backbone: the foundation model, at the slices' size.
        images: ``(N, 1, S, S)`` in [0, 1], all slices in their order.
        settings: of the search, for 256 x 256 pixels.
        batch: slices searched side by side.

    Returns:
        Labels ``(N, 1, S, S)`` uint8, and how many searches found a mask.
    """
    size = min(GRID, images.shape[-1])
    labels, found = [], 0
    for chunk, seen in zip(images.split(batch), backbone.shown(images).split(batch)):
        chunk = chunk.float().to(next(network.parameters()).device)
        features = network.features(chunk)
        probability = _resized(network.classify(features).softmax(1), size)
        encoded = backbone.encode_image(seen.float().to(next(backbone.parameters()).device))
        masks = _search_slices(backbone, encoded, features, probability, size, settings.scaled(size))
        found += sum(mask is not None for mask in masks.values())
        labels.append(torch.stack([_merged(row, index, masks) for index, row in enumerate(probability.cpu())]))
    kept = keep_largest(torch.cat(labels).numpy(), probability.shape[1] - 1)
    return F.interpolate(torch.from_numpy(kept)[:, None].float(), images.shape[-2:], mode="nearest").byte(), found


def _search_slices(
    backbone: FrozenSAM2,
    encoded: ImageFeatures,
    features: Tensor,
    probability: Tensor,
    size: int,
    settings: SearchSettings,
) -> dict[tuple[int, int], np.ndarray | None]:
    """Masks by (slice, organ)."""
    target, foundation = (
        F.normalize(_resized(each, size), dim=1).cpu().numpy() for each in (features, encoded.embedding)
    )
    sure = probability.cpu().numpy()
    searches = {
        (row, organ): search(sure[row, organ], target[row], foundation[row], settings)
        for row in range(len(sure))
        for organ in range(1, sure.shape[1])
    }
    return run_searches(searches, lambda asked: segment_boxes(backbone, encoded, asked, size))


def segment_boxes(
    backbone: FrozenSAM2, encoded: ImageFeatures, asked: list[tuple[tuple[int, int], Box]], size: int
) -> list[np.ndarray]:
    """SAM2's mask ``(size, size)`` bool of each box, in pixels of that size; keys are (slice, organ)."""
    features = encoded[[row for (row, _), _ in asked]]
    corners = torch.tensor([box for _, box in asked], dtype=torch.float32, device=features.embedding.device)
    points = corners.view(-1, 2, 2) * (backbone.image_size / size)
    labels = torch.tensor([CORNERS], dtype=torch.int32, device=points.device).expand(len(points), -1)
    decoded = backbone.decode(backbone.condition(features), features, points=(points, labels), token="single")
    return list((resize_logits(decoded.mask_logits, size)[:, 0] > 0).cpu().numpy())


def _merged(probability: Tensor, row: int, masks: Mapping[tuple[int, int], np.ndarray | None]) -> Tensor:
    """One label map ``(H, W)``: masks found before predictions, and of two masks the first organ's."""
    predicted = probability.argmax(0)
    label = torch.zeros_like(predicted)
    organs = range(len(probability) - 1, 0, -1)  # the first is written last
    for organ in organs:
        if masks[row, organ] is None:
            label[predicted == organ] = organ
    for organ in organs:
        if masks[row, organ] is not None:
            label[torch.from_numpy(masks[row, organ])] = organ
    return label.byte()


def keep_largest(labels: np.ndarray, organs: int) -> np.ndarray:
    """Phase 3: of each organ in a volume ``(N, H, W)`` the largest part whose voxels share faces."""
    kept = np.zeros_like(labels)
    for organ in range(1, organs + 1):
        parts, count = ndimage.label(labels == organ)
        if count:
            kept[parts == np.bincount(parts.ravel())[1:].argmax() + 1] = organ
    return kept


def retrain(
    aggregated: FeatureUNet,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 1e-4,
) -> FeatureUNet:
    """Phase 4: a copy of phase 1's model, all of it trained on slices and pseudo labels ``(N, 1, S, S)``."""
    network = copy.deepcopy(aggregated).requires_grad_(True).train()
    device = next(network.parameters()).device
    # over the whole batch and without the background, as the code's own
    loss_function = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1
    )
    optimizer = torch.optim.Adam(network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // RETRAINING_FALLS), FALL)
    for _ in (progress := trange(steps, desc="retraining")):
        index = torch.randint(0, len(images), (slices_per_step,))
        image, label = move(images[index].float().to(device), labels[index].to(device))
        optimizer.zero_grad()
        loss = loss_function(network(change_intensity(image)), label)
        check_loss(loss, "the adaptation")
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return network.eval()


def adapt(
    source: FeatureUNet,
    backbone: FrozenSAM2,
    volumes: Mapping[str, Tensor],
    aggregation_steps: int = 160,
    aggregation_rate: float = 1e-4,
    retraining_steps: int = 1200,
    retraining_rate: float = 1e-4,
    settings: SearchSettings = SearchSettings(),
) -> FeatureUNet:
    """An adapted copy of the source model, which is left as it is.

    Args:
        source: the source model.
        backbone: the foundation model.
        volumes: target images, ``(slices, 1, S, S)`` for each case.
        aggregation_steps, aggregation_rate: of phase 1.
        retraining_steps, retraining_rate: of phase 4.
        settings: of the box search.
    """
    aggregated = aggregate(source, joined(volumes), steps=aggregation_steps, learning_rate=aggregation_rate)
    searched, masks = [], 0
    for images in tqdm(volumes.values(), desc="searching boxes"):
        labels, found = search_boxes(aggregated, backbone, images, settings=settings)
        searched.append(labels)
        masks += found
    print(f"Box search: {masks} masks found in {sum(map(len, searched))} slices.")
    return retrain(
        aggregated, joined(volumes), torch.cat(searched), steps=retraining_steps, learning_rate=retraining_rate
    )


def _resized(maps: Tensor, size: int) -> Tensor:
    if maps.shape[-1] == size:
        return maps
    return F.interpolate(maps.float(), (size, size), mode="bilinear", align_corners=False)
