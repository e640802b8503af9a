"""CPU backend of the Inception depthwise convolution: each branch by the code of a depthwise one."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.depthwise.cpu import (
    CHANNELS,
    COMPILED,
    FORWARD,
    NATIVE,
    NATIVE_LAST,
    Plan,
    can_use_torch,
    clipped_kernel,
    compiled_gradients,
    gradients,
    laid_out,
    plan_for,
    unclipped,
)
from mmlk.ops.inception import schema
from mmlk.ops.jit.address import can_address
from mmlk.ops.layout.loops import copy_channels
from mmlk.ops.maps import channels_last, in_compute_dtype, layout
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.reference import depthwise_conv2d_reference


def _branch_plan(x: Tensor, kernel: Tensor, last: bool, compiles: bool) -> Plan:
    """Routes of a branch of the Inception operator.

    A slice of channels is copied in any case, so a short wide band, which torch computes well
    channels-last only, is copied to that layout.
    """
    kh, kw = kernel.shape[2:]
    if compiles and last:
        return COMPILED
    if max(kh, kw) <= 15:
        return NATIVE_LAST if kw > 3 or last else NATIVE
    return plan_for(x, kernel, (1, 1))


def _can_compile(x: Tensor) -> bool:
    """Whether there are compiled loops for the map, once it is widened."""
    return x.dtype != torch.float64 and x.is_cpu and x.numel() > 0 and jit.refusal() is None


def compute(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    """`mmlk::inception_dwconv2d` on a CPU; 16-bit types are rounded once."""
    keep_freed_memory()
    g, last = weight_hw.shape[0], channels_last(x)
    last, compiles, start = last and g > 1, _can_compile(x), x.shape[1] - 3 * g
    y = _with_identity(x, x, start, last and compiles)
    for weight, bias in ((weight_hw, bias_hw), (weight_w, bias_w), (weight_h, bias_h)):
        part = in_compute_dtype(x.narrow(1, start, g))
        kernel = clipped_kernel(weight, x.shape[2:], part.dtype)
        chosen = _branch_plan(part, kernel, last, compiles)
        form, route = FORWARD[chosen.forward]
        bias = None if bias is None else bias.to(part.dtype)
        target = y.narrow(1, start, g)
        if chosen == COMPILED and y.dtype == part.dtype:
            route(part, kernel, bias, out=target)
        else:
            target.copy_(route(laid_out(part, form), kernel, bias))
        start += g
    return y


def _with_identity(values: Tensor, like: Tensor, channels: int, compiles: bool) -> Tensor:
    """``values`` in the layout of ``like``: the first ``channels``, the others are written later."""
    if not compiles or values.dtype != torch.float32 or values.stride(1) != 1:
        return values.clone(memory_format=layout(like))
    copied = torch.empty_like(values, memory_format=layout(like))
    if channels:
        copy_channels(values.narrow(1, 0, channels), copied.narrow(1, 0, channels))
    return copied


def compute_backward(
    grad: Tensor, x: Tensor, weight_hw: Tensor, weight_w: Tensor, weight_h: Tensor, mask: list[bool]
) -> list[Tensor]:
    """`mmlk::inception_dwconv2d_backward` on a CPU; 16-bit types are rounded once."""
    keep_freed_memory()
    g = weight_hw.shape[0]
    last, compiles = channels_last(x) and g > 1, _can_compile(x)
    start = x.shape[1] - 3 * g
    own = last and compiles
    results = [_with_identity(grad, x, start, own) if mask[0] else x.new_empty(0)]
    for index, weight in enumerate((weight_hw, weight_w, weight_h)):
        wanted = [mask[0], mask[2 * index + 1], mask[2 * index + 2]]
        part = in_compute_dtype(x.narrow(1, start, g))
        kernel = clipped_kernel(weight, x.shape[2:], part.dtype)
        incoming = in_compute_dtype(grad.narrow(1, start, g))
        chosen = _branch_plan(part, kernel, last, compiles)
        target = results[0].narrow(1, start, g) if mask[0] else None
        if chosen == COMPILED and grad.dtype == part.dtype:
            grad_x, grad_weight, grad_bias = compiled_gradients(
                laid_out(incoming, CHANNELS), part, kernel, [1, 1], wanted, target
            )
        else:
            grad_x, grad_weight, grad_bias = gradients(
                incoming, part, kernel, [1, 1], wanted, chosen
            )
            if mask[0]:
                target.copy_(grad_x)
        results.append(
            unclipped(grad_weight, weight.shape[2:]).to(weight.dtype)
            if wanted[1]
            else weight.new_empty(0)
        )
        results.append(grad_bias.to(weight.dtype) if wanted[2] else weight.new_empty(0))
        start += g
    return results


def _forward(ctx, x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h) -> Tensor:
    ctx.save_for_backward(x, weight_hw, weight_w, weight_h)
    return compute(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h)


def _backward(ctx, grad: Tensor) -> list[Tensor]:
    return compute_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad)


_apply = library.node('inception_dwconv2d', _forward, _backward)


def _run(x: Tensor, *parameters: Tensor | None) -> Tensor:
    last = channels_last(x)
    fits = last and x.dtype == torch.float32 and _can_compile(x)
    if fits and not dispatch.needs_dispatcher(x) and can_address(x, *parameters):
        return (_apply if torch.is_grad_enabled() else compute)(x, *parameters)
    if _can_use_torch(x, *parameters):
        return _by_torch(x, *parameters)
    return schema.inception_dwconv2d(x, *parameters)


def _can_use_torch(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h) -> bool:
    """Whether torch's convolution serves every branch, the wide one channels-last."""
    band = weight_w.shape[3]
    _, square, _, tall = _split(x, weight_hw)
    return (
        can_use_torch(square, weight_hw, (1, 1))
        and can_use_torch(tall, weight_h, (1, 1))
        and band <= 15
        and band < 2 * x.shape[3]
    )


def _by_torch(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h) -> Tensor:
    """Called directly, which spares small maps the cost of a registered operator."""
    identity, square, wide, tall = _split(x, weight_hw)
    plain = not channels_last(x)
    if plain:
        wide = wide.contiguous(memory_format=torch.channels_last)
    wide = depthwise_conv2d_reference(wide, weight_w, bias_w)
    return torch.cat(
        (
            identity,
            depthwise_conv2d_reference(square, weight_hw, bias_hw),
            wide.contiguous() if plain else wide,
            depthwise_conv2d_reference(tall, weight_h, bias_h),
        ),
        dim=1,
    )


def _split(x: Tensor, weight_hw: Tensor) -> tuple[Tensor, ...]:
    g = weight_hw.shape[0]
    return torch.split(x, (x.shape[1] - 3 * g, g, g, g), dim=1)


def _refusal(x: Tensor, *parameters: Tensor | None) -> str | None:
    return dispatch.refusal_for_device(x, 'cpu', *parameters)


library.implement('inception_dwconv2d', 'CPU', compute)
library.implement('inception_dwconv2d_backward', 'CPU', compute_backward)
dispatch.register('inception_dwconv2d', dispatch.Backend('cpu', _run, _refusal))
