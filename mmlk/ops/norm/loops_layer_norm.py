"""Layer norm of rows, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, Kernel, bits, kernel

TASK_FLOATS = 16_384
"""Floats of a task, some five microseconds of work: taking a task costs little beside it."""

FLOAT_COST = 4
"""Multiplications that take as long as normalising a float."""


@kernel('x_p weight_p bias_p y_p rows width task_rows epsilon')
def _normalise(k: Kernel, x, weight, bias, y, rows, width, task_rows, epsilon, *, scaled, shifted):
    """Task ``t`` normalises ``task_rows`` rows. Missing floats of the last vector are the mean."""
    top = k.task * task_rows
    whole, rest = width - width % LANES, width % LANES
    last, buffer = k.scratch(1), k.variable(k.zero)
    count, epsilon = k.number(width), k.float_of_bits(epsilon)

    with k.loop(top, k.min(top + task_rows, rows)) as row:
        line, out = k.at(x, row * width), k.at(y, row * width)
        total, squares = k.variable(k.zero), k.variable(k.zero)
        with k.loop(0, whole, LANES) as i:
            k.write(total, k.b.fadd(k.read(total), k.load(line, i)))
        k.store(k.zero, last)
        k.copy_some(k.at(line, whole), last, rest)
        mean = k.b.fdiv(k.sum_of_lanes(k.b.fadd(k.read(total), k.load(last))), count)

        def add(value, mean=mean, squares=squares):
            away = k.b.fsub(value, mean)
            k.add_product(squares, away, away)

        with k.loop(0, whole, LANES) as i:
            add(k.load(line, i))
        k.store(mean, last)
        k.copy_some(k.at(line, whole), last, rest)
        add(k.load(last))
        variance = k.b.fdiv(k.sum_of_lanes(k.read(squares)), count)
        rstd = k.b.fdiv(k.splat(1.0), k.intrinsic('llvm.sqrt', k.b.fadd(variance, epsilon)))

        def normed(value, place, left, mean=mean, rstd=rstd):
            value = k.b.fmul(k.b.fsub(value, mean), rstd)
            if scaled:
                value = k.b.fmul(value, k.load_some(weight, place, left, buffer))
            if shifted:
                value = k.b.fadd(value, k.load_some(bias, place, left, buffer))
            return value

        with k.loop(0, whole, LANES) as i:
            k.store(normed(k.load(line, i), i, width - i), out, i)
        with k.when(rest > 0):
            k.store_some(normed(k.load(last), whole, rest), out, whole, rest, buffer)


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` of every row.

    Args:
        x: (M, C) float32 on the CPU, contiguous.
        weight: (C,), contiguous.
        bias: (C,), contiguous.
        epsilon: Added to the biased variance.

    Returns:
        (M, C).

    Raises:
        ValueError: If an operand is another one.
    """
    rows, width = x.shape
    for name, each, shape in (
        ('x', x, x.shape),
        ('weight', weight, (width,)),
        ('bias', bias, (width,)),
    ):
        if each is not None and not (
            each.dtype == torch.float32
            and each.is_cpu
            and each.is_contiguous()
            and tuple(each.shape) == tuple(shape)
        ):
            raise ValueError(
                f'layer_norm: {name} {tuple(each.shape)} with strides {each.stride()}, {each.dtype} on '
                f'{each.device}, is not {tuple(shape)}, contiguous, in float32 on the CPU'
            )
    y = torch.empty_like(x)
    task_rows = max(1, TASK_FLOATS // max(width, 1))
    if x.numel():
        _normalise(scaled=weight is not None, shifted=bias is not None)(
            -(-rows // task_rows),
            FLOAT_COST * x.numel(),
            address(x),
            address(weight),
            address(bias),
            address(y),
            rows,
            width,
            task_rows,
            bits(epsilon),
        )
    return y
