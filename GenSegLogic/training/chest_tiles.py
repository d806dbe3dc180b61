"""The tiles that the chest recipes train on: phantoms, and one real lung where the scan is at hand."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..phantoms.splits import first_phantom
from ..progress import Progress, part
from .tiles import Tile, draw_nodule_tiles, draw_real_tiles, write_tiles

if TYPE_CHECKING:
    from ..networks.predictors import NodulePredictor

CHESTS = 252
HELD_OUT_CHESTS = 8
REAL_TILES = 320
SEARCHED_SCANS = 16
DRAWN = "drawn.json"
"""What tiles were drawn with, beside them; written last."""
C3N = "deep-learning-with-pytorch__dlwpt-code/derived/C3N-00247/ct_lungcrop_half.nii.gz"


def real_scan() -> Path | None:
    """C3N-00247 (TCIA CPTAC-LSCC, CC BY) below $GENSEG_REALDATA or ../shared/realdata, if it is there."""
    folders = [os.environ.get("GENSEG_REALDATA"), Path(__file__).resolve().parents[3] / "shared" / "realdata"]
    for folder in folders:
        if folder and (Path(folder) / C3N).exists():
            return Path(folder) / C3N
    return None


def left_lung_tiles(path: Path, count: int, seed: int) -> list[Tile]:
    """Tiles of the scan's left lung alone: its nodule is in the right one, which no training may see."""
    from ..nodules.lungs import lung_mask
    from ..volume import read_volume, resample_like

    image = read_volume(path)
    lungs = resample_like(lung_mask(image), image, "nearest", 0).voxels > 0
    middle = float(image.to_lps(np.argwhere(lungs)[:, ::-1])[:, 0].mean())
    positions = image.to_lps(np.stack(np.meshgrid(np.arange(image.shape[2]), [0], [0], indexing="ij"), -1))[:, 0, 0, 0]
    left = positions > middle + 15  # 15 mm of mediastinum apart; left is where LPS x grows
    columns = np.flatnonzero(left)
    window = slice(int(columns.min()), int(columns.max()) + 1)
    return draw_real_tiles(image.voxels[:, :, window], lungs[:, :, window], image.spacing, count, seed)


def training_tiles(folder: Path, seed: int, progress: Progress, minutes: float, chests: int = CHESTS) -> list[Path]:
    """Folders with the training tiles, drawn once for a seed and a number of chests and kept below ``folder``.

    Drawing stops after ``minutes``, with however many of the ``chests`` phantoms there are by then.
    """
    phantoms, real = folder / "phantoms", folder / "real"
    _keep(phantoms, seed, chests, lambda: write_tiles(
        phantoms, "train", chests, part(progress, 0, 0.9), first=first_phantom(seed), minutes=minutes))
    if (scan := real_scan()) is not None:
        _keep(real, seed, REAL_TILES, lambda: write_tiles(
            real, "train", 0, progress, extra=left_lung_tiles(scan, REAL_TILES, seed)))
    progress(1.0, "the tiles are ready")
    return [phantoms, real] if _is_drawn(real, seed, REAL_TILES) else [phantoms]


def held_out_tiles(folder: Path, seed: int, progress: Progress) -> Path:
    """Folder with tiles of phantoms of the split ``held-out``, for the curves."""
    held_out = folder / "held-out"
    _keep(held_out, seed, HELD_OUT_CHESTS, lambda: write_tiles(
        held_out, "held-out", HELD_OUT_CHESTS, progress, first=first_phantom(seed)))
    return held_out


def nodule_tiles(folder: Path, split: str, seed: int, progress: Progress, minutes: float = math.inf) -> Path:
    """Folder with tiles round every nodule of a split's phantoms, with which the supervised upper bound is trained."""
    drawn = folder / f"{split}-nodules"
    chests = HELD_OUT_CHESTS if split == "held-out" else CHESTS
    _keep(drawn, seed, chests, lambda: write_tiles(
        drawn, split, chests, progress, first=first_phantom(seed), minutes=minutes, draw=draw_nodule_tiles))
    return drawn


def search_tiles(folder: Path, network: NodulePredictor, seed: int, progress: Progress) -> Path:
    """``folder``, with tiles at what ``network`` would look at in SEARCHED_SCANS scans of other training phantoms."""
    from .search_tiles import draw_search_tiles

    _keep(folder, seed, SEARCHED_SCANS, lambda: write_tiles(
        folder, "train", SEARCHED_SCANS, progress, first=first_phantom(seed) + CHESTS,
        draw=partial(draw_search_tiles, network)))
    return folder


def _keep(folder: Path, seed: int, count: int, draw: Callable[[], None]) -> None:
    """Draw the tiles of ``folder``, unless they lie there and were drawn with the same seed and number asked for."""
    if not _is_drawn(folder, seed, count):
        shutil.rmtree(folder, ignore_errors=True)
        draw()
        (folder / DRAWN).write_text(json.dumps({"seed": seed, "count": count}))


def _is_drawn(folder: Path, seed: int, count: int) -> bool:
    try:
        return json.loads((folder / DRAWN).read_text()) == {"seed": seed, "count": count}
    except (OSError, ValueError):  # not there, or cut
        return False
