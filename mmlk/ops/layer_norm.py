"""Layer norm over the channels of maps whose channels come last.

torch's own takes several times the time of a copy for its gradients on a CPU, most of it for the sums
over pixels and, where channels are no multiple of the vector width, for what is left over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit
from mmlk.ops.jit import layer_norm as compiled
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
    if not torch.jit.is_tracing() and any(
        each is not None and each.shape != x.shape[-1:] for each in (weight, bias)
    ):
        raise ValueError(
            f'layer_norm: weight and bias of x {tuple(x.shape)} must be '
            f'{tuple(x.shape[-1:])}, not '
            f'{[None if each is None else tuple(each.shape) for each in (weight, bias)]}'
        )
    return dispatch.choose('layer_norm', x, weight, bias, eps, backend=backend)(
        x, weight, bias, eps
    )


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        x = x.contiguous()
        y, mean, deviation = compiled.forward(x, weight, bias, eps, keep=True)
        ctx.save_for_backward(x, weight, mean, deviation)
        return y

    @staticmethod
    @dispatch.first_derivative_only('layer_norm')
    def backward(ctx, grad):
        grads = compiled.backward(grad.contiguous(), *ctx.saved_tensors)
        return *(
            each if wanted else None for each, wanted in zip(grads, ctx.needs_input_grad)
        ), None


def _run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if torch.is_grad_enabled():
        return _LayerNorm.apply(x, weight, bias, eps)
    return compiled.forward(x.contiguous(), weight, bias, eps, keep=False)[0]


def _refuses(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, _eps: float = 0.0
) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    reason = dispatch.refuses_device(x, 'cpu') or jit.unavailable()
    if reason is not None:
        return reason
    if dispatch.watched(x) or (weight is None) is not (bias is None):
        return 'autocast, a dispatch mode or a subclass looks on, or bias or weight is missing'
    for each in (x, weight, bias):
        if each is not None and not (
            each.dtype == torch.float32 and each.is_cpu and type(each) in _PLAIN
        ):
            return f'{each.dtype} on {each.device} is not plain float32 on the CPU'
    if x.numel() == 0 or not compiled.takes(x.shape[-1]):
        return 'the rows are empty or shorter than a vector'
    if not all(each is None or each.is_contiguous() for each in (weight, bias)):
        return 'weight or bias is a strided view'
    return None


_PLAIN = torch.Tensor, torch.nn.Parameter

dispatch.register('layer_norm', dispatch.Backend('cpu', _run, _refuses))
dispatch.register(
    'layer_norm', dispatch.Backend('reference', layer_norm_reference, dispatch.never_refuses)
)
