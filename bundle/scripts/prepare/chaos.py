"""CHAOS as downloaded from Zenodo: its MR T2-SPIR volumes, in the layout of configs/chaos.json."""

from __future__ import annotations

import re
from collections import defaultdict

from ..console import counted
from ..data.datalists import find_cases
from ..data.dataset_check import check_dataset
from ..data.volumes import VolumeReader
from ..errors import DatasetError, count, listed
from .chaos_slices import join_slices
from .configs import CASE, read_config
from .report import notes_on, other_cases, raise_all, report
from .sources import Found, Source, only_root, opened
from .targets import Target, nifti, store_nifti

CHAOS_CASES = tuple(map(str, (1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39)))
CHAOS_SHAPE = ((256, 400), (256, 400), (26, 50))
CHAOS_SOURCE = (
    "CHAOS is not downloaded by this command: take 'CHAOS_Train_Sets.zip' (890,771,694 bytes) from "
    "https://zenodo.org/records/3431873, read its terms there (quoted elsewhere as CC BY-NC-SA 4.0, so no commercial "
    "use), and give the archive or the folder it was extracted to."
)
_CHAOS_FILE = re.compile(
    r"(?P<root>.*/|)(?P<case>\d+)/T2SPIR/(?:DICOM_anon/[^/]+\.dcm|(?P<mask>Ground/[^/]+\.png))", re.IGNORECASE
)


def prepare_chaos(source: str, output: str, overwrite: bool = False) -> str:
    """CHAOS (Zenodo 3431873): joins MR T2-SPIR slices and masks into NIfTI files for configs/chaos.json.

    A mask belongs to the slice of the same file name. Where the names differ, the first mask belongs to the first slice
    if the slices' names follow their positions from the patient's feet upwards, and nothing is joined otherwise.

    Args:
        source: ``CHAOS_Train_Sets.zip``, or the folder it was extracted to, or one above or below with ``MR/<id>``.
        output: folder for ``image_{id}.nii.gz`` and ``label_{id}.nii.gz``, with 1 liver, 2 right kidney, 3 left kidney,
            4 spleen.
        overwrite: whether files there that differ are replaced.

    Returns:
        A table of the volumes, what differs from the published data, and the next command.

    Raises:
        DatasetError: no archive, a damaged one, no volumes in it; or, for all volumes at once, a series that
            :func:`~scripts.data.volumes.load_volume` refuses, another number of masks than of slices, a mask of another
            size or with other values, or organs that lie on the wrong side of each other.
    """
    config = read_config("chaos.json")
    target = Target(output, overwrite)
    problems, by_order = [], []
    with opened(source, CHAOS_SOURCE, target.folder) as files:
        found = _chaos_volumes(files)
        volumes = found.cases
        for case in counted(volumes, "CHAOS"):
            try:
                with files.local(volumes[case]) as paths:
                    joined = join_slices(paths, config["label_map"])
                by_order += [] if joined.paired == "name" else [case]
                for key, volume in (("label", joined.label), ("image", joined.image)):
                    store_nifti(target, config[f"{key}_pattern"].replace(CASE, case), nifti(volume))
            except DatasetError as error:
                problems.append(str(error))
    raise_all(problems, "CHAOS", target)
    items = find_cases(target.folder, config["image_pattern"], config["label_pattern"], cases=volumes)
    summaries = check_dataset(
        items, config["label_map"], background_values=config["background_values"], purpose="prepared"
    )
    pairing = f"in the order of their names, in the cases {listed(by_order)}" if by_order else "by their names"
    return report(
        [
            f"CHAOS: {len(volumes)} T2-SPIR volumes of '{source}', found in '{found.root or '.'}'.",
            *files.remarks(),
            *found.remarks,
            f"Masks and slices were paired {pairing}.",
        ],
        summaries,
        notes=notes_on(items, summaries, label_map=config["label_map"], reader=VolumeReader(), shape=CHAOS_SHAPE),
        after=[*other_cases(volumes, CHAOS_CASES), target.summary()],
        overlay="configs/chaos.json",
        prior="runs/chaos/model.pt",
        options={"dataset_dir": str(target.folder)},
    )


def _chaos_volumes(files: Source) -> Found:
    """The labelled volumes, of each case the slices and masks."""
    roots: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    labelled = set()
    for name in files.members:
        if match := _CHAOS_FILE.fullmatch(name):
            roots[match["root"]][match["case"]].append(name)
            if match["mask"]:
                labelled.add(match["root"])
    expected = "MR/<id>/T2SPIR/DICOM_anon/*.dcm and MR/<id>/T2SPIR/Ground/*.png"
    root = only_root(files, sorted(labelled), expected, CHAOS_SOURCE)
    cases = {case: sorted(roots[root][case]) for case in sorted(roots[root], key=int)}
    without = sum(len(cases) for other, cases in roots.items() if other != root)
    return Found(root, cases, [f"Left out: {count(without, 'volume')} without masks."] if without else [])
