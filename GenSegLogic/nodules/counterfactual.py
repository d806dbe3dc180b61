"""The scan without the nodule: training-free guidance of a frozen rectified flow [N, T, F].

[N] Petersen et al. 2026 (arXiv 2604.08313); [T] and [F] are those of :mod:`GenSegLogic.flow.guidance`. Where they are
silent, we decide ("ours"): the latent region of interest outside of which the known path is kept, and guidance that may
only take density away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..flow.guidance import guided_step
from ..flow.interpolant import interpolant, noise_like, renoised, times
from ..flow.samplers import invert
from ..networks.predictors import NodulePredictor
from .models import LatentFlow


@dataclass(frozen=True)
class Guidance:
    """How hard and how long to guide.

    Attributes:
        start: t0, the noise fraction that the latent is taken to.
        steps: steps back from t0 to 0; inversion takes as many.
        strength: mu, length of one guidance step per latent value of the region, relative to the unit deviation.
        iterations: N_iter, gradient steps on the clean estimate per step.
        recurrences: N_recur, times that every step is repeated.
        samples: number of delta in the mean over p(no nodule).
        smoothing: standard deviation of delta as a fraction of t.
        through_network: rho > 0 of [T]: add the gradient through the velocity network, as plain guidance does.
        whole_field: decode the whole field instead of the region.
        only_darker: keep of the predictor's gradient what takes density away. A nodule only adds density, and making
            the image denser is a cheap way to fool a predictor.
    """

    start: float = 0.7
    steps: int = 4
    strength: float = 0.6
    iterations: int = 1
    recurrences: int = 1
    samples: int = 1
    smoothing: float = 0.1
    through_network: bool = False
    whole_field: bool = False
    only_darker: bool = True


@dataclass(frozen=True)
class Counterfactual:
    """What guidance made of one field, all (1, 1, K, J, I) in the normalised scale.

    Attributes:
        reconstruction: the autoencoder's view of the input; residuals are taken against it, so that its error cancels.
        image: the same without the nodule.
        probability_before, probability_after: p(nodule) of both.
    """

    reconstruction: Tensor
    image: Tensor
    probability_before: float
    probability_after: float


def ball(shape: tuple[int, int, int], center: tuple[float, float, float], radius: float, soft: float) -> Tensor:
    """A soft ball (1, 1, K, J, I) in [0, 1]: 1 within ``radius`` of ``center`` (k, j, i; voxels), 0 ``soft`` beyond."""
    axes = [torch.arange(n, dtype=torch.float32) - c for n, c in zip(shape, center, strict=True)]
    k, j, i = torch.meshgrid(*axes, indexing="ij")
    distance = torch.sqrt(k**2 + j**2 + i**2)
    return ((radius + soft - distance) / max(soft, 1e-6)).clamp(0, 1)[None, None]


def bounding_window(mask: Tensor, multiple: int) -> tuple[slice, ...]:
    """The smallest box of whole multiples that holds all of a mask (1, 1, K, J, I)."""
    window = []
    for axis in range(2, 5):
        others = tuple(a for a in range(5) if a != axis)
        inside = torch.nonzero(mask.amax(others) > 0).flatten()
        first = int(inside[0]) // multiple * multiple
        last = min(-(-(int(inside[-1]) + 1) // multiple) * multiple, mask.shape[axis])
        window.append(slice(first, last))
    return tuple(window)


def log_no_nodule(predictor: nn.Module, image: Tensor) -> Tensor:
    """log p(no nodule) of images (B, 1, K, J, I), shape (B,)."""
    return F.logsigmoid(-predictor(image).float())


def counterfactual(
    flow: LatentFlow,
    predictor: NodulePredictor,
    image: Tensor,
    region: Tensor,
    spacing_mm: float,
    guidance: Guidance,
    generator: torch.Generator,
    callback: Callable[[int, int], None] = lambda step, steps: None,
) -> Counterfactual:
    """Paint ``image`` without the nodule in ``region``.

    Args:
        flow, predictor: frozen models.
        image: (1, 1, K, J, I) in [0, 1].
        region: soft mask in [0, 1] of the latent region of interest, (1, 1, K/d, J/d, I/d).
        spacing_mm: of ``image``, isotropic.
        guidance: see :class:`Guidance`; ``strength`` 0 is the unguided control.
        generator: of all noise.
        callback: called after every step; may raise.
    """
    velocity = flow.velocity(spacing_mm)
    # The predictor takes whole multiples of its stride.
    window = bounding_window(region, math.ceil(max(predictor.stride) / flow.downsampling))
    decoded = (slice(None), slice(None), *((slice(None),) * 3 if guidance.whole_field else window))
    with torch.no_grad():
        clean = flow.encode(image)
        before = float(torch.sigmoid(predictor(flow.decode(clean[decoded]))))
        rising = times(0.0, guidance.start, guidance.steps)
        inverted = invert(velocity, clean, rising, lambda step, steps: callback(step, 2 * steps))
        # The straight path through the input that ends where inversion ended.
        known_noise = (inverted - (1 - guidance.start) * clean) / guidance.start
        x = inverted

    falling = rising[::-1]
    for step in range(guidance.steps):
        t, following = falling[step], falling[step + 1]
        for repeat in range(guidance.recurrences):
            objective = partial(_objective, flow, predictor, t, decoded, guidance, generator)
            x_next = guided_step(velocity, x, t, following, objective, region, guidance.strength,
                                 guidance.iterations, guidance.through_network)
            known = interpolant(clean, known_noise, following)
            x_next = torch.lerp(known, x_next, region)
            if repeat + 1 < guidance.recurrences:
                x = renoised(x_next, noise_like(x, generator), following, t)
        x = x_next
        callback(guidance.steps + step + 1, 2 * guidance.steps)

    with torch.no_grad():
        reconstruction = flow.decode(clean)
        painted = flow.decode(x)
        after = float(torch.sigmoid(predictor(flow.decode(x[decoded]))))
    return Counterfactual(reconstruction, painted, before, after)


def _objective(
    flow: LatentFlow,
    predictor: nn.Module,
    t: float,
    decoded: tuple[slice, ...],
    guidance: Guidance,
    generator: torch.Generator,
    latent: Tensor,
) -> Tensor:
    """L = log mean over delta of p(no nodule | decode(z + delta)) in the decoded window."""
    part = latent[decoded]
    logs = []
    for _ in range(guidance.samples):
        delta = guidance.smoothing * t * noise_like(part, generator)
        image = flow.decode_for_gradient(part + delta)
        if guidance.only_darker:
            image.register_hook(lambda gradient: gradient.clamp_max(0))
        logs.append(log_no_nodule(predictor, image))
    return torch.logsumexp(torch.cat(logs), 0) - torch.log(torch.tensor(float(len(logs))))
