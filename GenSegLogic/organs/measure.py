"""What a table says of every organ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..anatomy import ORGANS
from ..volume import Volume

COLUMNS = ("organ", "volume_ml", "mean_intensity", "confidence")


def measure(image: Volume, labels: Volume, confidence: Volume, organs: Sequence[str]) -> list[dict[str, Any]]:
    """One row of COLUMNS per organ, in the order of their labels; an organ without a voxel has its volume alone.

    Args:
        image: the scan; ``mean_intensity`` has its unit (HU in CT).
        labels: numbers of ORGANS, on the same grid.
        confidence: in [0, 1], on the same grid; a row gives the mean over the organ.
        organs: names.
    """
    numbers = [ORGANS[name].label for name in organs]
    counts = np.bincount(labels.voxels.ravel(), minlength=len(ORGANS) + 1)[numbers]
    with np.errstate(invalid="ignore", divide="ignore"):
        intensity = ndimage.mean(image.voxels.astype(np.float32), labels.voxels, numbers)
        certain = ndimage.mean(confidence.voxels, labels.voxels, numbers)
    voxel_ml = float(np.prod(labels.spacing)) / 1000
    return [
        dict(zip(COLUMNS, (
            name,
            round(int(count) * voxel_ml, 2),
            round(float(mean), 2) if count else None,
            round(float(sure), 4) if count else None,
        ), strict=True))
        for name, count, mean, sure in zip(organs, counts, intensity, certain, strict=True)
    ]
