"""A table's results as JSON, Markdown and a picture: measured numbers with their spread, published ones beside them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scripts.files import whole_file
from scripts.output.previews import save_figure

from .plan import Table

# what a result has beside the native Dice, and how a table heads it
OTHER_METRICS = {"dice_fate": "Dice, FATE", "dice_dfg": "Dice, DFG", "hd95_mm": "HD95, mm"}
SECONDS = {"seconds_training": "training, s", "seconds_per_volume": "a volume, s"}
CLOCKS = (
    "Training, s: what a row trains itself (U-Net, UNETR, adapting to the target) counts its steps alone; a training "
    "with a command of its own (DiffuSAM, AutoMedSAM, the source of an adaptation) counts the whole command, with its "
    "start, reading and encoding. Compare within each kind."
)
BAR, MISSING, RECORDED = "#648fff", "–", "†"


def collect(table: Table) -> dict[str, Any]:
    """What is there of a table, as ``table.json`` has it.

    Each row has ``runs``, the result of each run or why there is none that the command of now has made, and, over the
    runs that have one, ``organs`` and ``mean`` of the native Dice, :data:`OTHER_METRICS` and :data:`SECONDS`, each as
    ``mean``, ``sd`` (over runs, n - 1) and ``n``. Recorded rows have the same, and ``repeat_with``. ``hours`` are those
    of everything that was run, each training once, as if one command had followed the other.
    """
    organs = _organs(table)
    rows = {
        name: _recorded_row(row, organs) if "recorded" in row else _collect_row(table, name, organs)
        for name, row in table.rows.items()
    }
    gap = table.content.get("gap")
    if gap:
        start, end = (_means(rows[gap[key]]) for key in ("from", "to"))
        for name in table.runnable:
            row = rows[name]
            shares = [
                (mean - start[run]) / (end[run] - start[run])
                for run, mean in _means(row).items()
                if run in start and run in end and end[run] != start[run]
            ]
            row["gap_closed"] = _spread(shares)
    kept = {key: table.content.get(key) for key in ("title", "about", "config_file", "settings", "published", "gap")}
    settings = {name: each.get("settings", {}) for name, each in table.content["trainings"].items()}
    rest = {"trainings": settings, "overrides": table.overrides, "hours": _hours(table, rows)}
    return {**kept, **rest, "organs": organs, "rows": rows}


def _collect_row(table: Table, name: str, organs: Sequence[str]) -> dict[str, Any]:
    entry, runs = table.rows[name], {}
    for run in table.runs:
        path = table.result(run, name)
        if not path.is_file():
            runs[run] = {"not_run": _reason(table, run, name)}
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if "not_run" in content:
            runs[run] = {"not_run": content["not_run"]}
            continue
        if not table.finished(run, name):
            runs[run] = {"not_run": f"the result there is was made by another command; {_reason(table, run, name)}"}
            continue
        training = entry.get("training")
        runs[run] = {
            "organs": content["dice"]["organ_means"],
            "mean": content["dice"]["mean"],
            **{key: content[key]["mean"] for key in OTHER_METRICS if key in content},
            "seconds_training": content["seconds_training"] + (table.seconds(run, training) if training else 0),
            "seconds_per_volume": content["seconds_per_volume"],
            "test_cases": content["cases"],
        }
    done = [each for each in runs.values() if "mean" in each]
    row: dict[str, Any] = {"runs": runs, "published": entry.get("published")}
    row["organs"] = [_spread([each["organs"][index] for each in done]) for index in range(len(organs))]
    for key in ("mean", *OTHER_METRICS, *SECONDS):
        row[key] = _spread([each[key] for each in done if key in each])
    return row


def _recorded_row(entry: dict[str, Any], organs: Sequence[str]) -> dict[str, Any]:
    """A row of an option that is gone, as the table had it when its commit ran it."""
    recorded, runs = entry["recorded"], {run: {"mean": mean / 100} for run, mean in entry["recorded"]["runs"].items()}

    def spread(key: str, value: Sequence[float] | None) -> dict[str, float | int | None]:
        scale = 1 if key.endswith("_mm") or key in SECONDS else 100
        mean, sd = (None, None) if value is None else (each / scale for each in value)
        return {"mean": mean, "sd": sd, "n": 0 if value is None else len(runs)}

    row: dict[str, Any] = {"runs": runs, "published": None, "repeat_with": entry["repeat_with"]}
    row["organs"] = [spread("organs", recorded["organs"].get(organ)) for organ in organs]
    keys = ("mean", "gap_closed", *OTHER_METRICS, *SECONDS)
    return row | {key: spread(key, recorded.get(key)) for key in keys}


def _hours(table: Table, rows: dict[str, Any]) -> float:
    trainings: dict[Path, float] = {}
    seconds = 0.0
    for name in table.runnable:
        training = table.rows[name].get("training")
        for run, result in rows[name]["runs"].items():
            if "mean" not in result:
                continue
            seconds += result["seconds_per_volume"] * len(result["test_cases"])
            own = result["seconds_training"]
            if training:
                shared = table.seconds(run, training)
                by_row = table.trained_by_rows(training)
                trainings[table.trained(run, training)] = own if by_row else shared
                start = table.content["trainings"][training].get("start")
                if start is not None:
                    trainings[table.trained(run, start)] = table.seconds(run, start)
                own = 0.0 if by_row else own - shared
            seconds += own
    return (seconds + sum(trainings.values())) / 3600


def _organs(table: Table) -> list[str]:
    """Of the first result that is there, or else of a recorded row; before there is any, none are known."""
    for run in table.runs:
        for name in table.rows:
            path = table.result(run, name)
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if "organs" in content:
                return content["organs"]
    return next((list(row["recorded"]["organs"]) for row in table.rows.values() if "recorded" in row), [])


def _reason(table: Table, run: str, name: str) -> str:
    """Why a result is not there: the end of the log of what failed."""
    training = table.rows[name].get("training")
    start = table.content["trainings"][training].get("start") if training else None
    for step in (name, training, start):
        log = table.log(run, step) if step else None
        text = log.read_text(encoding="utf-8", errors="replace") if log and log.is_file() else ""
        _, told, message = text.rpartition("\nerror: ")  # as `scripts.errors` puts it
        if told:
            return " ".join(message.split())
        unexpected = [line.strip() for line in text.splitlines() if "Error" in line]
        if unexpected:
            return unexpected[-1]
    return "not run yet"


def _means(row: dict[str, Any]) -> dict[str, float]:
    return {run: each["mean"] for run, each in row["runs"].items() if each.get("mean") is not None}


def _spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return {
        "mean": statistics.fmean(numbers) if numbers else None,
        "sd": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "n": len(numbers),
    }


def to_markdown(content: dict[str, Any]) -> str:
    """The table as Markdown; rows without a result follow with what they need."""
    organs, rows, runs = content["organs"], content["rows"], len(next(iter(content["rows"].values()))["runs"])
    others = {key: head for key, head in OTHER_METRICS.items() if any(row[key]["n"] for row in rows.values())}
    heads = ["", *organs, "**mean Dice**", *others.values()]
    heads += ["gap closed"] * bool(content["gap"]) + [*SECONDS.values(), "runs"]
    lines = [f"**{content['title']}**", "", content["about"] or "", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, row in rows.items():
        if not row["mean"]["n"]:
            continue
        cells = [_label(name, row), *(_percent(each) for each in row["organs"]), f"**{_percent(row['mean'])}**"]
        cells += [_plain(row[key], 1) if key.endswith("_mm") else _percent(row[key]) for key in others]
        if content["gap"]:
            closed = row["gap_closed"]
            cells.append(f"{_percent(closed, 0)} %" if closed["n"] else MISSING)
        cells += [
            _plain(row["seconds_training"], 0),
            _plain(row["seconds_per_volume"], 1),
            f"{row['mean']['n']}/{runs}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    commits = sorted({row["repeat_with"] for row in rows.values() if "repeat_with" in row})
    if commits:
        lines += ["", f"{RECORDED} Recorded: today's code has no such option. Commit {', '.join(commits)} repeats it."]
    lines += ["", CLOCKS]
    lines += ["", f"Trainings, each counted once, and volumes took {content['hours']:.1f} hours, one after the other."]
    lines += _by_run(rows)
    lines += _missing(rows)
    lines += _published(content)
    return "\n".join(lines) + "\n"


def _missing(rows: dict[str, Any]) -> list[str]:
    """Why rows have no result; of a row with some of its runs, why it lacks the others."""
    lines = []
    for name, row in rows.items():
        reasons = {run: each["not_run"] for run, each in row["runs"].items() if "not_run" in each}
        if reasons and not row["mean"]["n"]:
            lines.append(f"- {name}: {next(iter(reasons.values()))}")
        else:
            lines += [f"- {name}, run {run}: {reason}" for run, reason in reasons.items()]
    return ["", "Not run:", "", *lines] if lines else []


def _by_run(rows: dict[str, Any]) -> list[str]:
    """The mean of each run, in the order of the rows, where there are runs to compare."""
    runs = list(next(iter(rows.values()))["runs"])
    if len(runs) < 2:
        return []
    lines = ["", "Mean native Dice of each run:", "", f"| | {' | '.join(runs)} |", "|" + " --- |" * (len(runs) + 1)]
    for name, row in rows.items():
        means = _means(row)
        if means:
            cells = [f"{100 * means[run]:.1f}" if run in means else MISSING for run in runs]
            lines.append(f"| {_label(name, row)} | {' | '.join(cells)} |")
    return lines


def _label(name: str, row: dict[str, Any]) -> str:
    return f"{name} {RECORDED}" if "repeat_with" in row else name


def _published(content: dict[str, Any]) -> list[str]:
    """Published numbers in a table of their own, with the measured mean in the last column."""
    rows = {name: row for name, row in content["rows"].items() if row["published"]}
    if not rows:
        return []
    width = len(next(iter(rows.values()))["published"]) - 1
    organs = content["organs"] if len(content["organs"]) == width else [f"organ {index + 1}" for index in range(width)]
    lines = ["", f"Published ({content['published']}), Dice in percent:", ""]
    lines += [f"| | {' | '.join(organs)} | mean | measured here |", "|" + " --- |" * (width + 3)]
    for name, row in rows.items():
        measured = _percent(row["mean"]) if row["mean"]["n"] else "not run"
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in row['published'])} | {measured} |")
    return lines


def _percent(spread: dict[str, Any], digits: int = 1) -> str:
    return _plain({key: value * 100 if value and key != "n" else value for key, value in spread.items()}, digits)


def _plain(spread: dict[str, Any], digits: int) -> str:
    if spread["mean"] is None:
        return MISSING
    sd = "" if spread["sd"] is None else f" ± {spread['sd']:.{digits}f}"
    mean = round(spread["mean"], digits) + 0.0  # no "-0"
    return f"{mean:.{digits}f}{sd}"


def draw(content: dict[str, Any]) -> Figure:
    """A bar for each row's mean Dice, a dot for each run, and a hollow diamond for the published mean."""
    rows = {name: row for name, row in content["rows"].items() if row["mean"]["n"] or row["published"]}
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows.values()):
        if row["mean"]["n"]:
            mean = 100 * row["mean"]["mean"]
            axes.barh(place, mean, color=BAR, height=0.62)
            dots = [100 * each for each in _means(row).values()]
            where, color = (1, "white") if mean > 8 else (max(dots) + 2, BAR)  # beside a bar too short to hold it
            axes.annotate(f"{mean:.1f}", (where, place), va="center", color=color, fontsize=8, weight="bold")
            axes.plot(dots, [place] * len(dots), "o", color="black", markersize=3)
        if row["published"]:
            axes.plot(row["published"][-1], place, "D", color="#dc267f", markerfacecolor="white", markersize=5)
    axes.set_yticks(range(len(rows)), [_label(name, row) for name, row in rows.items()])
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), xlabel="mean native Dice, %", title=content["title"])
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if any(row["published"] for row in rows.values()):
        axes.plot([], [], "D", color="#dc267f", markerfacecolor="white", markersize=5, label=content["published"])
        axes.plot([], [], "o", color="black", markersize=3, label="one run, measured here")
        figure.legend(fontsize=7, loc="outside lower right", ncols=2)
    return figure


def write(table: Table) -> dict[str, Any]:
    """Writes ``table.json``, ``table.md`` and ``table.png`` into the table's folder, each as a whole."""
    content = collect(table)
    for name, text in (("table.json", json.dumps(content, indent=4) + "\n"), ("table.md", to_markdown(content))):
        with whole_file(Path(table.output) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    save_figure(draw(content), table.output / "table.png")
    return content
