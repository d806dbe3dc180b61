"""SAM 2 (Ravi et al. 2024, arXiv 2408.00714) through transformers' ``Sam2VideoModel``: encode, remember, decode.

The image processor of transformers needs torchvision; slices are prepared here instead. The published sizes keep their
weights' names; a small one of ours (``abdomen``) has a memory at stride 8 instead of 16, for organs of few pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..errors import GenSegError

MEMORY_CHANNELS = 64
"""Width of a memory in every size: it is fixed in transformers."""
MASK_SCALE = 4
"""Masks are so much finer than a memory."""

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _published(channels: int, heads: int, blocks: list[int], global_blocks: list[int], windows: list[int],
               background: int) -> dict[str, Any]:
    """Configuration of a published SAM 2.1; they differ in the image encoder only."""
    widths = [channels * 2**stage for stage in range(4)]
    backbone = {
        "hidden_size": channels, "num_attention_heads": heads, "blocks_per_stage": blocks,
        "embed_dim_per_stage": widths, "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": windows, "global_attention_blocks": global_blocks,
        "window_positional_embedding_background_size": [background, background],
    }
    model = {"vision_config": {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}}
    return {"model": model, "normalisation": _IMAGENET}


def _abdomen() -> dict[str, Any]:
    """Ours: slices of 160 pixels, features at strides 2, 4 and 8, 128 channels, one grey channel."""
    size, width = 160, 128
    widths = [24, 48, 96, 192]
    backbone = {
        "hidden_size": widths[0], "num_channels": 1, "image_size": [size, size], "patch_stride": [2, 2],
        "blocks_per_stage": [1, 1, 6, 2], "embed_dim_per_stage": widths, "num_attention_heads": 1, "mlp_ratio": 2.0,
        "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 8, 10, 10],
        # The last stage's windows cover the whole slice, so its attention is global in any case.
        "global_attention_blocks": [], "window_positional_embedding_background_size": [10, 10],
    }
    model = {
        # At 400 tokens, plain matrix products are faster on a CPU than fused attention, backwards above all.
        "attn_implementation": "eager",
        "image_size": size,
        "vision_config": {
            "backbone_config": backbone, "backbone_channel_list": widths[::-1], "fpn_hidden_size": width,
            "backbone_feature_sizes": [[size // 2] * 2, [size // 4] * 2, [size // 8] * 2],
        },
        "prompt_encoder_config": {"hidden_size": width, "image_size": size, "patch_size": 8},
        "mask_decoder_config": {
            "hidden_size": width, "mlp_dim": 2 * width, "num_attention_heads": 4, "iou_head_hidden_dim": width,
            "dynamic_multimask_via_stability": False,
        },
        "memory_attention_hidden_size": width, "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 2 * width, "memory_attention_rope_feat_sizes": [size // 8] * 2,
        "memory_attention_dropout": 0.0, "memory_attention_rope_dropout": 0.0,
        "memory_encoder_hidden_size": width, "mask_downsampler_embed_dim": width, "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 2 * width, "multimask_output_for_tracking": False,
    }
    return {"model": model, "normalisation": {"mean": [0.3], "std": [0.25]}}


SIZES: dict[str, dict[str, Any]] = {
    "abdomen": _abdomen(),
    "hiera-tiny": _published(96, 1, [1, 2, 7, 2], [5, 7, 9], [8, 4, 14, 7], 7),
    "hiera-small": _published(96, 1, [1, 2, 11, 2], [7, 10, 13], [8, 4, 14, 7], 7),
    "hiera-base-plus": _published(112, 2, [2, 3, 16, 3], [12, 16, 20], [8, 4, 14, 7], 14),
    "hiera-large": _published(144, 2, [2, 6, 36, 4], [23, 33, 43], [8, 4, 16, 8], 7),
}
"""Size -> changes of transformers' default configuration, and how grey values in [0, 1] are normalised."""


@dataclass(frozen=True)
class Windows:
    """A square part of each of B slices, in cells of the memory's grid.

    Attributes:
        corners: (y, x) of the first cell of each.
        edge: cells along an edge, the same in all.
    """

    corners: tuple[tuple[int, int], ...]
    edge: int

    def cut(self, maps: Tensor, scale: int = 1) -> Tensor:
        """Maps (B or 1, C, scale h, scale w) of whole slices -> (B, C, scale edge, scale edge)."""
        size = scale * self.edge
        parts = [maps[min(row, len(maps) - 1), :, scale * y : scale * y + size, scale * x : scale * x + size]
                 for row, (y, x) in enumerate(self.corners)]
        return torch.stack(parts)


@dataclass(frozen=True)
class Features:
    """What the image encoder makes of slices, as the mask decoder takes it.

    Attributes:
        high: (B, C/8, 4h, 4w).
        middle: (B, C/4, 2h, 2w).
        low: (B, C, h, w): the grid of the memory.
        windows: what part of the slices these are of; None: the whole.
    """

    high: Tensor
    middle: Tensor
    low: Tensor
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.low)

    def select(self, indices: Tensor | slice) -> Features:
        """Features of some of the whole slices, in any order, repeated at will."""
        return Features(self.high[indices], self.middle[indices], self.low[indices])

    def expand(self, count: int) -> Features:
        """The features of one slice for ``count`` organs, without copying; others must have this length already."""
        if len(self) == count:
            return self
        high, middle, low = (level.expand(count, -1, -1, -1) for level in (self.high, self.middle, self.low))
        return Features(high, middle, low)

    def cut(self, windows: Windows) -> Features:
        """The features in a window of each of the whole slices."""
        return Features(windows.cut(self.high, 4), windows.cut(self.middle, 2), windows.cut(self.low), windows)

    def cut_alike(self, maps: Tensor, scale: int = 1) -> Tensor:
        """The part of maps of whole slices (B or 1, C, scale h, scale w) that these features are of."""
        return maps if self.windows is None else self.windows.cut(maps, scale)


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder makes of a memory.

    Attributes:
        mask_logits: (B, 1, 4h, 4w).
        object_logits: (B,): whether the object is in the slice at all.
    """

    mask_logits: Tensor
    object_logits: Tensor


class Sam2(nn.Module):
    """SAM 2 reduced to what DiffuSAM needs; one memory stands for all that SAM 2 knows of an object."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from transformers import Sam2VideoModel

        entry = SIZES[size]
        self.model = Sam2VideoModel(_configuration(entry["model"]))
        mean, std = (torch.tensor(entry["normalisation"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.mean = nn.Buffer(mean, persistent=False)
        self.std = nn.Buffer(std, persistent=False)

    @property
    def image_size(self) -> int:
        """Pixels along an edge of the slices that the encoder sees."""
        size = self.model.config.image_size
        assert isinstance(size, int)  # slices are square
        return size

    @property
    def memory_size(self) -> int:
        """Cells along an edge of a memory."""
        return int(self.model.backbone_feature_sizes[-1][0])

    @property
    def channels(self) -> int:
        """C of :class:`Features`."""
        return int(self.model.hidden_dim)

    def encode(self, images: Tensor) -> Features:
        """Slices (B, 1, S, S) in [0, 1] -> features; other sizes than :attr:`image_size` are resized."""
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        pixels = (images - self.mean) / self.std
        levels = self.model.get_image_features(pixels, return_dict=True).fpn_hidden_states
        sizes = self.model.backbone_feature_sizes
        return Features(*(level.permute(1, 2, 0).unflatten(2, tuple(size)) for level, size in
                          zip(levels, sizes, strict=True)))

    def remember(self, features: Features, mask_logits: Tensor) -> Tensor:
        """Memory (B, 64, h, w) of masks given as logits (B, 1, H, W) at any resolution."""
        edge = 16 * features.low.shape[-1]
        return self.remember_mask(features, F.interpolate(mask_logits.float(), (edge, edge), mode="bilinear").sigmoid())

    def remember_mask(self, features: Features, masks: Tensor) -> Tensor:
        """Memory (B, 64, h, w) of masks given as probabilities or truth (B, 1, H, W) in [0, 1]."""
        edge = 16 * features.low.shape[-1]
        if masks.shape[-1] != edge:
            masks = F.interpolate(masks.float(), (edge, edge), mode="bilinear", antialias=True)
        config = self.model.config
        scaled = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        return self.model.memory_encoder(features.expand(len(masks)).low, scaled)[0]

    def decode(self, features: Features, memory: Tensor) -> Decoded:
        """Masks from memories (B, 64, h, w) alone: no prompt. Features of one slice serve all B memories."""
        features = features.expand(len(memory))
        count = len(memory)
        points = torch.zeros(count, 1, 2, device=memory.device)
        kinds = torch.full((count, 1), -1, dtype=torch.int32, device=memory.device)
        return self._decode(features, self._condition(features, memory), points, kinds)

    def decode_prompt(self, features: Features, points: Tensor, kinds: Tensor) -> Decoded:
        """Masks from prompts, without a memory.

        Args:
            features: of B slices.
            points: (B, N, 2) x, y in pixels of the encoder's slices.
            kinds: (B, N): 1 inside, 0 outside, 2 and 3 the two corners of a box, -1 nothing.
        """
        empty = self.model.no_memory_embedding.view(1, -1, 1, 1)
        return self._decode(features, features.low + empty, points, kinds)

    def _decode(self, features: Features, low: Tensor, points: Tensor, kinds: Tensor) -> Decoded:
        model = self.model
        sparse, dense = model.prompt_encoder(points[:, None].to(low.dtype), kinds[:, None], None, None)
        position = features.cut_alike(model.get_image_wide_positional_embeddings()).expand(len(low), -1, -1, -1)
        masks, _, _, scores = model.mask_decoder(
            image_embeddings=low, image_positional_embeddings=position, sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=features.cut_alike(dense), multimask_output=False,
            high_resolution_features=[features.high, features.middle],
        )
        return Decoded(masks[:, 0].float(), scores.flatten().float())

    def _condition(self, features: Features, memory: Tensor) -> Tensor:
        """Image features (B, C, h, w) that know the memory, as those of the frame on which the object was marked."""
        model, whole = self.model, (self.memory_size,) * 2
        low = features.low
        vision_position = model.vision_encoder.neck.position_encoding((1, self.channels, *whole), low.device, low.dtype)
        memory_position = model.memory_encoder.position_encoding((1, MEMORY_CHANNELS, *whole), low.device, memory.dtype)
        memory_position = memory_position + model.memory_temporal_positional_encoding[-1].view(1, -1, 1, 1)
        # transformers' own forward takes whole slices only. Rotary positions tell how far apart two cells are, wherever
        # the window lies.
        attention = model.memory_attention
        rotary = attention.rotary_emb(low, _positions(low.shape[-1], low.device))
        conditioned = _sequence(low) + 0.1 * _sequence(features.cut_alike(vision_position))
        for layer in attention.layers:
            conditioned = layer(conditioned, _sequence(memory), _sequence(features.cut_alike(memory_position)), rotary)
        return attention.layer_norm(conditioned)[:, 0].transpose(1, 2).unflatten(2, tuple(low.shape[2:]))


def _positions(edge: int, device: torch.device) -> Tensor:
    """x and y (h*w, 2) of the cells of a square, row after row."""
    y, x = torch.meshgrid(torch.arange(edge, device=device), torch.arange(edge, device=device), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def _sequence(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h*w, C), as the layers of transformers' memory attention take it."""
    return x.flatten(2).transpose(1, 2)[:, None]


def _configuration(changes: Mapping[str, Any]) -> Any:
    from transformers import Sam2VideoConfig

    own = copy.deepcopy(dict(changes))  # transformers keeps and changes what it is given
    vision = {"model_type": "sam2_vision_model", **own.pop("vision_config")}
    vision["backbone_config"] = {"model_type": "sam2_hiera_det_model", **vision["backbone_config"]}
    return Sam2VideoConfig(vision_config=vision, **own)


def sam2(size: str) -> Sam2:
    """Build a :class:`Sam2` of one of :data:`SIZES`.

    Raises:
        GenSegError: if there is no such size, or transformers is not installed.
    """
    if size not in SIZES:
        raise GenSegError(f"There is no SAM 2 of the size {size!r}; there are {', '.join(SIZES)}.")
    try:
        return Sam2(size)
    except ImportError as error:
        raise GenSegError("SAM 2 needs the package transformers: pip install transformers.") from error
