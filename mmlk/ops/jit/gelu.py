"""The exact GELU, ``x Phi(x)`` with the normal distribution's Phi, and its derivative, on vectors."""

from __future__ import annotations

import math

# Phi(x) = 1/2 + x ABOVE(x^2) / BELOW(x^2), lowest powers first. Lawson's iteratively reweighted least
# squares for the quotient that errs least in Phi over |x| < 5.275, 7e-8, rounded to float32. At LIMIT
# the float32 quotient is 1/2 exactly, so that gelu(x) is x above it and 0 below -LIMIT.
# With roundings the result is within 2.5e-7 |x|, four units in the last place of x.
LIMIT = 5.1062
ABOVE = (0.398941845, 0.051424399, 0.00565222884, 0.000334467157, 6.15300951e-06)
BELOW = (1.0, 0.295561582, 0.0384410284, 0.00282175699, 0.000119965516, 5.22397045e-07)


def gelu(k, x):
    """GELU of each float of a vector of kernel ``k``; NaN stays NaN."""
    b, low = k.b, k.splat(-LIMIT)
    x = b.select(b.fcmp_ordered('<', x, low), low, x)
    return b.fmul(x, _below(k, x))


def slope(k, x):
    """Derivative of GELU, ``Phi(x) + x phi(x)`` with the normal distribution's density phi."""
    b, low = k.b, k.splat(-LIMIT)
    exponent = b.fmul(b.fmul(x, x), k.splat(-0.5 / math.log(2)))
    least = k.splat(-126.0)
    exponent = b.select(b.fcmp_ordered('<', exponent, least), least, exponent)
    density = b.fmul(_power_of_two(k, exponent), k.splat(1 / math.sqrt(2 * math.pi)))
    below = _below(k, b.select(b.fcmp_ordered('<', x, low), low, x))
    return k.fma(x, density, below)


def _below(k, x):
    """Phi(x) for x from -LIMIT on."""
    b, high = k.b, k.splat(LIMIT)
    x = b.select(b.fcmp_ordered('>', x, high), high, x)
    square = b.fmul(x, x)
    quotient = b.fdiv(b.fmul(x, _polynomial(k, square, ABOVE)), _polynomial(k, square, BELOW))
    return b.fadd(quotient, k.splat(0.5))


def _power_of_two(k, x):
    """2^x for x from -126 on, by the Taylor series between two integers: within 2e-7 of the value."""
    whole = k.intrinsic('llvm.nearbyint', x)
    series = [math.log(2)**degree / math.factorial(degree) for degree in range(7)]
    return k.b.fmul(_polynomial(k, k.b.fsub(x, whole), series), k.power_of_two(whole))


def _polynomial(k, x, coefficients):
    value = k.splat(coefficients[-1])
    for each in reversed(coefficients[:-1]):
        value = k.fma(value, x, k.splat(each))
    return value
