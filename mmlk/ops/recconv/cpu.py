"""CPU backend of the recursive convolution.

All levels are kept channels-last, where depthwise kernels and interpolation need no reordering; other
inputs are converted once on entry and once on exit. Where loops can be compiled (`mmlk.ops.jit`) the
recursion is one call each way and saves nothing. Elsewhere it is a chain of torch's operators that hands
its intermediate maps to the backward pass, which runs the recursion in the other direction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import dispatch, library
from mmlk.ops.depthwise import torch_routes as routes
from mmlk.ops.maps import layout
from mmlk.ops.recconv import loops, schema
from mmlk.ops.recconv.node import node
from mmlk.ops.recconv.schema import can_compile, working_dtype

COLUMNS_FROM = 40_000
"""Elements of a map from which `weight_gradient_columns` saves more than its extra calls of torch
cost, a few microseconds each. To measure it again, time both ways on maps around this size."""

TAPS_TO = 40_000
"""Elements of a gradient smaller than its kernel up to which `weight_gradient_taps` is taken:
its calls grow with the taps, and so do the copies of the other way with the elements."""


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of one depthwise convolution with respect to map and kernel.

    A call costs as much as the arithmetic on a small map, so there both come from one call.
    """
    if stride == (1, 1) and wants_weight and x.numel() >= COLUMNS_FROM:
        grad_x = routes.input_gradient_native(grad, x, weight) if wants_x else None
        return grad_x, weight_gradient_columns(grad, x, weight)
    if not (wants_x or wants_weight):
        return None, None
    small = grad.shape[2] < weight.shape[2] or grad.shape[3] < weight.shape[3]
    if wants_weight and small and grad.numel() <= TAPS_TO:
        grad_x = routes.input_gradient_native(grad, x, weight, stride) if wants_x else None
        return grad_x, weight_gradient_taps(grad, x, weight, stride)
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return routes.convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        padding,
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        (wants_x, wants_weight, False),
    )[:2]


def weight_gradient_columns(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Three kernel columns at a time, at stride 1.

    oneDNN compiles the depthwise weight gradient for kernel widths up to 3 only; wider kernels fall
    back to a slow loop. The map is padded sideways by hand, so that each strip of columns is a
    convolution of width 3 without padding.
    """
    kh, kw = weight.shape[2:]
    if x.shape[3] <= kw // 2:  # some columns lie outside the map at every position
        return routes.weight_gradient_native(grad, x, weight)
    strips, first = [], 0
    while first < kw:
        wide = min(3, kw - first)
        shifted = F.pad(x, (kw // 2 - first, first + wide - 1 - kw // 2))
        strips.append(
            routes.convolution_backward(
                grad,
                shifted,
                weight[..., :wide],
                None,
                (1, 1),
                (kh // 2, 0),
                (1, 1),
                False,
                (0, 0),
                x.shape[1],
                (False, True, False),
            )[1]
        )
        first += wide
    return torch.cat(strips, dim=3)


def weight_gradient_taps(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int]
) -> Tensor:
    """Products of map and gradient written out for every tap, then summed over pixels.

    oneDNN has no fast code at all for maps that the kernel exceeds. On those the copies are small.
    """
    (c, _, kh, kw), (n, _, h, w) = weight.shape, grad.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, kw // 2, kw // 2, kh // 2, kh // 2))
    # Not always 1 for channels: where a map has one row, its stride may have misled the padding.
    image, row, column, channel = padded.stride()
    shifted = padded.as_strided(
        (kh, kw, n, h, w, c), (row, column, image, row * stride[0], column * stride[1], channel)
    )
    products = torch.mul(shifted, grad.permute(0, 2, 3, 1), out=x.new_empty(shifted.shape))
    return products.view(kh, kw, n * h * w, c).sum(2).permute(2, 0, 1).unsqueeze(1).contiguous()


def up(x: Tensor, size: torch.Size, mode: str) -> Tensor:
    """Interpolation to ``size`` (H, W) by the true ratio of the sizes."""
    if mode == 'bilinear':
        return torch.ops.aten.upsample_bilinear2d(x, size, False, None, None)
    return torch.ops.aten.upsample_nearest2d(x, size, None, None)


def up_gradient(grad: Tensor, x: Tensor, mode: str) -> Tensor:
    """Gradient of `up` with respect to its input, whose shape is that of ``x``."""
    sizes = grad.shape[2:], x.shape
    if mode == 'bilinear':
        return torch.ops.aten.upsample_bilinear2d_backward(grad, *sizes, False, None, None)
    return torch.ops.aten.upsample_nearest2d_backward(grad, *sizes, None, None)


def _enter(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous()  # channels-last strides would leak to the result


def compute(
    x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str
) -> tuple[Tensor, list[Tensor]]:
    dtype = working_dtype(x)
    down, kernels = _kernel(down_weight, dtype), [_kernel(weight, dtype) for weight in weights]
    if can_compile(x, down, kernels):
        y = loops.forward(_enter(x, dtype), down, kernels, mode)
        return y.to(x.dtype, memory_format=layout(x)), []
    maps = [_enter(x, dtype)]
    for _ in weights[1:]:
        maps.append(routes.forward_native(maps[-1], down, None, (2, 2)))
    merged, sums = maps[-1], []
    for kernel, finer in zip(kernels, maps[-2::-1]):
        merged = up(routes.forward_native(merged, kernel, None), finer.shape[2:], mode).add_(finer)
        sums.append(merged)
    y = routes.forward_native(merged, kernels[-1], None)
    return y.to(x.dtype, memory_format=layout(x)), [*maps[1:], *sums]


def compute_backward(
    grad: Tensor,
    x: Tensor,
    down_weight: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    mode: str,
    mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dtype, levels = working_dtype(x), len(weights) - 1
    down, kernels = _kernel(down_weight, dtype), [_kernel(weight, dtype) for weight in weights]
    if can_compile(x, down, kernels):
        grad_x, grad_kernels = loops.backward(
            _enter(grad, dtype), _enter(x, dtype), down, kernels, mode, mask
        )
        return _compiled_gradients(grad_x, grad_kernels, x, [down_weight, *weights], mask)
    maps, sums = [_enter(x, dtype), *saved[:levels]], saved[levels:]
    merged = [maps[-1], *sums]
    grad_weights = [weight.new_empty(0) for weight in weights]
    grad_maps = []  # from the full map down to the coarsest
    flow = _enter(grad, dtype)
    for index in range(levels, -1, -1):
        flow, grad_weight = gradients(flow, merged[index], kernels[index], (1, 1), True, mask[2])
        if mask[2]:
            grad_weights[index] = grad_weight.to(weights[index].dtype)
        grad_maps.append(flow)
        if index:
            flow = up_gradient(flow, merged[index - 1], mode)
    grad_down = torch.zeros_like(down) if mask[1] else down.new_empty(0)
    for finer in range(levels - 1, -1, -1):
        wants_x = mask[0] or finer > 0
        grad_map, term = gradients(
            grad_maps[finer + 1], maps[finer], down, (2, 2), wants_x, mask[1]
        )
        if mask[1]:
            grad_down += term
        if wants_x:
            grad_maps[finer] += grad_map
    grad_x = grad_maps[0].to(x.dtype, memory_format=layout(x)) if mask[0] else x.new_empty(0)
    return grad_x, grad_down.to(down_weight.dtype), grad_weights


def _compiled_gradients(
    grad_x: Tensor | None,
    grad_kernels: Tensor | None,
    x: Tensor,
    kernels: list[Tensor],
    mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Results of the compiled backward pass in the dtypes of ``x`` and ``kernels``."""
    down, *others = (
        [x.new_empty(0)] * len(kernels)
        if grad_kernels is None
        else [each.to(kernel.dtype) for each, kernel in zip(grad_kernels.unbind(), kernels)]
    )
    return (
        grad_x.to(x.dtype, memory_format=layout(x)) if mask[0] else x.new_empty(0),
        down if mask[1] else x.new_empty(0),
        others if mask[2] else [x.new_empty(0)] * len(others),
    )


_apply = node(compute, compute_backward)


def _run(x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    if dispatch.needs_dispatcher(x):
        return schema.recconv2d(x, down_weight, weights, mode)[0]
    if torch.is_grad_enabled():
        return _apply(x, down_weight, *weights, mode)
    return compute(x, down_weight, weights, mode)[0]


def _refusal(x: Tensor, down_weight: Tensor, weights: list[Tensor], _mode: str) -> str | None:
    return dispatch.refusal_for_device(x, 'cpu', down_weight, *weights)


library.implement('recconv2d', 'CPU', compute)
library.implement('recconv2d_backward', 'CPU', compute_backward)
dispatch.register('recconv2d', dispatch.Backend('cpu', _run, _refusal))
