"""Layer norm over the last axis of float32 rows, and its gradients.

Vectors run along a row. What is left behind the last whole vector is part of one that ends with the
row: lanes that were counted already are masked in sums, and written once more with the same value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, bits, kernel

# Rows are divided among so many tasks, which the shape alone decides, as each sums gradients of its own;
# and floats that are worth a task.
TASKS, TASK_SIZE = 32, 4096
# What one float costs, in multiplications of a matrix product.
COST = 15


class _Row:
    """Loops over the vectors of rows of ``channels`` >= 16 floats."""

    def __init__(self, k, channels):
        self.k, self.channels = k, channels
        rest = channels % LANES
        self.whole, self.rest, self.tail = channels - rest, rest, channels - LANES
        self.fresh = k.compare('>=', k.lanes(list(range(LANES))), k.number(LANES - rest))

    def each(self, write) -> None:
        """``write(offset, fresh)``: ``fresh(vector)`` is zero where an earlier vector has been."""
        k = self.k
        with k.loop(0, self.whole, LANES) as offset:
            write(offset, lambda vector: vector)
        with k.when(self.rest > 0):
            write(self.tail, lambda vector: k.b.select(self.fresh, vector, k.zero))

    def mean(self, total):
        """Of the row whose sum over the lanes of ``total`` is given, in all lanes."""
        return self.k.b.fdiv(self.k.sum_of_lanes(total), self.k.number(self.channels))


@kernel('x_p weight_p bias_p y_p mean_p rstd_p rows channels band epsilon')
def _forward(k, x, weight, bias, y, mean, rstd, rows, channels, band, epsilon, *, affine, keep):
    row_of = _Row(k, channels)
    slot = k.variable(k.zero)
    total = k.variable(k.zero)
    first = k.task * band
    with k.loop(first, k.min(first + band, rows)) as row:
        source, target = k.at(x, row * channels), k.at(y, row * channels)

        def add(offset, fresh):
            k.write(total, k.b.fadd(k.read(total), fresh(k.load(source, offset))))

        k.write(total, k.zero)
        row_of.each(add)
        centre = row_of.mean(k.read(total))

        def add_square(offset, fresh):
            away = fresh(k.b.fsub(k.load(source, offset), centre))
            k.add_product(total, away, away)

        k.write(total, k.zero)
        row_of.each(add_square)
        variance = row_of.mean(k.read(total))
        inverse = k.b.fdiv(
            k.splat(1.0), k.intrinsic('llvm.sqrt', k.b.fadd(variance, k.float_of_bits(epsilon)))
        )
        if keep:
            for value, place in ((centre, mean), (inverse, rstd)):
                k.write(slot, value)
                k.copy_float(slot, k.at(place, row))

        def normalise(offset, _fresh):
            value = k.b.fmul(k.b.fsub(k.load(source, offset), centre), inverse)
            if affine:
                value = k.fma(value, k.load(weight, offset), k.load(bias, offset))
            k.store(value, target, offset)

        row_of.each(normalise)


@kernel('grad_p x_p weight_p mean_p rstd_p out_p sums_p rows channels band')
def _backward(k, grad, x, weight, mean, rstd, out, sums, rows, channels, band, *, affine):
    """The gradient of ``x``, and each task's sums of ``grad * normed`` and ``grad``."""
    row_of = _Row(k, channels)
    by_weight = k.at(sums, k.task * channels * 2)
    by_bias = k.at(by_weight, channels)
    one, other = k.variable(k.zero), k.variable(k.zero)

    def clear(offset, _fresh):
        k.store(k.zero, by_weight, offset)
        k.store(k.zero, by_bias, offset)

    if affine:
        row_of.each(clear)
    first = k.task * band
    with k.loop(first, k.min(first + band, rows)) as row:
        flow, source, target = (k.at(each, row * channels) for each in (grad, x, out))
        centre, inverse = k.load_splat(mean, row), k.load_splat(rstd, row)

        def operands(offset):
            """The incoming gradient, that of the normed value, and the normed value."""
            g = k.load(flow, offset)
            normed = k.b.fmul(k.b.fsub(k.load(source, offset), centre), inverse)
            return g, k.b.fmul(g, k.load(weight, offset)) if affine else g, normed

        def add(offset, fresh):
            g, inner, normed = operands(offset)
            inner = fresh(inner)
            k.write(one, k.b.fadd(k.read(one), inner))
            k.add_product(other, inner, normed)
            if affine:
                g = fresh(g)
                k.store(k.fma(g, normed, k.load(by_weight, offset)), by_weight, offset)
                k.store(k.b.fadd(g, k.load(by_bias, offset)), by_bias, offset)

        for each in (one, other):
            k.write(each, k.zero)
        row_of.each(add)
        average, slope = row_of.mean(k.read(one)), row_of.mean(k.read(other))

        def propagate(offset, _fresh):
            _, inner, normed = operands(offset)
            value = k.b.fsub(inner, k.fma(normed, slope, average))
            k.store(k.b.fmul(value, inverse), target, offset)

        row_of.each(propagate)


@kernel('sums_p out_p tasks length')
def _add_up(k, sums, out, tasks, length):
    """Task ``t`` adds 16 numbers of all tasks of `_backward`."""
    place = k.min(k.task * LANES, length - LANES)
    total = k.variable(k.zero)
    with k.loop(0, tasks) as task:
        k.write(total, k.b.fadd(k.read(total), k.load(sums, task * length + place)))
    k.store(k.read(total), out, place)


def can_run(channels: int) -> bool:
    """Whether rows are as long as a vector."""
    return channels >= LANES


def _band(rows: int, channels: int) -> int:
    return max(-(-rows // TASKS), -(-TASK_SIZE // channels))


def _check(channels: int, **tensors: Tensor | None) -> None:
    for name, each in tensors.items():
        if each is not None and not (
            each.dtype == torch.float32
            and each.is_cpu
            and each.is_contiguous()
            and each.shape[-1] == channels >= LANES
        ):
            raise ValueError(
                f'layer_norm: {name} {tuple(each.shape)}, {each.dtype} on {each.device}, is not '
                f'contiguous float32 on the CPU with {channels} >= {LANES} channels last'
            )


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with the biased variance of each row.

    Args:
        x: (..., C), contiguous, C >= 16, not empty.
        weight: (C,); None for both leaves the affine map out.
        bias: (C,).
        eps: Added to the variance.
        keep: Whether `backward` will need what follows the result.

    Returns:
        The result, and mean and rstd of each row if ``keep``.

    Raises:
        ValueError: if an operand is not contiguous float32 on the CPU, or its channels do not fit.
    """
    channels = x.shape[-1]
    _check(channels, x=x, weight=weight, bias=bias)
    rows = x.numel() // channels
    y, statistics = torch.empty_like(x), x.new_empty(2, rows) if keep else None
    mean, rstd = statistics if keep else (None, None)
    band, affine = _band(rows, channels), weight is not None
    _forward(affine=affine, keep=keep)(
        -(-rows // band),
        COST * x.numel(),
        address(x),
        address(weight) if affine else 0,
        address(bias) if affine else 0,
        address(y),
        address(mean) if keep else 0,
        address(rstd) if keep else 0,
        rows,
        channels,
        band,
        bits(eps),
    )
    return y, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of map, weight and bias, the latter None without a weight.

    Args:
        grad: (..., C), contiguous.
        x: Input of `forward`.
        weight: As there.
        mean: As returned there.
        rstd: As returned there.

    Raises:
        ValueError: as `forward`.
    """
    channels, affine = x.shape[-1], weight is not None
    _check(channels, grad=grad, x=x, weight=weight)
    if grad.shape != x.shape:
        raise ValueError(f'layer_norm: grad {tuple(grad.shape)} is not {tuple(x.shape)}')
    rows = x.numel() // channels
    band = _band(rows, channels)
    tasks = -(-rows // band)
    out, sums = torch.empty_like(x), x.new_empty(tasks, 2, channels) if affine else x
    _backward(affine=affine)(
        tasks,
        2 * COST * x.numel(),
        address(grad),
        address(x),
        address(weight) if affine else 0,
        address(mean),
        address(rstd),
        address(out),
        address(sums),
        rows,
        channels,
        band,
    )
    if not affine:
        return out, None, None
    total = x.new_empty(2, channels)
    _add_up()(
        -(-total.numel() // LANES),
        sums.numel(),
        address(sums),
        address(total),
        tasks,
        total.numel(),
    )
    return out, *total
