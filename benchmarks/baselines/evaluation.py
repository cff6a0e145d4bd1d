"""One evaluation for every row of a table: the configuration's own cases, preprocessing, inversion and metrics.

A row is a network and a MONAI ``Inferer``. What is done with its label maps is what ``evaluate.json``, and any overlay
after it, says: nothing about metrics is written here a second time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, default_prepare_batch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor, set_determinism
from scripts import errors
from scripts.data.dataset_check import check_disjoint
from scripts.descriptions import describe
from scripts.entries import has_entry
from scripts.errors import RefusedError
from scripts.files import sha256_of, whole_file
from scripts.output.tables import format_table
from scripts.segmentation.label_maps import mixed_on_cpu
from scripts.training.identity import case_digests
from scripts.weights import not_finite
from torch import Tensor, nn

from benchmarks.configuration import parse

# settings that are every row's
COMMON = ("image_size", "seed", "organs", "amp", "largest_component", "solid_organs", "surface_tolerance")
# of the configuration, what a network depends on that is trained on slices
AUGMENTATION = ("variants", "organ_contrast")
NETWORK = "network_sha256"  # in `about`, of the file of a network that the row has trained, or found
CHANNELS = (16, 32, 64, 128, 256)  # widths of the UNet's levels


@dataclass(frozen=True)
class Row:
    """A row that is about to be run.

    Attributes:
        name: such as "unet".
        parser: the configuration, with ``evaluation_dir`` at :attr:`folder`.
        path: JSON file of the result.
        settings: of the row itself.
        about: what it shares with other rows: data, sizes, backbone.
    """

    name: str
    parser: ConfigParser
    path: Path
    settings: dict[str, Any]
    about: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Label maps, previews, tables and checkpoints of the row: named like its JSON file, without the suffix."""
        return self.path.with_suffix("")

    @property
    def identity(self) -> dict[str, Any]:
        """What two results must share to be the same experiment, as JSON has it."""
        return json.loads(json.dumps({"row": self.name, "settings": self.settings, "about": self.about}))


def open_row(
    name: str,
    config_file: str | Sequence[str],
    overrides: dict[str, Any],
    *,
    output: str | Path | None,
    settings: dict[str, Any],
    uses: Sequence[str] = (),
    trains: bool = True,
    backbone: bool = False,
) -> Row:
    """Reads the configuration for a row, checks its data and seeds every library.

    Args:
        name: of the row.
        config_file: config files as for ``monai.bundle run evaluating``.
        overrides: values of the configuration to change, by id.
        output: JSON file of the result; None puts ``baselines/{name}.json`` into ``output_dir``.
        settings: of the row itself, kept with the result.
        uses: ids of the configuration that the row depends on as well, kept with the result.
        trains: whether the row sees the training cases; only then do they have to be there.
        backbone: whether the row runs SAM2; only then does its checkpoint have to be there.

    Raises:
        DatasetError, FileNotFoundError: data or a checkpoint is not as declared, or a case is in both lists.
    """
    parser = parse(config_file, overrides)

    errors.install()
    path = Path(output or f"{parser.get_parsed_content('output_dir')}/baselines/{name}.json")
    parser["evaluation_dir"] = str(path.with_suffix(""))
    for index, handler in enumerate(parser["validate#handlers"]):
        if _target(handler) == "OrganMetricsSaver":  # the configuration's `about` speaks of DiffuSAM
            parser[f"validate#handlers#{index}#about"] = {"row": name, **settings}
    get = parser.get_parsed_content
    about = {key: get(key) for key in (*COMMON, *uses)}
    set_determinism(get("seed"))
    if trains:
        check_disjoint(get("train_data"), get("test_data"))
        get("train_data_check")
        about |= {"train_cases": [item["case"] for item in get("train_data")], **about_training(parser)}
    get("test_data_check")
    about["test_cases"] = [item["case"] for item in get("test_data")]
    about |= {"test_files": case_digests(get("test_data")), "preprocessing": describe(get("validate#preprocessing"))}
    if backbone:
        sam2 = get("backbone")
        sam2.check_loaded()
        about |= {"backbone": sam2.name, **{key: sam2.described()[key] for key in ("weights", "slice_context")}}
        about["decoder_token"] = sam2.decoder_token
    return Row(name, parser, path, settings, about)


def about_training(parser: ConfigParser) -> dict[str, Any]:
    """What a row depends on that sees the training cases, beside their names: files, preprocessing, augmentation."""
    get = parser.get_parsed_content
    parts = {"training_preprocessing": "train#preprocessing", "augmentation": "train#augmentation"}
    described = {key: describe(get(name)) for key, name in parts.items() if has_entry(parser.get(), name.split("#"))}
    return {"train_files": case_digests(get("train_data")), **described}


def training_settings(steps: int, slices_per_step: int, learning_rate: float, dice_by_slice: bool) -> dict[str, Any]:
    """How a network is trained on slices (``supervised.train``).

    Args:
        steps: of the optimiser.
        slices_per_step: drawn from all volumes and variants.
        learning_rate: at the start.
        dice_by_slice: takes the loss's Dice slice by slice, background included. By default it is that of the organs
            over all slices of a step: most slices lack some organ, and by itself such a slice has the worst Dice there
            is, whatever is a little above nothing.
    """
    budget = {"steps": steps, "slices_per_step": slices_per_step, "learning_rate": learning_rate}
    return {**budget, "dice_by_slice": dice_by_slice}


def open_training(name: str, parser: ConfigParser, path: str | Path, settings: dict[str, Any]) -> Row:
    """The training of a network on the configuration's training cases, which may be that of more rows than one.

    Args:
        name: of the network, such as "unet".
        parser: the configuration.
        path: the file that the network is written to.
        settings: of the network and its training.

    Raises:
        DatasetError, FileNotFoundError: data is not as declared.
    """
    errors.install()
    get = parser.get_parsed_content
    if settings["steps"]:
        get("train_data_check")
    about = {key: get(key) for key in ("image_size", "seed", *AUGMENTATION, "organs")}
    about["train_cases"] = [item["case"] for item in get("train_data")]
    return Row(name, parser, Path(path), settings, about | about_training(parser))


def run_row(row: Row, build: Callable[[], tuple[nn.Module, Inferer, float]], overwrite: bool, **options) -> dict:
    """The result of a row: from its file, if it is there, or else by building and evaluating it.

    Args:
        row: of :func:`open_row`.
        build: makes the network, its inferer and the seconds that training took.
        overwrite: whether a result that is there is made anew.
        options: of :func:`evaluate`.

    Raises:
        ValueError: the file holds another experiment.
    """
    if row.path.is_file() and not overwrite:
        content = json.loads(row.path.read_text())
        if "dice" in content and _same(content, row.identity):
            print(f"'{row.path}' is there: {row.name} is not run again.")
            return content
        if "not_run" not in content:
            raise ValueError(
                f"'{row.path}' holds another result than that of row '{row.name}' with these settings and data. Give "
                "--overwrite True to replace it, or another --output."
            )
    return evaluate(row, *build(), **options)


def run_trained(
    row: Row, training: Row, build: Callable[[], tuple[nn.Module, Inferer, float]], overwrite: bool
) -> dict:
    """:func:`run_row` of a network that the row itself trains, unless its file is there.

    Args:
        row, build, overwrite: see there.
        training: of :func:`open_training`.
    """

    def known() -> None:
        row.about[NETWORK] = sha256_of(training.path)

    def trained() -> tuple[nn.Module, Inferer, float]:
        built = build()
        known()
        return built

    if training.path.is_file():
        known()
    return run_row(row, trained, overwrite)


def _same(content: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Whether a result is of an identity. The network that a row has trained may be gone; if it is there, it counts."""
    then = {key: content.get(key) for key in identity}
    if NETWORK not in identity["about"] and isinstance(then["about"], dict):
        then["about"] = {key: value for key, value in then["about"].items() if key != NETWORK}
    return then == identity


def evaluate(
    row: Row, network: nn.Module, inferer: Inferer, seconds_training: float = 0.0, *, show_truth: bool = False
) -> dict[str, Any]:
    """Evaluates a network with the configuration's own evaluation, and writes the result.

    Args:
        row: of :func:`open_row`.
        network: anything the inferer runs.
        inferer: from a volume ``(1, 1, H, W, slices)`` in [0, 1] to a label map of that shape, 0 background and 1...K
            organs, or to two channels, the second with bit i - 1 set where organ i is positive before organs are
            merged.
        seconds_training: kept with the result.
        show_truth: whether the inferer gets the true label map as a third argument, on the file's grid, to draw
            prompts from.

    Returns:
        The content of ``metrics.json`` (see ``scripts.output.tables.OrganMetricsSaver``) with ``row``, ``settings``,
        ``about``, ``seconds_training`` and ``seconds_per_volume``: the mean time of the inferer alone, without reading
        and metrics.

    Raises:
        RefusedError: the network's weights are not finite.
    """
    get = row.parser.get_parsed_content
    organs = get("organs")
    if spoilt := not_finite(network.state_dict()):
        raise RefusedError(
            f"Row '{row.name}': {len(spoilt)} of its network's tensors hold NaN or infinite numbers (such as "
            f"'{spoilt[0]}'), of which nothing but Dice 0 can come: its training has failed. Train another."
        )
    timed = _Timed(inferer, len(organs), amp=get("amp"))
    handlers = [
        get(f"validate#handlers#{index}")
        for index, handler in enumerate(row.parser["validate#handlers"])
        if _target(handler) != "CheckpointLoader"  # of the prior
    ]
    network.eval()
    SupervisedEvaluator(
        device=get("volume_device"),
        val_data_loader=get("validate#dataloader"),
        network=network,
        prepare_batch=_batch_with_truth if show_truth else default_prepare_batch,
        inferer=timed,
        postprocessing=get("validate#postprocessing"),
        key_val_metric=get("validate#key_metric"),
        additional_metrics=get("validate#additional_metrics"),
        val_handlers=[handler for handler in handlers if handler is not None],
        amp=get("amp"),
    ).run()
    content = json.loads((row.folder / "metrics.json").read_text()) | row.identity
    content["seconds_training"] = round(seconds_training, 2)
    content["seconds_per_volume"] = round(sum(timed.seconds) / len(timed.seconds), 3)
    write_result(row.path, content)
    dice = torch.tensor(
        [[float("nan") if each is None else each for each in case] for case in content["dice"]["values"]]
    )
    print(f"\n{row.name}, native Dice\n{format_table(dice, content['cases'], organs)}")
    return content


def not_run(row: Row, needs: str) -> dict[str, Any]:
    """Says, instead of a result, what a row needs; a result that is there stays."""
    content = {**row.identity, "not_run": needs}
    if not row.path.is_file():
        write_result(row.path, content)
    print(f"{row.name}: not run, {needs}.")
    return content


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON through a temporary name, so that a result that is there is whole."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


class _Timed(Inferer):
    """An inferer with a clock, whose answers have the second channel that the evaluation expects."""

    def __init__(self, inferer: Inferer, organs: int, *, amp: bool) -> None:
        super().__init__()
        self.inferer, self.organs, self.amp, self.seconds = inferer, organs, amp, []

    def __call__(self, inputs: Tensor, network: nn.Module, *args, **kwargs) -> Tensor:
        start = time.perf_counter()
        with mixed_on_cpu(network, self.amp):
            output = self.inferer(inputs, network, *args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        if output.shape[1] == 2:
            return output
        labels = convert_to_tensor(output, track_meta=False).long()
        bits = torch.where(labels > 0, 2 ** (labels - 1).clamp_min(0), 0)
        dtype = torch.uint8 if self.organs <= 8 else torch.int32
        return convert_to_dst_type(torch.cat([labels, bits], 1), inputs, dtype=dtype)[0]


def _batch_with_truth(batch: dict[str, Tensor], *args, **kwargs) -> tuple:
    image, label = default_prepare_batch(batch, *args, **kwargs)
    return image, label, (label,), {}


def _target(item: Any) -> str:
    """The class that an entry of a list in the configuration names."""
    return str(item.get("_target_", "")).rpartition(".")[2] if isinstance(item, dict) else ""
