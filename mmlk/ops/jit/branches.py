"""SLaK's branches on channels-last float32 maps: depthwise kernels of one map, summed or normed.

One task computes all branches for a part of one image and 16 of its channels. Folded, every kernel adds
to the same pixels of the result. In training each branch has a map and batch statistics of its own:
their moments are taken while the part is in the cache, and one pass then writes the sum of the normed
branches. The gradient of a branch through its norm is ``A g + B (z - mean) + C`` with three numbers
per channel. Those are known after one pass over the incoming gradient and the branches, and the maps
``A g + ...`` exist only as planes, from which a task takes the gradients of map and kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit import planes
from mmlk.ops.jit.engine import unavailable
from mmlk.ops.jit.kernel import LANES, Int, Kernel, kernel

# Sums held in registers: pixels of a map, or taps of a kernel's gradient.
_PIXELS, _TAPS = 7, 6
# Longest short side of a kernel: these taps are written out.
_SHORT = 11
# Pixels of a map that stay in the first cache while all taps are summed.
_BAND = 160
# Vectors that any thread's stack holds.
_LIMIT = 8192
_SIDE = 64
_TASKS = 16
_BRANCHES = 3


# ------------------------------------------------------------------------------------ parts of maps

class _Bands(NamedTuple):
    """How a map is divided into parts.

    Args:
        row_bands: Number of parts from top to bottom.
        band_rows: Rows of each, fewer of the last.
        column_bands: Number of parts from left to right.
        band_columns: Columns of each, fewer of the last.
        room: Vectors of the largest plane.
        tiles: Pixels of a group along a row and along a column.
    """

    row_bands: int
    band_rows: int
    column_bands: int
    band_columns: int
    room: int
    tiles: tuple[int, int]


def _tile(length: int) -> int:
    """Pixels of a group: the fewest computed in vain, then the fewest groups."""
    return min(range(1, _PIXELS + 1), key=lambda tile: -(-length // tile) * (tile + 0.7))


@functools.lru_cache(maxsize=4096)
def _bands(images: int, height: int, width: int, sizes: tuple) -> _Bands:
    """Parts whose planes fit a stack, at least `_TASKS` of them where the map allows.

    Args:
        images: Number of images times blocks of channels.
        height: Rows of the map.
        width: Columns of the map.
        sizes: Rows and columns of the kernels.
    """
    column_bands = -(-width // _SIDE)
    columns = -(-width // column_bands)

    def plane(rows: int, size) -> int:
        (kh, kw), (long, short), most = size, (rows, columns), height
        if kw > kh:
            (kh, kw), (long, short), most = (kw, kh), (columns, rows), width
        return min(long + kh - 1, most) * (short + _PIXELS + kw)

    def room(rows: int) -> int:
        return max(plane(rows, size) for size in sizes)

    rows = height
    while rows > 1 and room(rows) + rows * columns > _LIMIT:
        rows -= 1
    rows = min(rows, max(-(-height * images * column_bands // _TASKS), 4))
    bands = -(-height // rows)
    rows = -(-height // bands)
    return _Bands(bands, rows, column_bands, columns, room(rows), (_tile(columns), _tile(rows)))


class _Part:
    """The part of a task: its block of channels and its pixels.

    Args:
        channels: Channels of the map.
        height: Its rows.
        width: Its columns.
        blocks: Blocks of channels.
        bands: The run-time fields of `_Bands`.
    """

    def __init__(self, k: Kernel, channels, height, width, blocks, bands):
        row_bands, band_rows, column_bands, band_columns, room = bands
        self.k, self.channels, self.height, self.width = k, channels, height, width
        self.number, self.channel = k.task // blocks, (k.task % blocks) * LANES
        self.count = channels - self.channel
        self.left = (self.number % column_bands) * band_columns
        rest = self.number // column_bands
        self.top, self.image = (rest % row_bands) * band_rows, rest // row_bands
        self.bottom = k.min(self.top + band_rows, height)
        self.right = k.min(self.left + band_columns, width)
        self.slot = k.variable(k.zero)
        self.plane = k.scratch(room)

    def map(self, pointer) -> planes.Map:
        """The part's image in the dense map at ``pointer``."""
        row = self.width * self.channels
        return planes.Map(pointer, self.image * (self.height * row) + self.channel, row,
                          self.channels, self.count)

    def row_of(self, pointer, row):
        """The block's numbers in a row of a table (rows, C)."""
        return self.k.load_some(pointer, self.channel + row * self.channels, self.count, self.slot)


class _View:
    """A part and a kernel that is at least as tall as wide: both transposed where it is not.

    Rows of taps that meet no pixel can be skipped exactly, so the long side is made that of rows.

    Args:
        part: The part.
        size: Rows and columns of the kernel as it is stored.
        tiles: Pixels of a group along a row and along a column.
    """

    def __init__(self, part: _Part, size: tuple[int, int], tiles: tuple[int, int]):
        self.part, self.k, self.transposed = part, part.k, size[1] > size[0]
        turn = (1, -1)[self.transposed]
        self.kh, self.kw = size[::turn]
        self.row_step, self.column_step = (size[1], 1)[::turn]
        self.height, self.width = (part.height, part.width)[::turn]
        (self.top, self.bottom), (self.left, self.right) = (
            (part.top, part.bottom), (part.left, part.right))[::turn]
        self.tile = tiles[::turn][0]
        self.tiles = (self.right - self.left + (self.tile - 1)) // self.tile

    def map(self, pointer) -> planes.Map:
        """The part's image in the dense map at ``pointer``."""
        return self.seen(self.part.map(pointer))

    def seen(self, image: planes.Map) -> planes.Map:
        if not self.transposed:
            return image
        return image._replace(row=image.column, column=image.row)

    def fill(self, source) -> _Plane:
        """The plane of the part with what the kernel reaches around it."""
        k, kh, kw = self.k, self.kh, self.kw
        first = k.max(self.top - kh // 2, 0)
        rows = k.min(self.bottom + kh // 2, self.height) - first
        begin, columns = self.left - kw // 2, self.tiles * self.tile + 2 * (kw // 2)
        planes.fill(k, self.part.plane, source, (first, rows), (begin, columns),
                    (self.height, self.width), self.part.slot)
        return _Plane(self.part.plane, first, begin, columns)

    def reached(self) -> tuple[Int, Int]:
        """First row of taps that meets a pixel of the map, and the first after them that does not."""
        k = self.k
        return (k.max(0, self.kh // 2 + 1 - self.height),
                k.min(self.kh, self.kh // 2 + self.height))

    def pack(self, taps, weight, flip: bool) -> None:
        """Copy the kernels (C, taps) of the block, as one vector a tap."""
        k, part, count = self.k, self.part, self.kh * self.kw
        with k.loop(*self.reached()) as i:
            with k.when(part.count < LANES), k.loop(0, self.kw) as j:
                k.store(k.zero, taps, (i * self.kw + j) * LANES)
            with k.loop(0, k.min(part.count, LANES)) as lane:
                line = (part.channel + lane) * count
                for j in range(self.kw):
                    source = i * self.row_step + j * self.column_step
                    source = line + (count - 1 - source if flip else source)
                    k.copy_float(k.at(weight, source), k.at(taps, (i * self.kw + j) * LANES + lane))

    def unpack(self, taps, result) -> None:
        """Write flipped taps that meet the map, one vector each, to the part's kernels (C, taps)."""
        k, part, count = self.k, self.part, self.kh * self.kw
        with k.loop(0, k.min(part.count, LANES)) as lane:
            line = (part.number * part.channels + part.channel + lane) * count
            with k.loop(*self.reached()) as i:
                for j in range(self.kw):
                    target = count - 1 - (i * self.row_step + j * self.column_step)
                    k.copy_float(k.at(taps, (i * self.kw + j) * LANES + lane),
                                 k.at(result, line + target))


class _Plane(NamedTuple):
    """A filled plane: its memory, first row and column on the map, and number of columns."""

    pointer: object
    row: Int
    column: Int
    columns: Int

    def at(self, y, x) -> Int:
        return ((y - self.row) * self.columns + (x - self.column)) * LANES


class _Gradient(NamedTuple):
    """Gradient of a branch through its norm, ``A g + B (z - mean) + C``, as a source of planes."""

    grad: planes.Map
    branch: planes.Map
    by_grad: object
    by_branch: object
    mean: object
    constant: object

    def read(self, k: Kernel, y, x, slot):
        centred = k.b.fsub(self.branch.read(k, y, x, slot), k.read(self.mean))
        total = k.fma(self.grad.read(k, y, x, slot), k.read(self.by_grad), k.read(self.constant))
        return k.fma(centred, k.read(self.by_branch), total)


def _convolve(view: _View, plane: _Plane, taps, start, target: planes.Map, accumulate: bool) -> None:
    """Convolve the plane with the kernel ``taps`` (one vector each) into the part of ``target``.

    One group of columns after another stays in the first cache from row to row.
    """
    k, part, kh, kw, tile = view.k, view.part, view.kh, view.kw, view.tile
    with k.loop(0, view.tiles) as index, k.loop(view.top, view.bottom) as row:
        above, column = row - kh // 2, view.left + index * tile
        sums = [k.variable(k.zero) for _ in range(tile)]
        for each in sums:
            k.write(each, start)
        with k.loop(k.max(0, 0 - above), k.min(kh, view.height - above)) as i:
            line = plane.at(above + i, column - kw // 2)
            for j in range(kw):
                factor = k.load(taps, (i * kw + j) * LANES)
                for pixel, each in enumerate(sums):
                    k.add_product(each, k.load(plane.pointer, line + (j + pixel) * LANES), factor)
                # LLVM would keep pixels that taps share in registers it does not have.
                k.forget(plane.pointer)
        for pixel, each in enumerate(sums):
            with k.when(column + pixel < view.right):
                value = k.read(each)
                if accumulate:
                    value = k.b.fadd(value, target.read(k, row, column + pixel, part.slot))
                k.store_some(value, target.pointer, target.pixel(row, column + pixel), part.count,
                             part.slot)


# ------------------------------------------------------------------------------------ forward

@kernel('x_p first_p second_p third_p bias_p y_0_p y_1_p y_2_p moments_p channels height width blocks '
        'row_bands band_rows column_bands band_columns room')
def _forward(k: Kernel, x, first, second, third, bias, y_0, y_1, y_2, moments, channels, height,
             width, blocks, *bands, sizes, tiles, has_bias, summed, has_moments):
    part = _Part(k, channels, height, width, blocks, bands)
    taps = k.scratch(max(kh * kw for kh, kw in sizes))
    for index, (size, weight, y) in enumerate(
            zip(sizes, (first, second, third), (y_0, y_1, y_2))):
        view = _View(part, size, tiles)
        plane = view.fill(view.map(x))
        view.pack(taps, weight, False)
        target = y_0 if summed else y
        start = part.row_of(bias, 0) if has_bias and index == 0 else k.zero
        _convolve(view, plane, taps, start, view.map(target), summed and index > 0)
        if has_moments:
            _moments(part, part.map(target), moments, (part.number * len(sizes) + index) * 2)


def _moments(part: _Part, source: planes.Map, moments, row) -> None:
    """Mean and sum of squared deviations of the part, to two rows of a table (rows, C)."""
    k = part.k
    total, number = k.variable(k.zero), k.variable(k.zero)
    with k.loop(part.top, part.bottom) as y, k.loop(part.left, part.right) as x:
        k.write(total, k.b.fadd(k.read(total), source.read(k, y, x, part.slot)))
        k.write(number, k.b.fadd(k.read(number), k.splat(1.0)))
    share = k.b.fdiv(k.splat(1.0), k.read(number))
    mean = k.b.fmul(k.read(total), share)
    # What rounding left of the deviations' own mean corrects both.
    off, squares = k.variable(k.zero), k.variable(k.zero)
    with k.loop(part.top, part.bottom) as y, k.loop(part.left, part.right) as x:
        deviation = k.b.fsub(source.read(k, y, x, part.slot), mean)
        k.write(off, k.b.fadd(k.read(off), deviation))
        k.add_product(squares, deviation, deviation)
    shift = k.b.fmul(k.read(off), share)
    deviations = k.b.fsub(k.read(squares), k.b.fmul(shift, k.read(off)))
    for index, each in enumerate((k.b.fadd(mean, shift), deviations)):
        k.store_some(each, moments, part.channel + (row + index) * part.channels, part.count,
                     part.slot)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as dense (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [each.data_ptr() for each in tensors] + [0] * (_BRANCHES - len(tensors))


def _sizes(weights: Sequence[Tensor]) -> tuple:
    return tuple(tuple(each.shape[2:]) for each in weights)


def _run(compiled, x: Tensor, bands: _Bands, sizes, passes: int, *addresses: int) -> None:
    n, height, width, c = x.shape
    blocks = -(-c // LANES)
    cost = passes * x.numel() * sum(min(kh, 2 * height) * min(kw, 2 * width) for kh, kw in sizes)
    compiled(n * blocks * bands.row_bands * bands.column_bands, cost, *addresses, c, height, width,
             blocks, *bands[:-1])


def _bands_of(x: Tensor, sizes) -> _Bands:
    n, height, width, c = x.shape
    return _bands(n * -(-c // LANES), height, width, sizes)


def summed(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The sum of the map's convolutions, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.
        bias: (C,).

    Returns:
        (N, C, H, W) in channels-last layout.
    """
    x, sizes = _rows(x), _sizes(weights)
    y, bands = torch.empty_like(x), _bands_of(x, sizes)
    compiled = _forward(sizes=sizes, tiles=bands.tiles, has_bias=bias is not None, summed=True,
                        has_moments=False)
    _run(compiled, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights),
         0 if bias is None else bias.data_ptr(), *_addresses([y]), 0)
    return y.permute(0, 3, 1, 2)


def apart(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Each of the map's convolutions, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.

    Returns:
        (N, C, H, W) in channels-last layout for each kernel.
    """
    return _apart(_rows(x), weights, None)


def _apart(x: Tensor, weights: Sequence[Tensor], moments: Tensor | None) -> list[Tensor]:
    maps, sizes = [torch.empty_like(x) for _ in weights], _sizes(weights)
    bands = _bands_of(x, sizes)
    compiled = _forward(sizes=sizes, tiles=bands.tiles, has_bias=False, summed=False,
                        has_moments=moments is not None)
    _run(compiled, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights), 0, *_addresses(maps),
         0 if moments is None else moments.data_ptr())
    return [each.permute(0, 3, 1, 2) for each in maps]


def with_statistics(x: Tensor, weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """As `apart`, and the maps' statistics over images and pixels.

    Returns:
        The maps; means and biased variances (B, C) in float64.
    """
    x = _rows(x)
    n, height, width, c = x.shape
    bands = _bands_of(x, _sizes(weights))
    parts = n * bands.row_bands * bands.column_bands
    moments = x.new_empty((parts, len(weights), 2, c))
    maps = _apart(x, weights, moments)
    means, deviations = moments.double().unbind(2)
    shares = _shares(n, height, width, bands)
    mean = (means * shares).sum(0)
    variances = (deviations / (n * height * width)).addcmul_((means - mean).square_(), shares)
    return maps, mean, variances.sum(0)


@functools.lru_cache(maxsize=256)
def _shares(n: int, height: int, width: int, bands: _Bands) -> Tensor:
    """Share of each part in the pixels of all images, (parts, 1, 1) in float64."""
    rows = [min(bands.band_rows, height - i * bands.band_rows) for i in range(bands.row_bands)]
    columns = [min(bands.band_columns, width - i * bands.band_columns)
               for i in range(bands.column_bands)]
    counts = torch.tensor([h * w for _ in range(n) for h in rows for w in columns],
                          dtype=torch.float64)
    return counts.view(-1, 1, 1) / (n * height * width)


@kernel('z_0_p z_1_p z_2_p table_p y_p channels pixels chunk')
def _affine(k: Kernel, z_0, z_1, z_2, table, y, channels, pixels, chunk, *, count):
    slot = k.variable(k.zero)
    first = k.task * chunk
    with k.loop(first, k.min(first + chunk, pixels)) as pixel:
        line = pixel * channels

        def add(channel, width):
            total = k.load_some(table, channel + 2 * count * channels, width, slot)
            for index, z in enumerate((z_0, z_1, z_2)[:count]):
                mean, scale = (k.load_some(table, channel + (2 * index + i) * channels, width, slot)
                               for i in range(2))
                value = k.load_some(z, line + channel, width, slot)
                total = k.fma(k.b.fsub(value, mean), scale, total)
            k.store_some(total, y, line + channel, width, slot)

        whole = channels - channels % LANES
        with k.loop(0, whole, LANES) as channel:
            add(channel, k.int(LANES))
        with k.when(whole < channels):
            add(whole, channels - whole)


def affine(maps: Sequence[Tensor], means: Tensor, scales: Tensor, shift: Tensor) -> Tensor:
    """``sum over branches of scale (z - mean) + shift``.

    Args:
        maps: (N, C, H, W) float32, dense and channels-last, for each branch.
        means: (B, C).
        scales: (B, C).
        shift: (C,).

    Returns:
        (N, C, H, W) in channels-last layout.
    """
    count, (n, c, height, width) = len(maps), maps[0].shape
    pairs = torch.stack((means, scales), 1).view(2 * count, c)
    table = torch.cat((pairs, shift[None])).float()
    y, pixels, chunk = maps[0].new_empty((n, height, width, c)), n * height * width, 16
    _affine(count=count)(-(-pixels // chunk), 8 * y.numel(), *_addresses(maps), table.data_ptr(),
                         y.data_ptr(), c, pixels, chunk)
    return y.permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------ backward

@kernel('z_0_p z_1_p z_2_p grad_p means_p totals_p channels height width blocks '
        'row_bands band_rows column_bands band_columns room')
def _totals(k: Kernel, z_0, z_1, z_2, grad, means, totals, channels, height, width, blocks, *bands,
            count):
    part = _Part(k, channels, height, width, blocks, bands)
    incoming = part.map(grad)
    branches = [part.map(each) for each in (z_0, z_1, z_2)[:count]]
    centres = [part.row_of(means, index) for index in range(count)]
    sums = [k.variable(k.zero) for _ in range(count + 1)]
    # Sums of rows first: the error of a long sum grows with its length.
    with k.loop(part.top, part.bottom) as y:
        line = [k.variable(k.zero) for _ in sums]
        for each in line:
            k.write(each, k.zero)
        with k.loop(part.left, part.right) as x:
            value = incoming.read(k, y, x, part.slot)
            k.write(line[0], k.b.fadd(k.read(line[0]), value))
            for each, branch, centre in zip(line[1:], branches, centres):
                k.add_product(each, k.b.fsub(branch.read(k, y, x, part.slot), centre), value)
        for each, total in zip(line, sums):
            k.write(total, k.b.fadd(k.read(total), k.read(each)))
    for index, each in enumerate(sums):
        row = part.number * (count + 1) + index
        k.store_some(k.read(each), totals, part.channel + row * channels, part.count, part.slot)


@kernel('x_p grad_0_p grad_1_p grad_2_p z_0_p z_1_p z_2_p table_p first_p second_p third_p out_p '
        'taps_0_p taps_1_p taps_2_p channels height width blocks '
        'row_bands band_rows column_bands band_columns room')
def _backward(k: Kernel, x, grad_0, grad_1, grad_2, z_0, z_1, z_2, table, first, second, third, out,
              taps_0, taps_1, taps_2, channels, height, width, blocks, *bands, sizes, tiles, normed,
              wants_map, wants_taps):
    part = _Part(k, channels, height, width, blocks, bands)
    taps = k.scratch(max(kh * kw for kh, kw in sizes))
    columns = part.right - part.left
    pixels = k.scratch((part.bottom - part.top) * columns)
    if any(wants_taps):
        planes.fill(k, pixels, part.map(x), (part.top, part.bottom - part.top),
                    (part.left, columns), (height, width), part.slot)
    for index, (size, grad, z, weight, result) in enumerate(zip(
            sizes, (grad_0, grad_1, grad_2), (z_0, z_1, z_2), (first, second, third),
            (taps_0, taps_1, taps_2))):
        if not wants_map and not wants_taps[index]:
            continue
        view = _View(part, size, tiles)
        source = view.map(grad)
        if normed:
            numbers = (k.variable(part.row_of(table, 4 * index + i)) for i in range(4))
            source = _Gradient(source, view.map(z), *numbers)
        plane = view.fill(source)
        if wants_map:
            view.pack(taps, weight, True)
            _convolve(view, plane, taps, k.zero, view.map(out), index > 0)
        if wants_taps[index]:
            _sum_taps(view, plane, pixels, columns, taps)
            view.unpack(taps, result)


def _sum_taps(view: _View, plane: _Plane, pixels, columns, taps) -> None:
    """Sums over the part of pixels times the plane, one vector a tap of the flipped kernel.

    Args:
        pixels: The part's own vectors, row by row.
        columns: Number of them in a row.
    """
    k, part, kh, kw = view.k, view.part, view.kh, view.kw
    own = view.seen(planes.Map(pixels, k.int(0), columns * LANES, k.int(LANES), part.count))
    first, after = view.reached()
    with k.loop(first * kw, after * kw) as tap:
        k.store(k.zero, taps, tap * LANES)
    rows = k.max(1, k.int(_BAND) // (view.right - view.left))
    with k.loop(0, (view.bottom - view.top + rows - 1) // rows) as band, \
            k.loop(first, after) as i:
        top = view.top + band * rows
        bottom = k.min(top + rows, view.bottom)
        begin, end = k.max(top, kh // 2 - i), k.min(bottom, view.height + kh // 2 - i)
        with k.when(begin < end):
            for j in range(0, kw, _TAPS):
                wide = min(_TAPS, kw - j)
                sums = [k.variable(k.zero) for _ in range(wide)]
                for dj, each in enumerate(sums):
                    k.write(each, k.load(taps, (i * kw + j + dj) * LANES))
                with k.loop(begin, end) as row, k.loop(view.left, view.right) as column:
                    factor = k.load(pixels, own.pixel(row - view.top, column - view.left))
                    line = plane.at(row + i - kh // 2, column + j - kw // 2)
                    for dj, each in enumerate(sums):
                        k.add_product(each, k.load(plane.pointer, line + dj * LANES), factor)
                for dj, each in enumerate(sums):
                    k.store(k.read(each), taps, (i * kw + j + dj) * LANES)


def totals(grad: Tensor, maps: Sequence[Tensor], means: Tensor) -> Tensor:
    """Per channel, the sum of the gradient and those of its products with the centred branches.

    Args:
        grad: (N, C, H, W) float32.
        maps: (N, C, H, W) float32, dense and channels-last, for each branch.
        means: (B, C) float32, contiguous.

    Returns:
        (B + 1, C) in float64.
    """
    grad, count, size = _rows(grad), len(maps), ((1, 1),)
    bands = _bands_of(grad, size)
    parts = grad.shape[0] * bands.row_bands * bands.column_bands
    sums = grad.new_empty((parts, count + 1, grad.shape[3]))
    _run(_totals(count=count), grad, bands, size, 2 * count, *_addresses(maps), grad.data_ptr(),
         means.data_ptr(), sums.data_ptr())
    return sums.double().sum(0)


def gradients(grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], wants_map: bool,
              wants_taps: Sequence[bool], maps: Sequence[Tensor] = (), table: Tensor | None = None
              ) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the map, summed over the branches, and of the kernels.

    Args:
        grads: (N, C, H, W) float32 for each branch, or one for all of them.
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.
        wants_map: Whether the map's gradient is asked for.
        wants_taps: The same of every kernel.
        maps: (N, C, H, W), dense and channels-last: the branches, where their gradients are
            ``A g + B (z - mean) + C``.
        table: (B, 4, C) float32, contiguous, then: A, B, mean and C.

    Returns:
        (N, C, H, W) in channels-last layout, and a list of (C, 1, kh, kw).
    """
    x, sizes, wants_taps = _rows(x), _sizes(weights), tuple(wants_taps)
    grads = [_rows(each) for each in grads]
    grads *= len(weights) // len(grads)
    n, c, bands = x.shape[0], x.shape[3], _bands_of(x, sizes)
    parts = n * bands.row_bands * bands.column_bands
    out = torch.empty_like(x) if wants_map else None
    # Taps that meet no pixel are left out.
    taps = [x.new_zeros((parts, c, 1, *size)) if want else x.new_empty(0)
            for size, want in zip(sizes, wants_taps)]
    compiled = _backward(sizes=sizes, tiles=bands.tiles, normed=table is not None,
                         wants_map=wants_map, wants_taps=wants_taps)
    _run(compiled, x, bands, sizes, 2, x.data_ptr(), *_addresses(grads), *_addresses(maps),
         0 if table is None else table.data_ptr(), *_addresses(weights),
         out.data_ptr() if wants_map else 0, *_addresses(taps))
    return (out.permute(0, 3, 1, 2) if wants_map else None,
            [(each.sum(0) if parts > 1 else each[0]) if want else None
             for each, want in zip(taps, wants_taps)])


def refuses(x: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Reason why the functions here cannot or should not take a map and kernels, or None."""
    reason = unavailable()
    if reason is not None:
        return reason
    if x.device.type != 'cpu':
        return f'the map is on {x.device.type}'
    if x.dtype != torch.float32 or any(each.dtype != torch.float32 for each in weights):
        return 'only float32 is compiled'
    if x.numel() == 0:
        return 'the map is empty'
    if any(min(each.shape[2:]) > _SHORT for each in weights):
        return 'a large square kernel is faster by way of its spectrum'
    return None
