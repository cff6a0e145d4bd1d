"""What a command tells: a table of the volumes, what is unusual about them, and every problem at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..data.datalists import Item, LabelMap
from ..data.dataset_check import CaseSummary
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed, one_line
from ..files import BUNDLE
from ..shell import bundle_command, quoted, shown, tells_next
from .anatomy import SIDES, misplaced_organs
from .targets import Target


def report(
    before: Sequence[str],
    summaries: Sequence[CaseSummary],
    *,
    notes: Sequence[str],
    after: Sequence[str],
    overlay: str,
    prior: str,
    options: Mapping[str, str] | None = None,
    evaluated: bool = True,
    before_overlay: Sequence[str] = (),
) -> str:
    """Everything a command says: a table of the volumes, with organs in millilitres, between its remarks.

    Args:
        before: remarks above the table.
        summaries: a row each.
        notes: on each volume.
        after: remarks below it.
        overlay: of the data, for the commands that come next.
        prior: the file that training with it writes.
        options: that training and evaluation need as well.
        evaluated: whether cases are left to evaluate on.
        before_overlay: configurations that training and evaluation are given before it.
    """
    organs = list(summaries[0].voxels)
    rows = [("case", "voxels", "mm", *(f"{one_line(organ)} (ml)" for organ in organs), "")]
    for each, note in zip(summaries, notes):
        millilitres = (each.millilitres(organ) for organ in organs)
        shape, spacing = " x ".join(map(str, each.shape)), " x ".join(f"{size:.3g}" for size in each.spacing)
        rows.append((one_line(each.case), shape, spacing, *(f"{volume:.1f}" for volume in millilitres), note))
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]).rstrip() for row in rows
    ]
    following = _next_commands([*before_overlay, overlay], prior, options or {}, evaluated) if tells_next() else []
    return "\n".join([*before, "", *table, "", *after, *following])


def _next_commands(overlays: Sequence[str], prior: str, options: Mapping[str, str], evaluated: bool) -> list[str]:
    train, evaluate = "configs/train.json", "configs/evaluate.json"
    commands = {"Train with": ("training", [train, *overlays], options)}
    if evaluated:
        commands["Then evaluate with"] = ("evaluating", [train, evaluate, *overlays], options)
    scan = {"prior_file": prior, "input": "SCAN", "output": "OUT"}
    commands["Then segment with"] = ("inferring", ["configs/inference.json"], scan)
    lines = [f"{purpose}: {quoted(bundle_command(*command))}" for purpose, command in commands.items()]
    return lines if Path.cwd() == BUNDLE.resolve() else [f"In the folder of the bundle, '{shown(BUNDLE)}':", *lines]


def notes_on(
    items: Sequence[Item],
    summaries: Sequence[CaseSummary],
    *,
    label_map: LabelMap,
    reader: VolumeReader,
    shape: Sequence[tuple[int, int]] | None = None,
) -> list[str]:
    """What is unusual about each volume, though it can be used."""
    notes = []
    for item, summary in zip(items, summaries):
        found = []
        if shape and not all(low <= size <= high for size, (low, high) in zip(summary.shape, shape)):
            ranges = " x ".join(str(low) if low == high else f"{low}...{high}" for low, high in shape)
            found.append(f"published: {ranges}")
        found += [f"no {organ}" for organ, voxels in summary.voxels.items() if not voxels]
        label = reader.load(item["label"])
        found += misplaced_organs(label.voxels, label.affine, label_map, SIDES)
        notes.append("; ".join(found))
    return notes


def other_cases(cases: Iterable[str], published: Sequence[str]) -> list[str]:
    """Warnings of published cases that are missing, and of others."""
    missing = [case for case in published if case not in cases]
    added = [case for case in cases if case not in published]
    lines = [
        f"Warning: {len(missing)} of the {len(published)} published volumes missing: {listed(missing, len(missing))}."
    ] * bool(missing)
    return lines + [f"Warning: volumes that are not in the published data: {listed(added)}."] * bool(added)


def raise_all(problems: Sequence[str], title: str, target: Target) -> None:
    """Raises the problems of all volumes as one error, if there are any."""
    if problems:
        numbered = [f"  {number}. {problem}" for number, problem in enumerate(problems, 1)]
        lines = [f"{count(len(problems), 'volume')} of {title} cannot be used:", *numbered]
        raise DatasetError("\n".join([*lines, f"The others are ready. {target.summary()}"]))
