"""ProtoSAM: one labelled volume, whose prototypes find each organ coarsely, and SAM2 asked there. No training.

After Ayzenberg et al., "ProtoSAM: One-Shot Medical Image Segmentation With Foundational Models" (arXiv:2407.07042),
which DiffuSAM's paper cites as the one-shot relative. For every slice and organ

1. prototypes are taken from a labelled slice, as ALPNet does: the mean features of each cell of a grid that lies within
   the organ, and of the organ as a whole; and of each cell outside it, which are the background's;
2. each place of the slice is scored by its cosine similarity to them, times 20: for either class the sum of the
   similarities, weighted by their own softmax. It is the organ's where the organ's score is the higher one;
3. of the connected components the one with the greatest sum of probability is kept. Its box, its most probable point
   and its centroid are the prompts;
4. SAM's mask decoder answers with its single mask, which is the result.

This is the paper's, or where it leaves room the published code's (levayz/ProtoSAM: ``models/ProtoSAM.py``,
``alpmodule.py``, ``grid_proto_fewshot.py`` and the defaults of ``config_ssl_upload.py``): cells of 2 x 2 places, a cell
of a class where it is so to more than 95 %, the organ as a whole alone where no cell is, of several labelled slices the
highest score, diagonal neighbours connected, organs one by one, each other organ being background.

What differs, because rows of a table share their backbone, or because it asks for what a new scan does not tell:

* features are the frozen SAM2's, there DINOv2's: its image embedding and both finer maps at stride 8, where 256 pixels
  have ALPNet's 32 x 32 places. SAM2's channels have means and scales of their own, which cosine similarity would see
  most, so each is standardised by the labelled slices; each map has the same weight;
* there the organ's extent along the volume is known, cut into three parts, and each part compared with the middle slice
  of the same part of the labelled volume; slices beyond the extent are not tested. Here every slice is tested, and
  prototypes come from the labelled slices whose features at the same places are the most similar, among all slices of
  the labelled volume. Where none of them holds an organ, nor does the slice;
* three such slices, there one: that, and the finer maps, were better than one slice and than the embedding alone where
  each of three volumes was tested with another one labelled (CHAOS 3, 5 and 10, which are no test volumes);
* masks are SAM2's, at the configuration's size and intensities; there SAM ViT-H's at 1024 pixels, slices scaled from
  their minimum to maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scripts.errors import SettingError
from scripts.networks.logits import NO_OBJECT_LOGIT
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures
from torch import Tensor

from .slicewise import SlicewiseInferer, encoded_slices

PROMPTS = ("box_and_points", "box", "points", "none")
STRIDE = 8  # pixels of the network's input a place
_SCALE = 20.0  # of similarities, as PANet and ALPNet have it
_SHARE = 0.95  # of a cell that is a class's
_INSIDE, _CORNERS = 1, (2, 3)  # SAM's labels of points
_LEVELS = ("embedding", "high_res_fine", "high_res_coarse")


class LabelledSlices:
    """Slices of the labelled volumes, to find the most similar by, and to take prototypes from.

    What is held grows with the slices, 0.35 MiB each for ``sam2_nano`` at 256 pixels, 2.8 MiB for SAM2 tiny at 512.

    Args:
        files: of the embedding cache (``scripts.training.encoded_slices.EncodedSlices``), one for each volume.
        organs: K.
        device: to compare slices on.
        window: places along each side of a cell.

    Raises:
        SettingError: no organ in any slice, or a window that is not at least 1 and at most a slice.
    """

    def __init__(self, files: Sequence[str | Path], organs: int, *, device: torch.device, window: int = 2) -> None:
        contents = [torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in files]
        if not any(content["present"].any() for content in contents):
            raise SettingError(f"None of the {len(contents)} labelled volumes has a slice that holds an organ.")
        self.organs, self.window = organs, window
        maps = [at_stride(*(content[level].to(device).float() for level in _LEVELS)) for content in contents]
        moments = [torch.std_mean(torch.cat(level), (0, 2, 3), keepdim=True) for level in zip(*maps)]
        self.moments = [(mean, std.clamp_min(1e-6)) for std, mean in moments]
        self.features = torch.cat([self.directions(each).half() for each in maps])
        side = self.features.shape[-1]
        if not 1 <= window <= side:
            raise SettingError(f"window must lie in 1...{side}, the places along a slice, got {window}.")
        values = torch.arange(1, organs + 1).view(1, -1, 1, 1)
        middle = STRIDE // 2
        labels = torch.cat([content["label"][:, middle::STRIDE, middle::STRIDE] for content in contents])
        self.masks = (labels[:, None] == values).to(device)  # (N, K, S/8, S/8)

    def __len__(self) -> int:
        return len(self.features)

    def directions(self, maps: Sequence[Tensor]) -> Tensor:
        """Features of unit length, whose dot product is the mean cosine similarity of the maps: ``(B, D, h, w)``."""
        units = [F.normalize((each - mean) / std, dim=1) for each, (mean, std) in zip(maps, self.moments)]
        return torch.cat(units, 1) / len(units) ** 0.5

    def of_slices(self, features: ImageFeatures) -> Tensor:
        """Those of encoded slices."""
        levels = (features.embedding, *features.high_res)
        return self.directions(at_stride(*(each.to(self.features.device).float() for each in levels)))

    def nearest(self, query: Tensor, count: int) -> Tensor:
        """The ``count`` labelled slices most similar to one slice ``(D, h, w)``, place by place, the nearest first."""
        similarity = self.features.flatten(1).float() @ query.flatten()
        return similarity.argsort(descending=True, stable=True)[:count]

    def scores(self, query: Tensor, indices: Tensor) -> Tensor:
        """Of each organ, how far its score lies above the background's: ``(K, h, w)``; -inf where none is there.

        Args:
            query: ``(D, h, w)``.
            indices: of the labelled slices.
        """
        features, masks = self.features[indices].float(), self.masks[indices].float()
        cells = F.avg_pool2d(features, self.window).flatten(2).transpose(1, 2)  # (n, cells, D)
        shares = F.avg_pool2d(masks, self.window).flatten(2)  # (n, K, cells)
        places = query.flatten(1)
        similar = _SCALE * F.normalize(cells, dim=-1) @ places  # (n, cells, places)
        found = places.new_full((self.organs, places.shape[1]), -torch.inf)
        for organ in range(self.organs):
            outside = similar[1 - shares[:, organ] > _SHARE]
            if not len(outside):
                continue
            above = [
                _agreement(torch.cat([similar[each][shares[each, organ] > _SHARE], _SCALE * whole @ places]))
                for each in range(len(indices))
                if len(whole := _whole(features[each], masks[each, organ]))
            ]
            if above:
                found[organ] = torch.stack(above).amax(0) - _agreement(outside)
        return found.unflatten(1, query.shape[1:])


def at_stride(embedding: Tensor, fine: Tensor, coarse: Tensor) -> list[Tensor]:
    """A backbone's three maps at stride 8: the embedding of stride 16, and the finer ones of strides 4 and 8."""
    size = coarse.shape[-2:]
    return [F.interpolate(embedding, size, mode="bilinear"), F.avg_pool2d(fine, 2), coarse]


def _whole(features: Tensor, mask: Tensor) -> Tensor:
    """The prototype of a mask ``(h, w)`` as a whole: ``(1, D)``, or ``(0, D)`` where nothing is in it."""
    inside = features[:, mask > 0]
    return F.normalize(inside.mean(1)[None], dim=1) if inside.numel() else features.new_zeros(0, len(features))


def _agreement(similar: Tensor) -> Tensor:
    """Similarities ``(prototypes, places)`` as one score a place: their sum, weighted by their own softmax."""
    return (similar.softmax(0) * similar).sum(0)


class ComponentPrompts(NamedTuple):
    """The component ``(H, W)`` bool, its box as two corners ``(2, 2)``, and its most probable point and centroid, as
    (x, y) in pixels.
    """

    component: np.ndarray
    box: np.ndarray
    inside: list[list[float]]


def component_prompts(score: np.ndarray) -> ComponentPrompts | None:
    """The best connected component of a coarse mask, and the prompts it gives.

    Args:
        score: ``(H, W)``, how far the organ lies above the background; the mask is where that is positive.

    Returns:
        None of an empty mask.
    """
    mask = score > 0
    if not mask.any():
        return None
    labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
    probability = 1 / (1 + np.exp(-np.clip(score, -50, 50)))
    best = 1 + int(np.argmax(ndimage.sum_labels(probability, labelled, np.arange(1, count + 1))))
    component = labelled == best
    rows, columns = component.nonzero()
    box = np.array([[columns.min(), rows.min()], [columns.max(), rows.max()]], dtype=np.float32)
    row, column = np.unravel_index(np.where(component, score, -np.inf).argmax(), score.shape)
    inside = [[float(column), float(row)], [float(columns.mean()), float(rows.mean())]]
    return ComponentPrompts(component, box, inside)


class ProtoSamInferer(SlicewiseInferer):
    """Runs ProtoSAM over a volume, slice by slice.

    Args:
        labelled: slices of the labelled volumes.
        supports: labelled slices that a slice takes its prototypes from.
        prompts: what SAM2 is given of the coarse mask: one of :data:`PROMPTS`; with ``"none"`` the coarse mask is the
            result.
        batch_size: slices encoded at a time.

    Raises:
        SettingError: no support, or unknown prompts.
    """

    def __init__(
        self, labelled: LabelledSlices, supports: int = 3, *, prompts: str = "box_and_points", batch_size: int = 8
    ) -> None:
        super().__init__(labelled.organs)
        if supports < 1:
            raise SettingError(f"supports must be at least 1, got {supports}.")
        if prompts not in PROMPTS:
            raise SettingError(f"prompts must be one of {', '.join(PROMPTS)}, got '{prompts}'.")
        self.labelled, self.supports, self.prompts, self.batch_size = labelled, supports, prompts, batch_size

    def segment(self, inputs: Tensor, network: FrozenSAM2, *args) -> Iterator[tuple[list[int], Tensor]]:
        """Yields slices one by one, from the first to the last."""
        for chunk in torch.arange(inputs.shape[-1]).split(self.batch_size):
            features = encoded_slices(inputs, chunk.tolist(), network)
            for row, (index, query) in enumerate(zip(chunk.tolist(), self.labelled.of_slices(features))):
                yield [index], self._masks(network, features[[row]], query)

    def _masks(self, network: FrozenSAM2, features: ImageFeatures, query: Tensor) -> Tensor:
        """Organ logits ``(1, K, S/4, S/4)`` of one slice, or ``(1, K, S, S)`` of its coarse mask."""
        scores = self.labelled.scores(query, self.labelled.nearest(query, self.supports))
        size = network.image_size
        scores = F.interpolate(scores.clamp_min(NO_OBJECT_LOGIT)[None], (size, size), mode="bilinear")[0].cpu().numpy()
        found = {organ: prompt for organ in range(self.organs) if (prompt := component_prompts(scores[organ]))}
        if self.prompts == "none":
            coarse = np.full_like(scores, NO_OBJECT_LOGIT)
            for organ, prompts in found.items():
                coarse[organ][prompts.component] = scores[organ][prompts.component]
            return torch.from_numpy(coarse)[None]
        logits = torch.full((1, self.organs, size // 4, size // 4), NO_OBJECT_LOGIT, device=features.embedding.device)
        if found:
            points, labels = (each.to(logits.device) for each in self._points(list(found.values())))
            repeated = features.repeat_interleave(len(found))
            decoded = network.decode(network.condition(repeated), repeated, points=(points, labels), token="single")
            logits[0, list(found)] = decoded.mask_logits[:, 0].float()
        return logits

    def _points(self, prompts: Sequence[ComponentPrompts]) -> tuple[Tensor, Tensor]:
        """Coordinates ``(n, P, 2)`` as (x, y) in pixels and labels ``(n, P)``; a box comes first, as in SAM2."""
        points, labels = [np.empty((len(prompts), 0, 2))], []
        if self.prompts != "points":
            points.append(np.stack([each.box for each in prompts]))
            labels += _CORNERS
        if self.prompts != "box":
            points.append(np.array([each.inside for each in prompts]))
            labels += [_INSIDE] * 2
        return torch.tensor(np.concatenate(points, 1), dtype=torch.float32), torch.tensor([labels] * len(prompts)).int()
