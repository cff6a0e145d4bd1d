"""Volumes for a web page: slices on one sprite sheet, organs as SVG paths, and where along the volume they are."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image
from skimage.measure import find_contours

from ..data.components import organ_boxes
from ..data.volumes import VolumeReader
from ..errors import DatasetError
from .outlines import approximate_polygons
from .previews import radiological
from .report_content import Case

THUMBNAILS = 6
UNCERTAINTY_LEVELS = 16  # few levels make small files, and no eye tells more of them apart over an image
UNCERTAINTY_COLOURS, UNCERTAINTY_OPACITY = "inferno", 0.8
WEBP_QUALITY = 78


@dataclass(frozen=True)
class SliceView:
    """What the page needs to show the slices of one case.

    Attributes:
        width, height: of a slice on the sheet, in pixels that are as wide as they are high on the patient.
        columns, rows: slices on the sheet.
        total: slices of the volume; fewer may be shown.
        indices: of the slices on the sheet, counted from the feet, from 0.
        image, uncertainty: the sheets, as data URIs.
        outlines: for each slice the SVG paths of organs by their label value, and of the truth as ``"truth"``.
        extents: for each organ the runs of slices on the sheet that hold it, ``(first, number)``.
        thumbnails, start: positions on the sheet.
    """

    width: int
    height: int
    columns: int
    rows: int
    total: int
    indices: list[int]
    image: str
    uncertainty: str | None
    outlines: list[dict[str, str]]
    extents: list[list[tuple[int, int]]]
    thumbnails: list[int]
    start: int

    @property
    def size(self) -> int:
        """Bytes in the page, about."""
        paths = sum(len(path) for outlines in self.outlines for path in outlines.values())
        return len(self.image) + len(self.uncertainty or "") + paths


def view_case(case: Case, organs: Sequence[str], *, pixels: int, max_slices: int) -> SliceView:
    """Reads the volumes of a case and draws them.

    Args:
        case: with an image and a label map.
        organs: names; label values 1...K in this order.
        pixels: the longer side of a slice; smaller volumes stay as they are.
        max_slices: of a volume with more, as many are taken, evenly spread.

    Raises:
        DatasetError: a file is missing or cannot be read, or they do not fit on one another.
    """
    for kind, path in (("image", case.image), ("label map", case.label_map)):
        if path is None or not path.exists():
            raise DatasetError(f"the {kind} is not there any more{f' (expected at {path})' if path else ''}.")
    image, spacing = _read(case.image, **case.loading)
    labels, _ = _read(case.label_map)
    truth = None
    if case.truth is not None and case.truth.exists():
        values, _ = _read(case.truth, **case.loading)
        truth = np.zeros(values.shape, np.uint8)
        for organ, wanted in enumerate(case.label_values, 1):
            truth[np.isin(values, wanted)] = organ
    uncertainty = None if case.uncertainty is None else _read(case.uncertainty)[0]
    for kind, voxels in (("label map", labels), ("label", truth), ("uncertainty", uncertainty)):
        if voxels is not None and voxels.shape != image.shape:
            raise DatasetError(f"the {kind} has shape {voxels.shape}, the image {image.shape}.")
    return draw_view(
        image,
        labels,
        len(organs),
        spacing=spacing,
        truth=truth,
        uncertainty=uncertainty,
        window=case.window,
        pixels=pixels,
        max_slices=max_slices,
    )


def draw_view(
    voxels: np.ndarray,
    labels: np.ndarray,
    organs: int,
    *,
    spacing: np.ndarray,
    truth: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
    pixels: int = 288,
    max_slices: int = 120,
) -> SliceView:
    """Draws slices as a radiologist sees them: anterior up, the patient's right on the left, without the air around.

    Args:
        voxels: of the image, ``(H, W, D)`` in that orientation.
        labels: ``(H, W, D)``, values 0...K; ``truth`` likewise.
        organs: K.
        spacing: millimetres between voxels.
        uncertainty: ``(H, W, D)``, 0...1.
        window: intensities shown as black and white; None takes the 0.5 and 99.5 percentiles.
        pixels: see :func:`view_case`; ``max_slices`` too.
    """
    total = voxels.shape[2]
    indices = np.unique(np.linspace(0, total - 1, min(total, max_slices)).round().astype(int))
    low, high = map(float, window or np.percentile(voxels[::2, ::2, indices], [0.5, 99.5]))
    shown = [voxels[..., index] > low + 0.1 * (high - low) for index in indices]
    shown += [each.any(2) for each in (labels, truth) if each is not None]
    body = _box(np.logical_or.reduce(shown))
    voxels, labels = voxels[body], labels[body]
    truth, uncertainty = (None if each is None else each[body] for each in (truth, uncertainty))
    extent = np.array(voxels.shape[:2]) * spacing[:2]
    height, width = np.maximum(1, (extent * min(pixels / extent.max(), 1 / spacing[:2].min())).round().astype(int))
    # in a column for each of the square root, as graphics hardware has the same limit for both sides of a picture
    columns = math.ceil(math.sqrt(len(indices) * height / width))
    rows = math.ceil(len(indices) / columns)
    cells = _Cells(int(width), int(height), columns, rows)

    grey = [_bytes((voxels[..., index] - low) / max(high - low, 1e-6), 255) for index in indices]
    areas = np.stack([(labels[..., indices] == organ).sum((0, 1)) for organ in range(1, organs + 1)])
    held = np.flatnonzero(areas.any(0)) if areas.any() else np.arange(len(indices))
    spread = np.linspace(0, len(held) - 1, THUMBNAILS + 2).round().astype(int)[1:-1]
    return SliceView(
        width=cells.width,
        height=cells.height,
        columns=columns,
        rows=rows,
        total=total,
        indices=indices.tolist(),
        image=_encoded(cells.sheet(grey, Image.Resampling.LANCZOS), "webp", quality=WEBP_QUALITY, method=0),
        uncertainty=None if uncertainty is None else _uncertainty_sheet(cells, uncertainty[..., indices]),
        outlines=cells.outlines(labels[..., indices], None if truth is None else truth[..., indices], organs),
        extents=[_runs(area > 0) for area in areas],
        thumbnails=np.unique(held[spread]).tolist(),
        # the slice that shows most: of those with the most organs, the one where they are largest
        start=int(np.lexsort((areas.sum(0), (areas > 0).sum(0)))[-1]),
    )


@dataclass(frozen=True)
class _Cells:
    """A sheet of slices, row by row."""

    width: int
    height: int
    columns: int
    rows: int

    def sheet(self, planes: Sequence[np.ndarray], resampling: Image.Resampling) -> Image.Image:
        sheet = Image.new("L", (self.columns * self.width, self.rows * self.height))
        for number, plane in enumerate(planes):
            row, column = divmod(number, self.columns)
            cell = Image.fromarray(plane).resize((self.width, self.height), resampling)
            sheet.paste(cell, (column * self.width, row * self.height))
        return sheet

    def outlines(self, labels: np.ndarray, truth: np.ndarray | None, organs: int) -> list[dict[str, str]]:
        """SVG paths in the pixels of a cell: for each of slices ``(H, W, n)`` those of the organs that are there, by
        label value, and of all true ones together as truth.
        """
        keys, contours = [], []
        for key_of, values in ((str, labels), (lambda organ: "truth", truth)):
            for number in range(0 if values is None else values.shape[2]):
                for organ, box in enumerate(organ_boxes(values[..., number], organs), 1):
                    for contour in () if box is None else self._contours(values[..., number], organ, box):
                        keys.append((number, key_of(organ)))
                        contours.append(contour)
        # half a voxel is what the steps of a mask's edge are off by
        polygons = approximate_polygons(contours, max(0.35, 0.5 * self._scale(labels).max()))
        paths: list[dict[str, str]] = [{} for _ in range(labels.shape[2])]
        for (number, key), points in zip(keys, polygons):
            if len(points) > 2:
                values = (f"{value:.1f}".removesuffix(".0") for value in points[:-1, ::-1].flat)
                paths[number][key] = paths[number].get(key, "") + f"M{' '.join(values)}Z"
        return paths

    def _scale(self, plane: np.ndarray) -> np.ndarray:
        return np.array([self.height / plane.shape[0], self.width / plane.shape[1]])

    def _contours(self, plane: np.ndarray, organ: int, box: tuple[slice, ...]) -> list[np.ndarray]:
        """Outlines of an organ in a slice ``(H, W)``, of which it fills a box, in the pixels of a cell."""
        padded = np.pad(plane[box] == organ, 1).astype(np.uint8)
        first = np.array([side.start for side in box])
        return [(contour + first - 0.5) * self._scale(plane) for contour in find_contours(padded, 0.5)]


def _read(path: Path, **loading: Any) -> tuple[np.ndarray, np.ndarray]:
    """A volume ``(H, W, D)`` in its own type, anterior up and the patient's right on the left, and its spacing."""
    volume = VolumeReader(**loading).load(path)
    return radiological(volume.voxels, volume.affine)


def _box(mask: np.ndarray, margin: int = 2) -> tuple[slice, ...]:
    """The smallest box around what is true in ``(H, W)``, with a margin; all of it where nothing is."""
    if not mask.any():
        return tuple(slice(None) for _ in mask.shape)
    held = [np.flatnonzero(mask.any(1 - axis)) for axis in range(2)]
    return tuple(slice(max(0, each[0] - margin), each[-1] + 1 + margin) for each in held)


def _bytes(plane: np.ndarray, steps: int) -> np.ndarray:
    return (np.clip(plane, 0, 1) * steps).round().astype(np.uint8)


def _uncertainty_sheet(cells: _Cells, uncertainty: np.ndarray) -> str:
    """Of slices ``(H, W, n)``."""
    levels = [_bytes(plane, UNCERTAINTY_LEVELS - 1) for plane in np.moveaxis(uncertainty, 2, 0)]
    sheet = cells.sheet(levels, Image.Resampling.BOX)
    sheet.putpalette(*_uncertainty_palette())
    return _encoded(sheet, "png", optimize=True, bits=4)


def _uncertainty_palette() -> tuple[bytes, str]:
    """Colours from transparent to bright."""
    share = np.linspace(0, 1, UNCERTAINTY_LEVELS)
    colours = colormaps[UNCERTAINTY_COLOURS](0.3 + 0.65 * share)
    colours[:, 3] = UNCERTAINTY_OPACITY * np.sqrt(share)
    return (colours * 255).round().astype(np.uint8).tobytes(), "RGBA"


def uncertainty_scale() -> list[str]:
    """The colours of uncertainty from 0 to 1, as CSS has them."""
    palette = np.frombuffer(_uncertainty_palette()[0], np.uint8).reshape(-1, 4)
    return [f"rgb({red} {green} {blue})" for red, green, blue, _ in palette[::3]]


def _runs(held: np.ndarray) -> list[tuple[int, int]]:
    """Where ``(N,)`` is true: the first of each run and its length."""
    edges = np.flatnonzero(np.diff(held.astype(int), prepend=0, append=0)).tolist()
    return [(first, end - first) for first, end in zip(edges[::2], edges[1::2])]


def _encoded(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return data_uri(buffer.getvalue(), kind)


def data_uri(content: bytes, kind: str) -> str:
    """A picture as text that stands in a page: ``data:image/png;base64,...``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
