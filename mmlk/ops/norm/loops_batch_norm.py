"""Batch norm in training on channels-last float32 maps, with GELU or a sum behind it.

Two launches each way: sums over bands of pixels, then the result, for which every task combines the
sums of its channels again. Bands depend on the shape alone, so the result does not depend on threads.
The variance is summed around a band's first pixel, which keeps its digits where the mean is large.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, Int, Kernel, bits, kernel
from mmlk.ops.jit.maths import gelu as gelu_of
from mmlk.ops.jit.maths import gelu_slope

_LONGEST, _SHORTEST, _TASKS = 1024, 64, 32
"""Pixels of a band, and tasks above which bands are not cut shorter. Longer bands leave fewer sums to
combine, shorter ones more tasks for threads and less error of rounding in one sum."""

_CHAINS = 4
"""Sums side by side, since one addition waits for the one before."""


class _Task:
    """A task's band of pixels and block of channels.

    Args:
        shape: Pixels, channels, blocks of 16, bands, pixels of a band.
    """

    def __init__(self, k: Kernel, shape: tuple):
        self.k = k
        self.pixels, self.channels, self.blocks, self.bands, self.size = shape
        self.band, self.channel = k.task // self.blocks, (k.task % self.blocks) * LANES
        self.count = self.channels - self.channel
        self.first = self.band * self.size
        self.end = k.min(self.pixels, self.first + self.size)
        self.buffer = k.variable(k.zero)

    def in_band(self, band) -> Int:
        """Pixels of a band."""
        return self.k.min(self.size, self.pixels - band * self.size)

    def load(self, pointer):
        """The block's part of a vector of channels."""
        return self.k.load_some(pointer, self.channel, self.count, self.buffer)

    def store(self, value, pointer) -> None:
        self.k.store_some(value, pointer, self.channel, self.count, self.buffer)

    def each_pixel(self, write: Callable) -> None:
        """``write(chain, load, store)`` for all pixels, with access to maps at that pixel."""
        k = self.k

        def run(load, store):
            def body(row, chain):
                place = row * self.channels + self.channel
                write(
                    chain,
                    lambda pointer: load(pointer, place),
                    lambda value, pointer: store(value, pointer, place),
                )

            whole = self.end - (self.end - self.first) % _CHAINS
            with k.loop(self.first, whole, _CHAINS) as row:
                for chain in range(_CHAINS):
                    body(row + chain, chain)
            with k.loop(whole, self.end) as row:
                body(row, 0)

        with k.either(self.count >= LANES) as (full, part):
            with full:
                run(k.load, k.store)
            with part:
                run(
                    lambda pointer, place: k.load_some(pointer, place, self.count, self.buffer),
                    lambda value, pointer, place: k.store_some(
                        value, pointer, place, self.count, self.buffer
                    ),
                )

    def partial(self, band, which: int) -> Int:
        """Place of a band's sum."""
        return (band * 2 + which) * (self.blocks * LANES) + self.channel

    def chains(self) -> list:
        return [self.k.variable(self.k.zero) for _ in range(_CHAINS)]

    def total(self, chains: list):
        return functools.reduce(self.k.b.fadd, [self.k.read(each) for each in chains])


_SHAPE = 'pixels channels blocks bands size'


@kernel(f'x_p partial_p {_SHAPE}')
def _moments(k: Kernel, x, partial, *shape):
    """Mean, and sum of squares around it, of every band."""
    task = _Task(k, shape)
    start = k.load_some(x, task.first * task.channels + task.channel, task.count, task.buffer)
    sums, squares = task.chains(), task.chains()

    def add(chain, load, _store):
        value = k.b.fsub(load(x), start)
        k.write(sums[chain], k.b.fadd(k.read(sums[chain]), value))
        k.add_product(squares[chain], value, value)

    task.each_pixel(add)
    total = task.total(sums)
    mean = k.b.fdiv(total, k.number(task.end - task.first))
    k.store(k.b.fadd(start, mean), partial, task.partial(task.band, 0))
    k.store(k.fma(k.b.fneg(total), mean, task.total(squares)), partial, task.partial(task.band, 1))


def _combine(k: Kernel, task: _Task, partial):
    """Mean, and sum of squares around it, of all bands."""
    total, squares = k.variable(k.zero), k.variable(k.zero)
    with k.loop(0, task.bands) as band:
        k.add_product(total, k.load(partial, task.partial(band, 0)), k.number(task.in_band(band)))
    mean = k.b.fdiv(k.read(total), k.number(task.pixels))
    with k.loop(0, task.bands) as band:
        away = k.b.fsub(k.load(partial, task.partial(band, 0)), mean)
        k.add_product(squares, k.b.fmul(away, away), k.number(task.in_band(band)))
        k.write(squares, k.b.fadd(k.read(squares), k.load(partial, task.partial(band, 1))))
    return mean, k.read(squares)


@kernel(
    'x_p y_p residual_p weight_p bias_p running_mean_p running_variance_p mean_p rstd_p '
    f'partial_p epsilon momentum {_SHAPE}'
)
def _normalise(
    k: Kernel,
    x,
    y,
    residual,
    weight,
    bias,
    running_mean,
    running_variance,
    out_mean,
    out_rstd,
    partial,
    epsilon,
    momentum,
    *shape,
    gelu,
    add,
):
    task = _Task(k, shape)
    mean, squares = _combine(k, task, partial)
    variance = k.b.fdiv(squares, k.number(task.pixels))
    rstd = k.b.fdiv(
        k.splat(1.0), k.intrinsic('llvm.sqrt', k.b.fadd(variance, k.float_of_bits(epsilon)))
    )
    with k.when(task.band < 1):
        task.store(mean, out_mean)
        task.store(rstd, out_rstd)
        unbiased = k.b.fdiv(squares, k.number(task.pixels - 1))
        for running, now in ((running_mean, mean), (running_variance, unbiased)):
            before = task.load(running)
            task.store(k.fma(k.b.fsub(now, before), k.float_of_bits(momentum), before), running)
    scale = k.b.fmul(rstd, task.load(weight))
    shift = task.load(bias)

    def write(_chain, load, store):
        value = k.fma(k.b.fsub(load(x), mean), scale, shift)
        if gelu:
            value = gelu_of(k, value)
        if add:
            value = k.b.fadd(value, load(residual))
        store(value, y)

    task.each_pixel(write)


@kernel(f'grad_p x_p weight_p bias_p mean_p rstd_p flow_p partial_p {_SHAPE}')
def _collect(k: Kernel, grad, x, weight, bias, mean, rstd, flow, partial, *shape, gelu):
    """Sums of the gradient, and of its product with the centred map, of every band."""
    task = _Task(k, shape)
    sums, products, mean = task.chains(), task.chains(), task.load(mean)
    if gelu:
        scale, shift = k.b.fmul(task.load(rstd), task.load(weight)), task.load(bias)

    def add(chain, load, store):
        value, centred = load(grad), k.b.fsub(load(x), mean)
        if gelu:
            value = k.b.fmul(value, gelu_slope(k, k.fma(centred, scale, shift)))
            store(value, flow)
        k.write(sums[chain], k.b.fadd(k.read(sums[chain]), value))
        k.add_product(products[chain], value, centred)

    task.each_pixel(add)
    k.store(task.total(sums), partial, task.partial(task.band, 0))
    k.store(task.total(products), partial, task.partial(task.band, 1))


@kernel(f'flow_p x_p weight_p mean_p rstd_p out_p grad_weight_p grad_bias_p partial_p {_SHAPE}')
def _gradient(k: Kernel, flow, x, weight, mean, rstd, out, grad_weight, grad_bias, partial, *shape):
    task = _Task(k, shape)
    totals = [k.variable(k.zero) for _ in range(2)]
    with k.loop(0, task.bands) as band:
        for which, total in enumerate(totals):
            k.write(total, k.b.fadd(k.read(total), k.load(partial, task.partial(band, which))))
    total, product = (k.read(each) for each in totals)
    mean, rstd = task.load(mean), task.load(rstd)
    with k.when(task.band < 1):
        task.store(k.b.fmul(product, rstd), grad_weight)
        task.store(total, grad_bias)
    scale = k.b.fmul(rstd, task.load(weight))
    pixels = k.number(task.pixels)
    slope = k.b.fneg(k.b.fmul(k.b.fdiv(product, pixels), k.b.fmul(rstd, rstd)))
    common = k.b.fdiv(total, pixels)

    def write(_chain, load, store):
        # The scale comes last: rounded beforehand, the common part would not sum to nothing.
        rest = k.fma(k.b.fsub(load(x), mean), slope, k.b.fsub(load(flow), common))
        store(k.b.fmul(rest, scale), out)

    task.each_pixel(write)


@functools.lru_cache(maxsize=4096)
def _shape(pixels: int, channels: int) -> tuple[int, int, int, int, int]:
    blocks = -(-channels // LANES)
    size = max(_SHORTEST, min(_LONGEST, -(-pixels * blocks // _TASKS)))
    return pixels, channels, blocks, -(-pixels // size), size


def can_run(*tensors: Tensor) -> bool:
    """Whether all are float32, on a CPU and dense, maps (N, C, H, W) channels-last."""
    for (
        each
    ) in tensors:  # a training step asks of a thousand tensors: a generator costs twice as much
        dense = (
            each.is_contiguous(memory_format=torch.channels_last)
            if each.dim() == 4
            else each.is_contiguous()
        )
        if not (dense and each.dtype is torch.float32 and each.is_cpu):
            return False
    return True


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    epsilon: float,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``[residual +] [gelu] norm(x)`` with the statistics of ``x``; running ones are updated.

    Args:
        x: (N, C, H, W) as in `can_run`, of at least two pixels.
        weight: (C,), as are ``bias`` and the running statistics.
        momentum: Share of the batch in the new running statistics.
        epsilon: Added to the variance.
        gelu: Apply GELU, exact to float32.
        residual: (N, C, H, W) to add last.

    Returns:
        The result, the mean and the rstd, (N, C, H, W), (C,) and (C,).
    """
    channels = x.shape[1]
    shape = _shape(x.numel() // channels, channels)
    _, _, blocks, bands, _ = shape
    y, mean, rstd = torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)
    partial = x.new_empty(bands * 2 * blocks * LANES)
    tasks, cost = bands * blocks, 4 * x.numel()
    _moments()(tasks, cost, address(x), address(partial), *shape)
    _normalise(gelu=gelu, add=residual is not None)(
        tasks,
        cost * 4 if gelu else cost,
        address(x),
        address(y),
        address(y) if residual is None else address(residual),
        address(weight),
        address(bias),
        address(running_mean),
        address(running_variance),
        address(mean),
        address(rstd),
        address(partial),
        bits(epsilon),
        bits(momentum),
        *shape,
    )
    return y, mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    gelu_bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of map, weight and bias.

    Args:
        grad: (N, C, H, W) as in `can_run`.
        x: What `forward` took.
        weight: (C,).
        mean: As of `forward`.
        rstd: As of `forward`.
        gelu_bias: (C,), the bias, if GELU was applied.
        out: Memory of the map's gradient, which may be ``grad``.

    Returns:
        (N, C, H, W), (C,) and (C,).
    """
    channels, gelu = x.shape[1], gelu_bias is not None
    shape = _shape(x.numel() // channels, channels)
    _, _, blocks, bands, _ = shape
    out = torch.empty_like(x) if out is None else out
    grad_weight, grad_bias = x.new_empty(channels), x.new_empty(channels)
    partial = x.new_empty(bands * 2 * blocks * LANES)
    flow = out if gelu else grad
    tasks, cost = bands * blocks, 4 * x.numel()
    _collect(gelu=gelu)(
        tasks,
        cost * 4 if gelu else cost,
        address(grad),
        address(x),
        address(weight),
        address(gelu_bias if gelu else weight),
        address(mean),
        address(rstd),
        address(flow),
        address(partial),
        *shape,
    )
    _gradient()(
        tasks,
        cost,
        address(flow),
        address(x),
        address(weight),
        address(mean),
        address(rstd),
        address(out),
        address(grad_weight),
        address(grad_bias),
        address(partial),
        *shape,
    )
    return out, grad_weight, grad_bias
