"""Sums of products for a few rows at a time: the inner loop of every compiled matrix product."""

from __future__ import annotations

from mmlk.ops.jit.language import Int

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
