"""Recipe of ``nodule-unet``: the supervised upper bound of the benchmark, the one network that sees voxel labels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..networks import build
from ..progress import Progress
from .data import Crops, mask_batches
from .loop import train


def segmentation_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy plus soft Dice over the batch."""
    logits, mask = network(batch["image"]).float(), batch["mask"]
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * mask).sum() + 1
    return F.binary_cross_entropy_with_logits(logits, mask) + 1 - overlap / (probability.sum() + mask.sum() + 1)


def fit(crops: Crops, held_out: Crops, work: Path, minutes: float, seed: int, progress: Progress):
    """Train the U-Net; validation is Dice over tiles of other phantoms."""
    torch.manual_seed(seed)
    network = build("segmenter-unet", {})
    fixed = next(mask_batches(held_out, 32, seed + 9))

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            found = torch.cat([network(part) for part in fixed["image"].split(8)]) > 0
        overlap = 2 * (found * fixed["mask"]).sum()
        return {"validation_dice": float(overlap / (found.sum() + fixed["mask"].sum()))}

    batches = mask_batches(crops, 8, seed)
    return train(network, segmentation_loss, batches, work, minutes, progress, 2e-3, 0.99, validate)
