"""SLaK's branches on channels-last float32 maps: depthwise kernels of one map, summed or normed.

One task computes all branches for a part of one image and 16 of its channels. Folded, every kernel adds
to the same pixels of the result. In training each branch has a map and batch statistics of its own:
their moments are taken while the part is in the cache, and one pass then writes the sum of the normed
branches. The gradient of a branch through its norm is ``A g + B (z - mean) + C`` with three numbers
per channel. Those are known after one pass over the incoming gradient and the branches, and the maps
``A g + ...`` exist only as planes, from which a task takes the gradients of map and kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlk.ops.jit import planes
from mmlk.ops.jit.engine import unavailable
from mmlk.ops.jit.kernel import LANES, Kernel, kernel
from mmlk.ops.jit.strips import (
    SHORT,
    Bands,
    Block,
    Own,
    Part,
    Strip,
    View,
    convolve,
    divide,
    lanes,
    sum_taps,
)

_BRANCHES = 3
# Sums side by side.
_CHAINS = 4


# ------------------------------------------------------------------------------------ forward

_ARGUMENTS = ('channels height width parts group room row_bands band_rows column_bands band_columns')


@kernel(f'x_p first_p second_p third_p bias_p y_p moments_p {_ARGUMENTS}')
def _forward(k: Kernel, x, first, second, third, bias, y, moments, channels, height, width, parts,
             group, room, *bands, sizes, tiles, has_bias, summed, has_moments):
    block = Block(k, channels, height, width, parts, group)
    strips = [Strip(block, *each) for each in zip(sizes, tiles)]
    memory, taps = k.scratch(room * block.halves), [each.taps() for each in strips]
    with block.each_half() as half:
        for strip, weight, place in zip(strips, (first, second, third), taps):
            strip.kernels.pack(half, weight, strip.of_half(place, half), False)
    # A plane holds what a shorter kernel of the same width needs, too.
    order = sorted(range(len(sizes)), key=lambda each: (strips[each].form, -strips[each].kh))
    with block.each_part() as number:
        part, form = Part(block, number, bands), None
        for position, index in enumerate(order):
            strip = strips[index]
            view, target = View(part, strip), y if summed else part.of_branch(y, index)
            if strip.form != form:
                plane, form = view.fill(memory, room, part.halves(x), 0), strip.form
            with block.each_half() as half:
                begins = has_bias and position == 0
                convolve(view, plane, half, strip.of_half(taps[index], half),
                         block.row_of(bias, 0, half) if begins else k.zero,
                         part.map(target, half), summed and position > 0)
        if has_moments:
            with k.loop(0, len(sizes)) as index, block.each_half() as half:
                _moments(part, half, part.of_branch(y, index), moments,
                         (number * len(sizes) + index) * 2)


def _moments(part: Part, half, pointer, moments, row) -> None:
    """Mean and sum of squared deviations of the part, to two rows of a table (rows, C)."""
    k, block, source = part.k, part.block, part.map(pointer, half)
    share = k.b.fdiv(k.splat(1.0), k.number((part.bottom - part.top) * (part.right - part.left)))

    def sums(count: int, write) -> list:
        """Sums over the pixels, in chains since an addition waits for the one before."""
        chains = [[k.variable(k.zero) for _ in range(count)] for _ in range(_CHAINS)]
        whole = part.right - (part.right - part.left) % _CHAINS
        with k.loop(part.top, part.bottom) as y:
            with k.loop(part.left, whole, _CHAINS) as x:
                for offset, chain in enumerate(chains):
                    write(chain, source.read(k, y, x + offset, block.slot))
            with k.loop(whole, part.right) as x:
                write(chains[0], source.read(k, y, x, block.slot))
        return [functools.reduce(k.b.fadd, map(k.read, each)) for each in zip(*chains)]

    def add(chain, value) -> None:
        k.write(chain[0], k.b.fadd(k.read(chain[0]), value))

    def add_square(chain, value) -> None:
        deviation = k.b.fsub(value, mean)
        add(chain, deviation)
        k.add_product(chain[1], deviation, deviation)

    mean = k.b.fmul(*sums(1, add), share)
    # What rounding left of the deviations' own mean corrects both.
    off, squares = sums(2, add_square)
    shift = k.b.fmul(off, share)
    deviations = k.b.fsub(squares, k.b.fmul(shift, off))
    for index, each in enumerate((k.b.fadd(mean, shift), deviations)):
        block.set_row(each, moments, row + index, half)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as dense (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [each.data_ptr() for each in tensors] + [0] * (_BRANCHES - len(tensors))


def _sizes(weights: Sequence[Tensor]) -> tuple:
    return tuple(tuple(each.shape[2:]) for each in weights)


def _run(write, x: Tensor, bands: Bands, sizes, passes: int, *addresses: int, **parameters) -> None:
    """Compile the kernel ``write`` and run it."""
    n, height, width, c = x.shape
    parts = n * bands.row_bands * bands.column_bands
    cost = passes * x.numel() * sum(min(kh, 2 * height) * min(kw, 2 * width) for kh, kw in sizes)
    write(sizes=sizes, tiles=bands.tiles, lanes=lanes(), **parameters)(
        -(-c // LANES) * -(-parts // bands.group), cost, *addresses, c, height, width, parts,
        bands.group, bands.room, *bands[:4])


def _bands_of(x: Tensor, sizes) -> Bands:
    n, height, width, c = x.shape
    return divide(n, -(-c // LANES), height, width, sizes)


def summed(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The sum of the map's convolutions, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.
        bias: (C,).

    Returns:
        (N, C, H, W) in channels-last layout.
    """
    x, sizes = _rows(x), _sizes(weights)
    y, bands = torch.empty_like(x), _bands_of(x, sizes)
    _run(_forward, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights),
         0 if bias is None else bias.data_ptr(), y.data_ptr(), 0, has_bias=bias is not None,
         summed=True, has_moments=False)
    return y.permute(0, 3, 1, 2)


def apart(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Each of the map's convolutions, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.

    Returns:
        (N, C, H, W) in channels-last layout for each kernel.
    """
    return _apart(_rows(x), weights, None)


def _apart(x: Tensor, weights: Sequence[Tensor], moments: Tensor | None) -> list[Tensor]:
    maps, sizes = x.new_empty((len(weights), *x.shape)), _sizes(weights)
    bands = _bands_of(x, sizes)
    _run(_forward, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights), 0, maps.data_ptr(),
         0 if moments is None else moments.data_ptr(), has_bias=False, summed=False,
         has_moments=moments is not None)
    return list(maps.permute(0, 1, 4, 2, 3))


def with_statistics(x: Tensor, weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """As `apart`, and the maps' statistics over images and pixels.

    Returns:
        The maps; means and biased variances (B, C) in float64.
    """
    x = _rows(x)
    n, height, width, c = x.shape
    bands = _bands_of(x, _sizes(weights))
    parts = n * bands.row_bands * bands.column_bands
    moments = x.new_empty((parts, len(weights), 2, c))
    maps = _apart(x, weights, moments)
    means, deviations = moments.double().unbind(2)
    shares = _shares(n, height, width, bands)
    mean = (means * shares).sum(0)
    variances = (deviations / (n * height * width)).addcmul_((means - mean).square_(), shares)
    return maps, mean, variances.sum(0)


@functools.lru_cache(maxsize=256)
def _shares(n: int, height: int, width: int, bands: Bands) -> Tensor:
    """Share of each part in the pixels of all images, (parts, 1, 1) in float64."""
    rows = [min(bands.band_rows, height - i * bands.band_rows) for i in range(bands.row_bands)]
    columns = [min(bands.band_columns, width - i * bands.band_columns)
               for i in range(bands.column_bands)]
    counts = torch.tensor([h * w for _ in range(n) for h in rows for w in columns],
                          dtype=torch.float64)
    return counts.view(-1, 1, 1) / (n * height * width)


@kernel('z_0_p z_1_p z_2_p table_p y_p channels pixels chunk')
def _affine(k: Kernel, z_0, z_1, z_2, table, y, channels, pixels, chunk, *, count):
    slot = k.variable(k.zero)
    first = k.task * chunk
    with k.loop(first, k.min(first + chunk, pixels)) as pixel:
        line = pixel * channels

        def add(channel, width):
            total = k.load_some(table, channel + 2 * count * channels, width, slot)
            for index, z in enumerate((z_0, z_1, z_2)[:count]):
                mean, scale = (k.load_some(table, channel + (2 * index + i) * channels, width, slot)
                               for i in range(2))
                value = k.load_some(z, line + channel, width, slot)
                total = k.fma(k.b.fsub(value, mean), scale, total)
            k.store_some(total, y, line + channel, width, slot)

        whole = channels - channels % LANES
        with k.loop(0, whole, LANES) as channel:
            add(channel, k.int(LANES))
        with k.when(whole < channels):
            add(whole, channels - whole)


def affine(maps: Sequence[Tensor], means: Tensor, scales: Tensor, shift: Tensor) -> Tensor:
    """``sum over branches of scale (z - mean) + shift``.

    Args:
        maps: (N, C, H, W) float32, dense and channels-last, for each branch.
        means: (B, C).
        scales: (B, C).
        shift: (C,).

    Returns:
        (N, C, H, W) in channels-last layout.
    """
    count, (n, c, height, width) = len(maps), maps[0].shape
    pairs = torch.stack((means, scales), 1).view(2 * count, c)
    table = torch.cat((pairs, shift[None])).float()
    y, pixels, chunk = maps[0].new_empty((n, height, width, c)), n * height * width, 16
    _affine(count=count)(-(-pixels // chunk), 8 * y.numel(), *_addresses(maps), table.data_ptr(),
                         y.data_ptr(), c, pixels, chunk)
    return y.permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------ backward

class _Gradient(NamedTuple):
    """Gradient of a branch through its norm, ``A g + B (z - mean) + C``, as a source of planes."""

    grad: planes.Map
    branch: planes.Map
    by_grad: object
    by_branch: object
    mean: object
    constant: object

    def read(self, k: Kernel, y, x, slot):
        centred = k.b.fsub(self.branch.read(k, y, x, slot), k.read(self.mean))
        total = k.fma(self.grad.read(k, y, x, slot), k.read(self.by_grad), k.read(self.constant))
        return k.fma(centred, k.read(self.by_branch), total)

    def prefetch(self, k: Kernel, y, x) -> None:
        self.grad.prefetch(k, y, x)
        self.branch.prefetch(k, y, x)


@kernel(f'z_0_p z_1_p z_2_p grad_p means_p totals_p {_ARGUMENTS}')
def _totals(k: Kernel, z_0, z_1, z_2, grad, means, totals, channels, height, width, parts, group,
            room, *bands, sizes, tiles, count):
    block = Block(k, channels, height, width, parts, group)
    with block.each_part() as number, block.each_half() as half:
        part = Part(block, number, bands)
        incoming = part.map(grad, half)
        branches = [part.map(each, half) for each in (z_0, z_1, z_2)[:count]]
        centres = [block.row_of(means, index, half) for index in range(count)]
        sums = [k.variable(k.zero) for _ in range(count + 1)]
        # Sums of rows first: the error of a long sum grows with its length.
        with k.loop(part.top, part.bottom) as y:
            line = [k.variable(k.zero) for _ in sums]
            with k.loop(part.left, part.right) as x:
                value = incoming.read(k, y, x, block.slot)
                k.write(line[0], k.b.fadd(k.read(line[0]), value))
                for each, branch, centre in zip(line[1:], branches, centres):
                    k.add_product(each, k.b.fsub(branch.read(k, y, x, block.slot), centre), value)
            for each, total in zip(line, sums):
                k.write(total, k.b.fadd(k.read(total), k.read(each)))
        for index, each in enumerate(sums):
            block.set_row(k.read(each), totals, number * (count + 1) + index, half)


@kernel('x_p grad_0_p grad_1_p grad_2_p z_0_p z_1_p z_2_p table_p first_p second_p third_p out_p '
        f'taps_0_p taps_1_p taps_2_p {_ARGUMENTS}')
def _backward(k: Kernel, x, grad_0, grad_1, grad_2, z_0, z_1, z_2, table, first, second, third, out,
              taps_0, taps_1, taps_2, channels, height, width, parts, group, room, *bands, sizes,
              tiles, normed, wants_map, wants_taps):
    block = Block(k, channels, height, width, parts, group)
    branches = [index for index in range(len(sizes)) if wants_map or wants_taps[index]]
    strips = [Strip(block, *each) for each in zip(sizes, tiles)]
    memory = k.scratch(room * block.halves)
    pixels = Own(block, bands) if any(wants_taps) else None
    taps, sums = ([each.taps() for each in strips] for _ in range(2))
    numbers = [[block.rows_of(table, 4 * index + i) for i in range(4)] if normed else None
               for index in range(len(sizes))]
    with block.each_half() as half:
        for index in branches:
            strip = strips[index]
            if wants_map:
                strip.kernels.pack(half, (first, second, third)[index],
                                   strip.of_half(taps[index], half), True)
            if wants_taps[index]:
                strip.clear(strip.of_half(sums[index], half))
    with block.each_part() as number:
        part = Part(block, number, bands)
        if any(wants_taps):
            pixels.fill(part, x)
        for position, index in enumerate(branches):
            strip, view = strips[index], View(part, strips[index])
            sources = part.halves((grad_0, grad_1, grad_2)[index])
            if normed:
                sources = [_Gradient(*each) for each in zip(
                    sources, part.halves((z_0, z_1, z_2)[index]), *numbers[index])]
            plane = view.fill(memory, room, sources, strip.tap_rows - 1 if wants_taps[index] else 0)
            with block.each_half() as half:
                if wants_map:
                    convolve(view, plane, half, strip.of_half(taps[index], half), k.zero,
                             part.map(out, half), position > 0)
                if wants_taps[index]:
                    sum_taps(view, plane, half, pixels.map(half), strip.of_half(sums[index], half))
    with block.each_half() as half:
        for index in branches:
            if wants_taps[index]:
                strip, shift = strips[index], block.number * channels * strips[index].kernels.count
                strip.kernels.unpack(half, strip.of_half(sums[index], half),
                                     k.at((taps_0, taps_1, taps_2)[index], shift))


def totals(grad: Tensor, maps: Sequence[Tensor], means: Tensor) -> Tensor:
    """Per channel, the sum of the gradient and those of its products with the centred branches.

    Args:
        grad: (N, C, H, W) float32.
        maps: (N, C, H, W) float32, dense and channels-last, for each branch.
        means: (B, C) float32, contiguous.

    Returns:
        (B + 1, C) in float64.
    """
    grad, count, size = _rows(grad), len(maps), ((1, 1),)
    bands = _bands_of(grad, size)
    parts = grad.shape[0] * bands.row_bands * bands.column_bands
    sums = grad.new_empty((parts, count + 1, grad.shape[3]))
    _run(_totals, grad, bands, size, 2 * count, *_addresses(maps), grad.data_ptr(),
         means.data_ptr(), sums.data_ptr(), count=count)
    return sums.double().sum(0)


def gradients(grads: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor], wants_map: bool,
              wants_taps: Sequence[bool], maps: Sequence[Tensor] = (), table: Tensor | None = None
              ) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the map, summed over the branches, and of the kernels.

    Args:
        grads: (N, C, H, W) float32 for each branch, or one for all of them.
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.
        wants_map: Whether the map's gradient is asked for.
        wants_taps: The same of every kernel.
        maps: (N, C, H, W), dense and channels-last: the branches, where their gradients are
            ``A g + B (z - mean) + C``.
        table: (B, 4, C) float32, contiguous, then: A, B, mean and C.

    Returns:
        (N, C, H, W) in channels-last layout, and a list of (C, 1, kh, kw).
    """
    x, sizes, wants_taps = _rows(x), _sizes(weights), tuple(wants_taps)
    grads = [_rows(each) for each in grads]
    grads *= len(weights) // len(grads)
    n, c, bands = x.shape[0], x.shape[3], _bands_of(x, sizes)
    groups = -(-n * bands.row_bands * bands.column_bands // bands.group)
    out = torch.empty_like(x) if wants_map else None
    taps = [x.new_empty((groups, c, 1, *size) if want else 0)
            for size, want in zip(sizes, wants_taps)]
    _run(_backward, x, bands, sizes, 2, x.data_ptr(), *_addresses(grads), *_addresses(maps),
         0 if table is None else table.data_ptr(), *_addresses(weights),
         out.data_ptr() if wants_map else 0, *_addresses(taps), normed=table is not None,
         wants_map=wants_map, wants_taps=wants_taps)
    return (out.permute(0, 3, 1, 2) if wants_map else None,
            [(each.sum(0) if groups > 1 else each[0]) if want else None
             for each, want in zip(taps, wants_taps)])


def refuses(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> str | None:
    """Reason why the functions here cannot or should not take a map and kernels, or None."""
    reason = unavailable()
    if reason is not None:
        return reason
    tensors = (x, *weights, *(() if bias is None else (bias,)))
    if any(type(each) not in (Tensor, nn.Parameter) or not each.is_cpu for each in tensors):
        return 'something is no plain tensor on the CPU'
    if any(each.dtype != torch.float32 for each in tensors):
        return 'only float32 is compiled'
    if x.numel() == 0:
        return 'the map is empty'
    if any(min(each.shape[2:]) > SHORT for each in weights):
        return 'a large square kernel is faster by way of its spectrum'
    return None
