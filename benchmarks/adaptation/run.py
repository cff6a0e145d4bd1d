"""One command for each row of Table 2 beside DiffuSAM, with the metrics of the bundle's own evaluation.

Run from the bundle's folder. The source model is trained once, on the source; all that follows gets the target's
configuration and that one file:

    SOURCE=configs/train.json
    TARGET="['configs/train.json','configs/evaluate.json','configs/sf_uda.json',
             'configs/sf_uda_demo.json','../benchmarks/adaptation/demo_target.json']"
    MODEL=runs/adaptation/source.pt
    RUN="-m benchmarks.adaptation.run"
    python $RUN train_source      --config_file "$SOURCE" --source_model $MODEL
    python $RUN source_only       --config_file "$TARGET" --source_model $MODEL --output source_only.json
    python $RUN dpl               --config_file "$TARGET" --source_model $MODEL --output dpl.json
    python $RUN dfg               --config_file "$TARGET" --source_model $MODEL --output dfg.json
    python $RUN target_supervised --config_file "$TARGET" --output target_supervised.json

DPL and DFG adapt on the images of the target's ``train_cases``, unlabelled, or, where the configuration names none, on
those of the test. The upper bound trains on the ``train_cases`` with their labels. In every command

* ``config_file``: config files as for ``monai.bundle run evaluating``; ``train_source`` needs no ``evaluate.json``;
* ``source_model``: file of the source model;
* ``output``: JSON file of the result, by default ``baselines/{row}.json`` in ``output_dir``. A folder of the same name
  beside it gets label maps, previews, tables and checkpoints;
* ``overwrite``: whether a result or a source model that is there is made anew;
* any other option changes a value of the configuration, such as ``--variants 12``.

``seconds_training`` of a result is the time spent on the target; that of the source is in ``about``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from monai.utils import set_determinism
from scripts.descriptions import describe
from scripts.errors import DatasetError
from scripts.files import sha256_of
from scripts.training.identity import case_digests

from benchmarks.adaptation.box_search import SearchSettings
from benchmarks.adaptation.dfg import adapt as adapt_by_dfg
from benchmarks.adaptation.dpl import adapt as adapt_by_dpl
from benchmarks.adaptation.source_model import FeatureUNet, load_source
from benchmarks.adaptation.target_images import adaptation_cases, adaptation_items, target_volumes
from benchmarks.baselines.evaluation import (
    AUGMENTATION,
    CHANNELS,
    Row,
    open_row,
    open_training,
    run_row,
    run_trained,
    training_settings,
)
from benchmarks.baselines.supervised import NetworkInferer, plain_unet, start_network, train
from benchmarks.configuration import parse
from benchmarks.program import run_command


def train_source(
    config_file,
    source_model: str,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 3e-3,
    dice_by_slice: bool = False,
    channels: tuple[int, ...] = CHANNELS,
    features: int = 16,
    dropout: float = 0.1,
    start_from: str | None = None,
    overwrite: bool = False,
    **overrides,
) -> str:
    """Trains the source model like the UNet row, and writes its file.

    Args:
        steps: optimiser steps (AdamW, learning rate falling to zero along a cosine).
        slices_per_step: slices in a step, drawn from all volumes and variants.
        learning_rate: at the start.
        dice_by_slice: see ``training_settings``.
        channels: widths of the UNet's levels.
        features: of each pixel, which the classifier sees.
        dropout: rate of every dropout layer; DPL draws its passes with it.
        start_from: weights to start from instead of random ones, those of painted patients as
            :mod:`benchmarks.baselines.anatomy_unet` writes them for the network "source".

    Raises:
        ValueError: the file holds a model of another training.
    """
    parser = parse(config_file, overrides)

    layout = {"channels": list(channels), "features": features, "dropout": dropout}
    budget = training_settings(steps, slices_per_step, learning_rate, dice_by_slice)
    start = {} if start_from is None else {"start_from": sha256_of(start_from)}
    row = open_training("source", parser, source_model, {**layout, **budget, **start})
    set_determinism(parser.get_parsed_content("seed"))
    network = FeatureUNet(len(row.about["organs"]), **layout)
    if start_from is not None:
        start_network(network, start_from)
    train(row, network, overwrite)
    return str(row.path)


def source_only(
    config_file, source_model: str, output: str | None = None, overwrite: bool = False, **overrides
) -> dict:
    """The source model on the target as it is."""
    return _adapted(
        "source_only",
        config_file,
        source_model=source_model,
        output=output,
        settings={},
        overwrite=overwrite,
        overrides=overrides,
        adapt=None,
    )


def dpl(
    config_file,
    source_model: str,
    output: str | None = None,
    passes: int = 10,
    certainty: float = 0.75,
    max_deviation: float = 0.05,
    epochs: int = 2,
    slices_per_step: int = 8,
    learning_rate: float = 2e-3,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """DPL (``dpl.py``); the defaults are those of its published code.

    Args:
        passes: with dropout on.
        certainty: probability above which an organ's pseudo label is 1.
        max_deviation: of probabilities over the passes, where a pixel counts.
        epochs: of adaptation.
        slices_per_step: of a step.
        learning_rate: of adaptation.
    """
    settings = {"passes": passes, "certainty": certainty, "max_deviation": max_deviation}
    settings |= {"epochs": epochs, "slices_per_step": slices_per_step, "learning_rate": learning_rate}

    def adapt(row: Row, source, volumes):
        return adapt_by_dpl(source, volumes, **settings)

    return _adapted(
        "dpl",
        config_file,
        source_model=source_model,
        output=output,
        settings=settings,
        overwrite=overwrite,
        overrides=overrides,
        adapt=adapt,
    )


def dfg(
    config_file,
    source_model: str,
    output: str | None = None,
    aggregation_steps: int = 160,
    aggregation_rate: float = 1e-4,
    retraining_steps: int = 1200,
    retraining_rate: float = 1e-4,
    overwrite: bool = False,
    search: dict | None = None,
    **overrides,
) -> dict:
    """DFG (``dfg.py``) with the configuration's backbone as its foundation model.

    Args:
        aggregation_steps: of phase 1.
        aggregation_rate: learning rate of phase 1.
        retraining_steps: on the masks found.
        retraining_rate: learning rate of these.
        search: constants of ``SearchSettings`` to change, such as "{'affinity': 0.98}".
    """
    settings = {"aggregation_steps": aggregation_steps, "aggregation_rate": aggregation_rate}
    settings |= {"retraining_steps": retraining_steps, "retraining_rate": retraining_rate}
    search = dict(search or {})

    def adapt(row: Row, source, volumes):
        get = row.parser.get_parsed_content
        backbone = get("backbone").to(get("device"))
        return adapt_by_dfg(source, backbone, volumes, **settings, settings=SearchSettings(**search))

    kept = {**settings, "search": search}
    return _adapted(
        "dfg",
        config_file,
        source_model=source_model,
        output=output,
        settings=kept,
        overwrite=overwrite,
        overrides=overrides,
        adapt=adapt,
        backbone=True,
    )


def target_supervised(
    config_file,
    output: str | None = None,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 3e-3,
    dice_by_slice: bool = False,
    channels: tuple[int, ...] = CHANNELS,
    features: int = 0,
    network_file: str | None = None,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """The upper bound: the UNet of Table 1, trained on the target's ``train_cases`` and their labels.

    Args:
        steps: see ``train_source``.
        slices_per_step: see ``train_source``.
        learning_rate, dice_by_slice: see ``train_source``.
        channels: widths of the UNet's levels.
        features: for the source model's network instead, with so many features; 0 for the UNet row's own.
        network_file: of the trained network, which is not trained again where it is there, be it by this or by the UNet
            row; by default in the folder of the result.

    Raises:
        DatasetError: the configuration names no ``train_cases``.
    """
    settings = training_settings(steps, slices_per_step, learning_rate, dice_by_slice)
    if not parse(config_file, overrides).get_parsed_content("train_cases"):
        raise DatasetError(
            "The target's configuration names no `train_cases`, so there is nothing to train the upper bound on. Add a "
            "split, such as configs/splits/chaos_dfg.json, or give --train_cases and --test_cases."
        )
    # a target's overlay has no `train_data`, since no other row may see labels of the target
    keys = ("dataset_dir", "image_pattern", "label_pattern")
    labelled = {
        "_target_": "scripts.data.datalists.find_cases",
        **{key: f"@{key}" for key in keys},
        "cases": "@train_cases",
    }
    overrides = {**overrides, "train_data": labelled}
    settings |= {"channels": list(channels)} | ({"features": features} if features else {})
    row = open_row("target_supervised", config_file, overrides, output=output, settings=settings, uses=AUGMENTATION)

    organs = len(row.parser.get_parsed_content("organs"))
    training = open_training("unet", row.parser, network_file or row.folder / "network.pt", settings)

    def build():
        network = FeatureUNet(organs, channels, features=features) if features else plain_unet(organs + 1, channels)
        return network, NetworkInferer(row.about["image_size"], organs), train(training, network, overwrite)

    return run_trained(row, training, build, overwrite)


def _adapted(
    name: str,
    config_file,
    *,
    source_model: str,
    output: str | None,
    settings: dict,
    overwrite: bool,
    overrides: dict,
    adapt: Callable | None,
    backbone: bool = False,
) -> dict:
    """A row that starts from the source model; ``adapt`` makes its network of the model and of target images."""
    row = open_row(name, config_file, overrides, output=output, settings=settings, trains=False, backbone=backbone)

    get = row.parser.get_parsed_content
    organs, size = get("organs"), get("image_size")
    source = load_source(source_model, organs, size)
    row.about["source"] = {
        "fingerprint": source.fingerprint,
        "train_cases": source.about["train_cases"],
        "seconds_training": source.seconds_training,
    }
    row.about["adaptation_cases"] = adaptation_cases(row.parser) if adapt else []
    if adapt:
        row.about["adaptation_files"] = case_digests(adaptation_items(row.parser))
        row.about["adaptation_preprocessing"] = describe(get("train#preprocessing"))

    def build():
        network, seconds = source.network.to(get("device")), 0.0
        if adapt is not None:
            volumes = target_volumes(row.parser)
            start = time.perf_counter()
            network = adapt(row, network, volumes)
            seconds = time.perf_counter() - start
        return network, NetworkInferer(size, len(organs)), seconds

    return run_row(row, build, overwrite)


COMMANDS = {each.__name__: each for each in (train_source, source_only, dpl, dfg, target_supervised)}

if __name__ == "__main__":
    run_command(COMMANDS, serialize=lambda result: None)
