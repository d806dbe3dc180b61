"""The supervised upper bound: a small 3D U-Net trained on voxel labels, for comparison only."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNet


def unet(channels: Sequence[int] = (16, 32, 64), **arguments) -> UNet:
    """MONAI's residual U-Net: (B, 1, K, J, I) in [0, 1] -> logits (B, 1, K, J, I); edges are multiples of 4."""
    defaults = {"norm": ("GROUP", {"num_groups": 8}), "num_res_units": 1, "strides": (2,) * (len(channels) - 1)}
    return UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=tuple(channels), **(defaults | arguments))
