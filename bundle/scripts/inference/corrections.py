"""Corrections: what a user says about single slices, as clicks and boxes in a JSON file.

    {"coordinates": "voxel",
     "cases": {"ct007": [{"organ": "liver", "positive": [[120, 88, 14]], "negative": [[60, 90, 14]]},
                         {"organ": "spleen", "box": [[40, 70, 14], [80, 110, 14]]}]}}

A case is called as its results are. An entry is about one organ on one slice: points inside the organ (``positive``) or
outside it (``negative``), and ``box``, two opposite corners of a rectangle around all of it. A point has the three
coordinates that viewers show under the cursor, which also say its slice. ``coordinates`` is ``"voxel"`` (the default),
indices along the axes of the image's own file, counted from 0; ``"LPS"``, millimetres towards the patient's left, back
and top, as in DICOM and ITK; or ``"RAS"``, towards the right, front and top, as in NIfTI and 3D Slicer.

What becomes of them is in :mod:`scripts.segmentation.corrected_slices`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.engines import default_prepare_batch
from monai.utils import MetaKeys
from nibabel.affines import apply_affine

from ..data.datalists import Item
from ..data.grids import oriented_grid, place_within
from ..data.volumes import VolumeReader
from ..errors import DatasetError, MissingFileError, listed
from ..files import json_of
from ..segmentation.corrected_slices import Corrector, SlicePrompt

COORDINATES = ("voxel", "LPS", "RAS")
KINDS = ("positive", "negative", "box")  # of points
_BEYOND = 10**9  # millimetres or voxels that no image reaches; of far more, NumPy makes nothing


@dataclass(frozen=True)
class Entry:
    """One entry of the file.

    Attributes:
        where: which entry, for messages.
        organ: index among the organs.
        points: coordinates ``(n, 3)`` of each of :data:`KINDS`; n is 0 where there is none.
    """

    where: str
    organ: int
    points: dict[str, np.ndarray]


class Corrections:
    """The corrections of a run.

    Args:
        path: of the JSON file; None: there are none.
        organs: names of the organs.
        reach: see :class:`~scripts.segmentation.corrected_slices.Corrector`.

    Raises:
        FileNotFoundError: the file is not there.
        DatasetError: it is not as described above; the message lists every problem.
        ValueError: a negative reach.
    """

    def __init__(self, path: str | Path | None, organs: Sequence[str], *, reach: int = 0) -> None:
        self.path, self.organs = path, list(organs)
        self.reach = Corrector([], reach).reach  # which refuses a reach that is none, before anything is segmented
        self.content: dict[str, Any] = {} if path is None else _read(Path(path).expanduser())
        self.coordinates: str = self.content.get("coordinates", COORDINATES[0])
        self.entries: dict[str, list[Entry]] = {}
        problems: list[str] = []
        for case, entries in self.content.get("cases", {}).items():
            for number, stated in enumerate(entries, 1):
                where = f"case '{case}', entry {number}"
                found = list(_problems(stated, self.organs, self.coordinates))
                problems += [f"{where}: {problem}" for problem in found]
                if not found:
                    points = {kind: np.array(stated.get(kind, []), float).reshape(-1, 3) for kind in KINDS}
                    entry = Entry(f"{where} ({stated['organ']})", self.organs.index(stated["organ"]), points)
                    self.entries.setdefault(case, []).append(entry)
        self._refuse(problems)

    def recorded(self) -> dict[str, Any]:
        """For each case that is named, what its result depends on beside what all results depend on: JSON values."""
        shared = {"coordinates": self.coordinates, "reach": self.reach}
        return {case: {**shared, "entries": self.content["cases"][case]} for case in self.entries}

    def check(self, items: Sequence[Item], reader: VolumeReader) -> None:
        """Compares the corrections with the images, before any of them is segmented.

        Args:
            items: of :meth:`scripts.inference.case_records.CaseRecords.called`.
            reader: that will read the images.

        Raises:
            DatasetError: a case that is not in the input, or see :meth:`prompts`; the message lists every problem.
        """
        images = {item["case"]: item["image"] for item in items}
        called = {item["named"]: item["case"] for item in items if "named" in item}
        problems = []
        for case in self.entries:
            if case not in images and case in called:
                problems.append(
                    f"case '{case}': in the output, results of another image bear this name; those of "
                    f"'{images[called[case]]}' are called '{called[case]}'. Correct the name."
                )
                continue
            if case not in images:
                problems.append(
                    f"case '{case}': no such image; the input has {listed(images)}, called by the file's name without "
                    "its suffix, or the folder's. Correct the name, or remove the case."
                )
                continue
            try:
                volume = reader.load(images[case])
            except DatasetError:
                continue  # it will be reported as a case that failed, and the others segmented
            problems += self._place(case, volume.affine, *oriented_grid(volume.affine, volume.voxels.shape))[1]
        self._refuse(problems)

    def prompts(
        self, case: str, affine: np.ndarray, oriented_affine: np.ndarray, shape: Sequence[int]
    ) -> list[SlicePrompt]:
        """The corrections of a case on the grid of its slices: one prompt for each slice and organ.

        Args:
            case: its name.
            affine: ``(4, 4)`` of the file, from voxel indices to RAS millimetres.
            oriented_affine: the same of the volume that is segmented.
            shape: H, W and slices of that volume.

        Raises:
            DatasetError: a point outside the volume, an entry on several slices, two boxes for one organ and slice, or
                points that contradict one another; the message lists every problem.
        """
        prompts, problems = self._place(case, affine, oriented_affine, shape)
        self._refuse(problems)
        return prompts

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple:
        """``prepare_batch`` of a :class:`~scripts.inference.cases.CaseEvaluator`: it brings the corrections."""
        image, label = default_prepare_batch(batchdata, *args, **kwargs)
        item = batchdata["item"]
        case = item["case"][0]
        if case not in self.entries:
            return image, label
        volume = batchdata["image"][0]
        affine = np.asarray(volume.meta[MetaKeys.ORIGINAL_AFFINE], float)
        grid = oriented_grid(affine, [int(size) for size in volume.meta[MetaKeys.SPATIAL_SHAPE]])
        prompts = self.prompts(case, affine, *grid)
        # what is segmented may be a part of each slice
        rows, columns, _ = place_within(np.asarray(volume.affine, float), volume.shape[1:], grid[0])
        kept = [prompt.within((rows, columns)) for prompt in prompts]
        lost = [self.organs[prompt.organ] for prompt, inside in zip(prompts, kept) if inside is None]
        if lost:
            self._refuse(
                [
                    f"case '{case}': points of {listed(lost)} lie outside the body to which its slices are cropped. "
                    "Correct them, or segment whole slices with --body_fill 0."
                ]
            )
        said = [each for each in kept if each and any(map(len, (each.positive, each.negative, each.box)))]
        return image, label, (), {"corrector": Corrector(said, self.reach)}

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            raise DatasetError("\n".join([f"'{self.path}': corrections that cannot be used:", *problems]))

    def _place(
        self, case: str, affine: np.ndarray, oriented_affine: np.ndarray, shape: Sequence[int]
    ) -> tuple[list[SlicePrompt], list[str]]:
        """What :meth:`prompts` gives, and what is wrong with it."""
        to_slices = np.linalg.inv(oriented_affine) @ affine
        together: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        problems = []
        for entry in self.entries[case]:
            placed = {
                kind: np.rint(apply_affine(to_slices, self._voxels(points, affine))).astype(int)
                for kind, points in entry.points.items()
            }
            every = np.concatenate(list(placed.values()))
            outside = ((every < 0) | (every >= shape)).any(1)
            slices = np.unique(every[:, 2])
            if outside.any():
                stated = np.concatenate(list(entry.points.values()))[outside]
                problems.append(f"{entry.where}: {self._outside(stated, affine, to_slices, shape)}")
            elif len(slices) > 1:
                axis = ("first", "second", "third")[int(np.abs(to_slices[2, :3]).argmax())]
                problems.append(
                    f"{entry.where}: points on {len(slices)} slices, expected one; the {axis} voxel index of this "
                    "image numbers its slices. Make an entry for each."
                )
            else:
                points = together.setdefault((entry.organ, int(slices[0])), {kind: every[:0, :2] for kind in KINDS})
                for kind, each in placed.items():
                    points[kind] = np.concatenate([points[kind], each[:, :2]])
        prompts = [SlicePrompt(organ, index, **points) for (organ, index), points in together.items()]
        return prompts, [*problems, *(f"case '{case}', {each}" for each in self._contradictions(prompts))]

    def _outside(self, points: np.ndarray, affine: np.ndarray, to_slices: np.ndarray, shape: Sequence[int]) -> str:
        """That points ``(n, 3)``, as they are stated, are outside an image."""
        size = np.abs(np.rint(np.linalg.inv(to_slices)[:3, :3] @ shape)).astype(int)
        where = f"outside the image of {' x '.join(map(str, size))} voxels, counted from 0"
        if self.coordinates == "voxel":
            return f"{listed(points.astype(int).tolist())} is {where}."
        voxels = listed(self._voxels(points, affine).tolist())
        return f"{listed(points.tolist())} mm ({self.coordinates}) is voxel {voxels}, {where}."

    def _voxels(self, points: np.ndarray, affine: np.ndarray) -> np.ndarray:
        if self.coordinates == "voxel":
            return points.astype(int)
        signs = (-1, -1, 1) if self.coordinates == "LPS" else (1, 1, 1)
        return np.rint(apply_affine(np.linalg.inv(affine), points * signs)).astype(int)

    def _contradictions(self, prompts: Sequence[SlicePrompt]) -> Iterator[str]:
        taken: dict[tuple[int, ...], str] = {}
        for prompt in prompts:
            organ = self.organs[prompt.organ]
            inside, outside = ({tuple(each) for each in kind.tolist()} for kind in (prompt.positive, prompt.negative))
            if inside & outside:
                yield f"{organ}: a point is said to be inside and outside it. Remove one."
            if len(prompt.box) > 2:
                yield f"{organ}: several boxes on one slice, expected one. Remove the others."
            elif len(prompt.box) and not prompt.in_box(prompt.positive).all():
                yield f"{organ}: a point inside the organ lies outside its box. Enlarge the box, or remove the point."
            for point in inside:
                other = taken.setdefault((prompt.slice, *point), organ)
                if other != organ:
                    yield f"one point is said to be inside {other} and inside {organ}. Remove one."


def _read(path: Path) -> dict[str, Any]:
    """The file's content, as far as cases and coordinates."""
    if not path.is_file():
        raise MissingFileError(f"The corrections '{path}' are not there. Correct --corrections, or leave it out.")
    try:
        content = json_of(path.read_text(encoding="utf-8"), strict=True)
    except ValueError as error:
        raise DatasetError(f"'{path}' is no JSON file ({error}). Mend it in a text editor.") from error
    problem = None
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        problem = 'expected {"cases": {case: [entries]}}'
    elif content.keys() - {"cases", "coordinates"}:
        problem = f"unknown keys {listed(content.keys() - {'cases', 'coordinates'})}, expected cases and coordinates"
    elif content.get("coordinates", COORDINATES[0]) not in COORDINATES:
        problem = f"coordinates are {content['coordinates']!r}, expected one of {listed(COORDINATES)}"
    elif not all(isinstance(entries, list) for entries in content["cases"].values()):
        problem = "expected a list of entries for each case"
    if problem:
        raise DatasetError(f"'{path}': {problem}. Mend it in a text editor.")
    return content


def _problems(stated: Any, organs: Sequence[str], coordinates: str) -> Iterator[str]:
    """What is wrong with an entry by itself."""
    if not isinstance(stated, dict):
        yield f"found {stated!r}, expected an object with an organ and points."
        return
    if stated.keys() - {"organ", *KINDS}:
        yield f"unknown keys {listed(sorted(stated.keys() - {'organ', *KINDS}))}, expected organ, {listed(KINDS)}."
    if stated.get("organ") not in organs:
        yield f"organ {stated.get('organ')!r}, expected one of {listed(organs)}."
    if not any(stated.get(kind) for kind in KINDS):
        yield f"no points, expected some of {listed(KINDS)}."
    for kind in KINDS:
        points = stated.get(kind, [])
        if not isinstance(points, list) or not all(_is_point(point, coordinates) for point in points):
            numbers = "whole numbers" if coordinates == "voxel" else "numbers"
            expected = f"a list of points of three {numbers} each, all below {_BEYOND}, such as [[120, 88, 14]]"
            yield f"{kind} is {points!r}, expected {expected}."
        elif kind == "box" and len(points) not in (0, 2):
            yield f"a box of {len(points)} points, expected two opposite corners."


def _is_point(point: Any, coordinates: str) -> bool:
    numbers = (int,) if coordinates == "voxel" else (int, float)
    return (
        isinstance(point, list)
        and len(point) == 3
        and all(isinstance(each, numbers) and not isinstance(each, bool) and abs(each) < _BEYOND for each in point)
    )
