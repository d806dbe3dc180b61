"""Recipes of the bundles ``nodule-cnn`` and ``nodule-tinyvit``: classifiers from one bit per crop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..evaluation.metrics import auroc
from ..networks import build
from ..networks.predictors import NodulePredictor
from ..progress import Progress
from .data import Crops, image_batches, normalise
from .loop import train

PREDICTORS: dict[str, dict[str, Any]] = {"predictor-cnn": {}, "predictor-tinyvit": {}}
"""Target -> arguments of the two families that ship."""


POSITIVE_WEIGHT = 3.0
"""One crop in six holds a nodule."""
EVEN_TIME = 0.6
"""Part of the training in which all tiles are drawn alike; after it, most are known, and :func:`chances_by_loss` asks
which are not."""
EVEN_CHANCES = 0.4
"""Part of the draws that stays even, so that what is learned is not forgotten."""
MOST_LOSS = 12.0
"""A crop counts for its chance with so much loss at most: what nobody could tell shall not be drawn for ever."""


def crop_logits(logit_map: Tensor) -> Tensor:
    """Map of logits of tiles (B, k, j, i) -> logits of their eight crops (B, 2, 2, 2), by logsumexp."""
    batch, k, j, i = logit_map.shape
    crops = logit_map.float().reshape(batch, 2, k // 2, 2, j // 2, 2, i // 2).permute(0, 1, 3, 5, 2, 4, 6)
    return crops.flatten(4).logsumexp(-1)


def predictor_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Binary cross-entropy of the crops' bits; nothing else of the truth is read. Crops without a bit do not count."""
    weight = crop_weights(batch["bits"])
    return crop_losses(crop_logits(network.logit_map(batch["image"])), batch["bits"]).sum() / weight.sum()


def crop_weights(bits: Tensor) -> Tensor:
    """What every crop's loss counts, by its bit: 0 without one."""
    return (bits >= 0).float() * (1 + (POSITIVE_WEIGHT - 1) * (bits > 0).float())


def crop_losses(logits: Tensor, bits: Tensor) -> Tensor:
    """Weighted binary cross-entropy of every crop; both (B, 2, 2, 2)."""
    return crop_weights(bits) * F.binary_cross_entropy_with_logits(logits, bits.clamp_min(0), reduction="none")


def chances_by_loss(network: NodulePredictor, crops: Crops) -> np.ndarray:
    """How often every tile is to be drawn, (n,) summing to 1: EVEN_CHANCES alike, the rest by its loss so far."""
    losses = []
    for start in range(0, len(crops), 8):
        tiles = range(start, min(start + 8, len(crops)))
        images = torch.from_numpy(np.stack([normalise(crops.image(tile)) for tile in tiles])[:, None])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = crop_logits(network.logit_map(images))
        bits = torch.from_numpy(crops.bits[tiles.start : tiles.stop].astype(np.float32))
        losses.append(crop_losses(logits, bits).clamp_max(MOST_LOSS).sum((1, 2, 3)))
    loss = torch.cat(losses).double().numpy()
    return EVEN_CHANCES / len(loss) + (1 - EVEN_CHANCES) * loss / loss.sum()


def untrained(target: str, seed: int) -> NodulePredictor:
    """A predictor of one of the families, with random weights."""
    torch.manual_seed(seed)
    return cast(NodulePredictor, build(target, PREDICTORS[target]))


def fit(
    network: NodulePredictor,
    crops: Crops,
    held_out: Crops,
    work: Path,
    minutes: float,
    seed: int,
    progress: Progress,
    chances: np.ndarray | None = None,
) -> tuple[NodulePredictor, list[dict[str, float]]]:
    """Train a predictor; validation figures are loss and area under the curve on crops of other phantoms.

    Args:
        network: trained in place.
        crops, held_out: tiles to train on, and those of other phantoms.
        work, minutes, progress: see :func:`.loop.train`.
        seed: of the batches.
        chances: how often every tile is drawn, (n,); None: all alike.

    Returns:
        The network with averaged weights, and its curve.
    """
    fixed = next(image_batches(held_out, 64, seed + 9, jitter=False))

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            logits = torch.cat([crop_logits(network.logit_map(part)) for part in fixed["image"].split(8)])
        known = fixed["bits"] >= 0
        loss = F.binary_cross_entropy_with_logits(logits[known], fixed["bits"][known])
        area = auroc(logits[known].float().numpy(), fixed["bits"][known].numpy() > 0.5)
        return {"validation_loss": float(loss), "validation_auc": 0.5 if area is None else area}

    batches = image_batches(crops, 8, seed, jitter=True, chances=chances)
    return train(network, predictor_loss, batches, work, minutes, progress, 2e-3, 0.99, validate)
