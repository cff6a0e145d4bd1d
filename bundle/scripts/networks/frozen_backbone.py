"""What DiffuSAM and its relative AutoMedSAM have in common: a small trained prior over a SAM2 that never changes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..descriptions import Described, describe, differences
from ..errors import SettingError, UnusableFileError
from ..weights import not_finite
from .logits import resize_logits, with_background
from .naming_network import ENCODER
from .sam2_backbone import FrozenSAM2
from .sam2_types import Decoded, ImageFeatures

logger = logging.getLogger(__name__)
# settings of a diffusers scheduler without which a trained prior's output means something else
_DIFFUSION = {
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type"),
    "rescale_betas_zero_snr",
}


class FrozenBackboneNetwork(Described, nn.Module, ABC):
    """The frozen SAM2 and a prior that stands for the user's prompts; slices in, organ logits out.

    The ``state_dict`` holds the prior alone: the backbone never changes and is named by its own checkpoint. The prior's
    checkpoint holds which network, backbone and organs it was trained for, and refuses any other.

    Args:
        backbone: the frozen SAM2.
        prior: the part that is trained, with its number of ``organs`` and ``embedding_channels``.
        organs: names of the organs; output channel 0 is background, channel 1 + i is ``organs[i]``.
        seed: of the noise, the same for every slice, so that results do not depend on batching. None draws anew.
        object_gate: whether an organ is left out of a slice where SAM2's object score says it is absent.

    Raises:
        ValueError: the prior was built for another number of organs or other channels than the backbone's.
    """

    def __init__(
        self,
        backbone: FrozenSAM2,
        prior: nn.Module,
        *,
        organs: Sequence[str],
        seed: int | None = 0,
        object_gate: bool = True,
    ) -> None:
        super().__init__()
        kind = type(prior).__name__
        if prior.organs != len(organs):
            raise SettingError(
                f"The {kind} was built for {prior.organs} organs, but {len(organs)} are named: {list(organs)}."
            )
        if prior.embedding_channels != backbone.embedding_channels:
            raise SettingError(
                f"The {kind} works on image embeddings of {prior.embedding_channels} channels, backbone "
                f"'{backbone.name}' has {backbone.embedding_channels}."
            )
        self.backbone, self.prior, self.organs = backbone, prior, list(organs)
        self.seed, self.object_gate = seed, object_gate
        self.names: nn.Module | None = None  # a head that names organs, where a network has one
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of single slices, each by itself.

        Args:
            image: ``(B, 1, S, S)`` in [0, 1].

        Returns:
            ``(B, 1 + organs, S, S)``; background is 0 everywhere, so the arg-max over channels is the label map.
        """
        logits = self.segment(self.encode(image))
        return with_background(resize_logits(logits, self.backbone.image_size))

    def encode(self, image: Tensor) -> ImageFeatures:
        """Features of slices ``(B, 1 or 3, S, S)``, with the slices where a head reads them itself."""
        features = self.backbone.encode_image(image)
        return replace(features, image=image) if self.names is not None and self.names.reads_images else features

    @abstractmethod
    def segment(self, features: ImageFeatures) -> Tensor:
        """Mask logits of every organ in B slices, each by itself: ``(B, organs, S/4, S/4)``."""

    def trained_parameters(self) -> list[nn.Parameter]:
        """What training changes: the prior, and the head that names organs where there is one."""
        return [*self.prior.parameters(), *(self.names.parameters() if self.names is not None else ())]

    def each_organ(self, features: ImageFeatures) -> tuple[ImageFeatures, Tensor]:
        """Features of B slices and labels of the organs for each of the B * organs pairs, organs running fastest."""
        count = len(self.organs)
        organ = torch.arange(count, device=features.embedding.device).repeat(len(features))
        return features.repeat_interleave(count), organ

    def generator(self, sample: int = 0) -> torch.Generator | None:
        """A source of noise at its beginning, on the CPU so that every device draws the same; None without a seed.

        Each ``sample`` has a source of its own.
        """
        return None if self.seed is None else torch.Generator().manual_seed(self.seed + sample)

    def organ_logits(self, decoded: Decoded, slices: int | None = None) -> Tensor:
        """Mask logits of each slice's organs, gated by the object score: ``(B, organs, S/4, S/4)``.

        Args:
            decoded: of all organs in B slices, or of as many organs in each of ``slices``.
            slices: B, where organs are left out.
        """
        logits = decoded.gated() if self.object_gate else decoded.mask_logits
        count = len(logits) // len(self.organs) if slices is None else slices
        return logits.reshape(count, -1, *logits.shape[-2:])

    def get_extra_state(self) -> dict:
        return {
            "network": type(self).__name__,
            "backbone": self.backbone.name,
            "organs": self.organs,
            "weights": self.backbone.fingerprint(),
            "slice_context": self.backbone.slice_context,
            "image_size": self.backbone.image_size,
            "decoder_token": self.backbone.decoder_token,
            "scheduler": self._diffusion(),
            **({"joint_prior": True} if self._joint else {}),
        }

    @property
    def _joint(self) -> bool:
        return getattr(self.prior, "joint", False)

    def _diffusion(self) -> dict[str, Any]:
        """What the prior's scheduler says of the noise, and of what is predicted."""
        return {key: item for key, item in describe(self.prior.scheduler.config).items() if key in _DIFFUSION}

    def set_extra_state(self, state: dict) -> None:
        trained, own = state.get("network", "DiffuSAM"), type(self).__name__  # the first priors do not name theirs
        if trained != own:
            raise SettingError(
                f"This file holds a prior of {trained}, trained for the organs {state['organs']}, but the "
                f"configuration builds {own}. Use the overlays of its training ('configs/automedsam.json' is what "
                f"makes the network an AutoMedSAM), or point `prior_file` at a prior of {own}."
            )
        if state.get("joint_prior", False) != self._joint:
            kind = "all organs together" if state.get("joint_prior") else "one organ at a time"
            raise SettingError(
                f"This prior was trained to denoise {kind}, but the configuration sets joint_prior {self._joint}. Set "
                "`joint_prior` as in its training, or train another prior."
            )
        if state["backbone"] != self.backbone.name:
            raise SettingError(
                f"This prior was trained for backbone '{state['backbone']}', but the configuration names backbone "
                f"'{self.backbone.name}'. Set `backbone_name` as in its training, or train another prior."
            )
        if len(state["organs"]) != len(self.organs):
            raise SettingError(
                f"This prior was trained for {len(state['organs'])} organs {state['organs']}, and the configuration "
                f"names {len(self.organs)} organs {self.organs}. Name each of them in `label_map`, in that order; one "
                "that has a value which no label holds is not evaluated."
            )
        if state["organs"] != self.organs:
            raise SettingError(
                f"This prior was trained for the organs {state['organs']} in that order, the configuration names "
                f"{self.organs}. Use the same names and order in `label_map`."
            )
        if state.get("slice_context", False) != self.backbone.slice_context:
            raise SettingError(
                f"This prior was trained with slice_context {state.get('slice_context', False)}, but the configuration "
                f"sets {self.backbone.slice_context}. Set `slice_context` as in its training, or train another prior."
            )
        if state["weights"] != self.backbone.fingerprint():
            raise SettingError(
                f"This prior was trained with other weights of backbone '{self.backbone.name}' than those loaded. "
                "Memories of different weights do not mix: point `backbone_checkpoint` at the file used in training, "
                "or train again."
            )
        if state.get("image_size", self.backbone.image_size) != self.backbone.image_size:
            raise SettingError(
                f"This prior was trained on slices of {state['image_size']} pixels, the configuration has them in "
                f"{self.backbone.image_size}, where it would find little. Set `image_size` to {state['image_size']}, "
                "or train another prior."
            )
        own = self._diffusion()
        found = differences({key: state.get("scheduler", own).get(key) for key in own}, own)
        if found:
            raise SettingError(
                f"This prior was trained with another diffusion than the configuration's `scheduler`: "
                f"{'; '.join(found)}. Use the same, or train another prior."
            )
        token = state.get("decoder_token", self.backbone.decoder_token)
        if token != self.backbone.decoder_token:
            logger.warning(
                "The prior was trained with decoder_token '%s', which is '%s' now: its masks may be worse.",
                *(token, self.backbone.decoder_token),
            )


def _drop_backbone(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for key in [key for key in state_dict if key.startswith(prefix + "backbone.")]:
        del state_dict[key]


def _keep_backbone(module: FrozenBackboneNetwork, state_dict: dict, prefix: str, *_: object) -> None:
    """Lets a checkpoint of the prior alone load strictly: the backbone's entries are those it already has.

    The description of what the prior was trained for is checked here, before shapes are compared, because "another
    backbone" says more than a list of sizes.
    """
    extra = state_dict.get(prefix + "_extra_state")
    if extra is not None:
        module.set_extra_state(extra)
    spoilt = not_finite({key: value for key, value in state_dict.items() if key.startswith(prefix)})
    if spoilt:
        raise UnusableFileError(
            f"{len(spoilt)} of the prior's tensors hold NaN or infinite numbers (such as '{spoilt[0]}'): its training "
            "failed. Point `prior_file` at another prior, or train again with a smaller --learning_rate."
        )
    named = [key for key in state_dict if key.startswith(prefix + "names.")]
    if module.names is None:
        for key in named:  # the head of a file that has one is left where nobody asks for it
            del state_dict[key]
    elif not named:
        raise SettingError(
            "This prior's file has no head that names organs. Set `named_memories` to False, or point `prior_file` at "
            "a file that has one, such as the model that ships."
        )
    else:
        own_encoder = any(key.startswith(f"{prefix}names.{ENCODER}") for key in named)
        if own_encoder != module.names.reads_images:
            words = ("has", "True") if own_encoder else ("has not", "False")
            raise SettingError(
                f"The head of this prior's file {words[0]} an image encoder of its own. Set `names_encoder` to "
                f"{words[1]}, or `named_memories` to False."
            )
    for key, value in module.backbone.state_dict(prefix=prefix + "backbone.").items():
        state_dict.setdefault(key, value)
