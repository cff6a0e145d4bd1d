"""What a training is: everything that its result depends on, by which a checkpoint is taken up or refused, and what a
prior says of its own training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.transforms import ScaleIntensityRanged
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..data.datalists import Item
from ..data.dataset_check import CaseSummary
from ..data.volumes import volume_digest
from ..descriptions import Described, describe
from ..files import sha256_of
from ..networks.frozen_backbone import FrozenBackboneNetwork

# iterations at which a schedule of rates is looked at: the same in a longer training, which goes on with a shorter one
_LOOKED_AT = (0, 1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
# what a schedule keeps of its use
_USED = {"optimizer", "last_epoch", "verbose"}


def training_identity(
    data: Sequence[Item],
    network: FrozenBackboneNetwork,
    *,
    optimizer: Optimizer,
    lr_scheduler: LRScheduler,
    **parts: Any,
) -> dict[str, Any]:
    """Everything that a training's result depends on, but for how many iterations it takes.

    Args:
        data: the training cases; their files count by their content, not by their places.
        network: of which the prior, a head that names organs, the backbone with its weights, and the organs count; how
            it samples does not.
        optimizer: with its rates.
        lr_scheduler: the rates along the training.
        parts: further settings and objects by their names, such as transforms and the loss; see
            :func:`scripts.descriptions.describe`.

    Returns:
        The description of each.
    """
    return {
        "cases": [item["case"] for item in data],
        "files": case_digests(data),
        "network": type(network).__name__,
        "organs": list(network.organs),
        "backbone": describe(network.backbone),
        "prior": describe(network.prior),
        "names": describe(network.names),
        "optimizer": describe(optimizer),
        "lr_scheduler": _rates(lr_scheduler),
        **{name: describe(part) for name, part in parts.items()},
    }


def pretraining_identity(
    network: Described,
    optimizer: Optimizer,
    *,
    lr_scheduler: LRScheduler,
    starts: Mapping[str, str | None] | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """The same of a pretraining, whose data are made by settings and a seed.

    Args:
        network: with its losses; what it was built with.
        optimizer, lr_scheduler: see :func:`training_identity`.
        starts: files of weights that it begins with, by what they are of; they count by their content.
        parts: see there.
    """
    return {
        "network": describe(network),
        "optimizer": describe(optimizer),
        "lr_scheduler": _rates(lr_scheduler),
        "starts": {name: sha256_of(path) for name, path in (starts or {}).items() if path},
        **{name: describe(part) for name, part in parts.items()},
    }


def case_digests(data: Sequence[Item]) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of each case."""
    return {item["case"]: {key: volume_digest(item[key]) for key in ("image", "label") if key in item} for item in data}


def about_training(
    identity: Mapping[str, Any], intensity: Any, *, summaries: Iterable[CaseSummary] = ()
) -> dict[str, Any]:
    """What a prior says of its training.

    Args:
        identity: of :func:`training_identity`.
        intensity: the transform that scales intensities.
        summaries: of the training cases, by :func:`scripts.data.dataset_check.check_dataset`.

    Returns:
        ``settings``, the whole identity; ``cases``, the digests of the files of each, and of its ``voxels``;
        ``intensity``; ``modalities``, as far as they are known: those that DICOM files state, or CT where intensities
        are scaled by a window of Hounsfield units.
    """
    summaries = list(summaries)
    stated = {summary.modality for summary in summaries if summary.modality}
    if not stated and isinstance(intensity, ScaleIntensityRanged) and intensity.scaler.a_min < 0:
        stated = {"CT"}
    voxels = {summary.case: summary.digest for summary in summaries}
    return {
        "settings": dict(identity),
        "cases": {
            case: digests | ({"voxels": voxels[case]} if voxels.get(case) else {})
            for case, digests in identity["files"].items()
        },
        "intensity": describe(intensity),
        "modalities": sorted(stated),
    }


def _rates(schedule: LRScheduler) -> Any:
    if isinstance(schedule, LambdaLR):
        return {"factors": [[float(factor(each)) for each in _LOOKED_AT] for factor in schedule.lr_lambdas]}
    settings = {key: item for key, item in vars(schedule).items() if key not in _USED and key[0] != "_"}
    return {type(schedule).__name__: describe(settings)}
