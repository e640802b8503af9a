"""Mean and squared deviations of vectors that are met a few at a time, as they leave registers."""

from __future__ import annotations

import functools

from mmlk.ops.jit.language import Int, Kernel


class Moments:
    """Sums that keep their digits where the mean is large next to the deviations.

    Values are held against the first of them, groups of neighbours against their own mean; a group
    adds to the squared deviations by the distance of its mean from that of all before it (Chan, Golub
    and LeVeque, 1979).
    """

    def __init__(self, k: Kernel):
        self.k = k
        self._first, self._total, self._squares = (k.variable(k.zero) for _ in range(3))

    def add(self, values: list, before: Int) -> None:
        """Add a group.

        Args:
            values: Vectors of the same number in every group but those of the last ones.
            before: Number of values that were added before.
        """
        k, number = self.k, len(values)
        with k.when(before < 1):
            k.write(self._first, values[0])
        first, total = k.read(self._first), k.read(self._total)
        values = [k.b.fsub(each, first) for each in values]
        added = functools.reduce(k.b.fadd, values)
        mean = k.b.fmul(added, k.splat(1.0 / number))
        squares = k.read(self._squares)
        for each in values:
            away = k.b.fsub(each, mean)
            squares = k.fma(away, away, squares)
        away = k.b.fsub(mean, k.b.fdiv(total, k.number(k.max(before, 1))))
        share = k.b.fdiv(k.number(before * number), k.number(before + number))
        k.write(self._squares, k.fma(k.b.fmul(away, away), share, squares))
        k.write(self._total, k.b.fadd(total, added))

    def read(self, number: Int) -> tuple:
        """Mean and sum of squared deviations of all values; ``number`` is how many."""
        k = self.k
        mean = k.b.fdiv(k.read(self._total), k.number(number))
        return k.b.fadd(k.read(self._first), mean), k.read(self._squares)
