"""The registered operators of the Inception depthwise convolution: schema, shapes, gradient formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.library import define
from mmlk.ops.maps import layout


def _fake(x: Tensor, *parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _backward_fake(
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


def _setup(ctx, inputs, output) -> None:
    x, weight_hw, _, weight_w, _, weight_h, _ = inputs
    ctx.save_for_backward(x, weight_hw, weight_w, weight_h)


def _gradient(ctx, grad: Tensor):
    mask = list(ctx.needs_input_grad)
    gradients = torch.ops.mmlk.inception_dwconv2d_backward(grad, *ctx.saved_tensors, mask)
    return tuple(each if wanted else None for each, wanted in zip(gradients, mask))


define(
    'inception_dwconv2d_backward',
    '(Tensor grad, Tensor x, Tensor weight_hw, Tensor weight_w, Tensor weight_h, bool[7] mask)'
    ' -> Tensor[]',
    fake=_backward_fake,
)


inception_dwconv2d = define(
    'inception_dwconv2d',
    '(Tensor x, Tensor weight_hw, Tensor? bias_hw, Tensor weight_w, Tensor? bias_w, '
    'Tensor weight_h, Tensor? bias_h) -> Tensor',
    fake=_fake,
    setup_context=_setup,
    backward=_gradient,
)
