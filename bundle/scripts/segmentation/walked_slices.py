"""What a walk through a volume is fed with: its slices, scaled, resized and encoded a few at a time, and the memories
that are synthesised for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace

import torch
from monai.transforms import Resize
from monai.utils import convert_to_tensor
from torch import Tensor

from ..errors import RefusedError
from ..networks.diffusam import DiffuSAM
from ..networks.naming_head import grouped, smoothed
from ..networks.sam2_types import ImageFeatures
from .views import View

BLOCK = 16  # slices whose windows are looked at together, whatever the number that is encoded at a time


class VolumeSlices:
    """The slices of a volume ``(H, W, slices)`` on their way into the network: scaled to [0, 1], resized, encoded, with
    memories.
    """

    sample = 0  # which of the memories that the prior may generate

    def __init__(
        self,
        volume: Tensor,
        network: DiffuSAM,
        *,
        batch_size: int,
        scale: Callable[[Tensor], Tensor] = Tensor.float,
        on_features: Callable[[VolumeSlices, Sequence[int], ImageFeatures], None] | None = None,
    ) -> None:
        self.scale = scale
        self.volume, self.network, self.batch_size, self.on_features = volume, network, batch_size, on_features
        self.count = volume.shape[-1]
        self.device = next(network.parameters()).device
        size = network.backbone.image_size
        # in plane what the training's `Resized` does to the volume, whose slice spacing stays as it is
        self.resize = Resize((size, size), mode="bilinear", anti_aliasing=True)
        self.view = View()

    def seen_in(self, view: View) -> VolumeSlices:
        """The same slices in a view, whose features are shown to nobody."""
        other = copy(self)
        other.view, other.on_features = view, None
        return other

    def encode(self, indices: list[int]) -> tuple[ImageFeatures, Tensor]:
        """Image features of some slices and their synthesised memories ``(n, organs, M, h, w)``."""
        features, named = self.named(indices)
        return features, self.synthesise(features, self.masks(named))

    def name(self, features: ImageFeatures) -> Tensor | None:
        """What the network's head names; see :meth:`~scripts.networks.diffusam.DiffuSAM.name`.

        Raises:
            RefusedError: numbers that are none.
        """
        # a head may have an encoder of its own
        parts = [self.network.name(part) for part in features.split(self.batch_size)]
        return None if parts[0] is None else checked(torch.cat(parts))

    def named(self, indices: Sequence[int]) -> tuple[ImageFeatures, Tensor | None]:
        """Image features of some slices, and what is named in each by itself."""
        features = self.features(list(indices))
        return features, self.name(features)

    def masks(self, named: Tensor | None) -> Tensor | None:
        """Masks ``(n, organs, S, S)`` of what is named; None where the network generates memories."""
        return None if named is None else self.network.named_masks(named, self.sample)

    def synthesise(self, features: ImageFeatures, masks: Tensor | None, organs: Sequence[int] | None = None) -> Tensor:
        """Memories ``(n, organs, M, h, w)`` of all organs, or of some, given what :meth:`masks` returns."""
        memories = self.network.synthesise(features, sample=self.sample, organs=organs, masks=masks)
        return memories.unflatten(0, (len(features), -1))

    def features(self, indices: list[int]) -> ImageFeatures:
        features = self._encoded(indices)
        if self.on_features is not None:
            self.on_features(self, indices, features)
        return features

    def _encoded(self, indices: list[int]) -> ImageFeatures:
        parts = (indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size))
        return ImageFeatures.joined([self._encoded_at_once(part) for part in parts])

    def _encoded_at_once(self, indices: list[int]) -> ImageFeatures:
        backbone = self.network.backbone
        if not backbone.slice_context:
            return self.network.encode(self._shown(indices))
        around = with_neighbours(indices, self.count)
        wanted = sorted({index for triple in around for index in triple})
        planes = self._shown(wanted)[:, 0]  # each is resized once, whichever slices it lies beside
        rows = torch.tensor([[wanted.index(index) for index in triple] for triple in around])
        return self.network.encode(planes[rows])

    def _shown(self, indices: list[int]) -> Tensor:
        """Some slices ``(n, 1, S, S)`` as the network sees them."""
        stored = self.volume[..., indices].to(self.device)  # a GPU scales and resizes faster than it is waited for
        image = self.resize(self.scale(stored.permute(2, 0, 1)))
        return self.view.show(convert_to_tensor(image, track_meta=False)[:, None])

    def chunks(self, in_blocks: bool = False) -> Iterator[list[int]]:
        """Indices of all slices in their order, ``batch_size`` at a time, or one block."""
        size = BLOCK if in_blocks else self.batch_size
        for indices in torch.arange(self.count).split(size):
            yield indices.tolist()


class SmoothedNames:
    """Image features of a walk's slices, and what the head names in each when it is asked together with the slices on
    both sides.

    One of them lies ahead of the walk, so each batch encodes the next slice of either direction as well, whose features
    are kept.

    Args:
        source: of the slices.
        weight: of what is named in each slice beside a slice's own.
    """

    def __init__(self, source: VolumeSlices, weight: float) -> None:
        self.source, self.weight = source, weight
        self._kept: dict[int, tuple[ImageFeatures, Tensor]] = {}

    def of(self, indices: Sequence[int]) -> tuple[ImageFeatures, Tensor]:
        """Features of n slices, without their images, and log-probabilities ``(n, organs + 1, S/4, S/4)``, the last of
        all other structures together.
        """
        around = with_neighbours(indices, self.source.count)
        wanted = dict.fromkeys([*indices, *(index for triple in around for index in triple)])
        new = [index for index in wanted if index not in self._kept]
        if new:
            features = self.source.features(new)
            named = grouped(self.source.name(features), len(self.source.network.organs)).log_softmax(1)
            features = replace(features, image=None)
            self._kept |= {index: (features[row : row + 1], named[row]) for row, index in enumerate(new)}
        self._kept = {index: self._kept[index] for index in wanted}  # the walk does not come back
        before, own, after = (torch.stack([self._kept[index][1] for index in row]) for row in zip(*around))
        features = ImageFeatures.joined([self._kept[index][0] for index in indices])
        return features, smoothed(before, own, after, self.weight)


class OwnMemories:
    """Image features of a batch of slices, and the synthesised memories of the organs that may be in them.

    Args:
        source: of the slices.
        organs: for each slice the organs to look for; a slice without any is not encoded.
        named: gives features of slices, and what is named in them.
    """

    def __init__(
        self,
        source: VolumeSlices,
        organs: Mapping[int, tuple[int, ...]],
        *,
        named: Callable[[Sequence[int]], tuple[ImageFeatures, Tensor | None]],
    ) -> None:
        self.network, self.device = source.network, source.device
        self._rows = {index: row for row, index in enumerate(index for index, each in organs.items() if each)}
        self._memories: dict[tuple[int, int], Tensor] = {}  # of each slice and organ, ``(M, h, w)``
        if not self._rows:
            return
        self._features, names = named(list(self._rows))
        masks = source.masks(names)
        self._named = None if masks is None else masks.flatten(2).any(2).tolist()
        for wanted in dict.fromkeys(organs[index] for index in self._rows):
            indices = [index for index in self._rows if organs[index] == wanted]
            whole, rows = len(wanted) == len(self.network.organs), [self._rows[index] for index in indices]
            of_these = None if masks is None else masks[rows]
            memories = source.synthesise(self._select(rows), of_these, None if whole else wanted)
            for index, of_slice in zip(indices, memories):
                self._memories |= {(index, organ): memory for organ, memory in zip(wanted, of_slice)}

    def named(self, index: int, organ: int) -> bool:
        """Whether a slice's memory of an organ is one of something: generated, or of a mask that is not empty."""
        return self._named is None or self._named[self._rows[index]][organ]

    def of(self, indices: Sequence[int], organs: Sequence[int]) -> tuple[ImageFeatures, Tensor]:
        """Features of n slices, and memories ``(n * organs, M, h, w)`` of some organs."""
        memories = torch.stack([self._memories[index, organ] for index in indices for organ in organs])
        return self.features(indices), memories

    def features(self, indices: Sequence[int]) -> ImageFeatures:
        """Features of some slices."""
        return self._select([self._rows[index] for index in indices])

    def _select(self, rows: list[int]) -> ImageFeatures:
        return self._features if rows == list(range(len(self._rows))) else self._features[rows]


def checked(logits: Tensor) -> Tensor:
    """The same logits. What is not a number is larger than nothing, so it would be taken for background.

    Raises:
        RefusedError: some are infinite, or not numbers.
    """
    if not logits.isfinite().all():
        raise RefusedError(
            "The network gives numbers that are none (nan, or infinite). In half precision they may have grown too "
            "large: give --amp False."
        )
    return logits


def with_neighbours(indices: Sequence[int], count: int) -> list[list[int]]:
    """Each slice between the two beside it, of ``count`` in all; the ends are their own neighbours."""
    return [[max(index - 1, 0), index, min(index + 1, count - 1)] for index in indices]
