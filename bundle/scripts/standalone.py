"""A trained prior as a bundle of its own, for programs that read ``configs/inference.json`` and know no overlays: MONAI
Label, ``monai.bundle.load``, the Model Zoo.

    python -m scripts.standalone --config_file configs/inference.json \
        --prior_file runs/train/model.pt --output /apps/diffusam_demo

writes a folder with the settings of all overlays in its ``configs/inference.json``, the organs and sizes in its
``configs/metadata.json``, the weights in ``models``, and scripts, licence and docs beside them. What the data were is
for its maker to state, in ``docs/data_license.txt`` and ``data_source``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from . import errors
from .files import BUNDLE
from .inert import inert, quoted
from .networks.diffusam import check_prior_file
from .prior_settings import configuration_of
from .weights import load_tensors

PRIOR = "model.pt"  # the name by which MONAI Label and the Model Zoo look for weights
# the prior's own, in place of what this bundle says of those that come with it
UNKNOWN_SOURCE = "not recorded: for whoever made this bundle to state"
DATA_LICENSE = f"""Weights
-------
models/{PRIOR} is a trained prior. What it was trained on, and its licence, are for whoever made this bundle to state:
the terms of a data set may extend to weights that are trained on it.
models/{{backbone}} is the frozen backbone that it was trained for. sam2_nano.pt and sam2_nano_orientation.pt, as the
DiffuSAM bundle has them, and SAM2.1 (Meta Platforms, Inc., https://github.com/facebookresearch/sam2) are licensed under
the Apache License 2.0; of other backbones it is for whoever made this bundle to state.
"""
OVERVIEW = """# Model Overview

This bundle was made from a trained prior by `scripts.standalone`. What follows is of the DiffuSAM bundle that made it:
its data, its training and its numbers are not those of `models/model.pt` here.
"""
COPIED = ("LICENSE", "docs", "scripts", "configs/logging.conf", "models/sam2_nano.yaml")
# what an overlay says about a training's places means nothing elsewhere
PLACES = ("bundle_root", "input", "dataset_dir", "output", "output_dir")


def standalone(
    output: str, config_file: str | Sequence[str] = "configs/inference.json", prior_file: str | None = None
) -> str:
    """Writes the bundle.

    Args:
        output: its folder, which is new or empty; its name is the bundle's.
        config_file: ``configs/inference.json``, and overlays; what the prior's own file records needs none.
        prior_file: the trained prior; by default the configuration's.

    Returns:
        what was written, for the terminal.

    Raises:
        FileNotFoundError: a configuration, the prior or the backbone's checkpoint is not there.
        ValueError: the folder holds files; or the prior was trained for other organs or another backbone than the
            configuration's.
    """
    target = Path(str(output)).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.SettingError(f"'{target}' is there already. Name a new folder in --output, or empty that one.")
    parts = _read([config_file] if isinstance(config_file, str) else list(config_file), prior_file)
    settings, backbone, head = parts.settings, parts.backbone, parts.head
    check_backbone_file(backbone)
    network = ConfigParser({**settings, "backbone_checkpoint": str(backbone)}).get_parsed_content("network_def")
    content = load_tensors(parts.prior, "trained prior", remedy="Point --prior_file at a trained prior.")
    network.load_state_dict(content.get("model", {}))

    settings["prior_file"] = f"$@bundle_root + '/models/{PRIOR}'"
    settings["backbone_checkpoint"] = f"$@bundle_root + {quoted(f'/models/{backbone.name}')}"
    (target / "models").mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        _copy(BUNDLE / name, target / name)
    (target / "docs" / "data_license.txt").write_text(DATA_LICENSE.format(backbone=backbone.name), encoding="utf-8")
    page = target / "docs" / "README.md"
    if OVERVIEW not in (text := page.read_text("utf-8")):  # a bundle of its own makes others, too
        page.write_text(text.replace("# Model Overview\n", OVERVIEW, 1), encoding="utf-8")
    shutil.copyfile(parts.prior, target / "models" / PRIOR)
    shutil.copyfile(backbone, target / "models" / backbone.name)
    if head.is_file():  # without it, how scans lie is not checked
        shutil.copyfile(head, target / "models" / head.name)
        settings["orientation_file"] = f"$@bundle_root + {quoted(f'/models/{head.name}')}"
    _store(target / "configs" / "inference.json", settings)
    _store(target / "configs" / "metadata.json", describe(network))
    return f"Wrote '{target}': {network.backbone.name}, {', '.join(network.organs)}."


def describe(network: Any) -> dict[str, Any]:
    """The bundle's ``metadata.json`` with the organs and sizes of a network, and nothing of the prior that ships.

    Args:
        network: a :class:`~scripts.networks.diffusam.DiffuSAM`, or one of its kind.
    """
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    metadata |= {"data_source": UNKNOWN_SOURCE, "eval_metrics": {}}
    channels = {str(index): name for index, name in enumerate(["background", *network.organs])}
    values = ", ".join(f"{index} {name}" for index, name in channels.items())
    # names of organs are a user's, and MONAI evaluates what it reads in this file
    metadata["label_classes"] = inert(f"single channel data, {values.removeprefix('0 background, ')}")
    metadata["pred_classes"] = inert(f"{len(channels)} channels, arg-max: {values}")
    backbone = network.backbone
    described = metadata["network_data_format"]
    described["outputs"]["pred"] |= {"num_channels": len(channels), "channel_def": inert(channels)}
    for each in (described["inputs"]["image"], described["outputs"]["pred"]):
        each["spatial_shape"] = [backbone.image_size, backbone.image_size]
    described = metadata["memory_data_format"]
    memory = {"num_channels": backbone.memory_channels, "spatial_shape": [backbone.embedding_size] * 2}
    described["inputs"]["memory"] |= memory
    described["outputs"]["memory"] |= memory
    embedding = {**memory, "num_channels": backbone.embedding_channels}
    described["inputs"]["image_embedding"] |= embedding
    prompts = metadata["automedsam_data_format"]
    prompts["inputs"]["embedding"] |= embedding
    prompts["outputs"]["dense"] |= embedding
    prompts["outputs"]["sparse"]["spatial_shape"] = [backbone.embedding_channels]
    for each in (described, prompts):
        each["inputs"]["organ"]["value_range"] = [0, len(network.organs) - 1]
    return metadata


def check_backbone_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` with the remedy where SAM2's weights are not there."""
    if not path.is_file():
        raise errors.MissingFileError(
            f"The backbone's weights '{path}' are not there. Fetch them with "
            "`python -m monai.bundle download_large_files --bundle_path .`, or add the overlay of the training."
        )


@dataclass(frozen=True)
class _Parts:
    """What a bundle is made of.

    Attributes:
        settings: of a configuration what inference has a use for, with what the prior's file records.
        prior, backbone, head: files; the last, of the orientation head, need not be there.
    """

    settings: dict[str, Any]
    prior: Path
    backbone: Path
    head: Path


def _read(files: Sequence[str], prior_file: str | None) -> _Parts:
    for file in files:
        if not Path(file).is_file():
            raise errors.MissingFileError(f"The configuration '{file}' is not there. Correct --config_file.")
    original, merged = ConfigParser.load_config_file(files[0]), ConfigParser.load_config_files(files)
    here = {**merged, "bundle_root": str(BUNDLE)}
    prior = Path(prior_file or ConfigParser(dict(here)).get_parsed_content("prior_file")).expanduser()
    check_prior_file(prior)
    parser = ConfigParser({**here, "prior_file": inert(str(prior))})
    backbone, head = (parser.get_parsed_content(key) for key in ("backbone_checkpoint", "orientation_file"))
    recorded = configuration_of(prior)
    settings = {key: original[key] if key in PLACES else merged[key] for key in original}
    settings |= {key: value for key, value in recorded.items() if settings.get(key) == original.get(key)}
    return _Parts(settings, prior, Path(backbone), Path(head or ""))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _store(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    errors.install()
    sys.path.insert(0, str(BUNDLE))
    fire.Fire(standalone)
