"""The last lines of a workflow: which commands come next, with the overlays and options of the one that was typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from .arguments import typed_options
from .errors import one_line, say
from .overrides import without_effect
from .shell import bundle_command, config_files, quoted, shown, tells_next

SCAN, OUTPUT = "SCAN", "OUT"  # what a reader puts the names in for

# options of a training or an evaluation that mean the same when scans are segmented; the prior knows all others
_OF_READING = ("bundle_root", "device", "num_workers", "series", "default_axcodes", "trusted_form")
_STEPS = ("initialize", "run", "finalize")


class Records(Protocol):
    """What is asked of :class:`~scripts.inference.case_records.CaseRecords`."""

    output: Path
    last: bool


def after_training(prior_file: str | Path) -> None:
    """Prints how the prior is evaluated, where a case is left to evaluate on, and how scans are segmented with it."""
    typed = _typed()
    if typed is not None:
        _say([("Evaluate it", _evaluating(*typed)), ("Segment scans", _inferring(*typed, prior_file))])


def after_evaluation(prior_file: str | Path) -> None:
    """Prints how scans are segmented with the prior."""
    typed = _typed()
    if typed is not None:
        _say([("Segment scans", _inferring(*typed, prior_file))])


def after_inference(records: Records) -> None:
    """Prints where to look, once everything is done."""
    report = Path(records.output) / "report.html"
    if _typed() is not None and records.last and report.is_file():
        say(f"\nNext, look at it: {one_line(shown(report))}")


def _say(commands: Sequence[tuple[str, list[str] | None]]) -> None:
    for purpose, words in commands:
        if words is not None:
            say(f"\n{purpose}:\n  {quoted(words)}")


def _typed() -> tuple[list[str], dict[str, str | None]] | None:
    """Configurations and options of ``python -m monai.bundle run``; None where something else runs, or speaks."""
    options = typed_options()
    if options is None or not tells_next() or os.environ.get("RANK", "0") != "0":
        return None
    files = config_files(options.pop("config_file", None))
    options.pop("run_id", None)
    return (files, options) if files else None


def _evaluating(files: Sequence[str], options: Mapping[str, str | None]) -> list[str] | None:
    """The command that evaluates what this one has trained; options that only a training reads are left out."""
    single = [each for each in files if Path(each).name != "multi_gpu_train.json"]
    first = next((place for place, each in enumerate(single) if Path(each).name == "train.json"), None)
    if first is None:
        return None
    single.insert(first + 1, str(Path(single[first]).with_name("evaluate.json")))
    config = ConfigParser.load_config_files(single)
    if config.get("test_cases") == [] or options.get("test_cases") == "[]":
        return None
    idle = without_effect(config, _STEPS, list(options))
    return bundle_command("evaluating", single, {name: text for name, text in options.items() if name not in idle})


def _inferring(files: Sequence[str], options: Mapping[str, str | None], prior_file: str | Path) -> list[str] | None:
    """The command that segments scans with a prior, whose file says all that was set for its training."""
    prior = shown(Path(prior_file))
    if any(sign in prior for sign in "$@%#"):  # in which MONAI gives them a meaning
        return None
    prior = prior if DefaultParseValue(prior) == prior else f"./{prior}"
    kept = {name: text for name, text in options.items() if name in _OF_READING}
    given: dict[str, Any] = {"prior_file": prior, "input": SCAN, "output": OUTPUT, **kept}
    return bundle_command("inferring", [str(Path(files[0]).with_name("inference.json"))], given)
