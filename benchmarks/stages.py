"""Where the time of `run inferring` goes, from the start of Python to the report. See `benchmarks.speed`."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.transforms import Invertd, SaveImaged
from scripts.data.phantoms import phantom_dataset
from scripts.data.solid_organs import KeepSolidOrgansd
from scripts.data.transforms import KeepLargestComponentsd
from scripts.inference.case_records import CaseRecords
from scripts.inference.cases import CaseDataset, CaseEvaluator
from scripts.inference.orientation import OrientationCheck
from scripts.inference.quality import QualityCheck
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.sam2_backbone import SAM2
from scripts.output.dicom_seg import DicomSegSaver
from scripts.output.html_report import ReportWriter
from scripts.output.previews import PreviewSaver
from scripts.segmentation.label_maps import LabelMapInferer
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.uncertainty import UncertaintyInferer

from .timing import Cost, labelled

ENCODER = "image encoder"
BEFORE = ("start: Python and imports", "configuration, networks and weights", "reading and preparing the scan")
WALK: Mapping[str, tuple[tuple[type, str], ...]] = {
    ENCODER: ((SAM2, "encode_image"),),
    "naming head": ((DiffuSAM, "name"),),
    "prior, or memories of named masks": ((DiffuSAM, "synthesise"), (DiffuSAM, "memories_of")),
    "memory attention": ((SAM2, "attend"), (SAM2, "condition")),
    "mask decoder": ((SAM2, "decode"),),
    "merging and memory encoder": ((VolumetricInferer, "_encode_masks"),),
    "writing logits as labels": ((LabelMapInferer, "_write"),),
    "orientation head": ((OrientationCheck, "add"), (OrientationCheck, "mirror")),
    "resizing slices, keeping memories": ((UncertaintyInferer, "__call__"),),
}
AFTER: Mapping[str, tuple[tuple[type, str], ...]] = {
    "back to the file's grid": ((Invertd, "__call__"),),
    "solid organs": ((KeepSolidOrgansd, "__call__"),),
    "largest components": ((KeepLargestComponentsd, "__call__"),),
    "saving the label map": ((SaveImaged, "__call__"),),
    "preview": ((PreviewSaver, "__call__"),),
    "DICOM SEG": ((DicomSegSaver, "__call__"),),
    "measures and flags": ((QualityCheck, "__call__"), (OrientationCheck, "judge")),
    "records": tuple((CaseRecords, name) for name in ("complete", "finish", "check")),
    "report": ((ReportWriter, "__call__"),),
}
BESIDE = "engine, handlers and progress"
NAMES = (*BEFORE, *WALK, *AFTER, BESIDE)


def stages(
    input: str | None = None, output: str | None = None, config_file="configs/inference.json", **overrides: Any
) -> dict[str, Cost]:
    """CPU and wall time of each stage of `run inferring` for one scan, first use of everything included.

    Args:
        input: the scan; by default the phantom `ct003` of the demo.
        output: JSON with the stages, if named.
        config_file: as for `run inferring`.
        overrides: of the configuration. Results go to a temporary folder unless they name an `output_folder`.

    Returns:
        Milliseconds by :data:`NAMES`, and under ``"whole"`` all that the process has spent until then.
    """
    started = Cost(1e3 * time.process_time(), 1e3 * _seconds_since_start())
    methods = {each: label for part in (WALK, AFTER) for label, several in part.items() for each in several}
    methods |= {(CaseDataset, "_transform"): BEFORE[2], (CaseEvaluator, "run"): BESIDE, (_Run, "__call__"): BEFORE[1]}
    with tempfile.TemporaryDirectory() as folder:
        scan = input or f"{phantom_dataset(f'{folder}/phantom', 1, first_seed=3)}/image_ct003.nii.gz"
        made = Cost(1e3 * time.process_time(), 1e3 * _seconds_since_start()) - started
        with labelled(methods) as spent:
            slices = _Run()(config_file, {"input": scan, "output": f"{folder}/results", **overrides})
        whole = Cost(1e3 * time.process_time(), 1e3 * _seconds_since_start()) - made
    found = {name: started if name == BEFORE[0] else spent[name] for name in NAMES}
    print(_markdown(found, slices))
    found["whole"] = whole
    if output:
        rows = {name: {"cpu_ms": round(each.cpu, 1), "wall_ms": round(each.wall, 1)} for name, each in found.items()}
        Path(output).write_text(json.dumps({"slices": slices, "stages": rows}, indent=4) + "\n", encoding="utf-8")
    return found


class _Run:
    """`run inferring` in this process, as one call whose time is what no other stage takes."""

    def __call__(self, config_file: Any, overrides: Mapping[str, Any]) -> int:
        """Returns the number of slices of the scan."""
        workflow = ConfigWorkflow(
            config_file=config_file, run_id="inferring", workflow_type="infer", logging_file=False, **overrides
        )
        workflow.initialize()
        workflow.run()
        (result,) = workflow.parser.get_parsed_content("evaluator").state.output
        return result["image"].shape[-1]


def _seconds_since_start() -> float:
    """On the clock, since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text().split()[0])
    return up - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _markdown(found: Mapping[str, Cost], slices: int) -> str:
    lines = [
        f"| {slices} slices | CPU, ms | clock, ms | CPU, ms a slice | ÷ encoder |",
        "| --- | --- | --- | --- | --- |",
    ]

    def add(name: str, spent: Cost) -> None:
        ratio = spent.cpu / found[ENCODER].cpu
        lines.append(f"| {name} | {spent.cpu:.0f} | {spent.wall:.0f} | {spent.cpu / slices:.1f} | {ratio:.2f} |")

    def all_of(names: Any) -> Cost:
        return sum((found[name] for name in names), Cost(0.0, 0.0))

    for name in BEFORE:
        add(name, found[name])
    for part, names in (("the walk", WALK), ("all that follows the walk", AFTER)):
        for name in names:
            add(f"... {name}", found[name])
        add(f"**{part}**", all_of(names))
    add(BESIDE, found[BESIDE])
    add("**whole**", all_of(NAMES))
    ratio = all_of(AFTER).cpu / all_of(WALK).cpu
    return "\n".join([*lines, "", f"All that follows the walk ÷ the walk: {ratio:.2f}"])
