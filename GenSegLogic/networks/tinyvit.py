"""TinyViT, the image encoder of MobileSAM and LiteMedSAM, in plain torch.

Architecture after Wu et al. 2022, "TinyViT" (arXiv 2207.10666), as LiteMedSAM (Ma et al., github.com/bowang-lab/MedSAM)
uses it: one stage of inverted bottlenecks, then stages of window attention with a learned bias per relative offset.
Parameter names are those of the published checkpoints, so that these load unchanged; the code is ours. Ours as well:
any image size, any number of stages and strides, and group normalisation, because batch normalisation with averaged
weights scored 50 % in evaluation mode where it scored 93 % in training mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own documentation uses this name)
from torch import Tensor, nn

from GenSegLogic.errors import GenSegError

Normalization = Literal["group", "batch"]

LITEMEDSAM: dict[str, Any] = {
    "in_channels": 3,
    "embed_dims": [64, 128, 160, 320],
    "depths": [2, 2, 6, 2],
    "num_heads": [2, 4, 5, 10],
    "window_sizes": [7, 7, 14, 7],
    "mlp_ratio": 4.0,
    "patch_strides": [1, 1],
    "patch_kernel": 1,
    "downsample_strides": [2, 2, 1],
    "neck_channels": 256,
    "normalization": "batch",
}
"""Arguments of the encoder in lite_medsam.pth: (B, 3, 256, 256) -> (B, 256, 64, 64)."""

MAX_GROUPS = 8


def _norm(channels: int, normalization: Normalization, weight: float = 1.0) -> nn.Module:
    norm: nn.BatchNorm2d | nn.GroupNorm
    if normalization == "batch":
        norm = nn.BatchNorm2d(channels)
    else:
        norm = nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)
    nn.init.constant_(norm.weight, weight)
    return norm


class ConvNorm(nn.Sequential):
    """Convolution without bias, then normalisation; `bn` is the published name whichever normalisation it is."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        normalization: Normalization,
        stride: int = 1,
        groups: int = 1,
        norm_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = _norm(out_channels, normalization, norm_weight)


class DropPath(nn.Module):
    """Stochastic depth: while training, drops a sample's whole residual branch with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class PatchEmbed(nn.Module):
    """Two convolutions from the image to the first stage's width."""

    def __init__(
        self, in_channels: int, width: int, strides: Sequence[int], kernel: int, normalization: Normalization
    ) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(in_channels, width // 2, kernel, normalization, strides[0]),
            nn.GELU(),
            ConvNorm(width // 2, width, kernel, normalization, strides[1]),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck; its last normalisation starts at weight 0, so that the block starts as GELU(x)."""

    def __init__(self, channels: int, expand_ratio: float, normalization: Normalization, drop_path: float) -> None:
        super().__init__()
        hidden = int(channels * expand_ratio)
        self.conv1 = ConvNorm(channels, hidden, 1, normalization)
        self.conv2 = ConvNorm(hidden, hidden, 3, normalization, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels, 1, normalization, norm_weight=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.gelu(self.conv1(x))
        branch = F.gelu(self.conv2(branch))
        return F.gelu(x + self.drop_path(self.conv3(branch)))


class PatchMerging(nn.Module):
    """Change of width and, with stride 2, of resolution, between stages."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, normalization: Normalization) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1, normalization)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, normalization, stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels, 1, normalization)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Mlp(nn.Module):
    """Pre-normalised two-layer perceptron on the last dimension."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


def offset_indices(window: int) -> tuple[Tensor, int]:
    """Index of the relative offset (|Δrow|, |Δcolumn|) for each pair of a window's pixels, and how many there are.

    Offsets are numbered in the order in which the pairs, row by row, first show them. From the first pixel all
    offsets are met in row-major order, so the number is |Δrow| · window + |Δcolumn|.
    """
    position = torch.arange(window)
    delta = (position[:, None] - position[None, :]).abs()
    index = delta[:, None, :, None] * window + delta[None, :, None, :]
    return index.reshape(window * window, window * window), window * window


class Attention(nn.Module):
    """Multi-head self-attention inside one window, with a learned bias per head and relative offset."""

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        indices, offsets = offset_indices(window)
        self.attention_biases = nn.Parameter(torch.zeros(heads, offsets))
        self.register_buffer("attention_bias_idxs", indices, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: x[windows, pixels, channels] to the same shape."""
        windows, pixels, channels = x.shape
        # Published layout of qkv's rows: per head its query, key and value, not all queries first.
        qkv = self.qkv(self.norm(x)).view(windows, pixels, self.heads, -1).transpose(1, 2)
        query, key, value = qkv.chunk(3, dim=-1)
        bias = self.attention_biases[:, self.attention_bias_idxs].to(query.dtype)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return self.proj(x.transpose(1, 2).reshape(windows, pixels, channels))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution that joins the windows, and a perceptron."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        local_conv_size: int,
        normalization: Normalization,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, local_conv_size, normalization, groups=channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._window_attention(x))
        x = self.local_conv(x)
        tokens = x.permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(tokens)).permute(0, 3, 1, 2)

    def _window_attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = self.window
        # As published, the zeros that fill the last windows take part in the attention.
        x = F.pad(x, (0, -width % size, 0, -height % size))
        rows, columns = x.shape[2] // size, x.shape[3] // size
        x = x.view(batch, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        x = self.attn(x.reshape(batch * rows * columns, size * size, channels))
        x = x.view(batch, rows, columns, size, size, channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(batch, channels, rows * size, columns * size)[:, :, :height, :width]


class Stage(nn.Module):
    """Blocks of one resolution, then the step to the next stage, if there is one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a channels-first image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """TinyViT image encoder: x[B, in_channels, H, W] -> features [B, out_channels, ceil(H/stride), ceil(W/stride)].

    Attributes `out_channels` and `stride` describe the output. H and W are free.

    in_channels: channels of the input image.
    embed_dims, depths, num_heads, window_sizes: one entry per stage, two stages or more. Stage 0 is convolutional, so
        that its entries of num_heads and window_sizes are not used. Widths must be even and divisible by the heads.
    mlp_ratio, mbconv_expand_ratio: hidden width over width in the perceptrons and in the convolutional blocks.
    patch_strides, patch_kernel: the two convolutions of the patch embedding; (1, 1) with kernel 1 in LiteMedSAM,
        (2, 2) with kernel 3 in MobileSAM.
    downsample_strides: one entry (1 or 2) per step between stages; default 2, but 1 for the third, as published.
    neck_channels: width of the neck (convolutions of kernel 1 and 3 with layer norms); None leaves the neck out.
    normalization: "group" (ours) or "batch" (published).
    drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first; training only.

    Raises GenSegError if the lists do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        mbconv_expand_ratio: float = 4.0,
        local_conv_size: int = 3,
        patch_strides: Sequence[int] = (2, 2),
        patch_kernel: int = 3,
        downsample_strides: Sequence[int] | None = None,
        neck_channels: int | None = 256,
        normalization: Normalization = "group",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        stages = len(embed_dims)
        if downsample_strides is None:
            downsample_strides = [1 if step == 2 else 2 for step in range(stages - 1)]
        _check(embed_dims, depths, num_heads, window_sizes, patch_strides, downsample_strides, normalization)
        rates = [drop_path_rate * block / max(sum(depths) - 1, 1) for block in range(sum(depths))]

        self.patch_embed = PatchEmbed(in_channels, embed_dims[0], patch_strides, patch_kernel, normalization)
        self.layers = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            stage_rates = rates[sum(depths[:stage]) :][:depth]
            blocks: list[nn.Module]
            if stage == 0:
                blocks = [MBConv(channels, mbconv_expand_ratio, normalization, rate) for rate in stage_rates]
            else:
                heads, window = num_heads[stage], window_sizes[stage]
                blocks = [
                    TinyViTBlock(channels, heads, window, mlp_ratio, local_conv_size, normalization, rate)
                    for rate in stage_rates
                ]
            merging = None
            if stage < stages - 1:
                merging = PatchMerging(channels, embed_dims[stage + 1], downsample_strides[stage], normalization)
            self.layers.append(Stage(blocks, merging))
        self.neck: nn.Module = nn.Identity()
        if neck_channels is not None:
            self.neck = nn.Sequential(
                nn.Conv2d(embed_dims[-1], neck_channels, 1, bias=False),
                LayerNorm2d(neck_channels),
                nn.Conv2d(neck_channels, neck_channels, 3, padding=1, bias=False),
                LayerNorm2d(neck_channels),
            )
        self.out_channels = embed_dims[-1] if neck_channels is None else neck_channels
        self.stride = math.prod(patch_strides) * math.prod(downsample_strides)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)


def _check(
    embed_dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_sizes: Sequence[int],
    patch_strides: Sequence[int],
    downsample_strides: Sequence[int],
    normalization: str,
) -> None:
    stages = len(embed_dims)
    if stages < 2 or not len(depths) == len(num_heads) == len(window_sizes) == stages:
        raise GenSegError(
            "TinyViT needs two stages or more and equally long embed_dims, depths, num_heads and window_sizes, "
            f"but got lengths {stages}, {len(depths)}, {len(num_heads)} and {len(window_sizes)}."
        )
    if len(patch_strides) != 2 or len(downsample_strides) != stages - 1:
        raise GenSegError(
            f"TinyViT with {stages} stages needs 2 patch_strides and {stages - 1} downsample_strides, "
            f"but got {len(patch_strides)} and {len(downsample_strides)}."
        )
    for width, heads in zip(embed_dims[1:], num_heads[1:], strict=True):
        if width % heads:
            raise GenSegError(f"TinyViT's stage of width {width} cannot be split over {heads} heads: choose a divisor.")
    if embed_dims[0] % 2:
        raise GenSegError(f"TinyViT's first width must be even, but is {embed_dims[0]}.")
    if normalization not in ("group", "batch"):
        raise GenSegError(f"TinyViT's normalization must be 'group' or 'batch', not '{normalization}'.")


def tinyvit(**arguments: Any) -> TinyViT:
    """Build a TinyViT from a bundle's arguments; see `TinyViT` for them and `LITEMEDSAM` for the published ones."""
    return TinyViT(**arguments)
