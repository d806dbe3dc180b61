"""Nodule predictors: image-level classifiers that also say where, because they are fully convolutional.

Both families turn a crop into a coarse map of logits; the image's logit is the logsumexp over the map
(multiple-instance learning), so that one bit per crop is all the supervision they need.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .tinyvit import TinyViT


class NodulePredictor(nn.Module):
    """Base of the predictors.

    Input (B, 1, K, J, I) in [0, 1] (the bundle's HU window); K, J, I are multiples of ``stride``. Subclasses give
    ``features`` and own ``classifier``, a 1x1x1 convolution.
    """

    stride: Sequence[int] = (4, 4, 4)
    classifier: nn.Conv3d

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, K, J, I) -> (B, C, K/sk, J/sj, I/si), the layer that class activation maps look at."""
        raise TypeError(f"{type(self).__name__} has no features")

    def map_from_features(self, features: Tensor) -> Tensor:
        """Features -> map of logits (B, k, j, i)."""
        return self.classifier(F.silu(features))[:, 0]

    def logit_map(self, x: Tensor) -> Tensor:
        """(B, 1, K, J, I) -> (B, k, j, i): logit of a nodule at every position."""
        return self.map_from_features(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, K, J, I) -> (B,): logit of "there is a nodule in this crop"."""
        return self.logit_map(x).flatten(1).logsumexp(1)


def map_classifier(channels: int) -> nn.Conv3d:
    """The 1x1x1 convolution from features to logits; it starts at "no nodule anywhere"."""
    classifier = nn.Conv3d(channels, 1, 1)
    nn.init.normal_(classifier.weight, std=0.05)
    classifier.bias = nn.Parameter(torch.full((1,), -7.0))
    return classifier


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride, dilation, dilation, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with group normalisation, added to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = _convolution(inputs, outputs, stride, dilation)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = _convolution(outputs, outputs, 1, dilation)
        self.skip = nn.Conv3d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, K, J, I) -> (B, C', K/s, J/s, I/s)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.skip is None else self.skip(x))


class CNNPredictor(NodulePredictor):
    """A small 3D residual network; its map has a quarter of the crop's resolution."""

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = channels
        self.stem = nn.Conv3d(1, first, 5, 2, 2)
        self.blocks = nn.Sequential(
            ResidualBlock(first, first),
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, second),
            ResidualBlock(second, third, dilation=2),
            ResidualBlock(third, third),
            ResidualBlock(third, third, dilation=2),
            ResidualBlock(third, third),
        )
        self.norm = nn.GroupNorm(8, third)
        self.classifier = map_classifier(third)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, K, J, I) -> (B, C, K/4, J/4, I/4)."""
        return self.norm(self.blocks(self.stem(x)))


class TinyViTPredictor(NodulePredictor):
    """A TinyViT that reads axial slices as triplets (k - gap, k, k + gap), joined by logsumexp over the slices."""

    def __init__(
        self,
        embed_dims: Sequence[int] = (32, 64, 96),
        depths: Sequence[int] = (1, 2, 2),
        num_heads: Sequence[int] = (2, 2, 4),
        window_sizes: Sequence[int] = (6, 6, 6),
        patch_strides: Sequence[int] = (2, 2),
        downsample_strides: Sequence[int] = (2, 1),
        gap: int = 2,
    ) -> None:
        super().__init__()
        self.gap = gap
        stride = 1
        for step in (*patch_strides, *downsample_strides):
            stride *= step
        self.stride = (1, stride, stride)
        self.encoder = TinyViT(
            in_channels=3,
            embed_dims=list(embed_dims),
            depths=list(depths),
            num_heads=list(num_heads),
            window_sizes=list(window_sizes),
            mlp_ratio=3.0,
            patch_strides=list(patch_strides),
            downsample_strides=list(downsample_strides),
            neck_channels=None,
            normalization="group",
        )
        self.norm = nn.GroupNorm(8, embed_dims[-1])
        self.classifier = map_classifier(embed_dims[-1])

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, K, J, I) -> (B, C, K, J/s, I/s)."""
        batch, _, slices, rows, columns = x.shape
        padded = F.pad(x, (0, 0, 0, 0, self.gap, self.gap), mode="replicate")
        triplets = torch.stack([padded[:, 0, d * self.gap : d * self.gap + slices] for d in range(3)], dim=2)
        encoded = self.norm(self.encoder(triplets.reshape(-1, 3, rows, columns)))
        return encoded.reshape(batch, slices, *encoded.shape[1:]).transpose(1, 2)


def cnn(**arguments) -> CNNPredictor:
    """Build a :class:`CNNPredictor`."""
    return CNNPredictor(**arguments)


def tinyvit(**arguments) -> TinyViTPredictor:
    """Build a :class:`TinyViTPredictor`."""
    return TinyViTPredictor(**arguments)
