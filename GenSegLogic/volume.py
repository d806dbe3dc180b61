"""Volume: voxels with the affine that places them in the patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Volume:
    """A scalar volume.

    Attributes:
        voxels: array in k, j, i order (slice, row, column).
        affine: 4x4 float64, maps (i, j, k, 1) to patient LPS millimetres. Never sheared; may be oblique or left-handed.
        name: what messages call it, usually the file name.
        metadata: what the file said besides (``modality`` where known), plain JSON values.
    """

    voxels: np.ndarray
    affine: np.ndarray
    name: str = "volume"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxel counts in k, j, i order."""
        return self.voxels.shape

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def with_voxels(self, voxels: np.ndarray, name: str | None = None) -> Volume:
        """The same grid with other voxels.

        Raises:
            ValueError: if the shape differs.
        """
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels of shape {voxels.shape} do not fit a grid of shape {self.voxels.shape}")
        return Volume(voxels, self.affine, name or self.name, self.metadata)

    def to_lps(self, indices_ijk: np.ndarray) -> np.ndarray:
        """Continuous voxel indices (..., 3) in i, j, k order -> LPS mm (..., 3)."""
        return np.asarray(indices_ijk, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_indices(self, points_lps: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) -> continuous voxel indices (..., 3) in i, j, k order."""
        return (np.asarray(points_lps, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
