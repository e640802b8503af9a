"""Kernels of the Inception operator: all branches and the untouched channels in one launch.

A program has a role: to copy untouched channels, or to convolve one branch, of one tile. On
channels-last maps the roles of a tile follow each other in the grid, so the cache lines that
channels of several branches share are read from memory once. The gradient of the input is the same
kernel with reversed taps; it also adds up the partial gradients of the weights, which an earlier
launch left, in programs of their own.

The tall band works on tiles with rows and columns exchanged (see `mmlk.ops.triton.tiles`).
"""

from __future__ import annotations

import triton.language as tl

from mmlk.ops.triton.runtime import jit
from mmlk.ops.triton.tiles import (
    add_partials,
    correlate_last,
    correlate_plain,
    tap_gradients_last,
    tap_gradients_plain,
)

SIZES = ('height', 'width', 'splits', 'additions', 'images')


@jit
def add_up(
    pid,
    partial,
    grad_square,
    grad_square_bias,
    grad_wide,
    grad_wide_bias,
    grad_tall,
    grad_tall_bias,
    splits,
    branch,
    side,
    band,
    SPLITS: tl.constexpr,
):
    """Program ``pid`` of those that sum (splits, all taps and biases, branch) over the parts."""
    square, line = side * side, band + 1
    size = (square + 1 + 2 * line) * branch
    element = pid * 32 + tl.arange(0, 32)
    total = add_partials(partial, element, element < size, splits, size, SPLITS, 32)
    tap, c = element // branch, element % branch
    tl.store(grad_square + c * square + tap, total, mask=tap < square)
    tl.store(grad_square_bias + c, total, mask=tap == square)
    tap -= square + 1
    tl.store(grad_wide + c * band + tap, total, mask=(tap >= 0) & (tap < band))
    tl.store(grad_wide_bias + c, total, mask=tap == band)
    tap -= line
    tl.store(grad_tall + c * band + tap, total, mask=(tap >= 0) & (tap < band))
    tl.store(grad_tall_bias + c, total, mask=tap == band)


@jit(do_not_specialize=SIZES)
def inception_last(
    x,
    square,
    square_bias,
    wide,
    wide_bias,
    tall,
    tall_bias,
    y,
    partial,
    grad_square,
    grad_square_bias,
    grad_wide,
    grad_wide_bias,
    grad_tall,
    grad_tall_bias,
    height,
    width,
    splits,
    additions,
    channels,
    branch,
    side,
    band,
    x_image,
    x_row,
    y_image,
    y_row,
    X_COLUMN: tl.constexpr,
    Y_COLUMN: tl.constexpr,
    FLIP: tl.constexpr,
    SIDE_TAPS: tl.constexpr,
    BAND_TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COPIED: tl.constexpr,
    VECTOR: tl.constexpr,
    SPLITS: tl.constexpr,
):
    pid = tl.program_id(0)
    if partial is not None:
        if pid < additions:
            add_up(
                pid,
                partial,
                grad_square,
                grad_square_bias,
                grad_wide,
                grad_wide_bias,
                grad_tall,
                grad_tall_bias,
                splits,
                branch,
                side,
                band,
                SPLITS,
            )
            return
        pid -= additions
    kept = (channels - 3 * branch) // VECTOR * VECTOR
    copies, blocks = tl.cdiv(kept, COPIED), tl.cdiv(branch, CHANNELS)
    role, tile = pid % (copies + 3 * blocks), pid // (copies + 3 * blocks)
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, COLUMNS)
    tiles = tl.maximum(across * tl.cdiv(height, ROWS), down * tl.cdiv(width, ROWS))
    n, tile = (tile // tiles).to(tl.int64), tile % tiles
    x_row, y_row = x_row // VECTOR * VECTOR, y_row // VECTOR * VECTOR
    x += n * (x_image // VECTOR * VECTOR)
    y += n * (y_image // VECTOR * VECTOR)
    row0, column0 = tile // across * ROWS, tile % across * COLUMNS
    if role < copies:
        c = role * COPIED + tl.arange(0, COPIED)
        rows = row0 + tl.arange(0, ROWS)
        ok = (rows < height)[:, None] & (c < kept)[None, :]
        source = x + (rows * x_row + column0 * X_COLUMN)[:, None] + c[None, :]
        target = y + (rows * y_row + column0 * Y_COLUMN)[:, None] + c[None, :]
        values = ()
        for q in tl.static_range(COLUMNS):
            values = values + (tl.load(source + q * X_COLUMN, mask=ok & (column0 + q < width)),)
        for q in tl.static_range(COLUMNS):
            tl.store(target + q * Y_COLUMN, values[q], mask=ok & (column0 + q < width))
        return
    which = (role - copies) // blocks
    c = (role - copies) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    c_ok = c < branch // VECTOR * VECTOR
    first = (kept + which * branch) // VECTOR * VECTOR
    x += first
    y += first
    half, reach = -(side // 2), -(band // 2)
    if which == 0:
        correlate_last(
            x,
            square + (side * side - 1) * FLIP,
            square_bias,
            y,
            c,
            c_ok,
            row0,
            column0,
            height,
            width,
            height,
            width,
            x_row,
            X_COLUMN,
            y_row,
            Y_COLUMN,
            (1 - 2 * FLIP) * side,
            1 - 2 * FLIP,
            side * side,
            side,
            side,
            half,
            half,
            1,
            1,
            SIDE_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
        )
    elif which == 1:
        correlate_last(
            x,
            wide + (band - 1) * FLIP,
            wide_bias,
            y,
            c,
            c_ok,
            row0,
            column0,
            height,
            width,
            height,
            width,
            x_row,
            X_COLUMN,
            y_row,
            Y_COLUMN,
            0,
            1 - 2 * FLIP,
            band,
            1,
            band,
            0,
            reach,
            1,
            1,
            BAND_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
        )
    else:
        correlate_last(
            x,
            tall + (band - 1) * FLIP,
            tall_bias,
            y,
            c,
            c_ok,
            tile // down * ROWS,
            tile % down * COLUMNS,
            width,
            height,
            width,
            height,
            X_COLUMN,
            x_row,
            Y_COLUMN,
            y_row,
            0,
            1 - 2 * FLIP,
            band,
            1,
            band,
            0,
            reach,
            1,
            1,
            BAND_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
        )


@jit(do_not_specialize=SIZES)
def inception_plain(
    x,
    square,
    square_bias,
    wide,
    wide_bias,
    tall,
    tall_bias,
    y,
    partial,
    grad_square,
    grad_square_bias,
    grad_wide,
    grad_wide_bias,
    grad_tall,
    grad_tall_bias,
    height,
    width,
    splits,
    additions,
    channels,
    branch,
    side,
    band,
    x_image,
    y_image,
    FLIP: tl.constexpr,
    SIDE_TAPS: tl.constexpr,
    BAND_TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
    COPIED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """As `inception_last`; planes of channels are dense in ``x`` and ``y``."""
    pid = tl.program_id(0)
    if partial is not None:
        if pid < additions:
            add_up(
                pid,
                partial,
                grad_square,
                grad_square_bias,
                grad_wide,
                grad_wide_bias,
                grad_tall,
                grad_tall_bias,
                splits,
                branch,
                side,
                band,
                SPLITS,
            )
            return
        pid -= additions
    kept = channels - 3 * branch
    plane = height * width
    copies = tl.cdiv(kept * plane, COPIED)
    across = tl.cdiv(width, WIDTH)
    tiles, blocks = across * tl.cdiv(height, ROWS), tl.cdiv(branch, PLANES)
    roles = copies + 3 * blocks * tiles
    n, role = (pid // roles).to(tl.int64), pid % roles
    x += n * x_image
    y += n * y_image
    if role < copies:
        element = role * COPIED + tl.arange(0, COPIED)
        ok = element < kept * plane
        tl.store(y + element, tl.load(x + element, mask=ok), mask=ok)
        return
    role -= copies
    tile, block = role % tiles, role // tiles
    which = block // blocks
    c = block % blocks * PLANES + tl.arange(0, PLANES)
    c_ok = c < branch
    x += (kept + which * branch) * plane
    y += (kept + which * branch) * plane
    row0, column0 = tile // across * ROWS, tile % across * WIDTH
    half, reach = -(side // 2), -(band // 2)
    if which == 0:
        correlate_plain(
            x,
            square + (side * side - 1) * FLIP,
            square_bias,
            y,
            c,
            c_ok,
            row0,
            column0,
            height,
            width,
            height,
            width,
            plane,
            width,
            plane,
            width,
            1,
            (1 - 2 * FLIP) * side,
            1 - 2 * FLIP,
            side * side,
            side,
            side,
            half,
            half,
            1,
            1,
            SIDE_TAPS,
            ROWS,
            WIDTH,
            PLANES,
        )
    elif which == 1:
        correlate_plain(
            x,
            wide + (band - 1) * FLIP,
            wide_bias,
            y,
            c,
            c_ok,
            row0,
            column0,
            height,
            width,
            height,
            width,
            plane,
            width,
            plane,
            width,
            1,
            0,
            1 - 2 * FLIP,
            band,
            1,
            band,
            0,
            reach,
            1,
            1,
            1,
            ROWS,
            WIDTH,
            PLANES,
        )
    else:
        correlate_plain(
            x,
            tall + (band - 1) * FLIP,
            tall_bias,
            y,
            c,
            c_ok,
            row0,
            column0,
            height,
            width,
            height,
            width,
            plane,
            width,
            plane,
            width,
            1,
            1 - 2 * FLIP,
            0,
            band,
            band,
            1,
            reach,
            0,
            1,
            1,
            BAND_TAPS,
            ROWS,
            WIDTH,
            PLANES,
        )


@jit(do_not_specialize=SIZES)
def inception_taps_last(
    x,
    g,
    partial,
    images,
    height,
    width,
    channels,
    branch,
    side,
    band,
    x_image,
    x_row,
    g_image,
    g_row,
    X_COLUMN: tl.constexpr,
    G_COLUMN: tl.constexpr,
    SIDE_ROWS: tl.constexpr,
    SIDE_TAPS: tl.constexpr,
    BAND_TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Partial gradients (parts, taps and biases of all branches, branch) of weights and biases."""
    x_image, x_row = x_image // VECTOR * VECTOR, x_row // VECTOR * VECTOR
    g_image, g_row = g_image // VECTOR * VECTOR, g_row // VECTOR * VECTOR
    blocks, across = tl.cdiv(branch, CHANNELS), tl.cdiv(side, SIDE_TAPS)
    lines = tl.cdiv(band, BAND_TAPS)
    squares = tl.cdiv(side, SIDE_ROWS) * across
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    c_ok = c < branch // VECTOR * VECTOR
    role = tl.program_id(0) // blocks
    first = (channels - 3 * branch) // VECTOR * VECTOR
    partial += tl.program_id(1).to(tl.int64) * (side * side + 2 * band + 3) * branch
    if role < squares:
        part = tl.cdiv(images * height, tl.num_programs(1))
        begin = tl.program_id(1) * part
        tap_gradients_last(
            x + first,
            g + first,
            partial,
            c,
            c_ok,
            begin,
            tl.minimum(begin + part, images * height),
            role // across * SIDE_ROWS,
            role % across * SIDE_TAPS,
            height,
            width,
            height,
            width,
            x_image,
            x_row,
            X_COLUMN,
            g_image,
            g_row,
            G_COLUMN,
            side,
            side,
            branch,
            1,
            1,
            SIDE_ROWS,
            SIDE_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
            True,
        )
    elif role < squares + lines:
        first += branch // VECTOR * VECTOR
        part = tl.cdiv(images * height, tl.num_programs(1))
        begin = tl.program_id(1) * part
        tap_gradients_last(
            x + first,
            g + first,
            partial + (side * side + 1) * branch,
            c,
            c_ok,
            begin,
            tl.minimum(begin + part, images * height),
            0,
            (role - squares) * BAND_TAPS,
            height,
            width,
            height,
            width,
            x_image,
            x_row,
            X_COLUMN,
            g_image,
            g_row,
            G_COLUMN,
            1,
            band,
            branch,
            1,
            1,
            1,
            BAND_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
            True,
        )
    else:
        first += 2 * branch // VECTOR * VECTOR
        part = tl.cdiv(images * width, tl.num_programs(1))
        begin = tl.program_id(1) * part
        tap_gradients_last(
            x + first,
            g + first,
            partial + (side * side + band + 2) * branch,
            c,
            c_ok,
            begin,
            tl.minimum(begin + part, images * width),
            0,
            (role - squares - lines) * BAND_TAPS,
            width,
            height,
            width,
            height,
            x_image,
            X_COLUMN,
            x_row,
            g_image,
            G_COLUMN,
            g_row,
            1,
            band,
            branch,
            1,
            1,
            1,
            BAND_TAPS,
            COLUMNS,
            ROWS,
            CHANNELS,
            True,
        )


@jit(do_not_specialize=SIZES)
def inception_taps_plain(
    x,
    g,
    partial,
    images,
    height,
    width,
    channels,
    branch,
    side,
    band,
    x_image,
    g_image,
    SIDE_COLUMNS: tl.constexpr,
    SIDE_TAPS: tl.constexpr,
    BAND_TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLANES: tl.constexpr,
):
    """As `inception_taps_last`, on dense planes."""
    plane = height * width
    blocks, across = tl.cdiv(branch, PLANES), tl.cdiv(side, SIDE_COLUMNS)
    lines = tl.cdiv(band, BAND_TAPS)
    squares = tl.cdiv(side, SIDE_TAPS) * across
    c = tl.program_id(0) % blocks * PLANES + tl.arange(0, PLANES)
    role = tl.program_id(0) // blocks
    first = (channels - 3 * branch) * plane
    partial += tl.program_id(1).to(tl.int64) * (side * side + 2 * band + 3) * branch
    work = images * tl.cdiv(height, ROWS)
    part = tl.cdiv(work, tl.num_programs(1))
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, work)
    if role < squares:
        tap_gradients_plain(
            x + first,
            g + first,
            partial,
            c,
            c < branch,
            begin,
            end,
            role // across * SIDE_TAPS,
            role % across * SIDE_COLUMNS,
            height,
            width,
            height,
            width,
            x_image,
            plane,
            width,
            g_image,
            plane,
            width,
            side,
            side,
            branch,
            1,
            1,
            SIDE_TAPS,
            SIDE_COLUMNS,
            ROWS,
            WIDTH,
            PLANES,
            True,
        )
    elif role < squares + lines:
        first += branch * plane
        tap_gradients_plain(
            x + first,
            g + first,
            partial + (side * side + 1) * branch,
            c,
            c < branch,
            begin,
            end,
            0,
            (role - squares) * BAND_TAPS,
            height,
            width,
            height,
            width,
            x_image,
            plane,
            width,
            g_image,
            plane,
            width,
            1,
            band,
            branch,
            1,
            1,
            1,
            BAND_TAPS,
            ROWS,
            WIDTH,
            PLANES,
            True,
        )
    else:
        first += 2 * branch * plane
        tap_gradients_plain(
            x + first,
            g + first,
            partial + (side * side + band + 2) * branch,
            c,
            c < branch,
            begin,
            end,
            (role - squares - lines) * BAND_TAPS,
            0,
            height,
            width,
            height,
            width,
            x_image,
            plane,
            width,
            g_image,
            plane,
            width,
            band,
            1,
            branch,
            1,
            1,
            BAND_TAPS,
            1,
            ROWS,
            WIDTH,
            PLANES,
            True,
        )
