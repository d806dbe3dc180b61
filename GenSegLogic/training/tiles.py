"""Crops of chest phantoms (and of one real lung) for training: images, one bit each, and masks kept apart.

Crops come in tiles: a tile of 48 voxels' edge is eight crops of 24, each with its own bit "there is a nodule in here".
A tile's position is drawn in the lungs, blind to the nodules inside it: uniformly, or on a vessel, where a network that
searches for nodules errs most. Half the tiles are drawn until one turns up that holds a nodule. The masks go into a
file of their own, which only the supervised upper bound and the choice of thresholds read: training of the predictors
opens ``images.npy`` and ``labels.npy`` alone.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..phantoms.chest import Chest, make_chest, make_scan
from ..phantoms.nodules import random_nodule
from ..phantoms.primitives import Scanner, interpolate
from ..phantoms.splits import SPLITS, Split
from ..progress import Progress

TILE_VOXELS = 48
CROP_VOXELS = 24
SPACINGS_MM = (0.75, 1.5)
TILES_PER_CHEST = 24
TRACE_VOXELS = 40
"""Fewer voxels of a nodule than this in a crop, and a reader could not say: the crop has no bit."""


@dataclass(frozen=True)
class Tile:
    """Eight crops: image int16 HU and mask uint8, both (48, 48, 48) k, j, i; spacing in mm; is there a nodule."""

    image: np.ndarray
    mask: np.ndarray
    spacing_mm: float
    label: bool
    kind: str
    diameter_mm: float


def crop_bits(mask: np.ndarray) -> np.ndarray:
    """The bits of a tile's eight crops, (2, 2, 2) int8: 1 with a nodule, 0 without, -1 with a mere trace."""
    half = CROP_VOXELS
    counts = mask.reshape(2, half, 2, half, 2, half).sum(axis=(1, 3, 5), dtype=int)
    return np.select([counts >= TRACE_VOXELS, counts == 0], [1, 0], -1).astype(np.int8)


def tile_label(chest: Chest, center: np.ndarray, half_mm: float) -> tuple[bool | None, str, float]:
    """The bit of a cube: True if the centre of a nodule lies inside, False if no nodule reaches in, None if in between.

    Also the kind and diameter in mm of the largest nodule inside ("" and 0 without one).
    """
    label: bool | None = False
    kind, diameter = "", 0.0
    for nodule in chest.nodules:
        offset = float(np.abs(nodule.center - center).max())
        if offset < half_mm - 1.0:
            if nodule.diameter_mm > diameter:
                kind, diameter = nodule.kind, nodule.diameter_mm
            label = True
        elif offset < half_mm + 1.4 * nodule.radius and label is False:
            label = None
    return label, kind, diameter


def scan_box(chest: Chest, center: np.ndarray, spacing_mm: float, scanner: Scanner, seed: int) -> Tile:
    """Scan a cube round ``center`` (x, y, z mm) and resample it to the crop's grid, as the task does with scans."""
    half = TILE_VOXELS * spacing_mm / 2
    margin = np.array([scanner.spacing_mm] * 2 + [scanner.thickness_mm]) * 2
    phase = np.random.default_rng(seed).random(3) * margin / 2
    low, high = center - half - margin + phase, center + half + margin + phase
    image, _, labels, axes = make_scan(chest, seed, scanner, (low, high))
    steps = (np.arange(TILE_VOXELS) - (TILE_VOXELS - 1) / 2) * spacing_mm
    grid = tuple(center[axis] + steps for axis in (2, 1, 0))
    resampled = interpolate(image, axes, grid)
    mask = interpolate((labels > 0).astype(np.float32), axes, grid) > 0.5
    return Tile(np.round(resampled).astype(np.int16), mask.astype(np.uint8), spacing_mm, bool(mask.any()), "", 0.0)


def random_vessel_points(chest: Chest, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` points (n, 3) in x, y, z mm within 10 mm of a vessel of more than 2 mm across, thick ones preferred."""
    points, radii = chest.tree_points[:, :3], chest.tree_points[:, 3]
    weight = np.where(radii > 1.0, radii, 0)
    chosen = points[rng.choice(len(points), size=count, p=weight / weight.sum())]
    return chosen + rng.uniform(-10, 10, (count, 3))


def draw_tiles(split: Split, number: int, count: int = TILES_PER_CHEST) -> Iterator[Tile]:
    """``count`` tiles of the split's patient ``number``: half with a nodule, half on a vessel, in both spacings."""
    seed = split.first_seed + number
    chest = make_chest(seed, split.options)
    rng = np.random.default_rng([31, seed])
    for index in range(count):
        spacing = SPACINGS_MM[index % 2]
        wanted = (index // 2) % 2 == 0
        half = TILE_VOXELS * spacing / 2
        points = random_vessel_points if (index // 4) % 2 else Chest.random_lung_points
        for center in points(chest, 400, rng):
            label, kind, diameter = tile_label(chest, center, half)
            if label is wanted:
                scanner = Scanner.random(rng, split.thickness_mm)
                crop = scan_box(chest, center, spacing, scanner, int(rng.integers(2**31)))
                yield Tile(crop.image, crop.mask, spacing, label, kind, diameter)
                break


def draw_nodule_tiles(split: Split, number: int) -> Iterator[Tile]:
    """Tiles with a nodule in the middle, of the split's patient ``number``: each nodule in both spacings.

    As in the benchmark the slices are at most half as thick as the nodule is wide: thicker ones hide it.
    """
    seed = split.first_seed + number
    chest = make_chest(seed, split.options)
    rng = np.random.default_rng([33, seed])
    thin, thick = split.thickness_mm
    for nodule in chest.nodules[: TILES_PER_CHEST // len(SPACINGS_MM)]:
        for spacing in SPACINGS_MM:
            scanner = Scanner.random(rng, (thin, min(thick, nodule.diameter_mm / 2)))
            center = nodule.center + rng.uniform(-0.5, 0.5, 3) * spacing  # no grid knows where the centre lies in it
            tile = scan_box(chest, center, spacing, scanner, int(rng.integers(2**31)))
            yield Tile(tile.image, tile.mask, spacing, True, nodule.kind, nodule.diameter_mm)


def draw_real_tiles(
    image_hu: np.ndarray, lung: np.ndarray, spacing_ijk: np.ndarray, count: int, seed: int
) -> list[Tile]:
    """Crops of a real lung without nodules, half of them with a phantom nodule blended in.

    Args:
        image_hu, lung: (K, J, I) scan in HU and mask of the part of the lung that may be used.
        spacing_ijk: voxel size in mm along i, j, k.
        count, seed: how many, and of which random positions.
    """
    rng = np.random.default_rng([32, seed])
    axes = tuple(np.arange(n) * float(s) for n, s in zip(image_hu.shape, spacing_ijk[::-1], strict=True))
    inside = np.argwhere(lung)
    crops = []
    for index in range(count):
        spacing = SPACINGS_MM[index % 2]
        half = TILE_VOXELS * spacing / 2
        center = (inside[rng.integers(len(inside))] * np.asarray(spacing_ijk)[::-1])[::-1]
        hu = image_hu.astype(np.float32)
        mask = np.zeros(hu.shape, np.float32)
        label = (index // 2) % 2 == 0
        kind, diameter = "", 0.0
        if label:
            diameter = float(4 * (30 / 4) ** rng.random())
            kind = str(rng.choice(["solid", "part-solid", "ground-glass", "spiculated", "lobulated"]))
            near = inside[np.abs(inside * np.asarray(spacing_ijk)[::-1] - center[::-1]).max(1) < half - 2]
            place = (near[rng.integers(len(near))] * np.asarray(spacing_ijk)[::-1])[::-1]
            nodule = random_nodule(kind, place, diameter / 2, rng)
            # The scan's own blur: at least one voxel in every direction.
            nodule.softness_mm = max(nodule.softness_mm, float(np.mean(spacing_ijk)))
            nodule.paint(hu, axes, lung.astype(np.float32), float(np.mean(spacing_ijk)))
            window, distance = nodule.signed_distance(axes)
            mask[window] = (distance < 0) * lung[window]
            noisy = mask > 0
            hu[noisy] += rng.normal(0, 25, int(noisy.sum()))
        steps = (np.arange(TILE_VOXELS) - (TILE_VOXELS - 1) / 2) * spacing
        grid = tuple(center[axis] + steps for axis in (2, 1, 0))
        crops.append(
            Tile(
                np.round(interpolate(hu, axes, grid)).astype(np.int16),
                (interpolate(mask, axes, grid) > 0.5).astype(np.uint8),
                spacing,
                label,
                kind,
                diameter,
            )
        )
    return crops


Draw = Callable[[Split, int], Iterable[Tile]]
"""Split, number of a patient -> at most TILES_PER_CHEST tiles; a function of a module, for other processes call it."""


def _draw_chest(job: tuple[Draw, str, int]) -> list[Tile]:
    draw, split, number = job
    return list(draw(SPLITS[split], number))


def _use_one_thread() -> None:
    """In a process that draws, for there is one for every core."""
    import torch

    torch.set_num_threads(1)


def write_tiles(
    folder: Path,
    split: str,
    chests: int,
    progress: Progress,
    first: int = 0,
    extra: Sequence[Tile] = (),
    minutes: float = math.inf,
    draw: Draw = draw_tiles,
) -> None:
    """Draw the tiles of ``chests`` patients of a split into ``folder``, on all cores, for ``minutes`` at most.

    Writes ``images.npy`` (n, 48, 48, 48) int16 HU, ``labels.npy`` (n, 2, 2, 2) int8, ``spacings.npy`` (n,) float32 mm,
    ``masks.npy`` (n, 48, 48, 48) uint8 and ``kinds.json``, which is written last. ``extra`` tiles are put at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = chests * TILES_PER_CHEST + len(extra)
    shape = (most, TILE_VOXELS, TILE_VOXELS, TILE_VOXELS)
    images = np.lib.format.open_memmap(folder / "images.partial.npy", "w+", np.int16, shape)
    masks = np.lib.format.open_memmap(folder / "masks.partial.npy", "w+", np.uint8, shape)
    rest: list[Tile] = []
    written = np.empty(0)  # in place of voxels that are in the files already
    until = time.monotonic() + 60 * minutes
    jobs = [(draw, split, first + n) for n in range(chests)]
    # Spawned, not forked: the threads of torch, which some tiles are drawn with, do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn, initializer=_use_one_thread) as pool:
        for done, tiles in enumerate(pool.map(_draw_chest, jobs), start=1):
            for tile in tiles:
                images[len(rest)], masks[len(rest)] = tile.image, tile.mask
                rest.append(Tile(written, written, tile.spacing_mm, tile.label, tile.kind, tile.diameter_mm))
            progress(done / chests, f"{len(rest)} tiles of {done} phantoms")
            if time.monotonic() > until:
                pool.shutdown(cancel_futures=True)
                break
    for tile in extra:
        images[len(rest)], masks[len(rest)] = tile.image, tile.mask
        rest.append(Tile(written, written, tile.spacing_mm, tile.label, "real " + tile.kind, tile.diameter_mm))
    np.save(folder / "images.npy", images[: len(rest)])
    np.save(folder / "masks.npy", masks[: len(rest)])
    np.save(folder / "labels.npy", np.stack([crop_bits(mask) for mask in masks[: len(rest)]]))
    np.save(folder / "spacings.npy", np.array([tile.spacing_mm for tile in rest], np.float32))
    facts = [{"kind": tile.kind, "diameter_mm": round(tile.diameter_mm, 2)} for tile in rest]
    (folder / "kinds.json").write_text(json.dumps(facts))
    del images, masks
    for name in ("images", "masks"):
        (folder / f"{name}.partial.npy").unlink()
