"""Depthwise convolution on CUDA cores, for every kernel, stride and floating type up to 32 bits.

Three kernels per layout, tiled as `mmlk.ops.triton.tiles` says:

* ``convolve_*``: the forward pass, and the gradient of the input as a correlation with reversed
  taps. At stride s the inputs fall into s phases per axis, each reached by every s-th tap only;
  a phase is one slice of the grid.
* ``tap_sums_*``: partial gradients of blocks of taps, one program per channels, taps and part of
  the rows of all images. The number of parts follows from shapes.
* ``reduce_taps``: adds the parts in order.

Arithmetic intensity is that of the kernel: from 7x7 on 16-bit maps the multiply-adds, not memory,
bound the time. Nothing but sums of float32 products is used, so this is also the path of strict
float32 for large kernels. Results depend on shapes and types only, not on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mmlk.ops.maps import channels_last
from mmlk.ops.triton.runtime import buckets, cdiv, configured, jit, launch, power_of_2, splits
from mmlk.ops.triton.tiles import (
    add_partials,
    correlate_last,
    correlate_plain,
    reversed_taps,
    tap_gradients_last,
    tap_gradients_plain,
)

LONGEST = 13  # taps that stand in registers at once; longer sides come in blocks of BLOCK
BLOCK = 9
TAP_SUMS = 25  # tap gradients of four channels per thread; more leave no registers for the map
TAP_SUMS_PLAIN = 28  # the same of one column per thread, whose addresses take the rest
REGISTERS = 168  # cap of the convolutions; left to itself the assembler stops at 128 and spills
REARRANGED = 2048  # programs from which on channels-last kernels get channels-last weights
SIZES = ('in_rows', 'in_columns', 'out_rows', 'out_columns', 'kernel_rows', 'kernel_columns')


@jit(do_not_specialize=SIZES)
def convolve_last(
    x,
    taps,
    bias,
    y,
    channels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_image,
    x_row,
    x_column,
    y_image,
    y_row,
    y_column,
    tap_row,
    tap_column,
    tap_channel,
    kernel_rows,
    kernel_columns,
    STRIDE_ROW: tl.constexpr,
    STRIDE_COLUMN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    X_COLUMN: tl.constexpr,
    Y_COLUMN: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    x_step = x_column // VECTOR * VECTOR if X_COLUMN == 0 else X_COLUMN
    y_step = y_column // VECTOR * VECTOR if Y_COLUMN == 0 else Y_COLUMN
    x_row, y_row = x_row // VECTOR * VECTOR, y_row // VECTOR * VECTOR
    blocks = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    c_ok = c < channels // VECTOR * VECTOR
    tile = tl.program_id(0) // blocks
    if TRANSPOSED:
        phase_row = tl.program_id(1) // STRIDE_COLUMN
        phase_column = tl.program_id(1) % STRIDE_COLUMN
        most_rows = tl.cdiv(out_rows, STRIDE_ROW)
        most_columns = tl.cdiv(out_columns, STRIDE_COLUMN)
        column_tiles = tl.cdiv(most_columns, COLUMNS)
        tiles = tl.cdiv(most_rows, ROWS) * column_tiles
        n = (tile // tiles).to(tl.int64)
        tile = tile % tiles
        rows, last_row, origin_row = reversed_taps(phase_row, kernel_rows, STRIDE_ROW)
        columns, last_column, origin_column = reversed_taps(
            phase_column, kernel_columns, STRIDE_COLUMN
        )
        correlate_last(
            x + n * (x_image // VECTOR * VECTOR),
            taps + (last_row * tap_row + last_column * tap_column),
            None,
            y + n * (y_image // VECTOR * VECTOR) + phase_row * y_row + phase_column * y_step,
            c,
            c_ok,
            tile // column_tiles * ROWS,
            tile % column_tiles * COLUMNS,
            in_rows,
            in_columns,
            tl.cdiv(out_rows - phase_row, STRIDE_ROW),
            tl.cdiv(out_columns - phase_column, STRIDE_COLUMN),
            x_row,
            x_step,
            STRIDE_ROW * y_row,
            STRIDE_COLUMN * y_step,
            -STRIDE_ROW * tap_row,
            -STRIDE_COLUMN * tap_column,
            tap_channel,
            rows,
            columns,
            origin_row,
            origin_column,
            1,
            1,
            TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
        )
    else:
        column_tiles = tl.cdiv(out_columns, COLUMNS)
        tiles = tl.cdiv(out_rows, ROWS) * column_tiles
        n = (tile // tiles).to(tl.int64)
        tile = tile % tiles
        correlate_last(
            x + n * (x_image // VECTOR * VECTOR),
            taps,
            bias,
            y + n * (y_image // VECTOR * VECTOR),
            c,
            c_ok,
            tile // column_tiles * ROWS,
            tile % column_tiles * COLUMNS,
            in_rows,
            in_columns,
            out_rows,
            out_columns,
            x_row,
            x_step,
            y_row,
            y_step,
            tap_row,
            tap_column,
            tap_channel,
            kernel_rows,
            kernel_columns,
            -(kernel_rows // 2),
            -(kernel_columns // 2),
            STRIDE_ROW,
            STRIDE_COLUMN,
            TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
        )


@jit(do_not_specialize=SIZES)
def convolve_plain(
    x,
    taps,
    bias,
    y,
    channels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_image,
    x_channel,
    x_row,
    y_image,
    y_channel,
    y_row,
    tap_row,
    tap_column,
    tap_channel,
    kernel_rows,
    kernel_columns,
    STRIDE_ROW: tl.constexpr,
    STRIDE_COLUMN: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
):
    blocks = tl.cdiv(channels, PLANES)
    tile = tl.program_id(0)
    if TRANSPOSED:
        phase_row = tl.program_id(1) // STRIDE_COLUMN
        phase_column = tl.program_id(1) % STRIDE_COLUMN
        column_tiles = tl.cdiv(tl.cdiv(out_columns, STRIDE_COLUMN), WIDTH)
        tiles = tl.cdiv(tl.cdiv(out_rows, STRIDE_ROW), ROWS) * column_tiles
        plane = tile // tiles
        tile = tile % tiles
        n = (plane // blocks).to(tl.int64)
        c = (plane % blocks) * PLANES + tl.arange(0, PLANES)
        rows, last_row, origin_row = reversed_taps(phase_row, kernel_rows, STRIDE_ROW)
        columns, last_column, origin_column = reversed_taps(
            phase_column, kernel_columns, STRIDE_COLUMN
        )
        correlate_plain(
            x + n * x_image,
            taps + (last_row * tap_row + last_column * tap_column),
            None,
            y + n * y_image + phase_row * y_row + phase_column,
            c,
            c < channels,
            tile // column_tiles * ROWS,
            tile % column_tiles * WIDTH,
            in_rows,
            in_columns,
            tl.cdiv(out_rows - phase_row, STRIDE_ROW),
            tl.cdiv(out_columns - phase_column, STRIDE_COLUMN),
            x_channel,
            x_row,
            y_channel,
            STRIDE_ROW * y_row,
            STRIDE_COLUMN,
            -STRIDE_ROW * tap_row,
            -STRIDE_COLUMN * tap_column,
            tap_channel,
            rows,
            columns,
            origin_row,
            origin_column,
            1,
            1,
            TAPS,
            ROWS,
            WIDTH,
            PLANES,
        )
    else:
        column_tiles = tl.cdiv(out_columns, WIDTH)
        tiles = tl.cdiv(out_rows, ROWS) * column_tiles
        plane = tile // tiles
        tile = tile % tiles
        n = (plane // blocks).to(tl.int64)
        c = (plane % blocks) * PLANES + tl.arange(0, PLANES)
        correlate_plain(
            x + n * x_image,
            taps,
            bias,
            y + n * y_image,
            c,
            c < channels,
            tile // column_tiles * ROWS,
            tile % column_tiles * WIDTH,
            in_rows,
            in_columns,
            out_rows,
            out_columns,
            x_channel,
            x_row,
            y_channel,
            y_row,
            1,
            tap_row,
            tap_column,
            tap_channel,
            kernel_rows,
            kernel_columns,
            -(kernel_rows // 2),
            -(kernel_columns // 2),
            STRIDE_ROW,
            STRIDE_COLUMN,
            TAPS,
            ROWS,
            WIDTH,
            PLANES,
        )


@jit(do_not_specialize=(*SIZES, 'images'))
def tap_sums_last(
    x,
    g,
    partial,
    images,
    channels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_image,
    x_row,
    x_column,
    g_image,
    g_row,
    g_column,
    kernel_rows,
    kernel_columns,
    STRIDE_ROW: tl.constexpr,
    STRIDE_COLUMN: tl.constexpr,
    X_COLUMN: tl.constexpr,
    G_COLUMN: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    BIAS: tl.constexpr,
):
    x_step = x_column // VECTOR * VECTOR if X_COLUMN == 0 else X_COLUMN
    g_step = g_column // VECTOR * VECTOR if G_COLUMN == 0 else G_COLUMN
    blocks = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    tap_block = tl.program_id(0) // blocks
    tap_blocks = tl.cdiv(kernel_columns, TAP_COLUMNS)
    work = images * out_rows
    part = tl.cdiv(work, tl.num_programs(1))
    begin = tl.program_id(1) * part
    size = (kernel_rows * kernel_columns + 1) * channels
    tap_gradients_last(
        x,
        g,
        partial + tl.program_id(1).to(tl.int64) * size,
        c,
        c < channels // VECTOR * VECTOR,
        begin,
        tl.minimum(begin + part, work),
        tap_block // tap_blocks * TAP_ROWS,
        tap_block % tap_blocks * TAP_COLUMNS,
        in_rows,
        in_columns,
        out_rows,
        out_columns,
        x_image // VECTOR * VECTOR,
        x_row // VECTOR * VECTOR,
        x_step,
        g_image // VECTOR * VECTOR,
        g_row // VECTOR * VECTOR,
        g_step,
        kernel_rows,
        kernel_columns,
        channels,
        STRIDE_ROW,
        STRIDE_COLUMN,
        TAP_ROWS,
        TAP_COLUMNS,
        COLUMNS,
        ROWS,
        CHANNELS,
        BIAS,
    )


@jit(do_not_specialize=(*SIZES, 'images'))
def tap_sums_plain(
    x,
    g,
    partial,
    images,
    channels,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_image,
    x_channel,
    x_row,
    g_image,
    g_channel,
    g_row,
    kernel_rows,
    kernel_columns,
    STRIDE_ROW: tl.constexpr,
    STRIDE_COLUMN: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    BIAS: tl.constexpr,
):
    blocks = tl.cdiv(channels, PLANES)
    c = (tl.program_id(0) % blocks) * PLANES + tl.arange(0, PLANES)
    tap_block = tl.program_id(0) // blocks
    tap_blocks = tl.cdiv(kernel_columns, TAP_COLUMNS)
    work = images * tl.cdiv(out_rows, ROWS)
    part = tl.cdiv(work, tl.num_programs(1))
    begin = tl.program_id(1) * part
    size = (kernel_rows * kernel_columns + 1) * channels
    tap_gradients_plain(
        x,
        g,
        partial + tl.program_id(1).to(tl.int64) * size,
        c,
        c < channels,
        begin,
        tl.minimum(begin + part, work),
        tap_block // tap_blocks * TAP_ROWS,
        tap_block % tap_blocks * TAP_COLUMNS,
        in_rows,
        in_columns,
        out_rows,
        out_columns,
        x_image,
        x_channel,
        x_row,
        g_image,
        g_channel,
        g_row,
        kernel_rows,
        kernel_columns,
        channels,
        STRIDE_ROW,
        STRIDE_COLUMN,
        TAP_ROWS,
        TAP_COLUMNS,
        ROWS,
        WIDTH,
        PLANES,
        BIAS,
    )


@jit(do_not_specialize=('splits', 'kernel_rows', 'kernel_columns'))
def reduce_taps(
    partial,
    grad_weight,
    grad_bias,
    splits,
    channels,
    kernel_rows,
    kernel_columns,
    tap_row,
    tap_column,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Partial sums (splits, taps + 1, channels) to (channels, taps) and (channels,)."""
    taps = kernel_rows * kernel_columns
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = add_partials(
        partial,
        element,
        element < (taps + 1) * channels,
        splits,
        (taps + 1) * channels,
        SPLITS,
        BLOCK,
    )
    tap, c = element // channels, element % channels
    target = c * taps + tap // kernel_columns * tap_row + tap % kernel_columns * tap_column
    tl.store(grad_weight + target, total, mask=tap < taps)
    if grad_bias is not None:
        tl.store(grad_bias + c, total, mask=tap == taps)


# ---------------------------------------------------------------------------- launch parameters


class View(NamedTuple):
    """A map as rows and columns, the columns being the axis that threads hold in registers."""

    rows: int
    columns: int
    row: int
    column: int


def view(x: Tensor, swap: bool) -> View:
    """Sizes and strides of the two axes, exchanged if ``swap``."""
    each = View(x.shape[2], x.shape[3], x.stride(2), x.stride(3))
    return View(each.columns, each.rows, each.column, each.row) if swap else each


def swaps(kernel: tuple[int, int]) -> bool:
    """Whether a channels-last kernel is better seen lying: tall, and too narrow to reuse loads."""
    return kernel[0] > kernel[1] and kernel[1] < 5


def taps_at_once(length: int, stride: int = 1) -> int:
    """Taps of one axis in registers; ``stride`` where only every so many meet (see phases)."""
    length = cdiv(length, stride)
    return length if length <= LONGEST else BLOCK


def least_padded(size: int, choices: tuple[int, ...]) -> int:
    """The choice whose multiples cover ``size`` with least waste, the first of equals."""
    return min(choices, key=lambda each: cdiv(size, each) * each)


def vector(*numbers: int) -> int:
    """Elements that one access may take: the power of two up to 8 that divides all numbers."""
    return math.gcd(8, *numbers)


def arranged(weight: Tensor, programs: int) -> Tensor:
    """``weight`` with channels contiguous where enough programs profit from that."""
    if programs < REARRANGED or weight.stride(0) == 1:
        return weight
    return weight.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of image, row and column."""
    return x.stride(0), x.stride(2), x.stride(3)


def lanes_plain(columns: int, channels: int, elements: int) -> tuple[int, int]:
    """Columns and channels of the ``elements`` that a warp holds of every row of a plain map."""
    width = min(least_padded(columns, (elements, elements // 2, 16)), max(8, power_of_2(columns)))
    return width, min(elements // width, power_of_2(channels))


def tap_block(kernel: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns of equal blocks of up to ``most`` taps, whole kernel rows if they fit."""
    columns = taps_at_once(kernel[1])
    rows = min(kernel[0], max(1, most // columns))
    return cdiv(kernel[0], cdiv(kernel[0], rows)), columns


def _constant(step: int, swap: bool) -> int:
    """A pixel stride as a constant: only that of the channels axis is the same for all images."""
    return 0 if swap else step


# ---------------------------------------------------------------------------- launchers


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: tuple[int, int],
    last: bool,
    transposed: bool,
) -> None:
    """Fill ``y`` with the convolution of ``x``, or with the gradient of its input ``y``."""
    n, c, h, w = y.shape
    phases = stride[0] * stride[1] if transposed else 1
    size = (cdiv(h, stride[0]), cdiv(w, stride[1])) if transposed else (h, w)
    launcher = _convolve_last if last else _convolve_plain
    launcher(x, weight, bias, y, size, stride, phases, transposed)


def _convolve_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    size: tuple[int, int],
    stride: tuple[int, int],
    phases: int,
    transposed: bool,
) -> None:
    n, c = y.shape[:2]
    kernel = tuple(weight.shape[2:])
    swap = swaps(kernel)
    source, target = view(x, swap), view(y, swap)
    if swap:
        size, kernel, stride = size[::-1], kernel[::-1], stride[::-1]
    wide = not swap and (transposed or stride[1] == 1)
    strips = (14, 7) if wide else (7,)

    def run(channels: int, strip: int) -> None:
        programs = n * cdiv(c, channels) * cdiv(size[0], 128 // channels) * cdiv(size[1], strip)
        taps = arranged(weight, programs)
        steps = (taps.stride(2), taps.stride(3))
        launch(
            convolve_last,
            (programs, phases),
            x,
            taps,
            bias,
            y,
            c,
            source.rows,
            source.columns,
            target.rows,
            target.columns,
            x.stride(0),
            source.row,
            source.column,
            y.stride(0),
            target.row,
            target.column,
            *(steps[::-1] if swap else steps),
            taps.stride(0),
            *kernel,
            STRIDE_ROW=stride[0],
            STRIDE_COLUMN=stride[1],
            TRANSPOSED=transposed,
            X_COLUMN=_constant(source.column, swap),
            Y_COLUMN=_constant(target.column, swap),
            TAPS=taps_at_once(kernel[1], stride[1] if transposed else 1),
            COLUMNS=strip,
            ROWS=128 // channels,
            CHANNELS=channels,
            VECTOR=vector(c, *strides(x), *strides(y)),
            num_warps=1,
            maxnreg=REGISTERS,
        )

    configured(
        ('convolve_last', x.dtype, kernel, stride, transposed, *buckets(n * c, *size)),
        dict(channels=least_padded(c, (64, 32, 16)), strip=least_padded(size[1], strips)),
        [dict(channels=a, strip=b) for a in (64, 32, 16) for b in strips],
        run,
    )


def _convolve_plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    size: tuple[int, int],
    stride: tuple[int, int],
    phases: int,
    transposed: bool,
) -> None:
    n, c = y.shape[:2]
    stacks = (14, 7) if transposed or stride[0] == 1 else (7,)

    def run(width: int, planes: int, stack: int) -> None:
        programs = n * cdiv(c, planes) * cdiv(size[0], stack) * cdiv(size[1], width)
        launch(
            convolve_plain,
            (programs, phases),
            x,
            weight,
            bias,
            y,
            c,
            *x.shape[2:],
            *y.shape[2:],
            *x.stride()[:3],
            *y.stride()[:3],
            weight.stride(2),
            weight.stride(3),
            weight.stride(0),
            *weight.shape[2:],
            STRIDE_ROW=stride[0],
            STRIDE_COLUMN=stride[1],
            TRANSPOSED=transposed,
            TAPS=taps_at_once(weight.shape[2], stride[0] if transposed else 1),
            ROWS=stack,
            WIDTH=width,
            PLANES=planes,
            num_warps=1,
        )

    width, planes = lanes_plain(size[1], c, 64)
    configured(
        (
            'convolve_plain',
            x.dtype,
            tuple(weight.shape[2:]),
            stride,
            transposed,
            *buckets(n * c, *size),
        ),
        dict(width=width, planes=planes, stack=least_padded(size[0], stacks)),
        [
            dict(width=a, planes=b, stack=each)
            for a, b in ((64, 1), (32, 2), (32, 1), (16, 4))
            for each in stacks
        ],
        run,
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """`depthwise.Route.forward`."""
    n, c, h, w = x.shape
    last = channels_last(x)
    y = torch.empty(
        (n, c, cdiv(h, stride[0]), cdiv(w, stride[1])),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    _convolve(x, weight, bias, y, stride, last, transposed=False)
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], mask: Sequence[bool]
) -> list[Tensor | None]:
    """`depthwise.Route.backward`."""
    results: list[Tensor | None] = [None, None, None]
    if mask[0]:
        results[0] = _input_gradient(grad, weight, x, stride)
    if mask[1] or mask[2]:
        results[1:] = _weight_gradient(grad, x, tuple(weight.shape[2:]), stride, mask[2])
    return results


def _input_gradient(grad: Tensor, weight: Tensor, x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Gradient of ``x``, of which only shape, type and layout count."""
    last = channels_last(x)
    grad_x = torch.empty(
        x.shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    _convolve(grad, weight, None, grad_x, stride, last, transposed=True)
    return grad_x


def _weight_gradient(
    grad: Tensor, x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], wants_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight (C, 1, kh, kw) and bias (C,) or None, in float32."""
    c = x.shape[1]
    last = channels_last(x)
    swap = last and swaps(kernel)
    partial = (_tap_sums_last if last else _tap_sums_plain)(
        grad, x, kernel, stride, swap, wants_bias
    )
    grad_weight = x.new_empty((c, 1, *kernel), dtype=torch.float32)
    grad_bias = x.new_empty(c, dtype=torch.float32) if wants_bias else None
    add_up(partial, grad_weight, grad_bias, kernel, swap)
    return grad_weight, grad_bias


def add_up(
    partial: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    kernel: tuple[int, int],
    swap: bool,
) -> None:
    """Sum of partial gradients (splits, taps + 1, C) to (C, 1, kh, kw) and (C,)."""
    parts, taps, c = partial.shape
    rows, columns = (1, kernel[1]) if swap else (kernel[1], 1)
    launch(
        reduce_taps,
        (cdiv(taps * c, 32),),
        partial,
        grad_weight,
        grad_bias,
        parts,
        c,
        *(kernel[::-1] if swap else kernel),
        rows,
        columns,
        SPLITS=32,
        BLOCK=32,
        num_warps=4,
    )


def _tap_sums_last(
    grad: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    swap: bool,
    wants_bias: bool,
) -> Tensor:
    n, c = x.shape[:2]
    source, gradient = view(x, swap), view(grad, swap)
    if swap:
        kernel, stride = kernel[::-1], stride[::-1]
    tap_rows, tap_columns = tap_block(kernel, TAP_SUMS)
    tap_blocks = cdiv(kernel[0], tap_rows) * cdiv(kernel[1], tap_columns)
    channels = least_padded(c, (64, 32, 16))
    warps = 4 if n * gradient.rows >= 64 else 1
    rows = warps * 128 // channels
    programs = cdiv(c, channels) * tap_blocks
    parts = splits(n * gradient.rows, programs, 2 * rows)
    partial = x.new_empty((parts, kernel[0] * kernel[1] + 1, c), dtype=torch.float32)
    launch(
        tap_sums_last,
        (programs, parts),
        x,
        grad,
        partial,
        n,
        c,
        source.rows,
        source.columns,
        gradient.rows,
        gradient.columns,
        x.stride(0),
        source.row,
        source.column,
        grad.stride(0),
        gradient.row,
        gradient.column,
        *kernel,
        STRIDE_ROW=stride[0],
        STRIDE_COLUMN=stride[1],
        X_COLUMN=_constant(source.column, swap),
        G_COLUMN=_constant(gradient.column, swap),
        TAP_ROWS=tap_rows,
        TAP_COLUMNS=tap_columns,
        COLUMNS=7 if stride[1] == 1 else 4,  # wider windows take registers
        ROWS=rows,
        CHANNELS=channels,
        VECTOR=vector(c, *strides(x), *strides(grad)),
        BIAS=wants_bias,
        num_warps=warps,
    )
    return partial


def _tap_sums_plain(
    grad: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    swap: bool,
    wants_bias: bool,
) -> Tensor:
    n, c = x.shape[:2]
    tap_columns, tap_rows = tap_block(kernel[::-1], TAP_SUMS_PLAIN)
    tap_blocks = cdiv(kernel[0], tap_rows) * cdiv(kernel[1], tap_columns)
    width, planes = lanes_plain(grad.shape[3], c, 32)
    stack = 7
    programs = cdiv(c, planes) * tap_blocks
    parts = splits(n * cdiv(grad.shape[2], stack), programs, 1)
    partial = x.new_empty((parts, kernel[0] * kernel[1] + 1, c), dtype=torch.float32)
    launch(
        tap_sums_plain,
        (programs, parts),
        x,
        grad,
        partial,
        n,
        c,
        *x.shape[2:],
        *grad.shape[2:],
        *x.stride()[:3],
        *grad.stride()[:3],
        *kernel,
        STRIDE_ROW=stride[0],
        STRIDE_COLUMN=stride[1],
        TAP_ROWS=tap_rows,
        TAP_COLUMNS=tap_columns,
        ROWS=stack,
        WIDTH=width,
        PLANES=planes,
        BIAS=wants_bias,
        num_warps=1,
    )
    return partial
