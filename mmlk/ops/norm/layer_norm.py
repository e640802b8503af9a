"""Layer norm over the channels of maps whose channels come last.

torch's own takes several times the time of a copy for its gradients on a CPU, most of it for the sums
over pixels and, where channels are no multiple of the vector width, for what is left over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.jit.address import can_address
from mmlk.ops.norm import loops_layer_norm as loops
from mmlk.ops.reference import layer_norm_reference


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str | None = None,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis, with the biased variance.

    `layer_norm_reference` is the definition.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (..., C).

    Raises:
        ValueError: if weight or bias do not fit.

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, weight, bias, eps)
    return dispatch.run('layer_norm', *args, backend=backend)


def _arguments(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    if not torch.jit.is_tracing() and any(
        each is not None and each.shape != x.shape[-1:] for each in (weight, bias)
    ):
        raise ValueError(
            f'layer_norm: weight and bias of x {tuple(x.shape)} must be '
            f'{tuple(x.shape[-1:])}, not '
            f'{[None if each is None else tuple(each.shape) for each in (weight, bias)]}'
        )
    return x, weight, bias, eps


def _forward(ctx, x, weight, bias, eps) -> Tensor:
    x = x.contiguous()
    y, mean, rstd = loops.forward(x, weight, bias, eps, keep=True)
    ctx.save_for_backward(x, weight, mean, rstd)
    return y


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return loops.backward(grad.contiguous(), *ctx.saved_tensors)


_apply = library.node('layer_norm', _forward, _backward)


def _run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if torch.is_grad_enabled():
        return _apply(x, weight, bias, eps)
    return loops.forward(x.contiguous(), weight, bias, eps, keep=False)[0]


def _refusal(x: Tensor, weight: Tensor | None, bias: Tensor | None, _eps: float) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    reason = dispatch.refusal_for_device(x, 'cpu', weight, bias) or jit.refusal()
    if reason is not None:
        return reason
    if dispatch.needs_dispatcher(x) or (weight is None) is not (bias is None):
        return (
            'autocast, a dispatch mode or a subclass has to see the layer, '
            'or bias or weight is missing'
        )
    if not can_address(x, weight, bias):
        return 'only plain float32 tensors on the CPU are compiled'
    if x.numel() == 0 or not loops.can_run(x.shape[-1]):
        return 'the rows are empty or shorter than a vector'
    if not all(each is None or each.is_contiguous() for each in (weight, bias)):
        return 'weight or bias is a strided view'
    return None


dispatch.declare('layer_norm', _arguments, layer_norm_reference)
dispatch.register('layer_norm', dispatch.Backend('cpu', _run, _refusal))
