"""Previews of segmented volumes: slices with the outlines of predicted and, where known, true organs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from contourpy import FillType, LineType, contour_generator
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as MplPath
from monai.data import MetaTensor

from ..data.body import on_grid
from ..data.grids import oriented_grid, place_within, turn_of
from ..data.stored import scaled
from ..data.volumes import result_name
from ..files import whole_file

COLOURS = ("#ffb000", "#dc267f", "#648fff", "#00b27a", "#fe6100", "#785ef0", "#009e73", "#f0e442")
DPI = 110
PANEL, HEIGHT = 2.6, 3.1  # inches, of a slice and of the picture
LEGEND = 0.07 * HEIGHT  # of a line of it
TRUE_OUTLINE = "true outline"


class PreviewSaver:
    """Ignite handler that writes one PNG for each volume an evaluator finishes: ``{save_dir}/{case}.png``.

    Args:
        save_dir: folder of the previews.
        organs: names, for the legend; label values 1...K in this order.
        window: intensities shown as black and white; None takes the 0.5 and 99.5 percentiles of the slices shown.
        columns: slices in a preview, spread evenly over those that hold an organ.
        prediction_key: of the label map in the engine's output.
    """

    def __init__(
        self,
        save_dir: str | Path,
        organs: Sequence[str],
        *,
        window: tuple[float, float] | None = None,
        columns: int = 5,
        prediction_key: str = "pred",
    ) -> None:
        self.save_dir, self.organs, self.window, self.columns = Path(save_dir), list(organs), window, columns
        self.prediction_key = prediction_key

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for output in engine.state.output:
            image = output["image"]
            name = result_name(image.meta)
            figure = draw_preview(
                image,
                output[self.prediction_key],
                self.organs,
                truth=output.get("label"),
                window=self.window,
                columns=self.columns,
            )
            save_figure(figure, self.save_dir / f"{name}.png")


def draw_preview(
    image: MetaTensor,
    prediction: MetaTensor,
    organs: Sequence[str],
    *,
    truth: MetaTensor | None = None,
    window: tuple[float, float] | None = None,
    columns: int = 5,
) -> Figure:
    """A row of axial slices as a radiologist sees them: anterior up, the patient's right on the left.

    Args:
        image: ``(1, H, W, D)`` with its affine; what is shown.
        prediction: ``(1, I, J, K)`` label values with their affine, on the grid of the image or on a larger one that it
            is a part of, with axes in any order; filled and outlined.
        organs: names for the legend.
        truth: like ``prediction``; dashed white outlines.
        window: see :class:`PreviewSaver`.
        columns: number of slices.
    """
    image = on_grid(image, prediction)
    pixels, spacing = radiological(image.as_tensor()[0].cpu().numpy(), image.affine)
    predicted, true = (None if each is None else labels_on(image, pixels.shape, each) for each in (prediction, truth))
    held = np.flatnonzero(predicted.any((0, 1)) if true is None else predicted.any((0, 1)) | true.any((0, 1)))
    held = held if len(held) else np.arange(pixels.shape[2])
    shown = held[np.unique(np.linspace(0, len(held) - 1, columns + 2).round().astype(int)[1:-1])]
    pixels = scaled(torch.from_numpy(pixels[..., shown]), image).numpy()
    low, high = window or np.percentile(pixels, [0.5, 99.5])

    width = PANEL * len(shown)
    rows = math.ceil((len(organs) + (true is not None)) / legend_columns(organs, width))
    height = HEIGHT + LEGEND * (rows - 1)
    figure = Figure(figsize=(width, height), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for column, (axis, index) in enumerate(zip(axes, shown)):
        draw_slice(
            axis,
            pixels[..., column],
            predicted[..., index],
            true=None if true is None else true[..., index],
            organs=len(organs),
            window=(low, high),
            aspect=spacing[0] / spacing[1],
        )
        # with a place of its own, or matplotlib measures every tick of the hidden axes to find one
        axis.set_title(f"slice {index}", color="white", fontsize=8, y=1.0)
    add_legend(figure, organs, with_truth=true is not None)
    figure.tight_layout(rect=(0, LEGEND * rows / height, 1, 1))
    return figure


def labels_on(image: MetaTensor, shape: Sequence[int], labels: MetaTensor) -> np.ndarray:
    """Labels ``(1, I, J, K)`` where an image lies that may be a part of their grid, turned as the image is shown.

    Args:
        image: ``(1, H, W, D)``.
        shape: of the image as it is shown.
        labels: see :func:`draw_preview`.
    """
    turned, _ = radiological(labels.as_tensor()[0].cpu().numpy(), labels.affine)
    part, whole = (oriented_grid(np.asarray(each.affine, float), each.shape[1:])[0] for each in (image, labels))
    return turned[place_within(part, shape, whole)]


def draw_slice(
    axis: Axes,
    pixels: np.ndarray,
    predicted: np.ndarray,
    *,
    true: np.ndarray | None,
    organs: int,
    window: tuple[float, float],
    aspect: float = 1.0,
) -> None:
    """One slice ``(H, W)``: predicted label values 1...``organs`` filled and outlined, true ones dashed in white."""
    axis.imshow(pixels, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    for value in range(1, organs + 1):
        colour = COLOURS[(value - 1) % len(COLOURS)]
        if organ := _framed(predicted == value):
            _outline(axis, organ, colour, linewidths=1.2, fill=0.35)
        if true is not None and (organ := _framed(true == value)):
            _outline(axis, organ, "white", linewidths=0.7, linestyles="dashed")
    axis.axis("off")


def _outline(
    axis: Axes, framed: tuple[np.ndarray, ...], colour: str, *, fill: float | None = None, **style: Any
) -> None:
    """What ``axis.contour`` draws of a mask, and ``axis.contourf`` within it where ``fill`` says how opaque it is, by
    the same library: their scales of colours, of which a mask needs none, take several times as long as the outline.
    """
    columns, rows, mask = framed
    generator = contour_generator(
        *np.meshgrid(columns, rows),
        mask.astype(float),
        name="mpl2014",
        line_type=LineType.SeparateCode,
        fill_type=FillType.OuterCode,
    )
    if fill is not None:
        _add(axis, generator.filled(0.5, 1.5), facecolors=to_rgba(colour, fill), linewidths=0, antialiaseds=False)
    _add(axis, generator.lines(0.5), facecolors="none", edgecolors=colour, zorder=2, **style)


def _add(axis: Axes, pieces: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], **style: Any) -> None:
    """Adds points and codes of paths to a picture as one; a mask that fills its frame has an area, but no outline."""
    points, codes = pieces
    if points:
        path = MplPath(np.concatenate(points), np.concatenate(codes))
        axis.add_collection(PathCollection([path], **style), autolim=False)


def _framed(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Columns, rows and values of the part of a mask that its outline runs through; None of an empty mask, or
    of a slice that is one voxel wide, in which there are no lines.
    """
    held = [np.flatnonzero(mask.any(1 - axis)) for axis in range(2)]
    if not len(held[0]) or min(mask.shape) < 2:
        return None
    rows, columns = (
        np.arange(max(0, each[0] - 1), min(length, each[-1] + 2)) for each, length in zip(held, mask.shape)
    )
    return columns, rows, mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def add_legend(figure: Figure, organs: Sequence[str], with_truth: bool) -> None:
    """Below the panels, in as many lines as it takes: the organs' colours, and perhaps the dashed outline."""
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3, label=organ.replace("$", r"\$"))
        for i, organ in enumerate(organs)
    ]
    if with_truth:
        handles.append(Line2D([], [], color="white", lw=1, linestyle="dashed", label=TRUE_OUTLINE))
    columns = min(len(handles), legend_columns(organs, figure.get_figwidth()))
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8, labelcolor="white", frameon=False)


def legend_columns(organs: Sequence[str], width: float) -> int:
    """How many names of organs fit beside each other into so many inches."""
    longest = max([len(organ) for organ in organs] + [len(TRUE_OUTLINE)])
    return max(1, math.floor(width / (0.55 + 0.06 * longest)))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG through a temporary name, little compressed and drawn once: ``Figure.savefig`` draws once more
    beforehand, for layouts that none of these figures has.
    """
    figure.dpi = DPI
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, pil_kwargs={"compress_level": 1})


def radiological(voxels: np.ndarray, affine: Any) -> tuple[np.ndarray, np.ndarray]:
    """A volume with anterior up and the patient's right on the left, over the same memory: it may have 1500 slices.

    Args:
        voxels: ``(I, J, K)``.
        affine: ``(4, 4)``, from voxels to RAS.

    Returns:
        Voxels ``(H, W, slices)``, slices from the feet, and millimetres between them along these axes.
    """
    affine = np.asarray(affine, float)
    turn = turn_of(affine)
    spacing = nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])]
    return nib.apply_orientation(voxels, turn), spacing
