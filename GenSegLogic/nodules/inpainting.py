"""A place painted anew from its surroundings by the frozen flow: what would lie there if the nodule did not.

RePaint [Lugmayr et al. 2022, arXiv 2201.09865], on a rectified flow and without its resampling, from which nothing is
gained on the validation split. Its part in this method is ours: guidance [N] takes enough of a nodule to say where it
is, but leaves parts of it standing, so that its residual has no border of its own. What is painted without looking at
the nodule differs from the scan by all that the nodule adds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..flow.interpolant import interpolant, noise_like, times
from ..flow.samplers import euler
from .models import LatentFlow

START = 0.95
"""Noise fraction to begin at. The hole begins as noise alone; at 1 its surroundings would be noise alone too, and say
nothing in the first step."""
STEPS = 2
"""More draw more texture, which ends in the residual: on the validation split 1 to 5 outline equally well."""


@torch.no_grad()
def inpaint(
    flow: LatentFlow,
    image: Tensor,
    hole: Tensor,
    spacing_mm: float,
    generator: torch.Generator,
    callback: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Paint the ``hole`` of an image anew; what surrounds it is put back at every step.

    Args:
        flow: frozen models.
        image: (1, 1, K, J, I) in [0, 1].
        hole: in [0, 1], 1 where nothing of the image is known, (1, 1, K/d, J/d, I/d).
        spacing_mm: of ``image``, isotropic.
        generator: of all noise.
        callback: called after every step; may raise.

    Returns:
        (1, 1, K, J, I) in the image's scale, not clipped to it.
    """
    velocity = flow.velocity(spacing_mm)
    clean = flow.encode(image)
    noise = noise_like(clean, generator)  # one path for what is known, so that its rim does not flicker
    falling = times(START, 0.0, STEPS)
    x = torch.lerp(interpolant(clean, noise, START), noise_like(clean, generator), hole)
    for step, (t, following) in enumerate(pairwise(falling)):
        x = torch.lerp(interpolant(clean, noise, following), euler(velocity, x, [t, following]), hole)
        callback(step + 1, STEPS)
    return flow.decode(x)
