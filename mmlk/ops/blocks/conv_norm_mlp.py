"""Channel mixer whose two 1x1 convolutions carry a batch norm each, as one autograd node in training.

As separate layers the mixer is some twenty autograd nodes, views included, around two matrix products.
Written as one it keeps fewer intermediate maps for its gradient: the second norm's output is computed
again, and where loops can be compiled GELU and the residual are applied with the norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, library
from mmlk.ops.jit.address import are_dense, can_address
from mmlk.ops.maps import as_map, rows
from mmlk.ops.norm import batch_norm
from mmlk.ops.reference import conv_norm_mlp_reference
from mmlk.ops.states import BatchNormState


def conv_norm_mlp(
    x: Tensor,
    mixed: Tensor,
    norm: BatchNormState | None,
    weight1: Tensor,
    norm1: BatchNormState,
    weight2: Tensor,
    norm2: BatchNormState,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x + norm2(conv2(gelu(norm1(conv1(norm(mixed))))))`` with statistics of the batch.

    `conv_norm_mlp_reference` is the definition.

    Args:
        x: (N, C, H, W), more than one pixel in all.
        mixed: (N, C, H, W).
        norm: Of C channels; None leaves it out.
        weight1: (H, C, 1, 1).
        norm1: Of H channels.
        weight2: (C, H, 1, 1).
        norm2: Of C channels.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W).

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, mixed, norm, weight1, norm1, weight2, norm2)
    return dispatch.run('conv_norm_mlp', *args, backend=backend)


def _arguments(
    x: Tensor,
    mixed: Tensor,
    norm: BatchNormState | None,
    weight1: Tensor,
    norm1: BatchNormState,
    weight2: Tensor,
    norm2: BatchNormState,
) -> tuple:
    return x, mixed, norm, weight1, norm1, weight2, norm2


def _refusal(x, mixed, norm, weight1, norm1, weight2, norm2) -> str | None:
    if not torch.is_grad_enabled():
        return 'gradients are not asked for'
    reason = dispatch.refusal_to_fuse(x, mixed)
    if reason is not None:
        return reason
    if x.shape[0] * x.shape[2] * x.shape[3] < 2:
        return 'there is only one value per channel'
    if weight1.shape[1] != mixed.shape[1] or weight2.shape[1] != weight1.shape[0]:
        return 'a convolution has groups'
    norms = [each for each in (norm, norm1, norm2) if each is not None]
    tensors = [each for state in norms for each in state.tensors]
    if not can_address(weight1, weight2) or not are_dense(*tensors):
        return 'a parameter is not plain float32 on the CPU, or a strided view'
    return None


def _run(x, mixed, norm, weight1, norm1, weight2, norm2) -> Tensor:
    norms = norm, norm1, norm2
    affine = [each for state in norms for each in ((None, None) if state is None else state[:2])]
    return _apply(x, mixed, weight1, weight2, *affine, norms)


# Position of the norms' weights and biases among the arguments of the node.
_AFFINE = 4


def _forward(ctx, x, mixed, weight1, weight2, *rest) -> Tensor:
    *affine, norms = rest
    saved = []
    start = mixed
    if norms[0] is not None:
        start, *statistics = batch_norm.forward(mixed, norms[0])
        saved += [mixed, *statistics]
    hidden = as_map(torch.mm(rows(start), weight1.flatten(1).t()), x)
    activated, *statistics = batch_norm.forward(hidden, norms[1], gelu=True)
    saved += [rows(start), hidden, *statistics, rows(activated)]
    out = as_map(torch.mm(rows(activated), weight2.flatten(1).t()), x)
    y, *statistics = batch_norm.forward(out, norms[2], residual=x)
    ctx.save_for_backward(weight1, weight2, *affine, *saved, out, *statistics)
    ctx.epsilons = [0.0 if norm is None else norm.eps for norm in norms]
    return y


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight1, weight2, *rest = ctx.saved_tensors
    scales, bias1 = rest[0:6:2], rest[3]
    *kept, start, hidden, mean1, rstd1, activated, out, mean2, rstd2 = rest[6:]
    wants = ctx.needs_input_grad
    affine = [None] * 6

    def through_norm(index: int, flow: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, **options):
        first = _AFFINE + 2 * index
        grad_x, affine[2 * index], affine[2 * index + 1] = batch_norm.backward(
            flow,
            x,
            scales[index],
            mean,
            rstd,
            ctx.epsilons[index],
            [True, wants[first], wants[first + 1]],
            **options,
        )
        return grad_x

    grad = grad.contiguous(memory_format=torch.channels_last)
    flow = rows(through_norm(2, grad, out, mean2, rstd2))
    grad2 = torch.mm(flow.t(), activated).view(weight2.shape) if wants[3] else None
    flow = as_map(torch.mm(flow, weight2.flatten(1)), grad)
    flow = rows(through_norm(1, flow, hidden, mean1, rstd1, gelu_bias=bias1, overwrite=True))
    grad1 = torch.mm(flow.t(), start).view(weight1.shape) if wants[2] else None
    grad_mixed = None
    if any(wants[index] for index in (1, _AFFINE, _AFFINE + 1)):
        grad_mixed = as_map(torch.mm(flow, weight1.flatten(1)), grad)
        if scales[0] is not None:
            grad_mixed = through_norm(0, grad_mixed, *kept, overwrite=True)
    return grad, grad_mixed, grad1, grad2, *affine


_apply = library.node('conv_norm_mlp', _forward, _backward)
dispatch.declare('conv_norm_mlp', _arguments, conv_norm_mlp_reference)
dispatch.register('conv_norm_mlp', dispatch.Backend('cpu', _run, _refusal))
