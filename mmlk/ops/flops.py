"""FLOP counts of the registered operators for `torch.utils.flop_counter`.

One multiplication with its addition counts as two, taps in the padding included, as torch counts
its own convolutions; a gradient costs as much as the forward pass. MMEngine's counter needs no
formula: it traces, and a traced graph holds plain convolutions (`mmlk.ops.dispatch.refusal_for_export`).
"""

from __future__ import annotations

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from mmlk.ops.depthwise import (
    schema as _depthwise_schema,  # noqa: F401  define what is counted here
)
from mmlk.ops.inception import schema as _inception_schema  # noqa: F401
from mmlk.ops.large_kernel import schema as _large_kernel_schema  # noqa: F401
from mmlk.ops.recconv import schema as _recconv_schema  # noqa: F401


def depthwise_flops(weight_shape, out_shape) -> int:
    """FLOPs of a depthwise convolution with ``weight_shape`` that yields ``out_shape``."""
    return 2 * prod(out_shape) * prod(weight_shape[2:])


def _branch_flops(x_shape, weight_shape) -> int:
    return depthwise_flops(weight_shape, (x_shape[0], weight_shape[0], *x_shape[2:]))


@register_flop_formula(torch.ops.mmlk.depthwise_conv2d)
def _depthwise(x_shape, weight_shape, bias_shape, stride, *, out_shape=None, **_) -> int:
    return depthwise_flops(weight_shape, out_shape)


@register_flop_formula(torch.ops.mmlk.depthwise_conv2d_backward)
def _depthwise_backward(grad_shape, x_shape, weight_shape, stride, mask, **_) -> int:
    return (mask[0] + mask[1]) * depthwise_flops(weight_shape, grad_shape)


@register_flop_formula(torch.ops.mmlk.inception_dwconv2d)
def _inception(x_shape, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h, **_) -> int:
    return sum(_branch_flops(x_shape, weight) for weight in (weight_hw, weight_w, weight_h))


@register_flop_formula(torch.ops.mmlk.inception_dwconv2d_backward)
def _inception_backward(grad_shape, x_shape, weight_hw, weight_w, weight_h, mask, **_) -> int:
    return sum(
        (mask[0] + mask[1 + 2 * index]) * _branch_flops(x_shape, weight)
        for index, weight in enumerate((weight_hw, weight_w, weight_h))
    )


def _kernels_flops(x_shape, *kernels) -> int:
    return sum(_branch_flops(x_shape, kernel) for kernel in kernels if kernel is not None)


@register_flop_formula(torch.ops.mmlk.large_kernel_branches)
def _large_kernel_branches(x_shape, first, second, third, **_) -> int:
    return _kernels_flops(x_shape, first, second, third)


@register_flop_formula(torch.ops.mmlk.large_kernel_sum)
def _large_kernel_sum(x_shape, first, second, third, bias, **_) -> int:
    return _kernels_flops(x_shape, first, second, third)


@register_flop_formula(torch.ops.mmlk.large_kernel_backward)
def _large_kernel_backward(
    grad_first, grad_second, grad_third, x_shape, first, second, third, mask, **_
) -> int:
    return sum(
        (mask[0] + wanted) * _kernels_flops(x_shape, kernel)
        for kernel, wanted in zip((first, second, third), mask[1:4])
    )


def _recconv_flops(x_shape, weights) -> tuple[int, int]:
    """FLOPs of the shared stride-2 convolutions and of the kernels of all levels."""
    n, c, h, w = x_shape
    sizes = [(h, w)]
    for _ in weights[1:]:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    each = [depthwise_flops(weight, (n, c, *size)) for weight, size in zip(weights, sizes[::-1])]
    return sum(each[:-1]), sum(each)


@register_flop_formula(torch.ops.mmlk.recconv2d)
def _recconv(x_shape, down_shape, weights, mode, **_) -> int:
    return sum(_recconv_flops(x_shape, weights))


@register_flop_formula(torch.ops.mmlk.recconv2d_backward)
def _recconv_backward(grad_shape, x_shape, down_shape, weights, saved, mode, mask, **_) -> int:
    down, levels = _recconv_flops(x_shape, weights)
    # Kernel gradients alone still need the gradient to flow down to every level.
    return levels * (1 + mask[2]) + down * (1 + mask[1])
