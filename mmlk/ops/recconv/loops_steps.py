"""Steps of the recursive convolution on planes of 16 channels.

A plane holds a level's map with k // 2 zero pixels at either end of each row. Its pixels lie side by
side, so a convolution reads it with one address and no condition. Rows beyond the map are skipped, not
stored.
"""

from __future__ import annotations

import functools

from mmlk.ops.jit.language import LANES, Int, Kernel

PIXELS = 7
"""Pixels of a tile: with 16 channels each, the sums fill the registers of AVX2 but for two."""

CACHED = 256
"""Pixels of a band of the kernels' gradients, which is read once for each row of the kernel."""

UP, DOWN = 2, 4
"""Pairs for one position of an interpolation and of its gradient."""

_TABLES = 'places_p weights_p row_table column_table'


class Steps:
    """The steps of the recursion on planes of 16 channels, as routines of a kernel.

    Planes are given by their address, border included, and the floats from row to row; other targets by
    the address of their first pixel. Rows beyond the map are skipped, not stored.
    """

    def __init__(self, k: Kernel, side: int):
        self.k, self.side, self.radius = k, side, side // 2
        plane = 'source_p source_row source_rows'
        target = 'target_p target_row target_column rows columns'
        self.convolve = k.routine(f'{plane} taps_p {target}', functools.partial(self._convolve, 1))
        self.halve = k.routine(f'{plane} taps_p {target}', functools.partial(self._convolve, 2))
        self.border = k.routine('plane_p row height width', self._border)
        self.pack = k.routine('kernel_p channels taps_p', self._pack)
        self.add_up = k.routine(
            f'source_p base_p {_TABLES} line_p target_p target_row rows columns width', self._add_up
        )

    def write_gradients(self) -> None:
        """Write the routines of the backward pass too."""
        k = self.k
        plane = 'source_p source_row source_rows'
        self.flip = k.routine('taps_p target_p', self._flip)
        self.spread = k.routine(f'{plane} taps_p target_p target_row rows columns', self._spread)
        self.weigh = k.routine(f'{plane} grad_p grad_row sums_p rows columns step', self._weigh)
        self.fold = k.routine(
            f'source_p {_TABLES} line_p target_p target_row rows columns width', self._fold
        )
        self.unpack = k.routine('taps_p channels kernel_p', self._unpack)

    def _tiles(self, columns: Int, write) -> None:
        """``write(first, width)`` for tiles of nearly equal width, at most `PIXELS`."""
        k = self.k
        count = (columns + (PIXELS - 1)) // PIXELS
        width = (columns + (count - 1)) // k.max(count, 1)
        with k.loop(0, count) as index:
            first = index * width
            rest = k.min(width, columns - first)
            for pixels in range(1, PIXELS + 1):
                with k.when(rest.compare('==', pixels)):
                    write(first, pixels)

    def _convolve(
        self,
        step,
        source,
        source_row,
        source_rows,
        taps,
        target,
        target_row,
        target_column,
        rows,
        columns,
    ) -> None:
        k = self.k
        with k.loop(0, rows) as row:
            above = row * step - self.radius
            kernel_rows = k.max(0, 0 - above), k.min(self.side, source_rows - above)

            def tile(first, pixels):
                sums = [k.variable(k.zero) for _ in range(pixels)]
                with k.loop(*kernel_rows) as i:
                    line = k.at(source, (above + i) * source_row + first * (step * LANES))
                    taps_line = k.at(taps, i * (self.side * LANES))
                    for j in range(self.side):
                        factor = k.load(taps_line, j * LANES)
                        for pixel, each in enumerate(sums):
                            k.add_product(each, k.load(line, (j + pixel * step) * LANES), factor)
                place = k.at(target, row * target_row + first * target_column)
                for pixel, each in enumerate(sums):
                    k.store(k.read(each), place, target_column * pixel)

            self._tiles(columns, tile)

    def _spread(
        self, source, source_row, source_rows, taps, target, target_row, rows, columns
    ) -> None:
        """Add the gradient of `halve` with respect to its source to the target's plane.

        Position p takes tap i from position (p + radius - i) / 2 of the incoming gradient.
        """
        k, radius = self.k, self.radius
        with k.loop(0, rows) as row:
            begin = k.max((row + radius) % 2, row + radius - (source_rows - 1) * 2)
            end = k.min(self.side, row + (radius + 1))
            for parity in (0, 1):
                write = functools.partial(
                    self._spread_tile,
                    parity,
                    source,
                    source_row,
                    taps,
                    k.at(target, row * target_row),
                    row,
                    begin,
                    end,
                )
                if self._taps_of(parity):
                    self._tiles((columns + (1 - parity)) // 2, write)

    def _taps_of(self, parity: int) -> list[int]:
        """Columns of the kernel that positions of one parity take from the incoming gradient."""
        return [j for j in range(self.side) if (parity + self.radius - j) % 2 == 0]

    def _spread_tile(
        self, parity, source, source_row, taps, target, row, begin, end, first, pixels
    ) -> None:
        k, radius = self.k, self.radius
        place = k.at(target, (first * 2 + parity) * LANES)
        sums = [k.variable(k.load(place, 2 * pixel * LANES)) for pixel in range(pixels)]
        with k.loop(begin, end, 2) as i:
            line = k.at(source, (row + radius - i) // 2 * source_row + first * LANES)
            taps_line = k.at(taps, i * (self.side * LANES))
            for j in self._taps_of(parity):
                shift = radius + (parity + radius - j) // 2
                factor = k.load(taps_line, j * LANES)
                for pixel, each in enumerate(sums):
                    k.add_product(each, k.load(line, (shift + pixel) * LANES), factor)
        for pixel, each in enumerate(sums):
            k.store(k.read(each), place, 2 * pixel * LANES)

    def _weigh(
        self, source, source_row, source_rows, grad, grad_row, sums, rows, columns, step
    ) -> None:
        """Add the gradient of a convolution's kernel to ``sums``; ``grad`` is a first pixel."""
        k, radius = self.k, self.radius
        band = k.max(1, k.int(CACHED) // k.max(columns, 1))
        with k.loop(0, (rows + band - 1) // band) as number:
            top = number * band
            bottom = k.min(rows, top + band)
            with k.loop(0, self.side) as i:
                begin = k.max(top, k.max(0, radius - i + step - 1) // step)
                end = k.min(bottom, k.max(0, source_rows + radius - i + step - 1) // step)
                taps = [k.variable(k.zero) for _ in range(self.side)]
                with k.loop(begin, end) as row:
                    line = k.at(source, (row * step + i - radius) * source_row)
                    grad_line = k.at(grad, row * grad_row)
                    with k.loop(0, columns) as column:
                        factor = k.load(grad_line, column * LANES)
                        place = k.at(line, column * step * LANES)
                        for j, each in enumerate(taps):
                            k.add_product(each, k.load(place, j * LANES), factor)
                for j, each in enumerate(taps):
                    place = (i * self.side + j) * LANES
                    k.store(k.b.fadd(k.read(each), k.load(sums, place)), sums, place)

    def _mix(self, source, places, weights, first, count: int, start=None):
        """Sum of ``count`` weighted vectors at listed places after ``source``."""
        k, total = self.k, start
        for pair in range(count):
            value = k.load(source, k.load_int(places, first + pair))
            weight = k.load_splat(weights, first + pair)
            total = k.b.fmul(value, weight) if total is None else k.fma(value, weight, total)
        return total

    def _add_up(
        self,
        source,
        base,
        places,
        weights,
        row_table,
        column_table,
        line,
        target,
        target_row,
        rows,
        columns,
        width,
    ) -> None:
        """``target = base + interpolated source``; ``width`` is the source's, all are first pixels."""
        k = self.k
        with k.loop(0, rows) as row:
            self._mix_rows(UP, source, places, weights, row_table + row * UP, line, width)
            with k.loop(0, columns) as column:
                place = row * target_row + column * LANES
                k.store(
                    self._mix(
                        line, places, weights, column_table + column * UP, UP, k.load(base, place)
                    ),
                    target,
                    place,
                )

    def _fold(
        self,
        source,
        places,
        weights,
        row_table,
        column_table,
        line,
        target,
        target_row,
        rows,
        columns,
        width,
    ) -> None:
        """The gradient of the interpolation, from the fine plane to the coarse one."""
        k = self.k
        with k.loop(0, rows) as row:
            self._mix_rows(DOWN, source, places, weights, row_table + row * DOWN, line, width)
            with k.loop(0, columns) as column:
                k.store(
                    self._mix(line, places, weights, column_table + column * DOWN, DOWN),
                    target,
                    row * target_row + column * LANES,
                )

    def _mix_rows(self, count, source, places, weights, first, line, width) -> None:
        k = self.k
        rows = [k.at(source, k.load_int(places, first + pair)) for pair in range(count)]
        factors = [k.variable(k.load_splat(weights, first + pair)) for pair in range(count)]
        with k.loop(0, width) as column:
            total = k.b.fmul(k.load(rows[0], column * LANES), k.read(factors[0]))
            for row, factor in zip(rows[1:], factors[1:]):
                total = k.fma(k.load(row, column * LANES), k.read(factor), total)
            k.store(total, line, column * LANES)

    def _border(self, plane, row, height, width) -> None:
        k = self.k
        with k.loop(0, height) as y:
            line = k.at(plane, y * row)
            for x in range(self.radius):
                k.store(k.zero, line, x * LANES)
                k.store(k.zero, line, (width + (self.radius + x)) * LANES)

    def _pack(self, kernel_, channels, taps) -> None:
        """Kernels (channels, taps) to one vector a tap; channels beyond repeat the last one."""
        k, count = self.k, self.side**2
        lanes = [k.min(lane, channels - 1) * count for lane in range(LANES)]
        with k.loop(0, count) as tap:
            k.store(k.gather([k.at(kernel_, lane + tap) for lane in lanes]), taps, tap * LANES)

    def _unpack(self, taps, channels, kernel_) -> None:
        k, count = self.k, self.side**2
        with k.loop(0, k.min(channels, LANES)) as lane:
            with k.loop(0, count) as tap:
                k.copy_float(k.at(taps, tap * LANES + lane), k.at(kernel_, lane * count + tap))

    def _flip(self, taps, target) -> None:
        k, last = self.k, self.side**2 - 1
        with k.loop(0, last + 1) as tap:
            k.store(k.load(taps, tap * LANES), target, (last - tap) * LANES)
