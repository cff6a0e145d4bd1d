"""The model that all rows but the upper bound start from: a UNet trained on the source, and the file that keeps it.

DPL and DFG need more of a network than its logits: features of every pixel, and a linear classifier over them, whose
weights are DFG's class prototypes. MONAI's UNet ends in neither. The reading taken here: the UNet of Table 1 gives
feature channels in place of organs, and a 1 x 1 convolution classifies them, which is how the published UNet of DFG
ends (``outc`` in its ``trainers/target_adapt_FA_trainer.py``). Nothing else of the UNet row changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scripts.weights import check_finite
from torch import Tensor, nn

from benchmarks.baselines.evaluation import CHANNELS
from benchmarks.baselines.supervised import plain_unet


class FeatureUNet(nn.Module):
    """The UNet with a feature vector for every pixel and a linear classifier over it.

    The classifier has no bias, so that its weights alone are what a pixel is compared with. Dropout comes before it, as
    in DPL's decoder (``networks/decoder.py``, rate 0.1), and in every layer of the UNet, as in the UNet row.

    Args:
        organs: K.
        channels: widths of the UNet's levels.
        features: F.
        dropout: rate of every dropout layer.

    Example:
        >>> FeatureUNet(organs=4, channels=(4, 8), features=6)(torch.rand(1, 1, 32, 32)).shape
        torch.Size([1, 5, 32, 32])
    """

    def __init__(
        self, organs: int, channels: Sequence[int] = CHANNELS, *, features: int = 16, dropout: float = 0.1
    ) -> None:
        super().__init__()
        # no norm here: one over each slice would make features of a slice without organs as strong as those of any
        self.body = nn.Sequential(plain_unet(features, channels, dropout), nn.PReLU())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(features, organs + 1, 1, bias=False)

    @property
    def prototypes(self) -> Tensor:
        """Weights of the classifier ``(1 + K, F)``, background first."""
        return self.classifier.weight[:, :, 0, 0]

    def features(self, image: Tensor) -> Tensor:
        """``(B, 1, S, S)`` in [0, 1] to ``(B, F, S, S)``."""
        return self.body(image)

    def classify(self, features: Tensor) -> Tensor:
        """Features to logits ``(B, 1 + K, S, S)``."""
        return self.classifier(self.dropout(features))

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image))


@dataclass(frozen=True)
class SourceModel:
    """A trained source model.

    Attributes:
        network: in evaluation mode; a fresh copy at every :func:`load_source`.
        organs: names, in the order of its channels after the background.
        about: the cases and settings of the configuration that it was trained with.
        seconds_training: of its training.
        fingerprint: of the file.
    """

    network: FeatureUNet
    organs: list[str]
    about: dict[str, Any]
    seconds_training: float
    fingerprint: str


def load_source(path: str | Path, organs: Sequence[str] | None = None, image_size: int | None = None) -> SourceModel:
    """Reads a source model; nothing of the source's data is needed or looked for.

    Args:
        path: of ``train_source``.
        organs: those of the target's configuration, to compare.
        image_size: of the target's configuration, to compare.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was trained for other organs or another slice size.
        UnusableFileError: its training has diverged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"The source model '{path}' is not there. Train it first: run.py train_source --config_file SOURCE "
            f"--source_model {path}."
        )
    content = path.read_bytes()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    about, settings = saved["identity"]["about"], saved["identity"]["settings"]
    if organs is not None and about["organs"] != list(organs):
        raise ValueError(
            f"The source model '{path}' was trained for the organs {about['organs']}, the target's configuration names "
            f"{list(organs)}. Use the same names and order in `label_map`."
        )
    if image_size is not None and about["image_size"] != image_size:
        raise ValueError(
            f"The source model '{path}' was trained on slices of {about['image_size']} pixels, the target's "
            f"configuration has `image_size` {image_size}. Give --image_size {about['image_size']}, or train another "
            "source model."
        )
    network = FeatureUNet(len(about["organs"]), **{key: settings[key] for key in ("channels", "features", "dropout")})
    check_finite(path, saved["network"], remedy="Train it again, with a smaller --learning_rate.")
    network.load_state_dict(saved["network"])
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    return SourceModel(network.eval(), about["organs"], about, saved["seconds_training"], fingerprint)
