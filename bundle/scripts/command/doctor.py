"""``diffusam doctor``: what is installed, what there is of devices and weights, and whether a phantom is segmented."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from ..data.file_names import case_name
from ..files import BUNDLE, sha256_of
from .runs import INFERRING, run, shown, workflow
from .usage import UsageError, only_scalars

PACKAGES = ("monai", "torch", "rf-sam-2", "diffusers", "nibabel", "itk-io", "pydicom", "highdicom", "pytorch-ignite")
DIGESTS = BUNDLE / "models" / "sha256sums.txt"  # as sha256sum writes them
LEAST_DICE = 0.5  # of the phantom's liver, which a working installation has 0.9 of
_SHAPE, _SPACING = (128, 112, 16), (3.0, 3.0, 12.0)  # voxels, and millimetres, of the phantom
_LIVER = 4  # its label value


def doctor(*more: str, selftest: str = "True") -> int:
    """Says what is installed, which device is used, how much memory there is,
    whether the weights are there and whole, and segments a small phantom.

    usage: diffusam doctor [--selftest False]

    --selftest False   leave out the phantom, which takes up to a minute

    Exit codes: 0 all is well, 1 something is wrong, 2 wrong use.
    """
    if more:
        raise UsageError(f"doctor takes no word such as '{more[0]}'. Write diffusam doctor.")
    only_scalars({"selftest": selftest}, ["selftest"])
    problems = []
    for name, text, problem in (*_versions(), *_machine(), *_weights()):
        print(f"{name:<20} {text}{'' if problem is None else f'   <- {problem}'}", flush=True)
        problems += [name] if problem else []
    if selftest.lower() == "true" and not problems:
        problems += _self_test()
    print(f"\nWrong: {', '.join(problems)}." if problems else "\nAll is well.")
    return 1 if problems else 0


Line = tuple[str, str, "str | None"]


def _versions() -> Iterator[Line]:
    yield "python", f"{platform.python_version()}, {sys.executable}", None
    yield "bundle", shown(BUNDLE), None
    for package in PACKAGES:
        try:
            yield package, version(package), None
        except PackageNotFoundError:
            yield package, "not installed", "pip install -e . in the repository"


def _machine() -> Iterator[Line]:
    try:
        import torch

        cuda = torch.cuda.is_available()
        device = torch.cuda.get_device_name(0) if cuda else f"CPU, {os.cpu_count()} cores; no CUDA device"
        yield "device", device, None
        if cuda:
            free, total = torch.cuda.mem_get_info()
            yield "GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free", None
    except ImportError as error:
        yield "device", str(error), "torch cannot be imported: install it again"
    with_memory = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    if with_memory:
        page, pages = os.sysconf("SC_PAGE_SIZE"), (os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PHYS_PAGES"))
        unused, there = (number * page / 2**30 for number in pages)
        yield "memory", f"{unused:.1f} of {there:.1f} GiB unused", "4 GiB are needed" if there < 3.5 else None
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free here", None


def _weights() -> Iterator[Line]:
    """The files that come with the bundle, and those that are fetched."""
    for line in DIGESTS.read_text(encoding="utf-8").splitlines():
        digest, name = line.split(maxsplit=1)
        yield name, *_compared(BUNDLE / "models" / name, digest, "git checkout, or install again")
    for entry in yaml.safe_load((BUNDLE / "large_files.yml").read_text(encoding="utf-8"))["large_files"]:
        path = BUNDLE / entry["path"]
        if path.is_file():
            yield path.name, *_compared(path, entry["hash_val"], "fetch it again")
        else:
            yield path.name, "not there, needed for the paper's recipe alone", None


def _compared(path: Path, digest: str, remedy: str) -> tuple[str, str | None]:
    if not path.is_file():
        return "not there", remedy
    if sha256_of(path) != digest:
        return f"{path.stat().st_size:,} bytes, not those that the bundle came with", remedy
    return f"{path.stat().st_size:,} bytes, whole", None


def _self_test() -> list[str]:
    """Segments one phantom; what is wrong, if anything."""
    print("\nself-test: segments a small phantom, up to a minute\n", flush=True)
    from ..data.phantoms import write_phantoms  # which takes seconds, as torch does

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        (files,) = write_phantoms(temporary, 1, shape=_SHAPE, spacing=_SPACING)
        options = {"input": files["image"], "output": f"{temporary}/out", "report": "False"}
        code = run(workflow("inferring", [*INFERRING, "configs/ct.json"], options=options))
        predicted = Path(temporary, "out", f"{case_name(files['image'])}_seg.nii.gz")
        dice = 0.0 if code else _liver_dice(predicted, Path(files["label"]))
    print(f"\nself-test            {time.monotonic() - start:.0f} s, Dice of the liver {dice:.2f}")
    return [f"the self-test (exit code {code}, Dice {dice:.2f})"] if code or dice < LEAST_DICE else []


def _liver_dice(predicted: Path, true: Path) -> float:
    """Dice of the liver in two label maps of one grid."""
    import nibabel as nib
    import numpy as np

    found, wanted = (np.asanyarray(nib.load(path).dataobj) == _LIVER for path in (predicted, true))
    return float(2 * (found & wanted).sum() / max(found.sum() + wanted.sum(), 1))
