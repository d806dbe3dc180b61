"""The predictors: fully convolutional, free of batch statistics, and one logit from a map of logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from GenSegLogic.networks import build
from GenSegLogic.networks.predictors import NodulePredictor
from GenSegLogic.training.nodule_predictor import PREDICTORS, crop_logits, predictor_loss

FAMILIES = list(PREDICTORS)


@pytest.fixture(params=FAMILIES)
def predictor(request: pytest.FixtureRequest) -> NodulePredictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(request.param, PREDICTORS[request.param]).eval()


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(48, 48, 48), (24, 32, 40)], ids=str)
def test_the_map_has_a_logit_for_every_stride(predictor: NodulePredictor, size: tuple[int, ...]) -> None:
    with torch.inference_mode():
        logits = predictor.logit_map(image(2, 1, *size))
    assert logits.shape == (2, *(n // step for n, step in zip(size, predictor.stride, strict=True)))


def test_the_images_logit_is_the_logsumexp_of_its_map(predictor: NodulePredictor) -> None:
    x = image(2, 1, 24, 24, 24)
    with torch.inference_mode():
        logits, whole = predictor.logit_map(x), predictor(x)
        assert torch.equal(predictor.map_from_features(predictor.features(x)), logits)
    expected = logits.flatten(1).double().exp().sum(1).log()
    torch.testing.assert_close(whole.double(), expected, atol=1e-4, rtol=0)


def test_a_fresh_predictor_sees_no_nodule(predictor: NodulePredictor) -> None:
    with torch.inference_mode():
        assert float(predictor.logit_map(image(1, 1, 48, 48, 48)).max()) < -4


def test_training_and_evaluation_agree(predictor: NodulePredictor) -> None:
    # METHODS' trap: a classifier with batch normalisation scored 50 % in eval mode and 93 % in train mode.
    x = image(2, 1, 24, 24, 24)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.train()(x), predictor.eval()(x))
        alone = predictor(x[:1])
        torch.testing.assert_close(predictor(x)[:1], alone, atol=1e-4, rtol=1e-4)  # neighbours in a batch do not matter
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in predictor.modules())


def test_gradients_reach_the_image_and_every_weight(predictor: NodulePredictor) -> None:
    x = image(1, 1, 24, 24, 24).requires_grad_()
    for name, parameter in predictor.named_parameters():
        if name.endswith("bn.weight") and not parameter.any():  # TinyViT starts its convolutional branches at zero
            nn.init.ones_(parameter)
    predictor(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_cnn_moves_its_map_with_the_image() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("predictor-cnn", PREDICTORS["predictor-cnn"]).eval()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # its statistics are of the whole image; the rest must be local
    x = image(1, 1, 96, 32, 32)
    with torch.inference_mode():
        logits, moved = network.logit_map(x), network.logit_map(torch.roll(x, 4, 2))
    torch.testing.assert_close(moved[:, 9:16], logits[:, 8:15], atol=1e-4, rtol=1e-4)


def test_the_tinyvit_reads_triplets_of_slices() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("predictor-tinyvit", PREDICTORS["predictor-tinyvit"]).eval()
    x = image(1, 1, 24, 24, 24)
    changed = x.clone()
    changed[:, :, 12] += 0.5
    with torch.inference_mode():
        encoded = [network.encoder(part) for part in triplets(network, (x, changed))]
    differs = (encoded[0] - encoded[1]).abs().flatten(1).amax(1) > 1e-5
    assert differs.nonzero().flatten().tolist() == [12 - network.gap, 12, 12 + network.gap]


def triplets(network, images):
    """What ``features`` hands to the encoder, caught on its way."""
    caught = []
    hook = network.encoder.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].clone()))
    for part in images:
        network.features(part)
    hook.remove()
    return caught


def test_the_logit_of_a_tile_is_that_of_its_crops() -> None:
    logits = image(2, 12, 12, 12) * 4 - 2
    crops = crop_logits(logits)
    assert crops.shape == (2, 2, 2, 2)
    torch.testing.assert_close(crops[0, 1, 0, 1], logits[0, 6:, :6, 6:].flatten().logsumexp(0))
    torch.testing.assert_close(crops.flatten(1).logsumexp(1), logits.flatten(1).logsumexp(1))
    thick = crop_logits(image(1, 48, 6, 6))
    torch.testing.assert_close(thick[0, 0, 1, 1], image(1, 48, 6, 6)[0, :24, 3:, 3:].flatten().logsumexp(0))


class Constant(nn.Module):
    """A predictor that says the same everywhere."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def logit_map(self, x: torch.Tensor) -> torch.Tensor:
        """One cell for each of the eight crops."""
        return torch.full((len(x), 2, 2, 2), self.logit)


def test_crops_without_a_bit_do_not_count_and_nodules_weigh_more() -> None:
    bits = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    x = torch.zeros(1, 1, 8, 8, 8)
    p = 0.2
    loss = predictor_loss(Constant(math.log(p / (1 - p))), {"image": x, "bits": bits})
    expected = (3 * -math.log(p) + 3 * -math.log(1 - p)) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    more = bits.clone()
    more[0, 1] = 0.0
    assert float(predictor_loss(Constant(-1.0), {"image": x, "bits": more})) != pytest.approx(expected)
