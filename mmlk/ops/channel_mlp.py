"""The channel mixer of ConvNeXt-like blocks: linear, exact GELU, linear, scale, on the last axis.

In these networks it is nine tenths of the multiplications. One function holds it all, so that its
gradient can be written out: every product runs in its best order (`mmlk.ops.products`), and the wide
gradient between the layers is overwritten in place instead of copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, products
from mmlk.ops.allocation import keep_freed_memory
from mmlk.ops.reference import channel_mlp_reference


def channel_mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
                scale: Tensor | None = None, *, backend: str | None = None) -> Tensor:
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
    if not torch.jit.is_tracing() and (
            x.dim() < 1 or weight1.dim() != 2 or weight2.dim() != 2
            or weight1.shape[1] != x.shape[-1] or weight2.shape[1] != weight1.shape[0]):
        raise ValueError(f'channel_mlp: x {tuple(x.shape)}, weight1 {tuple(weight1.shape)} and '
                         f'weight2 {tuple(weight2.shape)} are not (..., C), (H, C) and (O, H)')
    args = (x, weight1, bias1, weight2, bias2, scale)
    return dispatch.choose('channel_mlp', *args, backend=backend)(*args)


class _ChannelMlp(torch.autograd.Function):
    """Keeps both wide maps, as torch's own layers do, and the output before the scale."""

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, scale):
        wide, active = products.linear_gelu(x, weight1, bias1)
        y = products.linear(active, weight2, bias2)
        ctx.save_for_backward(x, wide, active, y if scale is not None else None, weight1, weight2,
                              scale)
        return y if scale is None else y * scale

    @staticmethod
    @dispatch.first_derivative_only('channel_mlp')
    def backward(ctx, grad):
        x, wide, active, y, weight1, weight2, scale = ctx.saved_tensors
        wants_x, *wants = ctx.needs_input_grad
        gradients = [None] * 6
        grad = grad.contiguous()
        if scale is not None:
            if wants[4]:
                gradients[5] = (grad * y).sum(0)
            grad = grad * scale
        if wants[2] or wants[3]:
            gradients[3], gradients[4] = products.weight_gradient(grad, active, wants[3])
        if wants_x or wants[0] or wants[1]:
            grad = products.input_gradient(grad, weight2, wide)
            if wants[0] or wants[1]:
                gradients[1], gradients[2] = products.weight_gradient(grad, x, wants[1])
            if wants_x:
                gradients[0] = products.input_gradient(grad, weight1)
        return tuple(gradients)


def _mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
         scale: Tensor | None = None) -> Tensor:
    keep_freed_memory()
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        y = _ChannelMlp.apply(rows, weight1, bias1, weight2, bias2, scale)
    else:
        y = products.linear(products.linear(rows, weight1, bias1, gelu=True), weight2, bias2)
        y = y if scale is None else y.mul_(scale)
    return y.view(*x.shape[:-1], y.shape[-1])


def _refuses(x: Tensor, *parameters: Tensor | None) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    reason = dispatch.refuses_device(x, 'cpu')
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


dispatch.register('channel_mlp', dispatch.Backend('cpu', _mlp, _refuses))
dispatch.register('channel_mlp', dispatch.Backend(
    'reference', channel_mlp_reference, dispatch.never_refuses))
