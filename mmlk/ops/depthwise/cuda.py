"""CUDA backend of the depthwise convolution: the way to its Triton kernels."""

from __future__ import annotations

from mmlk.ops import cuda, dispatch
from mmlk.ops.depthwise import cpu, schema

_KERNELS = 'mmlk.ops.depthwise.triton'

cuda.implement('depthwise_conv2d', _KERNELS, 'forward', cpu.compute)
cuda.implement('depthwise_conv2d_backward', _KERNELS, 'backward', cpu.compute_backward)
dispatch.register(
    'depthwise_conv2d', dispatch.Backend('triton', schema.depthwise_conv2d, cuda.refusal)
)
