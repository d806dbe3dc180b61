"""A place painted anew from its surroundings by the frozen flow: what would lie there if the nodule did not.

RePaint [Lugmayr et al. 2022, arXiv 2201.09865], on a rectified flow. Its part in this method is ours: guidance [N]
takes enough of a nodule to say where it is, but leaves parts of it standing, so that its residual has no border of its
own. What is painted without looking at the nodule differs from the scan by all that the nodule adds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..flow.interpolant import clean_estimate, interpolant, noise_estimate, renoised, times
from .counterfactual import noise_like
from .models import LatentFlow

START = 0.95
"""Noise fraction to begin at. The hole begins as noise alone; at 1 its surroundings would be noise alone too, and say
nothing in the first step."""
STEPS = 5
REPEATS = 2
"""Times that every step is taken [RePaint's resampling]: the inside sees what the step made of it and of its rim."""
DRAWS = 2
"""Paintings that the result is the mean of, so that less of their texture ends in the residual."""


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
        callback: called after every step of every painting; may raise.

    Returns:
        (1, 1, K, J, I), the mean of DRAWS paintings.
    """
    velocity = flow.velocity(spacing_mm)
    clean = flow.encode(image)
    falling = times(START, 0.0, STEPS)
    total = torch.zeros_like(image, dtype=torch.float32)
    for draw in range(DRAWS):
        noise = noise_like(clean, generator)  # one path for what is known, so that its rim does not flicker
        x = torch.lerp(interpolant(clean, noise, START), noise_like(clean, generator), hole)
        for step in range(STEPS):
            t, following = falling[step], falling[step + 1]
            for repeat in range(REPEATS):
                v = velocity(x, t)
                inside = interpolant(clean_estimate(x, v, t), noise_estimate(x, v, t), following)
                x_next = torch.lerp(interpolant(clean, noise, following), inside, hole)
                if repeat + 1 < REPEATS:
                    again = renoised(x_next, noise_like(clean, generator), following, t)
                    x = torch.lerp(interpolant(clean, noise, t), again, hole)
            x = x_next
            callback(draw * STEPS + step + 1, DRAWS * STEPS)
        total += flow.decode(x)
    return total / DRAWS
