"""From the best slice up and down: organs of a whole scan without a prompt (METHODS (b))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...volume import Volume

if TYPE_CHECKING:
    import torch

    from .models import MemorySource, OrganModels


@dataclass(frozen=True)
class Segmentation:
    """What :func:`segment` found, on the grid of the volume that it was given.

    Attributes:
        probabilities: organ -> (k, j, i) float32 in [0, 1]; an organ that is not there is 0 everywhere.
        confidence: (k, j, i) float32 in [0, 1]: how far the ensemble can be trusted at this voxel.
        presence: organ -> highest probability over the slices that the organ is there, in [0, 1].
        encoded_slices: how often the image encoder ran: once per slice, whatever the number of organs.
    """

    probabilities: dict[str, np.ndarray]
    confidence: np.ndarray
    presence: dict[str, float]
    encoded_slices: int


def segment(
    volume: Volume,
    models: OrganModels,
    organs: Sequence[str] = (),
    steps: int = 2,
    samples: int = 2,
    generator: torch.Generator | None = None,
    callback: Callable[[float], None] = lambda fraction: None,
    memory_source: MemorySource | None = None,
) -> Segmentation:
    """Segment organs in a scan on the canonical grid.

    Args:
        volume: from :meth:`.canonical.CanonicalGrid.apply`: float32 in [0, 1], axial slices from feet to head.
        models: from :func:`.models.organ_models`; its device and autocast state decide where and how precisely.
        organs: names among ``models.organs``; empty: all of them.
        steps: sampling steps of the prior, >= 1.
        samples: members of the ensemble, >= 1.
        generator: of the noise, on the CPU; None: seed 0. Equal seeds give equal bytes on the CPU.
        callback: called with the fraction done; may raise.
        memory_source: what stands in for the prior (controls of the evaluation); None: the prior.

    Raises:
        GenSegError: if the volume is not on the canonical grid, or an organ is not among the models'.
    """
    raise NotImplementedError
