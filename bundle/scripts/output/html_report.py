"""One self-contained HTML file about an inference, an evaluation or a training: ``report.html`` in its folder.

    python -m scripts.output.html_report FOLDER

Workflows write it at their end by a :class:`ReportWriter`. The page needs no network and no other file; its own content
security policy forbids both.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import fire
import ignite.distributed as idist
import jinja2
from fire import decorators
from matplotlib.ticker import LogLocator, MaxNLocator

from ..descriptions import describe
from ..errors import SHOWN, RefusedError, install, printable
from ..files import BUNDLE, whole_file
from ..inference.case_records import NO_REPORT, bundle_version
from ..inference.cases import reason
from .previews import COLOURS
from .report_content import MEASURES, SETTINGS, Case, Content, Curve, read_folder
from .report_slices import SliceView, data_uri, uncertainty_scale, view_case

REPORT = "report.html"
MEGABYTE = 1_000_000
LEFT_OUT = "left out, to keep this file small (max_megabytes)"

logger = logging.getLogger(__name__)


class LostReportError(RefusedError):
    """The results are there, but not their report: to programs, as where some scans have failed."""

    exit_code = 3


class ReportWriter:
    """Writes the report when a workflow ends; what goes wrong is logged, and ends the run with :meth:`check`.

    Args:
        folder: of the results.
        settings: kept in ``settings.json`` beside the report, where nothing else keeps them: JSON values, or objects
            such as transforms, see :func:`scripts.descriptions.describe`. ``label_map``, and what a reader and
            ``ScaleIntensityRanged`` were built with, say how images and labels are shown.
        data: images and labels of the cases, kept likewise.
        enabled: whether anything is written.
        options: see :func:`write_report`.

    Attributes:
        problem: why there is no report; None where it is written, or not wanted.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any] | None = None,
        *,
        data: Sequence[Mapping[str, str]] = (),
        enabled: bool = True,
        **options: Any,
    ) -> None:
        self.folder, self.settings, self.data, self.enabled = Path(folder), settings, list(data), enabled
        self.options = options
        self.problem: str | None = None

    def __call__(self) -> None:
        if not self.enabled or idist.get_rank():
            return
        try:
            if self.settings is not None:
                content = {"version": bundle_version(), "settings": describe(self.settings), "data": self.data}
                with whole_file(self.folder / SETTINGS) as temporary:
                    temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
            logger.info("The report is '%s'.", write_report(self.folder, **self.options))
        except Exception as error:  # of any kind: the results are there all the same, and are told first
            self.problem = reason(error)
            logger.warning("No report was written: %s", self.problem)

    def check(self) -> None:
        """Ends a run that has its results, but not the report that was asked for.

        Raises:
            LostReportError: it could not be written.
        """
        if self.problem is not None:
            raise LostReportError(f"The results are there, but {NO_REPORT.format(self.problem)}")


def write_report(
    folder: str | Path,
    training_dir: str | Path | None = None,
    *,
    figures: Mapping[str, str | Path] | None = None,
    pixels: int = 288,
    max_slices: int = 120,
    max_megabytes: float = 40,
) -> Path:
    """Writes ``report.html``.

    Args:
        folder: of an inference, an evaluation or a training.
        training_dir: where TensorBoard's event files of the training lie, if not in ``folder``.
        figures: further pictures, PNG files by their caption; those that are not there are left out.
        pixels: the longer side of a slice.
        max_slices: of a case; of a volume with more, as many are shown, evenly spread.
        max_megabytes: for all slices. Cases with flags come first, then those with the lowest Dice; those that do not
            fit are in the tables alone.

    Returns:
        The file's path.

    Raises:
        DatasetError: there is nothing to report, or it cannot be read.
    """
    content = read_folder(folder, training_dir)
    views, notes = _views(content, pixels, max_slices, max_megabytes * MEGABYTE)
    page = _template().render(
        content=content,
        headline=content.headline,
        place="/".join(content.folder.absolute().parts[-2:]),
        written=datetime.datetime.now().astimezone(),
        version=bundle_version(),
        packages=_packages(),
        measures=_headings(content.cases),
        known_measures=lambda case: _headings([case]),
        opened=_opened(content.cases, views),
        listed=SHOWN,
        views=views,
        notes=notes,
        charts=[chart(curve) for curve in content.curves],
        figures=_pictures(figures or {}),
        uncertainty_scale=uncertainty_scale(),
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(content.organs))],
    )
    path = Path(folder) / REPORT
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names of cases and texts of errors come from files that anybody may have written
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["mean"] = lambda values: fmean(known) if (known := _known(values)) else None
    return environment.get_template("report.html")


def _harmless(value: Any) -> Any:
    """A text without controls, or marks that would turn round what stands behind it too."""
    return printable(value) if type(value) is str else value  # what is HTML already is of another type


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: a dash for one that is undefined, yes and no for truth values."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _known(values: Sequence[Any]) -> list[float]:
    return [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _headings(cases: Sequence[Case]) -> dict[str, tuple[str, int, str]]:
    """The measures that cases have, in the order of :data:`MEASURES`, then others under their own names."""
    measured = [item for case in cases for values in case.measures.values() for item in values.items()]
    names = dict.fromkeys(name for name, value in measured if value is not None)
    return {name: MEASURES[name] for name in MEASURES if name in names} | {
        name: (name.replace("_", " "), 3, name) for name in names if name not in MEASURES
    }


def _packages() -> dict[str, str]:
    """Versions of Python and of the packages that ``metadata.json`` names, as installed."""
    metadata = BUNDLE / "configs" / "metadata.json"
    names = ["monai", "torch", "numpy", *json.loads(metadata.read_text(encoding="utf-8"))["required_packages_version"]]
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


# ---- slices


def _views(
    content: Content, pixels: int, max_slices: int, max_bytes: float
) -> tuple[dict[str, SliceView], dict[str, list[str]]]:
    """Slices of the cases that fit, by name; and the names of the other cases that are done, by why they have none."""
    views: dict[str, SliceView] = {}
    notes: dict[str, list[str]] = {}
    left = max_bytes
    done, headline = [case for case in content.cases if case.status == "done"], content.headline
    for case in sorted(done, key=lambda case: (not case.flags, _mean_headline(case, headline))):
        try:
            view = view_case(case, content.organs, pixels=pixels, max_slices=max_slices) if left > 0 else None
        except Exception as error:  # of any kind: a report without a slice is still a report
            notes.setdefault(f"could not be drawn: {reason(error)}", []).append(case.name)
            continue
        left -= view.size if view else 0
        if view and (left >= 0 or not views):
            views[case.name] = view
        else:
            notes.setdefault(LEFT_OUT, []).append(case.name)
    return views, notes


def _opened(cases: Sequence[Case], views: Mapping[str, SliceView]) -> str | None:
    """The case whose slices are seen at once: the first with a flag, or else the first."""
    viewed = [case for case in cases if case.name in views]
    return min(viewed, key=lambda case: not case.flags).name if viewed else None


def _mean_headline(case: Case, headline: str | None) -> float:
    known = _known([values.get(headline) for values in case.measures.values()])
    return fmean(known) if known else 0.0


def _pictures(figures: Mapping[str, str | Path]) -> dict[str, str]:
    paths = {caption: Path(path) for caption, path in figures.items()}
    return {caption: data_uri(path.read_bytes(), "png") for caption, path in paths.items() if path.is_file()}


# ---- curves


@dataclass(frozen=True)
class Chart:
    """A curve in percent of a frame's width and height, from the upper left.

    Attributes:
        line, band: points of the means, and around lows and highs.
        x_ticks, y_ticks: place and text.
    """

    name: str
    line: str
    band: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    first: float
    last: float
    last_step: int
    logarithmic: bool


def chart(curve: Curve) -> Chart:
    """Lays a curve out; logarithmically where it falls or rises by more than tenfold."""
    low, high = min(curve.lows), max(curve.highs)
    logarithmic = low > 0 and high / low > 10
    if logarithmic:
        scale, ticks = math.log, LogLocator(subs=(1, 2, 5)).tick_values(low, high)
    else:
        scale, ticks = float, MaxNLocator(4).tick_values(low, high)
    bottom, height = scale(low), (scale(high) - scale(low)) or 1.0
    width = curve.last_step or 1

    def place(step: float, value: float) -> str:
        return f"{100 * step / width:.2f},{100 - 100 * (scale(value) - bottom) / height:.2f}"

    upper = [place(*point) for point in zip(curve.steps, curve.highs)]
    lower = [place(*point) for point in zip(curve.steps, curve.lows)]
    x_ticks = [tick for tick in MaxNLocator(4, integer=True).tick_values(0, width) if tick <= width]
    inside = [tick for tick in ticks if low <= tick <= high]
    return Chart(
        name=curve.name,
        line=" ".join(place(*point) for point in zip(curve.steps, curve.means)),
        band=" ".join(upper + lower[::-1]),
        x_ticks=[(100 * tick / width, f"{tick:.0f}") for tick in x_ticks],
        y_ticks=[(100 - 100 * (scale(tick) - bottom) / height, f"{tick:.4g}") for tick in inside],
        first=curve.means[0],
        last=curve.means[-1],
        last_step=curve.last_step,
        logarithmic=logarithmic,
    )


def main() -> None:
    """Writes the report of the folder that the program's arguments name, and prints its path."""
    # the attribute in which decorators leave notes for Fire: with underscores, its help does not list it
    decorators.FIRE_METADATA = "__fire_metadata__"
    fire.Fire(decorators.SetParseFn(str, "folder", "training_dir")(write_report), name="html_report")


if __name__ == "__main__":
    install()
    main()
