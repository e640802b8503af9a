"""Linear attention over the pixels of a map, from its projection on: one operator on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.blocks import loops_attention
from mmlk.ops.dense.loops import linear
from mmlk.ops.dense.loops_panels import pack
from mmlk.ops.jit.address import are_dense, can_address
from mmlk.ops.jit.language import LANES
from mmlk.ops.maps import as_map, rows
from mmlk.ops.norm import batch_norm
from mmlk.ops.packed_weights import PackedWeights
from mmlk.ops.reference import linear_attention2d_reference
from mmlk.ops.states import BatchNormState


def linear_attention2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    heads: int,
    epsilon: float = 1e-6,
    copies: PackedWeights | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalised attention without softmax, query and key by a 1x1 convolution, the value ``x``.

    `linear_attention2d_reference` is the definition.

    Args:
        x: (N, C, H, W).
        weight: (2 Q, C / groups, 1, 1), queries before keys.
        bias: (2 Q,).
        norm: Batch norm of query and key, in training.
        heads: Divides C and Q.
        epsilon: Added to the mean of the weights.
        copies: Keeps a reordered copy of a final weight.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W).

    Note:
        Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, weight, bias, norm, heads=heads, epsilon=epsilon, copies=copies)
    return dispatch.run('linear_attention2d', *args, backend=backend)


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    heads: int,
    epsilon: float = 1e-6,
    copies: PackedWeights | None = None,
) -> tuple:
    return x, weight, bias, norm, heads, epsilon, copies


def _reference(x, weight, bias, norm, heads, epsilon, _copies) -> Tensor:
    return linear_attention2d_reference(x, weight, bias, norm, heads=heads, epsilon=epsilon)


def _refusal(x, weight, bias, norm, _heads, _epsilon, _copies) -> str | None:
    reason = dispatch.refusal_to_fuse(x)
    if reason is not None:
        return reason
    if not can_address(weight) or not are_dense(bias, *(() if norm is None else norm.tensors)):
        return 'a parameter is not plain float32 on the CPU, or a strided view'
    if norm is None:
        return 'gradients may be asked for' if torch.is_grad_enabled() else None
    if not torch.is_grad_enabled():
        return 'gradients are not asked for'
    if bias is not None:
        return 'the convolution has a bias in front of the norm'
    if x.shape[0] * x.shape[2] * x.shape[3] < 2:
        return 'there is only one value per channel'
    return None


def _run(x, weight, bias, norm, heads, epsilon, copies) -> Tensor:
    if norm is not None:
        return _apply(x, weight, norm.weight, norm.bias, norm, heads, epsilon)
    blocks = x.shape[1] // weight.shape[1]
    if (
        copies is not None
        and jit.refusal() is None
        and weight.shape[0] % (blocks * LANES) == 0
        and not weight.is_inference()
    ):
        panels = copies.get('panels', weight, lambda plain: pack(plain.flatten(1)))
        bias = None if bias is None else bias.contiguous()
        scores = as_map(linear(rows(x), panels, bias, blocks=blocks), x)
    else:
        scores = as_map(_project(rows(x), weight, bias), x)
    return _attend(x, scores, heads, epsilon)[0]


def _groups(pixels: Tensor, weight: Tensor):
    """Matching column blocks of pixels, rows of the weight, and columns of the product."""
    count = pixels.shape[1] // weight.shape[1]
    size = weight.shape[0] // count
    columns = [slice(i * size, (i + 1) * size) for i in range(count)]
    return list(zip(pixels.chunk(count, 1), weight.flatten(1).chunk(count), columns))


def _project(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Block-diagonal product, each block written to its place."""
    result = pixels.new_empty(pixels.shape[0], weight.shape[0])
    for part, matrix, columns in _groups(pixels, weight):
        if bias is None:
            torch.mm(part, matrix.t(), out=result[:, columns])
        else:
            torch.addmm(bias[columns], part, matrix.t(), out=result[:, columns])
    return result


def _attend(x: Tensor, scores: Tensor, heads: int, epsilon: float) -> tuple[Tensor, ...]:
    """Attention from raw queries and keys; the output first, then what `_attend_gradients` needs."""
    n, c, h, w = x.shape
    if (
        jit.refusal() is None
        and scores.shape[1] == 2 * c
        and loops_attention.can_run(c // heads, x, scores)
    ):
        # A slice of a wider map has gaps between its pixels, which the loops do not step over.
        pixels, scores = (rows(each).contiguous().view(n, h * w, -1) for each in (x, scores))
        out, summary = loops_attention.forward(pixels, scores, heads, epsilon)
        return as_map(out, x), scores, out, summary
    return _attend_by_products(x, scores, heads, epsilon)


def _attend_gradients(
    grad: Tensor, x: Tensor, saved: tuple[Tensor, ...], heads: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of scores and values, rows of pixels.

    Args:
        grad: (N, C, H, W), channels-last.
        x: As of `_attend`.
        saved: What `_attend` returned behind the output.
    """
    if len(saved) > 3:
        return _gradients_by_products(grad, x, *saved, heads)
    n, c, h, w = x.shape
    grad, pixels = (rows(each).contiguous().view(n, h * w, c) for each in (grad, x))
    gradients = loops_attention.backward(grad, pixels, *saved, heads, epsilon)
    return tuple(each.flatten(0, 1) for each in gradients)


def _attend_by_products(
    x: Tensor, scores: Tensor, heads: int, epsilon: float
) -> tuple[Tensor, ...]:
    """`_attend` by torch.

    A column of ones beside the values makes the sum of the weights come out of the same two products.
    Both are sums over the pixels, not means, so the epsilon counts once per pixel.
    """
    n, c, h, w = x.shape
    length, depth = h * w, c // heads
    width = scores.shape[1] // (2 * heads)
    positive = F.elu(rows(scores)).add_(1)
    query, key = (
        positive.view(n, length, 2, heads, width)
        .permute(2, 0, 3, 1, 4)
        .contiguous()
        .view(2, n * heads, length, width)
    )
    value = x.new_empty(n, heads, length, depth + 1)
    value[..., :depth] = x.permute(0, 2, 3, 1).reshape(n, length, heads, depth).transpose(1, 2)
    value[..., depth].fill_(1)
    value = value.view(n * heads, length, depth + 1)
    summary = torch.bmm(key.transpose(1, 2), value)
    mixed = torch.bmm(query, summary).view(n, heads, length, depth + 1).transpose(1, 2)
    total = mixed[..., depth:] + length * epsilon
    out = torch.div(mixed[..., :depth], total, out=x.new_empty(n, length, heads, depth))
    out = as_map(out, x)
    return out, out, positive, query, key, value, summary, total


def _gradients_by_products(
    grad: Tensor,
    x: Tensor,
    out: Tensor,
    positive: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    summary: Tensor,
    total: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """`_attend_gradients` by torch."""
    n, c, h, w = x.shape
    length, depth = h * w, c // heads
    shape = n, length, heads, depth
    grad = rows(grad)
    # Gradient of the products before the division, the column of their totals included.
    flow = grad.new_empty(n, heads, length, depth + 1)
    inverse = total.reciprocal()
    torch.mul(grad.view(shape), inverse, out=flow[..., :depth].transpose(1, 2))
    lost = (grad * rows(out)).view(shape).sum(-1, keepdim=True)
    torch.mul(lost, inverse, out=flow[..., depth:].transpose(1, 2)).neg_()
    flow = flow.view(n * heads, length, depth + 1)
    grad_summary = torch.bmm(query.transpose(1, 2), flow)
    grad_positive = grad.new_empty(n, length, 2, heads, query.shape[2])
    parts = (
        torch.bmm(flow, summary.transpose(1, 2)),
        torch.bmm(value, grad_summary.transpose(1, 2)),
    )
    for index, part in enumerate(parts):
        grad_positive[:, :, index] = part.view(n, heads, length, -1).transpose(1, 2)
    # The derivative of elu(a) + 1 is 1 above zero and the function itself below.
    grad_scores = grad_positive.view(positive.shape).mul_(positive.clamp_max(1))
    grad_value = torch.bmm(key, grad_summary).view(n, heads, length, -1)[..., :depth]
    return grad_scores, grad_value.transpose(1, 2).reshape(n * length, c)


def _forward(
    ctx,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    norm: BatchNormState,
    heads: int,
    epsilon: float,
) -> Tensor:
    projected = as_map(_project(rows(x), weight, None), x)
    scores, mean, rstd = batch_norm.forward(projected, norm)
    out, *saved = _attend(x, scores, heads, epsilon)
    ctx.save_for_backward(x, weight, scale, projected, mean, rstd, *saved)
    ctx.attention, ctx.eps = (heads, epsilon), norm.eps
    return out


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, scale, projected, mean, rstd, *saved = ctx.saved_tensors
    grad_scores, grad_x = _attend_gradients(
        grad.contiguous(memory_format=torch.channels_last), x, saved, *ctx.attention
    )
    wants = ctx.needs_input_grad
    grad_projected, grad_scale, grad_shift = batch_norm.backward(
        as_map(grad_scores, x), projected, scale, mean, rstd, ctx.eps, [True, wants[2], wants[3]]
    )
    flow, pixels = rows(grad_projected), rows(x)
    grad_weight = weight.new_empty(weight.shape)
    for (part, matrix, columns), target in zip(
        _groups(pixels, weight), grad_x.chunk(x.shape[1] // weight.shape[1], 1)
    ):
        torch.mm(flow[:, columns].t(), part, out=grad_weight.flatten(1)[columns])
        target.addmm_(flow[:, columns], matrix)
    return as_map(grad_x, x), grad_weight, grad_scale, grad_shift


_apply = library.node('linear_attention2d', _forward, _backward)
dispatch.declare('linear_attention2d', _arguments, _reference)
dispatch.register('linear_attention2d', dispatch.Backend('cpu', _run, _refusal))
