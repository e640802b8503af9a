"""Register tiles of depthwise convolutions on CUDA cores: device functions that kernels call.

Two layouts, two directions of work. A map is seen as rows and columns of pixels with strides of
their own, so a tall kernel on a channels-last map is a wide one with the axes exchanged.

``*_last`` (channels contiguous): lanes hold channels and some rows, every thread a strip of
COLUMNS outputs. A row of the input is loaded once per kernel row for all outputs of the strip:
``COLUMNS + TAPS - 1`` loads for ``COLUMNS * TAPS`` multiply-adds of each channel.

``*_plain`` (columns contiguous): lanes hold columns and some channels, every thread ROWS outputs one
above the other. A shifted column is loaded once per kernel column for all outputs of the stack:
``ROWS + TAPS - 1`` loads for ``ROWS * TAPS`` multiply-adds.

The axis in registers is cut into blocks of TAPS taps, whose count is a run-time number as is the
other side of the kernel: code size does not grow with the kernel. Everything accumulates in float32.
Sums run over taps, rows and columns in an order that only constants and sizes determine.

Pixel strides of channels-last maps are constants: they are those of the layer, not of the image,
and turn the offset of every load into an immediate.
"""

from __future__ import annotations

import triton.language as tl

from mmlk.ops.triton.runtime import jit


@jit
def within(index, size):
    """Whether 0 <= index < size, in one comparison."""
    return index.to(tl.uint32) < size.to(tl.uint32)


@jit
def correlate_last(
    x,
    taps,
    bias,
    y,
    c,
    c_ok,
    row0,
    column0,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_row,
    x_column,
    y_row,
    y_column,
    tap_row,
    tap_column,
    tap_channel,
    kernel_rows,
    kernel_columns,
    origin_row,
    origin_column,
    STEP_ROW: tl.constexpr,
    STEP_COLUMN: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Outputs (row0 .. + ROWS, column0 .. + COLUMNS) of the channels ``c`` of one image.

    Output (r, q) sums tap (a, b) times input (r * STEP_ROW + origin_row + a, q * STEP_COLUMN +
    origin_column + b). Pointers are those of the image; ``bias`` may be None.
    """
    rows = row0 + tl.arange(0, ROWS)
    acc = ()
    for _ in tl.static_range(COLUMNS):
        acc = acc + (tl.zeros((ROWS, CHANNELS), tl.float32),)
    for a in range(0, kernel_rows):
        row = rows * STEP_ROW + (origin_row + a)
        row_ok = within(row, in_rows)[:, None] & c_ok[None, :]
        for first in range(0, kernel_columns, TAPS):
            weights = ()
            for b in tl.static_range(TAPS):
                weight = tl.load(
                    taps + (a * tap_row + (first + b) * tap_column) + c * tap_channel,
                    mask=c_ok & (first + b < kernel_columns),
                    other=0.0,
                )
                weights = weights + (weight.to(tl.float32)[None, :],)
            start = column0 * STEP_COLUMN + origin_column + first
            source = x + (row * x_row + start * x_column)[:, None] + c[None, :]
            for j in tl.static_range((COLUMNS - 1) * STEP_COLUMN + TAPS):
                value = tl.load(
                    source + j * x_column, mask=row_ok & within(start + j, in_columns), other=0.0
                )
                value = value.to(tl.float32)
                for q in tl.static_range(COLUMNS):
                    if j - q * STEP_COLUMN >= 0 and j - q * STEP_COLUMN < TAPS:
                        acc = (
                            acc[:q]
                            + (acc[q] + value * weights[j - q * STEP_COLUMN],)
                            + acc[q + 1 :]
                        )
    offset = tl.zeros((CHANNELS,), tl.float32)
    if bias is not None:
        offset = tl.load(bias + c, mask=c_ok, other=0.0).to(tl.float32)
    target = y + (rows * y_row + column0 * y_column)[:, None] + c[None, :]
    ok = (rows < out_rows)[:, None] & c_ok[None, :]
    for q in tl.static_range(COLUMNS):
        tl.store(
            target + q * y_column,
            (acc[q] + offset[None, :]).to(y.dtype.element_ty),
            mask=ok & (column0 + q < out_columns),
        )


@jit
def correlate_plain(
    x,
    taps,
    bias,
    y,
    c,
    c_ok,
    row0,
    column0,
    in_rows,
    in_columns,
    out_rows,
    out_columns,
    x_channel,
    x_row,
    y_channel,
    y_row,
    y_column,
    tap_row,
    tap_column,
    tap_channel,
    kernel_rows,
    kernel_columns,
    origin_row,
    origin_column,
    STEP_ROW: tl.constexpr,
    STEP_COLUMN: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
):
    """As `correlate_last` for ``c`` of PLANES channels whose columns are contiguous in ``x``."""
    columns = column0 + tl.arange(0, WIDTH)
    acc = ()
    for _ in tl.static_range(ROWS):
        acc = acc + (tl.zeros((PLANES, WIDTH), tl.float32),)
    for first in range(0, kernel_rows, TAPS):
        start = row0 * STEP_ROW + origin_row + first
        for b in range(0, kernel_columns):
            weights = ()
            for a in tl.static_range(TAPS):
                weight = tl.load(
                    taps + ((first + a) * tap_row + b * tap_column) + c * tap_channel,
                    mask=c_ok & (first + a < kernel_rows),
                    other=0.0,
                )
                weights = weights + (weight.to(tl.float32)[:, None],)
            column = columns * STEP_COLUMN + (origin_column + b)
            column_ok = c_ok[:, None] & within(column, in_columns)[None, :]
            source = x + (c * x_channel)[:, None] + column[None, :]
            for i in tl.static_range((ROWS - 1) * STEP_ROW + TAPS):
                value = tl.load(
                    source + (start + i) * x_row,
                    mask=column_ok & within(start + i, in_rows),
                    other=0.0,
                )
                value = value.to(tl.float32)
                for r in tl.static_range(ROWS):
                    if i - r * STEP_ROW >= 0 and i - r * STEP_ROW < TAPS:
                        acc = acc[:r] + (acc[r] + value * weights[i - r * STEP_ROW],) + acc[r + 1 :]
    offset = tl.zeros((PLANES,), tl.float32)
    if bias is not None:
        offset = tl.load(bias + c, mask=c_ok, other=0.0).to(tl.float32)
    target = y + (c * y_channel)[:, None] + columns[None, :] * y_column
    ok = c_ok[:, None] & (columns < out_columns)[None, :]
    for r in tl.static_range(ROWS):
        tl.store(
            target + (row0 + r) * y_row,
            (acc[r] + offset[:, None]).to(y.dtype.element_ty),
            mask=ok & (row0 + r < out_rows),
        )


@jit
def reversed_taps(phase, kernel, STRIDE: tl.constexpr):
    """The taps that reach inputs ``STRIDE * t + phase`` of a convolution, last one first.

    Returns:
        Their number, the last one's index, and the output that it takes input ``phase`` from.
    """
    first = (phase + kernel // 2) % STRIDE
    count = (kernel - first + STRIDE - 1) // STRIDE
    return (
        count,
        first + STRIDE * (count - 1),
        (phase + kernel // 2 - first) // STRIDE - (count - 1),
    )


@jit
def tap_gradients_last(
    x,
    g,
    partial,
    c,
    c_ok,
    begin,
    end,
    tap_row0,
    tap_column0,
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
    channels,
    STEP_ROW: tl.constexpr,
    STEP_COLUMN: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Sums of one block of taps over the output rows begin .. end, counted through all images.

    Tap (a, b) of channel c goes to ``partial[(a * kernel_columns + b) * channels + c]``, the sum of
    ``g`` behind the last tap.
    """
    acc = ()
    for _ in tl.static_range(TAP_ROWS * TAP_COLUMNS):
        acc = acc + (tl.zeros((ROWS, CHANNELS), tl.float32),)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = tap_column0 - kernel_columns // 2
    for block in range(begin, end, ROWS):
        flat = block + tl.arange(0, ROWS)
        n = (flat // out_rows).to(tl.int64)
        row = flat % out_rows
        g_ok = (flat < end)[:, None] & c_ok[None, :]
        g_rows = g + (n * g_image + row * g_row)[:, None] + c[None, :]
        row = row * STEP_ROW + (tap_row0 - kernel_rows // 2)
        x_rows = x + (n * x_image + row * x_row)[:, None] + c[None, :]
        for column0 in range(0, out_columns, COLUMNS):
            values = ()
            for q in tl.static_range(COLUMNS):
                value = tl.load(
                    g_rows + column0 * g_column + q * g_column,
                    mask=g_ok & (column0 + q < out_columns),
                    other=0.0,
                )
                values = values + (value.to(tl.float32),)
                if BIAS:
                    total += value.to(tl.float32)
            column = column0 * STEP_COLUMN + start
            for a in tl.static_range(TAP_ROWS):
                row_ok = g_ok & within(row + a, in_rows)[:, None]
                source = x_rows + a * x_row + column * x_column
                for j in tl.static_range((COLUMNS - 1) * STEP_COLUMN + TAP_COLUMNS):
                    value = tl.load(
                        source + j * x_column,
                        mask=row_ok & within(column + j, in_columns),
                        other=0.0,
                    )
                    value = value.to(tl.float32)
                    for b in tl.static_range(TAP_COLUMNS):
                        if (
                            j >= b
                            and (j - b) % STEP_COLUMN == 0
                            and (j - b) // STEP_COLUMN < COLUMNS
                        ):
                            acc = (
                                acc[: a * TAP_COLUMNS + b]
                                + (
                                    acc[a * TAP_COLUMNS + b]
                                    + values[(j - b) // STEP_COLUMN] * value,
                                )
                                + acc[a * TAP_COLUMNS + b + 1 :]
                            )
    for a in tl.static_range(TAP_ROWS):
        for b in tl.static_range(TAP_COLUMNS):
            t = (tap_row0 + a) * kernel_columns + tap_column0 + b
            ok = (tap_row0 + a < kernel_rows) & (tap_column0 + b < kernel_columns)
            tl.store(
                partial + t * channels + c, tl.sum(acc[a * TAP_COLUMNS + b], 0), mask=c_ok & ok
            )
    if BIAS:
        if tap_row0 + tap_column0 == 0:
            tl.store(
                partial + kernel_rows * kernel_columns * channels + c, tl.sum(total, 0), mask=c_ok
            )


@jit
def tap_gradients_plain(
    x,
    g,
    partial,
    c,
    c_ok,
    begin,
    end,
    tap_row0,
    tap_column0,
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
    STEP_ROW: tl.constexpr,
    STEP_COLUMN: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    BIAS: tl.constexpr,
):
    """As `tap_gradients_last`; begin and end count stacks of ROWS output rows."""
    acc = ()
    for _ in tl.static_range(TAP_ROWS * TAP_COLUMNS):
        acc = acc + (tl.zeros((PLANES, WIDTH), tl.float32),)
    total = tl.zeros((PLANES, WIDTH), tl.float32)
    stacks = tl.cdiv(out_rows, ROWS)
    for stack in range(begin, end):
        n = (stack // stacks).to(tl.int64)
        row0 = stack % stacks * ROWS
        image = x + n * x_image
        gradient = g + n * g_image
        start = row0 * STEP_ROW + tap_row0 - kernel_rows // 2
        for column0 in range(0, out_columns, WIDTH):
            columns = column0 + tl.arange(0, WIDTH)
            g_ok = c_ok[:, None] & (columns < out_columns)[None, :]
            source = gradient + (c * g_channel)[:, None] + columns[None, :]
            values = ()
            for r in tl.static_range(ROWS):
                value = tl.load(
                    source + (row0 + r) * g_row, mask=g_ok & (row0 + r < out_rows), other=0.0
                ).to(tl.float32)
                values = values + (value,)
                if BIAS:
                    total += value
            for b in tl.static_range(TAP_COLUMNS):
                column = columns * STEP_COLUMN + (tap_column0 + b - kernel_columns // 2)
                column_ok = g_ok & within(column, in_columns)[None, :]
                shifted = image + (c * x_channel)[:, None] + column[None, :]
                for i in tl.static_range((ROWS - 1) * STEP_ROW + TAP_ROWS):
                    value = tl.load(
                        shifted + (start + i) * x_row,
                        mask=column_ok & within(start + i, in_rows),
                        other=0.0,
                    )
                    value = value.to(tl.float32)
                    for a in tl.static_range(TAP_ROWS):
                        if i >= a and (i - a) % STEP_ROW == 0 and (i - a) // STEP_ROW < ROWS:
                            acc = (
                                acc[: a * TAP_COLUMNS + b]
                                + (acc[a * TAP_COLUMNS + b] + values[(i - a) // STEP_ROW] * value,)
                                + acc[a * TAP_COLUMNS + b + 1 :]
                            )
    for a in tl.static_range(TAP_ROWS):
        for b in tl.static_range(TAP_COLUMNS):
            t = (tap_row0 + a) * kernel_columns + tap_column0 + b
            ok = (tap_row0 + a < kernel_rows) & (tap_column0 + b < kernel_columns)
            tl.store(
                partial + t * channels + c, tl.sum(acc[a * TAP_COLUMNS + b], 1), mask=c_ok & ok
            )
    if BIAS:
        if tap_row0 + tap_column0 == 0:
            tl.store(
                partial + kernel_rows * kernel_columns * channels + c, tl.sum(total, 1), mask=c_ok
            )


@jit
def add_partials(partial, element, ok, splits, stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of ``splits`` rows of ``partial`` at the columns ``element``, in fixed order."""
    acc = tl.zeros((SPLITS, BLOCK), tl.float32)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        acc += tl.load(
            partial + split.to(tl.int64)[:, None] * stride + element[None, :],
            mask=(split < splits)[:, None] & ok[None, :],
            other=0.0,
        )
    return tl.sum(acc, 0)
