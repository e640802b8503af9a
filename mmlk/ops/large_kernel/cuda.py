"""CUDA backend of several kernels on one map: the way to its Triton kernels."""

from __future__ import annotations

from mmlk.ops import cuda, dispatch
from mmlk.ops.large_kernel import cpu, schema

_KERNELS = 'mmlk.ops.large_kernel.triton'

_branches = cuda.implement('large_kernel_branches', _KERNELS, 'branches', cpu.compute_branches)
_sum = cuda.implement('large_kernel_sum', _KERNELS, 'total', cpu.compute_sum)
cuda.implement('large_kernel_backward', _KERNELS, 'backward', cpu.compute_backward)
for _name, _registered, _compute in (
    ('large_kernel_branches', schema.large_kernel_branches, _branches),
    ('large_kernel_sum', schema.large_kernel_sum, _sum),
):
    _run = cuda.eager(_name, _registered, _compute)
    dispatch.register(_name, dispatch.Backend('triton', _run, cuda.refusal))
