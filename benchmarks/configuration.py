"""How every benchmark reads the bundle's configuration: as ``monai.bundle run`` does, with overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.files import BUNDLE
from scripts.overrides import declared_settings, refuse_unknown


def parse(config_file, overrides: dict[str, Any]) -> ConfigParser:
    """The parsed configuration.

    Args:
        config_file: one path or a list of them, later ones overriding earlier ones.
        overrides: values to change, by id.

    Raises:
        UnknownSettingError: an override, or an entry of an overlay, names nothing.
    """
    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update(overrides)
    files = config_file.split(",") if isinstance(config_file, str) else config_file or ()
    declared = declared_settings(BUNDLE / "configs").union(*(declared_settings(Path(each).parent) for each in files))
    refuse_unknown(parser.get(), declared)
    parser.parse()
    return parser
