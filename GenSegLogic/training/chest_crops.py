"""The crops that every nodule recipe trains on: phantoms, and one real lung where the scan is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..progress import Progress, part
from .crops import Tile, draw_real_tiles, write_tiles

CHESTS = 132
REAL_TILES = 320
C3N = "deep-learning-with-pytorch__dlwpt-code/derived/C3N-00247/ct_lungcrop_half.nii.gz"


def real_scan() -> Path | None:
    """C3N-00247 (TCIA CPTAC-LSCC, CC BY) below $GENSEG_REALDATA or ../shared/realdata, if it is there."""
    folders = [os.environ.get("GENSEG_REALDATA"), Path(__file__).resolve().parents[3] / "shared" / "realdata"]
    for folder in folders:
        if folder and (Path(folder) / C3N).exists():
            return Path(folder) / C3N
    return None


def left_lung_crops(path: Path, count: int, seed: int) -> list[Tile]:
    """Crops of the scan's left lung alone: its nodule is in the right one, which no training may see."""
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


def training_crops(folder: Path, seed: int, progress: Progress, chests: int = CHESTS) -> list[Path]:
    """Folders with the training crops, drawn once and kept in ``folder``; and what they were made from in names."""
    phantoms, real = folder / "phantoms", folder / "real"
    if not (phantoms / "kinds.json").exists():
        workers = max(1, (os.cpu_count() or 2))
        write_tiles(phantoms, "train", chests, part(progress, 0, 0.95), workers, first=seed * 10_000)
    scan = real_scan()
    if scan is not None and not (real / "kinds.json").exists():
        write_tiles(real, "train", 0, progress, extra=left_lung_crops(scan, REAL_TILES, seed))
    progress(1.0, "crops are ready")
    return [phantoms, real] if scan is not None else [phantoms]
