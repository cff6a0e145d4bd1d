"""The rows of Table 1 that are plain networks, trained on what the prior is trained on: MONAI's UNet and UNETR.

They are commands of :mod:`.run`, which says how they are given.
"""

from __future__ import annotations

from monai.utils import optional_import
from scripts.files import sha256_of

from benchmarks.baselines.evaluation import (
    AUGMENTATION,
    CHANNELS,
    not_run,
    open_row,
    open_training,
    run_trained,
    training_settings,
)
from benchmarks.baselines.supervised import NetworkInferer, plain_unet, plain_unetr, start_network, train


def unet(
    config_file,
    output: str | None = None,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 3e-3,
    dice_by_slice: bool = False,
    channels: tuple[int, ...] = CHANNELS,
    start_from: str | None = None,
    network_file: str | None = None,
    random_contrasts: float = 0.0,
    learned: float = 1.0,
    smoothing: float = 0.0,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """MONAI's 2D UNet, two residual units a level, trained on the prior's volumes, slices and variants.

    Args:
        steps: optimiser steps (AdamW, learning rate falling to zero along a cosine).
        slices_per_step: slices in a step, drawn from all volumes and variants.
        learning_rate: at the start.
        dice_by_slice: see ``training_settings``.
        channels: widths of the levels.
        start_from: weights to start from instead of random ones, as :mod:`.anatomy_unet` writes them; with ``steps`` 0
            they are used as they are.
        network_file: of the trained network, which is not trained again where it is there; by default in the folder of
            the result.
        random_contrasts: share of the slices that it learns from in greys at random, as ``configs/few_shot.json`` has
            it for a head with an image encoder of its own.
        learned: how far its weights go from where the training began to where it ended, ``names_learned`` of that
            configuration.
        smoothing: weight of what it says of the slices on both sides beside each slice's own, once it is trained.
    """
    settings = training_settings(steps, slices_per_step, learning_rate, dice_by_slice) | {"channels": list(channels)}
    unusual = {"random_contrasts": (random_contrasts, 0.0), "learned": (learned, 1.0)}
    settings |= {name: value for name, (value, usual) in unusual.items() if value != usual}

    def build(size: int, outputs: int):
        return plain_unet(outputs, channels)

    return _supervised(
        "unet",
        build,
        config_file=config_file,
        output=output,
        settings=settings,
        start_from=start_from,
        network_file=network_file,
        smoothing=smoothing,
        overwrite=overwrite,
        overrides=overrides,
    )


def unetr(
    config_file,
    output: str | None = None,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 3e-3,
    dice_by_slice: bool = False,
    hidden_size: int = 96,
    mlp_dim: int = 384,
    num_heads: int = 6,
    feature_size: int = 8,
    paper_size: bool = False,
    start_from: str | None = None,
    network_file: str | None = None,
    smoothing: float = 0.0,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """MONAI's UNETR on slices, trained like the UNet; by default about as large as the UNet, which a CPU can train.

    Args:
        steps: see ``unet``.
        slices_per_step: see ``unet``.
        learning_rate, dice_by_slice: see ``unet``.
        hidden_size: width of the 12 transformer layers.
        mlp_dim: of their feed-forward part.
        num_heads: of their attention.
        feature_size: width of the finest convolutions.
        paper_size: the transformer of UNETR's paper, ViT-B: 768, 3072, 12.
        start_from, network_file, smoothing: see ``unet``.
    """
    if paper_size:
        hidden_size, mlp_dim, num_heads = 768, 3072, 12
    width = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_heads": num_heads, "feature_size": feature_size}
    settings = training_settings(steps, slices_per_step, learning_rate, dice_by_slice) | width

    def build(size: int, outputs: int):
        return plain_unetr(outputs, size, **width)

    return _supervised(
        "unetr",
        build,
        config_file=config_file,
        output=output,
        settings=settings,
        start_from=start_from,
        network_file=network_file,
        smoothing=smoothing,
        overwrite=overwrite,
        overrides=overrides,
    )


def _supervised(
    name: str,
    build,
    *,
    config_file,
    output,
    settings: dict,
    start_from: str | None,
    network_file: str | None,
    smoothing: float,
    overwrite: bool,
    overrides: dict,
) -> dict:
    if start_from is not None:
        settings["start_from"] = sha256_of(start_from)
    trains = settings["steps"] > 0
    of_row = {**settings, "smoothing": smoothing} if smoothing else settings  # which the training does not depend on
    row = open_row(name, config_file, overrides, output=output, settings=of_row, uses=AUGMENTATION, trains=trains)
    if name == "unetr" and not optional_import("einops")[1]:
        return not_run(row, "needs the package einops: `pip install einops`")

    size, organs = row.about["image_size"], len(row.parser.get_parsed_content("organs"))
    training = open_training(name, row.parser, network_file or row.folder / "network.pt", settings)

    def trained():
        network = build(size, organs + 1)
        if start_from is not None:
            start_network(network, start_from)
        return network, NetworkInferer(size, organs, smoothing=smoothing), train(training, network, overwrite)

    return run_trained(row, training, trained, overwrite)
