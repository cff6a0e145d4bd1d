"""How benchmarks read the configuration: what names nothing is refused."""

from __future__ import annotations

import pytest
from scripts.errors import UnknownSettingError

from benchmarks.adaptation.run import COMMANDS as ADAPTATION
from benchmarks.baselines.run import COMMANDS as BASELINES
from benchmarks.configuration import parse
from tests.helpers.workflows import BUNDLE

CONFIGS = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]


@pytest.mark.parametrize("setting", ["lagest_component", "validate#inferrer", "step"])
def test_a_setting_that_names_nothing_is_refused(setting):
    with pytest.raises(UnknownSettingError, match=setting):
        parse(CONFIGS, {setting: 10})


@pytest.mark.parametrize("name, command", [*BASELINES.items(), *ADAPTATION.items()])
def test_every_row_refuses_an_option_that_it_does_not_have(tmp_path, name, command):
    given = (
        {"source_model": str(tmp_path / "source.pt")} if name in ("train_source", "source_only", "dpl", "dfg") else {}
    )
    with pytest.raises(UnknownSettingError, match="slices_a_step"):
        command(CONFIGS, **given, slices_a_step=10, output_dir=str(tmp_path))


def test_settings_of_the_configuration_are_taken_at_any_depth():
    parser = parse(CONFIGS[0], {"intensity#a_min": -100, "seed": 3, "_own": 1})
    assert (parser["intensity"]["a_min"], parser["seed"], parser["_own"]) == (-100, 3, 1)
