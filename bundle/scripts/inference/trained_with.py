"""What a prior says of its own training, against what it is now asked for.

What cannot work is refused, what is unwise is said. Priors of earlier versions say less of themselves, and nothing of
what they leave out is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..data.datalists import Item
from ..data.dataset_check import CaseSummary
from ..data.intensity import STATED, remark
from ..data.volumes import volume_digest
from ..descriptions import Described, describe, differences
from ..errors import DatasetError, SettingError, UnusableFileError, count, listed
from ..networks.diffusam import check_prior_file
from ..networks.frozen_backbone import FrozenBackboneNetwork
from ..prior_settings import read_prior

_REMEDY = "Point `prior_file` at a trained prior, or run `training` again."

logger = logging.getLogger(__name__)


def check_prior(path: str | Path, network: FrozenBackboneNetwork, intensity: Any) -> None:
    """Refuses a prior that cannot work as it is to be used, before anything expensive starts.

    Args:
        path: of the trained prior.
        network: that is to use it.
        intensity: the transform that scales intensities.

    Raises:
        MissingFileError: it is not there.
        UnusableFileError: it is empty, damaged, something else, or its weights are not finite.
        SettingError: it was trained for other organs, another backbone, size, diffusion or window of intensities.
    """
    check_prior_file(path)
    content = read_prior(path)
    if not isinstance(content.get("model"), dict):
        raise UnusableFileError(f"'{path}' is no trained prior: it holds {listed(content) or 'nothing'}. {_REMEDY}")
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:  # PyTorch's, of names and shapes
        raise SettingError(
            f"The prior '{path}' does not fit the network of this configuration ({_first_problem(error)}). Use the "
            "overlays and settings of its training, such as `prior_channels` and `use_high_res`, or point `prior_file` "
            "at another prior."
        ) from error
    training = content.get("training", {})
    _check_intensity(path, training.get("intensity"), describe(intensity))
    _check_times(training.get("settings", {}), network)


def check_test_cases(
    path: str | Path, items: Sequence[Item], *, summaries: Iterable[CaseSummary] = (), allowed: bool = False
) -> None:
    """Refuses to test a prior on the cases of its own training, by the content of their files, and by their voxels,
    which are the same in a file that was compressed again or converted.

    Args:
        path: of the trained prior.
        items: the test cases.
        summaries: of them, by :func:`scripts.data.dataset_check.check_dataset`.
        allowed: whether it is only said.

    Raises:
        DatasetError: naming these cases.
    """
    check_prior_file(path)
    cases = read_prior(path, mmap=True).get("training", {}).get("cases", {})
    trained = {digest: case for case, each in cases.items() for key, digest in each.items() if key != "label"}
    voxels = {summary.case: summary.digest for summary in summaries}
    shared = [
        (item["case"], trained[digest])
        for item in items
        if (digest := volume_digest(item["image"])) in trained or (digest := voxels.get(item["case"], "")) in trained
    ]
    if not shared:
        return
    names = listed(case if case == then else f"{case} (there called {then})" for case, then in shared)
    text = f"The prior '{path}' was trained on {count(len(shared), 'test case')}: {names}."
    if not allowed:
        raise DatasetError(
            f"{text} Leave them out of test_cases, or give --allow_training_cases True to measure how well it fits its "
            "own training."
        )
    logger.warning("%s Their results say how well it fits its training, not how well it works.", text)


class CheckModalityd(Described, MapTransform):
    """Says where a DICOM image is of another modality than the prior was trained on.

    Args:
        keys: images.
        prior_file: the trained prior.
    """

    def __init__(self, keys: KeysCollection, prior_file: str | Path) -> None:
        super().__init__(keys)
        self.prior_file = Path(prior_file)
        self._trained: list[str] | None = None

    def described(self) -> dict[str, Any]:
        """Nothing: no voxel depends on it."""
        return {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self._trained is None:
            there = self.prior_file.is_file()
            content = read_prior(self.prior_file, mmap=True) if there else {}
            self._trained = list(content.get("training", {}).get("modalities", []))
        result = dict(data)
        for key in self.key_iterator(result) if self._trained else ():
            modality = getattr(result[key], "meta", {}).get(STATED)
            if modality and modality not in self._trained:
                remark(
                    result[key],
                    f"its Modality is {modality}, the prior was trained on {listed(self._trained)}: its label map may "
                    "be wrong. Use a prior that was trained on such images",
                )
        return result


def _check_intensity(path: str | Path, then: Any, now: Any) -> None:
    by_modality = now.get("ScaleByModalityd", {}) if isinstance(now, Mapping) else {}  # one of several, for each image
    if then is None or then in (now, by_modality.get("ct"), by_modality.get("mr")):
        return
    found = "; ".join(differences(then, now))
    window = "ScaleIntensityRanged"
    if window in then and window in now:  # another window moves every organ to other grey values
        raise SettingError(
            f"The prior '{path}' was trained with another window of intensities: {found}. Set `intensity` as in its "
            "training, or train another prior."
        )
    logger.warning("The prior '%s' was trained with intensities scaled in another way: %s.", path, found)


def _check_times(settings: Mapping[str, Any], network: Any) -> None:
    trained = settings.get("trainer_timesteps")
    if trained is None or not hasattr(network, "steps"):
        return
    visited = [time for time, _ in network.prior.time_pairs(network.steps)]
    never = [time for time in visited if time not in trained]
    if never:
        logger.warning(
            "The prior was trained for the diffusion times %s alone, and inference_steps %d visits %s too: its masks "
            "may be worse. Set inference_steps as in its training.",
            *(listed(trained), network.steps, listed(never)),
        )


def _first_problem(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines()[1:])
    return next((line[:200] for line in lines if line), type(error).__name__)
