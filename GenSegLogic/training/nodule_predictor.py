"""Recipes of the bundles ``nodule-cnn`` and ``nodule-tinyvit``: classifiers from one bit per crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..networks import build
from ..progress import Progress
from .data import Crops, image_batches
from .loop import train

PREDICTORS: dict[str, dict[str, Any]] = {"predictor-cnn": {}, "predictor-tinyvit": {}}
"""Target -> arguments of the two families that ship."""


POSITIVE_WEIGHT = 3.0
"""One crop in six holds a nodule."""


def crop_logits(logit_map: Tensor) -> Tensor:
    """Map of logits of tiles (B, k, j, i) -> logits of their eight crops (B, 2, 2, 2), by logsumexp."""
    batch, k, j, i = logit_map.shape
    crops = logit_map.float().reshape(batch, 2, k // 2, 2, j // 2, 2, i // 2).permute(0, 1, 3, 5, 2, 4, 6)
    return crops.flatten(4).logsumexp(-1)


def predictor_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy of the crops' bits; nothing else of the truth is read. Crops without a bit do not count."""
    bits = batch["bits"]
    weight = (bits >= 0).float() * (1 + (POSITIVE_WEIGHT - 1) * (bits > 0).float())
    logits = crop_logits(network.logit_map(batch["image"]))
    loss = F.binary_cross_entropy_with_logits(logits, bits.clamp_min(0), reduction="none")
    return (loss * weight).sum() / weight.sum()


def area_under_curve(scores: Tensor, truth: Tensor) -> float:
    """Area under the receiver operating characteristic of scores (n,) against truth (n,) of 0 and 1."""
    ranks = scores.argsort().argsort().double() + 1
    positive = truth > 0.5
    count = int(positive.sum())
    rest = len(truth) - count
    return float((ranks[positive].sum() - count * (count + 1) / 2) / max(count * rest, 1))


def fit(target: str, crops: Crops, held_out: Crops, work: Path, minutes: float, seed: int, progress: Progress):
    """Train a predictor; validation figures are loss and area under the curve on crops of other phantoms."""
    torch.manual_seed(seed)
    network = build(target, PREDICTORS[target])
    fixed = next(image_batches(held_out, 64, seed + 9, jitter=False))

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            logits = torch.cat([crop_logits(network.logit_map(part)) for part in fixed["image"].split(8)])
        known = fixed["bits"] >= 0
        loss = F.binary_cross_entropy_with_logits(logits[known], fixed["bits"][known])
        return {"validation_loss": float(loss), "validation_auc": area_under_curve(logits[known], fixed["bits"][known])}

    batches = image_batches(crops, 8, seed, jitter=True)
    return train(network, predictor_loss, batches, work, minutes, progress, 2e-3, 0.99, validate)
