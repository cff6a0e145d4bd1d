"""How every benchmark reads the bundle's configuration: as ``monai.bundle run`` does, with overrides."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigParser


def parse(config_file, overrides: dict[str, Any]) -> ConfigParser:
    """The parsed configuration.

    Args:
        config_file: one path or a list of them, later ones overriding earlier ones.
        overrides: values to change, by id.
    """
    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update(overrides)
    parser.parse()
    return parser
