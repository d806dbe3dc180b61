"""Labels for unlabelled scans, from what a source bundle reads in them for certain (source-free adaptation).

Every member of the ensemble is shown the scan in grey values of its own: as it is, bent by gamma, equalised, inverted,
and through random curves. A prior that is lost in one of these may be at home in another, and its read-out knows: it
was trained to be as sure as it is right. So members count by how certain they are, organ by organ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage

from ...volume import Volume
from .learning import LabelledScan
from .models import OrganModels
from .propagate import look_at

CURVES = 10
"""Members that see the scan through a random curve, as long as the prior has not seen scans of this kind."""
KNOTS = 6
"""Points of such a curve."""
SHARPNESS = 0.02
"""Difference in certainty by which a member counts e times less. Chosen, as are the curves, on 12 MR scans of the
validation split shown to the CT bundle: mean Dice of the labels 0.78; of the scan as it is 0.64."""
LEAST_CELLS = 20
"""What a member finds must be larger to count, in pixels of the read-out."""
AGREEMENT = 0.75
"""Mean Dice between the members and their mean from which a slice's mask is learned."""
ABSENT = 0.1
"""Highest mean probability up to which the organ's absence is learned."""


def shown(voxels: np.ndarray, rng: np.random.Generator, curves: int) -> list[np.ndarray]:
    """A scan (K, S, S) in [0, 1] in the grey values of every member, ``curves`` of them random."""
    body = voxels > 0.03
    ranks = equalised(voxels)
    versions = [voxels, voxels**0.7, voxels**1.4, ranks, np.where(body, 1 - ranks, voxels)]
    for _ in range(curves):
        curve = rng.uniform(0.05, 0.95, KNOTS)
        bent = np.interp(ranks, np.linspace(0.05, 0.95, KNOTS), curve)
        versions.append(np.where(body, bent, voxels).astype(np.float32))
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


@torch.no_grad()
def pseudo_label(volume: Volume, models: OrganModels, rng: np.random.Generator, curves: int = CURVES,
                 callback: Callable[[float], None] = lambda fraction: None) -> LabelledScan:
    """The scan with the labels that the ensemble agrees on; ``known`` is 0 for slices and organs without agreement.

    Args:
        volume: on the canonical grid.
        models: of the source, or of the round before.
        rng: draws the curves.
        curves: how many members see the scan through one.
        callback: called with the fraction done; may raise.
    """
    members = []
    versions = shown(volume.voxels, rng, curves)
    for number, voxels in enumerate(versions, start=1):
        readout = look_at(volume.with_voxels(voxels), models).context.readout
        members.append(readout.sigmoid().half().cpu().numpy())
        callback(number / len(versions))
    labels = np.zeros(volume.shape, np.uint8)
    highest = np.full(volume.shape, 0.5, np.float32)
    known = np.zeros((len(labels), len(models.organs)), np.uint8)
    for place in range(len(models.organs)):
        stack = np.stack([member[:, place] for member in members]).astype(np.float32)
        weights = by_certainty(stack)
        mean = np.einsum("m,mkji->kji", weights, stack)
        mask = largest_part(mean > 0.5)
        known[:, place] = agreed(stack > 0.5, weights, mask, mean)
        fine = F.interpolate(torch.from_numpy(np.where(mask, mean, np.minimum(mean, 0.5)))[:, None], volume.shape[1:],
                             mode="bilinear")[:, 0].numpy()
        wins = fine > highest
        labels[wins], highest[wins] = place + 1, fine[wins]
    return LabelledScan((volume.voxels,), labels, known)


def by_certainty(stack: np.ndarray) -> np.ndarray:
    """Weights (M,) of the members (M, K, h, w), by their mean probability in the largest part that each finds.

    They add up to 1, and are equal where no member finds anything.
    """
    certainty = np.zeros(len(stack))
    for number, member in enumerate(stack):
        mask = largest_part(member > 0.5)
        if mask.sum() > LEAST_CELLS:
            certainty[number] = member[mask].mean()
    weights = np.exp((certainty - certainty.max()) / SHARPNESS)
    return weights / weights.sum()


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part."""
    parts, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def agreed(members: np.ndarray, weights: np.ndarray, mask: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(K,) 1 where the members that count agree with the joint mask, or that there is nothing.

    Args:
        members: (M, K, h, w) bool.
        weights: (M,), adding up to 1.
        mask: (K, h, w) bool, the joint mask.
        mean: (K, h, w) joint probability.
    """
    result = np.zeros(len(mask), np.uint8)
    for k in range(len(mask)):
        if mask[k].any():
            result[k] = sum(weight * _dice(member[k], mask[k])
                            for weight, member in zip(weights, members, strict=True)) >= AGREEMENT
        else:
            result[k] = bool(mean[k].max() <= ABSENT)
    return result


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0)
