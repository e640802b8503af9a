"""Depthwise convolution and its gradients on channels-last float32 maps.

One task computes a part of the result for 16 channels of one image. Forward, up to seven neighbouring
pixels are summed in registers over all taps: a tap is one load of its kernel vector and one product with
memory per pixel. The input gradient is the same convolution with the kernel turned by half a circle;
at stride 2 it is four of them, one for each parity of row and column. For the weight gradient
up to six taps are summed in registers over all pixels. Taps that meet only zeros are skipped in rows,
and in columns where the kernel is wide.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from mmlk.ops.jit import planes
from mmlk.ops.jit.address import addresses
from mmlk.ops.jit.language import LANES, Kernel, kernel

# Wider kernels loop over their columns at run time and skip those outside the map.
_UNROLLED = 11
# Sums held in registers: pixels of the result, or taps of the weight gradient.
_PIXELS, _TAPS = 7, 6
# Vectors of a plane: what the first cache holds beside the rest, and what the second one does.
_CACHED, _LIMIT = 768, 8192
# Columns of a part, at most, and tasks above which parts are not made smaller: more tasks share better
# among threads, fewer copy fewer borders of parts.
_COLUMNS, _TASKS = 64, 16


def _block(k: Kernel, channels, parts):
    """First channel of the task, number of channels from there on, and the part of the map.

    Parts count fastest: threads at work on neighbouring channels would share lines of the cache.
    """
    channel = (k.task // parts) * LANES
    return channel, channels - channel, k.task % parts


class _Sum(NamedTuple):
    """A map plus one of half the size, each pixel of which counts for four: read as a `planes.Map`."""

    fine: planes.Map
    coarse: planes.Map

    def read(self, k: Kernel, y, x, buffer):
        value = self.fine.read(k, y, x, buffer)
        return k.b.fadd(value, self.coarse.read(k, y // 2, x // 2, buffer))


@kernel(
    'x_p weight_p bias_p y_p channels height width rows columns x_image x_row x_column '
    'y_image y_row y_column parts row_bands band_rows column_bands band_columns tiles kh kw '
    'coarse_p coarse_image coarse_row coarse_column'
)
def _forward(
    k: Kernel,
    x,
    weight,
    bias,
    y,
    channels,
    height,
    width,
    rows,
    columns,
    x_image,
    x_row,
    x_column,
    y_image,
    y_row,
    y_column,
    parts,
    row_bands,
    band_rows,
    column_bands,
    band_columns,
    tiles,
    kh,
    kw,
    coarse,
    coarse_image,
    coarse_row,
    coarse_column,
    *,
    unrolled,
    stride,
    tile,
    flip,
    has_bias,
    accumulate,
    adds,
):
    """``unrolled`` is the width of the kernel if its columns are written out, else 0."""
    sh, sw = stride
    kw = unrolled or kw
    channel, count, rest = _block(k, channels, parts)
    left = (rest % column_bands) * band_columns
    rest = rest // column_bands
    top, image = (rest % row_bands) * band_rows, rest // row_bands
    bottom, right = k.min(top + band_rows, rows), k.min(left + band_columns, columns)
    buffer = k.variable(k.zero)

    # Only rows of the map are copied, others are skipped as taps.
    first = k.max(top * sh - kh // 2, 0)
    copied = k.max(k.min((bottom - 1) * sh + kh // 2 + 1, height) - first, 0)
    padded = (tiles * tile - 1) * sw + kw
    plane = k.scratch(copied * padded)
    taps = k.scratch(kh * kw)
    source = planes.Map(x, image * x_image + channel, x_row, x_column, count)
    if adds:
        source = _Sum(
            source,
            planes.Map(coarse, image * coarse_image + channel, coarse_row, coarse_column, count),
        )
    planes.fill(
        k, plane, source, (first, copied), (left * sw - kw // 2, padded), (height, width), buffer
    )
    planes.pack_kernel(k, taps, weight, channel, count, kh * kw, flip)
    start = k.load_some(bias, channel, count, buffer) if has_bias else k.zero

    target = planes.Map(y, image * y_image + channel, y_row, y_column, count)
    with k.loop(top, bottom) as row:
        above = row * sh - kh // 2
        rows_of_taps = k.max(0, 0 - above), k.min(kh, height - above)
        with k.loop(0, tiles) as index:
            column = index * tile
            sums = [k.variable(start) for _ in range(tile)]

            def add(line, taps_line, j):
                factor = k.load(taps, (taps_line + j) * LANES)
                for pixel, each in enumerate(sums):
                    k.add_product(each, k.load(plane, (line + j + pixel * sw) * LANES), factor)

            with k.loop(*rows_of_taps) as i:
                line, taps_line = (above + i - first) * padded + column * sw, i * kw
                if unrolled:
                    for j in range(unrolled):
                        add(line, taps_line, j)
                        k.barrier(
                            plane
                        )  # pixels shared with the next tap would not fit the registers
                else:
                    before = (left + column) * sw - kw // 2
                    with k.loop(
                        k.max(0, 0 - before - (tile - 1) * sw), k.min(kw, width - before)
                    ) as j:
                        add(line, taps_line, j)
            for pixel, each in enumerate(sums):
                place = left + column + pixel
                with k.when(place < right):
                    value, offset = k.read(each), target.pixel(row, place)
                    if accumulate:
                        value = k.b.fadd(value, k.load_some(y, offset, count, buffer))
                    k.store_some(value, y, offset, count, buffer)


@functools.lru_cache(maxsize=4096)
def _tile(columns: int) -> int:
    """Pixels of a tile: the fewest columns whose results are dropped, then the fewest tiles."""
    return min(range(1, _PIXELS + 1), key=lambda tile: (-(-columns // tile)) * (tile + 0.7))


@functools.lru_cache(maxsize=4096)
def _bands(images: int, rows: int, columns: int, size, stride) -> tuple[int, int, int, int, int]:
    """Bands of rows, rows of each, bands of columns, columns of each, and the tile.

    A plane shall fit the first cache if that does not mean to copy most rows twice.
    """
    (kh, kw), (sh, sw) = size, stride
    column_bands = -(-columns // _COLUMNS)
    band_columns = -(-columns // column_bands)
    tile = _tile(band_columns)
    padded = (-(-band_columns // tile) * tile - 1) * sw + kw

    def fits(vectors: int) -> int:
        return (vectors // padded - kh) // sh + 1

    band_rows = fits(_CACHED)
    if band_rows < kh:
        band_rows = max(fits(_LIMIT), 1)
    tasks = images * column_bands
    band_rows = min(band_rows, max(-(-rows * tasks // _TASKS), 4))
    row_bands = -(-rows // band_rows)
    return row_bands, -(-rows // row_bands), column_bands, band_columns, tile


def _strides(*maps: Tensor) -> list[int]:
    """Steps from image to image, row to row and pixel to pixel of each map."""
    found = []
    for x in maps:
        image, _, row, column = x.stride()
        found += image, row, column
    return found


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int] = (1, 1),
    *,
    out: Tensor | None = None,
    flip: bool = False,
    accumulate: bool = False,
    coarse: Tensor | None = None,
) -> Tensor:
    """The convolution, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32, stride 1 along C; a slice of channels is one.
        weight: (C, 1, kh, kw), sides odd.
        bias: (C,).
        stride: Step in rows and columns.
        out: Where to write, (N, C, ceil(H / sh), ceil(W / sw)) with stride 1 along C.
        flip: Turn the kernel by half a circle.
        accumulate: Add to ``out`` instead of overwriting it.
        coarse: (N, C, H / 2, W / 2) with stride 1 along C: ``x`` plus this, enlarged to the nearest
            pixel, is convolved.

    Returns:
        ``out``, or a new channels-last map.

    Raises:
        ValueError: if ``coarse`` has another size.
    """
    n, c, height, width = x.shape
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    kh, kw = size = tuple(weight.shape[2:])
    sh, sw = stride
    rows, columns = (height - 1) // sh + 1, (width - 1) // sw + 1
    if out is None:
        out = x.new_empty((n, rows, columns, c)).permute(0, 3, 1, 2)
    if coarse is not None and (n, c, height, width) != (
        *coarse.shape[:2],
        2 * coarse.shape[2],
        2 * coarse.shape[3],
    ):
        raise ValueError(
            f'depthwise: coarse map {tuple(coarse.shape)} is not half of {tuple(x.shape)}'
        )
    added = x if coarse is None else coarse
    pointers, strides = addresses(x, weight, bias, out, added), _strides(x, out, added)
    blocks = -(-c // LANES)
    row_bands, band_rows, column_bands, band_columns, tile = _bands(
        n * blocks, rows, columns, size, stride
    )
    compiled = _forward(
        unrolled=kw if kw <= _UNROLLED else 0,
        stride=stride,
        tile=tile,
        flip=flip,
        has_bias=bias is not None,
        accumulate=accumulate,
        adds=coarse is not None,
    )
    compiled(
        n * blocks * row_bands * column_bands,
        n * c * rows * columns * kh * kw,
        *pointers[:4],
        c,
        height,
        width,
        rows,
        columns,
        *strides[:6],
        n * row_bands * column_bands,
        row_bands,
        band_rows,
        column_bands,
        band_columns,
        -(-band_columns // tile),
        kh,
        kw,
        pointers[4],
        *strides[6:],
    )
    return out


@kernel(
    'grad_p x_p out_p bias_p channels height width rows columns grad_image grad_row grad_column '
    'x_image x_row x_column parts pieces band_rows kh kw'
)
def _weight_gradient(
    k: Kernel,
    grad,
    x,
    out,
    bias,
    channels,
    height,
    width,
    rows,
    columns,
    grad_image,
    grad_row,
    grad_column,
    x_image,
    x_row,
    x_column,
    parts,
    pieces,
    band_rows,
    kh,
    kw,
    *,
    stride,
    tile,
    rest,
):
    """Sums of ``tile`` taps, (down, across), and what ``rest`` leaves of the kernel's two sides."""
    (sh, sw), (down, across), (rest_down, rest_across) = stride, tile, rest
    channel, count, part = _block(k, channels, parts)
    image, piece = part // pieces, part % pieces
    buffer, bias_sum = k.variable(k.zero), k.variable(k.zero)
    taps = k.scratch(kh * kw)
    with k.loop(0, kh * kw) as tap:
        k.store(k.zero, taps, tap * LANES)
    padded, plane_rows = (columns - 1) * sw + kw, (band_rows - 1) * sh + kh
    plane, grads = k.scratch(plane_rows * padded), k.scratch(band_rows * columns)
    source = planes.Map(x, image * x_image + channel, x_row, x_column, count)
    incoming = planes.Map(grad, image * grad_image + channel, grad_row, grad_column, count)

    bands = (rows + band_rows - 1) // band_rows
    with k.loop(piece * bands // pieces, (piece + 1) * bands // pieces) as band:
        top = band * band_rows
        bottom = k.min(top + band_rows, rows)
        above = top * sh - kh // 2
        planes.fill(
            k,
            plane,
            source,
            (above, (bottom - top - 1) * sh + kh),
            (0 - kw // 2, padded),
            (height, width),
            buffer,
        )
        planes.fill(
            k, grads, incoming, (top, bottom - top), (k.int(0), columns), (rows, columns), buffer
        )
        with k.loop(0, (bottom - top) * columns) as pixel:
            k.write(bias_sum, k.b.fadd(k.read(bias_sum), k.load(grads, pixel * LANES)))

        def add(i, high: int, j, wide: int):
            """Sum ``high`` x ``wide`` taps from (i, j) on over the band."""
            first = [(i + di) * kw + j for di in range(high)]
            sums = [
                [k.variable(k.load(taps, (line + dj) * LANES)) for dj in range(wide)]
                for line in first
            ]
            # Rows and columns in which at least one of the taps meets the map.
            begin = k.max(0, (kh // 2 + (sh - 1) - (i + high - 1) - top * sh).at_least_zero() // sh)
            end = k.min(bottom - top, k.max(0, height + kh // 2 + (sh - 1) - i - top * sh) // sh)
            left = (kw // 2 + (sw - 1) - (j + wide - 1)).at_least_zero() // sw
            right = k.min(columns, k.max(0, width + kw // 2 + (sw - 1) - j) // sw)
            with k.loop(begin, end) as row:
                lines = [(row * sh + i + di) * padded + j for di in range(high)]
                with k.loop(left, right) as column:
                    factor = k.load(grads, (row * columns + column) * LANES)
                    for line, each in zip(lines, sums):
                        for dj, variable in enumerate(each):
                            k.add_product(
                                variable, k.load(plane, (line + column * sw + dj) * LANES), factor
                            )
            for line, each in zip(first, sums):
                for dj, variable in enumerate(each):
                    k.store(k.read(variable), taps, (line + dj) * LANES)

        def add_columns(j, wide: int):
            with k.loop(0, kh - rest_down, down) as i:
                add(i, down, j, wide)
            if rest_down:
                add(kh - rest_down, rest_down, j, wide)

        with k.loop(0, kw - rest_across, across) as j:
            add_columns(j, across)
        if rest_across:
            add_columns(kw - rest_across, rest_across)

    with k.loop(0, k.min(count, LANES)) as lane:
        line = (part * channels + channel + lane) * (kh * kw)
        with k.loop(0, kh * kw) as tap:
            k.copy_float(k.at(taps, tap * LANES + lane), k.at(out, line + tap))
    k.store_some(k.read(bias_sum), bias, part * channels + channel, count, buffer)


@functools.lru_cache(maxsize=4096)
def _gradient_rows(rows: int, columns: int, size, stride) -> int:
    """Rows of a band of the weight gradient, whose planes hold both map and incoming gradient."""
    (kh, kw), (sh, sw) = size, stride
    padded = (columns - 1) * sw + kw

    def fits(vectors: int) -> int:
        return (vectors - (kh - sh) * padded) // (padded * sh + columns)

    most = fits(_CACHED)
    if most * sh < kh:
        most = max(fits(_LIMIT), 1)
    return -(-rows // -(-rows // most))


def weight_gradient(
    grad: Tensor, x: Tensor, size: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> tuple[Tensor, Tensor]:
    """Gradients of kernel and bias, summed over images and bands of rows in their order.

    Args:
        grad: (N, C, ceil(H / sh), ceil(W / sw)) float32, stride 1 along C.
        x: (N, C, H, W) float32, stride 1 along C.
        size: Odd rows and columns of the kernel.
        stride: Step in rows and columns.

    Returns:
        (C, 1, kh, kw) and (C,).
    """
    n, c, height, width = x.shape
    rows, columns = grad.shape[2:]
    kh, kw = size
    blocks = -(-c // LANES)
    band_rows = _gradient_rows(rows, columns, tuple(size), tuple(stride))
    # Where tasks are few, images are taken in pieces of several bands.
    pieces = min(-(-rows // band_rows), -(-_TASKS // (n * blocks)))
    parts = n * pieces
    taps, bias = x.new_empty((parts, c, 1, kh, kw)), x.new_empty((parts, c))
    across = min(kw, _TAPS)
    down = min(_TAPS // across, kh)
    compiled = _weight_gradient(
        stride=tuple(stride), tile=(down, across), rest=(kh % down, kw % across)
    )
    compiled(
        parts * blocks,
        n * c * rows * columns * kh * kw,
        *addresses(grad, x, taps, bias),
        c,
        height,
        width,
        rows,
        columns,
        *_strides(grad, x),
        parts,
        pieces,
        band_rows,
        kh,
        kw,
    )
    return (taps[0], bias[0]) if parts == 1 else (taps.sum(0), bias.sum(0))


@kernel(
    'grad_p weight_p out_p channels height width rows columns grad_image grad_row grad_column '
    'out_image out_row out_column parts bands band_rows tiles'
)
def _strided_input_gradient(
    k: Kernel,
    grad,
    weight,
    out,
    channels,
    height,
    width,
    rows,
    columns,
    grad_image,
    grad_row,
    grad_column,
    out_image,
    out_row,
    out_column,
    parts,
    bands,
    band_rows,
    tiles,
    *,
    size,
    stride,
    tile,
):
    """``height`` and ``width`` are the result's, ``rows`` and ``columns`` the incoming gradient's."""
    (kh, kw), (sh, sw) = size, stride
    channel, count, rest = _block(k, channels, parts)
    top, image = (rest % bands) * band_rows, rest // bands
    bottom = k.min(top + band_rows, height)
    buffer = k.variable(k.zero)
    taps = k.scratch(kh * kw)
    planes.pack_kernel(k, taps, weight, channel, count, kh * kw)
    # Position p of the result takes tap i from position (p + k // 2 - i) / s of the gradient.
    border = (kw - 1 - kw // 2 + sw - 1) // sw
    first = k.max(0, (top - (kh - 1 - kh // 2)).at_least_zero() // sh)
    copied = k.max(0, k.min(rows, (bottom - 1 + kh // 2) // sh + 1) - first)
    padded = border + tiles * tile + (kw // 2 + sw - 1) // sw
    plane = k.scratch(copied * padded)
    source = planes.Map(grad, image * grad_image + channel, grad_row, grad_column, count)
    planes.fill(
        k, plane, source, (first, copied), (k.int(-border), padded), (rows, columns), buffer
    )
    target = planes.Map(out, image * out_image + channel, out_row, out_column, count)
    with k.loop(top, bottom) as row:
        with k.loop(0, tiles) as index:
            for parity in range(sw):
                sums = [k.variable(k.zero) for _ in range(tile)]
                with k.loop((row + kh // 2) % sh, kh, sh) as i:
                    line = (row + kh // 2 - i).exactly_divided(sh)
                    with k.when(k.both(line >= first, line < first + copied)):
                        for j in range((parity + kw // 2) % sw, kw, sw):
                            shift = (parity + kw // 2 - j) // sw
                            factor = k.load(taps, (i * kw + j) * LANES)
                            begin = (line - first) * padded + index * tile + (border + shift)
                            for pixel, each in enumerate(sums):
                                k.add_product(each, k.load(plane, (begin + pixel) * LANES), factor)
                for pixel, each in enumerate(sums):
                    place = (index * tile + pixel) * sw + parity
                    with k.when(place < width):
                        k.store_some(k.read(each), out, target.pixel(row, place), count, buffer)


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, int] = (1, 1),
    *,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Gradient of the map.

    Args:
        grad: (N, C, ceil(H / sh), ceil(W / sw)) float32, stride 1 along C.
        weight: (C, 1, kh, kw), sides odd.
        shape: (N, C, H, W) of the map.
        stride: Step in rows and columns.
        out: Where to write, with stride 1 along C.
        accumulate: Add to ``out`` instead of overwriting it; at stride 1 only.

    Returns:
        ``out``, or a new channels-last map.
    """
    if tuple(stride) == (1, 1):
        return forward(grad, weight, None, out=out, flip=True, accumulate=accumulate)
    n, c, height, width = shape
    if out is None:
        out = grad.new_empty((n, height, width, c)).permute(0, 3, 1, 2)
    rows, columns = grad.shape[2:]
    weight = weight.contiguous()
    (kh, kw), (sh, sw) = size, stride = tuple(weight.shape[2:]), tuple(stride)
    blocks, halves = -(-c // LANES), -(-width // sw)
    tile = _tile(halves)
    tiles = -(-halves // tile)
    padded = tiles * tile + kw
    band_rows = max(1, min(height, (_CACHED // padded) * sh - kh))
    if band_rows < kh:
        band_rows = max(1, min(height, (_LIMIT // padded) * sh - kh))
    bands = -(-height // band_rows)
    compiled = _strided_input_gradient(size=size, stride=stride, tile=tile)
    compiled(
        n * blocks * bands,
        n * c * rows * columns * kh * kw,
        *addresses(grad, weight, out),
        c,
        height,
        width,
        rows,
        columns,
        *_strides(grad, out),
        n * bands,
        bands,
        band_rows,
        tiles,
    )
    return out
