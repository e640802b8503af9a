"""CUDA backend of the recursive convolution: predicates, and the way to its Triton kernels.

Nothing but the arguments is saved for the backward pass, which computes the coarse maps again.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from mmlk.ops import cuda, dispatch, library
from mmlk.ops.recconv import cpu, schema
from mmlk.ops.recconv.node import node

LARGEST_KERNEL = 7  # taps and the sums of their gradients stay in registers
MOST_LEVELS = 7


def refusal_of_recursion(x: Tensor, down_weight: Tensor, weights: list[Tensor]) -> str | None:
    """Reason why the Triton kernels cannot compute this recursion, or None."""
    height, width = down_weight.shape[2:]
    if len(weights) > 1:
        if height != width or any(each.shape[2:] != down_weight.shape[2:] for each in weights):
            return 'the kernels are not square or differ in size, only equal square ones are fused'
        if height > LARGEST_KERNEL:
            return f'the {height} x {width} kernels have a side above {LARGEST_KERNEL}'
    if len(weights) > MOST_LEVELS + 1:
        return f'there are {len(weights) - 1} levels, at most {MOST_LEVELS} are fused'
    return cuda.refusal_of_map(x)


def _triton():
    return importlib.import_module('mmlk.ops.recconv.triton')


def _forward(
    x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str
) -> tuple[Tensor, list[Tensor]]:
    if refusal_of_recursion(x, down_weight, weights) is not None:
        return cpu.compute(x, down_weight, weights, mode)[0], []
    return _triton().forward(x, down_weight, weights, mode)


def _backward(
    grad: Tensor,
    x: Tensor,
    down_weight: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    mode: str,
    mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    if refusal_of_recursion(x, down_weight, weights) is not None:
        saved = cpu.compute(x, down_weight, weights, mode)[1]
        return cpu.compute_backward(grad, x, down_weight, weights, saved, mode, mask)
    return _triton().backward(grad, x, down_weight, weights, saved, mode, mask)


_apply = node(_forward, _backward)


def _run(x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    if torch.is_autocast_enabled('cuda') and not torch.compiler.is_compiling():
        x = x.to(torch.get_autocast_dtype('cuda')) if x.dtype == torch.float32 else x
        with torch.autocast('cuda', enabled=False):
            return _run(x, down_weight, weights, mode)
    if dispatch.needs_dispatcher(x):
        return schema.recconv2d(x, down_weight, weights, mode)[0]
    return _apply(x, down_weight, *weights, mode)


def _refusal(x: Tensor, down_weight: Tensor, weights: list[Tensor], _mode: str) -> str | None:
    return dispatch.refusal_for_device(x, 'cuda', down_weight, *weights) or refusal_of_recursion(
        x, down_weight, weights
    )


library.implement('recconv2d', 'CUDA', _forward)
library.implement('recconv2d_backward', 'CUDA', _backward)
dispatch.register('recconv2d', dispatch.Backend('triton', _run, _refusal))
