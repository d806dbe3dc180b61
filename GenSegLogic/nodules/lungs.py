"""Lungs of a chest CT by threshold and shape: enough to say where to search, not a measurement."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

from ..errors import GenSegError
from ..volume import Volume, canonical_grid, resample

LUNG_GRID_MM = 2.5
AIR_HU = -420.0
CLOSING_MM = 14.0
ALONG_BORDER = 2.5
"""Air lies along the border of a slice if it touches it over more than so many times the root of its area: half a disc
does over 1.6 times, a corner over 2.8 times."""
SMALLEST_LUNG_ML = 150.0
"""Children and cut-off scans still hold this much lung; bowel gas seldom does."""


def lung_mask(image: Volume) -> Volume:
    """Both lungs with the vessels and nodules inside and against the pleura.

    Works on a 2.5 mm grid: air that does not lie along the border of a slice, large components, closed by 14 mm so that
    nodules against the chest wall are kept.

    Args:
        image: CT in HU, any orientation.

    Returns:
        uint8 mask on a 2.5 mm LPS grid that covers ``image``.

    Raises:
        GenSegError: if there is no lung in the scan.
    """
    shape, affine = canonical_grid(image, (LUNG_GRID_MM,) * 3)
    scanned = resample(image.with_voxels(np.ones(image.shape, np.uint8)), shape, affine, "nearest", 0).voxels > 0
    air = (resample(image, shape, affine, fill=-1024).voxels < AIR_HU) & scanned
    outside = np.stack([outside_of(*both) for both in zip(air, scanned, strict=True)])
    inside = ndimage.binary_opening(air & ~outside, iterations=1)
    labels, count = ndimage.label(inside)
    sizes_ml = ndimage.sum_labels(inside, labels, np.arange(1, count + 1)) * LUNG_GRID_MM**3 / 1000
    large = [n + 1 for n in np.argsort(sizes_ml)[::-1][:2] if sizes_ml[n] > max(0.12 * sizes_ml.max(), 15.0)]
    if not large or sizes_ml.max() < SMALLEST_LUNG_ML:
        raise GenSegError(
            f"{image.name}: no lung was found; nodules needs a chest CT in HU, or give a lung mask with --lungs."
        )
    mask = np.zeros_like(air)
    for label in large:
        mask |= close_by(with_cut_slices(labels == label, outside), CLOSING_MM / LUNG_GRID_MM)
    return Volume(mask.astype(np.uint8), affine, f"lungs of {image.name}")


def with_margin(lungs: Volume, margin_mm: float = LUNG_GRID_MM) -> Volume:
    """A lung mask grown by ``margin_mm``: nodules against the pleura reach under the surface that the closing draws."""
    distance = ndimage.distance_transform_edt(lungs.voxels == 0, sampling=lungs.spacing[::-1])
    return lungs.with_voxels((distance <= margin_mm).astype(np.uint8))


def outside_of(air: np.ndarray, scanned: np.ndarray) -> np.ndarray:
    """Air of a slice (J, I) that lies along the border of what was scanned; lungs that are cut off only reach it."""
    labels, count = ndimage.label(air)
    border = scanned & ~ndimage.binary_erosion(scanned)
    along = np.bincount(labels[border], minlength=count + 1)
    outside = along > ALONG_BORDER * np.sqrt(np.bincount(labels.ravel(), minlength=count + 1))
    outside[0] = False
    return outside[labels]


def with_cut_slices(lung: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """A lung (K, J, I) and what goes on in it of the outside: it lies along the border where much of it is cut off.

    It goes on in the lung of the slice above or below if that covers more than half of it.
    """
    lung = lung.copy()
    slices = range(len(lung))
    for next_to, k in (*pairwise(slices), *pairwise(slices[::-1])):  # what is added goes on in turn
        labels, _ = ndimage.label(outside[k])
        covered = np.bincount(labels[lung[next_to]], minlength=labels.max() + 1) > np.bincount(labels.ravel()) / 2
        covered[0] = False
        lung[k] |= covered[labels]
    return lung


def close_by(mask: np.ndarray, radius_voxels: float) -> np.ndarray:
    """Morphological closing by a ball, and filled holes; the scan's top and bottom count as lung-free."""
    pad = int(np.ceil(radius_voxels)) + 1
    padded = np.pad(mask, pad)
    grown = ndimage.distance_transform_edt(~padded) <= radius_voxels
    closed = ndimage.distance_transform_edt(grown) > radius_voxels
    closed = ndimage.binary_fill_holes(closed | padded)
    inner = slice(pad, -pad)
    return closed[inner, inner, inner]
