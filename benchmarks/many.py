"""Many scans: several processes beside one, and what ten thousand cases cost beside their segmentation.

Run from the bundle's folder, on a machine with as many free cores as processes:

    python -m benchmarks.many processes     16 small phantoms in one process and in two, one thread each
                      --by share            the same, without torchrun
    python -m benchmarks.many bookkeeping   1000, 3000 and 10 000 cases with a stub in the network's place
    python -m benchmarks.many table         both

`bookkeeping` segments nothing: its stub writes the same label map for every case. What it times is all that an
inference does besides for a case: finding it, deciding that it is to be done, recording it, reporting it.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from scripts.data.datalists import check_output, inference_inputs
from scripts.data.phantoms import write_phantoms
from scripts.errors import SettingError
from scripts.files import whole_file
from scripts.inference.case_records import LABEL_MAP, CaseRecords
from scripts.output.html_report import write_report

from benchmarks.program import run_command

INFERENCE = ("configs/inference.json",)
ORGANS = ("spleen", "right kidney", "left kidney", "liver")
SHOWN = 0.01  # megabytes of slices in the report: some 80 of these volumes, as 40 megabytes hold of real ones
PARTS = ("find", "decide", "record", "report", "decide again")


def processes(
    config_file: Sequence[str] = INFERENCE,
    volumes: int = 16,
    counts: Sequence[int] = (1, 2),
    slices: int = 40,
    report: bool = False,
    by: str = "torchrun",
    **overrides,
) -> None:
    """Segments the same phantoms in one process and in several, and compares every label map.

    Args:
        config_file: of the inference.
        volumes: phantoms of 192x192 voxels a slice.
        counts: of processes; the first is what the others are compared with.
        slices: of each phantom.
        report: whether the time has the report in it, which one process writes.
        by: how several are started: ``torchrun``, a program that loads PyTorch before it starts them; or ``share``,
            each by itself with a ``--share`` of its own, as an array of jobs has them.
    """
    if by not in ("torchrun", "share"):
        raise SettingError(f"--by is '{by}', expected torchrun or share.")
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        scans = [case["image"] for case in write_phantoms(f"{folder}/scans", volumes, shape=(192, 192, slices))]
        listing = Path(folder, "scans.json")
        listing.write_text(json.dumps(scans))
        for count in counts:
            output = Path(folder, f"out{count}")
            options = {"config_file": str(list(config_file)), "input": listing, "output": output, "report": report}
            seconds = _infer(count, {**options, **overrides}, by)
            first = first or (seconds, output)
            same = sum(path.read_bytes() == (output / path.name).read_bytes() for path in first[1].glob("*_seg.nii.gz"))
            rows.append((count, seconds, first[0] / seconds, volumes * 3600 / seconds / count, f"{same} of {volumes}"))
    setting = f"one thread a process, {os.cpu_count()} cores, start included, several processes by {by}"
    print(f"\n{volumes} phantoms of 192x192x{slices}, {setting}\n")
    print("| processes | seconds | times as fast | scans an hour and process | label maps of the same bytes |")
    print("| --- | --- | --- | --- | --- |")
    for count, seconds, ratio, hourly, same in rows:
        print(f"| {count} | {seconds:.1f} | {ratio:.2f} | {hourly:.0f} | {same} |")


def _infer(count: int, options: dict, by: str = "torchrun") -> float:
    """Seconds of an inference in so many processes."""
    words = ["-m", "monai.bundle", "run", "inferring"]
    words += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    if count > 1 and by == "torchrun":
        words = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={count}", *words]
    alone = count == 1 or by == "torchrun"
    shares = [[]] if alone else [["--share", f"{number}/{count}"] for number in range(1, count + 1)]
    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        codes = list(pool.map(_run, [[*words, *share] for share in shares]))
    seconds = time.perf_counter() - started
    if any(codes):
        sys.exit(f"{count} processes ended with exit code {max(codes)}, see above.")
    return seconds


def _run(words: Sequence[str]) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if result.returncode:
        print(result.stdout, result.stderr, sep="\n")
    return result.returncode


def bookkeeping(cases: Sequence[int] = (1000, 3000, 10_000)) -> None:
    """Milliseconds of CPU a case, with a stub in the network's place, each number of cases in a process of its own."""
    print("\nMilliseconds of CPU for each case, without its segmentation (a stub writes the label maps)\n")
    print(f"| cases | {' | '.join(PARTS)} | sum | folders listed twice | peak MiB |")
    print("| --- |" + " --- |" * (len(PARTS) + 3))
    for number in cases:
        command = [sys.executable, "-m", "benchmarks.many", "stubbed", str(number)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        cells = [f"{1e3 * found[part] / number:.2f}" for part in PARTS]
        whole = 1e3 * sum(found[part] for part in PARTS) / number
        print(f"| {number} | {' | '.join(cells)} | {whole:.2f} | {found['listed_twice']} | {found['peak_mib']:.0f} |")


def stubbed(number: int) -> None:
    """An inference of so many cases with a stub in the network's place: seconds of CPU of its parts, as JSON."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        started = time.process_time()
        yield
        seconds[part] = time.process_time() - started

    with tempfile.TemporaryDirectory() as folder:
        scans, output, prior = Path(folder, "scans"), Path(folder, "out"), Path(folder, "prior.pt")
        volume = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
        label_map = gzip.compress(volume)
        prior.write_bytes(b"stub")
        for case in range(number):  # a hundred patients to a folder, as archives have them
            path = scans / f"{case // 100:03d}" / f"{case:05d}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(volume)
        listed: list[str] = []
        iterdir = Path.iterdir
        Path.iterdir = lambda path: listed.append(str(path)) or iterdir(path)  # type: ignore[method-assign]
        with timed("find"):
            items = inference_inputs(scans, output)
            check_output(scans, items, output)
        Path.iterdir = iterdir  # type: ignore[method-assign]
        records = CaseRecords(output, prior, settings={"organs": list(ORGANS)})
        with timed("decide"):
            pending = records.pending(items)
        with timed("record"):
            for item in pending:
                records.begin(item)
                with whole_file(output / LABEL_MAP.format(case=item["case"])) as temporary:
                    temporary.write_bytes(label_map)
                quality = {"organs": {organ: {"volume_ml": 100.0, "components": 1} for organ in ORGANS}, "flags": []}
                records.complete(item, seconds=1.0, shape=(4, 4, 4), quality=quality)
            records.finish()
        with timed("report"):
            write_report(output, max_megabytes=SHOWN)
        with timed("decide again"):
            again = CaseRecords(output, prior, settings={"organs": list(ORGANS)})
            left = again.pending(items)
            again.finish()
            again.check()
        assert len(pending) == len(records.done) == len(again.there) == number and not left
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({**seconds, "listed_twice": len(listed) - len(set(listed)), "peak_mib": peak}))


def table(**overrides) -> None:
    """Both tables."""
    processes(**overrides)
    bookkeeping()


if __name__ == "__main__":
    run_command({"processes": processes, "bookkeeping": bookkeeping, "stubbed": stubbed, "table": table})
