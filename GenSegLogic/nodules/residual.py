"""The residual of all regions on the scan's own grid, and the scan without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..volume import Volume, crop, resample_like
from .region import Region
from .segments import window_around


def combine(image: Volume, regions: Sequence[Region]) -> Volume:
    """What all nodules together add, in HU, on the grid of ``image``: float32, 0 outside the regions.

    Where regions overlap, the larger residual counts.
    """
    total = np.zeros(image.shape, np.float32)
    for region in regions:
        window = window_around(image, region.center, region.radius_mm + 2 * float(region.residual.spacing.max()))
        if any(part.stop <= part.start for part in window):
            continue
        start = [part.start for part in window][::-1]
        size = [part.stop - part.start for part in window][::-1]
        grid = crop(image.with_voxels(total), start, size, 0)
        values = resample_like(region.residual, grid, "linear", 0).voxels
        view = total[window]
        np.copyto(view, values, where=np.abs(values) > np.abs(view))
    return Volume(total, image.affine, "residual")


def without(image: Volume, residual: Volume) -> Volume:
    """The counterfactual: the scan minus the residual, in the scan's own type where that is an integer.

    The scan's texture stays, and outside the regions the two are the same to the bit.
    """
    voxels = image.voxels.copy()
    changed = residual.voxels != 0
    values = image.voxels[changed] - residual.voxels[changed]
    if np.issubdtype(voxels.dtype, np.integer):
        limits = np.iinfo(voxels.dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    voxels[changed] = values.astype(voxels.dtype)
    return Volume(voxels, image.affine, "counterfactual", image.metadata)
