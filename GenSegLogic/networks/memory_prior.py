"""The network of DiffuSAM's prior: image features, the slice before and an organ's name -> SAM 2's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .sam2 import MASK_SCALE, MEMORY_CHANNELS, Features


@dataclass(frozen=True)
class Context:
    """What the prior sees in slices, whatever the organ and the step.

    Attributes:
        image: (B, W, h, w).
        readout: (B, organs, 4h, 4w) logits of the organs, read off the features.
        presence: (B, organs) logits that the organ is in the slice.
    """

    image: Tensor
    readout: Tensor
    presence: Tensor

    def select(self, indices: Tensor) -> Context:
        """The context of some of the slices, in any order, repeated at will."""
        return Context(self.image[indices], self.readout[indices], self.presence[indices])

    def cut_alike(self, features: Features) -> Context:
        """The part of whole slices that their features are of."""
        return Context(features.cut_alike(self.image), features.cut_alike(self.readout, MASK_SCALE), self.presence)


class Block(nn.Module):
    """Residual block of two convolutions, scaled and shifted by a condition where there is one."""

    def __init__(self, width: int, condition: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * width) if condition else None
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, W, h, w), (B, condition) -> (B, W, h, w)."""
        hidden = self.norm(self.first(x))
        if self.modulate is not None:
            scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
            hidden = hidden * (1 + scale) + shift
        return x + self.second(F.silu(hidden))


class MemoryPrior(nn.Module):
    """Predicts a clean memory from a noisy one; one network for all organs.

    Memories are told as their difference to a guess, in units of its usual size (:meth:`difference`): the guess is what
    SAM 2 would remember of the organs' read-out, so what is left to draw is what the read-out gets wrong (ours).

    All that depends on the slice alone is computed once, in :meth:`look`; :meth:`forward` is small, for it runs for
    every organ, step and member of the ensemble.
    """

    def __init__(self, feature_channels: int, organs: int, width: int = 128, denoiser_width: int = 96) -> None:
        """
        Args:
            feature_channels: C of :class:`.sam2.Features`.
            organs: number of organs.
            width: channels of the context.
            denoiser_width: channels of the denoiser.
        """
        super().__init__()
        self.organs = organs
        quarter, eighth = feature_channels // 4, feature_channels // 8
        # Strided convolutions bring the finer features to the grid of the memory.
        self.from_high = nn.Sequential(nn.Conv2d(eighth, 48, 3, 2, 1), nn.SiLU(), nn.Conv2d(48, width, 3, 2, 1))
        self.from_middle = nn.Conv2d(quarter, width, 3, 2, 1)
        self.from_low = nn.Conv2d(feature_channels, width, 1)
        self.from_place = nn.Conv2d(5, width, 1)
        self.fine = nn.ModuleList([Block(width), Block(width)])
        self.down = nn.Conv2d(width, width, 3, 2, 1)
        self.wide = nn.ModuleList([Block(width), Block(width)])
        self.up = nn.Conv2d(2 * width, width, 1)
        self.last = nn.ModuleList([Block(width), Block(width)])
        half = width // 2
        self.raise_low, self.raise_middle = nn.Conv2d(width, half, 1), nn.Conv2d(quarter, half, 1)
        self.raised = Block(half)
        self.readout = nn.Conv2d(half, organs * 4, 3, padding=1)
        self.readout_high = nn.Conv2d(eighth, organs, 3, padding=1)
        self.presence = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, organs))

        self.organ = nn.Embedding(organs, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.entry = nn.Conv2d(3 * MEMORY_CHANNELS + 1 + MASK_SCALE**2, denoiser_width, 3, padding=1)
        self.entry_image = nn.Conv2d(width, denoiser_width, 1)
        self.denoise = nn.ModuleList([Block(denoiser_width, width) for _ in range(3)])
        last = nn.Conv2d(denoiser_width, MEMORY_CHANNELS, 3, padding=1)
        nn.init.zeros_(last.weight)  # at the start, the estimate is the guess
        self.exit = nn.Sequential(nn.GroupNorm(8, denoiser_width), nn.SiLU(), last)
        self.mean = nn.Buffer(torch.zeros(1, MEMORY_CHANNELS, 1, 1))
        self.std = nn.Buffer(torch.ones(1, MEMORY_CHANNELS, 1, 1))
        self.spread = nn.Buffer(torch.ones(1, MEMORY_CHANNELS, 1, 1))

    def look(self, features: Features) -> Context:
        """Context of B slices."""
        edges = features.low.shape[-2:]
        x = self.from_low(features.low) + self.from_middle(features.middle) + self.from_high(features.high)
        x = x + self.from_place(_place(*edges).to(x))
        for block in self.fine:
            x = block(x)
        wide = self.down(x)
        for block in self.wide:
            wide = block(wide)
        x = self.up(torch.cat([x, F.interpolate(wide, edges, mode="bilinear")], 1))
        for block in self.last:
            x = block(x)
        raised = self.raise_middle(features.middle) + F.interpolate(self.raise_low(x), scale_factor=2, mode="bilinear")
        readout = F.pixel_shuffle(self.readout(F.silu(self.raised(raised))), 2) + self.readout_high(features.high)
        presence = self.presence(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return Context(x, readout.float(), presence.float())

    def forward(self, noisy: Tensor, t: Tensor, image: Tensor, readout: Tensor, guess: Tensor, previous: Tensor,
                known: Tensor, organ: Tensor) -> Tensor:
        """Estimate of the clean difference to the guess.

        Args:
            noisy: (n, 64, h, w) x_t.
            t: (n,) noise fraction in [0, 1].
            image: (n, W, h, w) context of the slices.
            readout: (n, 1, 4h, 4w) logits of the organ.
            guess: (n, 64, h, w) normalised memory that SAM 2 has of the read-out.
            previous: (n, 64, h, w) normalised memory of the slice before.
            known: (n,) 1 where there is one, else 0.
            organ: (n,) index.
        """
        mask = known.view(-1, 1, 1, 1).to(noisy)
        inputs = [noisy, guess, previous * mask, mask.expand(-1, 1, *noisy.shape[2:]),
                  F.pixel_unshuffle(readout.sigmoid().to(noisy) * 2 - 1, MASK_SCALE)]
        condition = self.organ(organ) + self.time(_fourier(t))
        x = self.entry(torch.cat(inputs, 1)) + self.entry_image(image)
        for block in self.denoise:
            x = block(x, condition)
        return self.exit(x).float()

    def normalise(self, memory: Tensor) -> Tensor:
        """SAM 2's memory -> mean 0 and deviation 1 in every channel."""
        return (memory.float() - self.mean) / self.std

    def difference(self, normalised: Tensor, guess: Tensor) -> Tensor:
        """Normalised memory and guess -> what the prior draws."""
        return (normalised - guess) / self.spread

    def restore(self, difference: Tensor, guess: Tensor) -> Tensor:
        """What the prior drew, and the guess -> SAM 2's memory."""
        return (guess + difference * self.spread) * self.std + self.mean

    def reading(self) -> list[nn.Parameter]:
        """The weights behind :meth:`look`; all others draw memories."""
        parts = (self.from_high, self.from_middle, self.from_low, self.from_place, self.fine, self.down, self.wide,
                 self.up, self.last, self.raise_low, self.raise_middle, self.raised, self.readout, self.readout_high,
                 self.presence)
        return [parameter for part in parts for parameter in part.parameters()]


def _place(height: int, width: int) -> Tensor:
    """Where in the slice a cell lies (1, 5, h, w): x and y in [-1, 1], their squares and product."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, x * x, y * y, x * y])[None]


def _fourier(t: Tensor) -> Tensor:
    """Noise fractions (n,) -> (n, 32) sines and cosines of 0.5 to 16 turns."""
    turns = t.float()[:, None] * torch.logspace(-1, 4, 16, base=2.0, device=t.device) * 2 * math.pi
    return torch.cat([turns.sin(), turns.cos()], 1)


def memory_prior(**arguments: int) -> MemoryPrior:
    """Build a :class:`MemoryPrior`."""
    return MemoryPrior(**arguments)
