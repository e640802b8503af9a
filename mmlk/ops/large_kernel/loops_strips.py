"""Depthwise kernels with one short side, and their gradients, for a part of a map: SLaK's branches.

A task sees 16 channels, a cache line, of parts of images. It copies them to planes of as many channels
as a register holds, since a register's worth of channels lets sums of ten pixels, or of ten taps, stay
in registers together with the five taps, or pixels, that they share: every load then serves up to five
products. A wide kernel is a tall one on the transposed part, so that rows of taps beyond the map can
always be skipped exactly.
"""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

from mmlk.ops.jit import engine, planes
from mmlk.ops.jit.language import LANES, Int, Kernel
from mmlk.ops.jit.moments import Moments
from mmlk.ops.large_kernel.loops_taps import Kernels

# Vectors that sums and what they share may occupy, one more is in flight: AVX2 has 16 registers.
_REGISTERS = 15
# Sums that hide the latency of their additions: two a cycle, four cycles each.
_CHAINS = 8
# Rows of taps that are summed at once, at most: each needs a row of zeros around the plane.
_TAP_ROWS = 4
# Pixels that taps' sums share, at most.
_SHARED = 5
# Longest short side of a kernel: these taps are written out.
SHORT = 11
# Longest short side of which all taps stay in registers.
_HELD = 7
# Pixels of a map that stay in the first cache while all taps are summed.
_BAND = 320
# Vectors of 16 floats that any thread's stack holds.
_LIMIT = 8192
# Columns of a part, at most: a plane of more would hold fewer rows.
_SIDE = 64
# Tasks above which parts are not made smaller, and those above which a task takes several parts: enough
# for the threads of a desktop. More tasks share better, fewer copy fewer borders of parts.
_TASKS, _MANY_TASKS = 16, 32


@engine.once
def lanes() -> int:
    """Floats in a register of this processor, 8 or 16."""
    return LANES if engine.has('avx512f') else 8


class Bands(NamedTuple):
    """How a map is divided into parts.

    Args:
        row_bands: Number of parts from top to bottom.
        band_rows: Rows of each, fewer of the last.
        column_bands: Number of parts from left to right.
        band_columns: Columns of each, fewer of the last.
        room: Pixels of the largest plane.
        group: Parts that a task takes one after the other.
        tiles: For every kernel, pixels that are summed side by side.
    """

    row_bands: int
    band_rows: int
    column_bands: int
    band_columns: int
    room: int
    group: int
    tiles: tuple[int, ...]


def _tile(length: int, short: int) -> int:
    """Pixels summed side by side: the fewest whose results are dropped, then the fewest groups."""
    most = _REGISTERS - (short if short <= _HELD else 1)
    return min(range(1, most + 1), key=lambda tile: -(-length // tile) * (max(tile, _CHAINS) + 0.7))


def _tap_rows(short: int) -> int:
    """Rows of taps that are summed at once."""
    return min(_TAP_ROWS, max(1, (_CHAINS + 2) // short))


def _shared(short: int) -> int:
    """Pixels in registers that sums of taps share."""
    return min(_SHARED, _REGISTERS - _tap_rows(short) * short)


@functools.lru_cache(maxsize=4096)
def divide(images: int, blocks: int, height: int, width: int, sizes: tuple) -> Bands:
    """Parts whose planes fit a stack, at least 16 tasks of them where the map allows.

    Args:
        images: Number of images.
        blocks: Number of blocks of 16 channels.
        height: Rows of the map.
        width: Columns of the map.
        sizes: Rows and columns of the kernels.
    """
    column_bands = -(-width // _SIDE)
    columns = -(-width // column_bands)

    def tiles(rows: int) -> tuple[int, ...]:
        return tuple(_tile(rows if kw > kh else columns, min(kh, kw)) for kh, kw in sizes)

    def plane(rows: int, size, tile: int) -> int:
        (kh, kw), (long, short), most = size, (rows, columns), height
        if kw > kh:
            (kh, kw), (long, short), most = (kw, kh), (columns, rows), width
        whole = max(_rounded_up(short, each) for each in (tile, _shared(kw)))
        return (min(long + kh - 1, most) + 2 * (_tap_rows(kw) - 1)) * (whole + kw - 1)

    def room(rows: int) -> int:
        return max(plane(rows, *each) for each in zip(sizes, tiles(rows)))

    rows = height
    while rows > 1 and room(rows) + rows * columns > _LIMIT:
        rows -= 1
    rows = min(rows, max(-(-height * images * blocks * column_bands // _TASKS), 4))
    bands = -(-height // rows)
    rows = -(-height // bands)
    parts = images * bands * column_bands
    group = max(1, min(parts, parts * blocks // _MANY_TASKS))
    group = -(-parts // -(-parts // group))
    return Bands(bands, rows, column_bands, columns, room(rows), group, tiles(rows))


def _rounded_up(number, unit: int):
    """The least multiple of ``unit`` that is not below a number, of the kernel or not."""
    return (number + (unit - 1)) // unit * unit


class Block:
    """The task: 16 channels, in one or two halves that fill a register, and some parts.

    Args:
        channels: Channels of the map.
        height: Its rows.
        width: Its columns.
        parts: Number of parts, of all images.
        group: Parts of a task.
    """

    def __init__(self, k: Kernel, channels, height, width, parts, group):
        self.k, self.channels, self.height, self.width = k, channels, height, width
        self.halves, self.parts, self.group = LANES // k.width, parts, group
        groups = (parts + group - 1) // group
        self.number, self.channel = k.task % groups, (k.task // groups) * LANES
        # For blocks of fewer channels, and for groups that reach beyond the part.
        self.buffer, self.sum_buffer = k.variable(k.zero), k.scratch(_REGISTERS)

    def each_part(self):
        """``with block.each_part() as number``: code for every part of the task."""
        first = self.number * self.group
        return self.k.loop(first, self.k.min(first + self.group, self.parts))

    @contextlib.contextmanager
    def each_half(self):
        """``with block.each_half() as half``: code for every half in which there are channels."""
        k = self.k
        with k.loop(0, self.halves) as half, k.when(self.channel_of(half) < self.channels):
            yield half

    def channel_of(self, half) -> Int:
        """First channel of a half."""
        return self.channel + self.k.int(half) * self.k.width

    def count_of(self, half) -> Int:
        """Channels from a half's first on; as many as it has lanes, and more, are a full one."""
        return (self.channels - self.channel_of(half)).at_least_zero()

    def row_of(self, pointer, row, half):
        """The half's numbers in a row of a table (rows, C)."""
        return self.k.load_some(
            pointer, self.channel_of(half) + row * self.channels, self.count_of(half), self.buffer
        )

    def rows_of(self, pointer, row) -> list:
        """`row_of` all halves, as variables."""
        return [self.k.variable(self.row_of(pointer, row, half)) for half in range(self.halves)]

    def set_row(self, value, pointer, row, half) -> None:
        """Write the half's numbers to a row of a table (rows, C)."""
        self.k.store_some(
            value,
            pointer,
            self.channel_of(half) + row * self.channels,
            self.count_of(half),
            self.buffer,
        )


class Part:
    """A part of an image, and a block's channels of it.

    Args:
        number: Number of the part.
        bands: The first four fields of `Bands`.
    """

    def __init__(self, block: Block, number, bands):
        row_bands, band_rows, column_bands, band_columns = bands
        self.block, self.k, self.number = block, block.k, number
        self.left = (number % column_bands) * band_columns
        rest = number // column_bands
        self.top, self.image = (rest % row_bands) * band_rows, rest // row_bands
        self.bottom = self.k.min(self.top + band_rows, block.height)
        self.right = self.k.min(self.left + band_columns, block.width)

    def pixels(self) -> Int:
        """Number of pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def map(self, pointer, half) -> planes.Map:
        """The half's channels of the part's image in the dense map at ``pointer``."""
        block = self.block
        row = block.width * block.channels
        return planes.Map(
            pointer,
            self.image * (block.height * row) + block.channel_of(half),
            row,
            block.channels,
            block.count_of(half),
        )

    def stored(self, pointer, half) -> planes.Map:
        """As `map`, in a map of blocks (N, ceil(C / 16), H, W, 16), where all lanes may be touched."""
        k, block = self.k, self.block
        row, blocks = block.width * LANES, (block.channels + (LANES - 1)) // LANES
        image = self.image * blocks + block.channel // LANES
        return planes.Map(
            pointer,
            image * (block.height * row) + k.int(half) * k.width,
            row,
            k.int(LANES),
            k.int(LANES),
        )

    def halves(self, pointer, *, stored: bool = False) -> list[planes.Map]:
        """`map`, or `stored`, of all halves."""
        find = self.stored if stored else self.map
        return [find(pointer, half) for half in range(self.block.halves)]


class OwnPixels:
    """A part's own pixels, of all halves, with zeros on the right and below that fill up groups.

    Args:
        bands: As for `Part`.
    """

    def __init__(self, block: Block, bands):
        self.block, self.k = block, block.k
        self.columns = bands[3] + (_SHARED - 1)
        self.size = (bands[1] + (_SHARED - 1)) * self.columns
        self.pointer = self.k.scratch(self.size * block.halves)

    def fill(self, part: Part, pointer) -> None:
        """Copy the part of the dense map at ``pointer``."""
        k, sources = self.k, part.halves(pointer)
        with k.loop(0, self.size * self.block.halves) as place:
            k.store(k.zero, self.pointer, place * k.width)
        with k.loop(part.top, part.bottom) as y, k.loop(part.left, part.right) as x:
            sources[0].prefetch(k, y + 1, x)
            for half, source in enumerate(sources):
                own = self.map(half)
                k.store(
                    source.read(k, y, x, self.block.buffer),
                    own.pointer,
                    own.pixel(y - part.top, x - part.left),
                )

    def map(self, half) -> planes.Map:
        """A half of them; the part's first pixel is the first."""
        k = self.k
        return planes.Map(
            self.pointer,
            self.size * k.int(half) * k.width,
            self.columns * k.width,
            k.int(k.width),
            k.int(k.width),
        )


class Strip:
    """A kernel that is at least as tall as wide: seen transposed, as the map is, where it is not.

    Rows of taps that meet no pixel can be skipped exactly, so the long side is made that of rows.

    Args:
        size: Rows and columns of the kernel as it is stored.
        tile: Pixels that are summed side by side.
    """

    def __init__(self, block: Block, size: tuple[int, int], tile: int):
        self.block, self.k, self.tile, self.transposed = block, block.k, tile, size[1] > size[0]
        self.kh, self.kw = self.turned(size)
        # Strips of one form can read one plane.
        self.form = self.transposed, self.kw, tile
        self.height, self.width = self.turned((block.height, block.width))
        self.tap_rows, self.shared = _tap_rows(self.kw), _shared(self.kw)
        self.kernels = Kernels(block, self.kh, self.kw, self.transposed, self.reached())

    def turned(self, pair: tuple) -> tuple:
        """(rows, columns) as the strip sees them."""
        return pair[::-1] if self.transposed else pair

    def reached(self) -> tuple[Int, Int]:
        """First row of taps that meets a pixel of the map, and the first after them that does not."""
        k = self.k
        return (
            k.max(0, self.kh // 2 + 1 - self.height),
            k.min(self.kh, self.kh // 2 + self.height),
        )

    def taps(self):
        """Scratch for a vector a tap, and for rows whose sums are dropped."""
        return self.k.scratch(self.block.halves * self.tap_room())

    def tap_room(self) -> int:
        """Vectors of that for one half."""
        return (self.kh + self.tap_rows - 1) * self.kw

    def of_half(self, taps, half):
        """The half's part of that scratch."""
        return self.k.at(taps, self.k.int(half) * (self.tap_room() * self.k.width))

    def clear(self, taps) -> None:
        """Zero in the scratch of a half, as far as `sum_taps` adds to it."""
        k, (first, after) = self.k, self.kernels.reached
        with k.loop(first * self.kw, (after + (self.tap_rows - 1)) * self.kw) as tap:
            k.store(k.zero, taps, tap * k.width)


class View:
    """A part as a strip sees it."""

    def __init__(self, part: Part, strip: Strip):
        self.part, self.strip, self.k, self.block = part, strip, part.k, part.block
        (self.top, self.bottom), (self.left, self.right) = strip.turned(
            ((part.top, part.bottom), (part.left, part.right))
        )

    def fill(self, memory, room, sources, spare: int) -> Plane:
        """The plane of the part with what the kernel reaches around it, of all halves.

        Args:
            memory: Scratch for ``room`` vectors of every half.
            sources: For every half what has ``read`` and ``prefetch`` as `planes.Map` does.
            spare: Rows of zeros above and below.
        """
        k, strip = self.k, self.strip
        kh, kw, columns = strip.kh, strip.kw, self.right - self.left
        first = k.max(self.top - kh // 2, 0)
        after = k.min(self.bottom + kh // 2, strip.height)
        begin = self.left - kw // 2
        whole = k.max(*(_rounded_up(columns, each) for each in (strip.tile, strip.shared)))
        plane = Plane(memory, first - spare, begin, whole + (kw - 1), room * k.width)
        size = (after - first + 2 * spare) * plane.columns
        for half in range(len(sources)):
            with k.loop(0, size) as place:
                k.store(k.zero, plane.of_half(k, half), place * k.width)
        rows = first, after
        columns = k.max(begin, 0), k.min(begin + plane.columns, strip.width)
        # The map is read in its own order.
        (top, bottom), (left, right) = strip.turned((rows, columns))
        with k.loop(top, bottom) as y, k.loop(left, right) as x:
            place = plane.at(k, *strip.turned((y, x)))
            sources[0].prefetch(k, y + 1, x)
            for half, source in enumerate(sources):
                value = source.read(k, y, x, self.block.buffer)
                k.store(value, plane.of_half(k, half), place)
        return plane

    def seen(self, image: planes.Map) -> planes.Map:
        """A map whose rows are the strip's."""
        row, column = self.strip.turned((image.row, image.column))
        return image._replace(row=row, column=column)


class Plane(NamedTuple):
    """A filled plane: its memory, first row and column on the map, columns, and floats of a half."""

    pointer: object
    row: Int
    column: Int
    columns: Int
    size: Int

    def at(self, k: Kernel, y, x) -> Int:
        return ((y - self.row) * self.columns + (x - self.column)) * k.width

    def of_half(self, k: Kernel, half):
        """The memory of a half."""
        return k.at(self.pointer, self.size * k.int(half))


def convolve(
    view: View,
    plane: Plane,
    half,
    taps,
    start,
    target: planes.Map,
    accumulate: bool,
    moments: Moments | None = None,
) -> None:
    """Convolve the plane with the kernel ``taps`` (one vector each) into the part of ``target``.

    One group of columns after another stays in the first cache from row to row.

    Args:
        start: Vector that the sums start from.
        accumulate: Add to what the target holds.
        moments: Takes the results, too.
    """
    k, strip, tile = view.k, view.strip, view.strip.tile
    pixels, target, reach = plane.of_half(k, half), view.seen(target), strip.kh // 2
    tiles, buffer, sum_buffer = (
        (view.right - view.left + (tile - 1)) // tile,
        view.block.buffer,
        view.block.sum_buffer,
    )
    with k.loop(0, tiles) as index, k.loop(view.top, view.bottom) as row:
        above, column = row - reach, view.left + index * tile
        wide = k.min(tile, view.right - column)
        before = index * tile * (view.bottom - view.top) + (row - view.top) * wide
        for pixel in range(tile):
            k.prefetch(target.pointer, target.pixel(row, column + pixel), write=True)
        sums = [k.variable(start) for _ in range(tile)]
        with k.loop(k.max(0, 0 - above), k.min(strip.kh, strip.height - above)) as i:
            line = plane.at(k, above + i, column - strip.kw // 2)
            _row_of_taps(
                k, strip.kw, sums, k.at(pixels, line), k.at(taps, i * (strip.kw * k.width))
            )
        with k.either(k.both(target.channels >= k.width, wide >= tile)) as (full, part):
            with full:
                if moments:
                    moments.add([k.read(each) for each in sums], before)
                for pixel, each in enumerate(sums):
                    place, value = target.pixel(row, column + pixel), k.read(each)
                    if accumulate:
                        value = k.b.fadd(value, k.load(target.pointer, place))
                    k.store(value, target.pointer, place)
            with part:
                for pixel, each in enumerate(sums):
                    k.store(k.read(each), sum_buffer, pixel * k.width)
                with k.loop(0, wide) as pixel:
                    value = k.load(sum_buffer, pixel * k.width)
                    if moments:
                        moments.add([value], before + pixel)
                    if accumulate:
                        value = k.b.fadd(value, target.read(k, row, column + pixel, buffer))
                    k.store_some(
                        value,
                        target.pointer,
                        target.pixel(row, column + pixel),
                        target.channels,
                        buffer,
                    )


def _row_of_taps(k: Kernel, kw: int, sums: list, pixels, taps) -> None:
    """Add a row of taps times the pixels from ``pixels`` on to neighbouring sums."""
    if kw <= _HELD:
        factors = [k.load(taps, j * k.width) for j in range(kw)]
        for place in range(len(sums) + kw - 1):
            value = k.load(pixels, place * k.width)
            for j, factor in enumerate(factors):
                if 0 <= place - j < len(sums):
                    k.add_product(sums[place - j], value, factor)
            # LLVM would load several at once into registers it does not have.
            k.barrier(pixels)
        return
    for j in range(kw):
        factor = k.load(taps, j * k.width)
        for pixel, each in enumerate(sums):
            k.add_product(each, k.load(pixels, (j + pixel) * k.width), factor)
        k.barrier(pixels)


def sum_taps(view: View, plane: Plane, half, own: planes.Map, taps) -> None:
    """Add sums over the part of pixels times the plane, one vector a tap of the flipped kernel.

    Args:
        own: The half's pixels of the part, zero in what fills up groups of them.
        taps: Vectors to add to.
    """
    k, strip = view.k, view.strip
    pixels, own, reach = plane.of_half(k, half), view.seen(own), strip.kh // 2
    first, after = strip.kernels.reached
    columns = view.right - view.left
    rows = k.max(1, k.int(_BAND) // columns)
    with (
        k.loop(0, (view.bottom - view.top + rows - 1) // rows) as band,
        k.loop(first, after, strip.tap_rows) as i,
    ):
        top = view.top + band * rows
        bottom = k.min(top + rows, view.bottom)
        begin = k.max(top, reach - (strip.tap_rows - 1) - i)
        end = k.min(bottom, strip.height + reach - i)
        place = i * (strip.kw * k.width)
        sums = [
            k.variable(k.load(taps, place + index * k.width))
            for index in range(strip.tap_rows * strip.kw)
        ]
        with k.loop(begin, end) as row, k.loop(0, columns, strip.shared) as column:
            factors = [
                k.load(own.pointer, own.pixel(row - view.top, column + pixel))
                for pixel in range(strip.shared)
            ]
            line = plane.at(k, row + i - reach, view.left + column - strip.kw // 2)
            for step in range(strip.shared + strip.kw - 1):
                for tap_row in range(strip.tap_rows):
                    value = k.load(pixels, line + (plane.columns * tap_row + step) * k.width)
                    for pixel, factor in enumerate(factors):
                        if 0 <= step - pixel < strip.kw:
                            each = sums[tap_row * strip.kw + step - pixel]
                            k.add_product(each, value, factor)
                    k.barrier(pixels)
        for index, each in enumerate(sums):
            k.store(k.read(each), taps, place + index * k.width)
