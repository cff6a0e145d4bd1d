"""Does the orientation check find scans whose header lies? Every case in its eight flips, hits and false alarms.

    python -m benchmarks.orientation --config_file configs/inference.json
        --input data/scans --output runs/orientation

reads the cases as an inference does, takes what it reads for right, and exchanges left and right, front and back, head
and feet, and all combinations of these, before slices are encoded. Embeddings are kept in ``--output``, so that another
head is measured in seconds, and the table is of all cases that lie there, whichever configuration they were read with.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from scripts import errors
from scripts.data.stored import scaled
from scripts.descriptions import describe
from scripts.files import whole_file
from scripts.inference.orientation import AS_STATED, CANNOT_TELL, EXCHANGED, SIDES, slice_spacing, verdicts
from scripts.networks.orientation import Evidence, OrientationHead, gather_evidence, to_mirror
from scripts.segmentation.walked_slices import VolumeSlices
from scripts.weights import load_tensors, save_atomically
from torch import Tensor

from benchmarks.configuration import parse
from benchmarks.program import run_command

AXES = {"left_right": 1, "front_back": 0, "upside_down": 2}  # of a volume along P, L, S
FLIPS = [tuple(side for side, chosen in zip(SIDES, flags) if chosen) for flags in product((False, True), repeat=3)]


def main(config_file, input: str, output: str, **overrides) -> None:
    """Measures every case of a folder in all flips.

    Args:
        config_file: config files as for ``monai.bundle run inferring``.
        input: as for an inference.
        output: folder of the embeddings, and of ``orientation.json``.
        overrides: values of the configuration to change, such as ``--orientation_file``.
    """
    parser = parse(config_file, {"input": input, "output": output, **overrides})
    errors.install()
    check, backbone = parser.get_parsed_content("orientation"), parser.get_parsed_content("backbone")
    backbone.check_loaded()
    if check.head is None:
        raise errors.SettingError(
            f"'{check.file}' is not there, or no orientation head for this backbone at {backbone.image_size} pixels. "
            "Run `pretraining` with 'configs/pretrain_orientation.json'."
        )
    folder = Path(output)
    encode_cases(parser, folder, check.head)
    cases = judge_cases(folder, check.head, check.limits, backbone.fingerprint())
    with whole_file(folder / "orientation.json") as temporary:
        temporary.write_text(json.dumps(cases, indent=4) + "\n")
    print(as_text(cases))


@torch.no_grad()
def encode_cases(parser: ConfigParser, folder: Path, head: OrientationHead) -> None:
    """Writes the pooled embeddings of each case's flips, where they are not there already."""
    get = parser.get_parsed_content
    network, transform = get("network"), get("preprocessing")
    for item in get("inputs"):
        path = folder / f"{item['case']}.pt"
        identity = describe(
            {"image": str(item["image"]), "transform": transform, "backbone": network.backbone, "scaled": True}
        )
        if path.is_file() and load_tensors(path, "case", remedy="").get("identity") == identity:
            continue
        image = transform(dict(item))["image"]
        slices = partial(VolumeSlices, batch_size=get("encode_batch_size"), scale=partial(scaled, image=image))
        pooled = [_pooled(slices(_flipped(image[0], flip), network), head) for flip in FLIPS]
        content = {"identity": identity, "weights": network.backbone.fingerprint(), "pooled": torch.stack(pooled)}
        save_atomically({**content, "spacing": slice_spacing(image.affine)}, path)
        print(f"{item['case']}: {image.shape[-1]} slices in {len(FLIPS)} flips", flush=True)


def _flipped(volume: Tensor, flip: tuple[str, ...]) -> Tensor:
    return volume.as_tensor().flip([AXES[side] for side in flip]) if flip else volume.as_tensor()


def _pooled(slices: VolumeSlices, head: OrientationHead) -> Tensor:
    return torch.cat([head.pool(slices.features(indices).embedding).cpu().half() for indices in slices.chunks()])


@torch.no_grad()
def judge_cases(folder: Path, head: OrientationHead, limits: dict[str, Any], weights: str) -> dict[str, list[dict]]:
    """What is said of each case in each flip of :data:`FLIPS`."""
    cases = {}
    for path in sorted(folder.glob("*.pt")):
        content = load_tensors(path, "case", remedy="Remove it.")
        if content["weights"] == weights:
            heights = torch.arange(content["pooled"].shape[1]) * content["spacing"]
            outputs = dict(zip(FLIPS, head(content["pooled"].flatten(0, 1).float()).unflatten(0, (len(FLIPS), -1))))
            cases[path.stem] = [verdicts(_evidence(outputs, flip, heights), limits) for flip in FLIPS]
    return cases


def _evidence(outputs: dict[tuple[str, ...], Tensor], flip: tuple[str, ...], heights: Tensor) -> Evidence:
    """Of a flip, whose slices mirrored are those of the flip that differs in left and right alone."""
    mirrored = tuple(side for side in SIDES if (side in flip) != (side == "left_right"))
    return gather_evidence(outputs[flip], heights, outputs[mirrored][to_mirror(outputs[flip])])


def count_verdicts(cases: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, int]]]:
    """For each side, of volumes that lie as stated and of those that are exchanged, how many get which verdict."""
    words = (AS_STATED, CANNOT_TELL, EXCHANGED)
    table = {side: {truth: dict.fromkeys(words, 0) for truth in (AS_STATED, EXCHANGED)} for side in SIDES}
    for found in cases.values():
        for flip, verdict in zip(FLIPS, found):
            for side in SIDES:
                table[side][EXCHANGED if side in flip else AS_STATED][verdict[side]] += 1
    return table


def as_text(cases: dict[str, list[dict[str, Any]]]) -> str:
    """The numbers as Markdown: of all cases, and of each as it is."""
    lines = [f"{len(cases)} cases, each in {len(FLIPS)} flips", ""]
    lines += ["| | false alarms | found | missed | cannot tell |", "| --- | --- | --- | --- | --- |"]
    for side, counts in count_verdicts(cases).items():
        right, wrong = counts[AS_STATED], counts[EXCHANGED]
        unsure = right[CANNOT_TELL] + wrong[CANNOT_TELL]
        lines.append(
            f"| {SIDES[side]} | {right[EXCHANGED]} of {sum(right.values())} | {wrong[EXCHANGED]} of "
            f"{sum(wrong.values())} | {wrong[AS_STATED]} | {unsure} of {sum(right.values()) + sum(wrong.values())} |"
        )
    lines += ["", f"| case | abdomen | {' | '.join(SIDES.values())} | extent, mm |", "| --- " * (len(SIDES) + 3) + "|"]
    for name, found in cases.items():
        numbers = found[0]["evidence"]
        sides = " | ".join(f"{found[0][side]} ({numbers[side]:.1f})" for side in SIDES)
        lines.append(
            f"| {name} | {'yes' if found[0]['abdomen'] else 'no'} ({numbers['abdomen']:.1f}) | {sides} | "
            f"{numbers['extent']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
