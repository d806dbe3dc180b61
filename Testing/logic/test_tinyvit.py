"""TinyViT: the published names and numbers, checked against a plain restatement of the published mathematics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from GenSegLogic.errors import GenSegError
from GenSegLogic.networks.tinyvit import LITEMEDSAM, DropPath, TinyViT

SMALL = {
    "in_channels": 1,
    "embed_dims": [8, 12, 16],
    "depths": [1, 2, 1],
    "num_heads": [1, 3, 2],
    "window_sizes": [1, 3, 4],
    "neck_channels": None,
}

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys() -> set[str]:
    """Names of all weights of the image encoder in lite_medsam.pth."""
    keys = {f"neck.{place}" for place in ("0.weight", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias")}
    convolutions = ["patch_embed.seq.0", "patch_embed.seq.2"]
    convolutions += [f"layers.0.blocks.{block}.conv{n}" for block in range(2) for n in (1, 2, 3)]
    convolutions += [f"layers.{stage}.downsample.conv{n}" for stage in range(3) for n in (1, 2, 3)]
    for stage, depth in ((1, 2), (2, 6), (3, 2)):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            convolutions.append(f"{prefix}.local_conv")
            keys.add(f"{prefix}.attn.attention_biases")
            for layer in ("attn.norm", "attn.qkv", "attn.proj", "mlp.norm", "mlp.fc1", "mlp.fc2"):
                keys |= {f"{prefix}.{layer}.weight", f"{prefix}.{layer}.bias"}
    for convolution in convolutions:
        keys |= {f"{convolution}.c.weight"} | {f"{convolution}.bn.{name}" for name in BATCH_NORM}
    return keys


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight and running statistic its own value, so that no two are exchanged unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise.abs() if name.endswith(("norm.weight", "bn.weight", "var")) else 0.1 * noise)


class PlainTinyViT:
    """The published mathematics, one window and one head at a time, on a state dict."""

    def __init__(self, state: dict[str, torch.Tensor], config: dict) -> None:
        self.state, self.config = state, config

    def convolution(self, x: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = self.state[f"{name}.c.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        scale, shift, mean, variance = (self.state[f"{name}.bn.{key}"][:, None, None] for key in BATCH_NORM[:4])
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def layer_norm(self, x: torch.Tensor, name: str, eps: float = 1e-5) -> torch.Tensor:
        deviation = x - x.mean(-1, keepdim=True)
        x = deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, tokens: torch.Tensor, name: str, heads: int, window: int) -> torch.Tensor:
        numbers: dict[tuple[int, int], int] = {}
        points = [(row, column) for row in range(window) for column in range(window)]
        index = torch.tensor([
            [numbers.setdefault((abs(a - c), abs(b - d)), len(numbers)) for c, d in points] for a, b in points
        ])
        width = tokens.shape[1] // heads
        rows = self.linear(self.layer_norm(tokens, f"{name}.norm"), f"{name}.qkv")
        outputs = []
        for head in range(heads):
            query, key, value = rows[:, head * 3 * width : (head + 1) * 3 * width].split(width, dim=1)
            scores = query @ key.T / width**0.5 + self.state[f"{name}.attention_biases"][head][index]
            outputs.append(scores.softmax(-1) @ value)
        return self.linear(torch.cat(outputs, dim=1), f"{name}.proj")

    def block(self, x: torch.Tensor, name: str, heads: int, window: int) -> torch.Tensor:
        _, channels, height, width = x.shape
        rows, columns = -(-height // window), -(-width // window)
        padded = torch.zeros(channels, rows * window, columns * window)
        padded[:, :height, :width] = x[0]
        attended = torch.zeros_like(padded)
        for row in range(rows):
            for column in range(columns):
                place = (slice(None), slice(row * window, (row + 1) * window),
                         slice(column * window, (column + 1) * window))
                tokens = self.attention(padded[place].flatten(1).T, f"{name}.attn", heads, window)
                attended[place] = tokens.T.reshape(channels, window, window)
        x = x + attended[None, :, :height, :width]
        x = self.convolution(x, f"{name}.local_conv", groups=channels)
        tokens = self.layer_norm(x[0].flatten(1).T, f"{name}.mlp.norm")
        tokens = self.linear(F.gelu(self.linear(tokens, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return x + tokens.T.reshape(x.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        x = F.gelu(self.convolution(x, "patch_embed.seq.0", config["patch_strides"][0]))
        x = self.convolution(x, "patch_embed.seq.2", config["patch_strides"][1])
        for stage, depth in enumerate(config["depths"]):
            for block in range(depth):
                name = f"layers.{stage}.blocks.{block}"
                if stage == 0:
                    hidden = F.gelu(self.convolution(x, f"{name}.conv1"))
                    hidden = F.gelu(self.convolution(hidden, f"{name}.conv2", groups=hidden.shape[1]))
                    x = F.gelu(x + self.convolution(hidden, f"{name}.conv3"))
                else:
                    x = self.block(x, name, config["num_heads"][stage], config["window_sizes"][stage])
            if stage < len(config["depths"]) - 1:
                name = f"layers.{stage}.downsample"
                x = F.gelu(self.convolution(x, f"{name}.conv1"))
                x = self.convolution(x, f"{name}.conv2", config["downsample_strides"][stage], groups=x.shape[1])
                x = self.convolution(F.gelu(x), f"{name}.conv3")
        for convolution, norm in ((0, 1), (2, 3)):
            weight = self.state[f"neck.{convolution}.weight"]
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
            x = self.layer_norm(x.movedim(1, -1), f"neck.{norm}", eps=1e-6).movedim(-1, 1)
        return x


@pytest.mark.parametrize("size", [(28, 56), (22, 30)], ids=["whole windows", "padded windows"])
def test_published_encoder_computes_the_published_mathematics(size: tuple[int, int]) -> None:
    network = TinyViT(**LITEMEDSAM).eval()
    randomise(network)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = PlainTinyViT(network.state_dict(), LITEMEDSAM)(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_published_encoder_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = TinyViT(**LITEMEDSAM).state_dict()
    assert set(state) == published_keys()
    assert {name: tuple(state[name].shape) for name in (
        "patch_embed.seq.0.c.weight", "patch_embed.seq.2.c.weight", "layers.0.blocks.1.conv2.c.weight",
        "layers.1.blocks.0.attn.attention_biases", "layers.2.blocks.5.attn.attention_biases",
        "layers.1.blocks.0.attn.qkv.weight", "layers.2.blocks.0.mlp.fc1.weight",
        "layers.2.downsample.conv2.c.weight", "layers.3.blocks.1.local_conv.c.weight", "neck.0.weight", "neck.2.weight",
    )} == {
        "patch_embed.seq.0.c.weight": (32, 3, 1, 1),
        "patch_embed.seq.2.c.weight": (64, 32, 1, 1),
        "layers.0.blocks.1.conv2.c.weight": (256, 1, 3, 3),
        "layers.1.blocks.0.attn.attention_biases": (4, 49),
        "layers.2.blocks.5.attn.attention_biases": (5, 196),
        "layers.1.blocks.0.attn.qkv.weight": (384, 128),
        "layers.2.blocks.0.mlp.fc1.weight": (640, 160),
        "layers.2.downsample.conv2.c.weight": (320, 1, 3, 3),
        "layers.3.blocks.1.local_conv.c.weight": (320, 1, 3, 3),
        "neck.0.weight": (256, 320, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
    }


@pytest.mark.parametrize(("patch", "downsample", "stride"), [
    ([1, 1], [2, 1], 2), ([2, 1], [2, 1], 4), ([2, 2], [2, 1], 8), ([2, 2], None, 16),
])
def test_any_size_and_stride(patch: list[int], downsample: list[int] | None, stride: int) -> None:
    network = TinyViT(**SMALL, patch_strides=patch, downsample_strides=downsample)
    assert (network.stride, network.out_channels) == (stride, 16)
    for height, width in ((32, 32), (33, 47), (17, 20)):
        assert network(torch.randn(2, 1, height, width)).shape == (2, 16, -(-height // stride), -(-width // stride))


def test_mobilesam_arrangement_reduces_1024_pixels_to_64() -> None:
    network = TinyViT(downsample_strides=[2, 2, 1], neck_channels=256)
    assert (network.stride, network.out_channels) == (16, 256)


def test_group_normalisation_makes_no_difference_between_training_and_evaluation() -> None:
    x = torch.randn(4, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    x *= torch.tensor([1, 2, 5, 9]).view(-1, 1, 1, 1)
    ours, published = TinyViT(**SMALL), TinyViT(**SMALL, normalization="batch")
    for network in (ours, published):
        randomise(network)
    torch.testing.assert_close(ours.train()(x)[:1], ours.eval()(x[:1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(published.train()(x)[:1], published.eval()(x[:1]), rtol=1e-2, atol=1e-2)


def test_gradient_with_respect_to_the_image() -> None:
    network = TinyViT(**SMALL).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 1, 20, 20, dtype=torch.float64, generator=generator, requires_grad=True)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    with torch.no_grad():
        step = 1e-5
        ahead, behind = (network(x + sign * step * direction).square().sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


def test_stochastic_depth_drops_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 3, 2, 2)
    drop = DropPath(0.25)
    kept = drop(x).flatten(1)
    assert (kept == kept[:, :1]).all()
    assert kept[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(("change", "reason"), [
    ({"depths": [1, 1]}, "equally long"),
    ({"num_heads": [1, 5, 2]}, "5 heads"),
    ({"downsample_strides": [2]}, "2 downsample_strides"),
    ({"patch_strides": [2]}, "2 patch_strides"),
    ({"embed_dims": [7, 12, 16]}, "even"),
    ({"normalization": "layer"}, "normalization"),
])
def test_lists_that_do_not_fit_are_refused_in_one_sentence(change: dict, reason: str) -> None:
    with pytest.raises(GenSegError, match=reason) as raised:
        TinyViT(**(SMALL | change))
    assert "\n" not in str(raised.value)
