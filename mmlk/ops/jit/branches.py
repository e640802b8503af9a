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
from mmlk.ops.jit.strips import SHORT, Bands, Part, View, convolve, divide, sum_taps

_BRANCHES = 3


# ------------------------------------------------------------------------------------ forward

@kernel('x_p first_p second_p third_p bias_p y_0_p y_1_p y_2_p moments_p channels height width parts '
        'row_bands band_rows column_bands band_columns room')
def _forward(k: Kernel, x, first, second, third, bias, y_0, y_1, y_2, moments, channels, height,
             width, parts, *bands, sizes, tiles, has_bias, summed, has_moments):
    part = Part(k, channels, height, width, parts, bands)
    taps = k.scratch(max(kh * kw for kh, kw in sizes))
    for index, (size, weight, y) in enumerate(
            zip(sizes, (first, second, third), (y_0, y_1, y_2))):
        view = View(part, size, tiles)
        plane = view.fill(view.map(x))
        view.pack(taps, weight, False)
        target = y_0 if summed else y
        start = part.row_of(bias, 0) if has_bias and index == 0 else k.zero
        convolve(view, plane, taps, start, view.map(target), summed and index > 0)
        if has_moments:
            _moments(part, part.map(target), moments, (part.number * len(sizes) + index) * 2)


def _moments(part: Part, source: planes.Map, moments, row) -> None:
    """Mean and sum of squared deviations of the part, to two rows of a table (rows, C)."""
    k = part.k
    total, number = k.variable(k.zero), k.variable(k.zero)
    with k.loop(part.top, part.bottom) as y, k.loop(part.left, part.right) as x:
        k.write(total, k.b.fadd(k.read(total), source.read(k, y, x, part.slot)))
        k.write(number, k.b.fadd(k.read(number), k.splat(1.0)))
    share = k.b.fdiv(k.splat(1.0), k.read(number))
    mean = k.b.fmul(k.read(total), share)
    # What rounding left of the deviations' own mean corrects both.
    off, squares = k.variable(k.zero), k.variable(k.zero)
    with k.loop(part.top, part.bottom) as y, k.loop(part.left, part.right) as x:
        deviation = k.b.fsub(source.read(k, y, x, part.slot), mean)
        k.write(off, k.b.fadd(k.read(off), deviation))
        k.add_product(squares, deviation, deviation)
    shift = k.b.fmul(k.read(off), share)
    deviations = k.b.fsub(k.read(squares), k.b.fmul(shift, k.read(off)))
    for index, each in enumerate((k.b.fadd(mean, shift), deviations)):
        k.store_some(each, moments, part.channel + (row + index) * part.channels, part.count,
                     part.slot)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as dense (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [each.data_ptr() for each in tensors] + [0] * (_BRANCHES - len(tensors))


def _sizes(weights: Sequence[Tensor]) -> tuple:
    return tuple(tuple(each.shape[2:]) for each in weights)


def _run(compiled, x: Tensor, bands: Bands, sizes, passes: int, *addresses: int) -> None:
    n, height, width, c = x.shape
    parts = n * bands.row_bands * bands.column_bands
    cost = passes * x.numel() * sum(min(kh, 2 * height) * min(kw, 2 * width) for kh, kw in sizes)
    compiled(-(-c // LANES) * parts, cost, *addresses, c, height, width, parts, *bands[:-1])


def _bands_of(x: Tensor, sizes) -> Bands:
    n, height, width, c = x.shape
    return divide(n * -(-c // LANES), height, width, sizes)


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
    compiled = _forward(sizes=sizes, tiles=bands.tiles, has_bias=bias is not None, summed=True,
                        has_moments=False)
    _run(compiled, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights),
         0 if bias is None else bias.data_ptr(), *_addresses([y]), 0)
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
    maps, sizes = [torch.empty_like(x) for _ in weights], _sizes(weights)
    bands = _bands_of(x, sizes)
    compiled = _forward(sizes=sizes, tiles=bands.tiles, has_bias=False, summed=False,
                        has_moments=moments is not None)
    _run(compiled, x, bands, sizes, 1, x.data_ptr(), *_addresses(weights), 0, *_addresses(maps),
         0 if moments is None else moments.data_ptr())
    return [each.permute(0, 3, 1, 2) for each in maps]


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


@kernel('z_0_p z_1_p z_2_p grad_p means_p totals_p channels height width parts '
        'row_bands band_rows column_bands band_columns room')
def _totals(k: Kernel, z_0, z_1, z_2, grad, means, totals, channels, height, width, parts, *bands,
            count):
    part = Part(k, channels, height, width, parts, bands)
    incoming = part.map(grad)
    branches = [part.map(each) for each in (z_0, z_1, z_2)[:count]]
    centres = [part.row_of(means, index) for index in range(count)]
    sums = [k.variable(k.zero) for _ in range(count + 1)]
    # Sums of rows first: the error of a long sum grows with its length.
    with k.loop(part.top, part.bottom) as y:
        line = [k.variable(k.zero) for _ in sums]
        for each in line:
            k.write(each, k.zero)
        with k.loop(part.left, part.right) as x:
            value = incoming.read(k, y, x, part.slot)
            k.write(line[0], k.b.fadd(k.read(line[0]), value))
            for each, branch, centre in zip(line[1:], branches, centres):
                k.add_product(each, k.b.fsub(branch.read(k, y, x, part.slot), centre), value)
        for each, total in zip(line, sums):
            k.write(total, k.b.fadd(k.read(total), k.read(each)))
    for index, each in enumerate(sums):
        row = part.number * (count + 1) + index
        k.store_some(k.read(each), totals, part.channel + row * channels, part.count, part.slot)


@kernel('x_p grad_0_p grad_1_p grad_2_p z_0_p z_1_p z_2_p table_p first_p second_p third_p out_p '
        'taps_0_p taps_1_p taps_2_p channels height width parts '
        'row_bands band_rows column_bands band_columns room')
def _backward(k: Kernel, x, grad_0, grad_1, grad_2, z_0, z_1, z_2, table, first, second, third, out,
              taps_0, taps_1, taps_2, channels, height, width, parts, *bands, sizes, tiles, normed,
              wants_map, wants_taps):
    part = Part(k, channels, height, width, parts, bands)
    taps = k.scratch(max(kh * kw for kh, kw in sizes))
    columns = part.right - part.left
    pixels = k.scratch((part.bottom - part.top) * columns)
    if any(wants_taps):
        planes.fill(k, pixels, part.map(x), (part.top, part.bottom - part.top),
                    (part.left, columns), (height, width), part.slot)
    for index, (size, grad, z, weight, result) in enumerate(zip(
            sizes, (grad_0, grad_1, grad_2), (z_0, z_1, z_2), (first, second, third),
            (taps_0, taps_1, taps_2))):
        if not wants_map and not wants_taps[index]:
            continue
        view = View(part, size, tiles)
        source = view.map(grad)
        if normed:
            numbers = (k.variable(part.row_of(table, 4 * index + i)) for i in range(4))
            source = _Gradient(source, view.map(z), *numbers)
        plane = view.fill(source)
        if wants_map:
            view.pack(taps, weight, True)
            convolve(view, plane, taps, k.zero, view.map(out), index > 0)
        if wants_taps[index]:
            sum_taps(view, plane, pixels, columns, taps)
            view.unpack(taps, result)


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
    _run(_totals(count=count), grad, bands, size, 2 * count, *_addresses(maps), grad.data_ptr(),
         means.data_ptr(), sums.data_ptr())
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
    parts = n * bands.row_bands * bands.column_bands
    out = torch.empty_like(x) if wants_map else None
    # Taps that meet no pixel are left out.
    taps = [x.new_zeros((parts, c, 1, *size)) if want else x.new_empty(0)
            for size, want in zip(sizes, wants_taps)]
    compiled = _backward(sizes=sizes, tiles=bands.tiles, normed=table is not None,
                         wants_map=wants_map, wants_taps=wants_taps)
    _run(compiled, x, bands, sizes, 2, x.data_ptr(), *_addresses(grads), *_addresses(maps),
         0 if table is None else table.data_ptr(), *_addresses(weights),
         out.data_ptr() if wants_map else 0, *_addresses(taps))
    return (out.permute(0, 3, 1, 2) if wants_map else None,
            [(each.sum(0) if parts > 1 else each[0]) if want else None
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
