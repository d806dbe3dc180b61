"""From probabilities to organs: the plausible component of each, back on the scan's own grid. No model runs here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..anatomy import ORGANS
from ..volume import Volume, resample

SMALLEST_ML = 0.3
"""A tenth of an adrenal gland, the smallest of the organs: anything smaller is noise."""
CERTAIN = 0.77
"""In the validation split, mean confidence was at most 0.74 in all places of less than ``least_ml`` that were taken for
a removed spleen or kidney, and 0.79 and more in all organs that are there but two, of which less than half was found.
"""
CANDIDATES = 3
"""Components of an organ that are looked at, the most certain first."""
PAIRS = (("right_kidney", "left_kidney"), ("right_adrenal", "left_adrenal"))
"""The first of a pair lies to the patient's right of the second. Liver and spleen may lie mirrored (situs inversus)."""


@dataclass(frozen=True)
class _Component:
    """A connected part of what may be an organ: its number, the sum of its probabilities, its middle along L in mm."""

    number: int
    weight: float
    left_mm: float


def plausible(probabilities: Mapping[str, np.ndarray], grid: Volume) -> dict[str, np.ndarray]:
    """One connected component of every organ, its holes filled; 0 elsewhere, everywhere where there is none.

    Of a pair, the two heaviest components that lie in the right order are taken, or the heavier one alone. Where
    organs overlap, the more probable one has the voxel, and what this cuts off an organ goes to the other one.

    Args:
        probabilities: organ -> (k, j, i) float32 in [0, 1], on ``grid``.
        grid: gives the affine; its axes may run anywhere.
    """
    labelled = {name: ndimage.label(values > 0.5)[0] for name, values in probabilities.items()}
    found = {name: _components(labelled[name], probabilities[name], grid) for name in probabilities}
    chosen = {name: components[0] if components else None for name, components in found.items()}
    for right, left in PAIRS:
        if chosen.get(right) and chosen.get(left):
            chosen[right], chosen[left] = _in_order(found[right], found[left])
    kept = {name: _only(probabilities[name], labelled[name], component) for name, component in chosen.items()}
    # The largest first: what its neighbours cut off it goes back to them before they are looked at.
    for values in sorted(kept.values(), key=lambda values: -float(values.sum())):
        best = np.max(list(kept.values()), axis=0)
        won = (values > 0.5) & (values >= best)
        numbered = ndimage.label(won)[0]
        parts = _components(numbered, values, grid)
        part = numbered == parts[0].number if parts else np.zeros(won.shape, bool)
        values[won & ~part] = 0
        values[ndimage.binary_fill_holes(part) & (best <= 0.5)] = 1.0
    return kept


def without_doubtful(organs: Mapping[str, np.ndarray], confidence: np.ndarray, grid: Volume) -> dict[str, np.ndarray]:
    """The organs of :func:`plausible`, with those emptied that are too small for a whole one and uncertain besides.

    Where an organ has been removed, what took its place is often taken for a little of it, but seldom for certain. An
    organ that reaches the scan's first or last slice may be whole outside of it.

    Args:
        organs: organ -> (k, j, i) float32 in [0, 1], on ``grid``, k from feet to head or back.
        confidence: (k, j, i) float32 in [0, 1].
        grid: gives the affine.
    """
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    kept = {}
    for name, values in organs.items():
        inside = values > 0.5
        small = inside.sum() * voxel_ml < ORGANS[name].least_ml
        cut_off = inside[0].any() or inside[-1].any()
        doubtful = small and not cut_off and confidence[inside].sum() < CERTAIN * inside.sum()
        kept[name] = np.zeros_like(values) if doubtful else values
    return kept


def _only(values: np.ndarray, labels: np.ndarray, component: _Component | None) -> np.ndarray:
    """Probabilities in one component and in a rim of a voxel round it, so that its border can be interpolated."""
    if component is None:
        return np.zeros_like(values)
    part = labels == component.number
    return np.where(ndimage.binary_dilation(part) & ((labels == 0) | part), values, 0)


def _components(labels: np.ndarray, probability: np.ndarray, grid: Volume) -> list[_Component]:
    """The heaviest components above the smallest volume, heaviest first."""
    count = int(labels.max())
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    weights = ndimage.sum_labels(probability, labels, numbers)
    least = SMALLEST_ML * 1000 / float(np.prod(grid.spacing))
    order = [index for index in np.argsort(-weights)[:CANDIDATES] if sizes[index] >= least]
    middles = ndimage.center_of_mass(labels > 0, labels, [index + 1 for index in order])
    return [_Component(int(index) + 1, float(weights[index]), float(grid.to_lps(np.array(middle[::-1]))[0]))
            for index, middle in zip(order, middles, strict=True)]


def _in_order(right: list[_Component], left: list[_Component]) -> tuple[_Component | None, _Component | None]:
    """The heaviest pair of which the first lies to the right of the second; one of them alone where none does."""
    pairs = [(a, b) for a, b in itertools.product(right, left) if a.left_mm < b.left_mm]
    if pairs:
        return max(pairs, key=lambda pair: pair[0].weight + pair[1].weight)
    return (right[0], None) if right[0].weight >= left[0].weight else (None, left[0])


def label_scan(probabilities: Mapping[str, np.ndarray], grid: Volume, scan: Volume) -> Volume:
    """Labels of ORGANS, uint8, on the grid of ``scan``: at each voxel the organ of highest probability above 0.5.

    Args:
        probabilities: organ -> (k, j, i) float32 on ``grid``.
        grid: gives the affine.
    """
    labels = np.zeros(scan.shape, np.uint8)
    best = np.full(scan.shape, 0.5, np.float32)
    for name, values in probabilities.items():
        window = _window(values > 0, grid, scan)
        if window is None:
            continue
        start = np.array([part.start for part in window][::-1])
        affine = scan.affine.copy()
        affine[:3, 3] = scan.to_lps(start)
        shape = [part.stop - part.start for part in window]
        there = resample(Volume(values, grid.affine), shape, affine, fill=0).voxels
        better = there > best[window]
        best[window][better] = there[better]
        labels[window][better] = ORGANS[name].label
    return Volume(labels, scan.affine, scan.name)


def _window(mask: np.ndarray, grid: Volume, scan: Volume) -> tuple[slice, slice, slice] | None:
    """The box of ``scan`` (k, j, i) that holds all of a mask on ``grid``; None if nothing lies in it."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return None
    corners = np.array(list(itertools.product(*((part.start - 1, part.stop) for part in boxes[0]))), float)
    indices = scan.to_indices(grid.to_lps(corners[:, ::-1]))[:, ::-1]
    low = np.maximum(np.floor(indices.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(indices.max(0)).astype(int) + 1, scan.shape)
    if (low >= high).any():
        return None
    k, j, i = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return k, j, i
