"""A patient under construction: what tissues and labels there are, and how shapes are laid over one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..data import phantom_anatomy
from ..data import phantom_shapes as shapes
from ..data.phantom_rendering import TISSUES as PHANTOM_TISSUES

SHAPE, SPACING = (224, 192, 120), (2.0, 2.0, 4.0)  # voxels and mm along right, anterior, superior
CENTRE = (0.0, 0.0, -52.0)  # the grid's middle in the body's coordinates, of which 0 is the middle of the abdomen
_REACH = (200.0, 200.0, 300.0)  # mm over which smooth fields vary
TISSUES = (
    *PHANTOM_TISSUES,
    *("lesion", "cyst", "stone", "ascites", "effusion", "gland", "adrenal", "table", "spleen pulp", "liver fat"),
)
CREST = -98.0  # height of the iliac crests in reference millimetres: the pelvis begins below it
LABELS = (
    "background",
    *phantom_anatomy.ORGANS,
    *("gallbladder", "stomach", "aorta", "vena cava", "pancreas", "spine", "bowel", "heart", "lung", "collection"),
)
#: Volume in ml, mean and standard deviation over adults of both sexes, rounded, after volumetry (liver and spleen:
#: Geraghty et al., Abdominal Imaging 2004; kidneys: Cheong et al., CJASN 2007, and the patients of CHAOS).
POPULATION = {
    "spleen": (215.0, 110.0),
    "right kidney": (190.0, 45.0),
    "left kidney": (195.0, 45.0),
    "liver": (1550.0, 350.0),
}
TISSUE_INDEX = {name: index for index, name in enumerate(TISSUES)}
LABEL_INDEX = {name: index for index, name in enumerate(LABELS)}
_OF_AN_ORGAN = len(phantom_anatomy.ORGANS)  # labels up to this one are organs
# what organs are made of, inside
_PARTS = {"hepatic vessel", "renal medulla", "renal sinus", "renal pelvis", "stone"}


def population_volumes() -> dict[str, list[float]]:
    """Smallest and largest volume in ml that adults' organs usually have: two standard deviations about the mean."""
    return {
        organ: [round(max(0.25 * mean, mean - 2 * spread), 1), round(mean + 2 * spread, 1)]
        for organ, (mean, spread) in POPULATION.items()
    }


class Patient(shapes.Body):
    """A patient under construction, as :class:`~scripts.data.phantom_shapes.Body`, painted as tissues rather than
    as layers of grey.
    """

    def __init__(self, rng: np.random.Generator, axes: Sequence[np.ndarray]) -> None:
        super().__init__(rng, axes)
        self.raw_axes = axes
        self.tissue = np.zeros(self.shape, np.uint8)
        self.context: int | None = None
        # child to tall, flat to round, short to long; the phantoms' own draw is undone
        frame = rng.uniform(0.74, 1.0) if rng.random() < 0.15 else rng.uniform(0.92, 1.2)
        scale = frame * np.array([rng.uniform(0.92, 1.08), rng.uniform(0.82, 1.25), rng.uniform(0.88, 1.22)])
        shift = rng.uniform(-1, 1, 3) * (12, 12, 12)
        self.axes = [(axis - offset) / size for axis, offset, size in zip(axes, shift, scale)]
        mesh = np.meshgrid(*(axis.astype(np.float32) for axis in self.axes), indexing="ij", sparse=True)
        self.points = []
        coarse, fine = rng.uniform(3, 8), rng.uniform(0.6, 2.2)
        for line in mesh:
            warp = coarse * shapes.smooth_field(rng, self.axes, 75.0, _REACH)
            warp += fine * shapes.smooth_field(rng, self.axes, 35.0, _REACH)
            self.points.append(line + np.clip(warp, -shapes.LARGEST_WARP, shapes.LARGEST_WARP))
        self.bumps = rng.uniform(0.5, 1.8) * shapes.smooth_field(rng, self.axes, 22.0, _REACH)
        self.wall = rng.uniform(8.0, 20.0)
        upwards = np.clip((self.points[2] - 110) / 110, 0, 1)
        # the chest is narrower above
        self.cavity, self.dome = self._cavity() + 40 * upwards**2, self._dome() + rng.uniform(-16, 8)
        self.funnel = self._funnel()

    def _funnel(self) -> np.ndarray:
        """Distance to the inner surface of the pelvis, which narrows below the iliac crests; negative inside."""
        x, y, z = self.points
        share = np.clip((CREST - z) / 120, 0, 1)
        share = share * share * (3 - 2 * share)
        return shapes.oval(x, y - 5 + 12 * share, 131 - 68 * share, 85 - 24 * share, 2.3)

    def paint(self, tissue: str, distance: np.ndarray, region: shapes.Region, *, label: int | None = None) -> None:
        """Lays a tissue over what is there; see :meth:`~scripts.data.phantom_shapes.Body.paint`.

        Without a label, and outside :meth:`labelled`, what is painted belongs to nothing, but for the parts of an
        organ, which keep its label.
        """
        inside = distance < 0
        self.tissue[region][inside] = TISSUE_INDEX[tissue]
        labels = self.label[region]
        if label is None and self.context is None and tissue in _PARTS:
            inside = inside & (labels > _OF_AN_ORGAN)
        labels[inside] = label or self.context or 0

    @contextmanager
    def labelled(self, name: str) -> Iterator[None]:
        """Everything painted in this block belongs to one structure."""
        self.context = LABEL_INDEX[name]
        try:
            yield
        finally:
            self.context = None

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def inside_organ(self, label: int) -> np.ndarray | None:
        """A random voxel of an organ, in reference millimetres; None where it is not there."""
        voxels = np.flatnonzero(self.label == label)
        if not len(voxels):
            return None
        voxel = np.unravel_index(self.rng.choice(voxels), self.shape)
        return np.array([axis[voxel] for axis in self.points])
