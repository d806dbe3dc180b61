"""Builders of MAISI's two networks from MONAI's classes, the published configurations, and the grids they know.

MAISI (Guo et al. 2024, arXiv 2409.11169; version 2, Zhao et al. 2025, arXiv 2508.05772) is a factor-4 autoencoder and
a UNet that predicts the velocity of a rectified flow in its latents. Arguments are those that NVIDIA publishes with
the weights (github.com/NVIDIA-Medtech/NV-Generate-CTMR, configs/config_network_rflow.json). The same builders, given
smaller arguments, make the small networks that ship with GenSeg.

Conventions of the published velocity network: `timesteps` is 1000 times the noise fraction, `spacing_tensor` is the
spacing in mm times 100, `class_labels` names the modality, and its output is the clean latent minus the noise, as in
the rest of GenSeg. Latents are multiplied by the scale factor that the checkpoint carries; tensors run along R, A, S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi, MaisiGroupNorm3D
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.blocks.selfattention import SABlock
from torch import nn

from GenSegLogic.errors import GenSegError

MAISI_AUTOENCODER: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [64, 128, 256],
    "num_res_blocks": [2, 2, 2],
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
    "use_checkpointing": False,
    "use_convtranspose": False,
}
"""Arguments of autoencoder_v1.pt (CT) and autoencoder_v2.pt (MR): 20.9 million parameters."""

MAISI_VELOCITY: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 4,
    "out_channels": 4,
    "num_channels": [64, 128, 256, 512],
    "attention_levels": [False, False, True, True],
    "num_head_channels": [0, 0, 32, 32],
    "num_res_blocks": 2,
    "include_top_region_index_input": False,
    "include_bottom_region_index_input": False,
    "include_spacing_input": True,
    "num_class_embeds": 128,
    "resblock_updown": True,
    "include_fc": True,
}
"""Arguments of diff_unet_3d_rflow-ct.pt and diff_unet_3d_rflow-mr.pt: 180.5 million parameters."""


def autoencoder(**arguments: Any) -> AutoencoderKlMaisi:
    """Build MONAI's MAISI autoencoder: image[B, 1, ...] <-> latent[B, latent_channels, ... / 2^(levels - 1)].

    `arguments` are MONAI's. Where they are silent, choices that work on a CPU hold: three dimensions, no splitting of
    convolutions. `norm_float16` and `use_flash_attention` change nothing: torch's own kernels normalise, in the
    precision of their input, and attend (see `velocity`).
    """
    defaults = {"spatial_dims": 3, "num_splits": 1}
    arguments.pop("use_flash_attention", None)
    network = AutoencoderKlMaisi(**(defaults | arguments | {"norm_float16": False}))
    _attend_without_matrix(network)
    _normalise_at_once(network)
    return network


def velocity(**arguments: Any) -> DiffusionModelUNetMaisi:
    """Build MONAI's MAISI UNet: (x[B, C, ...], timesteps[B], class_labels[B], spacing_tensor[B, 3]) -> velocity like x.

    `arguments` are MONAI's, three dimensions if they are silent. `use_flash_attention` is not needed: attention goes
    through torch's own kernels on every device.
    """
    defaults = {"spatial_dims": 3}
    arguments.pop("use_flash_attention", None)
    network = DiffusionModelUNetMaisi(**(defaults | arguments))
    _attend_without_matrix(network)
    return network


def _attend_without_matrix(network: nn.Module) -> None:
    # MONAI's constructors refuse "flash" attention on a machine without CUDA, but all it does is call torch's
    # scaled_dot_product_attention, which runs anywhere. Without it a latent of 64^3 needs 1 GiB for each layer's
    # attention matrix. No weight depends on it.
    for module in network.modules():
        if isinstance(module, SABlock):
            module.use_flash_attention = True


def _normalise_at_once(network: nn.Module) -> None:
    # MONAI's group norm walks over the groups, to hold whole scans on a GPU; its gradient fills a tensor of zeros as
    # large as the input for every group, which takes more time than the convolutions do. No weight depends on it.
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, MaisiGroupNorm3D):
                setattr(parent, name, nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine))


def check_maisi_grid(shape: Sequence[int], spacing: Sequence[float], modality: Literal["ct", "mr"] = "ct") -> None:
    """Check that MAISI's published weights know a grid; elsewhere they run but give unusable volumes.

    The rules are the publisher's (check_input_ct and check_input_mr in NV-Generate-CTMR).

    Args:
        shape: voxels of the whole image along R, A, S.
        spacing: mm along the same axes.
        modality: "ct" or "mr".

    Raises:
        GenSegError: saying which rule the grid breaks and what to choose instead.
    """
    if len(shape) != 3 or len(spacing) != 3:
        raise GenSegError(f"MAISI needs a grid of three axes, not {tuple(shape)} voxels with spacing {tuple(spacing)}.")
    grid = f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm"
    problem = _ct_problem(shape, spacing) if modality == "ct" else _mr_problem(shape, spacing)
    if problem:
        raise GenSegError(f"MAISI's {modality.upper()} weights do not know the grid {grid}: {problem}.")


def _ct_problem(shape: Sequence[int], spacing: Sequence[float]) -> str:
    if shape[0] != shape[1] or shape[0] not in (256, 384, 512):
        return "the first two sizes must be equal, and one of 256, 384 and 512"
    if shape[2] not in range(128, 769, 128):
        return "the third size must be a multiple of 128 from 128 to 768"
    if spacing[0] != spacing[1] or not 0.5 <= spacing[0] <= 3.0:
        return "the first two spacings must be equal, and from 0.5 to 3 mm"
    if not 0.5 <= spacing[2] <= 5.0:
        return "the third spacing must be from 0.5 to 5 mm"
    if shape[0] * spacing[0] < 256:
        return "the field of view must be 256 mm or more across (384 mm or more for the trunk is better)"
    return ""


def _mr_problem(shape: Sequence[int], spacing: Sequence[float]) -> str:
    flat = shape[2] == 128 and shape[0] == shape[1] and shape[0] in (128, 256, 384, 512)
    deep = tuple(shape) in ((128, 256, 256), (256, 128, 256), (256, 256, 256))
    if not flat and not deep:
        return (
            "the size must be n x n x 128 with n one of 128, 256, 384 and 512, "
            "or one of 256 x 256 x 256, 128 x 256 x 256 and 256 x 128 x 256"
        )
    if not all(0.4 <= mm <= 5.0 for mm in spacing):
        return "each spacing must be from 0.4 to 5 mm"
    return ""
