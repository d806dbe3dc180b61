"""Recipe of the bundles ``abdomen-ct`` and ``abdomen-mr``: the diffusion prior of a frozen SAM 2, from phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..anatomy import ORGANS
from ..networks.memory_prior import MemoryPrior
from ..networks.sam2 import Sam2
from ..organs.diffusam.learning import LabelledScan, batches, fit_normalisation, loss_of
from ..organs.diffusam.prior import new_prior
from ..progress import Progress
from .loop import train

PAIRS = 6
LOOKS: dict[str, tuple[str, ...]] = {"CT": ("ct",), "MR": ("t1", "t2", "t2-spir")}
RANDOM_SHARE = {"CT": 0.0, "MR": 0.3}
"""CT has one scale of grey values; MR sequences differ more than three looks can show."""


def fit(sam2: Sam2, modality: str, scans: Sequence[LabelledScan], held_out: Sequence[LabelledScan], work: Path,
        minutes: float, seed: int, progress: Progress) -> tuple[MemoryPrior, dict[str, int], list[dict[str, float]]]:
    """Train the prior of one modality.

    Args:
        sam2: frozen; not one of its weights moves.
        modality: ``CT`` or ``MR``.
        scans, held_out: phantoms in the looks of :data:`LOOKS`.
        work, minutes, seed, progress: see :func:`.loop.train`.

    Returns:
        The prior, the arguments that build it, and the curve.
    """
    torch.manual_seed(seed)
    sam2.eval().requires_grad_(False)
    prior, arguments = new_prior(sam2, len(ORGANS))
    share = RANDOM_SHARE[modality]
    fit_normalisation(prior, sam2, batches(scans, PAIRS, seed + 1, share))
    fixed = batches(held_out, PAIRS, seed + 9, 0.0, 0.3)
    checks = [next(fixed) for _ in range(6)]

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss_of(network, sam2, batch)

    trained, curve = train(prior, loss, batches(scans, PAIRS, seed, share), work, minutes, progress, 1e-3, 0.99,
                           lambda network: validate(network, sam2, checks))
    return trained, arguments, curve


@torch.no_grad()
def validate(prior: MemoryPrior, sam2: Sam2, checks: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Loss on held-out phantoms, always at the same noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = [float(loss_of(prior, sam2, batch, memory_share=1.0)) for batch in checks]
    return {"validation_loss": sum(losses) / len(losses)}
