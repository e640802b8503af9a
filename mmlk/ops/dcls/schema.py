"""The registered operator that constructs a kernel: schema, shapes, gradient formula.

The CUDA backend has one of its own with the same arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.dcls.construct import compute_dtype
from mmlk.ops.library import define


def fake(weight, positions, sigma, kernel_size, version):
    return weight.new_empty(
        (*weight.shape[:2], *kernel_size), dtype=compute_dtype(weight, positions)
    )


def backward_fake(grad, weight, positions, sigma, kernel_size, version):
    return (
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(positions, memory_format=torch.contiguous_format),
        weight.new_empty(0)
        if sigma is None
        else torch.empty_like(sigma, memory_format=torch.contiguous_format),
    )


def setup(ctx, inputs, output) -> None:
    weight, positions, sigma, ctx.kernel_size, ctx.version = inputs
    ctx.save_for_backward(weight, positions, *(() if sigma is None else (sigma,)))


def _gradient(ctx, grad: Tensor):
    weight, positions, *rest = ctx.saved_tensors
    sigma = rest[0] if rest else None
    gradients = torch.ops.mmlk.dcls_kernel_backward(
        grad, weight, positions, sigma, ctx.kernel_size, ctx.version
    )
    return (*gradients[:2], gradients[2] if rest else None, None, None)


ARGUMENTS = 'Tensor weight, Tensor positions, Tensor? sigma, int[] kernel_size, str version'


define(
    'dcls_kernel_backward',
    f'(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)',
    fake=backward_fake,
)


dcls_kernel = define(
    'dcls_kernel',
    f'({ARGUMENTS}) -> Tensor',
    fake=fake,
    backward=_gradient,
    setup_context=setup,
    autocast=False,
)
