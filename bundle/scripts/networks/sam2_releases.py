"""SAM2's released networks, and the embedded one: by which name and YAML file each is built, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from ..errors import MissingFileError, SettingError
from ..files import BUNDLE, sha256_of
from ..weights import check_finite, load_tensors

SAM2_YAML = {
    f"{release}_hiera_{size}": f"configs/{release}/{release}_hiera_{letter}.yaml"
    for release in ("sam2.1", "sam2")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}

NANO_YAML = BUNDLE / "models" / "sam2_nano.yaml"  # the embedded backbone, beside its weights

BACKBONES = (*SAM2_YAML, "sam2_nano")
EMBEDDING_STRIDE = 16  # pixels of the input image per token of the image embedding


def read_checkpoint(
    path: str | Path, *, name: str, expected: Mapping[str, Tensor], sha256: str | None = None
) -> dict[str, Tensor]:
    """The weights in a checkpoint of SAM2.

    Args:
        path: ``{"model": state_dict}``; MedSAM2's files have the same keys.
        name: of the backbone, for messages.
        expected: a state of that backbone, whose keys and shapes the file must have.
        sha256: of the file, or None to skip the check.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was found and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"SAM2 checkpoint '{path}' for backbone '{name}' is not there. Fetch it with `python -m "
            "monai.bundle download_large_files --bundle_path .` from the bundle's folder (large_files.yml names "
            "the source), or point `backbone_checkpoint` at your copy. The embedded backbone needs no download: "
            "without an overlay or option that names another one, `backbone_name` is sam2_nano."
        )
    if sha256 is not None:
        found = sha256_of(path)
        if found != sha256.lower():
            raise SettingError(
                f"SAM2 checkpoint '{path}' has SHA-256 {found}, expected {sha256.lower()}. The download is "
                "incomplete or another file: remove it and fetch it again."
            )
    remedy = "Expected a dictionary with the key 'model'. Fetch it again: it is incomplete, or another file."
    state = load_tensors(path, "SAM2 checkpoint", remedy=remedy).get("model")
    if not isinstance(state, dict):
        raise SettingError(f"'{path}' is no SAM2 checkpoint: expected a dictionary with the key 'model'.")
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    reshaped = [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        problem = "; ".join(
            f"{len(keys)} {what} (such as '{keys[0]}')"
            for what, keys in (
                ("keys missing", missing),
                ("keys unexpected", unexpected),
                ("shapes differ", sorted(reshaped)),
            )
            if keys
        )
        raise SettingError(
            f"Checkpoint '{path}' does not fit backbone '{name}': {problem}. Name the backbone it was made "
            f"for (one of: {', '.join(BACKBONES)})."
        )
    check_finite(path, state, remedy="Name another one.")
    return state


def build_sam2(name: str, image_size: int) -> nn.Module:
    """Builds ``SAM2Base`` from its YAML, sam2's or the bundle's; Hydra's global state stays as it was found."""
    hydra_was_initialised = GlobalHydra.instance().is_initialized()
    import sam2 as sam2_package  # importing it initialises Hydra

    if not hydra_was_initialised:
        GlobalHydra.instance().clear()
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    yaml = NANO_YAML if name == "sam2_nano" else Path(sam2_package.__path__[0]) / SAM2_YAML[name]
    config = OmegaConf.load(yaml).model
    tokens = image_size // EMBEDDING_STRIDE
    config.image_size = image_size
    # the rotary tables are rebuilt at any other size on the first call; asking for the right one avoids that
    config.memory_attention.layer.self_attention.feat_sizes = [tokens, tokens]
    config.memory_attention.layer.cross_attention.feat_sizes = [tokens, tokens]
    # where there is a GPU, sam2's constructors put tables on the first one, be it this process's or not: those of
    # positions in images of 1024 pixels, which nothing here asks for, and those of angles, which move with the network
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        return instantiate(config, _recursive_=True)
