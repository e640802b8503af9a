"""Functions of vectors of 16 floats, to the precision of float32."""

from __future__ import annotations

import math

from mmlk.ops.jit.kernel import Kernel

# Normal tail over density as a polynomial in 1 / (1 + p x): Abramowitz and Stegun, 26.2.17. It is within
# 7.5e-8 of the tail.
_P = 0.2316419
_TAIL = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)


def power_of_two(k: Kernel, x):
    """2^x, for x of at least -126; a Taylor series between two integers, within 1.2e-7 of the value."""
    whole = k.intrinsic('llvm.nearbyint', x)
    rest = k.b.fsub(x, whole)
    total = k.splat(math.log(2)**6 / 720)
    for degree in range(5, -1, -1):
        total = k.fma(total, rest, k.splat(math.log(2)**degree / math.factorial(degree)))
    return k.b.fmul(total, k.exponent(whole))


def normal(k: Kernel, x):
    """Density of the standard normal distribution at ``x``, and the probability below ``x``."""
    magnitude = k.intrinsic('llvm.fabs', x)
    power = k.b.fmul(k.b.fmul(x, x), k.splat(-0.5 / math.log(2)))
    density = k.b.fmul(power_of_two(k, k.larger(power, k.splat(-126.0))),
                       k.splat(1 / math.sqrt(2 * math.pi)))
    place = k.b.fdiv(k.splat(1.0), k.fma(magnitude, k.splat(_P), k.splat(1.0)))
    tail = k.splat(_TAIL[-1])
    for factor in _TAIL[-2::-1]:
        tail = k.fma(tail, place, k.splat(factor))
    tail = k.b.fmul(k.b.fmul(tail, place), density)
    below = k.b.select(k.b.fcmp_ordered('<', x, k.zero), tail, k.b.fsub(k.splat(1.0), tail))
    return density, below


def gelu(k: Kernel, x):
    """x times the probability below x."""
    return k.b.fmul(x, normal(k, x)[1])


def gelu_slope(k: Kernel, x):
    """Derivative of `gelu`."""
    density, below = normal(k, x)
    return k.fma(x, density, below)
