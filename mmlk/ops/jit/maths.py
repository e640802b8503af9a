"""Functions of one real variable on the vectors of kernels.

`gelu` is the exact one, ``x Phi(x)`` with the normal distribution's Phi. It and its derivative
are 1/2 plus an odd function, for which a quotient ``x P(x^2) / Q(x^2)`` stands: the one that errs
least over ``|x|`` below 5.275 and 5.6, found by iteratively reweighted least squares (Lawson), rounded
to float32. Beyond a limit, near there, at which the float32 quotient is 1/2 exactly, it is taken at the
limit: GELU is then x or 0 and its derivative 1 or 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mmlk.ops.jit.language import Kernel


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


class _Quotient(NamedTuple):
    limit: float
    above: tuple[float, ...]  # lowest powers first
    below: tuple[float, ...]


# Phi(x) - 1/2, to 7e-8; with roundings GELU is within 2.5e-7 |x|, four units in the last place of x.
_PHI = _Quotient(
    5.1062,
    (0.398941845, 0.051424399, 0.00565222884, 0.000334467157, 6.15300951e-06),
    (1.0, 0.295561582, 0.0384410284, 0.00282175699, 0.000119965516, 5.22397045e-07),
)
# The derivative - 1/2, to 1.1e-7, with roundings 3.5e-7.
_SLOPE = _Quotient(
    5.640375,
    (0.797885358, -0.0309753865, 0.0142260743, 1.9750596e-05, 3.58993639e-05, 1.92168301e-07),
    (1.0, 0.294519544, 0.0409837365, 0.003522638, 0.000192051783, 8.92820299e-06),
)


def gelu(k: Kernel, x):
    """GELU of each float of a vector of kernel ``k``; NaN stays NaN."""
    x = _at_least(k, x, -_PHI.limit)
    return k.b.fmul(x, _half_and(k, x, _PHI))


def gelu_slope(k: Kernel, x):
    """Derivative of GELU at each float of a vector."""
    return _half_and(k, _at_least(k, x, -_SLOPE.limit), _SLOPE)


def _half_and(k, x, quotient: _Quotient):
    """1/2 and the quotient at x, which is no less than the negative limit."""
    b, high = k.b, k.splat(quotient.limit)
    x = b.select(b.fcmp_ordered('>', x, high), high, x)
    square = b.fmul(x, x)
    above, below = (_polynomial(k, square, each) for each in (quotient.above, quotient.below))
    return b.fadd(b.fdiv(b.fmul(x, above), below), k.splat(0.5))


def _at_least(k, x, low: float):
    low = k.splat(low)
    return k.b.select(k.b.fcmp_ordered('<', x, low), low, x)


def _polynomial(k, x, coefficients):
    value = k.splat(coefficients[-1])
    for each in reversed(coefficients[:-1]):
        value = k.fma(value, x, k.splat(each))
    return value
