"""What `run_gpu_checks.py` checks and times: one row per case, for every operator.

A new operator adds a `Case` builder to `benchmark_cases.py` (or here) and rows to the two tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from benchmark_cases import Case, depthwise, inception, large_kernel, recursive
from torch import Tensor

from mmlk import ops
from mmlk.ops import reference


class Timed(NamedTuple):
    """A case of the operator benchmark.

    Args:
        case: Operator and shape.
        forward, train: Gains over the better of native and cuDNN that are aimed at.
        passes: Maps read or written by an ideal implementation, forward and backward.
    """

    case: Case
    forward: float | None = None
    train: float | None = None
    passes: tuple[float, float] = (2, 5)


def dcls(shape, size: int = 17, count: int = 34, version: str = 'v1') -> Case:
    """Kernel constructed from learnt positions, then the convolution."""
    n, c, h, w = shape

    def operator(construct: Callable, convolve: Callable) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
            kernel = construct(weight, positions, kernel_size=size, version=version)
            return convolve(x, kernel.to(x.dtype))

        return run

    return Case(
        f'DCLS {size}x{size}, {count} elements, {version}',
        tuple(shape),
        ((c, 1, count), (2, c, 1, count)),
        operator(ops.dcls_kernel2d, ops.depthwise_conv2d),
        operator(reference.dcls_kernel2d_reference, reference.depthwise_conv2d_reference),
        2 * n * c * h * w * size * size,
    )


def branches(shape, long: int, short: int = 5) -> Case:
    """SLaK's branches as one operator, summed as in its folded form."""
    case = large_kernel(shape, long, short)
    return case._replace(
        name=f'{case.name}, one operator', ours=lambda x, *weights: ops.large_kernel_sum(x, weights)
    )


# Parity with float64: odd sizes, maps below the kernel, single rows and pixels, every route.
PARITY = (
    *(
        depthwise(shape, kernel, stride)
        for shape, kernel, stride in (
            ((2, 6, 13, 9), (3, 3), 1),
            ((3, 1, 8, 7), (3, 3), 1),
            ((2, 8, 15, 12), (5, 5), 2),
            ((2, 96, 56, 57), (7, 7), 1),
            ((1, 40, 57, 33), (7, 7), 2),
            ((2, 12, 17, 23), (1, 11), 1),
            ((2, 12, 17, 23), (11, 1), 1),
            ((2, 16, 20, 19), (13, 13), 1),
            ((2, 9, 28, 31), (17, 17), 1),
            ((2, 64, 56, 56), (17, 17), 1),
            ((1, 24, 56, 57), (51, 5), 1),
            ((2, 24, 56, 57), (5, 51), 1),
            ((2, 124, 28, 28), (49, 5), 1),
            ((2, 16, 33, 40), (31, 31), 1),
            ((1, 8, 70, 90), (61, 61), 1),
            ((1, 3, 14, 9), (61, 61), 1),
            ((2, 16, 7, 7), (51, 5), 1),
            ((3, 8, 1, 1), (11, 11), 1),
            ((2, 8, 1, 40), (1, 11), 1),
            ((2, 7, 6, 5), (1, 1), 1),
            ((1, 16, 125, 188), (17, 17), 1),
        )
    ),
    *(
        inception(shape)
        for shape in ((2, 24, 17, 13), (2, 96, 56, 56), (3, 192, 7, 7), (1, 64, 1, 1))
    ),
    *(large_kernel(shape, long) for shape, long in (((2, 24, 28, 31), 49), ((2, 64, 56, 56), 51))),
    *(branches(shape, long) for shape, long in (((2, 24, 28, 31), 49), ((2, 64, 56, 56), 51))),
    *(
        recursive(shape, levels)
        for shape, levels in (
            ((2, 16, 56, 56), 4),
            ((2, 24, 14, 14), 2),
            ((1, 16, 25, 38), 3),
            ((1, 8, 200, 336), 4),
        )
    ),
    dcls((2, 24, 28, 28)),
)

_STAGE1, _STAGE3 = (64, 96, 56, 56), (64, 384, 14, 14)
TIMED = (
    Timed(inception(_STAGE1), 3.0, 3.0, (2, 2.75)),
    Timed(depthwise(_STAGE1, (7, 7)), 2.0, 2.0),
    Timed(dcls(_STAGE1), 6.0, 6.0),
    Timed(branches(_STAGE1, 51), 15.0, 12.0),
    Timed(recursive((64, 64, 56, 56), 4), 4.0, 3.0),
    Timed(inception(_STAGE3), passes=(2, 2.75)),
    Timed(depthwise(_STAGE3, (7, 7))),
    Timed(depthwise(_STAGE1, (17, 17))),
    Timed(depthwise(_STAGE3, (17, 17))),
    Timed(branches(_STAGE3, 47)),
    Timed(depthwise(_STAGE1, (31, 31))),
    Timed(depthwise((4, 96, 128, 128), (7, 7))),
    Timed(depthwise((2, 96, 200, 334), (17, 17))),
    Timed(depthwise(_STAGE1, (5, 5), 2), passes=(1.25, 2.75)),
)


def traffic(case: Case, element: int, passes: tuple[float, float], train: bool) -> float:
    """Bytes that an ideal implementation moves, weights left out."""
    return math.prod(case.shape) * element * (sum(passes) if train else passes[0])


def inputs(case: Case, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """Leaves on the GPU: the map in ``dtype`` and ``layout``, parameters in float32."""
    x, *parameters = case.inputs()
    x = x.to('cuda', dtype).contiguous(memory_format=layout)
    return [each.requires_grad_() for each in (x, *(each.cuda() for each in parameters))]
