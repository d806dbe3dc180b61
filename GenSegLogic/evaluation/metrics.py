"""Overlap, surface distances, bootstrap intervals and the free-response curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

RESAMPLES = 4000
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the curve."""


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient of two masks of one shape, in [0, 1]; 1 where both are empty."""
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    total = int(prediction.sum()) + int(truth.sum())
    return 2.0 * int((prediction & truth).sum()) / total if total else 1.0


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm between two surfaces.

    Attributes:
        mean: symmetric mean: over the voxels of both surfaces, each to the nearest of the other.
        percentile95: the 95 % Hausdorff distance, the larger of both directions.
    """

    mean: float
    percentile95: float


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing_ijk: Sequence[float] | np.ndarray
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks (K, J, I); None where one of them is empty.

    Surface voxels are those with a face towards the outside. As grids are never sheared, the affine matters through the
    spacing alone.

    Args:
        prediction, truth: masks of one shape.
        spacing_ijk: voxel size in mm along i, j, k, as :attr:`GenSegLogic.Volume.spacing` gives it.
    """
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if not prediction.any() or not truth.any():
        return None
    (box,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, truth)]
    sampling = tuple(float(step) for step in spacing_ijk)[::-1]
    there, back = (
        ndimage.distance_transform_edt(~other, sampling)[surface]
        for surface, other in (surfaces, surfaces[::-1])
    )
    return SurfaceDistances(
        mean=float(np.concatenate([there, back]).mean()),
        percentile95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (n >= 1); the same seed gives the same interval.

    For a paired difference, give the differences of the pairs.
    """
    sample = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@dataclass(frozen=True)
class Mark:
    """A candidate of a scan as the free-response curve sees it.

    Attributes:
        probability: in [0, 1].
        nodule: number of the nodule whose mask holds the candidate's centre; 0: none, a false positive; negative: a
            finding that does not count either way.
    """

    probability: float
    nodule: int


def froc(scans: Sequence[Sequence[Mark]], nodules: int) -> list[tuple[float, float, float]]:
    """The free-response curve: (false positives per scan, sensitivity, probability) from the strictest threshold on.

    A nodule is found once: further hits on it are neither hits nor false positives.

    Args:
        scans: marks of every scan, scans without any nodule included.
        nodules: how many there are to be found, in all scans.
    """
    marks = sorted(
        ((mark.probability, number, mark.nodule) for number, scan in enumerate(scans) for mark in scan), reverse=True
    )
    found: set[tuple[int, int]] = set()
    false_positives = 0
    curve = []
    for position, (probability, scan, nodule) in enumerate(marks):
        if nodule > 0:
            found.add((scan, nodule))
        elif nodule == 0:
            false_positives += 1
        # Candidates of one probability pass a threshold together.
        if position + 1 == len(marks) or marks[position + 1][0] < probability:
            curve.append((false_positives / max(len(scans), 1), len(found) / max(nodules, 1), probability))
    return curve


def operating_point(curve: Sequence[tuple[float, float, float]], rate: float) -> tuple[float, float, float]:
    """The most sensitive point of a curve with at most ``rate`` false positives per scan; (0, 0, 1) without one."""
    allowed = [point for point in curve if point[0] <= rate]
    return max(allowed, key=lambda point: (point[1], -point[0]), default=(0.0, 0.0, 1.0))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: (n,) numbers.
        positive: (n,) booleans.

    Returns:
        In [0, 1]; None where one of the two kinds is missing.
    """
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return None
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
