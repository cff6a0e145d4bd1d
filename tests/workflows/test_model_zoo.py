"""What the Model Zoo asks of a bundle: its CI (``ci/verify_bundle.py``) and CONTRIBUTING.md, without the network.

Not asked here: TorchScript export, which the bundle's page says is not possible (``exclude_verify_torchscript_list``).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from tests.helpers.workflows import BUNDLE, METADATA_SCHEMA, ROOT

CONFIGS = BUNDLE / "configs"
METADATA = CONFIGS / "metadata.json"
LARGEST_FILE = 25 * 2**20
LARGE_FILES = sorted(BUNDLE.rglob("large_files.yml"))
ZOO_STYLE = {
    "isort": ["--check", "--profile", "black", "--line-length", "120"],
    "black": ["--check", "--line-length", "120", "--skip-magic-trailing-comma"],
    "flake8": ["--max-line-length", "120", "--extend-ignore", "E203,E741,W503,W504"],
}

# CONTRIBUTING.md, "Preferred Files and Keys"
KEYS = {
    "inference.json": ["bundle_root", "device", "network_def", "inferer", "output_dir"],
    "train.json": [
        *("bundle_root", "device", "dataset_dir", "output_dir", "network_def"),
        *("train#trainer", "train#trainer#max_epochs", "train#dataset", "train#dataset#data", "train#handlers"),
        *("train#preprocessing", "train#inferer"),
    ],
    "evaluate.json": [
        *("validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data"),
        *("validate#preprocessing", "validate#postprocessing", "validate#inferer", "validate#key_metric"),
    ],
}
# the order of the Zoo's pages
SECTIONS = [
    *("Model Overview", "Data", "Training configuration", "Memory and time", "Input", "Output", "Performance"),
    *("MONAI Bundle commands", "Limitations", "Intended use", "References", "License"),
]


def tracked_files() -> list[Path]:
    """The files that a pull request to the Zoo would hold."""
    listed = subprocess.run(["git", "ls-files", "-z", "bundle"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so generated files cannot be told from the bundle's")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# ---- files


@pytest.mark.parametrize(
    "name", ["LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "docs/data_license.txt"]
)
def test_the_files_that_every_bundle_has_are_there(name):
    assert (BUNDLE / name).is_file()


def test_the_licence_is_apache_2():
    assert "Apache License" in (BUNDLE / "LICENSE").read_text()[:500]


def test_files_that_are_too_large_are_downloaded_instead():
    assert not [path for path in tracked_files() if path.stat().st_size > LARGEST_FILE]


@pytest.mark.parametrize("path", LARGE_FILES, ids=lambda path: path.parent.name)
def test_large_files_have_a_place_a_source_and_a_hash(path):
    for entry in ConfigParser.load_config_file(path)["large_files"]:
        assert set(entry) == {"path", "url", "hash_val", "hash_type"}
        assert entry["url"].startswith("https://")
        assert entry["hash_type"] == "sha256" and re.fullmatch("[0-9a-f]{64}", entry["hash_val"])
        target = (path.parent / entry["path"]).resolve()
        assert target.is_relative_to(BUNDLE) and target not in tracked_files()


def test_the_large_file_is_the_backbone_of_the_papers_recipe():
    (entry,) = ConfigParser.load_config_file(BUNDLE / "large_files.yml")["large_files"]
    parser = ConfigParser({**json.loads((CONFIGS / "paper.json").read_text()), "bundle_root": "."})

    assert parser.get_parsed_content("backbone_checkpoint") == f"./{entry['path']}"
    assert parser.get_parsed_content("backbone_sha256") == entry["hash_val"]


# ---- configurations and metadata


def test_the_version_is_in_the_changelog():
    metadata = json.loads(METADATA.read_text())

    assert metadata["version"] in metadata["changelog"]


def test_the_metadata_pass_monais_check():
    if not METADATA_SCHEMA.is_file():
        pytest.skip(f"no copy of the schema at {METADATA_SCHEMA}: set DIFFUSAM_METADATA_SCHEMA to one")

    monai.bundle.verify_metadata(meta_file=str(METADATA), filepath=str(METADATA_SCHEMA))


@pytest.mark.parametrize("name, keys", KEYS.items(), ids=list(KEYS))
def test_configurations_have_the_keys_that_other_programs_look_for(name, keys):
    parser = ConfigParser(json.loads((CONFIGS / name).read_text()))

    assert [key for key in keys if key not in parser] == []


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.json")), ids=lambda path: path.stem)
def test_no_path_of_a_person_is_in_a_configuration(path):
    assert not re.search(r'"(/|~|[A-Z]:\\\\)', path.read_text())


def test_the_network_has_the_declared_input_and_output():
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(METADATA),
        config_file=str(CONFIGS / "inference.json"),
        device="cpu",
        bundle_root=str(BUNDLE),
    )


# ---- page and style


def test_the_page_has_the_sections_of_the_zoos_pages_in_their_order():
    page = (BUNDLE / "docs" / "README.md").read_text()
    titles = re.findall(r"^#{1,3} (.+)$", page, flags=re.MULTILINE)

    assert [title for title in titles if title in SECTIONS] == SECTIONS
    assert "TorchScript export is not possible" in page


def test_every_configuration_that_the_page_names_is_there():
    page = (BUNDLE / "docs" / "README.md").read_text()

    for name in set(re.findall(r"configs/[\w/]+\.json", page)):
        assert (BUNDLE / name).is_file(), name


@pytest.mark.parametrize("tool, options", ZOO_STYLE.items(), ids=list(ZOO_STYLE))
def test_the_code_has_the_zoos_style(tool, options):
    scripts = str(BUNDLE / "scripts")

    result = subprocess.run([sys.executable, "-m", tool, *options, scripts], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
