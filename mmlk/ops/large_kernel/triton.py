"""SLaK's branches on CUDA: two or three kernels per launch, on tensor cores where types allow it.

Training: one launch reads the map, from memory once and for the other branches from cache, and writes
an output per branch (1 + 3 passes over the map instead of 3 + 3); the gradient of the map is summed
over the branches in one accumulator (3 + 1 passes instead of 3 + 3 and two sums of 2 + 1), and one
launch computes the gradients of all kernels. Folded, both strips share the accumulator (1 + 1 passes
instead of 2 + 2 and a sum of 2 + 1). `mmlk.ops.depthwise.triton_toeplitz` describes the kernels.

Strict fp32 maps, and kernels too small to pay, are composed from single convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.depthwise import triton as depthwise
from mmlk.ops.depthwise import triton_toeplitz as toeplitz
from mmlk.ops.maps import channels_last
from mmlk.ops.triton.planes import planes
from mmlk.ops.triton.runtime import Example, meta


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def _fused(x: Tensor, weights: list[Tensor]) -> bool:
    """Whether the branches of ``x`` are computed by shared launches."""
    taps = sum(
        kh * kw for kh, kw in (toeplitz.clipped(each.shape[2:], x.shape[2:]) for each in weights)
    )
    return taps >= toeplitz.LEAST_TAPS and toeplitz.allows(x.dtype, x.shape[1])


def branches(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_branches`."""
    weights = _given(first, second, third)
    if _fused(x, weights):
        maps = planes(x) * len(weights)
        parts = toeplitz.convolutions(maps, weights, None, channels_last(x), apart=True)
    else:
        parts = [depthwise.forward(x, each, None, [1, 1]) for each in weights]
    return *parts[:2], parts[2] if third is not None else x.new_empty(0)


def total(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None, bias: Tensor | None
) -> Tensor:
    """`mmlk::large_kernel_sum`."""
    weights = _given(first, second, third)
    if _fused(x, weights):
        return toeplitz.convolutions(planes(x) * len(weights), weights, bias, channels_last(x))[0]
    y = depthwise.forward(x, first, bias, [1, 1])
    for each in weights[1:]:
        y += depthwise.forward(x, each, None, [1, 1])
    return y


def backward(
    grad_first: Tensor,
    grad_second: Tensor,
    grad_third: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_backward`."""
    weights = _given(first, second, third)
    grads = [grad_first, grad_second, grad_third][: len(weights)]
    results = [x.new_empty(0), *(first.new_empty(0) for _ in range(4))]
    if _fused(x, weights):
        wanted = [index for index in range(len(weights)) if mask[1 + index]]
        if mask[0] or wanted:
            *targets, source = planes(*grads, x)
        if mask[0]:
            (results[0],) = toeplitz.convolutions(
                targets, weights, None, channels_last(x), flip=True
            )
        if wanted:
            found = toeplitz.weight_gradients(
                [targets[index] for index in wanted],
                [source] * len(wanted),
                [tuple(weights[index].shape[2:]) for index in wanted],
                first.dtype,
            )
            for index, each in zip(wanted, found):
                results[1 + index] = each
    else:
        for index, (grad, weight) in enumerate(zip(grads, weights)):
            part, results[1 + index], _ = depthwise.backward(
                grad, x, weight, [1, 1], [mask[0], mask[1 + index], False]
            )
            if mask[0]:
                results[0] = part if index == 0 else results[0].add_(part)
    if mask[4]:
        results[4] = toeplitz.bias_gradient(grad_first).to(first.dtype)
    return tuple(results)


def _kernels(channels: int) -> list[Tensor]:
    return [
        meta(channels, 1, *kernel, dtype=torch.float32) for kernel in ((51, 5), (5, 51), (5, 5))
    ]


_MAP = (64, 124, 56, 56)
EXAMPLES = (
    Example(
        'branches-bf16',
        lambda: branches(meta(*_MAP), *_kernels(_MAP[1])),
        'convolve',
        tensor_cores=True,
    ),
    Example(
        'strips-bf16',
        lambda: total(
            meta(*_MAP), *_kernels(_MAP[1])[:2], None, meta(_MAP[1], dtype=torch.float32)
        ),
        'convolve',
        tensor_cores=True,
    ),
    Example(
        'input-gradient-bf16',
        lambda: backward(
            *(meta(*_MAP) for _ in range(4)), *_kernels(_MAP[1]), [True, False, False, False, False]
        ),
        'convolve',
        tensor_cores=True,
    ),
    Example(
        'weight-gradients-bf16',
        lambda: backward(
            *(meta(*_MAP) for _ in range(4)), *_kernels(_MAP[1]), [False, True, True, True, False]
        ),
        'correlate',
        tensor_cores=True,
    ),
)
