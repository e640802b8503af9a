"""The registered operators of several kernels on one map: schema, shapes, gradient formulas.

They take up to three kernels as separate arguments rather than a list, which autograd of registered
operators handles an order of magnitude slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops.library import define
from mmlk.ops.maps import layout


def _branches_fake(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    form = layout(x)
    return (
        torch.empty_like(x, memory_format=form),
        torch.empty_like(x, memory_format=form),
        x.new_empty(0) if third is None else torch.empty_like(x, memory_format=form),
    )


def _sum_fake(x: Tensor, *parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _backward_fake(
    grad_first: Tensor,
    grad_second: Tensor,
    grad_third: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = [torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0)]
    for weight, wanted in zip((first, second, third), mask[1:4]):
        gradients.append(
            torch.empty_like(weight, memory_format=torch.contiguous_format)
            if wanted
            else first.new_empty(0)
        )
    return *gradients, first.new_empty(first.shape[0] if mask[4] else 0)


def _setup(ctx, inputs, output) -> None:
    x, first, second, third = inputs[:4]
    ctx.save_for_backward(x, first, second, third)


def _gradients(ctx, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    mask = [*wanted[:4], len(wanted) > 4 and wanted[4]]
    results = torch.ops.mmlk.large_kernel_backward(*grads, *ctx.saved_tensors, mask)
    return tuple(each if want else None for each, want in zip(results, mask))


def _branches_gradient(ctx, *grads: Tensor):
    return _gradients(ctx, grads)[:4]


def _sum_gradient(ctx, grad: Tensor):
    return _gradients(ctx, (grad, grad, grad))


define(
    'large_kernel_backward',
    '(Tensor grad_first, Tensor grad_second, Tensor grad_third, Tensor x, Tensor first, '
    'Tensor second, Tensor? third, bool[5] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    fake=_backward_fake,
)


large_kernel_branches = define(
    'large_kernel_branches',
    '(Tensor x, Tensor first, Tensor second, Tensor? third) -> (Tensor, Tensor, Tensor)',
    fake=_branches_fake,
    setup_context=_setup,
    backward=_branches_gradient,
)


large_kernel_sum = define(
    'large_kernel_sum',
    '(Tensor x, Tensor first, Tensor second, Tensor? third, Tensor? bias) -> Tensor',
    fake=_sum_fake,
    setup_context=_setup,
    backward=_sum_gradient,
)
