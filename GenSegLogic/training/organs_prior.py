"""Recipe of the bundles ``abdomen-ct`` and ``abdomen-mr``: the diffusion prior of a frozen SAM 2, from phantoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..anatomy import ORGANS
from ..networks.memory_prior import MemoryPrior
from ..networks.sam2 import Sam2
from ..organs.diffusam.learning import (
    LabelledScan,
    batches,
    drawing_loss,
    fit_normalisation,
    freeze_reading,
    reading_loss,
)
from ..organs.diffusam.prior import new_prior
from ..progress import Progress, part
from .loop import to_device, train

PAIRS = 6
READING_SHARE = 0.7
"""Part of the time in which the read-out is learned; then it is frozen and memories are drawn on top of it."""
Loss = Callable[[MemoryPrior, Sam2, dict[str, Tensor]], Tensor]
LOOKS: dict[str, tuple[str, ...]] = {"CT": ("ct",), "MR": ("t1", "t2", "t2-spir")}
RANDOM_SHARE = 0.3
"""Slices in a random contrast. MR sequences differ more than three looks can show, and a prior of CT that has seen
other contrasts has something to start from where it is adapted to MR without labels."""


def fit(sam2: Sam2, modality: str, scans: Sequence[LabelledScan], held_out: Sequence[LabelledScan], work: Path,
        minutes: float, seed: int, progress: Progress,
        device: str = "cpu") -> tuple[MemoryPrior, dict[str, int], list[dict[str, float]]]:
    """Train the prior of one modality.

    Args:
        sam2: frozen; not one of its weights moves.
        modality: ``CT`` or ``MR``.
        scans, held_out: phantoms in the looks of :data:`LOOKS`.
        work, minutes, seed, progress, device: see :func:`.loop.train`.

    Returns:
        The prior, the arguments that build it, and the curve.
    """
    torch.manual_seed(seed)
    sam2.to(device).eval().requires_grad_(False)
    prior, arguments = new_prior(sam2, len(ORGANS))
    fixed = batches(held_out, PAIRS, seed + 9, 0.0, 0.3)
    checks = [to_device(next(fixed), device) for _ in range(6)]
    reading, curve = train(
        prior, lambda network, batch: reading_loss(network, sam2, batch),
        batches(scans, 2 * PAIRS, seed, RANDOM_SHARE, paired=False),
        work / "reading", READING_SHARE * minutes, part(progress, 0, READING_SHARE), 1.5e-3, 0.99,
        lambda network: validate(network, sam2, checks, reading_loss, "reading"), device=device,
    )
    prior.load_state_dict(reading.state_dict())
    slices = batches(scans, PAIRS, seed + 1, RANDOM_SHARE)
    fit_normalisation(prior, sam2, (to_device(batch, device) for batch in slices))
    freeze_reading(prior)
    trained, rows = train(
        prior, lambda network, batch: drawing_loss(network, sam2, batch), batches(scans, PAIRS, seed + 2, RANDOM_SHARE),
        work / "drawing", (1 - READING_SHARE) * minutes, part(progress, READING_SHARE, 1), 1e-3, 0.99,
        lambda network: validate(network, sam2, checks, drawing_loss, "drawing"), device=device,
    )
    return trained, arguments, [{"phase": 1, **row} for row in curve] + [{"phase": 2, **row} for row in rows]


@torch.no_grad()
def validate(prior: MemoryPrior, sam2: Sam2, checks: Sequence[dict[str, Tensor]], loss: Loss,
             name: str) -> dict[str, float]:
    """Loss on held-out phantoms, always at the same noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [float(loss(prior, sam2, batch)) for batch in checks]
    return {f"validation_loss_{name}": sum(losses) / len(losses)}
