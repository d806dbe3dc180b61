"""From residual to nodules: threshold, components, segments. No model runs here, so a slider can call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..results import Code, Segment, Segmentation
from ..volume import Volume

CATEGORY = Code("SCT", "49755003", "Morphologically Altered Structure")
TYPE = Code("SCT", "27925004", "Nodule")
REGION = Code("SCT", "39607008", "Lung")
COLORS = ((0.90, 0.25, 0.20), (0.95, 0.65, 0.10), (0.20, 0.60, 0.90), (0.55, 0.30, 0.80), (0.15, 0.70, 0.45))
SMALLEST_MM3 = 8.0
"""A ball of 2.5 mm: anything smaller is noise."""
RELATIVE_THRESHOLD = 0.45
PEAK_REACH_MM = 1.5
"""What is dense blurs beyond its surface: a voxel also needs this part of the peak within this reach (from validation).
A dense core thus has its own edge, and leaves the ground glass farther out alone."""
FLAT_PER_MM = 0.6
"""The ground glass close by is told from the core's blur by its slope: it changes by less than this part of itself per
mm (from validation)."""

TAIL_SHARE = 0.6
TAIL_MM = 3.0
"""What hangs on a nodule and is thinner than this part of the nodule, or than a ball of this radius, is none of it
(from validation)."""


Point = tuple[float, float, float]


def as_point(center: np.ndarray) -> Point:
    """An array of three coordinates as a tuple of floats."""
    left, posterior, superior = (float(c) for c in center)
    return left, posterior, superior


@dataclass(frozen=True)
class Finding:
    """A place where a nodule is suspected: centre in LPS mm, reach of its region in mm, p(nodule)."""

    center: Point
    radius_mm: float
    probability: float


def nodules_from_residual(
    residual: Volume,
    lungs: Volume | None,
    findings: Sequence[Finding],
    threshold_hu: float,
    relative: float = RELATIVE_THRESHOLD,
) -> Segmentation:
    """One segment per finding: the component of residual > threshold that the finding points at.

    Args:
        residual: HU that nodules add, on the input's grid, as ``residual.nrrd`` holds it.
        lungs: mask on the same grid, or None.
        findings: in the order of the segments; a finding without any voxel above the threshold has no segment, and none
            that points at the nodule of one before it.
        threshold_hu: absolute, in HU.
        relative: part of the peak within PEAK_REACH_MM that a voxel needs besides.
    """
    labels = np.zeros(residual.shape, np.uint8 if len(findings) < 256 else np.uint16)
    segments = []
    for number, finding in enumerate(findings, start=1):
        window = window_around(residual, np.array(finding.center), finding.radius_mm)
        values = residual.voxels[window]
        above = dense_enough(values, residual.spacing, threshold_hu, relative)
        above |= halo(values, above, residual.spacing, threshold_hu)
        if lungs is not None:
            above &= lungs.voxels[window] > 0
        component = component_at(above, residual, window, finding)
        if component is None:
            continue
        component = without_tails(component, residual, window, finding)
        free = labels[window] == 0  # a filled hole may hold another finding
        if free[component].mean() < 0.5:
            continue  # it is another finding's
        labels[window][component & free] = number
        color = COLORS[(number - 1) % len(COLORS)]
        segments.append(Segment(number, f"Nodule {number}", color, CATEGORY, TYPE, REGION))
    return Segmentation(residual.with_voxels(labels, "nodules"), tuple(segments))


def window_around(volume: Volume, center: np.ndarray, radius_mm: float) -> tuple[slice, ...]:
    """Slices (k, j, i) of the box that holds a ball; empty where the ball lies outside."""
    corners = center + radius_mm * np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    indices = volume.to_indices(corners)[:, ::-1]
    low = np.floor(indices.min(0)).astype(int)
    high = np.ceil(indices.max(0)).astype(int) + 1
    return tuple(slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(low, high, volume.shape, strict=True))


def dense_enough(
    values: np.ndarray,
    spacing_ijk: np.ndarray,
    threshold_hu: float,
    relative: float = RELATIVE_THRESHOLD,
    reach_mm: float = PEAK_REACH_MM,
) -> np.ndarray:
    """Voxels (K, J, I) above the threshold and above a part of the largest value in the box of the reach each way."""
    size = [2 * round(reach_mm / float(step)) + 1 for step in spacing_ijk[::-1]]
    return (values > threshold_hu) & (values > relative * ndimage.maximum_filter(values, size))


def halo(values: np.ndarray, core: np.ndarray, spacing_ijk: np.ndarray, threshold_hu: float) -> np.ndarray:
    """Voxels (K, J, I) round a core that are above the threshold, and flat over two of them each way in their slice."""
    slopes = [
        ndimage.correlate1d(values, [-0.5, 0, 0.5], axis) / float(step) for axis, step in enumerate(spacing_ijk[::-1])
    ]
    slope = np.sqrt(sum(np.square(one) for one in slopes))
    return ndimage.binary_opening((values > threshold_hu) & (slope < FLAT_PER_MM * values) & ~core, np.ones((1, 2, 2)))


def component_at(
    above: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding
) -> np.ndarray | None:
    """The component with most of the residual near the finding, its holes filled; None if there is none."""
    labels, count = ndimage.label(above, np.ones((3, 3, 3)))
    if count == 0:
        return None
    weight = residual.voxels[window][above] * nearness(above, residual, window, finding)
    mass = np.bincount(labels[above], weight, minlength=count + 1)
    component = ndimage.binary_fill_holes(labels == int(mass.argmax()))
    voxel_mm3 = float(np.prod(residual.spacing))
    if component.sum() * voxel_mm3 < SMALLEST_MM3:
        return None
    return component


def nearness(mask: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding) -> np.ndarray:
    """Of every voxel of a mask (K, J, I) in the window, 1 at the finding and falling to 0 with the distance from it."""
    corner = np.array([part.start for part in window])
    points = residual.to_lps((np.argwhere(mask) + corner)[:, ::-1])
    distance = np.linalg.norm(points - np.array(finding.center), axis=1)
    return np.exp(-0.5 * (distance / (0.35 * finding.radius_mm)) ** 2)


def without_tails(
    component: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding
) -> np.ndarray:
    """A component (K, J, I) without the vessels that hang on it, and what it leans on.

    Ours: an opening by a ball that grows with the nodule. What is left is one inner part, deep under the surface where
    the finding points, and what lies as near to it as the surface does, to a voxel along every axis.
    """
    steps = residual.spacing[::-1]
    depth = ndimage.distance_transform_edt(np.pad(component, 1), steps)[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(component)[np.argmax(depth[component] * nearness(component, residual, window, finding))]
    ball_mm = min(TAIL_SHARE * depth[tuple(deepest)], TAIL_MM)
    inner, _ = ndimage.label(depth >= ball_mm, np.ones((3, 3, 3)))
    away = ndimage.distance_transform_edt(inner != inner[tuple(deepest)], steps / (ball_mm + steps))
    return component & (away <= 1)
