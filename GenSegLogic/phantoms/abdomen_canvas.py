"""A warped canvas on which organs are painted one over the other, as implicit shapes in a standard body.

The standard body's coordinates are LPS mm: x to the left, y backwards, z upwards, with the kidneys' hila near z = 0 and
the right dome of the diaphragm near z = 150. A patient's size, posture, breathing and a smooth random displacement are
all in the coordinates; the shapes themselves are simple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

Window = tuple[slice, slice, slice]


def bspline_matrix(lattice: int, step: float, points: np.ndarray) -> np.ndarray:
    """Cubic B-spline weights (len(points), lattice) for control points at ``step * (n - 1)``, n = 0, 1, ..."""
    position = np.clip(np.asarray(points) / step, 0, lattice - 3.000001) + 1
    cell = position.astype(int)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    matrix = np.zeros((len(position), lattice), np.float32)
    rows = np.arange(len(position))
    for offset in range(4):
        matrix[rows, np.clip(cell - 1 + offset, 0, lattice - 1)] += weights[:, offset]
    return matrix


def bspline_field(axes: Sequence[np.ndarray], step: float, rng: np.random.Generator, extent: float) -> np.ndarray:
    """A smooth Gaussian random field of about unit standard deviation on a grid, without kinks.

    Args:
        axes: coordinates (z, y, x) in mm of the grid's planes, within [-extent, extent].
        step: distance in mm between control points: the scale of the field.
        rng: source of the control points; their number depends on ``step`` and ``extent`` only.
        extent: half the width in mm of the cube in which the field is defined.
    """
    lattice = int(np.ceil(2 * extent / step)) + 4
    control = rng.standard_normal((lattice,) * 3).astype(np.float32) / 0.33  # variance of B-spline sums in 3D
    z, y, x = (bspline_matrix(lattice, step, axis + extent) for axis in axes)
    return np.tensordot(z, y @ (control @ x.T), axes=1)


def expand(half: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A field given at every other voxel along j and i, interpolated linearly to all voxels of ``shape``."""
    for axis in (1, 2):
        full = np.empty((*half.shape[:axis], shape[axis], *half.shape[axis + 1 :]), np.float32)
        before = (slice(None),) * axis
        full[(*before, slice(0, None, 2))] = half
        between = 0.5 * (half[(*before, slice(None, -1))] + half[(*before, slice(1, None))])
        full[(*before, slice(1, 2 * between.shape[axis], 2))] = between
        if shape[axis] % 2 == 0:
            full[(*before, slice(-1, None))] = half[(*before, slice(-1, None))]
        half = full
    return half


def smooth_maximum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Maximum of two signed distances with an edge rounded over ``width`` mm."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.maximum(a, b) + h * h * (width / 4)


def rotation(tilt: ArrayLike) -> np.ndarray:
    """3x3 rotation by degrees about x, y and z, in that order."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()


@dataclass
class Canvas:
    """Tissue and organ of every voxel of a grid, and the standard body's coordinates there.

    Attributes:
        x, y, z: (K, J, I) float32 coordinates of every voxel in the standard body, mm.
        to_index: 3x4 affine from (x, y, z) to (k, j, i), without the displacement.
        reach: by how many voxels the displacement may move a point along k, j, i.
        lumps: random fields of unit standard deviation, to make surfaces uneven.
        tissue: (K, J, I) uint8, see :mod:`.abdomen_tissues`.
        label: (K, J, I) uint8, number of the organ, 0 for none.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    to_index: np.ndarray
    reach: np.ndarray
    lumps: Sequence[np.ndarray]
    tissue: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.tissue = np.zeros(self.x.shape, np.uint8)
        self.label = np.zeros(self.x.shape, np.uint8)

    @property
    def whole(self) -> Window:
        """The window of all voxels."""
        return (slice(None), slice(None), slice(None))

    def window(self, low: ArrayLike, high: ArrayLike) -> Window:
        """Smallest window that surely holds the box between two corners (x, y, z) in mm."""
        box = np.array([low, high], float)
        corners = np.array([[box[bit >> axis & 1, axis] for axis in range(3)] for bit in range(8)])
        index = corners @ self.to_index[:, :3].T + self.to_index[:, 3]
        first = np.floor(index.min(0) - self.reach).astype(int)
        last = np.ceil(index.max(0) + self.reach).astype(int) + 1
        return tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(first, last, strict=True))  # type: ignore[return-value]

    def paint(self, window: Window, inside: np.ndarray, tissue: int, label: int = 0) -> None:
        """Give the voxels of ``window`` where ``inside`` holds a tissue and an organ."""
        self.tissue[window][inside] = tissue
        self.label[window][inside] = label

    def ellipsoid(
        self, center: ArrayLike, radii: ArrayLike, tilt: ArrayLike = (0, 0, 0), margin: float = 0.0
    ) -> tuple[Window, np.ndarray, np.ndarray]:
        """An ellipsoid.

        Args:
            center: x, y, z in mm.
            radii: along its own axes, mm.
            tilt: degrees about x, y and z.
            margin: mm around it that the window covers as well.

        Returns:
            Its window; the signed distance there in mm, negative inside, exact near the surface only; the local
            coordinates (3, ...) in units of the radii.
        """
        turn, center, radii = rotation(tilt), np.asarray(center, float), np.asarray(radii, float)
        half = np.sqrt((turn**2) @ (radii + margin) ** 2)
        window = self.window(center - half, center + half)
        offsets = [array[window] - np.float32(c) for array, c in zip((self.x, self.y, self.z), center, strict=True)]
        local = np.stack([
            sum(np.float32(turn[row, axis] / radii[axis]) * offsets[row] for row in range(3)) for axis in range(3)
        ])
        square = (local**2).sum(0)
        length = np.sqrt(square)
        gradient = np.sqrt(sum((local[axis] / np.float32(radii[axis])) ** 2 for axis in range(3)))
        distance = (square - length) / np.maximum(gradient, 1e-4)
        return window, np.where(square < 1e-4, -np.float32(radii.min()), distance), local

    def tube(
        self, points: np.ndarray, radii: np.ndarray, margin: float = 0.0, flat: float = 1.0
    ) -> tuple[Window, np.ndarray]:
        """A tube of varying radius through ``points`` (n, 3) in mm.

        Args:
            points: the centre line.
            radii: (n,) mm.
            margin: mm around it in which distances are wanted as well.
            flat: factor on its extent along y (0.7: flattened from front to back).

        Returns:
            Window and signed distance in mm (1e3 far away).
        """
        points, radii = np.asarray(points, np.float32), np.asarray(radii, np.float32)
        largest = float(radii.max()) + margin
        window = self.window(points.min(0) - largest, points.max(0) + largest)
        distance = np.full(self.x[window].shape, 1e3, np.float32)
        stretch = np.float32(1 / flat)
        for a, b, radius_a, radius_b in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            reach = max(radius_a, radius_b) + margin
            part = self.window(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
            here = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True))
            if min(p.stop - p.start for p in part) <= 0:
                continue
            x, y, z = self.x[part] - a[0], (self.y[part] - a[1]) * stretch, self.z[part] - a[2]
            direction = (b - a) * np.array([1, stretch, 1], np.float32)
            along = (x * direction[0] + y * direction[1] + z * direction[2]) / max(float(direction @ direction), 1e-6)
            np.clip(along, 0, 1, out=along)
            x -= along * direction[0]
            y -= along * direction[1]
            z -= along * direction[2]
            radius = radius_a + along * (radius_b - radius_a)
            found = np.sqrt(x * x + y * y + z * z) - radius
            np.minimum(distance[here], found, out=distance[here])
        return window, distance


def bent(points: Sequence[ArrayLike] | np.ndarray, pieces: int) -> np.ndarray:
    """A smooth curve (pieces + 1, 3) through ``points`` (Catmull-Rom)."""
    knots = np.asarray(points, float)
    position = np.linspace(0, len(knots) - 1.000001, pieces + 1)
    knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    cell = position.astype(int)
    t = (position - cell)[:, None]
    p0, p1, p2, p3 = (knots[cell + n] for n in range(4))
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)


def along(values: Sequence[float] | np.ndarray, pieces: int) -> np.ndarray:
    """``values`` at the knots of :func:`bent`, interpolated to its points."""
    knots = np.asarray(values, float)
    return np.interp(np.linspace(0, len(knots) - 1, pieces + 1), np.arange(len(knots)), knots)
