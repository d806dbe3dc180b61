"""Guidance where everything is exact: an identity for the autoencoder, a mixture's own velocity and classifier."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from GenSegLogic.errors import Cancelled
from GenSegLogic.nodules.counterfactual import Counterfactual, Guidance, ball, bounding_window, counterfactual
from GenSegLogic.nodules.models import LatentFlow
from Testing.logic.gaussian_mixture import ExactVelocity, GaussianMixture, Identity

EDGE = 12
SHAPE = (EDGE,) * 3
DEVIATION = 0.3
CENTER = ((EDGE - 1) / 2,) * 3


class LinearClassifier(nn.Module):
    """log p(nodule | z) - log p(healthy | z): linear in z where both modes have one deviation."""

    stride = (4, 4, 4)

    def __init__(self, template: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.template, self.gain = template, gain

    def forward(self, image: Tensor) -> Tensor:
        """Logit of images of the template's shape, (1,)."""
        template = self.template
        margin = (image * template).flatten(1).sum(1) - 0.5 * template.square().sum()
        return self.gain * margin / DEVIATION**2


def blob() -> Tensor:
    """The nodule: a soft ball of height 0.6 in the middle of the field."""
    return 0.6 * ball(SHAPE, CENTER, 2.0, 1.5)


def model(weight: float = 0.5) -> tuple[LatentFlow, LinearClassifier]:
    """A flow whose data are healthy texture, with the blob added in a share ``weight``, and its exact classifier."""
    template = blob()
    mixture = GaussianMixture(
        torch.tensor([1 - weight, weight]),
        torch.stack([torch.zeros(EDGE**3), template.flatten()]),
        torch.full((2,), DEVIATION),
    )
    flow = LatentFlow(Identity(), ExactVelocity(mixture), 1.0, 1, (-1000.0, 400.0))
    return flow, LinearClassifier(template)


def texture(seed: int = 0) -> Tensor:
    """A healthy draw (1, 1, K, J, I)."""
    return DEVIATION * torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def guide(image: Tensor, guidance: Guidance, region: Tensor | None = None, seed: int = 1, **other) -> Counterfactual:
    flow, predictor = model()
    region = torch.ones((1, 1, *SHAPE)) if region is None else region
    generator = torch.Generator().manual_seed(seed)
    return counterfactual(flow, predictor, image, region, 0.75, guidance, generator, **other)


def blob_in(image: Tensor) -> float:
    """How much of the blob an image holds: about 0 healthy, about 1 with it."""
    template = blob()
    return float((image * template).sum() / template.square().sum())


GUIDED = Guidance(start=0.6, steps=24, strength=0.5, iterations=3, smoothing=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_guided_counterfactual_ends_in_the_healthy_mode(seed: int) -> None:
    image = texture(seed) + blob()
    result = guide(image, GUIDED)
    assert result.probability_before > 0.99
    assert result.probability_after < 0.05
    assert abs(blob_in(result.image) - blob_in(texture(seed))) < 0.4
    assert torch.equal(result.reconstruction, image)


def test_without_guidance_the_input_returns() -> None:
    image = texture() + blob()
    errors = []
    for steps in (24, 96):
        result = guide(image, replace(GUIDED, strength=0.0, steps=steps))
        assert result.probability_after > 0.99
        errors.append(float((result.image - image).abs().mean()))
    assert errors[1] < 0.01 and errors[1] < 0.4 * errors[0]  # what is left is the discretisation of first order


def test_where_the_predictor_sees_no_nodule_guidance_changes_nothing() -> None:
    image = texture()
    flow, predictor = model()
    # A gain that makes p(nodule) 0 in float32: the gate must shut altogether.
    sure = LinearClassifier(predictor.template, gain=50.0)
    assert float(torch.sigmoid(sure(image))) == 0.0
    region = torch.ones((1, 1, *SHAPE))
    results = [
        counterfactual(flow, sure, image, region, 0.75, replace(GUIDED, strength=strength, smoothing=0.0),
                       torch.Generator().manual_seed(1)).image
        for strength in (0.0, 0.5)
    ]
    assert torch.equal(*results)


def test_nothing_changes_outside_of_the_region() -> None:
    image = texture() + blob()
    region = ball(SHAPE, CENTER, 3.0, 2.0)
    result = guide(image, GUIDED, region)
    outside = region == 0
    assert float(outside.float().mean()) > 0.5
    torch.testing.assert_close(result.image[outside], image[outside], atol=1e-5, rtol=0)
    assert blob_in(image) - blob_in(result.image) > 0.5


def test_a_stronger_push_goes_further() -> None:
    image = texture() + blob()
    left = [blob_in(guide(image, replace(GUIDED, strength=strength)).image) for strength in (0.0, 0.05, 0.2)]
    assert left[0] > left[1] + 0.05 and left[1] > left[2] + 0.05


@pytest.mark.parametrize("change", [{"recurrences": 2}, {"samples": 3}, {"through_network": True},
                                    {"whole_field": True}, {"iterations": 1}], ids=lambda change: next(iter(change)))
def test_every_variant_of_guidance_removes_the_nodule(change: dict) -> None:
    result = guide(texture() + blob(), replace(GUIDED, **change))
    assert result.probability_before > 0.99 and result.probability_after < 0.1


class BrightnessFooled(torch.nn.Module):
    """Takes what is bright for healthy: a predictor whose cheapest way out is to make the image denser."""

    stride = (4, 4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 5 - 20 * image.flatten(1).mean(1)


@pytest.mark.parametrize("only_darker", [True, False])
def test_guidance_does_not_make_the_image_denser(only_darker: bool) -> None:
    image, (flow, _) = texture() + blob(), model()
    region = torch.ones((1, 1, *SHAPE))
    change = []
    for strength in (0.0, 0.5):
        setting = replace(GUIDED, strength=strength, only_darker=only_darker)
        painted = counterfactual(flow, BrightnessFooled(), image, region, 0.75, setting,
                                 torch.Generator().manual_seed(1))
        change.append(painted.image)
    brighter = float((change[1] - change[0]).mean())
    assert brighter == 0 if only_darker else brighter > 0.1


def test_only_the_window_is_decoded_for_guidance_unless_the_whole_field_is_asked_for() -> None:
    image, region = texture() + blob(), ball(SHAPE, CENTER, 1.0, 1.0)
    window = bounding_window(region, 4)
    size = 1
    for part in window:
        size *= part.stop - part.start
    assert size < EDGE**3 and int((region[(0, 0, *window)] > 0).sum()) == int((region > 0).sum())
    flow, _ = model()
    template = blob()[(slice(None), slice(None), *window)]
    counterfactual(flow, LinearClassifier(template), image, region, 0.75, replace(GUIDED, steps=2),
                   torch.Generator().manual_seed(0))
    # Before, the steps' iterations (each once more for the checkpoint), both whole images, after.
    assert flow.autoencoder.decoded.count(EDGE**3) == 2
    assert set(flow.autoencoder.decoded) == {size, EDGE**3}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    flow, predictor = model()
    # Unsure, so that the noise in front of the predictor moves the gate p(nodule).
    unsure = LinearClassifier(predictor.template, gain=0.05)
    first, again, other = (
        counterfactual(flow, unsure, texture() + blob(), torch.ones((1, 1, *SHAPE)), 0.75,
                       replace(GUIDED, steps=6, smoothing=0.5), torch.Generator().manual_seed(seed)).image
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_callback_counts_to_the_end_and_cancels_within_a_step() -> None:
    told: list[tuple[int, int]] = []
    guide(texture(), replace(GUIDED, steps=4), callback=lambda step, steps: told.append((step, steps)))
    assert told == [(step, 8) for step in range(1, 9)]
    for stop in (2, 6):
        told.clear()

        def cancel(step: int, steps: int, stop: int = stop) -> None:
            told.append((step, steps))
            if step == stop:
                raise Cancelled

        with pytest.raises(Cancelled):
            guide(texture(), replace(GUIDED, steps=4), callback=cancel)
        assert len(told) == stop


def test_the_network_is_told_the_spacing_in_hundredths_of_a_millimetre() -> None:
    flow, predictor = model()
    counterfactual(flow, predictor, texture(), torch.ones((1, 1, *SHAPE)), 0.75, replace(GUIDED, steps=2),
                   torch.Generator().manual_seed(0))
    assert set(flow.velocity_network.spacings) == {75.0}
