"""Kernels of `triton_toeplitz`, which describes them."""

from __future__ import annotations

import triton.language as tl

from mmlk.ops.triton.runtime import INTERPRETED, jit

UPCAST = tl.constexpr(INTERPRETED)
"""The interpreter multiplies the bit patterns of bfloat16; compiled code has no such step."""


@jit(do_not_specialize=('row', 'offsets', 'kernels', 'strides'))
def tap_vectors(
    table, weights, row, offsets, kernels, strides, FLIP: tl.constexpr, BLOCK: tl.constexpr
):
    """Runs of 8 adjacent taps: ``table[c][kh, e, i] = weight[c, kh, e - 7 + i]``, 0 outside.

    A channel has ``row`` runs, those of kernel b from ``offsets[b]`` on.
    """
    c = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for b in tl.static_range(len(weights)):
        if tl.program_id(2) == b:
            rows, columns = kernels[b]
            kh = t // (8 * (columns + 7))
            kw = t // 8 % (columns + 7) + t % 8 - 7
            ok = (kh < rows) & (kw >= 0) & (kw < columns)
            from_h, from_w = kh, kw
            if FLIP:
                from_h, from_w = rows - 1 - kh, columns - 1 - kw
            value = tl.load(
                weights[b] + c * strides[b][0] + from_h * strides[b][1] + from_w * strides[b][2],
                mask=ok,
                other=0.0,
            )
            tl.store(
                table + (c * row + offsets[b]) * 8 + t,
                value.to(table.dtype.element_ty),
                mask=kh < rows,
            )


@jit
def _window(start, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Row, column and column's run of 8 of SIZE window elements from run ``start`` on."""
    run = start + tl.arange(0, SIZE) // 8
    left = run % (WIDTH // 8) * 8
    return run // (WIDTH // 8), left + tl.arange(0, SIZE) % 8, left


@jit
def _multiply(a, b, acc, PRECISION: tl.constexpr):
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@jit
def _accumulate(
    acc,
    plane,
    taps,
    n,
    top,
    left,
    top_first,
    top_last,
    height,
    width,
    image,
    row,
    kh,
    kw,
    WIDTH: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the product of the windows around blocks at (``top``, ``left``) with a Toeplitz matrix."""
    VECTOR_OF_TABLE: tl.constexpr = 64 // taps.dtype.element_ty.primitive_bitwidth
    o = tl.arange(0, ROWS * COLUMNS)
    out_h, out_w = o // COLUMNS, o % COLUMNS
    corner_h, corner_w = top - kh // 2, left - MARGIN
    corner = plane + n * image + (corner_h * row + corner_w)
    low = tl.maximum(0, kh // 2 - top_last)
    high = tl.minimum(kh + ROWS - 1, height + kh // 2 - top_first)
    for start in range(low * (WIDTH // 8), high * (WIDTH // 8), BLOCK_K // 8):
        d, v, first = _window(start, BLOCK_K, WIDTH)
        h, w = corner_h[:, None] + d[None, :], corner_w[:, None] + v[None, :]
        window = tl.load(
            corner[:, None] + (d * row + v)[None, :],
            mask=(h >= 0) & (h < height) & (w >= 0) & (w < width),
            other=0.0,
        )
        tap_h = d[:, None] - out_h[None, :]
        run = first[:, None] + (7 - MARGIN + kw // 2 - out_w)[None, :]
        piece = taps + (tap_h * (kw + 7) + run) * 8 + (tl.arange(0, BLOCK_K) % 8)[:, None]
        # Copies of 8 bytes pass through L1, those of 16 do not. L1 holds the whole table, of which every
        # step reads 16 KB: half of what it would read from L2, for a third more instructions.
        toeplitz = tl.load(
            tl.max_contiguous(piece, [VECTOR_OF_TABLE, 1]),
            mask=(tap_h >= 0) & (tap_h < kh) & (run >= 0) & (run < kw + 7),
            other=0.0,
        )
        acc = _multiply(window, toeplitz, acc, PRECISION)
    return acc


@jit
def _write(
    target,
    value,
    n,
    c,
    channels,
    height,
    columns,
    top,
    left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o = tl.arange(0, ROWS * COLUMNS)
    out_h, out_w = o // COLUMNS, o % COLUMNS
    corner = target + (n * channels + c) * height * columns + (top * columns + left)
    tl.store(
        corner[:, None] + (out_h * columns + out_w)[None, :],
        value.to(target.dtype.element_ty),
        mask=(out_h[None, :] < (height - top)[:, None])
        & (out_w[None, :] < (columns - left)[:, None]),
    )


@jit(
    do_not_specialize=(
        'batch',
        'channels',
        'height',
        'widths',
        'strides',
        'out_width',
        'columns',
        'row',
        'offsets',
        'kernels',
    )
)
def convolve(
    table,
    inputs,
    bias,
    outputs,
    batch,
    channels,
    height,
    widths,
    strides,
    out_width,
    columns,
    row,
    offsets,
    kernels,
    WINDOWS: tl.constexpr,
    MARGINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    OUT_VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_M blocks of one channel: one input's output, or the one output of all inputs.

    Programs of the same blocks are neighbours, so that outputs of one map share what they read.
    """
    c = tl.program_id(1).to(tl.int64)
    branch = tl.program_id(0) % len(outputs)
    blocks_h, blocks_w = tl.cdiv(height, ROWS), tl.cdiv(columns, COLUMNS)
    first = tl.program_id(0) // len(outputs) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    n = (m // blocks_w % batch).to(tl.int64)
    block_h, left = m // (batch * blocks_w), m % blocks_w * COLUMNS
    top = tl.where(block_h < blocks_h, block_h * ROWS, height + 4096)
    top_first = first // (batch * blocks_w) * ROWS
    top_last = tl.minimum((first + BLOCK_M - 1) // (batch * blocks_w), blocks_h - 1) * ROWS
    acc = tl.zeros((BLOCK_M, ROWS * COLUMNS), tl.float32)
    if len(outputs) == 1 and bias is not None:
        acc += tl.load(bias + c).to(tl.float32)
    for b in tl.static_range(len(inputs)):
        if len(outputs) == 1:
            acc = _accumulate(
                acc,
                inputs[b] + c * (strides[b][1] * VECTOR),
                table + (c * row + offsets[b]) * 8,
                n,
                top,
                left,
                top_first,
                top_last,
                height,
                widths[b] * VECTOR,
                strides[b][0] * VECTOR,
                strides[b][2] * VECTOR,
                kernels[b][0],
                kernels[b][1],
                WINDOWS[b],
                MARGINS[b],
                ROWS,
                COLUMNS,
                BLOCK_K,
                PRECISION,
            )
        elif branch == b:
            part = _accumulate(
                acc,
                inputs[b] + c * (strides[b][1] * VECTOR),
                table + (c * row + offsets[b]) * 8,
                n,
                top,
                left,
                top_first,
                top_last,
                height,
                widths[b] * VECTOR,
                strides[b][0] * VECTOR,
                strides[b][2] * VECTOR,
                kernels[b][0],
                kernels[b][1],
                WINDOWS[b],
                MARGINS[b],
                ROWS,
                COLUMNS,
                BLOCK_K,
                PRECISION,
            )
            _write(
                outputs[b],
                part,
                n,
                c,
                channels,
                height,
                out_width * OUT_VECTOR,
                top,
                left,
                ROWS,
                COLUMNS,
            )
    if len(outputs) == 1:
        _write(
            outputs[0],
            acc,
            n,
            c,
            channels,
            height,
            out_width * OUT_VECTOR,
            top,
            left,
            ROWS,
            COLUMNS,
        )


@jit(
    do_not_specialize=(
        'batch',
        'height',
        'columns',
        'widths',
        'strides',
        'grad_widths',
        'grad_strides',
        'kernels',
        'taps',
        'total',
        'parts',
        'firsts',
    )
)
def correlate(
    partial,
    inputs,
    grads,
    batch,
    height,
    columns,
    widths,
    strides,
    grad_widths,
    grad_strides,
    kernels,
    taps,
    total,
    parts,
    firsts,
    WINDOWS: tl.constexpr,
    MARGINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP_H: tl.constexpr,
    GROUP_N: tl.constexpr,
    GROUP_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_K window elements of one kernel against all gradients of a part of the blocks.

    A step takes GROUP_H x GROUP_N x GROUP_W neighbouring blocks, so that its addresses differ from
    those of another step by one number only.
    """
    c, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    groups_h = tl.cdiv(tl.cdiv(height, ROWS), GROUP_H)
    groups_n = tl.cdiv(batch, GROUP_N)
    groups_w = tl.cdiv(tl.cdiv(columns, COLUMNS), GROUP_W)
    m = tl.arange(0, GROUP_H * GROUP_N * GROUP_W)
    m_h, m_n, m_w = (m // (GROUP_N * GROUP_W) * ROWS, m // GROUP_W % GROUP_N, m % GROUP_W * COLUMNS)
    o = tl.arange(0, ROWS * COLUMNS)
    out_h, out_w = o // COLUMNS, o % COLUMNS
    for b in tl.static_range(len(inputs)):
        if (tl.program_id(0) >= firsts[b]) & (tl.program_id(0) < firsts[b + 1]):
            kh, kw = kernels[b]
            width, grad_width = widths[b] * VECTOR, grad_widths[b] * VECTOR
            image, row = strides[b][0] * VECTOR, strides[b][2] * VECTOR
            grad_image, grad_row = grad_strides[b][0] * VECTOR, grad_strides[b][2] * VECTOR
            start = (tl.program_id(0) - firsts[b]) * (BLOCK_K // 8)
            d, v, left = _window(start, BLOCK_K, WINDOWS[b])
            x = inputs[b] + c * (strides[b][1] * VECTOR) + m_n.to(tl.int64) * image
            g = grads[b] + c * (grad_strides[b][1] * VECTOR) + m_n.to(tl.int64) * grad_image
            x_at, g_at = (m_h - kh // 2) * row + (m_w - MARGINS[b]), m_h * grad_row + m_w
            # Only groups of rows whose windows meet the map in these rows of the window.
            d_first, d_last = (
                start // (WINDOWS[b] // 8),
                (start + BLOCK_K // 8 - 1) // (WINDOWS[b] // 8),
            )
            low = tl.maximum(0, kh // 2 - d_last) // (ROWS * GROUP_H)
            high = tl.minimum(
                groups_h, tl.cdiv(tl.maximum(0, height + kh // 2 - d_first), ROWS * GROUP_H)
            )
            each = tl.cdiv(groups_h * groups_n * groups_w, parts)
            begin = tl.maximum(part * each, low * groups_n * groups_w)
            end = tl.minimum((part + 1) * each, high * groups_n * groups_w)
            acc = tl.zeros((BLOCK_K, ROWS * COLUMNS), tl.float32)
            first_w = begin % groups_w * (GROUP_W * COLUMNS)
            first_n = begin // groups_w % groups_n * GROUP_N
            first_h = begin // (groups_w * groups_n) * (GROUP_H * ROWS)
            for _ in range(begin, end):
                h = (m_h + first_h)[:, None] + out_h[None, :]
                w = (m_w + first_w)[:, None] + out_w[None, :]
                move = first_n.to(tl.int64) * grad_image + (first_h * grad_row + first_w)
                grad = tl.load(
                    (g + move + g_at)[:, None] + (out_h * grad_row + out_w)[None, :],
                    other=0.0,
                    mask=(m_n < batch - first_n)[:, None] & (h < height) & (w < grad_width),
                )
                h = (m_h + first_h - kh // 2)[None, :] + d[:, None]
                w = (m_w + first_w - MARGINS[b])[None, :] + v[:, None]
                move = first_n.to(tl.int64) * image + (first_h * row + first_w)
                window = tl.load(
                    (x + move + x_at)[None, :] + (d * row + v)[:, None],
                    other=0.0,
                    mask=(m_n < batch - first_n)[None, :]
                    & (h >= 0)
                    & (h < height)
                    & (w >= 0)
                    & (w < width),
                )
                acc = _multiply(window, grad, acc, PRECISION)
                # The next group: counted on, since divisions take a good part of a step's instructions.
                first_w += GROUP_W * COLUMNS
                first_n = tl.where(first_w >= columns, first_n + GROUP_N, first_n)
                first_w = tl.where(first_w >= columns, 0, first_w)
                first_h = tl.where(first_n >= batch, first_h + GROUP_H * ROWS, first_h)
                first_n = tl.where(first_n >= batch, 0, first_n)
            tap_h = d[:, None] - out_h[None, :]
            tap_w = v[:, None] + (kw // 2 - MARGINS[b] - out_w)[None, :]
            to = (c * parts + part) * (ROWS * COLUMNS * total) + taps[b]
            tl.store(
                partial + to + o[None, :] * total + tap_h * kw + tap_w,
                acc,
                mask=(tap_h >= 0) & (tap_h < kh) & (tap_w >= 0) & (tap_w < kw),
            )


@jit(do_not_specialize=('terms', 'total', 'taps', 'kernels', 'sizes'))
def fold(
    partial, outputs, terms, total, taps, kernels, sizes, BLOCK: tl.constexpr, TERMS: tl.constexpr
):
    """Gradient of BLOCK taps of a kernel of ``sizes``, of which the map can reach ``kernels``."""
    c = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for b in tl.static_range(len(outputs)):
        if tl.program_id(2) == b:
            kh = t // sizes[b][1] - (sizes[b][0] - kernels[b][0]) // 2
            kw = t % sizes[b][1] - (sizes[b][1] - kernels[b][1]) // 2
            ok = (kh >= 0) & (kh < kernels[b][0]) & (kw >= 0) & (kw < kernels[b][1])
            source = partial + c * terms * total + taps[b] + kh * kernels[b][1] + kw
            acc = tl.zeros((TERMS, BLOCK), tl.float32)
            for term in range(0, terms, TERMS):
                index = term + tl.arange(0, TERMS)
                acc += tl.load(
                    source[None, :] + (index * total)[:, None],
                    mask=(index < terms)[:, None] & ok[None, :],
                    other=0.0,
                )
            size = sizes[b][0] * sizes[b][1]
            tl.store(
                outputs[b] + c * size + t,
                tl.sum(acc, 0).to(outputs[b].dtype.element_ty),
                mask=t < size,
            )
