"""The files of a case's results, and what is left of earlier ones where a case is segmented again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.volumes import UPRIGHT
from ..errors import listed
from .record_fields import EARLIER_FILES

# relative to the output folder; a preview is worth having, but nothing is segmented again for want of one
LABEL_MAP, DICOM_SEG, PROBABILITIES = "{case}_seg.nii.gz", "{case}_seg.dcm", "{case}_prob.nii.gz"
UNCERTAINTY = "{case}_uncertainty.nii.gz"
PREVIEW = "previews/{case}.png"
# of images on a sheared grid alone
_UPRIGHT = {
    "upright": LABEL_MAP.removesuffix(".nii.gz") + UPRIGHT,
    "upright_uncertainty": UNCERTAINTY.removesuffix(".nii.gz") + UPRIGHT,
}
_FILES = {
    "label_map": LABEL_MAP,
    "dicom_seg": DICOM_SEG,
    "probabilities": PROBABILITIES,
    "uncertainty": UNCERTAINTY,
    "preview": PREVIEW,
    **_UPRIGHT,
}

logger = logging.getLogger(__name__)


class EarlierFiles:
    """Files of an earlier result of a case: beside a new one they would be taken for a part of it.

    Args:
        output: folder of the results.
        case: its name.
        record: of the earlier result; that of a run that did not end names what was there before it.
        valid: whether they are of what is segmented now, and only not asked for this time.
    """

    def __init__(self, output: Path, case: str, *, record: Mapping[str, Any], valid: bool = False) -> None:
        own = {kind: name.format(case=case) for kind, name in _FILES.items()}
        named = {**record.get(EARLIER_FILES, {}), **record.get("files", {})}
        self.output, self.case, self.valid = output, case, valid and record.get("status") == "done"
        self.files = {kind: name for kind, name in own.items() if named.get(kind) == name}
        self.uncertainty_samples = record.get("uncertainty_samples")
        self._stamps = {name: _stamp(output / name) for name in own.values()}

    def settle(self) -> dict[str, str]:
        """Removes those that were not made again, unless they are valid; then returns them."""
        left = {kind: name for kind, name in self.files.items() if kind != "label_map" and not self._is_new(name)}
        left = {kind: name for kind, name in left.items() if self._stamps[name]}
        if self.valid or not left:
            return left
        for name in left.values():
            (self.output / name).unlink(missing_ok=True)
        logger.info("%s: removed %s, of an earlier label map and not made again.", self.case, listed(left.values()))
        return {}

    def upright(self) -> dict[str, str]:
        """What was written on another grid beside the new results."""
        names = {kind: name.format(case=self.case) for kind, name in _UPRIGHT.items()}
        return {kind: name for kind, name in names.items() if self._is_new(name)}

    def _is_new(self, name: str) -> bool:
        return _stamp(self.output / name) not in (None, self._stamps[name])


def _stamp(path: Path) -> tuple[int, int] | None:
    """What another file of this name would not have, and the same file written again neither; None where it is not."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
