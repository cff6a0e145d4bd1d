"""The page about the configuration has every setting that the files have, with the values that they have."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import pytest
from scripts.prior_settings import configuration_of

from docs import make_configuration as configuration


@pytest.fixture
def configs():
    return deepcopy(configuration.read_configs())


@pytest.fixture
def descriptions():
    return json.loads(configuration.DESCRIPTIONS.read_text("utf-8"))


def row(page: str, key: str) -> list[str]:
    # the first row is of the workflows, others of pretraining
    line = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_is_that_of_the_files(configs, descriptions):
    text = configuration.PAGE.read_text("utf-8")

    assert configuration.page(configs, descriptions) == text, "run `python docs/make_configuration.py`"


def test_every_key_of_every_file_is_on_the_page(configs):
    text = configuration.PAGE.read_text("utf-8")

    keys = {key for config in configs.values() for key in config} - configuration.STEPS
    assert len(keys) > 100 and [key for key in sorted(keys) if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    "name, key, value, shown",
    [
        ("train", "patience", 3, "patience"),
        ("chaos", "patience", 3, "patience"),
        ("pretrain_nano", "patience", 3, "patience"),
        ("inference", "quality", {"patience": 3}, "quality#patience"),
        ("pretrain_nano", "optimizer", {"patience": 3}, "optimizer#patience"),
        ("spleen", "iterations", 3, "spleen"),
    ],
)
def test_a_setting_that_is_not_described_is_an_error(configs, descriptions, name, key, value, shown):
    before = configs.setdefault(name, {}).get(key)
    configs[name][key] = {**before, **value} if isinstance(before, dict) else value

    with pytest.raises(ValueError, match=f"not described: {shown}. Mend it"):
        configuration.page(configs, descriptions)


@pytest.mark.parametrize("where", ["groups/Data", "pretraining/pretrain_nano", "parts", "overlays"])
def test_a_description_of_nothing_is_an_error(configs, descriptions, where):
    group = descriptions
    for name in where.split("/"):
        group = group[name]
    group["patience"] = ["Epochs to wait.", "epochs"]

    with pytest.raises(ValueError, match="in no configuration: patience"):
        configuration.page(configs, descriptions)


def test_a_setting_that_is_described_twice_is_an_error(configs, descriptions):
    descriptions["groups"]["Data"]["iterations"] = descriptions["groups"]["Training"]["iterations"]

    with pytest.raises(ValueError, match="described twice: iterations"):
        configuration.page(configs, descriptions)


def test_a_row_tells_the_default_and_who_changes_it(configs, descriptions):
    for name in configs.keys() - descriptions["pretraining"].keys():
        configs[name].pop("iterations", None)
    configs["train"]["iterations"], configs["paper"]["iterations"] = 11, 12
    configs["chaos"]["iterations"], configs["btcv"]["iterations"] = 12, 11

    cells = row(configuration.page(configs, descriptions), "iterations")

    assert cells[2:] == ["iterations", "`11`", "`chaos`, `paper`: `12`"]


def test_a_row_tells_defaults_that_differ(configs, descriptions):
    configs["train"]["seed"], configs["inference"]["seed"] = 1, 2

    assert row(configuration.page(configs, descriptions), "seed")[3] == "`1` (train); `2` (inference)"


def test_three_scans_tells_the_values_that_its_commands_train_with(configs):
    """A page of its own writing, whose table a change of the configuration would leave behind."""
    text = (configuration.ROOT / "docs/three_scans.md").read_text("utf-8")
    cells = {key: row(text, key)[1:3] for key in ("iterations", "variants", "batch_size", "learning_rate")}
    paper = {key: configs["train"][key] for key in cells}

    shown = {key: [float(re.match(r"[\d.]+", cell)[0]) for cell in both] for key, both in cells.items()}
    assert shown == {key: [configs["few_shot"].get(key, value), value] for key, value in paper.items()}
    contrast = row(text, "organ_contrast")[1].removeprefix("every organ: ")
    assert configs["few_shot"]["organ_contrast"] == f"$dict.fromkeys(@organs, {contrast})"


def test_the_head_names_what_the_prior_that_ships_records_otherwise(configs):
    recorded = configuration_of(configuration.ROOT / "bundle/models/model.pt")
    nothing = configs["inference"]["prior_settings"]["otherwise"]
    named = re.search(r"The one that ships records others of (.+?)\.\n", configuration.HEAD, re.DOTALL)[1]

    plain = {key for key in recorded.keys() & nothing.keys() if not isinstance(nothing[key], dict)}
    others = {key for key in plain - {"backbone_checkpoint"} if recorded[key] != nothing[key]}
    assert set(re.findall(r"`(\w+)`", named)) == others
