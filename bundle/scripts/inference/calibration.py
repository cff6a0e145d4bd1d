"""From the predicted Dice, which samples of the memory give, to the Dice that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from ..errors import DatasetError, SettingError
from ..files import json_of, whole_file


@dataclass(frozen=True)
class Calibration:
    """A map from the predicted Dice to the Dice that it stands for, found on volumes whose truth is known.

    It is linear between its knots, constant beyond them, and its values are clipped to [0, 1].

    Attributes:
        predicted: the knots, ascending.
        dice: what they stand for, not descending.
        about: what it was fitted on.
    """

    predicted: list[float]
    dice: list[float]
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, predicted: float) -> float:
        return float(np.clip(np.interp(predicted, self.predicted, self.dice), 0, 1))

    @classmethod
    def fit(
        cls, predicted: Sequence[float], dice: Sequence[float], kind: str = "linear", about: Mapping | None = None
    ) -> Calibration:
        """Least squares, of a line that does not fall or of any map that does not fall ("isotonic").

        Args:
            predicted: of some organs and cases, at least two.
            dice: the true ones.
            kind: "linear", which few organs suffice for, or "isotonic".
            about: kept with the result.

        Raises:
            ValueError: fewer than two pairs, or another kind.
        """
        if len(predicted) < 2 or len(predicted) != len(dice):
            raise SettingError(f"A calibration needs two pairs or more, got {len(predicted)} and {len(dice)} values.")
        x, where = np.unique(np.asarray(predicted, float), return_inverse=True)
        weights = np.bincount(where)
        y = np.bincount(where, np.asarray(dice, float)) / weights
        if kind == "linear":
            slope = np.polynomial.Polynomial.fit(x, y, 1, w=np.sqrt(weights)).convert().coef[1] if len(x) > 1 else 0.0
            middle, height, slope = np.average(x, weights=weights), np.average(y, weights=weights), max(slope, 0.0)
            x, y = np.array([0.0, 1.0]), height + slope * (np.array([0.0, 1.0]) - middle)
        elif kind == "isotonic":
            y = isotonic_regression(y, weights=weights).x
        else:
            raise SettingError(f"kind must be 'linear' or 'isotonic', got '{kind}'.")
        return cls(x.tolist(), y.tolist(), dict(about or {}))

    def save(self, path: str | Path) -> None:
        """Writes JSON, through a temporary name."""
        content = {"predicted": self.predicted, "dice": self.dice, "about": self.about}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads what :meth:`save` has written.

        Raises:
            DatasetError: it is not there, or something else.
        """
        remedy = "Make one with `python -m benchmarks.uncertainty`, or set uncertainty_calibration to null."
        try:
            content = json_of(Path(path).read_text(encoding="utf-8"))
            knots = [[float(each) for each in content[key]] for key in ("predicted", "dice")]
        except FileNotFoundError as error:
            raise DatasetError(f"'{path}': the calibration is not there. {remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"'{path}' is no calibration ({type(error).__name__}: {error}), expected JSON with the lists "
                f"'predicted' and 'dice'. {remedy}"
            ) from error
        if (
            len(knots[0]) != len(knots[1])
            or len(knots[0]) < 1
            or any(np.diff(each).min(initial=0) < 0 for each in knots)
        ):
            raise DatasetError(
                f"'{path}': expected as many ascending numbers in 'predicted' as in 'dice', got {knots[0]} and "
                f"{knots[1]}. {remedy}"
            )
        return cls(knots[0], knots[1], content.get("about", {}))
