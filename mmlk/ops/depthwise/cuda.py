"""CUDA backend of the depthwise convolution: the way to its Triton kernels."""

from __future__ import annotations

from torch import Tensor

from mmlk.ops import cuda, dispatch
from mmlk.ops.depthwise import cpu, schema

LARGEST_STRIDE = 16  # loops over the inputs of a strip are unrolled, and phases an axis of the grid
_KERNELS = 'mmlk.ops.depthwise.triton'


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> str | None:
    if max(stride) > LARGEST_STRIDE:
        return f'the stride {tuple(stride)} is above {LARGEST_STRIDE}'
    return cuda.refusal(x, weight, bias)


_compute = cuda.implement('depthwise_conv2d', _KERNELS, 'forward', cpu.compute)
cuda.implement('depthwise_conv2d_backward', _KERNELS, 'backward', cpu.compute_backward)
_run = cuda.eager('depthwise_conv2d', schema.depthwise_conv2d, _compute)
dispatch.register('depthwise_conv2d', dispatch.Backend('triton', _run, _refusal))
