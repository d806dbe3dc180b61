"""Batches of crops from the folders that :mod:`.tiles` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.cases import SEED_JITTER_MM

FIELD_VOXELS = 40
"""Edge of the cube that the task paints, and that a segmenter is given."""
WINDOW_HU = (-1000.0, 400.0)


def normalise(hu: np.ndarray, window_hu: tuple[float, float] = WINDOW_HU) -> np.ndarray:
    """HU -> [0, 1] float32, clipped to the window."""
    low, high = window_hu
    return np.clip((np.asarray(hu, np.float32) - low) / (high - low), 0, 1)


class Crops:
    """Tiles of several folders: images, their crops' bits, spacings; masks only when asked for by :meth:`masks`."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.images = [np.load(folder / "images.npy", mmap_mode="r") for folder in folders]
        self.bits = np.concatenate([np.load(folder / "labels.npy") for folder in folders])
        self.spacings = np.concatenate([np.load(folder / "spacings.npy") for folder in folders])
        self.where = [(f, n) for f, images in enumerate(self.images) for n in range(len(images))]

    def __len__(self) -> int:
        return len(self.where)

    def image(self, index: int) -> np.ndarray:
        """(48, 48, 48) int16 HU."""
        folder, number = self.where[index]
        return self.images[folder][number]

    def masks(self) -> list[np.ndarray]:
        """Voxel truth, one (n, 48, 48, 48) array a folder; only for the supervised upper bound and for thresholds."""
        return [np.load(folder / "masks.npy", mmap_mode="r") for folder in self.folders]


def flip_and_turn(rng: np.random.Generator, *arrays: np.ndarray) -> list[np.ndarray]:
    """The same random flips and quarter turns of the axial plane for all arrays (..., K, J, I)."""
    flips = rng.random(3) < 0.5
    turns = int(rng.integers(4))
    result = []
    for array in arrays:
        for axis in range(3):
            if flips[axis]:
                array = np.flip(array, axis - 3)
        result.append(np.ascontiguousarray(np.rot90(array, turns, axes=(-2, -1))))
    return result


def image_batches(
    crops: Crops, size: int, seed: int, jitter: bool, chances: np.ndarray | None = None
) -> Iterator[dict[str, Tensor]]:
    """Endless batches: image (B, 1, 48, 48, 48) in [0, 1], bits (B, 2, 2, 2) of its crops, spacing (B,) mm.

    ``jitter``: see :func:`jittered`. ``chances``: how often every tile is drawn, (n,) summing to 1; None: all alike.
    """
    rng = np.random.default_rng([41, seed])
    while True:
        chosen = rng.choice(len(crops), size, p=chances)
        images, bits = [], []
        for index in chosen:
            hu, bit = flip_and_turn(rng, crops.image(int(index)).astype(np.float32), crops.bits[int(index)])
            bits.append(bit)
            images.append(normalise(jittered(rng, hu) if jitter else hu))
        yield {
            "image": torch.from_numpy(np.stack(images)[:, None]),
            "bits": torch.from_numpy(np.stack(bits).astype(np.float32)),
            "spacing": torch.from_numpy(crops.spacings[chosen]),
        }


def jittered(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """What other scanners and the autoencoder would make of an image in HU: shifts of the scale, noise or blur."""
    from scipy import ndimage

    hu = hu * rng.uniform(0.95, 1.05) + rng.uniform(-25, 25)
    kind = rng.random()
    if kind < 0.25:
        return hu + rng.normal(0, rng.uniform(5, 50), hu.shape).astype(np.float32)
    return ndimage.gaussian_filter(hu, rng.uniform(0.2, 0.8), truncate=2.5) if kind < 0.6 else hu


def click_batches(crops: Crops, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of fields round a click, with voxel truth, for the supervised upper bound alone.

    The tiles' nodules lie in the middle; a field's middle is the click, up to SEED_JITTER_MM away along every axis.
    Image, jittered as for the predictors, and mask are (B, 1, 40, 40, 40).
    """
    rng = np.random.default_rng([42, seed])
    masks = crops.masks()
    while True:
        images, truths = [], []
        for index in rng.integers(len(crops), size=size):
            folder, number = crops.where[int(index)]
            hu, mask = flip_and_turn(rng, crops.image(int(index)).astype(np.float32), masks[folder][number])
            room = (len(hu) - FIELD_VOXELS) // 2
            reach = min(int(SEED_JITTER_MM / crops.spacings[index]), room)
            window = tuple(slice(n, n + FIELD_VOXELS) for n in room + rng.integers(-reach, reach + 1, 3))
            images.append(normalise(jittered(rng, hu[window])))
            truths.append(mask[window].astype(np.float32))
        yield {
            "image": torch.from_numpy(np.stack(images)[:, None]),
            "mask": torch.from_numpy(np.stack(truths)[:, None]),
        }
