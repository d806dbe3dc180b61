"""Slices as other patients and other scanners would show them: deformed, recoloured, or in a contrast of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def smooth_field(shape: Sequence[int], cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (B, C, S, S), about standard normal, with ``cells`` bumps along an edge."""
    batch, channels, size = shape[0], shape[1], shape[-1]
    coarse = torch.randn(batch, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)


def deformation(count: int, size: int, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Sampling grids (B, S, S, 2) for ``grid_sample``: turned, scaled, moved and bent; never mirrored.

    Args:
        count, size: B and S.
        generator: of random numbers.
        strength: 1 turns by 10 degrees, scales by 12 %, moves by 5 % of the slice (standard deviations).
    """
    def normal(deviation: float) -> Tensor:
        return torch.randn(count, generator=generator).clamp(-2, 2) * deviation * strength

    angle, scale_x, scale_y = normal(0.17), normal(0.12).exp(), normal(0.12).exp()
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack([
        torch.stack([cosine * scale_x, -sine * scale_y, normal(0.1)], 1),
        torch.stack([sine * scale_x, cosine * scale_y, normal(0.1)], 1),
    ], 1)
    grid = F.affine_grid(matrix, [count, 1, size, size], align_corners=False)
    bend = smooth_field((count, 2, size), 6, generator) * 0.025 * strength
    return grid + bend.permute(0, 2, 3, 1)


def warp(images: Tensor, grid: Tensor, nearest: bool = False) -> Tensor:
    """(B, C, S, S) sampled at ``grid``; outside is 0."""
    return F.grid_sample(images, grid, mode="nearest" if nearest else "bilinear", align_corners=False)


def random_looks(tissues: Tensor, generator: torch.Generator, group: int = 1) -> Tensor:
    """Images (B, 1, S, S) in [0, 1] from maps of tissues (B, 1, S, S): a random grey value and texture for each tissue.

    After SynthSeg (Billot et al. 2023). Tissue 0 is air and stays dark. ``group`` neighbours share their grey values.
    """
    count, size = tissues.shape[0], tissues.shape[-1]
    means = torch.rand(count // group, 64, generator=generator).repeat_interleave(group, 0)
    deviations = (0.06 * torch.rand(count // group, 64, generator=generator)).repeat_interleave(group, 0)
    means[:, 0], deviations[:, 0] = 0.02 * means[:, 0], 0.2 * deviations[:, 0]
    index = tissues.flatten(1).long()
    texture = torch.randn(count, 1, size, size, generator=generator) + smooth_field((count, 1, size), 40, generator)
    image = means.gather(1, index).view_as(texture) + deviations.gather(1, index).view_as(texture) * texture
    return image.clamp(0, 1)


def recolour(images: Tensor, generator: torch.Generator, group: int = 1, strength: float = 1.0) -> Tensor:
    """Images (B, 1, S, S) in [0, 1] as another scanner would show them: gamma, gain, bias field, blur, noise.

    ``group`` neighbours share all but the noise.
    """
    count, size = images.shape[0], images.shape[-1]
    groups = count // group

    def shared(values: Tensor) -> Tensor:
        return values.repeat_interleave(group, 0).view(count, 1, 1, 1)

    def normal(deviation: float) -> Tensor:
        return torch.randn(groups, generator=generator).clamp(-2.5, 2.5) * deviation * strength

    bias = smooth_field((groups, 1, size), 4, generator) * shared(0.15 * strength * torch.rand(
        groups, generator=generator))[::group]
    images = images.clamp_min(1e-4) ** shared(normal(0.25).exp())
    images = images * shared(normal(0.12).exp()) * bias.exp().repeat_interleave(group, 0)
    blur = shared((torch.rand(groups, generator=generator) < 0.4).float() * torch.rand(groups, generator=generator))
    images = images + blur * (F.avg_pool2d(images, 3, 1, 1, count_include_pad=False) - images)
    noise = shared(0.05 * strength * torch.rand(groups, generator=generator))
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
