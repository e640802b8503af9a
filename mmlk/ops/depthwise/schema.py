"""The registered operators of the depthwise convolution: schema, shapes, gradient formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.library import define
from mmlk.ops.maps import layout


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    n, c, h, w = x.shape
    size = (n, c, (h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout(x))


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if mask[1]
        else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if mask[2] else 0),
    )


def setup(ctx, inputs, output) -> None:
    x, weight, bias, stride = inputs
    ctx.save_for_backward(x, weight)
    ctx.stride = stride


def _gradient(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.mmlk.depthwise_conv2d_backward(grad, x, weight, ctx.stride, mask)
    return *(each if wanted else None for each, wanted in zip(gradients, mask)), None


define(
    'depthwise_conv2d_backward',
    '(Tensor grad, Tensor x, Tensor weight, SymInt[2] stride, bool[3] mask)'
    ' -> (Tensor, Tensor, Tensor)',
    fake=_backward_fake,
)
depthwise_conv2d = define(
    'depthwise_conv2d',
    '(Tensor x, Tensor weight, Tensor? bias, SymInt[2] stride) -> Tensor',
    fake=_fake,
    setup_context=setup,
    backward=_gradient,
)
