"""Depthwise convolution on CUDA: clips the kernel to the map and picks a route for every pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.operators import channels_last, layout
from mmlk.ops.triton import direct
from mmlk.ops.triton.runtime import Example, meta


class Problem(NamedTuple):
    """What a route may base its decision on: shapes and types, never a clock or the device's size.

    Args:
        shape: N, C, H, W of the map.
        kernel: Rows and columns of the kernel, clipped to the map.
        stride: Step in rows and columns.
        dtype: Of the map and its gradient.
        last: Whether the map is channels-last.
    """

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dtype: torch.dtype
    last: bool


class Route(NamedTuple):
    """One way to compute the passes of a depthwise convolution.

    Maps come in any strides that `channels_last` calls so, or contiguous; results have the layout
    of the map. Kernels are clipped and may be views in any strides and any floating type.

    Args:
        name: For explanations.
        forward, input_gradient, weight_gradient: Whether it takes this pass of a problem.
        run_forward: (x, weight, bias or None, stride) -> y.
        run_input_gradient: (grad, weight, shape of x, stride) -> gradient of x.
        run_weight_gradient: (grad, x, kernel size, stride, wants_bias) -> gradients of weight
            (C, 1, kh, kw) and bias (C,) or None, in float32.
    """

    name: str
    forward: Callable[[Problem], bool]
    input_gradient: Callable[[Problem], bool]
    weight_gradient: Callable[[Problem], bool]
    run_forward: Callable
    run_input_gradient: Callable | None = None
    run_weight_gradient: Callable | None = None


def _always(_problem: Problem) -> bool:
    return True


# In order of preference; the last one takes everything.
ROUTES = (
    Route('direct', _always, _always, _always, direct.forward),
)


def clip(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The taps of ``weight`` that a map of ``size`` can reach, as a view."""
    kh, kw = weight.shape[2:]
    cut_h, cut_w = max(0, kh // 2 - size[0] + 1), max(0, kw // 2 - size[1] + 1)
    return weight[:, :, cut_h:kh - cut_h, cut_w:kw - cut_w]


def dense(x: Tensor) -> Tensor:
    """``x`` as it is where it is contiguous or channels-last (slices of channels included)."""
    n, c, h, w = x.shape
    rows_of_planes = x.stride(3) == 1 and x.stride(2) == w and (c == 1 or x.stride(1) == h * w)
    return x if channels_last(x) or rows_of_planes else x.contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    """`mmlk::depthwise_conv2d` for CUDA tensors (or CPU tensors in the interpreter)."""
    x = dense(x)
    weight = clip(weight, x.shape[2:])
    problem = Problem(tuple(x.shape), tuple(weight.shape[2:]), tuple(stride), x.dtype,
                      layout(x) == torch.channels_last)
    route = next(each for each in ROUTES if each.forward(problem))
    return route.run_forward(x, weight, bias, tuple(stride))


EXAMPLES = (
    Example('forward-last-k7-bf16',
            lambda: forward(meta(64, 96, 56, 56, last=True), meta(96, 1, 7, 7, dtype=torch.float32),
                            meta(96, dtype=torch.float32), [1, 1]),
            kernel='forward_last', ffma=0.3),
)
