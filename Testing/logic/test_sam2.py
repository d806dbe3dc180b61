"""SAM 2: the published checkpoints in both forms, and what encode, remember and decode promise."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from GenSegLogic.bundles import load_bundle
from GenSegLogic.bundles.importers import import_checkpoint
from GenSegLogic.bundles.sam2_names import to_transformers
from GenSegLogic.errors import GenSegError
from GenSegLogic.networks import build
from GenSegLogic.networks.sam2 import MEMORY_CHANNELS, SIZES, Features, Sam2
from GenSegLogic.networks.sam2_sizes import slice_bytes

MILLIONS = {"hiera-tiny": 38.9, "hiera-small": 46.0, "hiera-base-plus": 80.8, "hiera-large": 224.4}
"""Parameters as the publisher counts them."""

# The publisher's names of one weight each (sam2/modeling in facebookresearch/sam2), beside transformers'.
NAMES = {
    "image_encoder.trunk.pos_embed_window": "vision_encoder.backbone.pos_embed_window",
    "image_encoder.trunk.patch_embed.proj.weight": "vision_encoder.backbone.patch_embed.projection.weight",
    "image_encoder.trunk.blocks.1.norm1.bias": "vision_encoder.backbone.blocks.1.layer_norm1.bias",
    "image_encoder.trunk.blocks.1.attn.qkv.weight": "vision_encoder.backbone.blocks.1.attn.qkv.weight",
    "image_encoder.trunk.blocks.1.attn.proj.weight": "vision_encoder.backbone.blocks.1.attn.proj.weight",
    "image_encoder.trunk.blocks.1.mlp.layers.0.weight": "vision_encoder.backbone.blocks.1.mlp.proj_in.weight",
    "image_encoder.trunk.blocks.1.mlp.layers.1.weight": "vision_encoder.backbone.blocks.1.mlp.proj_out.weight",
    "image_encoder.trunk.blocks.1.proj.weight": "vision_encoder.backbone.blocks.1.proj.weight",
    "image_encoder.neck.convs.2.conv.weight": "vision_encoder.neck.convs.2.weight",
    "memory_attention.layers.3.self_attn.out_proj.weight": "memory_attention.layers.3.self_attn.o_proj.weight",
    "memory_attention.layers.3.cross_attn_image.k_proj.weight": "memory_attention.layers.3.cross_attn_image.k_proj"
                                                                ".weight",
    "memory_attention.layers.3.norm3.weight": "memory_attention.layers.3.layer_norm3.weight",
    "memory_attention.layers.3.linear2.weight": "memory_attention.layers.3.linear2.weight",
    "memory_attention.norm.weight": "memory_attention.layer_norm.weight",
    "memory_encoder.mask_downsampler.encoder.9.weight": "memory_encoder.mask_downsampler.layers.3.conv.weight",
    "memory_encoder.mask_downsampler.encoder.10.weight": "memory_encoder.mask_downsampler.layers.3.layer_norm.weight",
    "memory_encoder.mask_downsampler.encoder.12.weight": "memory_encoder.mask_downsampler.final_conv.weight",
    "memory_encoder.pix_feat_proj.weight": "memory_encoder.feature_projection.weight",
    "memory_encoder.fuser.layers.1.gamma": "memory_encoder.memory_fuser.layers.1.scale",
    "memory_encoder.fuser.layers.1.dwconv.weight": "memory_encoder.memory_fuser.layers.1.depthwise_conv.weight",
    "memory_encoder.fuser.layers.1.norm.weight": "memory_encoder.memory_fuser.layers.1.layer_norm.weight",
    "memory_encoder.fuser.layers.1.pwconv2.weight": "memory_encoder.memory_fuser.layers.1.pointwise_conv2.weight",
    "memory_encoder.out_proj.weight": "memory_encoder.projection.weight",
    "sam_prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
    "sam_prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
    "sam_prompt_encoder.mask_downscaling.4.bias": "prompt_encoder.mask_embed.layer_norm2.bias",
    "sam_prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.mask_embed.conv3.bias",
    "sam_mask_decoder.transformer.layers.0.self_attn.q_proj.weight": "mask_decoder.transformer.layers.0.self_attn"
                                                                     ".q_proj.weight",
    "sam_mask_decoder.transformer.layers.0.norm4.weight": "mask_decoder.transformer.layers.0.layer_norm4.weight",
    "sam_mask_decoder.transformer.layers.1.mlp.layers.1.bias": "mask_decoder.transformer.layers.1.mlp.proj_out.bias",
    "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj.bias":
        "mask_decoder.transformer.final_attn_token_to_image.o_proj.bias",
    "sam_mask_decoder.transformer.norm_final_attn.weight": "mask_decoder.transformer.layer_norm_final_attn.weight",
    "sam_mask_decoder.output_upscaling.0.weight": "mask_decoder.upscale_conv1.weight",
    "sam_mask_decoder.output_upscaling.1.weight": "mask_decoder.upscale_layer_norm.weight",
    "sam_mask_decoder.output_upscaling.3.weight": "mask_decoder.upscale_conv2.weight",
    "sam_mask_decoder.output_hypernetworks_mlps.3.layers.1.weight": "mask_decoder.output_hypernetworks_mlps.3.layers.0"
                                                                    ".weight",
    "sam_mask_decoder.iou_prediction_head.layers.2.weight": "mask_decoder.iou_prediction_head.proj_out.weight",
    "sam_mask_decoder.pred_obj_score_head.layers.0.weight": "mask_decoder.pred_obj_score_head.proj_in.weight",
    "sam_mask_decoder.conv_s0.weight": "mask_decoder.conv_s0.weight",
    "sam_mask_decoder.obj_score_token.weight": "mask_decoder.obj_score_token.weight",
    "obj_ptr_proj.layers.1.weight": "object_pointer_proj.layers.0.weight",
    "obj_ptr_tpos_proj.weight": "temporal_positional_encoding_projection_layer.weight",
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_embed": "no_memory_embedding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
    "mask_downsample.weight": "mask_downsample.weight",
}

# From transformers' names back to the publisher's; written apart from the importer's rules, from the table above.
BACK = (
    (r"^vision_encoder\.backbone\.(blocks\.\d+)\.mlp\.proj_in\.", r"image_encoder.trunk.\1.mlp.layers.0."),
    (r"^vision_encoder\.backbone\.(blocks\.\d+)\.mlp\.proj_out\.", r"image_encoder.trunk.\1.mlp.layers.1."),
    (r"^vision_encoder\.backbone\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "sam_mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "sam_mask_decoder.output_upscaling.3."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.conv", "memory_encoder.mask_downsampler.encoder.0"),
    (r"^memory_encoder\.mask_downsampler\.layers\.0\.layer_norm", "memory_encoder.mask_downsampler.encoder.1"),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.conv", "memory_encoder.mask_downsampler.encoder.3"),
    (r"^memory_encoder\.mask_downsampler\.layers\.1\.layer_norm", "memory_encoder.mask_downsampler.encoder.4"),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.conv", "memory_encoder.mask_downsampler.encoder.6"),
    (r"^memory_encoder\.mask_downsampler\.layers\.2\.layer_norm", "memory_encoder.mask_downsampler.encoder.7"),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.conv", "memory_encoder.mask_downsampler.encoder.9"),
    (r"^memory_encoder\.mask_downsampler\.layers\.3\.layer_norm", "memory_encoder.mask_downsampler.encoder.10"),
    (r"^memory_encoder\.mask_downsampler\.final_conv", "memory_encoder.mask_downsampler.encoder.12"),
    (r"^memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"^memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv", ".pwconv"), (r"\.scale$", ".gamma"),
    (r"\.layer_norm(\d?)\.", r".norm\1."), (r"\.o_proj\.", ".out_proj."),
    (r"(transformer\.layers\.\d\.mlp)\.proj_in\.", r"\1.layers.0."),
    (r"(transformer\.layers\.\d\.mlp)\.proj_out\.", r"\1.layers.1."),
    (r"(hypernetworks_mlps\.\d|_head|object_pointer_proj)\.layers\.0\.", r"\1.layers.1."),
    (r"(hypernetworks_mlps\.\d|_head|object_pointer_proj)\.proj_in\.", r"\1.layers.0."),
    (r"(hypernetworks_mlps\.\d|_head|object_pointer_proj)\.proj_out\.", r"\1.layers.2."),
    (r"^object_pointer_proj", "obj_ptr_proj"), (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding",
     "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"), (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"), (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
)


def original(name: str) -> str:
    for pattern, replacement in BACK:
        name = re.sub(pattern, replacement, name)
    return name


def test_names_of_single_weights() -> None:
    for published, ours in NAMES.items():
        assert list(to_transformers({published: torch.zeros(1)})) == [ours]
        assert original(ours) == published


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """All weights of SAM 2.1 tiny, random, under transformers' names."""
    torch.manual_seed(0)
    state = build("sam2", {"size": "hiera-tiny"}).model.state_dict()
    generator = torch.Generator().manual_seed(1)
    state = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    state["prompt_encoder.shared_embedding.positional_embedding"] = state[
        "shared_image_embedding.positional_embedding"].clone()
    return state


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.parametrize("form", ["hub", "hub without the second table", "original"])
def test_published_tiny_becomes_a_bundle(tiny: dict[str, torch.Tensor], folder: Path, form: str) -> None:
    file = folder / "model.safetensors"
    if form == "original":
        state = {original(name): value for name, value in tiny.items() if not name.startswith("shared_image")}
        points = state.pop("sam_prompt_encoder.point_embed.weight")
        state |= {f"sam_prompt_encoder.point_embeddings.{n}.weight": points[n : n + 1].clone() for n in range(4)}
        file = folder / "sam2.1_hiera_tiny.pt"
        torch.save({"model": state}, file)
    else:
        left_out = "prompt_encoder.shared_embedding.positional_embedding" if form != "hub" else ""
        safetensors.torch.save_file({name: value for name, value in tiny.items() if name != left_out}, file)
    bundle = import_checkpoint("sam2.1-hiera-tiny", {"weights": file}, folder / "sam2.1-hiera-tiny")
    assert (bundle.kind, bundle.metadata["commercial_use"]) == ("sam2", True)
    loaded = load_bundle(bundle).networks["sam2"]
    assert isinstance(loaded, Sam2)
    assert (loaded.image_size, loaded.memory_size, loaded.channels) == (1024, 64, 256)
    state = loaded.model.state_dict()
    assert state.keys() == tiny.keys()
    assert all(torch.equal(value, tiny[name]) for name, value in state.items())


def test_another_sizes_weights_are_refused(tiny: dict[str, torch.Tensor], folder: Path) -> None:
    file = folder / "other.safetensors"
    safetensors.torch.save_file(tiny, file)
    with pytest.raises(GenSegError, match=r"lacks|another model"):
        import_checkpoint("sam2.1-hiera-small", {"weights": file}, folder / "sam2.1-hiera-small")
    assert not (folder / "sam2.1-hiera-small").exists()


@pytest.mark.parametrize("size", MILLIONS)
def test_every_published_size_has_its_parameters(size: str) -> None:
    with torch.device("meta"):
        network = build("sam2", {"size": size})
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(MILLIONS[size] * 1e6, rel=0.01)


def test_unknown_size_is_refused() -> None:
    with pytest.raises(GenSegError, match="hiera-tiny"):
        build("sam2", {"size": "huge"})
    assert "abdomen" in SIZES


def test_whole_slices_know_their_memory_as_in_transformers() -> None:
    """Windows need the layers of the memory attention by themselves; on whole slices they are its own forward."""
    torch.manual_seed(0)
    network = build("sam2", {"size": "abdomen"}).eval()
    assert isinstance(network, Sam2)
    model, edge = network.model, network.memory_size
    low, memory = torch.randn(2, network.channels, edge, edge), torch.randn(2, MEMORY_CHANNELS, edge, edge)
    features = Features(torch.zeros(2, 1, 4 * edge, 4 * edge), torch.zeros(2, 1, 2 * edge, 2 * edge), low)

    def sequence(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).permute(2, 0, 1)

    position = model.vision_encoder.neck.position_encoding(low.shape, low.device, low.dtype)
    remembered = model.memory_encoder.position_encoding(memory.shape, memory.device, memory.dtype)
    remembered = remembered + model.memory_temporal_positional_encoding[-1].view(1, -1, 1, 1)
    with torch.no_grad():
        theirs = model.memory_attention(sequence(low), sequence(memory), sequence(position), sequence(remembered))
        ours = network._condition(features, memory)
    torch.testing.assert_close(ours, theirs.squeeze(0).transpose(1, 2).unflatten(2, (edge, edge)))


def test_what_a_slice_takes_is_told_without_torch() -> None:
    features = Sam2("abdomen").encode(torch.rand(1, 1, 160, 160))
    assert sum(level.nbytes for level in (features.high, features.middle, features.low)) == slice_bytes("abdomen", 0)
    masks = torch.zeros(5, *features.high.shape[-2:])
    assert slice_bytes("abdomen", 5) - slice_bytes("abdomen", 0) == masks.nbytes
    published = 4 * (32 * 256**2 + 64 * 128**2 + 256 * 64**2)  # all of them: 256 channels, memories of 64 x 64
    assert slice_bytes("hiera-large", 0) == slice_bytes("hiera-tiny", 0) == published
