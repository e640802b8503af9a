"""Batch norm in training, with what follows it: GELU or a residual.

It is no operator by itself but a part of several; they keep its input and statistics for `backward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import jit
from mmlk.ops.norm import loops_batch_norm as loops
from mmlk.ops.states import BatchNormState

_aten = torch.ops.aten


def _can_compile(*tensors: Tensor) -> bool:
    return jit.refusal() is None and loops.can_run(*tensors)


def forward(
    x: Tensor, norm: BatchNormState, *, gelu: bool = False, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output of ``norm``, mean and reciprocal standard deviation of the batch.

    Args:
        x: (N, C, H, W), channels-last.
        norm: Its running statistics are updated.
        gelu: Apply GELU to the output.
        residual: (N, C, H, W) to add to the output.
    """
    parameters, momentum = norm.tensors, norm.record()
    maps = (x,) if residual is None else (x, residual)
    if _can_compile(*maps, *parameters):
        return loops.forward(x, *parameters, momentum, norm.eps, gelu=gelu, residual=residual)
    # torch's channels-last code reads scales and shifts as if they were contiguous.
    affine, running = [each.contiguous() for each in parameters[:2]], parameters[2:]
    y, mean, rstd = torch.native_batch_norm(x, *affine, *running, True, momentum, norm.eps)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else y.add_(residual), mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    mask: Sequence[bool],
    *,
    gelu_bias: Tensor | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of `forward` with respect to map, weight and bias, those that ``mask`` asks for.

    Args:
        grad: (N, C, H, W), channels-last.
        x: Input of `forward`.
        gelu_bias: Bias of the norm if GELU was applied to its output.
        overwrite: Whether ``grad`` may be overwritten.
    """
    others = () if gelu_bias is None else (gelu_bias,)
    if _can_compile(grad, x, weight, mean, rstd, *others):
        results = loops.backward(
            grad, x, weight, mean, rstd, gelu_bias=gelu_bias, out=grad if overwrite else None
        )
        return tuple(each if wanted else None for each, wanted in zip(results, mask))
    if gelu_bias is not None:
        scale = rstd * weight
        shift = torch.addcmul(gelu_bias, scale, mean, value=-1)
        normed = torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        grad = _aten.gelu_backward(grad, normed)
    return _aten.native_batch_norm_backward(
        grad, x, weight.contiguous(), None, None, mean, rstd, True, eps, list(mask)
    )
