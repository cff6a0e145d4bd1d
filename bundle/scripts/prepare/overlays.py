"""The overlay that makes the configurations read a user's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.datalists import Item
from ..data.dataset_check import CaseSummary, undrawn
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed
from .report import notes_on, report
from .targets import Target, store_overlay

TRAIN_CASES = 3  # the few shots of the default suggestion


def chosen_train_cases(cases: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The cases to train on: those that are wanted, or the first few."""
    if wanted is None:
        return list(cases[:TRAIN_CASES])
    wanted = list(dict.fromkeys(map(str, [wanted] if isinstance(wanted, (str, int)) else wanted)))
    unknown = [case for case in wanted if case not in cases]
    if unknown or not wanted:
        raise DatasetError(
            f"--train_cases names {listed(unknown) or 'none'}, expected some of the labelled cases {listed(cases)}. "
            "Write names with leading zeros in quotes, such as \"['0001','0002']\"."
        )
    return wanted


def cases_with_organs(train: Sequence[str], summaries: Sequence[CaseSummary], stated: bool) -> list[str]:
    """The same cases as far as a training can use them: each with an organ, and each organ that any label holds.

    Args:
        train: of :func:`chosen_train_cases`.
        summaries: of all cases.
        stated: whether a user named them, who then is told what is wrong instead.

    Raises:
        DatasetError: a case that a user named has no organ.
    """
    labelled = {summary.case: {organ for organ, voxels in summary.voxels.items() if voxels} for summary in summaries}
    empty = [case for case in train if not labelled.get(case)]
    if stated:
        if empty:
            raise DatasetError(
                f"--train_cases names {listed(empty)}, whose labels hold no organ. Name others, or correct --label_map."
            )
        return list(train)
    chosen = [case for case, organs in labelled.items() if organs][: len(train)]
    for organ in dict.fromkeys(organ for organs in labelled.values() for organ in sorted(organs)):
        if not any(organ in labelled[case] for case in chosen):
            chosen.append(next(case for case, organs in labelled.items() if organ in organs))
    return chosen


def stated_settings(**settings: str | None) -> dict[str, str]:
    """How files are read, for the overlay: those of the settings that were stated."""
    return {name: value for name, value in settings.items() if value}


def write_overlay(
    target: Target,
    files: Mapping[str, str],
    items: Sequence[Item],
    summaries: Sequence[CaseSummary],
    train: Sequence[str],
    *,
    meanings: Mapping[str, Any],
    reader: VolumeReader,
    remarks: Sequence[str],
) -> str:
    """Writes ``overlay.json`` and returns the report of the command."""
    test = [item["case"] for item in items if item["case"] not in train]
    run = target.folder / "run"
    places = {**files, "output_dir": str(run), "prior_file": str(run / "model.pt")}
    overlay = {**places, "train_cases": list(train), "test_cases": test, **meanings}
    store_overlay(target, "overlay.json", overlay, evaluated=["intensity"])
    tested = f"{len(test)} {_are(test)} evaluated ({listed(test)})" if test else "none is left to evaluate on"
    trained = f"{len(train)} {_are(train)} for training ({listed(train)})"
    split = f"Of {count(len(items), 'labelled volume')}, {trained}, {tested}."
    absent = undrawn(summaries)
    warnings = [f"Warning: no label holds {listed(absent)}."] if absent else []
    return report(
        [],
        summaries,
        notes=notes_on(items, summaries, label_map=meanings["label_map"], reader=reader),
        after=[*remarks, *warnings, split, target.summary()],
        overlay=str(target.folder / "overlay.json"),
        prior=str(run / "model.pt"),
        evaluated=bool(test),
        before_overlay=["configs/few_shot.json"],  # what a few labelled volumes teach best
    )


def _are(cases: Sequence[str]) -> str:
    return "is" if len(cases) == 1 else "are"
