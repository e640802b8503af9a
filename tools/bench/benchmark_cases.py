"""The operator shapes that `benchmark_ops.py` times: every family at its real stage maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk import ops
from mmlk.ops import reference

SIZES = {'224': (224, 224), '512': (512, 512), '800x1333': (800, 1333)}
BATCHES = {'224': 2, '512': 1, '800x1333': 1}


class Case(NamedTuple):
    """One operator on one shape.

    Args:
        name: What is timed.
        shape: (N, C, H, W) of the map.
        parameters: Shapes of the parameters.
        ours, native: The operator, as functions of the map and the parameters; ``native`` is the
            same composition of ``F.conv2d`` and other plain torch functions.
        flops: Of one forward pass, taps in the padding included.
    """

    name: str
    shape: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...]
    ours: Callable[..., Tensor]
    native: Callable[..., Tensor]
    flops: int

    def inputs(self) -> list[Tensor]:
        """Map and parameters, scaled so that outputs are of order one."""
        tensors = [torch.randn(self.shape)]
        for shape in self.parameters:
            taps = math.prod(shape[2:]) if len(shape) == 4 else 1
            tensors.append(torch.randn(shape) / math.sqrt(taps))
        return tensors


def depthwise(shape: Sequence[int], kernel: Sequence[int], stride: int = 1) -> Case:
    n, c, h, w = shape
    positions = n * c * (-(-h // stride)) * (-(-w // stride))
    name = f'{kernel[0]}x{kernel[1]}' + (f' stride {stride}' if stride > 1 else '')
    return Case(
        name,
        tuple(shape),
        ((c, 1, *kernel),),
        lambda x, weight: ops.depthwise_conv2d(x, weight, None, stride),
        lambda x, weight: reference.depthwise_conv2d_reference(x, weight, None, stride),
        2 * positions * kernel[0] * kernel[1],
    )


def inception(shape: Sequence[int], square: int = 3, band: int = 11, share: int = 8) -> Case:
    n, c, h, w = shape
    g = c // share
    parameters = ((g, 1, square, square), (g,), (g, 1, 1, band), (g,), (g, 1, band, 1), (g,))
    return Case(
        'Inception',
        tuple(shape),
        parameters,
        ops.inception_dwconv2d,
        reference.inception_dwconv2d_reference,
        2 * n * g * h * w * (square**2 + 2 * band),
    )


def large_kernel(shape: Sequence[int], long: int, short: int = 5) -> Case:
    """SLaK's three branches, summed as without their norms."""
    n, c, h, w = shape
    kernels = ((long, short), (short, long), (short, short))

    def branches(convolve):
        return lambda x, *weights: sum(convolve(x, weight) for weight in weights)

    return Case(
        f'SLaK {long}x{short} + {short}x{long} + {short}x{short}',
        tuple(shape),
        tuple((c, 1, *kernel) for kernel in kernels),
        branches(ops.depthwise_conv2d),
        branches(reference.depthwise_conv2d_reference),
        sum(2 * n * c * h * w * kh * kw for kh, kw in kernels),
    )


def recursive(shape: Sequence[int], levels: int, kernel: int = 5) -> Case:
    n, c, h, w = shape
    flops, pixels = 0, h * w
    for level in range(levels + 1):
        flops += 2 * n * c * pixels * kernel**2
        if level < levels:
            h, w = -(-h // 2), -(-w // 2)
            pixels = h * w
            flops += 2 * n * c * pixels * kernel**2
    return Case(
        f'RecConv {kernel}x{kernel}, {levels} levels',
        tuple(shape),
        ((c, 1, kernel, kernel),) * (levels + 2),
        lambda x, down, *weights: ops.recconv2d(x, down, list(weights)),
        lambda x, down, *weights: reference.recconv2d_reference(x, down, list(weights)),
        flops,
    )


def _stages(size: str, widths: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    height, width = SIZES[size]
    for stage, channels in enumerate(widths):
        step = 4 * 2**stage
        yield stage, (BATCHES[size], channels, -(-height // step), -(-width // step))


def family_cases(family: str, size: str) -> list[Case]:
    """The operators of ``family`` (its tiny model) at image ``size``, stage by stage."""
    if family == 'inceptionnext':
        return [inception(shape) for _, shape in _stages(size, (96, 192, 384, 768))]
    if family == 'slak':
        return [
            large_kernel(shape, (51, 49, 47, 13)[stage])
            for stage, shape in _stages(size, (124, 249, 499, 998))
        ]
    if family == 'dcls_convnext':
        return [depthwise(shape, (17, 17)) for _, shape in _stages(size, (96, 192, 384, 768))]
    if family == 'convnext':
        return [depthwise(shape, (7, 7)) for _, shape in _stages(size, (96, 192, 384, 768))]
    if family == 'recnext':
        return [recursive(shape, 4 - stage) for stage, shape in _stages(size, (48, 96, 192, 384))]
    raise ValueError(f'family_cases: unknown family {family!r}, choose from {FAMILIES}')


FAMILIES = ('inceptionnext', 'slak', 'dcls_convnext', 'recnext', 'convnext')


def table_cases() -> list[Case]:
    """The fixed shapes of the summary table in ``docs/benchmarks.md``."""
    large, small, single = (2, 64, 56, 56), (2, 256, 14, 14), (1, 32, 56, 56)
    return [
        depthwise(large, (17, 17)),
        depthwise(small, (17, 17)),
        depthwise(large, (51, 5)),
        depthwise(large, (5, 51)),
        large_kernel(large, 51),
        large_kernel(small, 51),
        depthwise(single, (31, 31)),
        depthwise(single, (61, 61)),
        *(
            depthwise(shape, kernel)
            for kernel in ((7, 7), (3, 3), (1, 11), (11, 1))
            for shape in (large, small)
        ),
        inception(large),
        inception(small),
        depthwise(large, (5, 5)),
        depthwise(large, (5, 5), 2),
    ]
