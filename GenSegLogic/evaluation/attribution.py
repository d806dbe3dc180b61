"""Attribution maps of a nodule predictor: Grad-CAM, Score-CAM and Integrated Gradients.

Selvaraju et al. 2017 (Grad-CAM), Wang et al. 2020 (Score-CAM), Sundararajan et al. 2017 (Integrated Gradients). Written
out for 3D fields and for networks that read slices: MONAI's GradCAM flips importance by default and needs parameters
that take gradients, ours are frozen.

A map is (K, J, I) on the field's voxels, rectified, 1 at its maximum (all 0 where nothing speaks for a nodule).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..networks.predictors import CNNPredictor, NodulePredictor, TinyViTPredictor

LAYERS = ("features", "early")
"""Where class activation maps may look: the predictor's ``features``, or a block of twice their resolution."""
BASELINES = ("air", "blurred", "lung")
"""Images without evidence: the window's lowest value, the field without detail, the mean of its lung."""
BLUR_VOXELS = 4.0
PATH_STEPS = 24
MASKED_AT_ONCE = 8


def layer_module(predictor: NodulePredictor, layer: str) -> nn.Module:
    """The module whose output a layer of LAYERS is.

    Raises:
        TypeError: for a predictor of another family.
    """
    if layer == "features" and isinstance(predictor, (CNNPredictor, TinyViTPredictor)):
        return predictor.norm
    if isinstance(predictor, CNNPredictor):
        return predictor.blocks[0]
    if isinstance(predictor, TinyViTPredictor):
        return list(predictor.get_submodule("encoder.layers.0.blocks").children())[-1]
    raise TypeError(f"{type(predictor).__name__} has no layer {layer!r}")


@contextlib.contextmanager
def _kept_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Put a leaf in place of the module's output and keep it: gradients start there, frozen parameters or not."""
    kept: list[Tensor] = []

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = module.register_forward_hook(replace)
    try:
        yield kept
    finally:
        handle.remove()


def _volumetric(x: Tensor) -> Tensor:
    """(1, C, k, j, i) as it is; slices (K, C, j, i) as (1, C, K, j, i)."""
    return x if x.ndim == 5 else x.transpose(0, 1)[None]


def _finished(combined: Tensor, shape: torch.Size) -> Tensor:
    """A coarse map (1, 1, k, j, i) rectified, on the field's voxels (K, J, I), 1 at its maximum."""
    positive = F.interpolate(combined.clamp_min(0), shape[2:], mode="trilinear", align_corners=False)[0, 0]
    return positive / positive.max().clamp_min(1e-12)


def grad_cam(predictor: NodulePredictor, field: Tensor, layer: str = "features") -> Tensor:
    """Activations weighted by the mean gradient of the logit over their channel.

    Args:
        predictor: frozen or not.
        field: (1, 1, K, J, I) in [0, 1].
        layer: one of LAYERS.
    """
    with torch.enable_grad(), _kept_output(layer_module(predictor, layer)) as kept:
        logit = predictor(field).sum()
        (gradient,) = torch.autograd.grad(logit, kept)
    activation, gradient = _volumetric(kept[0].detach()), _volumetric(gradient)
    weights = gradient.mean((2, 3, 4), keepdim=True)
    return _finished((weights * activation).sum(1, keepdim=True), field.shape)


def score_cam(predictor: NodulePredictor, field: Tensor, baseline: Tensor, layer: str = "features") -> Tensor:
    """Activations weighted by the logit of the field seen through each of them, softmax over the channels.

    Args:
        predictor, field, layer: as for :func:`grad_cam`.
        baseline: (1, 1, K, J, I), what is seen where the activation is lowest.
    """
    with torch.no_grad():
        with _kept_output(layer_module(predictor, layer)) as kept:
            predictor(field)
        activation = _volumetric(kept[0].detach())
        channels = activation.transpose(0, 1)
        low, high = channels.amin((2, 3, 4), keepdim=True), channels.amax((2, 3, 4), keepdim=True)
        scaled = (channels - low) / (high - low).clamp_min(1e-12)
        logits = []
        for part in scaled.split(MASKED_AT_ONCE):
            mask = F.interpolate(part, field.shape[2:], mode="trilinear", align_corners=False)
            logits.append(predictor(baseline + mask * (field - baseline)).float())
        weights = torch.softmax(torch.cat(logits), 0)
        return _finished((weights.view(1, -1, 1, 1, 1) * activation).sum(1, keepdim=True), field.shape)


def integrated_gradients(
    predictor: NodulePredictor, field: Tensor, baseline: Tensor, steps: int = PATH_STEPS
) -> Tensor:
    """Gradients of the logit along the straight path from ``baseline`` to ``field``, times their difference.

    Args:
        predictor, field, baseline: as for :func:`score_cam`.
        steps: points of the midpoint rule.

    Returns:
        (1, 1, K, J, I), signed; summed, the logit of ``field`` less that of ``baseline``. For the map of it see
        :func:`smoothed_map`.
    """
    total = torch.zeros_like(field)
    with torch.enable_grad():
        for step in range(steps):
            point = torch.lerp(baseline, field, (step + 0.5) / steps).requires_grad_()
            (gradient,) = torch.autograd.grad(predictor(point).sum(), point)
            total += gradient / steps
    return total * (field - baseline)


def smoothed_map(attribution: Tensor, smoothing_voxels: float) -> Tensor:
    """Map (K, J, I) of a signed attribution (1, 1, K, J, I), whose single voxels are noisy, after a Gaussian."""
    return _finished(gaussian_blur(attribution, smoothing_voxels), attribution.shape)


def gaussian_blur(image: Tensor, sigma_voxels: float) -> Tensor:
    """(1, 1, K, J, I) smoothed by a Gaussian along every axis; the border is repeated."""
    if sigma_voxels <= 0:
        return image
    reach = min(int(3 * sigma_voxels + 0.5), min(image.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma_voxels) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(kernel)
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
        with torch.autocast(image.device.type, enabled=False):  # no network's layer: an image keeps its precision
            image = F.conv3d(F.pad(image, padding, mode="replicate"), kernel.view(shape).to(image.dtype))
    return image


def baseline_image(name: str, field: Tensor, lung: Tensor) -> Tensor:
    """An image of BASELINES for ``field`` (1, 1, K, J, I); ``lung`` is a mask of the same shape."""
    if name == "air":
        return torch.zeros_like(field)
    if name == "blurred":
        return gaussian_blur(field, BLUR_VOXELS)
    inside = field[lung > 0]
    return torch.full_like(field, float(inside.mean() if len(inside) else field.mean()))
