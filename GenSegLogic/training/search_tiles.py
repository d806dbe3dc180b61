"""Tiles at the peaks of a predictor's own maps of whole scans: what a search with it would look at, nodule or not.

Tiles that are drawn blindly hardly ever show the few things that a search takes for nodules, such as an aorta that
bulges into the lung. A tile lies where the predictor says, and all that is read of the truth is its crops' bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..evaluation.cases import SCAN_PIXEL_MM, on_axes
from ..networks.predictors import NodulePredictor
from ..nodules.fields import field_volume
from ..nodules.lungs import lung_mask, with_margin
from ..nodules.search import SEARCH_SPACINGS_MM, logit_volume, peaks_of
from ..phantoms.chest import make_chest, make_scan
from ..phantoms.primitives import Scanner
from ..phantoms.splits import Split
from ..volume import resample
from .data import WINDOW_HU
from .tiles import TILE_VOXELS, TILES_PER_CHEST, Tile

NODULES = (0, 6)
"""Fewer a scan than in the tiles that are drawn blindly: most peaks shall lie on none."""
SHIFT_VOXELS = 9.0
"""Peaks lie so far off the middle of their tile along every axis, at most: in one crop or another."""


def draw_search_tiles(network: NodulePredictor, split: Split, number: int) -> Iterator[Tile]:
    """Tiles at the highest peaks of both maps of a whole scan of the split's patient ``number``."""
    seed = split.first_seed + number
    rng = np.random.default_rng([34, seed])
    chest = make_chest(seed, replace(split.options, nodules=NODULES))
    scanner = replace(Scanner.random(rng, split.thickness_mm), spacing_mm=SCAN_PIXEL_MM)
    voxels, _, labels, axes = make_scan(chest, seed, scanner)
    image = on_axes(axes, np.round(voxels).astype(np.int16), f"patient {number}")
    truth = image.with_voxels((labels > 0).astype(np.float32))
    lungs = with_margin(lung_mask(image))
    for spacing in SEARCH_SPACINGS_MM:
        with torch.autocast("cpu", torch.bfloat16):
            logits = logit_volume(image, lungs, network, WINDOW_HU, lambda fraction: None, spacing)
        for peak in peaks_of(logits, lungs)[: TILES_PER_CHEST // len(SEARCH_SPACINGS_MM)]:
            center = peak + rng.uniform(-SHIFT_VOXELS, SHIFT_VOXELS, 3) * spacing
            field = field_volume(image, center, spacing, TILE_VOXELS)
            mask = (resample(truth, field.shape, field.affine, "linear", 0).voxels > 0.5).astype(np.uint8)
            yield Tile(np.round(field.voxels).astype(np.int16), mask, spacing, bool(mask.any()), "", 0.0)
