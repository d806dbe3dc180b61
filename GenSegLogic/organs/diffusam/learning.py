"""What the recipe and the adaptation share: batches of neighbouring slices with labels -> the prior's loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...networks.memory_prior import MemoryPrior
from ...networks.sam2 import MASK_SCALE, Sam2
from .augment import deformation, random_looks, recolour, warp
from .prior import disturb, memory_loss, mine, readout_loss

PICKS = 3
"""Organs a slice that memories are drawn for, in every batch."""
MOST_PRESENT = 14
"""Pairs of a slice and an organ that is there, in every batch."""


@dataclass(frozen=True)
class LabelledScan:
    """A scan on the canonical grid, with its truth.

    Attributes:
        images: one or more (K, S, S) versions of it in [0, 1] (float32) or 0..255 (uint8); each is drawn evenly.
        labels: (K, S, S) uint8: 0 nothing, n the n-th organ of the prior, counted from 1.
        known: (K, organs) 1 where the labels say whether and where the organ is, else 0.
        tissues: (K, S, S) uint8 for random looks; None where they are not known.
    """

    images: tuple[np.ndarray, ...]
    labels: np.ndarray
    known: np.ndarray
    tissues: np.ndarray | None = None


def batches(scans: Sequence[LabelledScan], count: int, seed: int, random_share: float = 0.0,
            strength: float = 1.0, paired: bool = True) -> Iterator[dict[str, Tensor]]:
    """Endless batches of slices, or of pairs of neighbouring slices, deformed and recoloured, never mirrored.

    Args:
        scans: to draw from; scans with more slices are drawn more often.
        count: slices, or pairs, in a batch.
        seed: of all random numbers.
        random_share: part of them that are shown in a random contrast, where tissues are known.
        strength: of the augmentation, 0 for none.
        paired: draw pairs; what reads single slices learns more from slices that have nothing to do with each other.

    Yields:
        image (B, 1, S, S) in [0, 1], labels (B, S, S) uint8, known (B, organs), trust (B, S, S) 0 where the
        deformation shows what lies outside of the slice, else 1. Paired, B is 2 count: rows 2 p, the slice before in
        the direction of propagation, and 2 p + 1, the slice itself.
    """
    group = 2 if paired else 1
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    counts = np.array([len(scan.labels) for scan in scans], float)
    while True:
        images, maps, known, is_random = [], [], [], []
        for _ in range(count):
            scan = scans[rng.choice(len(scans), p=counts / counts.sum())]
            k = int(rng.integers(len(scan.labels)))
            before = _neighbour(k, len(scan.labels), rng)
            random = scan.tissues is not None and rng.random() < random_share
            version = scan.images[rng.integers(len(scan.images))]
            for index in (before, k) if paired else (k,):
                image = version[index]
                images.append(image.astype(np.float32) / 255 if image.dtype == np.uint8 else image)
                tissues = scan.labels[index] if scan.tissues is None else scan.tissues[index]
                maps.append(np.stack([tissues, scan.labels[index], np.ones_like(tissues)]))
                known.append(scan.known[index])
                is_random.append(random)
        grid = deformation(count, maps[0].shape[-1], generator, strength).repeat_interleave(group, 0)
        image = warp(torch.from_numpy(np.stack(images)).float()[:, None], grid)
        moved = warp(torch.from_numpy(np.stack(maps)).float(), grid, nearest=True)
        if any(is_random):
            chosen = torch.tensor(is_random).view(-1, 1, 1, 1)
            image = torch.where(chosen, random_looks(moved[:, :1], generator, group), image)
        yield {
            "image": recolour(image, generator, group, strength) if strength else image,
            "labels": moved[:, 1].to(torch.uint8),
            "trust": moved[:, 2],
            "known": torch.from_numpy(np.stack(known)).float(),
        }


def _neighbour(k: int, count: int, rng: np.random.Generator) -> int:
    """The slice above or below k; the other one at the ends; k itself in a scan of one slice."""
    step = int(rng.choice((-1, 1)))
    return next((n for n in (k + step, k - step) if 0 <= n < count), k)


def pick(labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a slice and an organ: rows (n,) and organs (n,) from 0, those that are there first.

    Args:
        labels: (P, S, S).
        known: (P, organs).
    """
    present, absent = [], []
    for row in range(len(labels)):
        allowed = known[row].nonzero().flatten()
        if not len(allowed):
            continue
        there = [int(label) - 1 for label in labels[row].unique() if label > 0 and known[row, int(label) - 1]]
        order = torch.randperm(len(there)).tolist()
        present += [(row, there[place]) for place in order[:PICKS]]
        for _ in range(PICKS - min(PICKS, len(there)) or int(torch.rand(()) < 0.3)):
            organ = int(allowed[torch.randint(len(allowed), ())])
            if organ not in there:
                absent.append((row, organ))
    order = torch.randperm(len(present)).tolist()
    chosen = [present[place] for place in order[:MOST_PRESENT]] + absent[: max(2, len(present) // 3)]
    rows, organs = torch.tensor(chosen, dtype=torch.long, device=labels.device).reshape(-1, 2).unbind(1)
    return rows, organs


def organ_masks(labels: Tensor, organs: int) -> Tensor:
    """(B, S, S) labels -> (B, organs, S, S) float."""
    return F.one_hot(labels.long(), organs + 1).permute(0, 3, 1, 2)[:, 1:].float()


def reading_loss(prior: MemoryPrior, sam2: Sam2, batch: dict[str, Tensor]) -> Tensor:
    """Loss of the read-out on all slices of a batch of :func:`batches`. SAM 2 is only read."""
    with torch.no_grad():
        features = sam2.encode(batch["image"])
    edge = MASK_SCALE * sam2.memory_size
    truth = F.adaptive_avg_pool2d(organ_masks(batch["labels"], prior.organs), edge)
    trust = F.adaptive_avg_pool2d(batch["trust"][:, None], edge)
    return readout_loss(prior.look(features), truth, batch["known"], trust)


def drawing_loss(prior: MemoryPrior, sam2: Sam2, batch: dict[str, Tensor]) -> Tensor:
    """Loss of the memories on a batch of :func:`batches`; SAM 2 and the prior's reading are only read."""
    with torch.no_grad():
        features = sam2.encode(batch["image"])
        context = prior.look(features)
    rows, organ = pick(batch["labels"][1::2], batch["known"][1::2])
    if not len(rows):
        return 0.0 * torch.stack([parameter.sum() for parameter in prior.exit.parameters()]).sum()
    masks = (batch["labels"][1::2][rows] == (organ + 1).view(-1, 1, 1))[:, None].float()
    masks_before = (batch["labels"][0::2][rows] == (organ + 1).view(-1, 1, 1))[:, None].float()
    count = len(batch["labels"])
    odd, even = torch.arange(1, count, 2), torch.arange(0, count, 2)
    return memory_loss(prior, sam2, features.select(odd), features.select(even), context.select(odd),
                       context.select(even), masks, masks_before, rows, organ)


def freeze_reading(prior: MemoryPrior) -> None:
    """Leave what :func:`reading_loss` trains as it is, so that :func:`drawing_loss` trains the rest."""
    for parameter in prior.reading():
        parameter.requires_grad_(False)


@torch.no_grad()
def fit_normalisation(prior: MemoryPrior, sam2: Sam2, source: Iterator[dict[str, Tensor]], count: int = 8) -> None:
    """Set mean and deviation of every channel of the memory, and of its difference to the guess, from some batches."""
    memories, guesses = [], []
    for _ in range(count):
        batch = next(source)
        features = sam2.encode(batch["image"])
        rows, organ = pick(batch["labels"], batch["known"])
        own = features.select(rows)
        masks = (batch["labels"][rows] == (organ + 1).view(-1, 1, 1))[:, None].float()
        memories.append(sam2.remember_mask(own, masks).float())
        guesses.append(sam2.remember(own, disturb(mine(prior.look(features).select(rows), organ))).float())
    stacked, guessed = torch.cat(memories), torch.cat(guesses)
    prior.mean.copy_(stacked.mean((0, 2, 3), keepdim=True))
    prior.std.copy_(stacked.std((0, 2, 3), keepdim=True).clamp_min(1e-3))
    difference = (stacked - guessed) / prior.std
    prior.spread.copy_(difference.square().mean((0, 2, 3), keepdim=True).sqrt().clamp_min(1e-2))
