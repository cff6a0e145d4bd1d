"""A naming head with an image encoder of its own, which begins as the backbone's and learns from labelled volumes.

The frozen encoder has never seen the scanner of the three labelled volumes. A copy of it that may learn from them names
organs as a U-Net does that was pretrained on the same patients; SAM2 itself, its memories and its decoder stay as they
are. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

from torch import Tensor, nn

from .naming_head import NamingHead, naming_classes
from .sam2_backbone import SAM2, encoded_at_once
from .sam2_blocks import image_features
from .sam2_types import ImageFeatures

ENCODER = "sam2."  # how its weights' names begin


class NamingNetwork(NamingHead):
    """:class:`NamingHead` over a copy of the backbone's image encoder, which is trained with it.

    Args:
        backbone: whose encoder it begins with.
        classes: see :class:`NamingHead`.
    """

    reads_images = True

    def __init__(self, backbone: SAM2, classes: Sequence[str]) -> None:
        super().__init__(backbone.embedding_channels, classes)
        self.sam2 = nn.Module()  # the parts that SAM2 encodes images with, where it has them
        self.sam2.image_encoder = deepcopy(backbone.model.image_encoder)
        self.sam2.sam_mask_decoder = nn.Module()
        for name in ("conv_s0", "conv_s1"):
            self.sam2.sam_mask_decoder.add_module(name, deepcopy(getattr(backbone.model.sam_mask_decoder, name)))
        self.sam2.requires_grad_(True)
        self.register_buffer("pixel_mean", backbone.pixel_mean.clone(), persistent=False)
        self.register_buffer("pixel_std", backbone.pixel_std.clone(), persistent=False)

    def forward(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """As :meth:`NamingHead.forward`; of ``features`` it is the images that count.

        Raises:
            ValueError: they hold none.
        """
        if features.image is None:
            raise ValueError("A naming network encodes images itself, but these features came without theirs.")
        image = (features.image.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std
        parts = image.split(encoded_at_once(image.shape[-1], image.device))
        return super().forward(ImageFeatures.joined([image_features(self.sam2, part) for part in parts]))

    def begin_as(self, backbone: SAM2) -> None:
        """Takes the encoder of a backbone once more, whose weights may have been loaded since."""
        weights = backbone.model.state_dict()
        self.sam2.load_state_dict({key: weights[key] for key in self.sam2.state_dict()})

    def take_over(self, weights: Mapping[str, Tensor], classes: Sequence[str]) -> None:
        """As :meth:`NamingHead.take_over`; the encoder stays as it is where the other head has none."""
        own = {f"{ENCODER}{key}": value for key, value in self.sam2.state_dict().items()}
        super().take_over({**own, **weights}, classes)


def naming(backbone: SAM2, organs: Sequence[str], *, own_encoder: bool = False) -> NamingHead:
    """A head that names these organs and all that pretraining has named besides.

    Args:
        backbone: whose features it reads.
        organs: of the network.
        own_encoder: whether it has an image encoder of its own.
    """
    classes = naming_classes(organs)
    return NamingNetwork(backbone, classes) if own_encoder else NamingHead(backbone.embedding_channels, classes)
