"""Matrix products of a linear layer on a CPU, each in the order that is fastest for its shape.

torch sends ``F.linear`` and its gradients to MKL, which loses up to half of its rate where a side of
a matrix is no multiple of the vector width (the widths of SLaK are 124, 249, 499 and 998) and where
the rows are few. The compiled products (``loops.py``) do not, and take bias, GELU or its derivative,
layer scale and residual along; `docs/development/cpu.md` has the rates. Where they cannot be used,
oneDNN, which torch carries as well, multiplies such shapes faster than MKL, operands transposed or
not. Where neither can be used the functions here are torch's products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import compat, jit
from mmlk.ops.dense.loops import PLAIN_ROWS
from mmlk.ops.dense.loops import linear as compiled_linear
from mmlk.ops.dense.loops_panels import Panels, Plain, pack, plain
from mmlk.ops.dense.loops_weight_gradient import weight_gradient as compiled_weight_gradient
from mmlk.ops.jit import recording
from mmlk.ops.jit.address import can_address

# The three below divide shapes between the compiled loops, oneDNN and MKL. To measure them again, time
# each way on the widths of the published networks with rows on either side of the number.
MANY_ROWS = 32
"""Rows from which the compiled product is faster than oneDNN's."""

MANY_PRODUCTS = 1_000_000
"""Multiplications from which a compiled weight gradient is faster: below, its two launches and the
copies to panels take longer than MKL's whole product."""

FEW_ROWS = 512
"""Rows up to which MKL sums a weight gradient slowly."""


def can_use_onednn(x: Tensor) -> bool:
    """Whether oneDNN's product, which Inductor uses too, exists here and takes ``x``.

    Never under FLOP counters or other dispatch modes: they know the plain product only.
    """
    return can_address(x) and x.numel() > 0 and not recording.is_watched() and compat.has_onednn()


def can_compile(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the compiled product with ``x`` is possible, and worth packing the weight for."""
    return x.shape[0] >= MANY_ROWS and _can_read(x, *others)


def _can_read(*operands: Tensor | None) -> bool:
    """Whether compiled code may read the operands: their memory is all there is to know of them."""
    return (
        jit.refusal() is None
        and can_address(*operands)
        and all(each is None or each.dim() > 1 or each.is_contiguous() for each in operands)
        and not recording.is_watched()
        and compat.top_transform() is None
    )


def _in_order(x: Tensor, weight: Tensor, factors: Tensor | None = None) -> Panels | Plain:
    """``weight`` for one compiled product: packed first where many rows need it."""
    return (pack if x.shape[0] > PLAIN_ROWS else plain)(weight, factors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """``x W^T + b``, or the exact GELU of it, without gradients: (M, K) and (N, K) to (M, N)."""
    if can_compile(x, weight, bias):
        return compiled_linear(as_matrix(x), _in_order(x, weight), bias, gelu=gelu)
    if can_use_onednn(x):
        return compat.onednn_linear(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """``x W^T + b`` and the exact GELU of it."""
    if can_compile(x, weight, bias):
        wide = x.new_empty(x.shape[0], weight.shape[0])
        return wide, compiled_linear(
            as_matrix(x), _in_order(x, weight), bias, gelu=True, before=wide
        )
    wide = linear(x, weight, bias)
    return wide, F.gelu(wide)


def scaled_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``scale * (x W^T + b)`` without gradients, and the value before a scale.

    Args:
        x: (M, K).
        weight: (N, K).
        bias: (N,).
        scale: (N,).
    """
    if can_compile(x, weight, bias, scale):
        y = None if scale is None else x.new_empty(x.shape[0], weight.shape[0])
        panels = _in_order(x, weight)
        return compiled_linear(as_matrix(x), panels, bias, factors=scale, before=y), y
    y = linear(x, weight, bias)
    return (y, None) if scale is None else (y * scale, y)


def as_matrix(x: Tensor) -> Tensor:
    """All axes but the last as one, each row contiguous."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def input_gradient(
    grad: Tensor, weight: Tensor, before: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``(scale * g) W``: (M, N) and (N, K) to (M, K).

    Args:
        grad: (M, N).
        weight: (N, K).
        before: (M, K), contiguous; the result is multiplied with the derivative of GELU there.
        scale: (N,).
    """
    if can_compile(grad, weight, before, scale):
        return compiled_linear(
            as_matrix(grad),
            _in_order(grad, weight.t(), scale),
            before=before,
            slope=before is not None,
        )
    y = _plain_input_gradient(grad if scale is None else grad * scale, weight)
    if before is None:
        return y
    return torch.ops.aten.gelu_backward.grad_input(y, before, grad_input=y)


def _plain_input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    if can_use_onednn(grad):
        return compat.onednn_linear(grad, weight.t(), None)
    return torch.mm(grad, weight)


def weight_gradient(
    grad: Tensor, x: Tensor, bias: bool, scale: Tensor | None = None, y: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of weight, bias and scale of ``y * scale``, where ``y = x W^T + b``.

    Args:
        grad: (M, N).
        x: (M, K).
        bias: Whether the bias's is wanted, otherwise None.
        scale: (N,).
        y: (M, N), contiguous as ``grad``; without it the scale's is None.

    Returns:
        (N, K), (N,) and (N,).
    """
    if grad.numel() * x.shape[1] >= MANY_PRODUCTS and _can_read(grad, x, scale, y):
        return compiled_weight_gradient(
            as_matrix(grad), as_matrix(x), bias=bias, factors=scale, y=y
        )
    by_scale = None if y is None else (grad * y).sum(0)
    if scale is not None:
        grad = grad * scale
    return _plain_weight_gradient(grad, x), grad.sum(0) if bias else None, by_scale


def _plain_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    if grad.shape[0] <= FEW_ROWS and can_use_onednn(grad):
        return compat.onednn_linear(grad.t().contiguous(), x.t(), None)
    # MKL is faster with the wider matrix on the right.
    if grad.shape[1] > x.shape[1]:
        return torch.mm(x.t(), grad).t().contiguous()
    return torch.mm(grad.t(), x)
