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
    with np.errstate(invalid="ignore", divide="ignore"):
        certain = ndimage.mean(confidence.voxels, labels.voxels, numbers)
    return [
        {"organ": name, **row, "confidence": round(float(sure), 4) if row["mean_intensity"] is not None else None}
        for name, row, sure in zip(organs, measure_labels(image, labels, numbers), certain, strict=True)
    ]


def measure_labels(image: Volume, labels: Volume, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """``volume_ml`` and ``mean_intensity`` (None without a voxel) of every label of ``numbers``, on the scan's grid."""
    counts = np.bincount(labels.voxels.ravel(), minlength=max(numbers, default=0) + 1)[list(numbers)]
    with np.errstate(invalid="ignore", divide="ignore"):
        intensity = ndimage.mean(image.voxels.astype(np.float32), labels.voxels, numbers)
    voxel_ml = float(np.prod(labels.spacing)) / 1000
    return [
        {"volume_ml": round(int(count) * voxel_ml, 2), "mean_intensity": round(float(mean), 2) if count else None}
        for count, mean in zip(counts, intensity, strict=True)
    ]
