"""The straight path between data and noise, and what a velocity says about both ends.

Shapes: x, clean, noise and velocity are tensors of one shape; t is a float or a tensor that broadcasts against them.
"""

from __future__ import annotations

import torch
from torch import Tensor

Time = float | Tensor


def interpolant(clean: Tensor, noise: Tensor, t: Time) -> Tensor:
    """x_t = (1 - t) z + t eps."""
    return (1 - t) * clean + t * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """v = z - eps, the negative time derivative of x_t."""
    return clean - noise


def clean_estimate(x: Tensor, velocity: Tensor, t: Time) -> Tensor:
    """z_hat = x + t v: Tweedie's estimate of the data."""
    return x + t * velocity


def noise_estimate(x: Tensor, velocity: Tensor, t: Time) -> Tensor:
    """eps_hat = x - (1 - t) v."""
    return x - (1 - t) * velocity


def renoised(x: Tensor, noise: Tensor, t: float, noisier: float) -> Tensor:
    """A draw at the noise fraction ``noisier`` from x at ``t`` < ``noisier`` and fresh noise of unit deviation."""
    keep = (1 - noisier) / (1 - t)
    return keep * x + (noisier**2 - keep**2 * t**2) ** 0.5 * noise


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of unit deviation and the shape of ``x``, the same on every device."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)


def score(x: Tensor, velocity: Tensor, t: Time) -> Tensor:
    """Gradient of log p_t(x) = ((1 - t) v - x) / t; singular at t = 0: not finite there."""
    return ((1 - t) * velocity - x) / t


def corrected_target(clean: Tensor, noise: Tensor, t: Time) -> Tensor:
    """ViCTr's Tweedie-corrected target u = z - (1 - t) eps."""
    return clean - (1 - t) * noise


def from_corrected(x: Tensor, target: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """Clean and noise estimates from the corrected target: D = 1 - t + t^2 >= 3/4 has no singularity."""
    divisor = 1 - t + t * t
    return (t * target + (1 - t) * x) / divisor, (x - (1 - t) * target) / divisor


def times(start: float, end: float, steps: int) -> list[float]:
    """``steps`` + 1 evenly spaced noise fractions from ``start`` to ``end``.

    Raises:
        ValueError: if ``steps`` < 1 or an end lies outside [0, 1].
    """
    if steps < 1 or not (0 <= start <= 1 and 0 <= end <= 1):
        raise ValueError(f"times needs at least 1 step between fractions in [0, 1], got {steps} from {start} to {end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()
