"""Depthwise convolution with large kernels on tensor cores: one banded Toeplitz product per channel.

The outputs of a plane are cut into blocks of ROWS x COLUMNS. A block depends on a window of
(ROWS + kh - 1) x (COLUMNS + kw - 1) inputs, linearly, and by the same matrix for every block of every
image: ``T[(d, v), (r, o)] = kernel[d - r, v - o]``, zero outside the kernel. So a channel is one
matrix product, (blocks, window) x (window, ROWS * COLUMNS), with the blocks of all images as rows.
Useful is ``kh / (ROWS + kh - 1) * kw / window width`` of it, 0.38 for 17 x 17 and 0.24 for a strip
of 51 x 5; every input is read ``window / (ROWS * COLUMNS)`` times, mostly from cache, instead of
once per tap.

* Windows start at multiples of 4 or 8 columns and are multiples of 8 wide, so both operands arrive in
  8- or 16-byte asynchronous copies whatever the kernel. The matrix is never stored: its columns are
  pieces of a kernel row, read from a table of all runs of 8 adjacent taps (`tap_vectors`), which is
  8 times the kernel instead of thousands.
* Map and kernel sizes are run-time values. What is compiled in is the shape of block and window, of
  which a kernel width has a handful, and whether strides are multiples of 16: new image sizes
  compile nothing once these few have been seen.
* Tall and wide kernels need no transposition: only the block's shape differs.
* Blocks are ordered by row, image, column. A tile of the product therefore sees few rows, and kernel
  rows outside the map are skipped for all of it.
* Several kernels can share a launch (`convolve`): summed in one accumulator, or with an output each,
  by programs next to each other, which read the map from memory once.
* The gradient of the map is the same product with flipped kernels. That of the kernel is the product
  of the transposed windows with the blocks of the gradient (`correlate`), whose entry
  ``[(d, v), (r, o)]`` is a term of tap (d - r, v - o): the terms of a tap are written side by side
  and added by `fold` in a fixed order. The number of terms is a function of shapes.

Sums are in fp32. Kernels are rounded to the type of the map, as autocast does; fp32 maps are
multiplied as TF32, and only if torch allows that for convolutions (`allows`). A value that is not
finite spreads to all outputs of the blocks whose windows hold it, since 0 * inf is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.depthwise.triton_toeplitz_kernels import convolve, correlate, fold, tap_vectors
from mmlk.ops.maps import channels_last
from mmlk.ops.triton.planes import PADDING, Planes, copy, planes
from mmlk.ops.triton.runtime import (
    LARGEST_GRID,
    Example,
    cdiv,
    launch,
    meta,
    power_of_2,
    splits,
)

# --------------------------------------------------------------------------------- shapes


class Tile(NamedTuple):
    """Shape of a block, and of the windows of each kernel.

    Args:
        rows, columns: Of a block of outputs.
        windows: Columns of the window of each kernel, a multiple of 8.
        margins: Columns of the window left of the block, a multiple of 4.
    """

    rows: int
    columns: int
    windows: tuple[int, ...]
    margins: tuple[int, ...]


def window(columns: int, kw: int) -> tuple[int, int]:
    """Width and left margin of the narrowest window around ``columns`` outputs.

    Of equal windows the one that starts at a multiple of 8 columns can be read in longer vectors.
    """
    reach, choices = kw // 2, []
    for step in (8, 4):
        margin = cdiv(reach, step) * step
        choices.append((cdiv(columns + margin + reach, 8) * 8, margin))
    return min(choices, key=lambda each: each[0])


def tile(kernels: Sequence[tuple[int, int]], size: tuple[int, int], outputs: int) -> Tile:
    """The block of at most ``outputs`` values with the least arithmetic for these kernels.

    The map counts by powers of two only, so that few sizes compile anything.
    """
    tallest, widest = (max(8, power_of_2(side)) for side in size)

    def made(rows: int, columns: int) -> Tile:
        return Tile(rows, columns, *zip(*(window(columns, kw) for _, kw in kernels)))

    def cost(each: Tile) -> float:
        work = sum((each.rows + kh - 1) * width for (kh, _), width in zip(kernels, each.windows))
        # Half as wide a product has 1.4 times the instructions per multiplication.
        return work * (1.0 if each.rows * each.columns >= 128 else 1.4)

    choices = [
        made(total // columns, columns)
        for total in {outputs, min(outputs, 64)}
        for columns in (8, 16, 32, 64)
        if columns <= widest and total // columns <= tallest
    ]
    return min(choices, key=lambda each: (cost(each), each))


def allows(dtype: torch.dtype, channels: int) -> bool:
    """Whether maps of ``dtype`` may be multiplied on tensor cores, and a grid has their channels."""
    if channels > LARGEST_GRID[1]:
        return False
    # Set by either of torch's switches; reading the older one raises after a use of the newer.
    return dtype != torch.float32 or torch.backends.cudnn.conv.fp32_precision == 'tf32'


def clipped(kernel: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the taps that a map of ``size`` can reach."""
    return tuple(min(k, 2 * side - 1) for k, side in zip(kernel, size))


def _clip(weight: Tensor, size: Sequence[int]) -> Tensor:
    kh, kw = clipped(weight.shape[2:], size)
    cut_h, cut_w = (weight.shape[2] - kh) // 2, (weight.shape[3] - kw) // 2
    return weight[:, :, cut_h : cut_h + kh, cut_w : cut_w + kw]


def _precision(dtype: torch.dtype) -> str:
    return 'tf32' if dtype == torch.float32 else 'ieee'


def _offsets(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sum(lengths[:index]) for index in range(len(lengths)))


# --------------------------------------------------------------------------------- launchers


def convolutions(
    maps: Sequence[Planes],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    last: bool,
    *,
    flip: bool = False,
    apart: bool = False,
) -> list[Tensor]:
    """Each map convolved with its kernel, summed or apart.

    Args:
        maps: `planes` of maps (N, C, H, W) of one type; the same ones may stand there repeatedly.
        weights: As many kernels (C, 1, kh, kw), any strides and floating type.
        bias: (C,), added to the sum.
        last: Whether results are channels-last.
        flip: Turn the kernels by half a turn, as for the gradient of the map.
        apart: Return every result rather than the sum.
    """
    x = maps[0].map
    n, c, h, w = x.shape
    weights = [_clip(each, (h, w)) for each in weights]
    kernels = tuple(tuple(each.shape[2:]) for each in weights)
    table, row, offsets = _tap_table(weights, kernels, x.dtype, flip)
    vector = min(each.vector for each in maps)
    # Other results are first written as planes with whole vectors in every row.
    direct = not last and w % 4 == 0
    width = w if direct else cdiv(w, PADDING) * PADDING
    results = [
        torch.empty((n, c, h, width), dtype=x.dtype, device=x.device)
        for _ in range(len(maps) if apart else 1)
    ]
    shape = tile(kernels, (h, w), 128)
    blocks = n * cdiv(h, shape.rows) * cdiv(w, shape.columns)
    block_m = 128 if blocks > 64 else 64
    out_vector = gcd(width, 8)
    launch(
        convolve,
        (cdiv(blocks, block_m) * len(results), c),
        table,
        tuple(each.data for each in maps),
        bias,
        tuple(results),
        n,
        c,
        h,
        *_strides(maps, vector),
        width // out_vector,
        w,
        row,
        offsets,
        kernels,
        WINDOWS=shape.windows,
        MARGINS=shape.margins,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        BLOCK_M=block_m,
        BLOCK_K=128 // x.element_size(),
        VECTOR=vector,
        OUT_VECTOR=out_vector,
        PRECISION=_precision(x.dtype),
        num_warps=8 if block_m * shape.rows * shape.columns > 8192 else 4,
        num_stages=3,
    )
    return results if direct else _arranged(results, w, last)


def weight_gradients(
    grads: Sequence[Planes],
    maps: Sequence[Planes],
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of the kernels of `convolutions`, each (C, 1, kh, kw) in ``dtype``.

    Args:
        grads: `planes` of the gradients of the results, (N, C, H, W) each.
        maps: As there.
        sizes: Rows and columns of the kernels.
    """
    x = maps[0].map
    n, c, h, w = x.shape
    kernels = tuple(clipped(size, (h, w)) for size in sizes)
    shape = tile(kernels, (h, w), 64)
    outputs = shape.rows * shape.columns
    vector = min(each.vector for each in (*maps, *grads))
    block_k, block_m = 128, 128 // x.element_size()
    counts = [
        cdiv((shape.rows + kh - 1) * width, block_k)
        for (kh, _), width in zip(kernels, shape.windows)
    ]
    firsts = (*_offsets(counts), sum(counts))
    blocks_h, blocks_w = cdiv(h, shape.rows), cdiv(w, shape.columns)
    group_w = min(block_m, power_of_2(blocks_w))
    group_n = min(block_m // group_w, power_of_2(n))
    group_h = block_m // (group_w * group_n)
    groups = cdiv(blocks_h, group_h) * cdiv(n, group_n) * cdiv(blocks_w, group_w)
    parts = splits(groups, sum(counts) * c, least=8)
    lengths = [kh * kw for kh, kw in kernels]
    taps, total = _offsets(lengths), sum(lengths)
    partial = torch.empty((c, parts, outputs, total), dtype=torch.float32, device=x.device)
    launch(
        correlate,
        (firsts[-1], c, parts),
        partial,
        tuple(each.data for each in maps),
        tuple(each.data for each in grads),
        n,
        h,
        w,
        *_strides(maps, vector),
        *_strides(grads, vector),
        kernels,
        taps,
        total,
        parts,
        firsts,
        WINDOWS=shape.windows,
        MARGINS=shape.margins,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        GROUP_H=group_h,
        GROUP_N=group_n,
        GROUP_W=group_w,
        BLOCK_K=block_k,
        VECTOR=vector,
        PRECISION=_precision(x.dtype),
        num_warps=8,
        num_stages=3,
    )
    results = [torch.empty((c, 1, *size), dtype=dtype, device=x.device) for size in sizes]
    largest = max(kh * kw for kh, kw in sizes)
    launch(
        fold,
        (cdiv(largest, 128), c, len(sizes)),
        partial,
        tuple(results),
        parts * outputs,
        total,
        taps,
        kernels,
        tuple(tuple(size) for size in sizes),
        BLOCK=128,
        TERMS=16,
        num_warps=4,
    )
    return results


def _tap_table(
    weights: Sequence[Tensor], kernels: Sequence[tuple[int, int]], dtype: torch.dtype, flip: bool
) -> tuple[Tensor, int, tuple[int, ...]]:
    """The table of `tap_vectors`, runs per channel, and where each kernel begins in it."""
    lengths = [kh * (kw + 7) for kh, kw in kernels]
    channels, row = weights[0].shape[0], sum(lengths)
    table = torch.empty((channels, row, 8), dtype=dtype, device=weights[0].device)
    launch(
        tap_vectors,
        (cdiv(8 * max(lengths), 1024), channels, len(weights)),
        table,
        tuple(weights),
        row,
        _offsets(lengths),
        tuple(kernels),
        tuple((each.stride(0), *each.stride()[2:]) for each in weights),
        FLIP=flip,
        BLOCK=1024,
        num_warps=4,
    )
    return table, row, _offsets(lengths)


def _strides(sources: Sequence[Planes], vector: int) -> tuple[tuple, tuple]:
    """Widths and strides in vectors, so that kernels know them to be multiples of it."""
    return (
        tuple(each.width // vector for each in sources),
        tuple(tuple(stride // vector for stride in each.strides) for each in sources),
    )


def _arranged(maps: Sequence[Tensor], width: int, last: bool) -> list[Tensor]:
    """The first ``width`` columns of padded planes, contiguous or channels-last."""
    found = [
        torch.empty(
            (*x.shape[:3], width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for x in maps
    ]
    copy(maps, found)
    return found


# --------------------------------------------------------------------------------- route

LEAST_TAPS, LEAST_TAPS_COPIED = 90, 144
"""Kernels below are bound by memory, or nearly so, on CUDA cores; where maps are copied in and out
(`planes`), that costs as much as some 50 more taps."""


def takes(problem) -> bool:
    """Whether a `depthwise.Problem` is better computed here than on CUDA cores."""
    copied = problem.last or problem.shape[3] % 4 > 0
    return (
        problem.stride == (1, 1)
        and allows(problem.dtype, problem.shape[1])
        and problem.kernel[0] * problem.kernel[1] >= (LEAST_TAPS_COPIED if copied else LEAST_TAPS)
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """`depthwise.Route.forward`."""
    return convolutions(planes(x), [weight], bias, channels_last(x))[0]


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], mask: Sequence[bool]
) -> list[Tensor | None]:
    """`depthwise.Route.backward`."""
    results: list[Tensor | None] = [None, None, bias_gradient(grad) if mask[2] else None]
    if mask[0] or mask[1]:
        target, *source = planes(grad, *([x] if mask[1] else []))
    if mask[0]:
        (results[0],) = convolutions([target], [weight], None, channels_last(x), flip=True)
    if mask[1]:
        (results[1],) = weight_gradients([target], source, [tuple(weight.shape[2:])], torch.float32)
    return results


def bias_gradient(grad: Tensor) -> Tensor:
    """Sum of a gradient (N, C, H, W) over images and pixels, (C,) in float32."""
    return grad.sum((0, 2, 3), dtype=torch.float32)


def _example(
    name: str,
    kernel: tuple[int, int],
    size: tuple[int, int, int, int],
    gradient: bool,
    registers: tuple[int, int],
    dtype: torch.dtype = torch.bfloat16,
) -> Example:
    def call():
        x, weight = meta(*size, dtype=dtype), meta(size[1], 1, *kernel, dtype=torch.float32)
        if gradient:
            weight_gradients(planes(x), planes(x), [kernel], torch.float32)
        else:
            convolutions(planes(x), [weight], meta(size[1], dtype=torch.float32), False)

    return Example(
        name, call, 'correlate' if gradient else 'convolve', registers=registers, tensor_cores=True
    )


_LARGE, _SMALL, _ODD = (64, 96, 56, 56), (64, 384, 28, 28), (2, 192, 100, 167)
EXAMPLES = (
    _example('forward-k17-bf16', (17, 17), _LARGE, False, (176, 144)),
    _example('forward-k51x5-bf16', (51, 5), _LARGE, False, (232, 176)),
    _example('forward-k5x51-bf16', (5, 51), _LARGE, False, (232, 176)),
    _example('forward-k31-rows-of-28-fp16', (31, 31), _SMALL, False, (240, 200), torch.float16),
    _example('forward-k17-odd-rows-bf16', (17, 17), _ODD, False, (176, 144)),
    _example('forward-k17-tf32', (17, 17), _LARGE, False, (200, 200), torch.float32),
    _example('weight-gradient-k17-bf16', (17, 17), _LARGE, True, (200, 128)),
    _example('weight-gradient-k51x5-bf16', (51, 5), _LARGE, True, (200, 128)),
    _example('weight-gradient-k17-tf32', (17, 17), _LARGE, True, (200, 160), torch.float32),
    Example(
        'taps-k17',
        lambda: convolutions(
            planes(meta(*_LARGE)), [meta(96, 1, 17, 17, dtype=torch.float32)], None, False
        ),
        'tap_vectors',
        registers=(64, 64),
    ),
    Example(
        'fold-k17',
        lambda: weight_gradients(
            planes(meta(*_LARGE)), planes(meta(*_LARGE)), [(17, 17)], torch.float32
        ),
        'fold',
        registers=(128, 128),
    ),
)
