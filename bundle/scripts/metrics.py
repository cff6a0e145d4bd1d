"""Dice for each organ on the file's own grid, and the table of it: on the terminal, as CSV and as JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, MetricsSaver, write_metrics_reports
from monai.metrics import DiceMetric

logger = logging.getLogger(__name__)


class OrganDice(DiceMetric):
    """Volumetric Dice for each organ, NaN only where an organ is absent from both the prediction and the truth.

    MONAI's metric either ignores every image without the organ, so that inventing an organ costs nothing, or
    counts a correct absence as 1. Undefined values are left out of means here, and invented organs count as 0.

    Inputs are one-hot with background first: ``y_pred`` and ``y`` of shape ``(B, 1 + organs, ...)``, or lists of
    ``(1 + organs, ...)``.
    """

    def __init__(self) -> None:
        super().__init__(include_background=False, reduction="mean", ignore_empty=False)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dice = super()._compute_tensor(y_pred, y)
        nowhere = ((y_pred > 0) | (y > 0)).flatten(2).any(2).logical_not()[:, 1:]
        return dice.masked_fill(nowhere.to(dice.device), math.nan)


class OrganDiceHandler(IgniteMetricHandler):
    """:class:`OrganDice` as an Ignite metric; keeps the value of every volume and organ in ``state.metric_details``."""

    def __init__(self, output_transform: Callable) -> None:
        super().__init__(metric_fn=OrganDice(), output_transform=output_transform, save_details=True)


class OrganMetricsSaver(MetricsSaver):
    """``MetricsSaver`` with the organs' names in its columns, a JSON beside the CSV, and the table in the log.

    Args:
        save_dir: folder of ``metrics.csv``, ``{metric}_raw.csv``, ``{metric}_summary.csv`` and ``metrics.json``.
        organs: names of the columns.
        about: anything to keep in the JSON beside the numbers, such as the settings of the run.
        batch_transform: see ``MetricsSaver``.
    """

    def __init__(
        self,
        save_dir: str,
        organs: Sequence[str],
        about: dict[str, Any] | None = None,
        batch_transform: Callable = None,
    ) -> None:
        super().__init__(
            save_dir, metrics="*", metric_details="*", batch_transform=batch_transform or (lambda x: x), summary_ops="*"
        )
        self.organs, self.about = list(organs), about or {}

    def __call__(self, engine: Engine) -> None:
        names = [Path(name).name.split(".")[0] for name in self._filenames]
        details = {key: value.cpu() for key, value in engine.state.metric_details.items()}
        write_metrics_reports(
            save_dir=self.save_dir,
            images=self._filenames,
            metrics=engine.state.metrics,
            metric_details=details,
            summary_ops=self.summary_ops,
            deli=self.deli,
            class_labels=self.organs,
        )
        for metric, values in details.items():
            logger.info("%s\n%s", metric, format_table(values, names, self.organs))
        content = {
            "about": self.about,
            "cases": names,
            "organs": self.organs,
            **{
                metric: {
                    "mean": _number(values.nanmean()),
                    "organ_means": [_number(value) for value in values.nanmean(0)],
                    "values": [[_number(value) for value in row] for row in values],
                }
                for metric, values in details.items()
            },
        }
        path = Path(self.save_dir) / "metrics.json"
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(content, indent=4) + "\n")
        temporary.replace(path)


def format_table(values: torch.Tensor, cases: Sequence[str], organs: Sequence[str]) -> str:
    """Values ``(cases, organs)`` as text: a row a case, a column an organ, means last; a dash where undefined."""
    columns = [*organs, "mean"]
    width = max(8, *(len(column) for column in columns)) + 2
    first = max(4, *(len(case) for case in cases)) + 2

    def line(name: str, row: torch.Tensor) -> str:
        cells = ["-" if math.isnan(value) else f"{value:.4f}" for value in row.tolist()]
        return name.ljust(first) + "".join(cell.rjust(width) for cell in cells)

    rows = torch.cat([values, values.nanmean(1, keepdim=True)], 1)
    header = " " * first + "".join(column.rjust(width) for column in columns)
    body = [line(case, row) for case, row in zip(cases, rows)]
    # the last mean is over organs' means of all volumes, the number the tables of the paper give
    organ_means = values.nanmean(0)
    return "\n".join([header, *body, line("mean", torch.cat([organ_means, organ_means.nanmean(0, keepdim=True)]))])


def _number(value: torch.Tensor) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
