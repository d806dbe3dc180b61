"""Attribution maps against closed forms, and on both families of predictors as they ship: frozen."""

from __future__ import annotations

import pytest
import torch

from GenSegLogic.evaluation.attribution import (
    BASELINES,
    LAYERS,
    baseline_image,
    gaussian_blur,
    grad_cam,
    integrated_gradients,
    layer_module,
    score_cam,
    smoothed_map,
)
from GenSegLogic.networks.predictors import CNNPredictor, NodulePredictor
from Testing.logic.nodule_bundles import random_network

SHAPE = (1, 1, 16, 24, 24)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


class Pooled(CNNPredictor):
    """Its two feature channels are the field and its inverse, averaged over blocks of 4; only the first has weight."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.norm = torch.nn.AvgPool3d(4)
        self.weights = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.cat([x, 1 - x], 1))

    def map_from_features(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weights).sum(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logit_map(x).flatten(1).sum(1)


@pytest.fixture
def spot() -> torch.Tensor:
    field = torch.zeros(SHAPE)
    field[..., 4:12, 8:16, 12:20] = 1.0
    return field


def upsampled(coarse: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(coarse, SHAPE[2:], mode="trilinear", align_corners=False)


def test_maps_of_a_linear_network_are_its_evidence(spot: torch.Tensor) -> None:
    """The first channel has all of the gradient, and no voxel outside the spot differs from air."""
    expected = upsampled(Pooled().norm(spot))[0, 0]
    assert torch.allclose(grad_cam(Pooled(), spot), expected / expected.max(), atol=1e-6)
    attribution = integrated_gradients(Pooled(), spot, torch.zeros(SHAPE))
    assert torch.equal(smoothed_map(attribution, 0.0), spot[0, 0])


def test_score_cam_weighs_channels_by_the_logit_behind_their_mask(spot: torch.Tensor) -> None:
    """Through the first channel's mask most of the spot is seen, through that of its inverse hardly any."""
    predictor = Pooled()
    channels = predictor.norm(spot), predictor.norm(1 - spot)
    logits = torch.cat([predictor(spot * upsampled(channel)) for channel in channels])
    first, second = torch.softmax(logits, 0)
    assert first > 0.9
    combined = upsampled(first * channels[0] + second * channels[1])[0, 0]
    found = score_cam(predictor, spot, torch.zeros(SHAPE))
    assert torch.allclose(found, combined / combined.max(), atol=1e-6)


@pytest.mark.parametrize("family", ["cnn", "tinyvit"])
@pytest.mark.parametrize("layer", LAYERS)
def test_grad_cam_is_the_mean_gradient_at_the_layer(family: str, layer: str) -> None:
    """Against autograd on a network that takes gradients, its layer's output kept by hand."""
    frozen, free, field = random_network(family), random_network(family).requires_grad_(True), noise()
    outputs = []
    module = layer_module(free, layer)
    handle = module.register_forward_hook(lambda m, i, o: (o.retain_grad(), outputs.append(o))[0])
    free(field).sum().backward()
    handle.remove()
    activation, gradient = outputs[0].detach(), outputs[0].grad
    if activation.ndim == 4:  # slices of the TinyViT
        activation, gradient = (x.permute(1, 0, 2, 3)[None] for x in (activation, gradient))
    combined = (gradient.mean((2, 3, 4), keepdim=True) * activation).sum(1, keepdim=True).clamp_min(0)
    expected = upsampled(combined)[0, 0]
    found = grad_cam(frozen, field, layer)
    assert found.max() == pytest.approx(1.0)
    assert torch.allclose(found, expected / expected.max(), atol=1e-5)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert not layer_module(frozen, layer)._forward_hooks


@pytest.mark.parametrize("family", ["cnn", "tinyvit"])
def test_path_attributions_add_up_to_the_difference_of_the_logits(family: str) -> None:
    predictor, field = random_network(family), noise()
    # Halfway only: where the image is flat, normalisation bends the path more than 48 steps follow.
    baseline = torch.lerp(baseline_image("blurred", field, torch.ones_like(field)), field, 0.5)
    total = integrated_gradients(predictor, field, baseline, steps=48).sum()
    with torch.no_grad():
        difference = predictor(field) - predictor(baseline)
    assert abs(float(difference)) > 1e-4
    assert float(total) == pytest.approx(float(difference), rel=0.03)


@pytest.mark.parametrize("family", ["cnn", "tinyvit"])
def test_every_choice_gives_a_map_of_its_own(family: str) -> None:
    predictor, field = random_network(family), noise()
    lung = torch.zeros_like(field)
    lung[..., :12] = 1
    baselines = {name: baseline_image(name, field, lung) for name in BASELINES}
    maps = [score_cam(predictor, field, image, layer) for image in baselines.values() for layer in LAYERS]
    attributions = [integrated_gradients(predictor, field, image) for image in baselines.values()]
    maps += [smoothed_map(attribution, s) for attribution in attributions for s in (0.5, 2.0)]
    for found in maps:
        assert found.shape == SHAPE[2:] and found.min() >= 0 and found.max() == pytest.approx(1.0)
    for first in range(len(maps)):
        for second in range(first):
            assert not torch.equal(maps[first], maps[second])


def test_baselines() -> None:
    field, lung = noise(), torch.zeros(SHAPE)
    lung[..., :3] = 1
    assert not baseline_image("air", field, lung).any()
    assert torch.allclose(baseline_image("lung", field, lung), field[..., :3].mean())
    assert torch.allclose(baseline_image("lung", field, torch.zeros(SHAPE)), field.mean())
    blurred = baseline_image("blurred", field, lung)
    assert blurred.std() < 0.1 * field.std()


def test_blur_is_a_gaussian() -> None:
    impulse = torch.zeros(1, 1, 21, 21, 21)
    impulse[..., 10, 10, 10] = 1
    blurred = gaussian_blur(impulse, 1.5)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
    offsets = torch.arange(21) - 10.0
    for axis in range(3):
        profile = blurred.sum([a for a in range(2, 5) if a != axis + 2])[0, 0]
        assert float((profile * offsets**2).sum()) == pytest.approx(1.5**2, rel=0.05)
    assert torch.allclose(gaussian_blur(torch.ones(1, 1, 4, 6, 8), 3.0), torch.ones(1))
    with torch.autocast("cpu", torch.bfloat16):  # what networks compute in does not coarsen an image
        assert torch.equal(gaussian_blur(impulse, 1.5), blurred)


def test_no_evidence_gives_an_empty_map() -> None:
    assert not grad_cam(Pooled(), torch.zeros(SHAPE)).any()
    assert not smoothed_map(integrated_gradients(Pooled(), torch.zeros(SHAPE), torch.zeros(SHAPE)), 1.0).any()


def test_a_predictor_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(TypeError, match="NodulePredictor has no layer 'early'"):
        layer_module(NodulePredictor(), "early")
