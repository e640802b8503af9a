"""Depthwise kernels (C, taps) as one vector a tap, and back: 4 x 4 floats are transposed at a time."""

from __future__ import annotations

from mmlk.ops.jit.language import Kernel


def _quads(k: Kernel, vectors: list) -> list:
    """Every 4 x 4 block of four vectors transposed."""
    starts, n = range(0, k.width, 4), k.width
    low, high = (
        [each + s for s in starts for each in (o, n + o, o + 1, n + o + 1)] for o in (0, 2)
    )
    a, b, c, d = vectors
    pairs = [(k.shuffle(a, b, order), k.shuffle(c, d, order)) for order in (low, high)]
    first, second = (
        [each + s for s in starts for each in (o, o + 1, n + o, n + o + 1)] for o in (0, 2)
    )
    return [k.shuffle(*pair, order) for pair in pairs for order in (first, second)]


def _joined(k: Kernel, quarters: list):
    """Vectors of four floats one after the other."""
    width = 4
    while len(quarters) > 1:
        width *= 2
        quarters = [
            k.shuffle(*quarters[i : i + 2], range(width)) for i in range(0, len(quarters), 2)
        ]
    return quarters[0]


class Kernels:
    """How a block's kernels lie in memory, and which rows of their taps meet the map.

    Args:
        block: Has ``channels``, ``count_of`` and ``channel_of`` of its halves.
        kh: Rows of taps, as the strip sees them.
        kw: Taps in a row.
        transposed: Whether they are stored column by column.
        reached: First row that meets the map, and the first after them.
    """

    def __init__(self, block, kh: int, kw: int, transposed: bool, reached: tuple):
        self.block, self.k, self.kh, self.kw = block, block.k, kh, kw
        self.count, self.transposed, self.reached = kh * kw, transposed, reached

    def _each_four(self, channels, write, write_one) -> None:
        """Code for groups of four taps, neighbours in memory, that cover all that meet the map.

        Args:
            channels: Number of channels, at most as many as a vector has lanes.
            write: ``write(place, vectors)`` of the first's place in memory and those of all vectors.
            write_one: ``write_one(lane, place, vector)`` for single numbers of shorter runs.
        """
        k, (first, after) = self.k, self.reached
        step, runs = (self.kw, self.kw) if self.transposed else (1, 1)
        length = (after - first) * (1 if self.transposed else self.kw)
        with k.loop(0, runs) as run:
            memory = first + run * self.kh if self.transposed else first * self.kw
            vector = first * self.kw + run
            with k.when(length >= 4), k.loop(0, length, 4) as index:
                start = k.min(index, length - 4)
                write(memory + start, [(vector + (start + i) * step) * k.width for i in range(4)])
            with k.when(length < 4), k.loop(0, channels) as lane, k.loop(0, length) as index:
                write_one(lane, memory + index, (vector + index * step) * k.width)

    def pack(self, half, weight, taps, flip: bool) -> None:
        """Copy the kernels (C, taps) of a half that meet the map, as one vector a tap.

        Args:
            flip: Order the taps backwards.
        """
        k = self.k
        channel, count = self.block.channel_of(half), self.block.count_of(half)
        # Beyond the last channel that one is read again.
        lines = [
            k.at(weight, (channel + k.min(lane, count - 1)) * self.count) for lane in range(k.width)
        ]

        def write(place, vectors) -> None:
            source = (self.count - 4) - place if flip else place
            rows = [k.load_four(line, source) for line in lines]
            columns = _quads(k, [_joined(k, rows[r::4]) for r in range(4)])
            for column, vector in zip(columns[::-1] if flip else columns, vectors):
                k.store(column, taps, vector)

        def write_one(lane, place, vector) -> None:
            source = (self.count - 1) - place if flip else place
            k.copy_float(
                k.at(weight, (channel + lane) * self.count + source), k.at(taps, vector + lane)
            )

        self._each_four(k.min(count, k.width), write, write_one)

    def unpack(self, half, taps, result) -> None:
        """Write flipped taps, one vector each, to the half's kernels (C, taps), and zero elsewhere."""
        k = self.k
        channel, count = self.block.channel_of(half), self.block.count_of(half)
        self._clear(channel, count, result)

        def write(place, vectors) -> None:
            columns = [k.load(taps, vector) for vector in vectors[::-1]]
            target = channel * self.count + ((self.count - 4) - place)
            for residue, rows in enumerate(_quads(k, columns)):
                for lane in range(residue, k.width, 4):
                    with k.when(count >= lane + 1):
                        four = k.shuffle(rows, rows, range(lane - residue, lane - residue + 4))
                        k.store(four, result, target + lane * self.count)

        def write_one(lane, place, vector) -> None:
            target = (channel + lane) * self.count + ((self.count - 1) - place)
            k.copy_float(k.at(taps, vector + lane), k.at(result, target))

        self._each_four(k.min(count, k.width), write, write_one)

    def _clear(self, channel, count, result) -> None:
        """Zero in the half's kernels."""
        k, buffer = self.k, self.block.buffer
        size = k.min(count, k.width) * self.count
        first, whole = channel * self.count, size - size % k.width
        with k.loop(0, whole, k.width) as place:
            k.store(k.zero, result, first + place)
        k.write(buffer, k.zero)
        with k.loop(whole, size) as place:
            k.copy_float(buffer, k.at(result, first + place))
