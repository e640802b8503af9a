"""CPU code of recursive attention: attention, and normed depthwise convolutions, as one node each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers.eager_cpu import (
    as_map,
    normalise,
    normalise_gradients,
    rows,
    unobserved,
    uses_own_batch,
)
from mmlk.ops import DepthwiseConv2d, PointwiseConv2d, dispatch, jit, products, recconv_cpu
from mmlk.ops.blocked import BlockedWeights, eager, usable
from mmlk.ops.jit import attention as jit_attention
from mmlk.ops.jit import depthwise
from mmlk.ops.jit.kernel import LANES
from mmlk.ops.jit.linear import linear
from mmlk.ops.jit.panels import pack


def attends_as_one(x: Tensor, qk: nn.Module) -> bool:
    """Whether `attention` computes what the layers would: without gradients, or in training.

    Args:
        x: (N, C, H, W).
        qk: The normed or folded 1x1 convolution of query and key.
    """
    if not eager(x) or x.numel() == 0:
        return False
    if type(qk) is PointwiseConv2d:
        return not torch.is_grad_enabled() and unobserved(qk) and qk.weight.dtype == torch.float32
    return (
        torch.is_grad_enabled()
        and type(qk.conv) is PointwiseConv2d
        and qk.conv.bias is None
        and qk.conv.weight.dtype == torch.float32
        and uses_own_batch(qk.norm)
        and x.shape[0] * x.shape[2] * x.shape[3] > 1
        and unobserved(qk, qk.conv, qk.norm)
    )


def attention(
    x: Tensor, qk: nn.Module, blocked: BlockedWeights, heads: int, epsilon: float
) -> Tensor:
    """Normalised linear attention of the map's pixels, (N, C, H, W) to the same shape.

    Args:
        blocked: Keeps a reordered copy of the folded weight.
    """
    if type(qk) is PointwiseConv2d:
        pixels, blocks = rows(x), x.shape[1] // qk.weight.shape[1]
        if (
            jit.unavailable() is None
            and qk.weight.shape[0] % (blocks * LANES) == 0
            and products.keeps_copies(qk.weight)
        ):
            panels = blocked.get('qk', qk.weight, lambda plain: pack(plain.flatten(1)))
            scores = as_map(linear(pixels, panels, qk.bias, blocks=blocks), x)
        else:
            scores = as_map(_project(pixels, qk.weight, qk.bias), x)
        return _attend(x, scores, heads, epsilon)[0]
    return _Attention.apply(
        x, qk.conv.weight, qk.norm.weight, qk.norm.bias, qk.norm, heads, epsilon
    )


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
        jit.unavailable() is None
        and scores.shape[1] == 2 * c
        and jit_attention.takes(c // heads, x, scores)
    ):
        pixels, scores = (rows(each).view(n, h * w, -1) for each in (x, scores))
        out, summary = jit_attention.forward(pixels, scores, heads, epsilon)
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
    grad, pixels = (rows(each).view(n, h * w, c) for each in (grad, x))
    gradients = jit_attention.backward(grad, pixels, *saved, heads, epsilon)
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
    value[..., depth] = 1
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


class _Attention(torch.autograd.Function):
    """`attention` in training mode, the norm of query and key included."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        norm: nn.Module,
        heads: int,
        epsilon: float,
    ) -> Tensor:
        projected = as_map(_project(rows(x), weight, None), x)
        scores, mean, deviation = normalise(projected, norm)
        out, *saved = _attend(x, scores, heads, epsilon)
        ctx.save_for_backward(x, weight, scale, projected, mean, deviation, *saved)
        ctx.attention, ctx.eps = (heads, epsilon), norm.eps
        return out

    @staticmethod
    @dispatch.first_derivative_only('RecAttn2d')
    def backward(ctx, grad: Tensor):
        x, weight, scale, projected, mean, deviation, *saved = ctx.saved_tensors
        grad_scores, grad_x = _attend_gradients(
            grad.contiguous(memory_format=torch.channels_last), x, saved, *ctx.attention
        )
        wants = ctx.needs_input_grad
        grad_projected, grad_scale, grad_shift = normalise_gradients(
            as_map(grad_scores, x),
            projected,
            scale,
            mean,
            deviation,
            ctx.eps,
            [True, wants[2], wants[3]],
        )
        flow, pixels = rows(grad_projected), rows(x)
        grad_weight = weight.new_empty(weight.shape)
        for (part, matrix, columns), target in zip(
            _groups(pixels, weight), grad_x.chunk(x.shape[1] // weight.shape[1], 1)
        ):
            torch.mm(flow[:, columns].t(), part, out=grad_weight.flatten(1)[columns])
            target.addmm_(flow[:, columns], matrix)
        return as_map(grad_x, x), grad_weight, grad_scale, grad_shift, None, None, None


def normed_depthwise(
    x: Tensor, layer: nn.Module, blocked: BlockedWeights, name: str, onto: Tensor | None = None
) -> Tensor:
    """``layer(x) [+ onto]`` of a normed or folded depthwise convolution, by its CPU code if it has one.

    Args:
        onto: Map of the result's shape, which may be overwritten.
    """
    if eager(x, *(() if onto is None else (onto,))) and x.numel() > 0 and x.shape[1] > 1:
        if type(layer) is DepthwiseConv2d:
            if _infers(layer):
                if _loops(x):
                    return depthwise.forward(
                        x,
                        layer.weight,
                        layer.bias,
                        layer.stride,
                        out=onto,
                        accumulate=onto is not None,
                    )
                y = recconv_cpu.convolve_blocked(
                    x, layer.weight, layer.bias, layer.stride[0], blocked, name
                )
                return y if onto is None else y.add_(onto)
        elif (
            torch.is_grad_enabled()
            and type(layer.conv) is DepthwiseConv2d
            and layer.conv.bias is None
            and uses_own_batch(layer.norm)
            and layer.conv.weight.dtype == torch.float32
            and x.shape[0]
            * -(-x.shape[2] // layer.conv.stride[0])
            * -(-x.shape[3] // layer.conv.stride[1])
            > 1
            and unobserved(layer, layer.conv, layer.norm)
        ):
            return _DepthwiseNorm.apply(
                x,
                layer.conv.weight,
                layer.norm.weight,
                layer.norm.bias,
                layer.norm,
                layer.conv.stride,
                onto,
            )
    return layer(x) if onto is None else layer(x) + onto


def normed_depthwise_of_sum(
    x: Tensor, coarse: Tensor, layer: nn.Module, blocked: BlockedWeights, name: str
) -> Tensor:
    """`normed_depthwise` of ``x + up(coarse)``, nearest."""
    if (
        x.shape[2:] == (2 * coarse.shape[2], 2 * coarse.shape[3])
        and x.shape[1] > 1
        and eager(x, coarse)
        and x.numel() > 0
        and type(layer) is DepthwiseConv2d
        and _infers(layer)
        and _loops(x)
    ):
        return depthwise.forward(x, layer.weight, layer.bias, layer.stride, coarse=coarse)
    return normed_depthwise(add_nearest(x, coarse), layer, blocked, name)


def _infers(layer: DepthwiseConv2d) -> bool:
    """Whether the convolution is to be computed without gradients, and nothing else happens."""
    return not torch.is_grad_enabled() and usable(layer.weight) and unobserved(layer)


def _loops(x: Tensor) -> bool:
    """Whether compiled loops convolve ``x``: they hold some rows of it on a thread's stack."""
    return jit.unavailable() is None and x.shape[3] <= 2048


def add_nearest(x: Tensor, coarse: Tensor) -> Tensor:
    """``x + up(coarse)``, nearest; without gradients the sum reads ``coarse`` as it is."""
    (n, c, h, w), size = x.shape, coarse.shape[2:]
    if torch.is_grad_enabled() or (h, w) != (2 * size[0], 2 * size[1]) or not eager(x, coarse):
        return x + F.interpolate(coarse, size=(h, w), mode='nearest')
    pixels = x.permute(0, 2, 3, 1).reshape(n, size[0], 2, size[1], 2, c)
    return as_map((pixels + coarse.permute(0, 2, 3, 1)[:, :, None, :, None]).view(-1, c), x)


class _DepthwiseNorm(torch.autograd.Function):
    """Depthwise convolution and batch norm in training mode, and a map added to them."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        norm: nn.Module,
        stride: tuple[int, int],
        onto: Tensor | None,
    ) -> Tensor:
        if _loops(x):
            convolved = depthwise.forward(x, weight, None, stride)
        else:
            padding = weight.shape[2] // 2, weight.shape[3] // 2
            convolved = torch.conv2d(x, weight.contiguous(), None, stride, padding, 1, x.shape[1])
        y, mean, deviation = normalise(convolved, norm, residual=onto)
        ctx.save_for_backward(x, weight, scale, convolved, mean, deviation)
        ctx.stride, ctx.eps = stride, norm.eps
        return y

    @staticmethod
    @dispatch.first_derivative_only('RecAttn2d')
    def backward(ctx, grad: Tensor):
        x, weight, scale, convolved, mean, deviation = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        flow, grad_scale, grad_shift = normalise_gradients(
            grad, convolved, scale, mean, deviation, ctx.eps, [True, wants[2], wants[3]]
        )
        if _loops(x):
            grad_x = (
                depthwise.input_gradient(flow, weight, tuple(x.shape), ctx.stride)
                if wants[0]
                else None
            )
            grad_weight = (
                depthwise.weight_gradient(flow, x, tuple(weight.shape[2:]), ctx.stride)[0]
                if wants[1]
                else None
            )
        else:
            grad_x, grad_weight = recconv_cpu.gradients(
                flow, x, weight.contiguous(), tuple(ctx.stride), wants[0], wants[1]
            )
        return (grad_x, grad_weight, grad_scale, grad_shift, None, None, grad if wants[6] else None)
