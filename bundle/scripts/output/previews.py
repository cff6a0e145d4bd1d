"""Previews of segmented volumes: slices with the outlines of predicted and, where known, true organs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.data import MetaTensor

from ..data.stored import scaled
from ..data.volumes import result_name
from ..files import whole_file

COLOURS = ("#ffb000", "#dc267f", "#648fff", "#00b27a", "#fe6100", "#785ef0", "#009e73", "#f0e442")


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
        image: ``(1, H, W, D)`` with its affine.
        prediction: ``(1, H, W, D)`` label values, of the same voxels but with axes in any order; filled and outlined.
        organs: names for the legend.
        truth: like ``prediction``; dashed white outlines.
        window: see :class:`PreviewSaver`.
        columns: number of slices.
    """
    pixels, spacing = radiological(image.as_tensor()[0].cpu().numpy(), image.affine)
    predicted, true = (
        None if each is None else radiological(each.as_tensor()[0].cpu().numpy(), each.affine)[0]
        for each in (prediction, truth)
    )
    held = np.flatnonzero(predicted.any((0, 1)) if true is None else predicted.any((0, 1)) | true.any((0, 1)))
    held = held if len(held) else np.arange(pixels.shape[2])
    shown = held[np.unique(np.linspace(0, len(held) - 1, columns + 2).round().astype(int)[1:-1])]
    pixels = scaled(torch.from_numpy(pixels[..., shown]), image).numpy()
    low, high = window or np.percentile(pixels, [0.5, 99.5])

    figure = Figure(figsize=(2.6 * len(shown), 3.1), facecolor="black")
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
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


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
            axis.contourf(*organ, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            axis.contour(*organ, levels=[0.5], colors=[colour], linewidths=1.2)
        if true is not None and (organ := _framed(true == value)):
            axis.contour(*organ, levels=[0.5], colors="white", linewidths=0.7, linestyles="dashed")
    axis.axis("off")


def _framed(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Columns, rows and values of the part of a mask that its outline runs through; None of an empty mask."""
    held = [np.flatnonzero(mask.any(1 - axis)) for axis in range(2)]
    if not len(held[0]):
        return None
    rows, columns = (
        np.arange(max(0, each[0] - 1), min(length, each[-1] + 2)) for each, length in zip(held, mask.shape)
    )
    if min(len(rows), len(columns)) < 2:  # of a volume that is one voxel wide
        rows, columns = (np.arange(length) for length in mask.shape)
    return columns, rows, mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def add_legend(figure: Figure, organs: Sequence[str], with_truth: bool) -> None:
    """A line below the panels: the organs' colours and, with ``with_truth``, the dashed outline."""
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3, label=organ.replace("$", r"\$"))
        for i, organ in enumerate(organs)
    ]
    if with_truth:
        handles.append(Line2D([], [], color="white", lw=1, linestyle="dashed", label="true outline"))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=8, labelcolor="white", frameon=False
    )


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG through a temporary name."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor=figure.get_facecolor())


def radiological(voxels: np.ndarray, affine: Any) -> tuple[np.ndarray, np.ndarray]:
    """A volume with anterior up and the patient's right on the left, over the same memory: it may have 1500 slices.

    Args:
        voxels: ``(I, J, K)``.
        affine: ``(4, 4)``, from voxels to RAS.

    Returns:
        Voxels ``(H, W, slices)``, slices from the feet, and millimetres between them along these axes.
    """
    affine = np.asarray(affine, float)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("PLS"))
    spacing = nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])]
    return nib.apply_orientation(voxels, turn), spacing
