"""An inference by ``torchrun`` on the CPU, in more processes than there are volumes, against the same in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts.errors import user_error

from tests.helpers.workflows import BUNDLE, run, write_overlay, write_prior

PROCESSES = 4


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, write_dataset, backbone_file) -> SimpleNamespace:
    """The volumes a and b, and c, which is damaged: in one process, and in four."""
    folder = tmp_path_factory.mktemp("project")
    overlay = write_overlay(folder, write_dataset(folder / "dataset"), backbone_file)
    write_prior(overlay)
    scans, one, four = folder / "scans", folder / "one", folder / "four"
    scans.mkdir()
    for case in "abc":
        content = (folder / f"dataset/image_{case}.nii.gz").read_bytes()
        (scans / f"{case}.nii.gz").write_bytes(content if case != "c" else content[: len(content) // 2])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as of each of the others: sums in another order have other last digits
    try:
        with pytest.raises(Exception) as caught:
            run("inferring", overlay, input=str(scans), output=str(one))
    finally:
        torch.set_num_threads(threads)
    files = str(["configs/inference.json", str(overlay)])
    command = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={PROCESSES}"]
    command += ["-m", "monai.bundle", "run", "inferring", "--config_file", files, "--input", str(scans)]
    result = subprocess.run(
        [sys.executable, *command, "--output", str(four)],
        cwd=BUNDLE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    log = result.stdout + result.stderr
    return SimpleNamespace(one=one, four=four, error=str(user_error(caught.value)), log=log, code=result.returncode)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_the_files_are_those_of_one_process(segmented):
    assert names(segmented.four) == names(segmented.one), segmented.log
    for name in ("a_seg.nii.gz", "b_seg.nii.gz", "previews/a.png", "previews/b.png"):
        assert (segmented.four / name).read_bytes() == (segmented.one / name).read_bytes()


@pytest.mark.slow
def test_the_records_are_those_of_one_process_but_for_their_times(segmented):
    def recorded(folder: Path) -> str:
        content = json.loads((folder / "results.json").read_text())
        for case in content["cases"].values():
            case.pop("seconds", None)
        return json.dumps(content)

    assert recorded(segmented.four) == recorded(segmented.one)


@pytest.mark.slow
def test_a_case_that_fails_stops_no_process_and_is_told_once_at_the_end(segmented):
    assert segmented.code != 0
    assert segmented.log.count(f"error: {segmented.error.splitlines()[0]}") == 1
    assert "1 of 3 cases failed" in segmented.error
    assert segmented.log.count("The report is") == 1
