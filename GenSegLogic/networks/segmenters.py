"""The supervised upper bound: a small 3D U-Net trained on voxel labels, for comparison only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .autoencoder import fold, unfold
from .predictors import ResidualBlock


class FoldingUNet(nn.Module):
    """A U-Net that works on cubes of 2x2x2 voxels as channels, as the autoencoder does, so that it trains in minutes.

    (B, 1, K, J, I) in [0, 1] -> logits of the same shape; edges are multiples of 8. It is told how far every place is
    from the middle, for there the click is that says which of the things in sight is meant.
    """

    def __init__(self, channels: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        first, second, third = channels
        self.stem = nn.Conv3d(9, first, 3, padding=1)
        self.high = ResidualBlock(first, first)
        self.down = ResidualBlock(first, second, stride=2)
        self.low = nn.Sequential(ResidualBlock(second, third, stride=2), ResidualBlock(third, second))
        self.up_low = ResidualBlock(2 * second, first)
        self.up_high = ResidualBlock(2 * first, first)
        self.head = nn.Sequential(nn.GroupNorm(8, first), nn.SiLU(), nn.Conv3d(first, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Image -> logits."""
        folded = fold(x)
        high = self.high(self.stem(torch.cat([folded, distance_to_middle(folded)], dim=1)))
        middle = self.down(high)
        raised = F.interpolate(self.low(middle), scale_factor=2.0, mode="trilinear")
        middle = self.up_low(torch.cat([raised, middle], dim=1))
        raised = F.interpolate(middle, scale_factor=2.0, mode="trilinear")
        return unfold(self.head(self.up_high(torch.cat([raised, high], dim=1))).float())


def distance_to_middle(x: Tensor) -> Tensor:
    """Distance of every place of (B, C, K, J, I) to the middle, (B, 1, K, J, I); 1 at the faces' middles of a cube."""
    axes = [torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:]]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return distance.expand(len(x), 1, *x.shape[2:])


def unet(**arguments) -> FoldingUNet:
    """Build a :class:`FoldingUNet`."""
    return FoldingUNet(**arguments)
