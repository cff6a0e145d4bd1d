"""What an evaluation found: tables on the terminal, one CSV, one JSON."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.handlers import MetricsSaver
from monai.utils import string_list_all_gather
from torch import Tensor

from ..data.volumes import result_name
from ..errors import one_line
from ..files import whole_file
from .metrics import mean_of_means

# how cells begin that spreadsheets evaluate
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")

logger = logging.getLogger(__name__)


class OrganMetricsSaver(MetricsSaver):
    """Ignite handler that reports ``state.metric_details`` when an evaluation ends, from one process.

    * The log gets :func:`format_summary` of all metrics and :func:`format_table` of the first.
    * ``metrics.csv`` has a row for each case and organ, a column for each metric, and nothing where it is undefined.
    * ``metrics.json`` has the cases, the organs, and for each metric ``values`` (a row a case, a column an organ, null
      where undefined), ``organ_means``, ``organ_sds`` (over volumes, n - 1) and ``organ_volumes`` (how many have a
      value), and ``mean``, over organs of their means; for each count ``values`` and ``organ_totals``.

    Files are replaced only when they are complete.

    Args:
        save_dir: folder of the files.
        organs: names of the columns.
        about: anything to keep in the JSON beside the numbers, such as the settings of the run.
        batch_transform: from the engine's batch to a list of the cases' names, or of their images' ``meta``, which
            names the case.
        save_rank: the process that writes.
        order: names of the cases in the order of the rows; otherwise it is the order of their evaluation, which with
            several processes is first those of one, then those of the next.
    """

    def __init__(
        self,
        save_dir: str,
        organs: Sequence[str],
        *,
        about: Mapping[str, Any] | None = None,
        batch_transform: Callable = lambda x: x,
        save_rank: int = 0,
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__(save_dir, metric_details="*", batch_transform=batch_transform, save_rank=save_rank)
        self.organs, self.about = list(organs), dict(about or {})
        self.order = None if order is None else list(order)

    def _get_filenames(self, engine: Engine) -> None:
        for item in self.batch_transform(engine.state.batch):
            self._filenames.append(item if isinstance(item, str) else result_name(item))

    def __call__(self, engine: Engine) -> None:
        cases = string_list_all_gather(self._filenames)  # in the order in which metrics gather their values
        if idist.get_rank() != self.save_rank:
            return
        rows = list(range(len(cases)))
        if self.order is not None:
            rows.sort(key=lambda row: self.order.index(cases[row]))
        cases = [cases[row] for row in rows]
        details = {name: values.cpu()[rows] for name, values in engine.state.metric_details.items()}
        first, values = next(iter(details.items()))
        logger.info("all metrics\n%s", format_summary(details, self.organs))
        logger.info("%s\n%s", first, format_table(values, cases, self.organs))
        folder = Path(self.save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "metrics.csv", to_csv(details, cases, self.organs))
        content = {"about": self.about, "cases": cases, "organs": self.organs}
        content |= {name: summarise(values) for name, values in details.items()}
        _replace(folder / "metrics.json", json.dumps(content, indent=4) + "\n")


def summarise(values: Tensor) -> dict[str, Any]:
    """What ``metrics.json`` has of one metric ``(cases, organs)``, or of one count if the values are integers."""
    if not values.is_floating_point():
        return {"organ_totals": values.sum(0).tolist(), "values": values.tolist()}
    over = _over_volumes(values)
    return {
        "mean": _number(mean_of_means(values)),
        "organ_means": [_number(value) for value in over.means],
        "organ_sds": [_number(value) for value in over.sds],
        "organ_volumes": over.volumes.tolist(),
        "values": [[_number(value) for value in row] for row in values],
    }


def to_csv(details: Mapping[str, Tensor], cases: Sequence[str], organs: Sequence[str]) -> str:
    """Metrics ``(cases, organs)`` as CSV: a row for each case and organ, a column for each metric.

    A name that a spreadsheet would take for a formula, such as ``=1+1``, gets the apostrophe by which it is a text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "organ", *details])
    for row, case in enumerate(cases):
        for column, organ in enumerate(organs):
            numbers = [_number(values[row, column]) for values in details.values()]
            writer.writerow(
                [_no_formula(case), _no_formula(organ), *("" if number is None else number for number in numbers)]
            )
    return text.getvalue()


def _no_formula(name: str) -> str:
    return one_line(f"'{name}" if name[:1] in _FORMULAS else name)


def format_summary(details: Mapping[str, Tensor], organs: Sequence[str]) -> str:
    """All metrics as text: a row a metric, a column an organ, "mean ± standard deviation over volumes (n/m)".

    n of the m volumes have a value. The last column is the mean over the organs that have one; counts come below, with
    totals.
    """
    rows, counts = [["", *organs, "mean"]], []
    for name, values in details.items():
        if not values.is_floating_point():
            totals = values.sum(0).tolist()
            counts.append([name, *map(str, totals), str(sum(totals))])
            continue
        digits = 2 if name.endswith("_mm") else 4
        means, sds, volumes = (each.tolist() for each in _over_volumes(values))
        cells = [_cell(*numbers, len(values), digits) for numbers in zip(means, sds, volumes)]
        valued = sum(number > 0 for number in volumes)
        rows.append([name, *cells, _cell(mean_of_means(values).item(), math.nan, valued, len(organs), digits)])
    return _align(rows + ([["", *[""] * len(organs), "total"], *counts] if counts else []))


def format_table(values: Tensor, cases: Sequence[str], organs: Sequence[str]) -> str:
    """Values ``(cases, organs)`` as text: a row a case, a column an organ, means last; a dash where undefined."""
    rows = torch.cat([values, values.nanmean(1, keepdim=True)], 1).tolist()
    # the last mean is over organs' means of all volumes, the number the tables of the paper give
    rows.append([*values.nanmean(0).tolist(), mean_of_means(values).item()])
    body = [[name, *(_text(value) for value in row)] for name, row in zip([*cases, "mean"], rows)]
    return _align([["", *organs, "mean"], *body])


class _OverVolumes(NamedTuple):
    """Each organ's mean, standard deviation (n - 1) and number of values."""

    means: Tensor
    sds: Tensor
    volumes: Tensor


def _over_volumes(values: Tensor) -> _OverVolumes:
    """Of ``(cases, organs)``, without NaN."""
    count = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    sd = ((values - mean).square().nansum(0) / (count - 1)).sqrt().where(count > 1, math.nan)
    return _OverVolumes(mean, sd, count)


def _cell(mean: float, sd: float, volumes: int, of: int, digits: int) -> str:
    spread = "" if math.isnan(sd) else f" ± {sd:.{digits}f}"
    return f"{_text(mean, digits)}{spread} ({volumes}/{of})"


def _text(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first to the left, the others to the right, at least 8 wide and 2 apart."""
    first, *widths = (max(len(row[column]) for row in rows) for column in range(len(rows[0])))
    first = max(first, 4) + 2
    widths = [max(8, width) + 2 for width in widths]
    return "\n".join(
        row[0].ljust(first) + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths)) for row in rows
    )


def _number(value: Tensor) -> float | int | None:
    number = value.item()
    return None if math.isnan(number) else round(number, 6)


def _replace(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
