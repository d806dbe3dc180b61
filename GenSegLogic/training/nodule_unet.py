"""Recipe of ``nodule-unet``: the supervised upper bound of the benchmark, the one network that sees voxel labels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..networks import build
from ..progress import Progress
from .data import Crops, click_batches
from .loop import train

BATCH = 8
VALIDATION_NODULES = 96


def soft_dice(found: Tensor, mask: Tensor) -> Tensor:
    """Dice (B,) of the cases of a batch (B, 1, K, J, I) in [0, 1]; one voxel is added, for where both are empty."""
    total = found.sum((1, 2, 3, 4)) + mask.sum((1, 2, 3, 4))
    return (2 * (found * mask).sum((1, 2, 3, 4)) + 1) / (total + 1)


def segmentation_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy plus soft Dice of every case by itself: a small nodule counts as much as a large one."""
    logits, mask = network(batch["image"]).float(), batch["mask"]
    return F.binary_cross_entropy_with_logits(logits, mask) + 1 - soft_dice(torch.sigmoid(logits), mask).mean()


def fit(crops: Crops, held_out: Crops, work: Path, minutes: float, seed: int, progress: Progress):
    """Train the U-Net; validation is mean Dice over nodules of other phantoms.

    Args:
        crops, held_out: tiles with a nodule in the middle, as :func:`.tiles.draw_nodule_tiles` draws them.
        work, minutes, seed, progress: see :func:`.loop.train`.

    Returns:
        The network and its curve.
    """
    torch.manual_seed(seed)
    network = build("segmenter-unet", {})
    fixed = next(click_batches(held_out, VALIDATION_NODULES, seed + 9))

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            found = torch.cat([network(part) for part in fixed["image"].split(BATCH)]) > 0
        return {"validation_dice": float(soft_dice(found.float(), fixed["mask"]).mean())}

    batches = click_batches(crops, BATCH, seed)
    return train(network, segmentation_loss, batches, work, minutes, progress, 2e-3, 0.995, validate)
