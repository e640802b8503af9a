"""CUDA backend of the Inception depthwise convolution: the way to its Triton kernels."""

from __future__ import annotations

from mmlk.ops import cuda, dispatch
from mmlk.ops.inception import cpu, schema

_KERNELS = 'mmlk.ops.inception.triton'

_compute = cuda.implement('inception_dwconv2d', _KERNELS, 'forward', cpu.compute)
cuda.implement('inception_dwconv2d_backward', _KERNELS, 'backward', cpu.compute_backward)
_run = cuda.eager('inception_dwconv2d', schema.inception_dwconv2d, _compute)
dispatch.register('inception_dwconv2d', dispatch.Backend('triton', _run, cuda.refusal))
