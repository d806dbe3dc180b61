"""ResNet-50 as a fully convolutional encoder, with torchvision's parameter names.

Architecture after He et al. 2015 (arXiv 1512.03385), with the stride in a block's 3x3 convolution as in torchvision.
RadImageNet (Mei et al. 2022, doi 10.1148/ryai.210315) publishes weights of it; the code is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812  (torch's own documentation uses this name)
from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution round a shortcut; `stride` is that of the 3x3 convolution."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """ResNet encoder without pooling and classifier: x[B, in_channels, H, W] -> features[B, out_channels, H/32, W/32].

    in_channels: channels of the input image.
    depths: blocks in each of the four stages; (3, 4, 6, 3) is ResNet-50.
    width: channels of the first convolution.

    Attributes `out_channels` (2048 for ResNet-50) and `stride` (32) describe the output.
    """

    def __init__(self, in_channels: int = 3, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for number, depth in enumerate(depths, start=1):
            stage_width = width * 2 ** (number - 1)
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(channels, stage_width, stride=2 if number > 1 and block == 0 else 1))
                channels = stage_width * EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.out_channels = channels
        self.stride = 2 ** (len(depths) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def resnet(**arguments: Any) -> ResNet:
    """Build a ResNet encoder from a bundle's arguments; without any it is RadImageNet's ResNet-50."""
    return ResNet(**arguments)
