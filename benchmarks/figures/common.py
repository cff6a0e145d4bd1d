"""What both figures need: the configuration's network and test slices, results written whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from scripts import errors
from scripts.files import whole_file
from scripts.output.previews import save_figure
from torch import Tensor

from benchmarks.configuration import parse


def open_configuration(config_file: str | Sequence[str], overrides: dict[str, Any]) -> ConfigParser:
    """The configuration of an evaluation, its test data and backbone checked.

    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        overrides: values of the configuration to change, by id.

    Raises:
        DatasetError, FileNotFoundError: data or the backbone's checkpoint is not as declared.
    """
    parser = parse(config_file, overrides)

    errors.install()
    set_determinism(parser.get_parsed_content("seed"))
    parser.get_parsed_content("test_data_check")
    parser.get_parsed_content("backbone").check_loaded()
    return parser


def volumes(parser: ConfigParser) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, slices ``(n, 1, S, S)`` in [0, 1] and label values ``(n, 1, S, S)`` of each test case, as in training."""
    transform = parser.get_parsed_content("train#preprocessing")
    for item in parser.get_parsed_content("test_data"):
        data = transform(dict(item))
        yield item["case"], *(data[key].as_tensor().permute(3, 0, 1, 2) for key in ("image", "label"))


def write(folder: str | Path, name: str, figure: Figure, content: dict[str, Any]) -> None:
    """Writes ``{name}.png`` and ``{name}.json`` into ``folder``, each whole or not at all."""
    save_figure(figure, Path(folder) / f"{name}.png")
    with whole_file(Path(folder) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    print(f"'{Path(folder) / name}.png' and .json are written.")
