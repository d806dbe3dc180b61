"""A Gaussian mixture, whose rectified flow is known in closed form: the exact reference of all flow tests.

With z ~ sum_m w_m N(mu_m, s_m^2 I) and x_t = (1 - t) z + t eps, each mode of p_t is N((1 - t) mu_m, a_m I) with
a_m = (1 - t)^2 s_m^2 + t^2, and E[z | x, m] = mu_m + (1 - t) s_m^2 / a_m (x - (1 - t) mu_m).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GaussianMixture:
    """Modes over vectors of D values.

    Attributes:
        weights: (M,), summing to 1.
        means: (M, D).
        deviations: (M,), isotropic.
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) draws."""
        modes = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[modes] + self.deviations[modes, None] * noise

    def _modes(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets (B, M, D) from the modes of p_t, their variances (M,), responsibilities (B, M)."""
        variances = (1 - t) ** 2 * self.deviations**2 + t**2
        offsets = x[:, None] - (1 - t) * self.means
        logs = self._log_terms(offsets, variances)
        return offsets, variances, torch.softmax(logs, 1)

    def _log_terms(self, offsets: Tensor, variances: Tensor) -> Tensor:
        half_log = 0.5 * offsets.shape[-1] * torch.log(2 * torch.pi * variances)
        return torch.log(self.weights) - 0.5 * offsets.square().sum(-1) / variances - half_log

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """log p_t(x) for x (B, D), shape (B,)."""
        variances = (1 - t) ** 2 * self.deviations**2 + t**2
        return torch.logsumexp(self._log_terms(x[:, None] - (1 - t) * self.means, variances), 1)

    def clean_mean(self, x: Tensor, t: float) -> Tensor:
        """E[z | x_t = x], (B, D)."""
        offsets, variances, responsibilities = self._modes(x, t)
        shrink = (1 - t) * self.deviations**2 / variances
        return (responsibilities[..., None] * (self.means + shrink[:, None] * offsets)).sum(1)

    def noise_mean(self, x: Tensor, t: float) -> Tensor:
        """E[eps | x_t = x], (B, D)."""
        offsets, variances, responsibilities = self._modes(x, t)
        return (responsibilities[..., None] * (t / variances)[:, None] * offsets).sum(1)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """E[z - eps | x_t = x], (B, D): what a perfectly trained network returns."""
        return self.clean_mean(x, t) - self.noise_mean(x, t)

    def mode_logit(self, z: Tensor, mode: int) -> Tensor:
        """log p(mode | z) - log p(other modes | z) for data z (B, D), shape (B,): the exact classifier."""
        logs = self._log_terms(z[:, None] - self.means, self.deviations**2)
        others = [m for m in range(len(self.weights)) if m != mode]
        return logs[:, mode] - torch.logsumexp(logs[:, others], 1)


def exact_map(x: Tensor, mean: Tensor, deviation: float, start: float, end: float) -> Tensor:
    """Flow map of one Gaussian from time ``start`` to ``end``: x keeps its place in units of p_t's deviation."""

    def spread(t: float) -> float:
        return ((1 - t) ** 2 * deviation**2 + t**2) ** 0.5

    return (1 - end) * mean + spread(end) / spread(start) * (x - (1 - start) * mean)


class Identity(nn.Module):
    """An autoencoder without loss; counts the voxels that it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[int] = []
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # networks are asked for their device

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation."""
        return image, torch.zeros_like(image)

    def decode(self, latent: Tensor) -> Tensor:
        """The image."""
        self.decoded.append(latent.numel())
        return latent

    def decoding_blocks(self) -> list[Callable[[Tensor], Tensor]]:
        """Decoding in one block."""
        return [self.decode]


class ExactVelocity(nn.Module):
    """The closed form behind the interface of MAISI's network."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.spacings: list[float] = []

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor, spacing_tensor: Tensor) -> Tensor:
        """Velocity of x (1, 1, K, J, I)."""
        self.spacings.append(float(spacing_tensor[0, 0]))
        return self.mixture.velocity(x.flatten(1), float(timesteps[0]) / 1000).reshape(x.shape)
