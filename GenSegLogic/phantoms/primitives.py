"""Analytic shapes drawn on axis-aligned grids with partial volume, and the blur and noise of a scanner.

A grid is three sorted coordinate vectors (z, y, x) in LPS mm; arrays on it are indexed [k, j, i].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Axes = tuple[np.ndarray, ...]
"""Coordinates of the voxel centres along k (z), j (y) and i (x), each ascending, in mm."""


def occupancy(signed_distance: np.ndarray, width_mm: float) -> np.ndarray:
    """Fraction of a voxel inside a surface, from the signed distance in mm (negative inside)."""
    return np.clip(0.5 - signed_distance / width_mm, 0.0, 1.0)


def interpolation_matrix(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Matrix (len(fine), len(coarse)) of linear interpolation between two sets of coordinates, clamped at the ends."""
    position = np.clip(np.interp(fine, coarse, np.arange(len(coarse))), 0, len(coarse) - 1.000001)
    lower = position.astype(int)
    fraction = (position - lower).astype(np.float32)
    matrix = np.zeros((len(fine), len(coarse)), np.float32)
    rows = np.arange(len(fine))
    matrix[rows, lower] = 1 - fraction
    matrix[rows, lower + 1] += fraction
    return matrix


def interpolate(field: np.ndarray, coarse: Axes, fine: Axes) -> np.ndarray:
    """Trilinear interpolation of ``field`` (..., K, J, I) given on ``coarse`` axes onto ``fine`` axes."""
    windows, matrices = [], []
    for source, target in zip(coarse, fine, strict=True):
        first = max(int(np.searchsorted(source, target[0])) - 2, 0)
        last = min(int(np.searchsorted(source, target[-1])) + 2, len(source))
        last = max(last, first + 2)
        first = min(first, last - 2)
        windows.append(slice(first, last))
        matrices.append(interpolation_matrix(source[first:last], target))
    block = field[..., windows[0], windows[1], windows[2]]
    block = np.einsum("...kji,xi->...kjx", block, matrices[2], optimize=True)
    block = np.einsum("...kjx,yj->...kyx", block, matrices[1], optimize=True)
    return np.einsum("...kyx,zk->...zyx", block, matrices[0], optimize=True)


@dataclass
class Capsules:
    """Tapering tubes: segment n runs from start[n] to end[n] (x, y, z in mm) with the radii at both ends in mm."""

    start: np.ndarray
    end: np.ndarray
    radius_start: np.ndarray
    radius_end: np.ndarray

    @classmethod
    def empty(cls) -> Capsules:
        """No tube at all."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0))

    @classmethod
    def chain(cls, points: np.ndarray, radii: np.ndarray) -> Capsules:
        """One tube through ``points`` (n, 3) with ``radii`` (n,)."""
        return cls(points[:-1], points[1:], radii[:-1], radii[1:])

    @classmethod
    def join(cls, parts: Sequence[Capsules]) -> Capsules:
        """All tubes of several sets."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def widened(self, factor: float = 1.0, extra_mm: float = 0.0) -> Capsules:
        """The same tubes with radii times ``factor`` plus ``extra_mm``."""
        radii = [radius * factor + extra_mm for radius in (self.radius_start, self.radius_end)]
        return Capsules(self.start, self.end, *radii)

    def near(self, axes: Axes, margin_mm: float) -> np.ndarray:
        """Indices of the tubes that come within ``margin_mm`` of the grid's box."""
        low = np.array([axes[2][0], axes[1][0], axes[0][0]]) - margin_mm
        high = np.array([axes[2][-1], axes[1][-1], axes[0][-1]]) + margin_mm
        radius = np.maximum(self.radius_start, self.radius_end)[:, None]
        first, last = np.minimum(self.start, self.end), np.maximum(self.start, self.end)
        reaches = (first - radius <= high) & (last + radius >= low)
        return np.flatnonzero(reaches.all(axis=1))

    def draw(self, axes: Axes, width_mm: float) -> np.ndarray:
        """Occupancy in [0, 1] of the union of all tubes on a grid; ``width_mm`` is the width of the soft edge.

        Tubes thinner than a voxel are dimmed to the fraction of the voxel that they fill.
        """
        z_axis, y_axis, x_axis = (axis.astype(np.float32) for axis in axes)
        result = np.zeros((len(z_axis), len(y_axis), len(x_axis)), np.float32)
        for index in self.near(axes, width_mm):
            a, b = self.start[index], self.end[index]
            radius_a, radius_b = self.radius_start[index], self.radius_end[index]
            reach = max(radius_a, radius_b) + width_mm
            low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
            window = tuple(
                slice(int(np.searchsorted(axis, low[c])), int(np.searchsorted(axis, high[c])))
                for axis, c in ((z_axis, 2), (y_axis, 1), (x_axis, 0))
            )
            z = (z_axis[window[0]] - a[2])[:, None, None]
            y = (y_axis[window[1]] - a[1])[None, :, None]
            x = (x_axis[window[2]] - a[0])[None, None, :]
            direction = (b - a).astype(np.float32)
            length_squared = max(float(direction @ direction), 1e-6)
            along = np.clip((x * direction[0] + y * direction[1] + z * direction[2]) / length_squared, 0, 1)
            distance = np.sqrt(
                (x - along * direction[0]) ** 2 + (y - along * direction[1]) ** 2 + (z - along * direction[2]) ** 2
            )
            radius = radius_a + along * (radius_b - radius_a)
            dimming = np.minimum(1.0, (2 * radius / width_mm) ** 2)
            filled = dimming * np.clip(0.5 - (distance - radius) / width_mm, 0, 1)
            np.maximum(result[window], filled, out=result[window])
        return result


def smooth_noise(shape: tuple[int, ...], scale_voxels: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field of unit standard deviation with a correlation length of ``scale_voxels``."""
    coarse = tuple(max(2, int(np.ceil(n / max(scale_voxels, 1.0))) + 3) for n in shape)
    seedling = rng.standard_normal(coarse).astype(np.float32)
    axes = tuple(np.arange(n, dtype=float) for n in coarse)
    offsets = rng.random(len(shape))
    fine = tuple(
        np.linspace(offset, offset + (n - 1) / max(scale_voxels, 1.0), n)
        for n, offset in zip(shape, offsets, strict=True)
    )
    # Cubic weights would be smoother; linear ones are enough below the scanner's blur.
    field = interpolate(seedling, axes, fine)
    return field / max(float(field.std()), 1e-6)


@dataclass(frozen=True)
class Scanner:
    """How a CT image is formed.

    Attributes:
        spacing_mm: in-plane voxel size.
        thickness_mm: slice thickness and distance between slices.
        blur_mm: full width at half maximum of the in-plane point spread.
        noise_hu: standard deviation of the noise.
        sharpness: 0 for a soft kernel (noise of long correlation) to 1 for a sharp one (noise of high frequency).
    """

    spacing_mm: float = 0.7
    thickness_mm: float = 1.25
    blur_mm: float = 1.2
    noise_hu: float = 25.0
    sharpness: float = 0.3

    @classmethod
    def random(cls, rng: np.random.Generator, thickness_mm: tuple[float, float] = (0.7, 5.0)) -> Scanner:
        """A scanner and protocol as clinics use them: thin slices are commoner and noisier than thick ones."""
        low, high = thickness_mm
        thickness = low * (high / low) ** (rng.random() ** 1.4)
        sharpness = float(rng.random())
        noise = float(rng.uniform(8, 22) * (1 + 2.2 * sharpness) * (1.5 / (thickness + 0.5)) ** 0.5)
        return cls(
            spacing_mm=float(rng.uniform(0.55, 0.95)),
            thickness_mm=float(thickness),
            blur_mm=float(rng.uniform(1.3, 1.8) - 0.8 * sharpness),
            noise_hu=noise,
            sharpness=sharpness,
        )

    def oversampling(self) -> int:
        """Sub-slices drawn per slice, so that thick slices average over what they contain."""
        return max(1, int(np.ceil(self.thickness_mm / 0.9)))

    def fine_axes(self, axes: Axes) -> Axes:
        """The grid to draw on: as ``axes``, with every slice split into sub-slices."""
        count = self.oversampling()
        step = self.thickness_mm / count
        offsets = (np.arange(count) - (count - 1) / 2) * step
        return (axes[0][:, None] + offsets[None, :]).ravel(), axes[1], axes[2]

    def expose(self, hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Turn an ideal image on :meth:`fine_axes` into a noisy image on the scanner's own slices, float32 HU."""
        sigma = self.blur_mm / 2.355 / self.spacing_mm
        image = ndimage.gaussian_filter1d(hu, sigma, axis=1)
        image = ndimage.gaussian_filter1d(image, sigma, axis=2)
        count = self.oversampling()
        # Slice profiles overlap a little beyond the nominal thickness.
        image = ndimage.gaussian_filter1d(image, max(0.3 * count, 0.35), axis=0)
        image = image.reshape(-1, count, *image.shape[1:]).mean(axis=1)
        return image + self.noise(image.shape, rng)

    def noise(self, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
        """Correlated noise in HU on the scanner's grid."""
        white = rng.standard_normal(shape, dtype=np.float32)
        soft = ndimage.gaussian_filter(white, (0.3, 1.1, 1.1))
        soft /= soft.std()
        sharp = white - 0.9 * ndimage.gaussian_filter(white, (0, 1.0, 1.0))
        sharp = ndimage.gaussian_filter(sharp, (0.3, 0.45, 0.45))
        sharp /= sharp.std()
        noise = self.sharpness * sharp + (1 - self.sharpness) * soft
        return self.noise_hu / noise.std() * noise
