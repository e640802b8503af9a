"""Depthwise convolution of a map, normed in training, plus another map: one operator on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.depthwise import cpu, loops
from mmlk.ops.jit.address import are_dense, can_address
from mmlk.ops.maps import channels_last
from mmlk.ops.norm import batch_norm
from mmlk.ops.reference import depthwise_sum_reference
from mmlk.ops.states import BatchNormState


def depthwise_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    coarse: Tensor | None = None,
    onto: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``onto + norm(depthwise(x + up(coarse)))``, interpolated to the nearest pixel.

    `depthwise_sum_reference` is the definition.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw), sides odd.
        bias: (C,).
        norm: Batch norm in training.
        stride: Step in rows and columns.
        coarse: (N, C, h, w), enlarged to the size of ``x`` and added to it.
        onto: Map of the result's shape; without gradients it may be overwritten.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, ceil(H / sh), ceil(W / sw)).

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, weight, bias, norm, stride=stride, coarse=coarse, onto=onto)
    return dispatch.run('depthwise_sum', *args, backend=backend)


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    coarse: Tensor | None = None,
    onto: Tensor | None = None,
) -> tuple:
    return x, weight, bias, norm, stride, coarse, onto


def _reference(x, weight, bias, norm, stride, coarse, onto) -> Tensor:
    return depthwise_sum_reference(x, weight, bias, norm, stride=stride, coarse=coarse, onto=onto)


def _refusal(x, weight, bias, norm, stride, coarse, onto) -> str | None:
    maps = [each for each in (x, coarse, onto) if each is not None]
    reason = dispatch.refusal_to_fuse(*maps) or jit.refusal()
    if reason is not None:
        return reason
    if not can_address(weight) or not are_dense(bias, *(() if norm is None else norm.tensors)):
        return 'a parameter is not plain float32 on the CPU, or a strided view'
    shape, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    if cpu.leaves_the_cache(shape, kernel):
        return 'a row of the map does not fit a thread'
    if norm is None:
        if torch.is_grad_enabled():
            return 'gradients may be asked for'
        if coarse is not None and shape != (2 * coarse.shape[2], 2 * coarse.shape[3]):
            return 'the coarse map is not half of the other'
        return None
    if not torch.is_grad_enabled():
        return 'gradients are not asked for'
    if coarse is not None or bias is not None:
        return 'a bias in front of the norm, or a coarse map, has no gradient here'
    rows, columns = -(-shape[0] // stride[0]), -(-shape[1] // stride[1])
    if x.shape[0] * rows * columns < 2:
        return 'there is only one value per channel'
    return None


def _run(x, weight, bias, norm, stride, coarse, onto) -> Tensor:
    if norm is not None:
        return _apply(x, weight, norm.weight, norm.bias, onto, norm, stride)
    return loops.forward(
        x, weight, bias, stride, out=onto, accumulate=onto is not None, coarse=coarse
    )


def _forward(ctx, x, weight, scale, shift, onto, norm: BatchNormState, stride) -> Tensor:
    convolved = loops.forward(x, weight, None, stride)
    y, mean, rstd = batch_norm.forward(convolved, norm, residual=onto)
    ctx.save_for_backward(x, weight, scale, convolved, mean, rstd)
    ctx.stride, ctx.eps = stride, norm.eps
    return y


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, scale, convolved, mean, rstd = ctx.saved_tensors
    wants = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    flow, grad_scale, grad_shift = batch_norm.backward(
        grad, convolved, scale, mean, rstd, ctx.eps, [True, wants[2], wants[3]]
    )
    grad_x = loops.input_gradient(flow, weight, tuple(x.shape), ctx.stride) if wants[0] else None
    grad_weight = None
    if wants[1]:
        # A slice of channels is read as it is.
        source = x if channels_last(x) else x.contiguous(memory_format=torch.channels_last)
        grad_weight = loops.weight_gradient(flow, source, tuple(weight.shape[2:]), ctx.stride)[0]
    return grad_x, grad_weight, grad_scale, grad_shift, grad


_apply = library.node('depthwise_sum', _forward, _backward)
dispatch.declare('depthwise_sum', _arguments, _reference)
dispatch.register('depthwise_sum', dispatch.Backend('cpu', _run, _refusal))
