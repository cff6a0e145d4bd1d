"""What speaks against a result: measures of each segmented organ, and flags where they are implausible.

Nothing here needs the truth. A flag is a reason to look, not a verdict; ``benchmarks/uncertainty.py`` counts how many
good and bad organs get one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine

from ..data.components import Pieces, organ_boxes
from ..data.dataset_check import CaseSummary
from ..data.grids import voxel_volume
from ..data.intensity import remark
from ..data.volumes import result_name
from ..descriptions import Described
from ..errors import SettingError, count, listed, one_line
from ..prior_settings import read_prior
from .calibration import Calibration
from .orientation import OrientationCheck, orientation_flags, slice_spacing

AXIAL = 2  # the patient's axis from bottom to top, in RAS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thresholds:
    """Where plausible ends.

    Attributes:
        volume_factor: an organ may be this many times smaller than the smallest of the training set, and as many times
            larger than the largest.
        max_outside: share of an organ's voxels that may lie outside its largest component.
        max_jump: see :func:`largest_jump`.
        min_dice: predicted Dice, where uncertainty is on.
        edge: whether an organ that touches the edge of the volume is flagged.

    Raises:
        ValueError: a number that no threshold can be.
    """

    volume_factor: float = 2.0
    max_outside: float = 0.15
    max_jump: float = 0.55
    min_dice: float = 0.7
    edge: bool = True

    def __post_init__(self) -> None:
        if self.volume_factor < 1:
            raise SettingError(f"volume_factor must be 1 or more, got {self.volume_factor}.")
        for name in ("max_outside", "max_jump", "min_dice"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} must not be negative, got {getattr(self, name)}.")


class QualityCheck(Described):
    """Measures the organs of a segmented case, flags what is implausible, and says so in one line.

    It puts ``"quality"``, ``{"organs": {name: measures}, "flags": [...]}``, into the engine's output, from where it
    gets into ``results.json``: measures of :func:`measure_organs` with ``predicted_dice`` and ``object_score``, and
    flags of :func:`find_flags`. Where it is checked how the case lies, that is there as ``"orientation"``, and its
    flags come first.

    Args:
        organs: names; label values 1...K in this order.
        prior_file: the trained prior, which knows the organs' volumes in its training set; an older one does not, and
            then volumes are not checked.
        calibration: JSON file of a :class:`~scripts.inference.calibration.Calibration` of the predicted Dice, or None.
        prediction_key: of the label map in the engine's output.
        orientation: says how the case lies; None does not check it.
        thresholds: see :class:`Thresholds`.
    """

    def __init__(
        self,
        organs: Sequence[str],
        *,
        prior_file: str | Path,
        calibration: str | Path | None = None,
        prediction_key: str = "pred",
        orientation: OrientationCheck | None = None,
        **thresholds: Any,
    ) -> None:
        self.orientation = orientation
        self.organs, self.prior_file, self.prediction_key = list(organs), Path(prior_file), prediction_key
        known = {each.name for each in fields(Thresholds)}
        if thresholds.keys() - known:
            raise SettingError(f"quality has no {listed(thresholds.keys() - known)}; it has {listed(sorted(known))}.")
        self.thresholds = Thresholds(**thresholds)
        self.calibration = None if calibration is None else Calibration.load(calibration)
        self._volumes: dict[str, list[float]] | None = None

    def described(self) -> dict[str, Any]:
        """What its flags depend on beside the prior: the content of the calibration, not its place."""
        return {"thresholds": vars(self.thresholds), "calibration": self.calibration, "orientation": self.orientation}

    def __call__(self, engine: Engine) -> None:
        if self._volumes is None:
            self._volumes = read_training_volumes(self.prior_file)
        for output in engine.state.output:
            labels = output[self.prediction_key]
            measures = measure_organs(labels[0].cpu().numpy(), np.asarray(labels.affine), self.organs)
            predicted = getattr(engine.inferer, "predicted_dice", None) or [None] * len(self.organs)
            for measure, dice in zip(measures.values(), predicted):
                if dice is not None and self.calibration is not None:
                    dice = self.calibration(dice)
                measure["predicted_dice"] = None if dice is None else round(dice, 4)
            lies = None
            if self.orientation is not None:
                lies = self.orientation.judge(slice_spacing(output["image"].affine))
                if self.orientation.problem is not None:
                    remark(output["image"], self.orientation.problem)
            flags: list[dict[str, Any]] = [*orientation_flags(lies)]
            flags += find_flags(measures, self.thresholds, self._volumes)
            output["quality"] = {"organs": measures, "flags": flags}
            if lies is not None:
                output["quality"]["orientation"] = lies
            if flags:
                found = " ".join(str(flag["message"]) for flag in flags)
                logger.warning("%s: %s. %s", result_name(output["image"].meta), count(len(flags), "flag"), found)


def measure_organs(labels: np.ndarray, affine: np.ndarray, organs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Measures of each organ in a label map.

    Args:
        labels: ``(I, J, K)``, 0 background, 1...K organs, in any orientation.
        affine: ``(4, 4)``, from voxels to millimetres, RAS+.
        organs: names, of the label values.

    Returns:
        For each organ ``volume_ml``; ``components``, how many pieces it is in; ``outside``, the share of its voxels
        outside the largest piece; ``largest_jump``, of :func:`largest_jump`; ``touches_edge``, whether the largest
        piece reaches the first or last voxel along an axis, where it may be cut off. ``predicted_dice`` is for the
        caller to fill in. ``object_score`` is None: where SAM2 sees an object at all, its score hardly tells good masks
        from bad ones, and it does not leave the walk through the volume.
    """
    axes = np.argsort(nib.io_orientation(affine)[:, 0])
    labels = np.moveaxis(labels, axes[AXIAL], -1)
    plane = np.delete(nib.affines.voxel_sizes(affine), axes[AXIAL])
    one = voxel_volume(affine)
    boxes = organ_boxes(labels, len(organs))
    result = {}
    for value, (organ, box) in enumerate(zip(organs, boxes), 1):
        if box is None:
            measures = {"volume_ml": 0.0, "components": 0, "outside": 0.0, "largest_jump": 0.0, "touches_edge": False}
        else:
            pieces = Pieces(labels[box], value)
            voxels = pieces.sizes
            measures = {
                "volume_ml": round(float(voxels.sum() * one) / 1000, 2),
                "components": len(voxels),
                "outside": round(float(1 - voxels.max() / voxels.sum()), 4),
                "largest_jump": round(largest_jump(labels[box] == value, plane), 4),
                "touches_edge": _touches_edge(pieces.box, box, labels.shape),
            }
        result[organ] = {**measures, "predicted_dice": None, "object_score": None}
    return result


def _touches_edge(piece: Sequence[slice], box: Sequence[slice], shape: Sequence[int]) -> bool:
    """Whether a piece, given by its box within the box of its organ, reaches any of the volume's six faces."""
    return any(
        side.start + of_piece.start == 0 or side.start + of_piece.stop == length
        for of_piece, side, length in zip(piece, box, shape)
    )


def largest_jump(mask: np.ndarray, spacing: Sequence[float] | np.ndarray) -> float:
    """The largest change of an organ from one axial slice to the next, relative to the organ.

    The change of its area, as a share of its largest area; or the distance between the centres of the two areas, in
    diameters of a circle as large as the largest area, times the smaller of the two areas as a share of the largest, so
    that a few stray voxels do not count as much as a leap of the organ. 0 for a single slice.

    Args:
        mask: ``(H, W, slices)``, bool, from the organ's first slice to its last.
        spacing: millimetres between voxels in plane.
    """
    areas = mask.sum((0, 1)).astype(float)
    change = np.abs(np.diff(areas)).max(initial=0.0) / areas.max()
    rows, columns = (np.arange(length) * size for length, size in zip(mask.shape, spacing))
    with np.errstate(invalid="ignore"):  # 0 / 0: the centre of a slice without the organ
        centres = np.stack([rows @ mask.sum(1), columns @ mask.sum(0)]) / areas
    diameter = np.sqrt(4 / np.pi * areas.max() * spacing[0] * spacing[1])
    moved = np.linalg.norm(np.diff(centres), axis=0) / diameter * np.minimum(areas[1:], areas[:-1]) / areas.max()
    return float(max(change, np.nan_to_num(moved).max(initial=0.0)))


def find_flags(
    measures: Mapping[str, Mapping[str, Any]],
    thresholds: Thresholds,
    training_volumes: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, str]]:
    """What is implausible.

    Args:
        measures: of :func:`measure_organs`.
        thresholds: where plausible ends.
        training_volumes: of each organ, in ml; organs that are not named have no range.

    Returns:
        ``{"organ", "flag", "message"}`` for each, ``flag`` being "empty", "volume", "components", "jump", "edge" or
        "uncertainty".
    """
    flags = []
    for organ, each in measures.items():
        for flag, message in _problems(each, thresholds, (training_volumes or {}).get(organ)):
            flags.append({"organ": organ, "flag": flag, "message": f"{one_line(organ)}: {message}."})
    return flags


def _problems(
    organ: Mapping[str, Any], thresholds: Thresholds, volumes: Sequence[float] | None
) -> Iterable[tuple[str, str]]:
    if not organ["components"]:
        yield "empty", "nothing was segmented"
        return
    if volumes:
        low, high = min(volumes) / thresholds.volume_factor, max(volumes) * thresholds.volume_factor
        if not low <= organ["volume_ml"] <= high:
            yield "volume", f"{organ['volume_ml']:.0f} ml, expected {low:.0f} to {high:.0f} ml by the training volumes"
    if organ["outside"] > thresholds.max_outside:
        yield (
            "components",
            (
                f"{organ['components']} separate pieces with {organ['outside']:.0%} of the voxels outside the largest, "
                f"at most {thresholds.max_outside:.0%} expected"
            ),
        )
    if organ["largest_jump"] > thresholds.max_jump:
        yield (
            "jump",
            (
                f"its area or position jumps between two slices by {organ['largest_jump']:.2f} of its size, at most "
                f"{thresholds.max_jump:.2f} expected"
            ),
        )
    if thresholds.edge and organ["touches_edge"]:
        yield "edge", "it reaches the edge of the volume and may be cut off"
    dice = organ["predicted_dice"]
    if dice is not None and dice < thresholds.min_dice:
        yield "uncertainty", f"the predicted Dice is {dice:.2f}, at least {thresholds.min_dice:.2f} expected"


def training_volumes(summaries: Iterable[CaseSummary]) -> dict[str, list[float]]:
    """Volumes of each organ in ml, of the training cases that have it.

    Args:
        summaries: of :func:`scripts.data.dataset_check.check_dataset`.
    """
    volumes: dict[str, list[float]] = {}
    for summary in summaries:
        for organ, voxels in summary.voxels.items():
            volumes.setdefault(organ, [])
            if voxels:
                volumes[organ].append(round(summary.millilitres(organ), 2))
    return volumes


def read_training_volumes(prior_file: str | Path) -> dict[str, list[float]]:
    """The volumes of :func:`training_volumes` that an exported prior carries; nothing for an older one."""
    return read_prior(prior_file, mmap=True).get("organ_volumes") or {}
