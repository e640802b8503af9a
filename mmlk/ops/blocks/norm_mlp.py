"""The second half of ConvNeXt-like blocks in training on a CPU, as one autograd node.

The last product adds the residual, and the layers between need neither views nor nodes of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.dense.channel_mlp import Mlp, mlp_backward, mlp_forward
from mmlk.ops.jit.address import can_address
from mmlk.ops.maps import as_map, rows
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.norm import loops_layer_norm as layer_norm
from mmlk.ops.reference import norm_mlp_reference


def norm_mlp(
    x: Tensor,
    mixed: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    factors: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x + factors * scale * mlp(layer_norm(mixed))``, norm and MLP over the channels.

    `norm_mlp_reference` is the definition.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        norm_weight: (C,).
        norm_bias: (C,).
        weight1: (H, C).
        bias1: (H,).
        weight2: (C, H).
        bias2: (C,).
        scale: (C,).
        eps: Added to the variance.
        factors: (N, 1, 1, 1), of stochastic depth.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W).

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    parameters = norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale
    return dispatch.run('norm_mlp', x, mixed, *parameters, eps, factors, backend=backend)


def _arguments(
    x: Tensor,
    mixed: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    factors: Tensor | None = None,
) -> tuple:
    parameters = norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale
    return x, mixed, *parameters, eps, factors


def _refusal(x: Tensor, mixed: Tensor, *arguments) -> str | None:
    if not torch.is_grad_enabled():
        return 'gradients are not asked for'
    reason = dispatch.refusal_to_fuse(x, mixed) or jit.refusal()
    if reason is not None:
        return reason
    if not layer_norm.can_run(mixed.shape[1]):
        return 'the rows are shorter than a vector'
    for each in arguments[:7]:
        if each is not None and not (can_address(each) and each.is_contiguous()):
            return 'a parameter is not plain dense float32 on the CPU'
    if arguments[0] is None or arguments[1] is None or arguments[3] is None or arguments[5] is None:
        return 'a layer has no bias, or the norm no parameters'
    return None


def _run(x: Tensor, mixed: Tensor, *arguments) -> Tensor:
    keep_freed_memory()
    return _apply(x, mixed, *arguments)


def _forward(
    ctx, x, mixed, norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale, eps, factors
) -> Tensor:
    start = rows(mixed)
    normed, *statistics = layer_norm.forward(start, norm_weight, norm_bias, eps, keep=True)
    out, kept = mlp_forward(
        normed, weight1, bias1, weight2, bias2, scale, rows(x) if factors is None else None
    )
    out = as_map(out, x)
    ctx.factors = factors
    ctx.save_for_backward(start, norm_weight, *statistics, *kept)
    return out if factors is None else torch.addcmul(x, out, factors)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    start, norm_weight, mean, rstd, *kept = ctx.saved_tensors
    wants = ctx.needs_input_grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    flow = grad if ctx.factors is None else grad * ctx.factors
    through_norm = any(wants[1:4])
    gradients = mlp_backward(rows(flow), Mlp(*kept), (through_norm, *wants[4:9]))
    by_norm = None, None, None
    if through_norm:
        by_norm = layer_norm.backward(gradients[0], start, norm_weight, mean, rstd)
        by_norm = as_map(by_norm[0], grad), *by_norm[1:]
    return grad, *by_norm, *gradients[1:]


_apply = library.node('norm_mlp', _forward, _backward)
dispatch.declare('norm_mlp', _arguments, norm_mlp_reference)
dispatch.register('norm_mlp', dispatch.Backend('cpu', _run, _refusal))
