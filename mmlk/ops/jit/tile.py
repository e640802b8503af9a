"""Small matrices in registers: sums of products, the inner loop of every compiled matrix product, and
transposition."""

from __future__ import annotations

from collections.abc import Iterator

from mmlk.ops.jit.language import LANES, Int

# Rows of a tile: on AVX2 twelve of the sixteen registers hold sums of 16 columns.
ROWS = 6

_UNROLL = 4


def add_products(
    k, sums: list, lines: list, step: int, weights, weight_step: int, depth: int | Int
) -> None:
    """``sums[r] += sum_i lines[r][i * step] weights[i * weight_step ... + 16]``, in the order of i.

    Args:
        sums: Variables.
        lines: As many addresses.
        step: Floats from one factor of a line to the next.
        weights: Address.
        weight_step: Floats from one vector of weights to the next.
        depth: Number of products in each sum.
    """

    def add(i, offset):
        weight = k.load(k.at(weights, i * weight_step), offset * weight_step)
        for total, line in zip(sums, lines, strict=True):
            k.add_product(total, k.load_splat(k.at(line, i * step), offset * step), weight)

    depth = k.int(depth)
    whole = depth - depth % _UNROLL
    with k.loop(0, whole, _UNROLL) as i:
        for offset in range(_UNROLL):
            add(i, offset)
    with k.loop(whole, depth) as i:
        add(i, 0)


def columns_of(k, fours: list) -> Iterator:
    """The four columns, 16 floats each, of 16 rows of four floats."""
    # Four rows at a time: their first floats, their second, third and fourth.
    by_column = [4 * row + column for column in range(4) for row in range(4)]
    quarters = [
        k.shuffle(*(k.shuffle(*fours[r : r + 2], range(8)) for r in (first, first + 2)), by_column)
        for first in range(0, LANES, 4)
    ]
    for column in range(4):
        lanes = [*range(4 * column, 4 * column + 4), *range(16 + 4 * column, 20 + 4 * column)]
        yield k.shuffle(k.shuffle(*quarters[:2], lanes), k.shuffle(*quarters[2:], lanes), range(16))
