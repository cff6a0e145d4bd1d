"""What a folder of results holds, for :mod:`scripts.output.html_report`: cases, metrics, training curves, settings.

All of it is read from disk, so that a report can be written again at any time, and of what an interrupted run left.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from ..errors import DatasetError, count
from ..files import json_of
from ..inference.record_files import RECORDS, read_records
from ..inference.result_files import LABEL_MAP

METRICS, SETTINGS = "metrics.json", "settings.json"

# what can be said of one organ of one case, in this order: heading, digits after the point, the same in words
MEASURES = {
    "dice": ("Dice", 3, "volumetric Dice"),
    "predicted_dice": ("Predicted Dice", 3, "Dice as estimated without a label"),
    "volume_ml": ("Volume (ml)", 1, "volume in millilitres"),
    "dice_fate": ("Dice, FATE-SAM's", 3, "mean Dice of slices, those with Dice 0 dropped"),
    "dice_dfg": ("Dice, DFG's", 3, "volumetric Dice at 256x256 over slices that hold organs"),
    "hd95_mm": ("HD95 (mm)", 1, "95th percentile of the distances between the surfaces"),
    "asd_mm": ("ASD (mm)", 2, "mean distance between the surfaces"),
    "surface_dice_2mm": ("Surface Dice", 3, "share of both surfaces within the tolerance of the other"),
    "missed": ("Missed", 0, "in the label alone"),
    "invented": ("Invented", 0, "in the prediction alone"),
    "components": ("Components", 0, "connected components"),
    "outside": ("Outside", 2, "share of voxels outside the largest component"),
    "object_score": ("Object score", 2, "SAM2's own score that the organ is there"),
    "largest_jump": ("Largest jump", 2, "largest change from a slice to the next"),
    "touches_edge": ("Touches edge", 0, "whether the organ touches the edge of the volume"),
    "fate_slices_kept": ("Slices, FATE-SAM's", 0, "slices in the mean of FATE-SAM's Dice"),
    "fate_slices_dropped": ("Dropped slices", 0, "slices dropped from it"),
}
_HEADLINES = ("dice", "predicted_dice", "volume_ml")


@dataclass
class Case:
    """One case of an inference or an evaluation.

    Attributes:
        status: ``done``, ``failed``, or ``running`` where the run was interrupted.
        measures: values by organ and name, as far as they are known.
        flags: ``{"organ", "message"}`` each; the organ may be None.
        label_values: values of each organ in the ``truth``.
        loading: arguments of :class:`scripts.data.volumes.VolumeReader` with which the image is read.
        window: intensities shown as black and white, or None.
    """

    name: str
    status: str = "done"
    error: str = ""
    seconds: float | None = None
    shape: tuple[int, ...] = ()
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: list[dict[str, str | None]] = field(default_factory=list)
    image: Path | None = None
    label_map: Path | None = None
    uncertainty: Path | None = None
    truth: Path | None = None
    label_values: list[list[int]] = field(default_factory=list)
    loading: dict[str, Any] = field(default_factory=dict)
    window: tuple[float, float] | None = None


@dataclass
class Curve:
    """A value along a training, in bins of neighbouring iterations.

    Attributes:
        steps, means, lows, highs: one a bin; the lowest and highest value lie in the same bin as the mean.
    """

    name: str
    steps: list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]
    last_step: int


@dataclass
class Content:
    """Everything that a report shows, but for the slices."""

    kind: str
    folder: Path
    organs: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def headline(self) -> str | None:
        """The measure that the table of cases shows for each organ: the first that any case has.

        All cases are looked through each time: who needs it for each of them asks once.
        """
        known = {
            name
            for case in self.cases
            for values in case.measures.values()
            for name, value in values.items()
            if value is not None
        }
        return next((name for name in _HEADLINES if name in known), None)


def read_folder(folder: str | Path, training_dir: str | Path | None = None) -> Content:
    """Reads the output folder of an inference, an evaluation or a training.

    Args:
        folder: with ``results.json``, ``metrics.json`` or TensorBoard's event files.
        training_dir: where the event files of the training lie, if not in ``folder``.

    Raises:
        DatasetError: nothing of this is there, or it cannot be read.
    """
    folder = Path(folder)
    curves = read_curves(Path(training_dir or folder))
    if (folder / RECORDS).is_file():
        content = _inference(folder, read_records(folder))
    elif (folder / METRICS).is_file():
        content = _evaluation(folder, _json(folder / METRICS), _json(folder / SETTINGS))
    elif curves:
        content = Content("training", folder)
        content.settings = [_settings("All settings", _json(folder / SETTINGS))]
    else:
        raise DatasetError(
            f"'{folder}': nothing to report; expected {RECORDS} of an inference, {METRICS} of an evaluation, or "
            "TensorBoard's event files of a training. Name the output folder of one of them."
        )
    content.curves = curves
    return content


def read_curves(folder: Path, bins: int = 150) -> list[Curve]:
    """The scalars in TensorBoard's event files, averaged over neighbouring iterations.

    Of an iteration that was run twice, since a training was interrupted, the later value counts.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return []
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    curves = []
    for tag in events.Tags()[SCALARS]:
        values = {event.step: event.value for event in events.Scalars(tag) if math.isfinite(event.value)}
        steps = sorted(values)
        parts = np.array_split(np.array(steps), min(bins, len(steps))) if steps else []
        grouped = [np.array([values[step] for step in part]) for part in parts]
        if grouped:
            means, lows, highs = ([float(f(group)) for group in grouped] for f in (np.mean, np.min, np.max))
            curves.append(Curve(tag, [float(part.mean()) for part in parts], means, lows, highs, steps[-1]))
    return curves


# ---- an inference


def _inference(folder: Path, records: Mapping[str, Any]) -> Content:
    configurations = records.get("configurations", {})
    content = Content("inference", folder)
    used = Counter(record.get("configuration") for record in records.get("cases", {}).values())
    read: dict[str | None, dict[str, Any]] = {}  # settings, and how images are read, which many cases have in common
    for digest, configuration in configurations.items():
        content.settings.append(_settings(f"Settings of {count(used[digest], 'case')}", configuration))
        settings = configuration.get("settings", {})
        read[digest] = {"settings": settings, "loading": _loading(settings)}
        organs = _named(settings, "organs", list) or []
        content.organs += [organ for organ in organs if organ not in content.organs]
    for name, record in records.get("cases", {}).items():
        content.cases.append(_recorded_case(folder, name, record, read.get(record.get("configuration"), {})))
    return content


def _recorded_case(folder: Path, name: str, record: Mapping[str, Any], read: Mapping[str, Any]) -> Case:
    quality, files = record.get("quality") or {}, record.get("files") or {}
    return Case(
        name,
        status=record.get("status", "running"),
        error=record.get("error", ""),
        seconds=record.get("seconds"),
        shape=tuple(record.get("shape", ())),
        measures=quality.get("organs", {}),
        flags=[
            *({"organ": None, "message": note} for note in record.get("warnings", [])),
            *(_flag(flag) for flag in quality.get("flags", [])),
        ],
        image=Path(record["image"]) if "image" in record else None,
        label_map=_file(folder, files.get("label_map")),
        uncertainty=_file(folder, files.get("uncertainty")),
        window=_window(read.get("settings", {}), record.get("modality")),
        loading=read.get("loading", {}),
    )


def _flag(flag: Mapping[str, Any]) -> dict[str, str | None]:
    organ = flag.get("organ")
    message = str(flag.get("message") or flag.get("flag"))
    return {"organ": organ, "message": message.removeprefix(f"{organ}: ")}  # the organ stands before it in any case


# ---- an evaluation


def _evaluation(folder: Path, metrics: Mapping[str, Any], saved: Mapping[str, Any]) -> Content:
    content = Content("evaluation", folder, organs=metrics["organs"])
    content.settings = [_settings("All settings", {**saved, "about": metrics.get("about", {})})]
    content.metrics = {
        name: values for name, values in metrics.items() if isinstance(values, Mapping) and "values" in values
    }
    settings = saved.get("settings", {})
    values_of = settings.get("label_map", {})
    data = {item.get("case"): item for item in saved.get("data", [])}
    for row, name in enumerate(metrics["cases"]):
        item = data.get(name, {})
        measures = {
            organ: {metric: values["values"][row][column] for metric, values in content.metrics.items()}
            for column, organ in enumerate(content.organs)
        }
        content.cases.append(
            Case(
                name,
                measures=measures,
                image=Path(item["image"]) if "image" in item else None,
                label_map=_file(folder, LABEL_MAP.format(case=name)),
                truth=Path(item["label"]) if "label" in item else None,
                label_values=[np.atleast_1d(values_of.get(organ, [])).tolist() for organ in content.organs],
                loading=_loading(settings),
                window=_window(settings),
            )
        )
    return content


# ---- settings


def _settings(title: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A title and what ran, as rows of a name and a text."""
    about = {key: value for key, value in saved.items() if key not in ("settings", "data")}
    return {"title": title, "rows": list(_flat({**about, **saved.get("settings", {})}))}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value, 1)}
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _named(settings: Any, name: str, kind: type | tuple[type, ...] = object) -> Any:
    """The value that has a name at the least depth in recorded settings, if it is of a kind; None if there is none."""
    layer = [settings]
    while layer:
        for each in layer:
            if isinstance(each, Mapping) and isinstance(each.get(name), kind):
                return each[name]
        layer = [
            item
            for each in layer
            if isinstance(each, (Mapping, list))
            for item in (each.values() if isinstance(each, Mapping) else each)
        ]
    return None


def _loading(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _named(settings, key, (str, int)) for key in ("series", "default_axcodes", "trusted_form")}
    return {key: value for key, value in found.items() if value is not None}


def _window(settings: Mapping[str, Any], modality: str | None = None) -> tuple[float, float] | None:
    """The range that a recorded ``ScaleIntensityRanged`` maps to [0, 1]; of one for each modality, that of this one."""
    by_modality = _named(settings, "ScaleByModalityd", dict)
    if by_modality is not None:
        settings = by_modality.get(modality or by_modality.get("modality")) or {}
    intensity = _named(settings, "ScaleIntensityRanged", dict)
    low, high = (_named(intensity, key, (int, float)) for key in ("a_min", "a_max"))
    return None if low is None or high is None else (low, high)


def _file(folder: Path, name: str | None) -> Path | None:
    return folder / name if name and (folder / name).is_file() else None


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json_of(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"'{path}': not complete JSON ({error}). Run the command that writes it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{path}': a {type(content).__name__}, expected an object as this bundle writes it.")
    return content
