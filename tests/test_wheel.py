"""An installation without ``-e`` holds every file of the project that it needs, and none that lies there by chance."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
BY_CHANCE = ["bundle/runs/train/model.pt", "bundle/scripts/errors.py.part", "bundle/models/sam2.1_hiera_tiny/model.pt"]


@pytest.mark.slow
def test_a_wheel_holds_what_is_tracked_and_nothing_else(tmp_path):
    """The bundle within the command's package, beside the benchmarks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so generated files cannot be told from the project's")
    tracked = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    for name in [*tracked, *BY_CHANCE]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / (name if name in tracked else "LICENSE"), tmp_path / name)

    built = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(tmp_path / "dist" / built.stdout.splitlines()[-1]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    bundle = {f"diffusam/{name}" for name in tracked if name.startswith("bundle/")}
    assert held == bundle | {name for name in tracked if name.startswith(("diffusam/", "benchmarks/"))}
