"""CPU backend of several kernels on one map: compiled loops, or one depthwise convolution each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import dispatch, library
from mmlk.ops.depthwise import cpu as depthwise
from mmlk.ops.large_kernel import loops, schema
from mmlk.ops.maps import in_compute_dtype, layout
from mmlk.ops.memory import keep_freed_memory


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def _prepared(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Map and kernels in the type that is computed in, the kernels in plain strides."""
    keep_freed_memory()
    work = in_compute_dtype(x)
    return work, [each.to(work.dtype).contiguous() for each in _given(*weights)]


def _compiled_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    work: Tensor,
    weights: list[Tensor],
    mask: list[bool],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of the map and of three kernels of ``dtype``, empty where they are not wanted."""
    # Those of a sum are one gradient.
    grads = grads[:1] if grads[0] is grads[1] else grads[: len(weights)]
    grad_x, taps = loops.gradients(
        [in_compute_dtype(each) for each in grads],
        work,
        weights,
        mask[0],
        mask[1 : 1 + len(weights)],
    )
    return [
        x.new_empty(0)
        if grad_x is None
        else grad_x.to(x.dtype).contiguous(memory_format=layout(x)),
        *(
            x.new_empty(0, dtype=dtype) if each is None else each.to(dtype)
            for each in [*taps, *(None,) * (3 - len(taps))]
        ),
    ]


def compute_branches(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_branches`; 16-bit types are rounded once."""
    work, weights = _prepared(x, first, second, third)
    if loops.refusal(work, weights) is None:
        parts = [
            each.to(x.dtype).contiguous(memory_format=layout(x))
            for each in loops.apart(work, weights)
        ]
        return *parts[:2], parts[2] if third is not None else x.new_empty(0)
    parts = [depthwise.compute(x, weight, None, [1, 1]) for weight in _given(first, second, third)]
    return *parts[:2], parts[2] if third is not None else x.new_empty(0)


def compute_sum(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None, bias: Tensor | None
) -> Tensor:
    """`mmlk::large_kernel_sum`; 16-bit types are rounded once."""
    work, weights = _prepared(x, first, second, third)
    work_bias = None if bias is None else bias.to(work.dtype).contiguous()
    if loops.refusal(work, weights, work_bias) is None:
        y = loops.summed(work, weights, work_bias)
        return y.to(x.dtype).contiguous(memory_format=layout(x))
    y = depthwise.compute(work, first, bias, [1, 1])
    for weight in _given(second, third):
        y += depthwise.compute(work, weight, None, [1, 1])
    return y.to(x.dtype)


def compute_backward(
    grad_first: Tensor,
    grad_second: Tensor,
    grad_third: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_backward`; 16-bit types are rounded once."""
    grads = (grad_first, grad_second, grad_third)
    bias = (
        in_compute_dtype(grad_first).sum((0, 2, 3)).to(first.dtype)
        if mask[4]
        else first.new_empty(0)
    )
    work, weights = _prepared(x, first, second, third)
    if loops.refusal(work, weights) is None:
        return *_compiled_backward(grads, x, work, weights, mask, first.dtype), bias
    results = []
    grad_x = None
    for grad, weight, wanted in zip(grads, (first, second, third), mask[1:4]):
        if weight is None:
            results.append(first.new_empty(0))
            continue
        part, grad_weight, _ = depthwise.compute_backward(
            in_compute_dtype(grad), work, weight, [1, 1], [mask[0], wanted, False]
        )
        results.append(grad_weight)
        if mask[0]:
            grad_x = part if grad_x is None else grad_x.add_(part)
    return grad_x.to(x.dtype) if mask[0] else x.new_empty(0), *results, bias


def _backward(ctx, grads: Sequence[Tensor]) -> Sequence[Tensor]:
    wanted = ctx.needs_input_grad
    mask = [*wanted[:4], len(wanted) > 4 and wanted[4]]
    return torch.ops.mmlk.large_kernel_backward(*grads, *ctx.saved_tensors, mask)


def _forward_branches(ctx, x, *weights) -> tuple[Tensor, Tensor, Tensor]:
    ctx.save_for_backward(x, *weights)
    return compute_branches(x, *weights)


def _forward_sum(ctx, x, first, second, third, bias) -> Tensor:
    ctx.save_for_backward(x, first, second, third)
    return compute_sum(x, first, second, third, bias)


_apply_branches = library.node(
    'large_kernel_branches', _forward_branches, lambda ctx, *grads: _backward(ctx, grads)
)
_apply_sum = library.node(
    'large_kernel_sum', _forward_sum, lambda ctx, grad: _backward(ctx, (grad, grad, grad))
)


def _run_branches(x: Tensor, *weights: Tensor | None) -> Sequence[Tensor]:
    seen = dispatch.needs_dispatcher(x)
    return (schema.large_kernel_branches if seen else _apply_branches)(x, *weights)


def _run_sum(x: Tensor, *parameters: Tensor | None) -> Tensor:
    seen = dispatch.needs_dispatcher(x)
    return (schema.large_kernel_sum if seen else _apply_sum)(x, *parameters)


def _refusal(x: Tensor, *parameters: Tensor | None) -> str | None:
    return dispatch.refusal_for_device(x, 'cpu', *parameters)


library.implement('large_kernel_branches', 'CPU', compute_branches)
library.implement('large_kernel_sum', 'CPU', compute_sum)
library.implement('large_kernel_backward', 'CPU', compute_backward)
dispatch.register('large_kernel_branches', dispatch.Backend('cpu', _run_branches, _refusal))
dispatch.register('large_kernel_sum', dispatch.Backend('cpu', _run_sum, _refusal))
