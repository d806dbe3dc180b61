"""The flow's models behind one interface: decoding for a gradient is decoding, with less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from GenSegLogic.networks import build
from GenSegLogic.networks.frozen import FrozenConvolutions
from GenSegLogic.nodules.models import LatentFlow

AUTOENCODERS = {
    "folding-autoencoder": ({"latent_channels": 4, "channels": 8, "blocks": 8}, 2, "LPS"),
    "maisi-autoencoder": (
        {"in_channels": 1, "out_channels": 1, "latent_channels": 4, "num_channels": [8, 8], "num_res_blocks": [6, 6],
         "norm_num_groups": 8, "norm_eps": 1e-6, "attention_levels": [False, False],
         "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}, 2, "RAS"),
}


@pytest.fixture(params=AUTOENCODERS)
def flow(request: pytest.FixtureRequest) -> LatentFlow:
    arguments, downsampling, orientation = AUTOENCODERS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(request.param, arguments).eval().requires_grad_(False)
    return LatentFlow(network, torch.nn.Identity(), 0.7, downsampling, (-1000.0, 400.0), orientation)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that tensors hold at once while a function runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        function()
    held = most = 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("half", [False, True])
def test_decoding_for_a_gradient_gives_the_same_image_and_gradient_with_less_memory(
    flow: LatentFlow, half: bool
) -> None:
    latent = torch.randn((1, 4, 12, 12, 12), generator=torch.Generator().manual_seed(0))

    def gradient(decode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = latent.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            image = decode(x)
        return image.detach(), torch.autograd.grad(image.square().sum(), x)[0]

    for one, other in zip(gradient(flow.decode), gradient(flow.decode_for_gradient), strict=True):
        assert torch.equal(one, other) and one.abs().max() > 0
    plain, sparing = (peak_bytes(lambda decode=decode: gradient(decode))
                      for decode in (flow.decode, flow.decode_for_gradient))
    assert sparing < 0.9 * plain


def test_maisis_decoder_has_the_image_and_the_gradient_of_monais() -> None:
    arguments, _, _ = AUTOENCODERS["maisi-autoencoder"]
    ours = build("maisi-autoencoder", arguments).eval()
    monais = AutoencoderKlMaisi(spatial_dims=3, norm_float16=False, num_splits=1, **arguments).eval()
    with torch.no_grad():
        for weight in monais.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # norms begin as ones and zeros
    ours.load_state_dict(monais.state_dict())
    latent = torch.randn(1, 4, 8, 8, 8, requires_grad=True)
    images = [network.decode(latent) for network in (ours, monais)]
    gradients = [torch.autograd.grad(image.square().sum(), latent)[0] for image in images]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_weights_that_learn_get_their_gradient() -> None:
    """What is not frozen is left to torch."""
    convolution = torch.nn.Conv3d(1, 2, 3, padding="same", dilation=2)
    with FrozenConvolutions():
        convolution(torch.ones(1, 1, 6, 6, 6)).sum().backward()
        frozen = convolution.requires_grad_(False)(torch.ones(1, 1, 6, 6, 6, requires_grad=True))
    frozen.sum().backward()
    assert convolution.weight.grad is not None and convolution.weight.grad.abs().min() > 0
