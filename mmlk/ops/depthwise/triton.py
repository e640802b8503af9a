"""Depthwise convolution on CUDA: clips the kernel to the map and picks a route for every pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops.depthwise import triton_direct as direct
from mmlk.ops.depthwise import triton_toeplitz as toeplitz
from mmlk.ops.maps import channels_last
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

    Maps come as `arranged` leaves them: channels-last (channels contiguous), or with contiguous
    columns; a gradient has the layout of the map. Results have the layout of the map. Kernels are
    clipped and may be views in any strides and any floating type.

    Args:
        name: For explanations.
        takes: Whether it computes a problem.
        forward: (x, weight, bias or None, stride) -> y.
        backward: (grad, x, weight, stride, mask) -> gradients of x, weight and bias, the last two in
            float32; None may stand where ``mask`` does not ask.
    """

    name: str
    takes: Callable[[Problem], bool]
    forward: Callable
    backward: Callable


# In order of preference; the last one takes everything.
ROUTES = (
    Route('toeplitz', toeplitz.takes, toeplitz.forward, toeplitz.backward),
    Route('direct', lambda _problem: True, direct.forward, direct.backward),
)


def _route(task: Problem) -> Route:
    return next(each for each in ROUTES if each.takes(task))


def clip(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The taps of ``weight`` that a map of ``size`` can reach, as a view."""
    kh, kw = weight.shape[2:]
    cut_h, cut_w = max(0, kh // 2 - size[0] + 1), max(0, kw // 2 - size[1] + 1)
    return weight[:, :, cut_h : kh - cut_h, cut_w : kw - cut_w]


def arranged(x: Tensor, last: bool) -> Tensor:
    """``x`` itself where channels (``last``) or columns are contiguous, slices included, or a copy."""
    reach = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:]))
    if reach < 2**31:
        if last and (x.stride(1) == 1 or x.shape[1] == 1):
            return x
        if not last and (x.stride(3) == 1 or x.shape[3] == 1):
            return x
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def problem(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Problem:
    return Problem(
        tuple(x.shape), tuple(weight.shape[2:]), tuple(stride), x.dtype, channels_last(x)
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """`mmlk::depthwise_conv2d` for CUDA tensors (or CPU tensors in the interpreter)."""
    weight = clip(weight, x.shape[2:])
    task = problem(x, weight, stride)
    return _route(task).forward(arranged(x, task.last), weight, bias, task.stride)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::depthwise_conv2d_backward`: gradients of x, weight and bias where ``mask`` asks."""
    kernel = clip(weight, x.shape[2:])
    task = problem(x, kernel, stride)
    x, grad = arranged(x, task.last), arranged(grad, task.last)
    found = _route(task).backward(grad, x, kernel, task.stride, mask)
    return (
        found[0] if mask[0] else x.new_empty(0),
        unclip(found[1], weight).to(weight.dtype) if mask[1] else weight.new_empty(0),
        found[2].to(weight.dtype) if mask[2] else weight.new_empty(0),
    )


def unclip(grad_weight: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``weight`` from that of its clipped taps."""
    cut_h, cut_w = ((a - b) // 2 for a, b in zip(weight.shape[2:], grad_weight.shape[2:]))
    return F.pad(grad_weight, (cut_w, cut_w, cut_h, cut_h)) if cut_h or cut_w else grad_weight


def _example(
    name: str,
    kernel: str,
    shape: tuple[int, ...],
    size: tuple[int, int],
    dtype: torch.dtype,
    last: bool,
    stride: int = 1,
    **expectations,
) -> Example:
    """One of the three passes of a convolution, told by ``kernel`` and the launcher it is from."""
    c = shape[1]

    def call():
        x, weight = meta(*shape, dtype=dtype, last=last), meta(c, 1, *size, dtype=torch.float32)
        y = forward(x, weight, meta(c, dtype=torch.float32), (stride, stride))
        if 'forward' not in name:
            backward(y, x, weight, (stride, stride), [True, True, True])

    return Example(name, call, kernel, position=-1, **expectations)


_STAGE1, _STAGE3 = (64, 96, 56, 56), (64, 384, 14, 14)
_LOW, _FULL = torch.bfloat16, torch.float32
EXAMPLES = (
    _example(
        'forward-last-k7-bf16',
        'convolve_last',
        _STAGE1,
        (7, 7),
        _LOW,
        True,
        registers=(168, 168),
        ffma=0.54,
    ),
    _example(
        'forward-last-k7-fp32',
        'convolve_last',
        _STAGE1,
        (7, 7),
        _FULL,
        True,
        registers=(168, 168),
        ffma=0.6,
    ),
    _example(
        'forward-last-k11x1-fp16',
        'convolve_last',
        _STAGE1,
        (11, 1),
        torch.float16,
        True,
        registers=(168, 168),
        ffma=0.44,
    ),
    _example(
        'gradient-last-k5-stride2-bf16',
        'convolve_last',
        _STAGE1,
        (5, 5),
        _LOW,
        True,
        2,
        registers=(168, 168),
        ffma=0.42,
    ),
    _example(
        'forward-last-k51x5-fp32',
        'convolve_last',
        _STAGE1,
        (51, 5),
        _FULL,
        True,
        registers=(168, 168),
        ffma=0.6,
    ),
    _example(
        'forward-plain-k7-bf16',
        'convolve_plain',
        _STAGE1,
        (7, 7),
        _LOW,
        False,
        registers=(176, 176),
        ffma=0.37,
    ),
    _example(
        'forward-plain-k17-fp32',
        'convolve_plain',
        _STAGE3,
        (17, 17),
        _FULL,
        False,
        registers=(240, 200),
        ffma=0.43,
    ),
    _example(
        'taps-last-k7-bf16',
        'tap_sums_last',
        _STAGE1,
        (7, 7),
        _LOW,
        True,
        registers=(216, 216),
        ffma=0.5,
    ),
    _example(
        'taps-last-k1x11-fp32',
        'tap_sums_last',
        _STAGE1,
        (1, 11),
        _FULL,
        True,
        registers=(136, 136),
        ffma=0.62,
    ),
    _example(
        'taps-plain-k7-bf16',
        'tap_sums_plain',
        _STAGE1,
        (7, 7),
        _LOW,
        False,
        registers=(200, 200),
        ffma=0.31,
        slow=True,
    ),
    _example('reduce-k7', 'reduce_taps', _STAGE1, (7, 7), _LOW, True, registers=(48, 48)),
)
