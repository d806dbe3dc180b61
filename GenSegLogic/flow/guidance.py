"""Training-free guidance of a frozen rectified flow: a step that also climbs the gradient of an objective [T, F].

[T] Ye et al. 2024 (TFG), [F] Patel et al. 2025 (FlowChef's gradient skipping). Ours: the push is normalised to the
region's size, and the less there is to gain, the shorter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .interpolant import clean_estimate, interpolant, noise_estimate
from .samplers import Velocity

Objective = Callable[[Tensor], Tensor]


def guided_step(
    model: Velocity,
    x: Tensor,
    t: float,
    following: float,
    objective: Objective,
    region: Tensor,
    strength: float,
    iterations: int = 1,
    through_model: bool = False,
) -> Tensor:
    """One step from t to ``following`` < t whose clean estimate moves up the objective's gradient.

    Args:
        model: ``model(x, t)`` is the velocity, of the shape of x; frozen.
        x: (1, C, K, J, I).
        objective: log-probability, of one element, of a clean estimate; differentiable.
        region: in [0, 1], (1, 1, K, J, I): where the estimate moves.
        strength: mu, length of the push per value of the region, relative to the unit deviation; 0: an Euler step.
        iterations: N_iter, pushes that share the strength.
        through_model: rho > 0 of [T]: push x too, along the gradient through the model, as plain guidance does. If not,
            no gradient passes the model [F].

    Returns:
        x at ``following``, without a gradient.
    """
    through = through_model and strength > 0
    with torch.set_grad_enabled(through):
        x = x.detach().requires_grad_(through)
        velocity = model(x, t)
        clean, noise = clean_estimate(x, velocity, t), noise_estimate(x, velocity, t)
    moved = clean.detach()
    outer = torch.zeros_like(moved)
    if strength > 0:
        for iteration in range(iterations):
            source = clean if through and iteration == 0 else moved.detach().requires_grad_()
            gain = objective(source)
            gradients = torch.autograd.grad(gain, [source, x] if source is clean else [source])
            gate = 1 - float(gain.detach().exp())
            moved = moved + _push(gradients[0], region, gate * strength / iterations)
            if source is clean:
                outer = _push(gradients[1], region, gate * strength) * t
    with torch.no_grad():
        return interpolant(moved, noise.detach(), following) + outer * (1 - following) / (1 - t)


def _push(gradient: Tensor, region: Tensor, length: float) -> Tensor:
    """sqrt(n) times the unit vector along the gradient inside the region, times ``length``."""
    masked = gradient * region
    n = region.sum() * gradient.shape[1]
    return length * n.sqrt() * masked / masked.norm().clamp_min(1e-12)
