"""Metrics of an evaluation: for each volume and organ, from label maps on the file's own grid.

Three Dice scores, because published tables of the same organs are not made alike, and the distances of the surfaces:

* :class:`OrganDice`, the headline: of whole volumes, on the grid of the original label.
* :class:`FateDice`: of slices, as FATE-SAM's code has it. Drops what failed, so it lies above the others.
* :class:`DfgDice`: of whole volumes on 256 x 256 slices, as the code of DFG has it.
* :class:`SurfaceMetrics`: HD95, average surface distance and surface Dice, and how many organs have none.

Nothing is one-hot: organs are cut out of the label maps one at a time, so memory does not grow with their number.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, compute_dice, get_mask_edges, get_surface_distance
from nibabel.affines import voxel_sizes
from scipy.spatial import KDTree
from torch import Tensor

from ..data.components import organ_boxes
from ..data.dataset_check import CaseSummary, undrawn
from ..data.grids import is_sheared
from ..errors import SettingError

SLICES_AT_A_TIME = 32


class OrganMetric(CumulativeIterationMetric):
    """Base of metrics that are a number, or several, for each volume and organ.

    Call it with label maps, values 0 background and 1...K organs: batches ``(B, 1, H, W, D)`` or lists of
    ``(1, H, W, D)``, ``y`` as MetaTensors with the affine of their file. It returns one tensor ``(B, K)`` for each of
    ``names``, and keeps them; integer tensors are counts, others are NaN where the number is not defined.

    Args:
        organs: K.

    Attributes:
        names: of the tensors, in order.

    Raises:
        ValueError: on a call with other shapes, or with a ``y`` that has no affine if the metric needs one.
    """

    names: tuple[str, ...]
    needs_affine = True

    def __init__(self, organs: int) -> None:
        super().__init__()
        self.organs = organs

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs) -> list[Tensor]:
        if y is None or y.ndim != 5 or y.shape[1] != 1 or y_pred.shape != y.shape:
            raise SettingError(
                "Expected two label maps of the same shape (1, H, W, D), got "
                f"{tuple(y_pred.shape[1:])} and {None if y is None else tuple(y.shape[1:])}."
            )
        affine = torch.eye(4)
        if isinstance(y, MetaTensor):
            affine = y.affine
        elif self.needs_affine:
            raise SettingError(f"{type(self).__name__} needs the affine of the label map: pass a MetaTensor.")
        volumes = zip(_plain(y_pred), _plain(y), affine.expand(len(y), 4, 4).cpu().double())
        return [torch.stack(values) for values in zip(*(self.compute_volume(p[0], t[0], a) for p, t, a in volumes))]

    @abstractmethod
    def compute_volume(self, prediction: Tensor, truth: Tensor, affine: Tensor) -> list[Tensor]:
        """For one volume ``(H, W, D)`` with the ``(4, 4)`` affine of its grid: a tensor ``(K,)`` for each name."""

    def details(self) -> dict[str, Tensor]:
        """The numbers ``(volumes, K)`` of all calls since ``reset``, of all processes, for each name."""
        buffers = self.get_buffer()
        return dict(zip(self.names, buffers if isinstance(buffers, list) else [buffers]))

    def aggregate(self) -> dict[str, Tensor]:
        """The mean over organs of their means over volumes, without what is undefined, for each name but counts."""
        details = self.details()
        return {name: mean_of_means(values) for name, values in details.items() if values.is_floating_point()}


class OrganDice(OrganMetric):
    """``dice``: volumetric Dice on the grid of the label, the headline of every table.

    NaN only where an organ is absent from both the prediction and the truth. MONAI's ``DiceMetric``, which does the
    arithmetic, either ignores every volume without the organ, so that inventing one costs nothing, or counts a correct
    absence as 1.
    """

    names = ("dice",)
    needs_affine = False

    def compute_volume(self, prediction: Tensor, truth: Tensor, affine: Tensor) -> list[Tensor]:
        return [_dice_of_organs(prediction, truth, self.organs)]


class FateDice(OrganMetric):
    """``dice_fate``: Dice of slices, as the code that FATE-SAM published computes it.

    Each axial slice and organ by itself, organs before merging (logits above 0), so two may claim a voxel. Slices with
    a Dice of 0 or NaN are left out, which drops missed and invented slices alike: that flatters, and is here only to be
    read beside tables made that way. ``fate_slices_kept`` and ``fate_slices_dropped`` (Dice 0) count them. (In
    I3Tlab/FATE-SAM, ``evaluation`` and ``mean_and_ci`` of ``notebooks/utils.py``, and the masks of
    ``run_inference_single_volume`` of ``notebooks/predictor_utils.py``. Over which slices ``mean_and_ci`` ran for the
    paper's tables is not there; a volume's number here is the mean over its slices that are kept.)

    As ``y_pred`` it takes a mask for each organ, packed: bit i - 1 is set where organ i's own logit is positive. Of
    organs for which its type has no bit it is undefined; integers of 64 bits have them for 64 organs.
    """

    names = ("dice_fate", "fate_slices_kept", "fate_slices_dropped")

    def compute_volume(self, prediction: Tensor, truth: Tensor, affine: Tensor) -> list[Tensor]:
        axial = _stored_axes(affine)[0][2]
        blocks = zip(*(each.movedim(axial, 0).split(SLICES_AT_A_TIME) for each in (prediction, truth)))
        dice = torch.cat([self._slices(bits, labels) for bits, labels in blocks], 1)
        kept = dice > 0
        mean = dice.masked_fill(~kept, math.nan).nanmean(1)
        return [mean.float(), kept.sum(1), (dice == 0).sum(1)]

    def _slices(self, bits: Tensor, labels: Tensor) -> Tensor:
        """Dice ``(K, slices)`` of ``(slices, H, W)``, from the voxels that belong to any organ alone."""
        count, held = len(bits), ((bits != 0) | (labels != 0)).nonzero(as_tuple=True)
        packed = 24 if bits.is_floating_point() else torch.iinfo(bits.dtype).bits
        index, bits, labels, rows = held[0], bits[held].long(), labels[held], []
        for value in range(1, self.organs + 1):
            if value > packed:
                rows.append(torch.full((count,), math.nan, dtype=torch.double, device=labels.device))
                continue
            predicted, true = (bits >> (value - 1) & 1).bool(), labels == value
            shared, *voxels = (index[mask].bincount(minlength=count) for mask in (predicted & true, predicted, true))
            rows.append(2 * shared.double() / sum(voxels))
        return torch.stack(rows)


class DfgDice(OrganMetric):
    """``dice_dfg``: volumetric Dice at the resolution of the source-free adaptation literature.

    Volumes are cropped to the axial slices from the first to the last that holds an organ in the truth, and slices
    resized to 256 x 256, nearest neighbour, as in xmed-lab/DFG (``preprocess.ipynb`` for CHAOS T2-SPIR,
    ``mean_dice_new`` of ``utils/metrics.py``); organs invented beyond those slices do not count. There the network saw
    nothing else, here it saw the whole volume. Undefined for a volume without organs.

    Args:
        organs: K.
        size: of the slices.
    """

    names = ("dice_dfg",)

    def __init__(self, organs: int, size: int = 256) -> None:
        super().__init__(organs)
        self.size = size

    def compute_volume(self, prediction: Tensor, truth: Tensor, affine: Tensor) -> list[Tensor]:
        axes, reversed_ = _stored_axes(affine)
        prediction, truth = prediction.permute(axes), truth.permute(axes)
        held = (truth > 0).any(0).any(0).nonzero()
        if not len(held):
            return [torch.full((self.organs,), math.nan)]
        # half of the ties between two neighbours would be broken otherwise in a file stored the other way round, so
        # voxels are picked as if every file were stored towards the right and the front
        right, front = (_picked(truth.shape[axis], self.size, reversed_[axis]).to(truth.device) for axis in (0, 1))
        slices = slice(int(held.min()), int(held.max()) + 1)
        small = [each[right[:, None], front[None, :], slices] for each in (prediction, truth)]
        return [_dice_of_organs(*small, self.organs)]


class SurfaceMetrics(OrganMetric):
    """Distances between the surfaces of prediction and truth, in millimetres, on the grid of the label.

    * ``hd95_mm``: the larger of the two directed 95th percentiles.
    * ``asd_mm``: the mean over the voxels of both surfaces together (symmetric).
    * ``surface_dice_2mm``: the share of the voxels of both surfaces that lie within the tolerance of the other one.
    * ``missed``, ``invented``: 1 where an organ is in the truth alone, in the prediction alone.

    The distance to a surface that is not there is not a number, so where an organ is missed or invented the first two
    are NaN, and the means of those two must be read beside the counts; surface Dice is 0. All are NaN where an
    organ is absent from both.

    A surface is the voxels of a mask with a neighbour outside it, across a face; beyond the edge of the volume is
    outside. These are the defaults of ``compute_hausdorff_distance``, ``compute_average_surface_distance`` and
    ``compute_surface_dice`` of MONAI, with equal results, but edges and distances are computed once for all three.
    Surface voxels count alike whatever their area. (MONAI's ``use_subvoxels`` weights surface Dice by area on a surface
    between voxels; the distances have no such option, and the three would no longer speak of the same surface.) On a
    sheared grid, such as that of a tilted gantry, they are measured between the places of the voxels all the same.

    Args:
        organs: K.
        tolerance: of the surface Dice, in millimetres; a distance equal to it is within. It is part of the name.
    """

    def __init__(self, organs: int, tolerance: float = 2.0) -> None:
        super().__init__(organs)
        self.tolerance = tolerance
        self.names = ("hd95_mm", "asd_mm", f"surface_dice_{tolerance:g}mm", "missed", "invented")

    def compute_volume(self, prediction: Tensor, truth: Tensor, affine: Tensor) -> list[Tensor]:
        steps = _steps(affine.numpy())
        distances, counts = [], []
        for crop in organ_crops(prediction, truth, self.organs):
            there = (False, False) if crop is None else tuple(bool(mask.any()) for mask in crop)
            counts.append([there == (False, True), there == (True, False)])
            if all(there):
                distances.append(self._compute_organ(*crop, steps))
            else:
                distances.append([math.nan, math.nan, 0.0 if any(there) else math.nan])
        return [*torch.tensor(distances).T, *torch.tensor(counts, dtype=torch.long).T]

    def _compute_organ(self, prediction: Tensor, truth: Tensor, steps: np.ndarray) -> list[float]:
        predicted, true = get_mask_edges(prediction, truth, crop=False)
        directed = [_distances(predicted, true, steps), _distances(true, predicted, steps)]
        hd95 = max(float(np.quantile(each.numpy(), 0.95)) for each in directed)  # torch.quantile has a limit of size
        both = torch.cat(directed)
        return [hd95, both.mean().item(), (both <= self.tolerance).float().mean().item()]


def _steps(affine: np.ndarray) -> np.ndarray:
    """Millimetres ``(3, 3)`` from a voxel to the next along each axis, a column each, in a turned grid as in one that
    is not; without the rounding of a rotated float32 affine, by which 2 mm would be beyond a tolerance of 2 mm.
    """
    if not is_sheared(affine):
        return np.diag(voxel_sizes(affine).round(5))
    return np.linalg.qr(affine[:3, :3]).R.round(5)


def _distances(surface: Tensor, other: Tensor, steps: np.ndarray) -> Tensor:
    """From each voxel of a surface, bool ``(H, W, D)``, to the nearest of another one, in millimetres."""
    if not np.triu(steps, 1).any():
        return get_surface_distance(surface, other, spacing=np.diag(steps).tolist())
    # MONAI's takes axes for perpendicular, and so finds the same on an upright grid alone
    places, others = (each.nonzero().numpy() @ steps.T for each in (surface, other))
    return torch.from_numpy(KDTree(others, leafsize=32).query(places)[0]).float()


class OrganMetricHandler(IgniteMetricHandler):
    """An :class:`OrganMetric` as an Ignite metric.

    Keeps the numbers of every volume and organ in ``state.metric_details``, and their means in ``state.metrics``, under
    the metric's own names.

    An organ that no label of the data set holds is undefined, and no error of any kind: nobody has drawn it there. One
    that is absent in some volumes alone is counted there as the metric does.

    Args:
        metric_fn: the metric.
        output_transform: picks ``(y_pred, y)`` from the engine's output, such as ``from_engine(["pred", "label"])``.
        summaries: of all volumes, by which organs are known that no label holds; without them none is.
    """

    def __init__(
        self, metric_fn: OrganMetric, output_transform: Callable, *, summaries: Sequence[CaseSummary] = ()
    ) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=True)
        organs = next((list(summary.voxels) for summary in summaries if summary.voxels), [])
        self._undrawn = [organs.index(organ) for organ in undrawn(summaries)]

    def compute(self) -> float | dict[str, float]:
        details = {name: values.clone() for name, values in self.metric_fn.details().items()}
        for values in details.values():
            values[:, self._undrawn] = math.nan if values.is_floating_point() else 0
        self._engine.state.metric_details.update(details)
        self._is_reduced = True
        means = {name: mean_of_means(each).item() for name, each in details.items() if each.is_floating_point()}
        return means.get(self._name, means)  # Ignite takes the names of several from a dictionary


def organ_crops(prediction: Tensor, truth: Tensor, organs: int) -> Iterator[tuple[Tensor, Tensor] | None]:
    """The masks of one organ after another in two label maps ``(H, W, D)``.

    Yields both masks, bool on the CPU, cropped to the box around them; None for an organ that neither map has.
    """
    maps = [_integers(each, organs) for each in (prediction, truth)]
    for value, boxes in enumerate(zip(*(organ_boxes(each, organs) for each in maps)), start=1):
        found = [box for box in boxes if box is not None]
        if not found:
            yield None
            continue
        union = tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*found))
        yield tuple(torch.from_numpy(each[union] == value) for each in maps)


def mean_of_means(values: Tensor) -> Tensor:
    """Of ``(volumes, organs)``: the mean over organs of means over volumes, the number tables give; NaN left out."""
    return values.nanmean(0).nanmean()


def _dice_of_organs(prediction: Tensor, truth: Tensor, organs: int) -> Tensor:
    crops = organ_crops(prediction, truth, organs)
    values = [
        math.nan if crop is None else compute_dice(*(mask[None, None] for mask in crop), ignore_empty=False).item()
        for crop in crops
    ]
    return torch.tensor(values)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _integers(labels: Tensor, organs: int) -> np.ndarray:
    """Labels as an array of integers, without a copy if they are that; files are often read as floats."""
    if labels.is_floating_point():
        labels = labels.to(torch.uint8 if organs < 256 else torch.int32)
    return labels.cpu().numpy()


def _stored_axes(affine: Tensor) -> tuple[list[int], list[bool]]:
    """The stored axes nearest to right, front and top, in this order, and whether each runs the other way."""
    orientation = nib.io_orientation(affine.numpy())
    axes = np.argsort(orientation[:, 0])
    return axes.tolist(), (orientation[axes, 1] < 0).tolist()


def _picked(length: int, size: int, backwards: bool) -> Tensor:
    """Which of ``length`` voxels are nearest to the centres of ``size`` equal parts."""
    indices = ((torch.arange(size, dtype=torch.double) + 0.5) * length / size).long()
    return length - 1 - indices if backwards else indices
