"""The channel mixer of ConvNeXt-like blocks: linear, exact GELU, linear, scale, on the last axis.

In these networks it is nine tenths of the multiplications. One function holds it all, so that its
gradient can be written out: every product runs in its best order (`mmlk.ops.dense.products`), and the
wide gradient between the layers is overwritten in place instead of copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops import dispatch, library
from mmlk.ops.dense import products
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.reference import channel_mlp_reference


def channel_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``scale * (gelu(x W1^T + b1) W2^T + b2)`` on the last axis.

    `channel_mlp_reference` is the definition.

    Args:
        x: (..., C).
        weight1: (H, C).
        bias1: (H,).
        weight2: (O, H).
        bias2: (O,).
        scale: (O,).
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (..., O), contiguous.

    Raises:
        ValueError: if shapes do not fit.

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, weight1, bias1, weight2, bias2, scale)
    return dispatch.run('channel_mlp', *args, backend=backend)


def _arguments(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    if not torch.jit.is_tracing() and (
        x.dim() < 1
        or weight1.dim() != 2
        or weight2.dim() != 2
        or weight1.shape[1] != x.shape[-1]
        or weight2.shape[1] != weight1.shape[0]
    ):
        raise ValueError(
            f'channel_mlp: x {tuple(x.shape)}, weight1 {tuple(weight1.shape)} and '
            f'weight2 {tuple(weight2.shape)} are not (..., C), (H, C) and (O, H)'
        )
    return x, weight1, bias1, weight2, bias2, scale


class Mlp(NamedTuple):
    """What `mlp_forward` keeps for `mlp_backward`, all but ``scale`` on (M, ...) rows.

    Attributes:
        x: (M, C), the input.
        wide: (M, H), before GELU.
        active: (M, H), after it.
        y: (M, O), before the scale; None without a scale.
        weight1: (H, C).
        weight2: (O, H).
        scale: (O,).
    """

    x: Tensor
    wide: Tensor
    active: Tensor
    y: Tensor | None
    weight1: Tensor
    weight2: Tensor
    scale: Tensor | None


def mlp_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor, Mlp]:
    """``mlp(x)`` on rows; both wide maps are kept, as torch's own layers do."""
    wide, active = products.linear_gelu(x, weight1, bias1)
    out, y = products.scaled_linear(active, weight2, bias2, scale)
    return out, Mlp(x, wide, active, y, weight1, weight2, scale)


def mlp_backward(grad: Tensor, kept: Mlp, wants: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of the first six arguments of `mlp_forward`, at least those in ``wants``."""
    x, wide, active, y, weight1, weight2, scale = kept
    gradients = [None] * 6
    if any(wants[3:]):
        gradients[3:] = products.weight_gradient(
            grad, active, wants[4], scale, y if wants[5] else None
        )
    if any(wants[:3]):
        grad = products.input_gradient(grad, weight2, wide, scale)
        if wants[1] or wants[2]:
            gradients[1:3] = products.weight_gradient(grad, x, wants[2])[:2]
        if wants[0]:
            gradients[0] = products.input_gradient(grad, weight1)
    return gradients


def _forward(ctx, *args) -> Tensor:
    out, kept = mlp_forward(*args)
    ctx.save_for_backward(*kept)
    return out


def _backward(ctx, grad: Tensor) -> list[Tensor | None]:
    return mlp_backward(grad.contiguous(), Mlp(*ctx.saved_tensors), ctx.needs_input_grad)


_apply = library.node('channel_mlp', _forward, _backward)


def _run(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None,
) -> Tensor:
    keep_freed_memory()
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        y = _apply(rows, weight1, bias1, weight2, bias2, scale)
    else:
        y = products.linear(products.linear(rows, weight1, bias1, gelu=True), weight2, bias2)
        y = y if scale is None else y.mul_(scale)
    return y.view(*x.shape[:-1], y.shape[-1])


def _refusal(x: Tensor, *parameters: Tensor | None) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    reason = dispatch.refusal_for_device(x, 'cpu', *parameters)
    if reason is not None:
        return reason
    if any(type(each) not in (Tensor, torch.nn.Parameter, type(None)) for each in (x, *parameters)):
        return 'a subclass of tensor must see the plain layers'
    if torch.is_autocast_enabled('cpu'):
        return 'autocast is on'
    if x.dtype not in (torch.float32, torch.float64):
        return f'the input is {x.dtype}'
    if any(each is not None and each.dtype != x.dtype for each in parameters):
        return 'the parameters have another dtype than the input'
    return None


dispatch.declare('channel_mlp', _arguments, channel_mlp_reference)
dispatch.register('channel_mlp', dispatch.Backend('cpu', _run, _refusal))
