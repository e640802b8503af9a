"""SLaK's branches with a batch norm each, summed: one training step on channels-last float32 maps.

The convolutions leave the moments of every part behind. One small kernel makes of them, per channel,
the statistics, the running ones and the numbers of ``scale (z - mean) + shift``; one pass then writes
the sum of the normed branches. The gradient of a branch through its norm is
``A g + B (z - mean) + C`` with three numbers per channel, which another small kernel knows after one
pass over the incoming gradient and the branches.

A mean is held as the nearest float and what is missing from it, so that nothing is lost where it is
large next to the deviations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, Kernel, bits, kernel
from mmlk.ops.large_kernel import loops as branches
from mmlk.ops.large_kernel.loops_strips import Block, Part

_MEAN, _SCALE, _MEAN_ERROR, _INVERSE = _ROWS = range(4)
"""Rows of a branch in the table of what the forward pass found: mean, factor of the centred branch,
``mean - true mean``, rstd. One more row, after those of all branches, is their shift."""

_CHUNK = 32
"""Pixels that a task of the forward sum takes: more make fewer tasks to take, fewer share better."""


class _Channels:
    """A task's 16 channels in tables (rows, C)."""

    def __init__(self, k: Kernel, channels):
        self.k, self.channels, self.first = k, channels, k.task * LANES
        self.count, self.buffer = channels - self.first, k.variable(k.zero)

    def load(self, pointer, row=0):
        return self.k.load_some(
            pointer, self.first + self.k.int(row) * self.channels, self.count, self.buffer
        )

    def store(self, value, pointer, row=0) -> None:
        self.k.store_some(
            value, pointer, self.first + self.k.int(row) * self.channels, self.count, self.buffer
        )


# ------------------------------------------------------------------------------------ forward

_NORM = 'weight_{0}_p bias_{0}_p mean_{0}_p variance_{0}_p epsilon_{0} momentum_{0}'
_FIELDS = len(_NORM.split())
_NORMS = ' '.join(_NORM.format(index) for index in range(branches.BRANCHES))


@kernel(
    f'{_NORMS} moments_p table_p channels height width parts '
    'row_bands band_rows column_bands band_columns'
)
def _statistics(k: Kernel, *arguments, count):
    """The table, and the running statistics, from the moments of all parts."""
    moments, table, channels, height, width, parts, *bands = arguments[
        branches.BRANCHES * _FIELDS :
    ]
    task, pixels = _Channels(k, channels), height * width
    images = parts // (bands[0] * bands[2])
    total = k.number(images * pixels)
    shift = k.variable(k.zero)
    for index in range(count):
        weight, bias, mean, variance, epsilon, momentum = arguments[index * _FIELDS :][:_FIELDS]
        start = task.load(moments, 2 * index)
        off, squares = k.variable(k.zero), k.variable(k.zero)

        def away(number, index=index, start=start):
            return k.b.fsub(task.load(moments, (number * count + index) * 2), start)

        with k.loop(0, parts) as number:
            k.add_product(off, away(number), k.number(_pixels(k, number, height, width, bands)))
        shifted = k.b.fdiv(k.read(off), total)
        with k.loop(0, parts) as number:
            apart = k.b.fsub(away(number), shifted)
            k.add_product(
                squares, k.b.fmul(apart, apart), k.number(_pixels(k, number, height, width, bands))
            )
            k.write(
                squares,
                k.b.fadd(k.read(squares), task.load(moments, (number * count + index) * 2 + 1)),
            )
        centre = k.b.fadd(start, shifted)
        missing = k.b.fsub(k.b.fsub(centre, start), shifted)
        raised = k.b.fadd(k.b.fdiv(k.read(squares), total), k.float_of_bits(epsilon))
        inverse = k.b.fdiv(k.splat(1.0), k.intrinsic('llvm.sqrt', raised))
        scale = k.b.fmul(inverse, task.load(weight))
        k.write(shift, k.b.fadd(k.read(shift), task.load(bias)))
        k.add_product(shift, scale, missing)
        unbiased = k.b.fdiv(k.read(squares), k.number(images * pixels - 1))
        for running, now in ((mean, centre), (variance, unbiased)):
            before = task.load(running)
            task.store(k.fma(k.b.fsub(now, before), k.float_of_bits(momentum), before), running)
        for row, value in zip(_ROWS, (centre, scale, missing, inverse)):
            task.store(value, table, len(_ROWS) * index + row)
    task.store(k.read(shift), table, len(_ROWS) * count)


def _pixels(k: Kernel, number, height, width, bands):
    """Pixels of a part."""
    row_bands, band_rows, column_bands, band_columns = bands
    rows = k.min(band_rows, height - number // column_bands % row_bands * band_rows)
    return rows * k.min(band_columns, width - number % column_bands * band_columns)


@kernel('z_0_p z_1_p z_2_p table_p y_p channels pixels chunks')
def _affine(k: Kernel, z_0, z_1, z_2, table, y, channels, pixels, chunks, *, count):
    image, first = k.task // chunks, k.task % chunks * _CHUNK
    end, blocks = k.min(first + _CHUNK, pixels), (channels + (LANES - 1)) // LANES
    buffer = k.variable(k.zero)
    with k.loop(0, blocks) as block:
        channel = block * LANES
        width = channels - channel

        def row(number):
            return k.load_some(table, channel + number * channels, width, buffer)

        numbers = [
            (row(len(_ROWS) * index + _MEAN), row(len(_ROWS) * index + _SCALE))
            for index in range(count)
        ]
        shift, start = row(len(_ROWS) * count), (image * blocks + block) * pixels
        with k.loop(first, end) as pixel:
            total = shift
            for z, (mean, scale) in zip((z_0, z_1, z_2), numbers):
                value = k.load(z, (start + pixel) * LANES)
                total = k.fma(k.b.fsub(value, mean), scale, total)
            k.store_some(total, y, (image * pixels + pixel) * channels + channel, width, buffer)


def statistics(
    moments: Tensor,
    shape: tuple,
    bands: tuple,
    norms: Sequence[Sequence[Tensor]],
    epsilons: Sequence[float],
    momenta: Sequence[float],
) -> Tensor:
    """What is to be known of the branches; running statistics are updated.

    Args:
        moments: (P, B, 2, C), mean and sum of squared deviations of every part.
        shape: (N, C, H, W) of the map.
        bands: How it was divided into parts, the first four fields of `Bands`.
        norms: Weight, bias, running mean and variance of each branch, dense float32 (C,).
        epsilons: What each adds to the variance.
        momenta: Share of the batch in the new running statistics of each.

    Returns:
        (4 B + 1, C): for every branch the mean, the factor of the centred branch, ``mean - true mean``
        and the rstd; then the shift.
    """
    parts, count, _, channels = moments.shape
    table = moments.new_empty((len(_ROWS) * count + 1, channels))
    arguments = []
    for norm, epsilon, momentum in zip(norms, epsilons, momenta):
        arguments += [address(each) for each in norm]
        arguments += [bits(epsilon), bits(momentum)]
    arguments += [0] * (branches.BRANCHES * _FIELDS - len(arguments))
    _statistics(count=count)(
        -(-channels // LANES),
        moments.numel(),
        *arguments,
        address(moments),
        address(table),
        channels,
        *shape[2:],
        parts,
        *bands,
    )
    return table


def affine(maps: Tensor, table: Tensor, like: Tensor) -> Tensor:
    """``sum over branches of scale (z - mean) + shift``.

    Args:
        maps: (B, N, ceil(C / 16), H, W, 16) float32, dense.
        table: (4 B + 1, C) of `statistics`.
        like: (N, C, H, W).

    Returns:
        (N, C, H, W) in channels-last layout.
    """
    y = torch.empty_like(like, memory_format=torch.channels_last)
    n, channels, height, width = like.shape
    pixels = height * width
    chunks = -(-pixels // _CHUNK)
    _affine(count=len(maps))(
        n * chunks,
        8 * y.numel(),
        *branches.stacked(maps),
        address(table),
        address(y),
        channels,
        pixels,
        chunks,
    )
    return y


# ------------------------------------------------------------------------------------ backward


@kernel(f'z_0_p z_1_p z_2_p grad_p table_p totals_p {branches.SHAPE}')
def _totals(
    k: Kernel,
    z_0,
    z_1,
    z_2,
    grad,
    table,
    totals,
    channels,
    height,
    width,
    parts,
    group,
    _room,
    *bands,
    count,
):
    block = Block(k, channels, height, width, parts, group)
    with block.each_part() as number, block.each_half() as half:
        part = Part(block, number, bands)
        incoming, maps = (
            part.map(grad, half),
            [part.stored(each, half) for each in (z_0, z_1, z_2)[:count]],
        )
        centres = [block.row_of(table, len(_ROWS) * index + _MEAN, half) for index in range(count)]
        sums = [k.variable(k.zero) for _ in range(count + 1)]
        # Sums of rows first: the error of a long sum grows with its length.
        with k.loop(part.top, part.bottom) as y:
            line = [k.variable(k.zero) for _ in sums]
            with k.loop(part.left, part.right) as x:
                for each in (incoming, *maps):
                    each.prefetch(k, y + 1, x)
                value = incoming.read(k, y, x, block.buffer)
                k.write(line[0], k.b.fadd(k.read(line[0]), value))
                for each, branch, centre in zip(line[1:], maps, centres):
                    k.add_product(each, k.b.fsub(branch.read(k, y, x, block.buffer), centre), value)
            for each, total in zip(line, sums):
                k.write(total, k.b.fadd(k.read(total), k.read(each)))
        for index, each in enumerate(sums):
            block.set_row(k.read(each), totals, number * (count + 1) + index, half)


@kernel('totals_p table_p sums_p flows_p channels parts pixels')
def _combine(k: Kernel, totals, table, sums, flows, channels, parts, pixels, *, count):
    """Gradients of the norms' parameters, and the numbers of the branches' gradients."""
    task, share = _Channels(k, channels), k.b.fdiv(k.splat(-1.0), k.number(pixels))
    added = [k.variable(k.zero) for _ in range(count + 1)]
    with k.loop(0, parts) as number:
        for index, each in enumerate(added):
            k.write(each, k.b.fadd(k.read(each), task.load(totals, number * (count + 1) + index)))
    total, *products = (k.read(each) for each in added)
    task.store(total, sums)
    for index, product in enumerate(products):
        mean, scale, missing, inverse = (
            task.load(table, len(_ROWS) * index + row) for row in _ROWS
        )
        by_scale = k.b.fmul(k.fma(missing, total, product), inverse)
        task.store(by_scale, sums, index + 1)
        by_map = k.b.fmul(k.b.fmul(scale, inverse), k.b.fmul(by_scale, share))
        constant = k.fma(by_map, missing, k.b.fmul(k.b.fmul(scale, total), share))
        for row, value in enumerate((scale, by_map, mean, constant)):
            task.store(value, flows, 4 * index + row)


def totals(grad: Tensor, maps: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the norms' parameters, and what `branches.gradients` takes.

    Args:
        grad: (N, C, H, W) float32.
        maps: (B, N, ceil(C / 16), H, W, 16) float32, dense.
        table: (4 B + 1, C) of `statistics`.

    Returns:
        (B + 1, C): the gradient of all biases, then those of the weights; and (B, 4, C), for every
        branch A, B, mean and C of ``A g + B (z - mean) + C``.
    """
    grad, count, size = branches.channels_last(grad), len(maps), ((1, 1),)
    n, channels, height, width = grad.shape
    bands = branches.bands_of(grad, size)
    parts = n * bands.row_bands * bands.column_bands
    partial = grad.new_empty((parts, count + 1, channels))
    branches.run(
        _totals(count=count),
        grad,
        bands,
        size,
        2 * count,
        *branches.stacked(maps),
        address(grad),
        address(table),
        address(partial),
    )
    sums, flows = grad.new_empty((count + 1, channels)), grad.new_empty((count, 4, channels))
    _combine(count=count)(
        -(-channels // LANES),
        partial.numel(),
        address(partial),
        address(table),
        address(sums),
        address(flows),
        channels,
        parts,
        n * height * width,
    )
    return sums, flows
