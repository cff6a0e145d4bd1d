"""BTCV as downloaded from Synapse: its labelled CT volumes, in the layout of configs/btcv.json."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial

from ..console import counted
from ..data.datalists import find_cases
from ..data.dataset_check import check_dataset
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed
from .configs import CASE, read_config
from .report import notes_on, other_cases, report
from .sources import Found, Source, only_root, opened
from .targets import Target

BTCV_CASES = tuple(f"{number:04d}" for number in (*range(1, 11), *range(21, 41)))
BTCV_SHAPE = ((512, 512), (512, 512), (85, 198))  # fewest and most voxels along each axis, as published
BTCV_SOURCE = (
    "BTCV is not downloaded by this command, since it needs a registration: join https://www.synapse.org (Synapse "
    "syn3193805), accept its terms, take 'RawData.zip' from the folder 'Abdomen', and give the archive or the folder "
    "it was extracted to."
)
_BTCV_FILE = re.compile(r"(?P<root>.*/|)(?P<kind>img|label)/(?P=kind)(?P<case>\d{4})\.nii\.gz")


def prepare_btcv(source: str, output: str, overwrite: bool = False) -> str:
    """BTCV (Synapse syn3193805): copies the labelled CT volumes into the layout of configs/btcv.json.

    Args:
        source: ``RawData.zip``, or the folder it was extracted to, or one above or below with ``img`` and ``label``.
        output: folder for ``img/img0001.nii.gz`` ... and ``label/label0001.nii.gz`` ...
        overwrite: whether files there that differ are replaced.

    Returns:
        A table of the volumes, what differs from the published data, and the next command.

    Raises:
        DatasetError: no archive, a damaged one, no volumes in it, a volume without its label, or files that
            :func:`~scripts.data.dataset_check.check_dataset` refuses.
    """
    config = read_config("btcv.json")
    target = Target(output, overwrite)
    with opened(source, BTCV_SOURCE, target.folder) as files:
        found = _btcv_volumes(files)
        volumes = found.cases
        for case in counted(volumes, "BTCV"):
            for kind in ("label", "img"):  # the image last: a case is there once its image is
                name = volumes[case][kind]
                pattern = config["label_pattern" if kind == "label" else "image_pattern"]
                target.store(pattern.replace(CASE, case), partial(files.copy, name), partial(files.same, name))
    items = find_cases(target.folder, config["image_pattern"], config["label_pattern"], cases=volumes)
    summaries = check_dataset(
        items, config["label_map"], background_values=config["background_values"], purpose="prepared"
    )
    return report(
        [
            f"BTCV: {len(volumes)} volumes of '{source}', found in '{found.root or '.'}'.",
            *files.remarks(),
            *found.remarks,
        ],
        summaries,
        notes=notes_on(items, summaries, label_map=config["label_map"], reader=VolumeReader(), shape=BTCV_SHAPE),
        after=[*other_cases(volumes, BTCV_CASES), target.summary()],
        overlay="configs/btcv.json",
        prior="runs/btcv/model.pt",
        options={"dataset_dir": str(target.folder)},
    )


def _btcv_volumes(files: Source) -> Found:
    """The labelled volumes, of each case ``{"img": name, "label": name}``."""
    roots: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in files.members:
        if match := _BTCV_FILE.fullmatch(name):
            roots[match["root"]][match["case"]][match["kind"]] = name
    labelled = [root for root, cases in roots.items() if any("label" in kinds for kinds in cases.values())]
    root = only_root(files, labelled, "img/img0001.nii.gz ... and label/label0001.nii.gz ... side by side", BTCV_SOURCE)
    cases = dict(sorted(roots[root].items()))
    halves = [
        f"{case} without {kind}" for case, kinds in cases.items() for kind in ("img", "label") if kind not in kinds
    ]
    if halves:
        raise DatasetError(
            f"{files.where(root)}: {listed(halves)}; expected an image and a label of every volume. Extract or "
            "download the archive again."
        )
    without = [
        name for other, cases in roots.items() if other != root for case in cases.values() for name in case.values()
    ]
    return Found(root, cases, [f"Left out: {count(len(without), 'image')} without labels."] if without else [])
