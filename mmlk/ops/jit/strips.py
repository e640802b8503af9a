"""Convolutions by strips and their gradients, for a part of a map: what the branches are written in.

A task sees 16 channels of a part of one image. A wide kernel is a tall one on the transposed part, so
that rows of taps beyond the map can always be skipped exactly. Sums of up to seven pixels, or of up
to six taps, stay in registers: a tap is one load of its kernel vector and one product with memory
per pixel.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from mmlk.ops.jit import planes
from mmlk.ops.jit.kernel import LANES, Int, Kernel

# Sums held in registers: pixels of a map, or taps of a kernel's gradient.
_PIXELS, _TAPS = 7, 6
# Longest short side of a kernel: these taps are written out.
SHORT = 11
# Pixels of a map that stay in the first cache while all taps are summed.
_BAND = 160
# Vectors that any thread's stack holds.
_LIMIT = 8192
_SIDE = 64
_TASKS = 16


class Bands(NamedTuple):
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
def divide(images: int, height: int, width: int, sizes: tuple) -> Bands:
    """Parts whose planes fit a stack, at least 16 of them where the map allows.

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
    return Bands(bands, rows, column_bands, columns, room(rows), (_tile(columns), _tile(rows)))


class Part:
    """The part of a task: its block of channels and its pixels.

    Args:
        channels: Channels of the map.
        height: Its rows.
        width: Its columns.
        parts: Number of parts, of all images.
        bands: The run-time fields of `Bands`.
    """

    def __init__(self, k: Kernel, channels, height, width, parts, bands):
        row_bands, band_rows, column_bands, band_columns, room = bands
        self.k, self.channels, self.height, self.width = k, channels, height, width
        self.number, self.channel = k.task % parts, (k.task // parts) * LANES
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


class View:
    """A part and a kernel that is at least as tall as wide: both transposed where it is not.

    Rows of taps that meet no pixel can be skipped exactly, so the long side is made that of rows.

    Args:
        part: The part.
        size: Rows and columns of the kernel as it is stored.
        tiles: Pixels of a group along a row and along a column.
    """

    def __init__(self, part: Part, size: tuple[int, int], tiles: tuple[int, int]):
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

    def fill(self, source) -> Plane:
        """The plane of the part with what the kernel reaches around it."""
        k, kh, kw = self.k, self.kh, self.kw
        first = k.max(self.top - kh // 2, 0)
        rows = k.min(self.bottom + kh // 2, self.height) - first
        begin, columns = self.left - kw // 2, self.tiles * self.tile + 2 * (kw // 2)
        planes.fill(k, self.part.plane, source, (first, rows), (begin, columns),
                    (self.height, self.width), self.part.slot)
        return Plane(self.part.plane, first, begin, columns)

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


class Plane(NamedTuple):
    """A filled plane: its memory, first row and column on the map, and number of columns."""

    pointer: object
    row: Int
    column: Int
    columns: Int

    def at(self, y, x) -> Int:
        return ((y - self.row) * self.columns + (x - self.column)) * LANES


def convolve(view: View, plane: Plane, taps, start, target: planes.Map, accumulate: bool) -> None:
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


def sum_taps(view: View, plane: Plane, pixels, columns, taps) -> None:
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
