"""What phantoms are painted with: implicit shapes, and the body that takes them.

A shape is a distance in millimetres, negative inside, in the coordinates of a reference body, which each patient scales
and warps smoothly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST_WARP = 14.0  # mm; bounding boxes of shapes are widened by it
_EDGE = 2.0  # mm over which a surface fades, the in-plane partial volume of the default spacing

Region = tuple[slice, ...]
Vector = Sequence[float] | np.ndarray
Vectors = Sequence[Vector] | np.ndarray


def smooth_field(
    rng: np.random.Generator, axes: Sequence[np.ndarray], knots: float, reach: Vector = (200.0, 200.0, 120.0)
) -> np.ndarray:
    """A smooth random field of unit variance ``(x, y, z)``, float32, with structure of about ``knots`` millimetres.

    The knots lie at fixed places in millimetres, up to ``reach`` on either side, so that the field is the same on any
    grid.
    """
    places = [np.arange(-half, half + knots, knots) for half in reach]
    field = rng.standard_normal([len(place) for place in places])
    for axis, place in zip(axes, places):
        inside = np.clip(axis, place[0], place[-1])  # beyond the last knot the field stays as it is
        weight = np.exp(-0.5 * ((inside[:, None] - place) / (0.6 * knots)) ** 2)
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)  # unit variance everywhere, also between knots
        field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))  # moves the new axis to the end
    return field.astype(np.float32)


def ellipsoid(points: Sequence[np.ndarray], centre: Vector, radii: Vector) -> np.ndarray:
    """Approximate distance to an ellipsoid: exact in sign, and in millimetres near its surface."""
    scaled = [(axis - middle) / radius for axis, middle, radius in zip(points, centre, radii)]
    inner = np.sqrt(sum(axis * axis for axis in scaled))
    # |gradient| of the line above is slope / inner; dividing by it turns a relative distance into millimetres
    slope = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(scaled, radii)))
    return inner * (inner - 1) / np.maximum(slope, 1e-6)


def oval(x: np.ndarray, y: np.ndarray, wide: Any, deep: Any, power: float) -> np.ndarray:
    """Radial distance to a cylinder between an ellipse (power 2) and its box; ``wide`` and ``deep`` are half axes."""
    inner = (np.abs(x / wide) ** power + np.abs(y / deep) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / np.maximum(inner, 1e-3))


def smooth_maximum(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Intersection of two shapes whose common edge is rounded over about ``width`` millimetres."""
    return 0.5 * (first + second + np.sqrt((first - second) ** 2 + width**2))


def smooth_minimum(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    return -smooth_maximum(-first, -second, width)


def turned(points: Sequence[np.ndarray], centre: Vector, matrix: np.ndarray) -> list[np.ndarray]:
    """Coordinates around ``centre`` along the columns of a rotation matrix, float32."""
    x, y, z = (axis - np.float32(middle) for axis, middle in zip(points, centre))
    return [x * first + y * second + z * third for first, second, third in matrix.T.astype(np.float32)]


class Body:
    """A patient under construction: reference coordinates on the image grid, and the layers painted so far.

    Args:
        rng: of the geometry.
        axes: positions of the voxels in millimetres along right, anterior and superior.
    """

    def __init__(self, rng: np.random.Generator, axes: Sequence[np.ndarray]) -> None:
        self.rng = rng
        frame = rng.uniform(0.96, 1.07)
        scale = frame * np.array([1.0, rng.uniform(0.93, 1.05), 1.0])
        scale[2] = rng.uniform(0.94, 1.02)
        shift = rng.uniform(-1, 1, 3) * (4, 6, 3)
        self.axes = [(axis - offset) / size for axis, offset, size in zip(axes, shift, scale)]
        self.shape = tuple(len(axis) for axis in axes)
        mesh = np.meshgrid(*(axis.astype(np.float32) for axis in self.axes), indexing="ij", sparse=True)
        self.points = []
        for line, amplitude in zip(mesh, (5.0, 5.0, 4.0)):
            warp = amplitude * smooth_field(rng, self.axes, 75.0) + 1.2 * smooth_field(rng, self.axes, 35.0)
            self.points.append(line + np.clip(warp, -LARGEST_WARP, LARGEST_WARP))
        self.bumps = smooth_field(rng, self.axes, 22.0)  # unevenness of surfaces
        self.label = np.zeros(self.shape, np.uint8)
        self.layers: list[tuple[str, Region, np.ndarray]] = []
        self.everywhere: Region = (slice(None), slice(None), slice(None))
        self.wall = rng.uniform(12.0, 17.0)  # muscle around the cavity
        self.cavity = self._cavity()
        self.dome = self._dome()

    def _cavity(self) -> np.ndarray:
        """Radial distance to the inner surface of the abdominal wall, negative inside."""
        x, y, _ = self.points
        y = y - 5.0
        power = self.rng.uniform(2.15, 2.5)
        return oval(x, y, 131.0, 85.0, power)

    def _dome(self) -> np.ndarray:
        """Height over the diaphragm, negative below it; its two cupolas lie on either side of the heart's seat."""
        x, y, z = self.points
        right, left = 73 + self.rng.uniform(-4, 4), 65 + self.rng.uniform(-6, 5)
        height = right - 78 * (((x - 60) / 80) ** 2 + ((y - 14) / 82) ** 2) ** 2
        height = np.maximum(height, left - 78 * (((x + 64) / 80) ** 2 + ((y - 10) / 82) ** 2) ** 2)
        height = np.maximum(height, 62 - 40 * ((x / 60) ** 2 + ((y - 35) / 75) ** 2))
        # the surface is steep at the wall: half of the vertical distance is nearer to the true one
        return 0.7 * (z - np.maximum(height, -40))

    def near(self, low: Vector, high: Vector) -> Region:
        """The part of the grid that can hold a shape within ``low`` ... ``high`` (reference millimetres)."""
        margin = LARGEST_WARP + _EDGE + 4.0  # for the bumps
        bounds = []
        for axis, start, stop in zip(self.axes, low, high):
            bounds.append(slice(*np.searchsorted(axis, (start - margin, stop + margin))))
        return tuple(bounds)

    def at(self, region: Region) -> list[np.ndarray]:
        return [axis[region] for axis in self.points]

    def jitter(self, *spread: float) -> np.ndarray:
        return self.rng.uniform(-1, 1, len(spread)) * spread

    def paint(self, tissue: str, distance: np.ndarray, region: Region, *, label: int | None = None) -> None:
        """Lays a tissue over what is there. ``label`` 0 carves an organ; None leaves the label map as it is."""
        alpha = np.clip(0.5 - distance / _EDGE, 0, 1).astype(np.float32)
        self.layers.append((tissue, region, alpha))
        if label is not None:
            self.label[region][distance < 0] = label

    def ellipsoid(self, tissue: str, centre: Vector, radii: Vector, label: int | None = None) -> None:
        """Paints an ellipsoid inside the cavity or out of it, with an uneven surface."""
        centre, radii = np.asarray(centre, float), np.asarray(radii, float)
        region = self.near(centre - radii, centre + radii)
        self.paint(tissue, ellipsoid(self.at(region), centre, radii) + self.bumps[region], region, label=label)

    def tube_distance(self, points: Vectors, radii: Vector) -> tuple[np.ndarray, Region]:
        """Distance to a tube along straight pieces between ``points``, its radius linear between ``radii``."""
        points = np.asarray(points, float)
        largest = max(radii)
        region = self.near(points.min(0) - largest, points.max(0) + largest)
        voxels = self.at(region)
        distance = np.full_like(voxels[0], np.inf)
        for start, stop, first, last in zip(points[:-1], points[1:], radii[:-1], radii[1:]):
            along = stop - start
            share = sum((axis - origin) * step for axis, origin, step in zip(voxels, start, along))
            share = np.clip(share / float(along @ along), 0, 1)
            squared = sum((axis - (origin + share * step)) ** 2 for axis, origin, step in zip(voxels, start, along))
            distance = np.minimum(distance, np.sqrt(squared) - (first + share * (last - first)))
        return distance.astype(np.float32), region

    def tube(
        self, tissue: str, points: Vectors, radii: Vector, *, label: int | None = None, uneven: float = 0.5
    ) -> None:
        distance, region = self.tube_distance(points, radii)
        self.paint(tissue, distance + uneven * self.bumps[region], region, label=label)
