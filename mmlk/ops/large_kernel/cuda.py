"""CUDA backend of several kernels on one map: the way to its Triton kernels."""

from __future__ import annotations

from mmlk.ops import cuda, dispatch
from mmlk.ops.large_kernel import cpu, schema

_KERNELS = 'mmlk.ops.large_kernel.triton'

cuda.implement('large_kernel_branches', _KERNELS, 'branches', cpu.compute_branches)
cuda.implement('large_kernel_sum', _KERNELS, 'total', cpu.compute_sum)
cuda.implement('large_kernel_backward', _KERNELS, 'backward', cpu.compute_backward)
dispatch.register(
    'large_kernel_branches', dispatch.Backend('triton', schema.large_kernel_branches, cuda.refusal)
)
dispatch.register(
    'large_kernel_sum', dispatch.Backend('triton', schema.large_kernel_sum, cuda.refusal)
)
