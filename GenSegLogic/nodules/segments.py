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
A dense core thus has its own edge."""
CORE_SHARE = 0.4
"""Of the peak of a nodule's core: what is fainter is no part of the core (from validation)."""
GLASS_SHARE = 0.25
BLUR_MM = 1.0
"""A core's blur is a rim of so many mm, or of one voxel. What is above this part of its peak beyond the rim is ground
glass, and then the rim between is so too (both from validation)."""
TAIL_SHARE = 0.6
TAIL_MM = 3.0
"""What hangs on a nodule is none of it where a ball does not fit in whose radius is this part of the nodule's depth, or
so many mm where that is less (both from validation)."""

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
    by_peak: bool = True,
) -> Segmentation:
    """One segment per finding: the component of residual > threshold that the finding points at.

    Args:
        residual: HU that nodules add, on the input's grid, as ``residual.nrrd`` holds it.
        lungs: mask on the same grid, or None.
        findings: in the order of the segments; a finding without any voxel above the threshold has no segment, and none
            that points at the nodule of one before it.
        threshold_hu: absolute, in HU.
        by_peak: whether a voxel also needs its part of the peaks round it, as a residual's does.
    """
    labels = np.zeros(residual.shape, np.uint8 if len(findings) < 256 else np.uint16)
    segments = []
    for number, finding in enumerate(findings, start=1):
        window = window_around(residual, np.array(finding.center), finding.radius_mm)
        values = residual.voxels[window]
        if lungs is not None:
            values = np.where(lungs.voxels[window] > 0, values, 0)
        above = core_and_glass(values, residual, window, finding, threshold_hu) if by_peak else values > threshold_hu
        component = component_at(above, residual, window, finding)
        if component is None:
            continue
        component = filled_slices(without_tails(component, residual, window, finding), axial_axis(residual))
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


def core_and_glass(
    values: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding, threshold_hu: float
) -> np.ndarray:
    """Voxels (K, J, I) of a window that are dense enough for the finding's core, or are ground glass round it."""
    dense = dense_enough(values, residual.spacing, threshold_hu)
    core = component_at(dense, residual, window, finding)
    if core is None:
        return dense
    peak = float(np.percentile(values[core], 90))
    in_core = dense & (values > CORE_SHARE * peak)
    core = component_at(in_core, residual, window, finding)
    if core is None:
        return in_core
    return in_core | ground_glass(values > max(threshold_hu, GLASS_SHARE * peak), dense, core, residual.spacing)


def dense_enough(
    values: np.ndarray, spacing_ijk: np.ndarray, threshold_hu: float, reach_mm: float = PEAK_REACH_MM
) -> np.ndarray:
    """Voxels (K, J, I) above the threshold and above a part of the largest value in the box of the reach each way."""
    size = [2 * round(reach_mm / float(step)) + 1 for step in spacing_ijk[::-1]]
    return (values > threshold_hu) & (values > RELATIVE_THRESHOLD * ndimage.maximum_filter(values, size))


def ground_glass(above: np.ndarray, dense: np.ndarray, core: np.ndarray, spacing_ijk: np.ndarray) -> np.ndarray:
    """Voxels (K, J, I) above a threshold beyond a core's blur; of the blur, and of the dense, those next to them."""
    steps = spacing_ijk[::-1]
    in_blurs = steps / np.maximum(BLUR_MM, steps)  # distances in multiples of BLUR_MM, or of a voxel where that is more
    beyond = above & (ndimage.distance_transform_edt(~core, in_blurs) > 1)
    if not beyond.any():  # SciPy would measure from a corner
        return beyond
    return (above | dense) & (ndimage.distance_transform_edt(~beyond, in_blurs) <= 1)


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


def filled_slices(mask: np.ndarray, axis: int) -> np.ndarray:
    """A mask (K, J, I) without holes in any slice across an axis: nobody draws a nodule with holes."""
    return np.stack([ndimage.binary_fill_holes(one) for one in np.moveaxis(mask, axis, 0)], axis)


def axial_axis(grid: Volume) -> int:
    """The array axis (of k, j, i) that runs most along S."""
    return 2 - int(np.abs(grid.affine[2, :3]).argmax())


def nearness(mask: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding) -> np.ndarray:
    """Of every voxel of a mask (K, J, I) in the window, 1 at the finding and falling to 0 with the distance from it."""
    corner = np.array([part.start for part in window])
    points = residual.to_lps((np.argwhere(mask) + corner)[:, ::-1])
    distance = np.linalg.norm(points - np.array(finding.center), axis=1)
    return np.exp(-0.5 * (distance / (0.35 * finding.radius_mm)) ** 2)


def without_tails(
    component: np.ndarray, residual: Volume, window: tuple[slice, ...], finding: Finding
) -> np.ndarray:
    """A component without the vessels that hang on it, and what it leans on.

    Ours: an opening by a ball that grows with the nodule. What is left is one inner part, deep under the surface where
    the finding points, and what lies as near to it as the surface does, to a voxel along every axis.

    Args:
        component: bool (K, J, I), at least one voxel of it set; what lies in the window.
        residual: the volume that the window is part of.
        window: slices (k, j, i).
        finding: tells which of the deep parts is the nodule.

    Returns:
        bool (K, J, I), a part of the component.
    """
    steps = residual.spacing[::-1]
    depth = ndimage.distance_transform_edt(np.pad(component, 1), steps)[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(component)[np.argmax(depth[component] * nearness(component, residual, window, finding))]
    ball_mm = min(TAIL_SHARE * depth[tuple(deepest)], TAIL_MM)
    inner, _ = ndimage.label(depth >= ball_mm, np.ones((3, 3, 3)))
    away = ndimage.distance_transform_edt(inner != inner[tuple(deepest)], steps / (ball_mm + steps))
    return component & (away <= 1)
