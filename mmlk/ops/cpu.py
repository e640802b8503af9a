"""CPU backend: every pass of a depthwise convolution on the route that is fastest for its shape."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import cpu_routes as routes
from mmlk.ops import dispatch, operators
from mmlk.ops.operators import layout


class Plan(NamedTuple):
    """Names of the routes of the three passes."""

    forward: str
    input_gradient: str
    weight_gradient: str


def plan(shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int],
         channels_last: bool) -> Plan:
    """The policy: routes by shape alone, so that a shape always takes the same arithmetic."""
    kh, kw = kernel
    if tuple(stride) != (1, 1):
        return Plan('native', 'native', 'native')
    if min(kh, kw) >= 25:
        return Plan('fourier', 'fourier', 'fourier')
    forward = 'native' if kw <= 7 else 'as_gradient'
    weight_gradient = 'native' if kw <= 3 and kh <= 31 else 'grouped'
    return Plan(forward, 'native', weight_gradient)


FORWARD = {
    'native': routes.forward_native,
    'as_gradient': routes.forward_as_gradient,
    'fourier': routes.forward_fourier,
}
INPUT_GRADIENT = {
    'native': routes.input_gradient_native,
    'fourier': routes.input_gradient_fourier,
}
WEIGHT_GRADIENT = {
    'native': routes.weight_gradient_native,
    'grouped': routes.weight_gradient_grouped,
    'fourier': routes.weight_gradient_fourier,
}


def _plain(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype`` and in plain strides: channels-last ones would leak to the result."""
    return weight.to(dtype).reshape(-1).view(weight.shape)


def _clip(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Drop taps that lie outside the map at every output position."""
    kh, kw = weight.shape[2:]
    cut_h, cut_w = max(0, kh // 2 - size[0] + 1), max(0, kw // 2 - size[1] + 1)
    return weight[:, :, cut_h:kh - cut_h, cut_w:kw - cut_w]


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    dtype, out_layout = _working_dtype(x), layout(x)
    kernel = _plain(_clip(weight, x.shape[2:]), dtype)
    route = plan(x.shape, kernel.shape[2:], tuple(stride), False).forward
    bias = None if bias is None else bias.to(dtype)
    xs = x.to(dtype).contiguous()
    if route == 'native':
        y = routes.forward_native(xs, kernel, bias, stride)
    else:
        y = FORWARD[route](xs, kernel, bias)
    return y.to(x.dtype, memory_format=out_layout)


def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int],
                        mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    dtype, out_layout = _working_dtype(x), layout(x)
    clipped = _clip(weight, x.shape[2:])
    kernel = _plain(clipped, dtype)
    chosen = plan(x.shape, kernel.shape[2:], tuple(stride), False)
    xs, grads = x.to(dtype).contiguous(), grad.to(dtype).contiguous()
    grad_x, grad_weight, grad_bias = x.new_empty(0), weight.new_empty(0), weight.new_empty(0)
    if mask[0]:
        extra = (stride,) if chosen.input_gradient == 'native' else ()
        grad_x = INPUT_GRADIENT[chosen.input_gradient](grads, xs, kernel, *extra)
        grad_x = grad_x.to(x.dtype, memory_format=out_layout)
    if mask[1]:
        extra = (stride,) if chosen.weight_gradient == 'native' else ()
        grad_weight = WEIGHT_GRADIENT[chosen.weight_gradient](grads, xs, kernel, *extra)
        cut_h = (weight.shape[2] - kernel.shape[2]) // 2
        cut_w = (weight.shape[3] - kernel.shape[3]) // 2
        grad_weight = F.pad(grad_weight, (cut_w, cut_w, cut_h, cut_h)).to(weight.dtype)
    if mask[2]:
        grad_bias = grads.sum((0, 2, 3)).to(weight.dtype)
    return grad_x, grad_weight, grad_bias


def _inception(x: Tensor, weight_hw: Tensor, bias_hw: Tensor | None, weight_w: Tensor,
               bias_w: Tensor | None, weight_h: Tensor, bias_h: Tensor | None) -> Tensor:
    y = torch.empty_like(x, memory_format=layout(x))
    g = weight_hw.shape[0]
    start = x.shape[1] - 3 * g
    y[:, :start] = x[:, :start]
    for weight, bias in ((weight_hw, bias_hw), (weight_w, bias_w), (weight_h, bias_h)):
        y[:, start:start + g] = _depthwise(x[:, start:start + g], weight, bias, [1, 1])
        start += g
    return y


def _inception_backward(grad: Tensor, x: Tensor, weight_hw: Tensor, weight_w: Tensor,
                        weight_h: Tensor, mask: list[bool]) -> list[Tensor]:
    g = weight_hw.shape[0]
    start = x.shape[1] - 3 * g
    results = [x.new_empty(0)]
    if mask[0]:
        results[0] = torch.empty_like(x, memory_format=layout(x))
        results[0][:, :start] = grad[:, :start]
    for index, weight in enumerate((weight_hw, weight_w, weight_h)):
        wanted = [mask[0], mask[2 * index + 1], mask[2 * index + 2]]
        branch = slice(start, start + g)
        grad_x, grad_weight, grad_bias = _depthwise_backward(
            grad[:, branch], x[:, branch], weight, [1, 1], wanted)
        if mask[0]:
            results[0][:, branch] = grad_x
        results += [grad_weight, grad_bias]
        start += g
    return results


def _refuses(x: Tensor, *_args) -> str | None:
    return dispatch.refuses_device(x, 'cpu')


def _describe(x: Tensor, weight: Tensor, bias=None, stride=(1, 1)) -> str:
    kernel = _clip(weight, x.shape[2:]).shape[2:]
    stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
    chosen = plan(x.shape, kernel, stride, operators.channels_last(x))
    return ', '.join(f'{name.replace("_", " ")}: {route}'
                     for name, route in chosen._asdict().items())


dispatch.implement('depthwise_conv2d', 'CPU', _depthwise)
dispatch.implement('depthwise_conv2d_backward', 'CPU', _depthwise_backward)
dispatch.implement('inception_dwconv2d', 'CPU', _inception)
dispatch.implement('inception_dwconv2d_backward', 'CPU', _inception_backward)
dispatch.register('depthwise_conv2d', dispatch.Backend(
    'cpu', operators.depthwise_conv2d, _refuses, _describe))
dispatch.register('inception_dwconv2d', dispatch.Backend(
    'cpu', operators.inception_dwconv2d, _refuses))
