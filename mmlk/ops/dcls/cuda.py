"""CUDA backend of the construction of 2-D DCLS kernels: predicate, and the way to its Triton kernels.

A registered operator of its own: `separable` stays what it is on every device. Called where the
kernels cannot run, it computes what `separable` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import cuda, dispatch, library
from mmlk.ops.dcls import schema
from mmlk.ops.dcls.construct import construct, construct_backward

LARGEST_WINDOW = 64  # of either side: a program holds a kernel in registers
MOST_ELEMENTS = 65_535  # of a kernel: an axis of the grid, whose programs take one of large windows


def refusal_of_window(
    weight: Tensor, positions: Tensor, sigma: Tensor | None, kernel_size: Sequence[int]
) -> str | None:
    """Reason why the Triton kernels cannot construct this window, or None."""
    if len(kernel_size) != 2:
        return f'the window has {len(kernel_size)} axes, only two are built in one launch'
    if max(kernel_size) > LARGEST_WINDOW:
        return f'the window {tuple(kernel_size)} has a side above {LARGEST_WINDOW}'
    if weight.shape[-1] > MOST_ELEMENTS:
        return f'a kernel has {weight.shape[-1]} elements, more than {MOST_ELEMENTS}'
    for each in (weight, positions, sigma):
        if each is not None and each.dtype not in cuda.DTYPES:
            return f'an argument is {each.dtype}'
    return cuda.refusal_of_triton(weight.device.index)


def _forward(weight, positions, sigma, kernel_size, version) -> Tensor:
    if refusal_of_window(weight, positions, sigma, kernel_size) is not None:
        return construct(weight, positions, sigma, kernel_size, version)
    kernels = importlib.import_module('mmlk.ops.dcls.triton')
    return kernels.forward(weight, positions, sigma, kernel_size, version)


def _backward(
    grad, weight, positions, sigma, kernel_size, version
) -> tuple[Tensor, Tensor, Tensor]:
    if refusal_of_window(weight, positions, sigma, kernel_size) is not None:
        return construct_backward(grad, weight, positions, sigma, kernel_size, version)
    kernels = importlib.import_module('mmlk.ops.dcls.triton')
    return kernels.backward(grad, weight, positions, sigma, kernel_size, version)


def _gradient(ctx, grad: Tensor):
    weight, positions, *rest = ctx.saved_tensors
    sigma = rest[0] if rest else None
    gradients = torch.ops.mmlk.dcls_kernel_fused_backward(
        grad, weight, positions, sigma, ctx.kernel_size, ctx.version
    )
    return (*gradients[:2], gradients[2] if rest else None, None, None)


def _refusal(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    _version: str,
) -> str | None:
    return dispatch.refusal_for_device(weight, 'cuda', positions, sigma) or refusal_of_window(
        weight, positions, sigma, kernel_size
    )


library.define(
    'dcls_kernel_fused_backward',
    f'(Tensor grad, {schema.ARGUMENTS}) -> (Tensor, Tensor, Tensor)',
    fake=schema.backward_fake,
)
_fused = library.define(
    'dcls_kernel_fused',
    f'({schema.ARGUMENTS}) -> Tensor',
    fake=schema.fake,
    backward=_gradient,
    setup_context=schema.setup,
    autocast=False,
)
_apply = library.registered_node('dcls_kernel_fused', _forward)


def _run(weight: Tensor, *args) -> Tensor:
    # Autocast leaves parameters alone, so it is no reason to go through the dispatcher.
    seen = dispatch.needs_dispatcher(weight, autocast=False)
    return (_fused if seen else _apply)(weight, *args)


library.implement('dcls_kernel_fused_backward', 'CUDA', _backward)
library.implement('dcls_kernel_fused', 'CUDA', _forward)
dispatch.register('dcls_kernel2d', dispatch.Backend('triton', _run, _refusal))
