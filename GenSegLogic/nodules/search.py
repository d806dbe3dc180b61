"""The search for candidates: the predictor's own map of logits over the whole lung, then a closer look at its peaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ..networks.predictors import NodulePredictor
from ..volume import Volume, canonical_grid, crop, resample, resample_like
from .models import normalise
from .region import field_volume, to_tensor

SEARCH_SPACING_MM = 1.5
CLOSE_SPACING_MM = 0.75
TILE_VOXELS = 96
TILE_MARGIN = 16
"""Context round every tile, dropped from its map: more than the predictors' receptive field needs to settle."""
PEAK_DISTANCE_MM = 9.0
CLOSE_VOXELS = 48
CLOSE_REACH_MM = 7.5


@dataclass(frozen=True)
class Candidate:
    """A peak of the map: centre (3,) in LPS mm, and the logits at the search spacing and at the close one."""

    center: np.ndarray
    far_logit: float
    near_logit: float

    @property
    def probability(self) -> float:
        """p(nodule): the mean of both looks."""
        return float(1 / (1 + np.exp(-0.5 * (self.far_logit + self.near_logit))))


def logit_volume(
    image: Volume,
    lungs: Volume,
    predictor: NodulePredictor,
    window_hu: tuple[float, float],
    progress: Callable[[float], None],
    spacing_mm: float = SEARCH_SPACING_MM,
) -> Volume:
    """The predictor's map of logits over the lungs' bounding box, on its own grid; tiles without lung are -inf.

    Memory is that of one tile: the scan is resampled tile by tile.
    """
    shape, affine = canonical_grid(lungs, (spacing_mm,) * 3)
    box = _bounding_box(resample(lungs, shape, affine, "nearest", 0).voxels > 0, margin=4)
    stride = predictor.stride
    device = next(predictor.parameters()).device
    counts = [-(-(part.stop - part.start) // step) for part, step in zip(box, stride, strict=True)]
    result = np.full(counts, -np.inf, np.float32)
    start = np.array([part.start for part in box])
    grid = Volume(np.broadcast_to(np.float32(0), shape), affine)
    lung_grid = resample(lungs, shape, affine, "nearest", 0).voxels > 0
    starts = [range(0, part.stop - part.start, TILE_VOXELS) for part in box]
    tiles = [(k, j, i) for k in starts[0] for j in starts[1] for i in starts[2]]
    for number, tile in enumerate(tiles):
        progress(number / len(tiles))
        low = start + np.array(tile)
        size = np.minimum(TILE_VOXELS, np.array([part.stop for part in box]) - low)
        if not lung_grid[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))].any():
            continue
        padded = [int(-(-n // 8) * 8 + 2 * TILE_MARGIN) for n in size]
        window = crop(grid, (low - TILE_MARGIN)[::-1], padded[::-1], 0)
        hu = resample(image, tuple(padded), window.affine, "linear", -1024)
        tensor = normalise(torch.from_numpy(hu.voxels.astype(np.float32)), window_hu)[None, None].to(device)
        with torch.inference_mode():
            logits = predictor.logit_map(tensor)[0].float().cpu().numpy()
        inner, outer = [], []
        for axis, step in enumerate(stride):
            first = tile[axis] // step
            count = min(-(-int(size[axis]) // step), counts[axis] - first)
            inner.append(slice(TILE_MARGIN // step, TILE_MARGIN // step + count))
            outer.append(slice(first, first + count))
        result[tuple(outer)] = logits[tuple(inner)]
    steps = np.array(stride[::-1], float)
    map_affine = affine.copy()
    map_affine[:3, :3] = affine[:3, :3] * steps
    corner = start[::-1] + (steps - 1) / 2
    map_affine[:3, 3] = affine[:3, :3] @ corner + affine[:3, 3]
    return Volume(result, map_affine, "logits")


def find_candidates(
    image: Volume,
    lungs: Volume,
    predictor: NodulePredictor,
    window_hu: tuple[float, float],
    progress: Callable[[float], None] = lambda fraction: None,
    most: int = 24,
) -> list[Candidate]:
    """Peaks of the map inside the lungs, looked at again at 0.75 mm, the most probable first; at most ``most``."""
    logits = logit_volume(image, lungs, predictor, window_hu, lambda fraction: progress(0.7 * fraction))
    inside = resample_like(lungs, logits, "nearest", 0).voxels > 0
    spacing = logits.spacing[::-1]
    # What lies outside must not hide the peak of a nodule that leans on it.
    finite = np.where(inside, np.maximum(logits.voxels, -30), -30)
    size = np.maximum(1, 2 * np.round(PEAK_DISTANCE_MM / spacing).astype(int) // 2 * 2 + 1)
    peaks = np.argwhere((ndimage.maximum_filter(finite, tuple(size)) == finite) & inside & np.isfinite(logits.voxels))
    far = finite[tuple(peaks.T)]
    order = np.argsort(-far, kind="stable")[: 2 * most]
    candidates = []
    for number, index in enumerate(order):
        progress(0.7 + 0.3 * number / len(order))
        center = logits.to_lps(peaks[index][::-1])
        candidates.append(look_closer(image, center, float(far[index]), predictor, window_hu))
    candidates.sort(key=lambda candidate: -candidate.probability)
    kept: list[Candidate] = []
    for candidate in candidates:
        if all(np.linalg.norm(candidate.center - other.center) > PEAK_DISTANCE_MM for other in kept):
            kept.append(candidate)
    return kept[:most]


def look_closer(
    image: Volume, center: np.ndarray, far_logit: float, predictor: NodulePredictor, window_hu: tuple[float, float]
) -> Candidate:
    """The same place at 0.75 mm: its logit there, and a centre refined to where the evidence lies."""
    field = field_volume(image, center, CLOSE_SPACING_MM, CLOSE_VOXELS)
    device = next(predictor.parameters()).device
    with torch.inference_mode():
        logits = predictor.logit_map(to_tensor(field, window_hu, device))[0].float().cpu().numpy()
    steps = np.array(predictor.stride, float)
    positions = (np.indices(logits.shape).reshape(3, -1).T + 0.5) * steps - 0.5
    points = field.to_lps(positions[:, ::-1])
    near = np.linalg.norm(points - center, axis=1) <= CLOSE_REACH_MM
    values = logits.ravel()[near]
    weights = np.exp(values - values.max())
    refined = (points[near] * weights[:, None]).sum(0) / weights.sum()
    near_logit = float(values.max() + np.log(weights.sum()))
    # Where the close look sees nothing, the coarse place is the better one.
    return Candidate(refined if near_logit > 0 else np.asarray(center, float), far_logit, near_logit)


def _bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(part.start - margin, 0), min(part.stop + margin, n)) for part, n in zip(box, mask.shape, strict=True)
    )
