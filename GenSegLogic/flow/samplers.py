"""Samplers: pure functions (model, x, times, callback), in the manner of k-diffusion.

``model(x, t)`` returns the velocity for x of any shape and a float t. A grid of times may fall (generation) or rise
(inversion); both integrate dx/dt = -v. ``callback(step, steps)`` is called after every
step and may raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, int], None]


def _ignore(step: int, steps: int) -> None:
    """No callback."""


def euler(model: Velocity, x: Tensor, times: Sequence[float], callback: Callback = _ignore) -> Tensor:
    """First-order integration: one evaluation a step. Loses variance on few steps; see :func:`heun`."""
    steps = len(times) - 1
    for step in range(steps):
        t, following = times[step], times[step + 1]
        x = x + (t - following) * model(x, t)
        callback(step + 1, steps)
    return x


def heun(model: Velocity, x: Tensor, times: Sequence[float], callback: Callback = _ignore) -> Tensor:
    """Second-order integration: two evaluations a step; keeps more of the variance on few steps."""
    steps = len(times) - 1
    for step in range(steps):
        t, following = times[step], times[step + 1]
        velocity = model(x, t)
        predicted = x + (t - following) * velocity
        x = x + (t - following) * 0.5 * (velocity + model(predicted, following))
        callback(step + 1, steps)
    return x


def invert(
    model: Velocity, clean: Tensor, times: Sequence[float], callback: Callback = _ignore, sampler=euler
) -> Tensor:
    """Deterministic noise that leads back to ``clean``: integrate along rising ``times`` (from 0 to t0).

    Raises:
        ValueError: if the times do not rise.
    """
    if any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"inversion needs rising times, got {list(times)}")
    return sampler(model, clean, times, callback)
