"""Planes: 16 channels of a part of a map, copied side by side with the zeros around it.

A plane's pixels are neighbouring vectors, so a convolution reads it with one address and no
condition. Copying costs one load and one store a vector, next to one product for every tap.
"""

from __future__ import annotations

from typing import NamedTuple

from mmlk.ops.jit.language import LANES, Int, Kernel


class Map(NamedTuple):
    """A channels-last map of which a task sees one image and one block of 16 channels.

    Args:
        pointer: Address of the map.
        offset: Floats from there to the image's first pixel of the block.
        row: Floats from row to row.
        column: Floats from pixel to pixel.
        channels: Channels from the block's first on; 16 and more are a full block.
    """

    pointer: object
    offset: Int
    row: Int
    column: Int
    channels: Int

    def pixel(self, y, x) -> Int:
        return self.offset + y * self.row + x * self.column

    def read(self, k: Kernel, y, x, buffer):
        """The pixel's vector of channels, or fewer and zeros; ``buffer`` is a variable for those."""
        return k.load_some(self.pointer, self.pixel(y, x), self.channels, buffer)

    def prefetch(self, k: Kernel, y, x) -> None:
        """Ask for the pixel's 16 channels, which rarely start where a cache line does."""
        for offset in (0, LANES - 1):
            k.prefetch(self.pointer, self.pixel(y, x) + offset)


def fill(k: Kernel, plane, source, rows, columns, size, buffer) -> None:
    """Copy rows ``rows[0]`` and following, columns ``columns[0]`` and following, zero outside the map.

    Args:
        plane: Scratch for rows[1] * columns[1] vectors.
        source: A `Map`, or anything that computes pixels as its `read` does.
        rows: First row, which may be negative, and number of rows.
        columns: The same of columns.
        size: Height and width of the map.
        buffer: A variable for partial blocks.
    """
    (top, height), (left, width) = rows, columns
    first = k.min(k.max(0, 0 - left), width)
    end = k.max(first, k.min(width, size[1] - left))
    with k.loop(0, height) as y:
        line = y * width
        inside = k.both(top + y >= 0, top + y < size[0])
        with k.either(inside) as (within, beyond):
            with within:
                with k.loop(0, first) as x:
                    k.store(k.zero, plane, (line + x) * LANES)
                with k.loop(first, end) as x:
                    place = k.at(plane, (line + x) * LANES)
                    if isinstance(source, Map):
                        pixel = k.at(source.pointer, source.pixel(top + y, left + x))
                        k.copy_block(pixel, place, source.channels)
                    else:
                        k.store(source.read(k, top + y, left + x, buffer), place)
                with k.loop(end, width) as x:
                    k.store(k.zero, plane, (line + x) * LANES)
            with beyond, k.loop(0, width) as x:
                k.store(k.zero, plane, (line + x) * LANES)


def pack_kernel(
    k: Kernel, target, weight, channel, channels, taps: int, flip: bool = False
) -> None:
    """Copy the kernels (C, taps) of a block to scratch as one vector a tap.

    Args:
        channel: First channel of the block.
        channels: Channels from there on; missing ones are zero.
        flip: Order the taps backwards.
    """
    with k.loop(0, taps) as tap:
        k.store(k.zero, target, tap * LANES)
    with k.loop(0, k.min(channels, LANES)) as lane:
        line = (channel + lane) * taps
        with k.loop(0, taps) as tap:
            source = taps - 1 - tap if flip else tap
            k.copy_float(k.at(weight, line + source), k.at(target, tap * LANES + lane))
