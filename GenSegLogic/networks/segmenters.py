"""The supervised upper bound: a small 3D U-Net trained on voxel labels, for comparison only."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNet
from torch import nn


def unet(channels: Sequence[int] = (16, 32, 64), **arguments) -> nn.Sequential:
    """MONAI's residual U-Net: (B, 1, K, J, I) in [0, 1] -> logits (B, 1, K, J, I); edges are multiples of 4.

    The logits come from a convolution of their own: MONAI would normalise the one channel of its last level.
    """
    defaults = {"norm": ("GROUP", {"num_groups": 8}), "num_res_units": 1, "strides": (2,) * (len(channels) - 1)}
    body = UNet(3, 1, channels[0], tuple(channels), **(defaults | arguments))
    return nn.Sequential(body, nn.Conv3d(channels[0], 1, 1))
