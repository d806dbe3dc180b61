"""The grid and the grey values that the networks of DiffuSAM see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ...errors import GenSegError
from ...volume import Volume, canonical_grid, resample


@dataclass(frozen=True)
class CanonicalGrid:
    """Square axial slices centred on the body, from feet to head, along L, P, S.

    Attributes:
        size: pixels along an edge of a slice.
        spacing_mm: pixel size.
        slice_mm: smallest and largest distance of slices; a scan's own distance is kept between them.
        window_hu: mapped to [0, 1]; None where grey values have no unit (MR): then it is the range from the 1st to the
            99.5th percentile of the body.
    """

    size: int = 160
    spacing_mm: float = 2.2
    slice_mm: tuple[float, float] = (3.0, 8.0)
    window_hu: tuple[float, float] | None = None

    @classmethod
    def from_metadata(cls, image: Mapping[str, Any]) -> CanonicalGrid:
        """From the ``image`` metadata of a bundle of kind ``organs``."""
        window = image["window_hu"]
        return cls(int(image["size"]), float(image["spacing_mm"][0]), tuple(image["slice_mm"]),
                   None if window is None else tuple(window))

    def to_metadata(self, modality: str) -> dict[str, Any]:
        """The ``image`` metadata of a bundle."""
        return {
            "modality": modality,
            "window_hu": None if self.window_hu is None else list(self.window_hu),
            "window_percentiles": [LOW_PERCENTILE, HIGH_PERCENTILE] if self.window_hu is None else None,
            "spacing_mm": [self.spacing_mm, self.spacing_mm, self.slice_mm[1]],
            "slice_mm": list(self.slice_mm),
            "size": self.size,
            "orientation": "LPS",
        }

    def for_modality(self, modality: str) -> CanonicalGrid:
        """The same grid with the grey values that ``CT`` or ``MR`` wants, for networks that learned from the other."""
        if modality != "CT":
            return replace(self, window_hu=None)
        return self if self.window_hu is not None else replace(self, window_hu=CT_WINDOW_HU)

    def slices(self, image: Volume) -> int:
        """How many slices the canonical grid of a scan has."""
        return self._whole(image)[0][0]

    def _whole(self, image: Volume) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape and affine of a grid that holds all of a scan."""
        spacing_k = float(np.clip(_slice_distance(image), *self.slice_mm))
        return canonical_grid(image, (self.spacing_mm, self.spacing_mm, spacing_k))

    def place(self, image: Volume) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape (k, j, i) and affine of the canonical grid for a scan in any orientation.

        Raises:
            GenSegError: if the scan shows nothing but one grey value.
        """
        shape, affine = self._whole(image)
        small = resample(image, shape, affine)
        center = _body_extent(small).mean(1)
        start = np.round(center - (self.size - 1) / 2)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, 0] * start[0] + affine[:3, 1] * start[1]
        return (shape[0], self.size, self.size), affine

    def apply(self, image: Volume, reference: Volume | None = None) -> Volume:
        """The scan on its canonical grid (or on that of ``reference``), float32 in [0, 1]; outside of it 0."""
        shape, affine = self.place(reference or image)
        low, high = self.window_hu if self.window_hu is not None else robust_range(image)
        scaled = np.clip((np.asarray(image.voxels, np.float32) - low) / (high - low), 0, 1)
        return resample(Volume(scaled, image.affine, image.name, image.metadata), shape, affine, fill=0)

    def apply_labels(self, labels: Volume, image: Volume) -> np.ndarray:
        """Labels (k, j, i) uint8 on the canonical grid of ``image``; what fits no uint8 is none, 0."""
        shape, affine = self.place(image)
        whole = np.round(labels.voxels)
        small = np.where((whole >= 0) & (whole <= 255), whole, 0).astype(np.uint8)
        return resample(labels.with_voxels(small), shape, affine, "nearest").voxels


CT_WINDOW_HU = (-160.0, 240.0)
COARSE_MM = 6.0
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.5


def robust_range(image: Volume) -> tuple[float, float]:
    """1st and 99.5th percentile of what is brighter than the air around the body.

    Raises:
        GenSegError: if all voxels are equal.
    """
    values = np.asarray(image.voxels, np.float32)
    values = values[np.isfinite(values)]
    threshold = _air_threshold(values)
    body = values[values > threshold]
    low = float(np.percentile(values, LOW_PERCENTILE))
    high = float(np.percentile(body, HIGH_PERCENTILE)) if body.size else low
    if not high > low:
        raise GenSegError(f"{image.name} holds nothing but one grey value; give another scan.")
    return low, high


def _air_threshold(values: np.ndarray) -> float:
    """A tenth of the way from the 1st to the 99th percentile."""
    low, high = np.percentile(values, (1.0, 99.0))
    return float(low + 0.1 * (high - low))


def body_size_mm(image: Volume) -> tuple[float, float]:
    """Width and depth of all but the outermost hundredths of the body in a scan in any orientation. Fast, coarse."""
    steps = np.maximum(1, (COARSE_MM / image.spacing).astype(int))
    affine = image.affine @ np.diag([*steps, 1.0])
    coarse = Volume(np.ascontiguousarray(image.voxels[:: steps[2], :: steps[1], :: steps[0]]), affine, image.name)
    shape, affine = canonical_grid(coarse, (COARSE_MM,) * 3)
    width, depth = np.diff(_body_extent(resample(coarse, shape, affine)), axis=1)[:, 0] * COARSE_MM
    return float(width), float(depth)


def _body_extent(volume: Volume) -> np.ndarray:
    """First and last pixel of the body along i and along j, (2, 2): its largest part, so that arms do not count."""
    body = volume.voxels > _air_threshold(np.asarray(volume.voxels, np.float32))
    parts, count = ndimage.label(body)
    if count > 1:
        body = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    extent = []
    for axis in (2, 1):
        profile = body.sum(axis=tuple(other for other in range(3) if other != axis)).astype(float)
        total = profile.sum()
        if total == 0:
            extent.append((0, volume.shape[axis] - 1))
            continue
        # Not the outermost pixels, which may be a table or noise.
        share = np.cumsum(profile) / total
        extent.append((int(np.searchsorted(share, 0.02)), int(np.searchsorted(share, 0.98))))
    return np.array(extent, float)


def _slice_distance(image: Volume) -> float:
    """Distance of planes along the axis that runs most nearly from feet to head."""
    directions = image.affine[:3, :3] / image.spacing
    return float(image.spacing[int(np.argmax(np.abs(directions[2])))])
