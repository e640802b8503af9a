"""The registered operators: schema, fake result and gradient formula, apart from any device.

A backend of a device supplies kernels with `mmlk.ops.dispatch.implement`; shapes, strides, autograd
and autocast are settled here once for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.dispatch import define


def channels_last(x: Tensor) -> bool:
    """Whether the strides of ``x`` order its axes N, H, W, C (slices of such maps included)."""
    _, c, h, w = x.shape
    sn, sc, sh, sw = x.stride()
    return bool(c > 1 and sc == 1 and h * w > 1 and sw >= c and (h == 1 or sh >= sw * w))


def layout(x: Tensor) -> torch.memory_format:
    """Memory format in which a result computed from ``x`` is given."""
    return torch.channels_last if channels_last(x) else torch.contiguous_format


def _depthwise_fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    n, c, h, w = x.shape
    size = (n, c, (h - 1) // stride[0] + 1, (w - 1) // stride[1] + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout(x))


def _depthwise_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if mask[1]
        else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if mask[2] else 0),
    )


def _depthwise_setup(ctx, inputs, output) -> None:
    x, weight, bias, stride = inputs
    ctx.save_for_backward(x, weight)
    ctx.stride = stride


def _depthwise_gradient(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.mmlk.depthwise_conv2d_backward(grad, x, weight, ctx.stride, mask)
    return *(each if wanted else None for each, wanted in zip(gradients, mask)), None


define(
    'depthwise_conv2d_backward',
    '(Tensor grad, Tensor x, Tensor weight, SymInt[2] stride, bool[3] mask)'
    ' -> (Tensor, Tensor, Tensor)',
    fake=_depthwise_backward_fake,
)
depthwise_conv2d = define(
    'depthwise_conv2d',
    '(Tensor x, Tensor weight, Tensor? bias, SymInt[2] stride) -> Tensor',
    fake=_depthwise_fake,
    setup_context=_depthwise_setup,
    backward=_depthwise_gradient,
)


def _inception_fake(x: Tensor, *parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _inception_backward_fake(
    grad: Tensor, x: Tensor, weight_hw: Tensor, weight_w: Tensor, weight_h: Tensor, mask: list[bool]
) -> list[Tensor]:
    results = [torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0)]
    for weight, wants_weight, wants_bias in zip(
        (weight_hw, weight_w, weight_h), mask[1::2], mask[2::2]
    ):
        results.append(
            torch.empty_like(weight, memory_format=torch.contiguous_format)
            if wants_weight
            else weight.new_empty(0)
        )
        results.append(weight.new_empty(weight.shape[0] if wants_bias else 0))
    return results


def _inception_setup(ctx, inputs, output) -> None:
    x, weight_hw, _, weight_w, _, weight_h, _ = inputs
    ctx.save_for_backward(x, weight_hw, weight_w, weight_h)


def _inception_gradient(ctx, grad: Tensor):
    mask = list(ctx.needs_input_grad)
    gradients = torch.ops.mmlk.inception_dwconv2d_backward(grad, *ctx.saved_tensors, mask)
    return tuple(each if wanted else None for each, wanted in zip(gradients, mask))


define(
    'inception_dwconv2d_backward',
    '(Tensor grad, Tensor x, Tensor weight_hw, Tensor weight_w, Tensor weight_h, bool[7] mask)'
    ' -> Tensor[]',
    fake=_inception_backward_fake,
)
inception_dwconv2d = define(
    'inception_dwconv2d',
    '(Tensor x, Tensor weight_hw, Tensor? bias_hw, Tensor weight_w, Tensor? bias_w, '
    'Tensor weight_h, Tensor? bias_h) -> Tensor',
    fake=_inception_fake,
    setup_context=_inception_setup,
    backward=_inception_gradient,
)
