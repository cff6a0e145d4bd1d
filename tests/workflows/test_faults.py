"""Commands that are killed at random moments, or whose disk is full: given again they end as if nothing had happened.

Slow: twenty moments of each of four commands. ``FAULTS_SCALE=0.1`` takes a tenth; ``-s`` prints what became of them.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.errors import install
from scripts.prepare.folder import prepare_folder

from tests.conftest import save_dataset
from tests.helpers import killed
from tests.helpers.killed import Ended
from tests.helpers.workflows import ORGANS, nano_checkpoint, write_overlay
from tests.helpers.workflows import run as run_workflow

pytestmark = pytest.mark.slow

PATIENTS = 24  # that preparing converts
MOMENTS = max(2, math.ceil(20 * float(os.environ.get("FAULTS_SCALE", "1"))))
KINDS = ("training", "inferring", "evaluating", "preparing")
each_kind = pytest.mark.parametrize("kind", KINDS)
# what a run adds each time, with the time in it; what says how long something took
NEW_EACH_TIME = re.compile(r"events\.out\.tfevents|results\.json$|report\.html$")


class Undisturbed(NamedTuple):
    """A command's results, their bytes, and the CPU seconds until it wrote its first file, and until its end."""

    contents: dict[str, object]
    bytes: int
    began: float
    ended: float


class Project:
    """The inputs of all commands, and what each leaves in its folder when nothing happens to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = save_dataset(folder / "dataset")
        self.backbone = nano_checkpoint(folder / "sam2_nano.pt")
        self.series = folder / "nrrd"
        self.series.mkdir()
        for number in range(PATIENTS):  # whose volumes preparing converts, large enough that writing takes a while
            for kind in ("image", "label"):
                image = nib.load(self.dataset / f"{kind}_{'abcd'[number % 4]}.nii.gz")
                _save_nrrd(image, self.series / f"{kind}_{number}.nrrd", repeats=4)
        self.prior = folder / "prior.pt"
        self._undisturbed: dict[str, Undisturbed] = {}

    def undisturbed(self, kind: str) -> Undisturbed:
        """What a command leaves and takes when nothing happens to it."""
        if kind not in ("training", "preparing") and not self.prior.is_file():
            ended = self.run("training", self.folder / "prior")
            assert ended.code == 0, ended.said
            shutil.copy(self.folder / "prior" / "model.pt", self.prior)
        if kind not in self._undisturbed:
            output = self.folder / f"usual_{kind}"
            ended = self.run(kind, output)
            assert ended.code == 0, ended.said
            size = sum(path.stat().st_size for path in files_below(output))
            self._undisturbed[kind] = Undisturbed(contents(output), size, ended.began, ended.seconds)
        return self._undisturbed[kind]

    def run(self, kind: str, output: Path, **options) -> Ended:
        log = self.folder / f"{kind}.log"
        places = (self.dataset, self.series, self.backbone, self.prior)
        return killed.run(command, log, kind, output, *places, watched=output, **options)


def command(kind: str, output: Path, dataset: Path, series: Path, backbone: Path, prior: Path) -> None:
    """One of the commands, of which everything goes to one folder."""
    if kind == "preparing":
        install()  # as `python -m scripts.prepare` does
        label_map = {organ: value for value, organ in enumerate(ORGANS, 1)}
        prepare_folder(
            str(series),
            "image_{case}.nrrd",
            "label_{case}.nrrd",
            str(output),
            label_map=label_map,
            train_cases=["0", "1"],
        )
        return
    overlay = write_overlay(output.parent / f"{output.name}_settings", dataset, backbone, iterations=6)
    places = {"output_dir": str(output), "prior_file": str(output / "model.pt" if kind == "training" else prior)}
    if kind == "evaluating":
        places |= {"evaluation_dir": str(output)}
    if kind == "inferring":
        places |= {"output": str(output), "input": str(dataset / "image_[abc].nii.gz"), "probabilities": True}
    run_workflow(kind, overlay, **places)


def _save_nrrd(image: nib.Nifti1Image, path: Path, repeats: int) -> None:
    """Saves a volume that repeats another one along each axis."""
    directions = " ".join(f"({x:g},{y:g},{z:g})" for x, y, z in image.affine[:3, :3].T)
    voxels = np.tile(np.asarray(image.dataobj).astype("<i2"), (repeats,) * 3)
    lines = ["NRRD0005", "type: short", "dimension: 3", "space: right-anterior-superior", "encoding: raw"]
    lines += [f"sizes: {' '.join(map(str, voxels.shape))}", f"space directions: {directions}", "endian: little"]
    lines += [f"space origin: ({','.join(f'{x:g}' for x in image.affine[:3, 3])})", "", ""]
    path.write_bytes("\n".join(lines).encode() + voxels.tobytes(order="F"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is the same after every run, wherever the folder is.

    Of a checkpoint its values, since the bytes say which of them once came out of one file.
    """
    names = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    return {name: _content(path, folder) for name, path in names.items() if not NEW_EACH_TIME.search(name)}


def _content(path: Path, folder: Path) -> object:
    if path.name == "checkpoint.pt":
        return _values(torch.load(path, weights_only=True))
    content = path.read_bytes()
    return content.replace(bytes(folder), b"FOLDER") if path.suffix == ".json" else content


def _values(content: object) -> object:
    """The same with bytes in place of tensors."""
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: _values(value) for key, value in content.items()}
    return [_values(value) for value in content] if isinstance(content, (list, tuple)) else content


def files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def assert_whole(folder: Path) -> None:
    """Of what a run that did not end has left, everything under a name of its own is there to its end."""
    for path in files_below(folder):
        if path.name.startswith(".part-"):
            continue
        if path.name.endswith(".pt"):
            torch.load(path, weights_only=True)
        elif path.name.endswith(".nii.gz"):
            np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("faults"))


@each_kind
def test_killed_at_any_moment_and_given_again(project, tmp_path, kind):
    usual, moments, counts = project.undisturbed(kind), random.Random(0), Counter()
    # preparing reads and checks everything first, for most of its time, and only then writes
    at_work = kind == "preparing"
    for number in range(MOMENTS):
        output = tmp_path / f"{kind}_{number}"
        moment = moments.uniform(0, usual.ended - (usual.began if at_work else 0))

        ended = project.run(kind, output, kill_after=moment, at_work=at_work)

        assert ended.code in (-9, 0), ended.said
        assert_whole(output)
        parts = list(output.rglob(".part-*")) if output.is_dir() else []
        counts["killed" if ended.code else "ended before"] += 1
        counts["with a half-written file under a temporary name"] += bool(parts)
        counts["with results"] += bool(ended.code) and output.is_dir() and bool(contents(output))
        again = project.run(kind, output)
        assert again.code == 0, f"killed after {moment:.2f} of {usual.ended:.2f} s:\n{again.said}"
        assert contents(output) == usual.contents, f"killed after {moment:.2f} s"
        shutil.rmtree(output)
    print(f"\n{kind}, {usual.ended:.1f} s of CPU, first file after {usual.began:.1f}: {dict(counts)}")
    assert counts["killed"] > MOMENTS // 2


# ---- a full disk


@pytest.fixture
def disk(tmp_path):
    """``disk(size)``: a folder with room for so many bytes; given again, the same with another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def disk(size: int) -> Path:
        option = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{option}size={max(size, 4096)}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a disk of a given size")
        return folder

    yield disk
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@each_kind
def test_a_disk_that_fills_at_any_moment(project, disk, kind):
    usual = project.undisturbed(kind)
    needed = usual.bytes
    moments, counts = random.Random(1), Counter()
    for _ in range(math.ceil(MOMENTS / len(KINDS))):
        size = int(moments.uniform(0, needed))
        output = disk(size) / kind

        ended = project.run(kind, output)

        assert ended.code in (1, 3) and "Traceback" not in ended.said, f"{size} of {needed} bytes:\n{ended.said}"
        assert "no space left" in ended.said.lower() or "Is the disk full?" in ended.said, ended.said
        assert_whole(output)
        counts["one line"] += 1
        disk(4 * needed + (64 << 20))
        again = project.run(kind, output)
        assert again.code == 0, again.said
        assert contents(output) == usual.contents, f"{size} of {needed} bytes"
        shutil.rmtree(output)
    print(f"\n{kind}, disk of up to {needed:,} bytes: {dict(counts)}")
