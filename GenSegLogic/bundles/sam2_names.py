"""Names of SAM 2's weights: from the publisher's checkpoints (``.pt``) to transformers' ``Sam2VideoModel``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PARTS = (
    ("image_encoder.trunk.patch_embed.proj.", "vision_encoder.backbone.patch_embed.projection."),
    ("image_encoder.trunk.", "vision_encoder.backbone."),
    ("image_encoder.neck.", "vision_encoder.neck."),
    ("sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
     "prompt_encoder.shared_embedding.positional_embedding"),
    ("sam_prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("sam_prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("sam_prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("sam_prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("sam_prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("sam_prompt_encoder.", "prompt_encoder."),
    ("sam_mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("sam_mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("sam_mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("sam_mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    ("sam_mask_decoder.", "mask_decoder."),
    ("memory_encoder.pix_feat_proj.", "memory_encoder.feature_projection."),
    ("memory_encoder.out_proj.", "memory_encoder.projection."),
    ("memory_encoder.fuser.", "memory_encoder.memory_fuser."),
    ("memory_encoder.mask_downsampler.encoder.12.", "memory_encoder.mask_downsampler.final_conv."),
    ("obj_ptr_tpos_proj.", "temporal_positional_encoding_projection_layer."),
    ("obj_ptr_proj.", "object_pointer_proj."),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
)
"""Beginning of a name -> what replaces it; the first that fits."""

_WITHIN = (
    (r"\.out_proj\.", ".o_proj."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
    (r"\.convs\.(\d)\.conv\.", r".convs.\1."),
)
"""What is replaced anywhere in a name, once the beginning is."""

_TWO_LAYERS = re.compile(r"(.*\.mlp)\.layers\.([01])\.(.*)")
_THREE_LAYERS = re.compile(r"(.*(?:output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head"
                           r"|object_pointer_proj))\.layers\.([012])\.(.*)")
_DOWNSAMPLER = re.compile(r"(.*\.mask_downsampler)\.encoder\.(\d+)\.(.*)")
_POINT = "sam_prompt_encoder.point_embeddings."
_POSITION = "shared_image_embedding.positional_embedding"
_PROMPT_POSITION = "prompt_encoder.shared_embedding.positional_embedding"


def transformers_name(name: str) -> str:
    """A weight's name in transformers, from the publisher's."""
    for old, new in _PARTS:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for pattern, replacement in _WITHIN:
        name = re.sub(pattern, replacement, name)
    if match := _TWO_LAYERS.fullmatch(name):
        name = f"{match[1]}.{('proj_in', 'proj_out')[int(match[2])]}.{match[3]}"
    elif match := _THREE_LAYERS.fullmatch(name):
        name = f"{match[1]}.{('proj_in', 'layers.0', 'proj_out')[int(match[2])]}.{match[3]}"
    elif match := _DOWNSAMPLER.fullmatch(name):
        step, kind = divmod(int(match[2]), 3)  # convolution, norm, activation
        name = f"{match[1]}.layers.{step}.{('conv', 'layer_norm')[kind]}.{match[3]}"
    return name


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All weights under transformers' names; those that have these names already are kept.

    Either form may leave out one of two equal tables of positions.
    """
    import torch

    points = [f"{_POINT}{number}.weight" for number in range(4)]
    renamed = dict(state)
    if not any(name.startswith("vision_encoder.") for name in state):  # some names occur in both forms
        renamed = {transformers_name(name): value for name, value in state.items() if name not in points}
    if all(name in state for name in points):
        renamed["prompt_encoder.point_embed.weight"] = torch.cat([state[name] for name in points])
    for one, other in ((_POSITION, _PROMPT_POSITION), (_PROMPT_POSITION, _POSITION)):
        if other in renamed:
            renamed.setdefault(one, renamed[other])
    return renamed
