"""The registered operators of the recursive convolution: schema, shapes, gradient formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import jit
from mmlk.ops.library import define
from mmlk.ops.maps import layout
from mmlk.ops.recconv import loops


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 for everything narrower: 16-bit convolutions have no fast code on most CPUs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def can_compile(x: Tensor, down_weight: Tensor, weights: list[Tensor]) -> bool:
    """Whether the recursion runs as compiled loops, by device, dtype and shapes alone."""
    return (
        x.is_cpu
        and working_dtype(x) == torch.float32
        and jit.refusal() is None
        and loops.refusal(down_weight, weights) is None
    )


def _fake(
    x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str
) -> tuple[Tensor, list[Tensor]]:
    n, c, h, w = x.shape
    y = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=layout(x))
    if x.device.type == 'cuda' or can_compile(x, down_weight, weights):  # nothing is saved there
        return y, []
    sizes = [(h, w)]
    for _ in weights[1:]:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    saved = [
        torch.empty(
            (n, c, *size),
            dtype=working_dtype(x),
            device=x.device,
            memory_format=torch.channels_last,
        )
        for size in (*sizes[1:], *sizes[-2::-1])
    ]
    return y, saved


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    down_weight: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    mode: str,
    mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (
        torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0),
        torch.empty_like(down_weight, memory_format=torch.contiguous_format)
        if mask[1]
        else down_weight.new_empty(0),
        [
            torch.empty_like(weight, memory_format=torch.contiguous_format)
            if mask[2]
            else weight.new_empty(0)
            for weight in weights
        ],
    )


def _setup(ctx, inputs, output) -> None:
    x, down_weight, weights, mode = inputs
    saved = output[1]
    ctx.save_for_backward(x, down_weight, *weights, *saved)
    ctx.count, ctx.mode = len(weights), mode


def _gradient(ctx, grad: Tensor, _grad_saved):
    x, down_weight, *rest = ctx.saved_tensors
    weights, saved = rest[: ctx.count], rest[ctx.count :]
    wants_x, wants_down, wants_weights = ctx.needs_input_grad[:3]
    mask = [wants_x, wants_down, any(wants_weights)]
    grad_x, grad_down, grad_weights = torch.ops.mmlk.recconv2d_backward(
        grad, x, down_weight, weights, saved, ctx.mode, mask
    )
    return (
        grad_x if mask[0] else None,
        grad_down if mask[1] else None,
        [each if wanted else None for each, wanted in zip(grad_weights, wants_weights)],
        None,
    )


define(
    'recconv2d_backward',
    '(Tensor grad, Tensor x, Tensor down_weight, Tensor[] weights, Tensor[] saved, str mode, '
    'bool[3] mask) -> (Tensor, Tensor, Tensor[])',
    fake=_backward_fake,
)


recconv2d = define(
    'recconv2d',
    '(Tensor x, Tensor down_weight, Tensor[] weights, str mode) -> (Tensor, Tensor[])',
    fake=_fake,
    setup_context=_setup,
    backward=_gradient,
)
