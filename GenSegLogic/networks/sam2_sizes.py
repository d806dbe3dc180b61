"""The sizes of SAM 2: the published ones and ours. Without torch: what they need can be told before anything loads."""

from __future__ import annotations

from typing import Any

ENCODER_BATCH = 8
"""Slices that are encoded at once."""
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


def slice_bytes(size: str, maps: int) -> int:
    """Bytes that a slice's features take in float32, with so many maps at the resolution of masks beside them.

    Args:
        size: one of :data:`SIZES`.
        maps: read-outs and masks.
    """
    # Channels shrink by 2 and 4 where the grids of :class:`.sam2.Features` are 2 and 4 times as fine.
    channels = SIZES[size]["model"].get("memory_attention_hidden_size", 256)
    return 4 * (4 * channels + 16 * maps) * _cells(size)


def encoding_bytes(size: str) -> int:
    """Bytes that the image encoder holds at most while it works on one slice in float32.

    Thirteen of its widest maps (measured: 316 MB with hiera-tiny).
    """
    width = SIZES[size]["model"]["vision_config"]["backbone_config"]["hidden_size"]
    return 13 * 4 * width * 16 * _cells(size)


def _cells(size: str) -> int:
    """How many cells the grid of a memory has."""
    return SIZES[size]["model"].get("memory_attention_rope_feat_sizes", [64])[0] ** 2
