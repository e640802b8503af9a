"""Layer norm on the last axis: compiled loops in inference, torch's otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit
from mmlk.ops.jit.address import can_address
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.norm.loops_layer_norm import forward
from mmlk.ops.reference import layer_norm_reference


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str | None = None,
) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis, with biased variance.

    `layer_norm_reference` is the definition.

    Args:
        x: (..., C).
        weight: (C,); one without it.
        bias: (C,); zero without it.
        eps: Added to the variance.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (..., C).

    Raises:
        ValueError: If shapes do not fit.

    Note:
        Without gradients, and on a CPU, in float32, it is computed by loops of this package.
    """
    return dispatch.run('layer_norm', *_arguments(x, weight, bias, eps), backend=backend)


def _arguments(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    if not torch.jit.is_tracing():
        for name, each in (('weight', weight), ('bias', bias)):
            if x.dim() == 0 or each is not None and each.shape != x.shape[-1:]:
                given = () if each is None else tuple(each.shape)
                raise ValueError(
                    f'layer_norm: x {tuple(x.shape)} and {name} {given} are not (..., C) and (C,)'
                )
    return x, weight, bias, eps


def _run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    keep_freed_memory()
    return forward(x.view(-1, x.shape[-1]), weight, bias, eps).view(x.shape)


def _refusal(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> str | None:
    if torch.is_grad_enabled():
        return 'gradients may be asked for'
    reason = dispatch.refusal_for_device(x, 'cpu', weight, bias)
    if reason is not None:
        return reason
    if dispatch.needs_dispatcher(x):
        return 'a compiler, autocast, a dispatch mode or a subclass has to see the layer'
    if not can_address(x, weight, bias) or x.numel() == 0:
        return 'only plain float32 tensors that are not empty are normalised'
    if not all(each is None or each.is_contiguous() for each in (x, weight, bias)):
        return 'an operand is not contiguous'
    return jit.refusal()


dispatch.declare('layer_norm', _arguments, layer_norm_reference)
dispatch.register('layer_norm', dispatch.Backend('cpu', _run, _refusal))
