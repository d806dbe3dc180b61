"""Labels for unlabelled scans, from what an ensemble of a source bundle agrees on (source-free adaptation).

Every member sees the scan in grey values of its own: as it is, equalised, bent by gamma, inverted. What a change of
grey values changes in the answer is not to be trusted; what survives it, is learned.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ...volume import Volume
from .learning import LabelledScan
from .models import OrganModels
from .propagate import segment

AGREEMENT = 0.75
"""Mean Dice between the members and their mean from which a slice's mask is learned."""
ABSENT = 0.1
"""Highest mean probability up to which the organ's absence is learned."""


def shown(voxels: np.ndarray, wide: bool) -> list[np.ndarray]:
    """Versions of a scan (K, S, S) in [0, 1] in other grey values; more of them where ``wide``."""
    versions = [voxels, voxels**0.7, voxels**1.4]
    if wide:
        versions += [equalised(voxels), inverted(voxels)]
    return versions


def equalised(voxels: np.ndarray) -> np.ndarray:
    """Grey values of the body replaced by their rank, so that all are equally frequent; air stays dark."""
    body = voxels > 0.03
    if not body.any():
        return voxels
    values = voxels[body]
    levels = np.quantile(values, np.linspace(0, 1, 65))
    result = voxels.copy()
    result[body] = np.interp(values, levels, np.linspace(0.05, 0.95, 65))
    return result


def inverted(voxels: np.ndarray) -> np.ndarray:
    """Bright for dark within the body; air stays dark."""
    body = ndimage.binary_fill_holes((voxels > 0.05).any(0))
    return np.where((voxels > 0.03) & body, 1 - equalised(voxels), voxels).astype(np.float32)


def pseudo_label(volume: Volume, models: OrganModels, generator: torch.Generator, wide: bool) -> LabelledScan:
    """The scan with the labels that the ensemble agrees on; ``known`` is 0 for slices and organs without agreement.

    Args:
        volume: on the canonical grid.
        models: of the source, or of the round before.
        generator: of noise.
        wide: show the members more different grey values.
    """
    members = [segment(volume.with_voxels(version), models, (), 2, 1, generator).probabilities
               for version in shown(volume.voxels, wide)]
    labels = np.zeros(volume.shape, np.uint8)
    highest = np.full(volume.shape, 0.5, np.float32)
    known = np.zeros((len(labels), len(models.organs)), np.uint8)
    for place, name in enumerate(models.organs):
        stack = np.stack([member[name] for member in members])
        mean = robust_mean(stack)
        mask = largest_part(mean > 0.5)
        known[:, place] = agreed(stack > 0.5, mask, mean)
        wins = mask & (mean > highest)
        labels[wins] = place + 1
        highest[wins] = mean[wins]
    return LabelledScan((volume.voxels,), labels, known)


def robust_mean(stack: np.ndarray) -> np.ndarray:
    """Mean of the members (M, K, S, S), each counted by how well it agrees with the others over the whole scan."""
    masks = stack > 0.5
    sizes = masks.reshape(len(stack), -1).sum(1)
    weights = np.zeros(len(stack))
    for one in range(len(stack)):
        for other in range(len(stack)):
            if one != other:
                overlap = (masks[one] & masks[other]).sum()
                weights[one] += 2 * overlap / max(sizes[one] + sizes[other], 1)
    if weights.sum() <= 0:
        return stack.mean(0)
    weights = weights**2 / (weights**2).sum()
    return np.einsum("m,mkji->kji", weights, stack).astype(np.float32)


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part."""
    parts, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def agreed(members: np.ndarray, mask: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(K,) 1 where the better half of the members agrees with the joint mask, or that there is nothing.

    Args:
        members: (M, K, S, S) bool.
        mask: (K, S, S) bool, the joint mask.
        mean: (K, S, S) joint probability.
    """
    result = np.zeros(len(mask), np.uint8)
    for k in range(len(mask)):
        if not mask[k].any():
            result[k] = bool(mean[k].max() <= ABSENT)
            continue
        scores = sorted(_dice(member[k], mask[k]) for member in members)
        result[k] = np.mean(scores[len(scores) // 2 :]) >= AGREEMENT
    return result


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0)

