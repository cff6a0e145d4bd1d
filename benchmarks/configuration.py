"""How every benchmark reads the bundle's configuration: as ``monai.bundle run`` does, with overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import Compose
from scripts import errors
from scripts.data.solid_organs import KeepSolidOrgansd
from scripts.data.transforms import KeepLargestComponentsd
from scripts.files import BUNDLE
from scripts.inference.trained_with import check_prior, check_test_cases
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


def load_prior(parser: ConfigParser, path: str | Path | None = None) -> Any:
    """The configuration's network with a trained prior, in evaluation mode, checked as ``run evaluating`` does.

    Args:
        parser: of an evaluation.
        path: of the prior; by default ``prior_file``.

    Raises:
        MissingFileError, UnusableFileError, SettingError: see :func:`scripts.inference.trained_with.check_prior`.
        DatasetError: it was trained on test cases, and ``allow_training_cases`` is not set.
    """
    get = parser.get_parsed_content
    errors.install()
    path = get("prior_file") if path is None else path
    check_prior(path, get("network"), get("intensity"))
    refuse_training_cases(parser, path)
    return get("network").eval()


def refuse_training_cases(parser: ConfigParser, path: str | Path) -> None:
    """Refuses to test a prior on the cases of its training, as ``run evaluating`` does.

    Raises:
        DatasetError: naming them.
    """
    get = parser.get_parsed_content
    allowed = get("allow_training_cases")
    check_test_cases(path, get("test_data"), summaries=get("test_data_check"), allowed=allowed)


def finishing(parser: ConfigParser) -> Compose:
    """What ``largest_component`` and ``solid_organs`` make of the label map ``pred_labels`` of an ``image``, of what an
    evaluation does after its inferer, and `run inferring` too.
    """
    transforms = parser.get_parsed_content("validate#postprocessing").transforms
    return Compose([each for each in transforms if isinstance(each, (KeepSolidOrgansd, KeepLargestComponentsd))])
