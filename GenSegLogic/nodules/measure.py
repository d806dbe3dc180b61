"""What a reader reports of a nodule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..results import Segmentation
from ..volume import Volume
from .segments import Finding, axial_axis

COLUMNS = (
    "nodule",
    "center_l_mm",
    "center_p_mm",
    "center_s_mm",
    "long_axis_mm",
    "short_axis_mm",
    "mean_axis_mm",
    "volume_mm3",
    "solid_percent",
    "mean_hu",
    "probability",
)
SOLID_HU = -300.0
"""Denser than this counts as the solid part."""


def measure(image: Volume, segmentation: Segmentation, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One row of COLUMNS per segment; lengths in mm, centres in LPS mm.

    Axes are taken in the axial slice with the longest diameter (Fleischner: long axis, and the short axis
    perpendicular to it).
    """
    labelmap = segmentation.labelmap
    rows = []
    boxes = ndimage.find_objects(labelmap.voxels)  # one pass over the scan, not one for each segment
    for segment in segmentation.segments:
        box = boxes[segment.label - 1]
        corner = [part.start for part in box]
        voxels = np.argwhere(labelmap.voxels[box] == segment.label) + corner
        certain = {"probability": round(findings[segment.label - 1].probability, 4)}
        rows.append({"nodule": segment.label, **measure_voxels(image, voxels), **certain})
    return rows


def measure_voxels(image: Volume, voxels: np.ndarray) -> dict[str, Any]:
    """COLUMNS but the number and the probability, of voxels (n, 3; k, j, i); without any, only the volume is known."""
    measured = COLUMNS[1:-1]
    if not len(voxels):
        return {**dict.fromkeys(measured), "volume_mm3": 0.0}
    hu = image.voxels[tuple(voxels.T)].astype(float)
    long_axis, short_axis = axial_axes(image, voxels)
    values = (
        *(round(float(c), 2) for c in image.to_lps(voxels[:, ::-1]).mean(0)),
        round(long_axis, 2),
        round(short_axis, 2),
        round((long_axis + short_axis) / 2, 2),
        round(len(voxels) * float(np.prod(image.spacing)), 1),
        round(100 * float((hu > SOLID_HU).mean()), 1),
        round(float(hu.mean()), 1),
    )
    return dict(zip(measured, values, strict=True))


def axial_axes(grid: Volume, voxels: np.ndarray) -> tuple[float, float]:
    """Longest axial diameter of voxels (n, 3; k, j, i), edge to edge, and the widest extent across it, in mm."""
    slice_axis = axial_axis(grid)
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    corners = np.array([[a, b] for a in (-0.5, 0.5) for b in (-0.5, 0.5)])
    best = (0.0, 0.0)
    for position in np.unique(voxels[:, slice_axis]):
        members = voxels[voxels[:, slice_axis] == position].astype(float)
        outline = np.repeat(members, 4, axis=0)
        outline[:, in_plane] += np.tile(corners, (len(members), 1))
        points = grid.to_lps(np.unique(outline, axis=0)[:, ::-1])
        pair = _diameter(points)
        if pair[0] > best[0]:
            best = pair
    return best


def _diameter(points: np.ndarray) -> tuple[float, float]:
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist, squareform

    # The slice is a plane: its own two coordinates, from the principal directions.
    centred = points - points.mean(0)
    plane = np.linalg.svd(centred, full_matrices=False)[2][:2]
    flat = centred @ plane.T
    hull = flat[ConvexHull(flat).vertices]
    distances = squareform(pdist(hull))
    a, b = np.unravel_index(int(distances.argmax()), distances.shape)
    along = (hull[b] - hull[a]) / max(distances[a, b], 1e-9)
    across = hull @ np.array([-along[1], along[0]])
    return float(distances[a, b]), float(across.max() - across.min())
