"""The exponential function on vectors of kernels."""

from __future__ import annotations

import math

from mmlk.ops.jit.kernel import Kernel


def exponential(k: Kernel, x):
    """``exp(x)`` of vectors not above zero: powers of two times a Taylor polynomial on ln(2) / 2."""
    least = k.splat(-87.0)
    x = k.b.select(k.compare('<', x, least), least, x)
    power = k.intrinsic('llvm.rint', k.b.fmul(x, k.splat(1 / math.log(2))))
    # ln(2) in two parts, the first with few bits, so that the remainder is exact.
    rest = k.fma(power, k.splat(-0.693359375), x)
    rest = k.fma(power, k.splat(0.693359375 - math.log(2)), rest)
    value = k.splat(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        value = k.fma(value, rest, k.splat(1 / math.factorial(degree)))
    return k.b.fmul(value, k.power_of_two(power))
