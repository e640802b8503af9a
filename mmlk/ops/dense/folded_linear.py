"""Linear layer of a folded network: the weight is final, so a copy in reading order is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import compat, dispatch, jit
from mmlk.ops.dense.loops import linear
from mmlk.ops.dense.loops_panels import pack
from mmlk.ops.dense.products import as_matrix
from mmlk.ops.jit.address import can_address
from mmlk.ops.packed_weights import PackedWeights
from mmlk.ops.reference import folded_linear_reference


def folded_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    gelu: bool = False,
    copies: PackedWeights | None = None,
    backend: str | None = None,
) -> Tensor:
    """``[residual +] act(x W^T + b)`` on the last axis, ``act`` the exact GELU or nothing.

    `folded_linear_reference` is the definition.

    Args:
        x: (..., K).
        weight: (N, K), or (N, K, 1, 1).
        bias: (N,).
        residual: (..., N).
        gelu: Apply GELU.
        copies: Keeps the weight's copy; without it every call makes one.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (..., N).

    Raises:
        ValueError: if shapes do not fit.

    Note:
        Without gradients, and on a CPU, in float32. Elsewhere it is the reference.
    """
    args = _arguments(x, weight, bias, residual, gelu=gelu, copies=copies)
    return dispatch.run('folded_linear', *args, backend=backend)


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    gelu: bool = False,
    copies: PackedWeights | None = None,
) -> tuple:
    if not torch.jit.is_tracing() and x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f'folded_linear: x {tuple(x.shape)} and weight {tuple(weight.shape)} are not '
            '(..., K) and (N, K)'
        )
    return x, weight, bias, residual, gelu, copies


def _reference(x, weight, bias, residual, gelu, _copies) -> Tensor:
    return folded_linear_reference(x, weight, bias, residual, gelu=gelu)


def _refusal(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    _gelu: bool,
    _copies: PackedWeights | None,
) -> str | None:
    if torch.is_grad_enabled():
        return 'gradients may be asked for'
    reason = dispatch.refusal_for_device(x, 'cpu')
    if reason is not None:
        return reason
    if dispatch.needs_dispatcher(x):
        return 'a compiler, autocast, a dispatch mode or a subclass has to see the layer'
    if not can_address(x, weight, bias, residual) or x.numel() == 0:
        reason = dispatch.refusal_for_device(x, 'cpu', weight, bias, residual)
        return reason or 'only plain float32 tensors that are not empty are multiplied with a copy'
    if weight.is_inference():
        return 'a weight made in inference mode has no version by which a change could be told'
    if jit.refusal() is not None and not compat.has_onednn():
        return f'{jit.refusal()}, and this torch has no oneDNN'
    return None


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    copies: PackedWeights | None,
) -> Tensor:
    copies = PackedWeights() if copies is None else copies
    shape = *x.shape[:-1], weight.shape[0]
    rows = as_matrix(x)
    # A residual in another order of memory would have to be copied first.
    later = residual if residual is not None and residual.stride(-1) != 1 else None
    added = None if residual is None or later is not None else as_matrix(residual)
    compute = _by_loops if jit.refusal() is None else _by_onednn
    y = compute(rows, weight, bias, added, gelu, copies).view(shape)
    return y if later is None else later + y


def _by_loops(x, weight, bias, residual, gelu, copies) -> Tensor:
    panels = copies.get('panels', weight, lambda plain: pack(plain.flatten(1)))
    bias = None if bias is None else bias.contiguous()
    return linear(x, panels, bias, gelu=gelu, residual=residual)


def _by_onednn(x, weight, bias, residual, gelu, copies) -> Tensor:
    matrix = copies.get('onednn', weight, lambda plain: compat.onednn_pack(plain, x.shape[0]))
    if gelu and residual is not None:
        return compat.onednn_linear(x, matrix, bias, gelu=True).add_(residual)
    return compat.onednn_linear(x, matrix, bias, gelu, residual)


dispatch.declare('folded_linear', _arguments, _reference)
dispatch.register('folded_linear', dispatch.Backend('cpu', _run, _refusal))
