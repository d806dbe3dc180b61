"""The search for candidates: the predictor's own maps of logits over the whole lung; a closer look at their peaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ..errors import GenSegError
from ..networks.predictors import NodulePredictor
from ..volume import Volume, canonical_grid, resample, resample_like
from .fields import COARSE_MM, FINE_MM, look, sigmoid
from .models import normalise

SEARCH_SPACINGS_MM = (COARSE_MM, FINE_MM)
"""The coarse map sees large nodules whole; small ones, and those on vessels, are peaks of the fine one alone."""
TILE_VOXELS = 96
TILE_MARGIN = 16
"""Context round every tile, dropped from its map: more than the predictors' receptive field needs to settle."""
BOX_MARGIN = 4
PEAK_DISTANCE_MM = 9.0
LOOKS_PER_MAP = 12
FINE_WEIGHT = 0.7
"""What the fine look counts for (from validation)."""
PLACES = 400.0
"""Places in a lung that a nodule might be at; before any look, the odds of each are one to so many."""


@dataclass(frozen=True)
class Candidate:
    """A place in the lung: centre (3,) in LPS mm, and the logits of looks at the fine and the coarse spacing."""

    center: np.ndarray
    fine_logit: float
    coarse_logit: float

    @property
    def logit(self) -> float:
        """The weighted mean of both looks."""
        return FINE_WEIGHT * self.fine_logit + (1 - FINE_WEIGHT) * self.coarse_logit

    @property
    def probability(self) -> float:
        """p(nodule): both looks, and that of the many places of a lung hardly any has a nodule."""
        return sigmoid(self.logit - np.log(PLACES))


def logit_volume(
    image: Volume,
    lungs: Volume,
    predictor: NodulePredictor,
    window_hu: tuple[float, float],
    progress: Callable[[float], None],
    spacing_mm: float,
) -> Volume:
    """The predictor's map of logits over the lungs' bounding box, on its own grid; tiles without lung are -inf.

    Memory is that of one tile: scan and lungs are resampled tile by tile.
    """
    low, high = _extent(lungs)
    low, high = low - BOX_MARGIN * spacing_mm, high + BOX_MARGIN * spacing_mm
    counts = np.ceil((high - low) / spacing_mm).astype(int)[::-1]  # along k, j, i
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low + spacing_mm / 2
    stride = np.array(predictor.stride)
    device = next(predictor.parameters()).device
    result = np.full(-(-counts // stride), -np.inf, np.float32)
    tiles = [np.array(tile) for tile in np.ndindex(*(-(-counts // TILE_VOXELS)))]
    for number, tile in enumerate(tiles):
        progress(number / len(tiles))
        start = tile * TILE_VOXELS
        size = np.minimum(TILE_VOXELS, counts - start)
        if not _part_of(lungs, affine, start, size, "nearest", 0).voxels.any():
            continue
        padded = -(-size // 8) * 8 + 2 * TILE_MARGIN
        hu = _part_of(image, affine, start - TILE_MARGIN, padded, "linear", -1024)
        tensor = normalise(torch.from_numpy(hu.voxels.astype(np.float32)), window_hu)[None, None].to(device)
        with torch.inference_mode():
            logits = predictor.logit_map(tensor)[0].float().cpu().numpy()
        margin, cells, first = TILE_MARGIN // stride, -(-size // stride), start // stride
        inner = tuple(slice(m, m + n) for m, n in zip(margin, cells, strict=True))
        outer = tuple(slice(m, m + n) for m, n in zip(first, cells, strict=True))
        result[outer] = logits[inner]
    map_affine = affine.copy()
    map_affine[:3, :3] = affine[:3, :3] * stride[::-1]
    map_affine[:3, 3] = affine[:3, 3] + spacing_mm * (stride[::-1] - 1) / 2
    return Volume(result, map_affine, "logits")


def find_candidates(
    image: Volume,
    lungs: Volume,
    predictor: NodulePredictor,
    window_hu: tuple[float, float],
    progress: Callable[[float], None] = lambda fraction: None,
    most: int = 24,
) -> list[Candidate]:
    """Peaks of the maps inside the lungs, looked at again at both spacings: the ``most`` most probable, best first."""
    share = 0.35
    peaks: list[np.ndarray] = []
    for number, spacing in enumerate(SEARCH_SPACINGS_MM):

        def told(fraction: float, number: int = number) -> None:
            progress(share * (number + fraction))

        for peak in peaks_of(logit_volume(image, lungs, predictor, window_hu, told, spacing), lungs)[:LOOKS_PER_MAP]:
            if _is_apart(peak, peaks, PEAK_DISTANCE_MM / 2):
                peaks.append(peak)
    candidates = []
    for number, peak in enumerate(peaks):
        progress(2 * share + (1 - 2 * share) * number / len(peaks))
        candidates.append(look_closer(image, peak, predictor, window_hu))
    candidates.sort(key=lambda candidate: -candidate.logit)
    kept: list[Candidate] = []
    for candidate in candidates:
        if _is_apart(candidate.center, [other.center for other in kept], PEAK_DISTANCE_MM):
            kept.append(candidate)
    return kept[:most]


def peaks_of(logits: Volume, lungs: Volume) -> np.ndarray:
    """Points (n, 3) in LPS mm: the maxima of a map within PEAK_DISTANCE_MM and inside the lungs, the highest first."""
    inside = (resample_like(lungs, logits, "nearest", 0).voxels > 0) & np.isfinite(logits.voxels)
    # What lies outside must not hide the peak of a nodule that leans on it.
    values = np.where(inside, logits.voxels, -np.inf)
    size = 2 * np.maximum(1, np.round(PEAK_DISTANCE_MM / logits.spacing[::-1])).astype(int) + 1
    peaks = np.argwhere((ndimage.maximum_filter(values, tuple(size)) == values) & inside)
    order = np.argsort(-values[tuple(peaks.T)], kind="stable")
    return logits.to_lps(peaks[order][:, ::-1])


def look_closer(
    image: Volume, center: np.ndarray, predictor: NodulePredictor, window_hu: tuple[float, float]
) -> Candidate:
    """The logits of a place at both spacings, and a centre refined to where the fine look sees it."""
    place, fine = np.asarray(center, float), look(image, center, predictor, window_hu, FINE_MM)
    if fine.logit > 0:  # else the map's place is the better one
        # Again from there: a peak beside a large nodule has only its edge within reach, which is no place of its own.
        fine = look(image, fine.center, predictor, window_hu, FINE_MM)
        place = fine.center
    return Candidate(place, fine.logit, look(image, place, predictor, window_hu, COARSE_MM).logit)


def _is_apart(point: np.ndarray, others: list[np.ndarray], distance_mm: float) -> bool:
    return all(np.linalg.norm(point - other) > distance_mm for other in others)


def _extent(lungs: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner (3,) in LPS mm of the box that holds the lungs.

    Raises:
        GenSegError: if they are too small for the grid of the search.
    """
    shape, affine = canonical_grid(lungs, (COARSE_MM,) * 3)
    boxes = ndimage.find_objects((resample(lungs, shape, affine, "nearest", 0).voxels > 0).astype(np.uint8))
    if not boxes:
        raise GenSegError(
            f"{lungs.name}: the lung mask is too small to search, for at {COARSE_MM:g} mm nothing of it is left; give "
            "a mask of the whole lungs, or seed points."
        )
    box = boxes[0]
    corners = np.array([[part.start - 0.5, part.stop - 0.5] for part in box[::-1]]).T
    low, high = corners * np.diag(affine)[:3] + affine[:3, 3]
    return low, high


def _part_of(
    volume: Volume, affine: np.ndarray, start: np.ndarray, size: np.ndarray, interpolation: str, fill: float
) -> Volume:
    """A box of a volume on the grid of ``affine``; ``start`` and ``size`` along k, j, i."""
    own = affine.copy()
    own[:3, 3] = affine[:3, 3] + affine[:3, :3] @ start[::-1]
    return resample(volume, tuple(int(n) for n in size), own, interpolation, fill)
