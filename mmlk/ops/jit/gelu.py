"""The exact GELU, ``x Phi(x)`` with the normal distribution's Phi, on vectors."""

from __future__ import annotations

# Phi(x) = 1/2 + x ABOVE(x^2) / BELOW(x^2), lowest powers first. Lawson's iteratively reweighted least
# squares for the quotient that errs least in Phi over |x| < 5.275, 7e-8, rounded to float32. At LIMIT
# the float32 quotient is 1/2 exactly, so that gelu(x) is x above it and 0 below -LIMIT.
# With roundings the result is within 2.5e-7 |x|, four units in the last place of x.
LIMIT = 5.1062
ABOVE = (0.398941845, 0.051424399, 0.00565222884, 0.000334467157, 6.15300951e-06)
BELOW = (1.0, 0.295561582, 0.0384410284, 0.00282175699, 0.000119965516, 5.22397045e-07)


def gelu(k, x):
    """GELU of each float of a vector of kernel ``k``; NaN stays NaN."""
    b, low, high = k.b, k.splat(-LIMIT), k.splat(LIMIT)
    x = b.select(b.fcmp_ordered('<', x, low), low, x)
    inner = b.select(b.fcmp_ordered('>', x, high), high, x)
    square = b.fmul(inner, inner)
    quotient = b.fdiv(b.fmul(inner, _polynomial(k, square, ABOVE)), _polynomial(k, square, BELOW))
    return b.fmul(x, b.fadd(quotient, k.splat(0.5)))


def _polynomial(k, x, coefficients):
    value = k.splat(coefficients[-1])
    for each in reversed(coefficients[:-1]):
        value = k.fma(value, x, k.splat(each))
    return value
