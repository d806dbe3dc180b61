"""Gradients through frozen networks, in less memory than training them takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.grad import conv3d_input
from torch.overrides import TorchFunctionMode


class _FrozenConvolution(torch.autograd.Function):
    """A 3D convolution that keeps its weights alone: the gradient of its input needs no more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.dtype, ctx.options = x.shape, x.dtype, options
        return torch.conv3d(x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_input = conv3d_input(ctx.size, weight.to(gradient.dtype), gradient, **ctx.options)
        return of_input.to(ctx.dtype), None, None, None


class FrozenConvolutions(TorchFunctionMode):
    """While it is entered, 3D convolutions whose weights take no gradient do not keep their inputs for one.

    torch itself keeps them all the same. The results are the same, to the bit.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.conv3d:
            return func(*args, **(kwargs or {}))
        return _convolution(*args, **(kwargs or {}))


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if not torch.is_grad_enabled() or weight.requires_grad or isinstance(padding, str):
        return torch.conv3d(input, weight, bias, **options)
    return _FrozenConvolution.apply(input, weight, bias, options)
