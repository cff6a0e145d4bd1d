"""How far to trust a segmentation: several samples of the memory, and where and how much their results disagree.

The prior p(z_mem | z_img, l) is generative (section 2.1), so a slice has as many memories as there are seeds. Each
sample walks through the volume by itself (Equation 3); the image features, which do not depend on it, are shared.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..errors import SettingError
from ..networks.diffusam import DiffuSAM
from ..networks.logits import resize_logits, with_background
from ..networks.sam2_types import ImageFeatures
from .propagation import Corrector, VolumetricInferer
from .walked_slices import VolumeSlices

PROBABILITY_STEPS = 255  # a probability is stored as a byte


class UncertaintyInferer(VolumetricInferer):
    """A :class:`VolumetricInferer` that says how far to trust its result.

    The result is that of the first sample, the same as without uncertainty. Beside it come

    * a further channel, the last, in steps of 1/255: the uncertainty of each voxel, 1 - p, where p is the probability
      of the voxel's label, averaged over the samples. It is meant as the probability that the label is wrong, so it can
      be compared with how often labels are wrong; an entropy cannot.
    * :attr:`predicted_dice`.

    Args:
        samples: memories drawn for each slice and organ, with the seeds ``network.seed``, ``network.seed`` + 1, ...; 0
            leaves uncertainty out, and is a plain :class:`VolumetricInferer`.
        options: see :class:`VolumetricInferer`.

    Attributes:
        predicted_dice: of the last volume, for each organ: the mean Dice, over the whole volume, between the result and
            those of the other samples, before calibration. None for an organ that no sample has; an empty list without
            uncertainty.

    Raises:
        ValueError: one sample, which has none to be compared with, or fewer than none.
    """

    def __init__(self, samples: int = 0, **options: Any) -> None:
        super().__init__(**options)
        if samples < 0 or samples == 1:
            raise SettingError(f"uncertainty needs at least 2 samples, or 0 to leave it out, got {samples}.")
        self.samples = samples
        self.predicted_dice: list[float | None] = []

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: DiffuSAM, *args: Any, corrector: Corrector | None = None, **kwargs: Any
    ) -> Tensor:
        """Segments a volume; see :class:`VolumetricInferer`, whose channels are followed by the uncertainty.

        What a user has corrected is in the result; uncertainty and predicted Dice are those before the correction.
        """
        self.predicted_dice = []
        if not self.samples:
            return super().__call__(inputs, network, *args, corrector=corrector, **kwargs)
        source = self._source(inputs, network)
        plain = self._empty_output(source.volume, len(source.network.organs))
        output = plain.new_empty((1, plain.shape[1] + 1, *source.volume.shape))
        agreement = SampleAgreement(len(source.network.organs))
        compared = self._compared(source, output[0, -1], agreement)
        self._write_all(output[:, :-1], source, compared, corrector)
        self.predicted_dice = agreement.dice()
        return self._result(output, inputs)

    def _compared(
        self, source: VolumeSlices, uncertainties: Tensor, agreement: SampleAgreement
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the first sample's slices, and compares all samples on them.

        Args:
            source: of the volume.
            uncertainties: gets the uncertainty, ``(H, W, slices)``.
            agreement: gets the samples' label maps.
        """
        shared: dict[str, Any] = {}
        # in step with one another, so that each batch of slices is encoded once
        walks = [self._decode_all(_Sample(source, sample, shared=shared)) for sample in range(self.samples)]
        for decoded in zip(*walks, strict=True):
            indices, _ = decoded[0]
            yield decoded[0]
            size = source.volume.shape[:2]
            uncertainty, labels = uncertainty_of_samples([logits for _, logits in decoded], size)
            agreement.add(labels)
            uncertainties[..., indices] = (uncertainty * PROBABILITY_STEPS).round().permute(1, 2, 0).to(uncertainties)


class _Sample(VolumeSlices):
    """The slices of a volume with one of several samples of their memories; all of them share image features.

    Args:
        source: of the volume.
        sample: its number.
        shared: what all samples keep the features of the last batch in, and what is named in it.
    """

    def __init__(self, source: VolumeSlices, sample: int, *, shared: dict[str, Any]) -> None:
        super().__init__(
            source.volume,
            source.network,
            batch_size=source.batch_size,
            scale=source.scale,
            on_features=source.on_features,
        )
        self.sample, self.shared = sample, shared

    def features(self, indices: list[int]) -> ImageFeatures:
        view, encoded = self.shared.get("shown", (None, []))
        if view != self.view or not set(indices) <= set(encoded):
            self.shared.update(shown=(self.view, indices), features=super().features(indices))
            encoded = indices
        features = self.shared["features"]
        return features if indices == encoded else features[[encoded.index(index) for index in indices]]

    def name(self, features: ImageFeatures) -> Tensor | None:
        if self.shared.get("of") is not features:  # named once for all samples, by what may be an encoder of its own
            self.shared.update(of=features, named=super().name(features))
        return self.shared["named"]


class SampleAgreement:
    """Dice between the label maps of several samples, summed up a few slices at a time.

    Args:
        organs: K, label values 1...K.
    """

    def __init__(self, organs: int) -> None:
        self.organs = organs
        self.shared: Tensor | float = 0.0

    def add(self, labels: Tensor) -> None:
        """Takes some slices ``(samples, n, H, W)`` of every sample."""
        flat = labels.flatten(1)
        found = []
        for organ in range(1, self.organs + 1):  # one after the other: masks of all would be large
            mask = flat == organ
            # (samples,): voxels in common with the first sample, and in each sample by itself
            found.append(torch.stack([(mask & mask[:1]).sum(1), mask.sum(1)]))
        self.shared = self.shared + torch.stack(found, 1).double()

    def dice(self) -> list[float | None]:
        """For each organ the mean Dice between the first sample and each of the others, None where all are empty."""
        result = []
        for common, voxels in zip(*self.shared):
            if not voxels.any():
                result.append(None)
                continue
            dice = (
                2 * common[1:] / (voxels[0] + voxels[1:])
            )  # 0 / 0 is of two that are empty both, though a third is not
            result.append(dice.nan_to_num(1.0).mean().item())
        return result


def uncertainty_of_samples(logits: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Uncertainty in the first of several samples.

    Args:
        logits: of each sample, organ logits ``(n, K, S/4, S/4)`` of n slices.
        size: (H, W) of the volume.

    Returns:
        The uncertainty ``(n, H, W)`` in [0, 1], and the label maps ``(samples, n, H, W)`` of all samples.
    """
    labels, trust = [], 0.0
    for each in logits:
        merged = with_background(resize_logits(each, size))
        labels.append(merged.argmax(1, keepdim=True))
        trust = trust + merged.softmax(1).gather(1, labels[0])
    return (1 - trust / len(logits)).clamp(0, 1)[:, 0], torch.stack(labels)[:, :, 0]


class SplitUncertaintyd(MapTransform):
    """Takes the last channel, the uncertainty of a :class:`UncertaintyInferer`, out of its result.

    Args:
        keys: results ``(C + 1, ...)``; become ``(C, ...)``.
        uncertainty_key: gets ``(1, ...)``, uint8, in steps of 1/255.
    """

    def __init__(self, keys: KeysCollection, uncertainty_key: str = "uncertainty") -> None:
        super().__init__(keys)
        self.uncertainty_key = uncertainty_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key], result[self.uncertainty_key] = result[key][:-1], result[key][-1:].to(torch.uint8)
        return result
