"""Where the intermediate results of a repeated computation are in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64
"""Bytes of a line of the cache: vectors of blocks that begin there do not cross one more."""


class Lifetime(NamedTuple):
    """A block of memory, and when it is needed.

    Attributes:
        size: Bytes.
        first: Number of the first step that uses it.
        last: Number of the last one.
    """

    size: int
    first: int
    last: int


def arranged(blocks: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets of blocks of which no two overlap that are needed in one step, and the bytes in all.

    The largest comes first, each at the lowest offset that is free: memory that was just used, and is
    in the cache, is used again.
    """
    offsets, placed, end = [0] * len(blocks), [], 0
    for index in sorted(range(len(blocks)), key=lambda each: -blocks[each].size):
        block = blocks[index]
        size = -(-block.size // ALIGNMENT) * ALIGNMENT
        place = 0
        for begin, behind, other in placed:  # in the order of their offsets
            if other.last < block.first or block.last < other.first:
                continue
            if begin - place >= size:
                break
            place = max(place, behind)
        offsets[index] = place
        placed.append((place, place + size, block))
        placed.sort(key=lambda each: each[0])
        end = max(end, place + size)
    return offsets, end
