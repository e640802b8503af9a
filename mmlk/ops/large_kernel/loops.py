"""SLaK's branches on channels-last float32 maps: depthwise kernels of one map, summed or apart.

One task computes all branches for parts of images and 16 of their channels. Folded, every kernel adds
to the same pixels of the result. In training each branch has a map and batch statistics of its own
(`mmlk.ops.large_kernel.loops_norms`): the moments of a part are taken while it is in the cache. The
gradient of a branch through its norm is ``A g + B (z - mean) + C`` with three numbers per channel; such
maps exist only as planes, from which a task takes the gradients of map and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops import jit
from mmlk.ops.jit import planes
from mmlk.ops.jit.address import address, can_address
from mmlk.ops.jit.engine import Compiled
from mmlk.ops.jit.language import LANES, Kernel, kernel
from mmlk.ops.jit.moments import Moments
from mmlk.ops.large_kernel.loops_strips import (
    SHORT,
    Bands,
    Block,
    OwnPixels,
    Part,
    Strip,
    View,
    convolve,
    divide,
    lanes,
    sum_taps,
)

BRANCHES = 3


# ------------------------------------------------------------------------------------ forward

SHAPE = 'channels height width parts group room row_bands band_rows column_bands band_columns'


@kernel(f'x_p first_p second_p third_p bias_p table_p {SHAPE}')
def _forward(
    k: Kernel,
    x,
    first,
    second,
    third,
    bias,
    table,
    channels,
    height,
    width,
    parts,
    group,
    room,
    *bands,
    sizes,
    tiles,
    has_bias,
    summed,
    has_moments,
):
    """The addresses of the results are further arguments."""
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
            view, target = View(part, strip), k.further(0 if summed else index)
            if strip.form != form:
                plane, form = view.fill(memory, room, part.halves(x), 0), strip.form
            with block.each_half() as half:
                begins, moments = has_bias and position == 0, Moments(k) if has_moments else None
                convolve(
                    view,
                    plane,
                    half,
                    strip.of_half(taps[index], half),
                    block.row_of(bias, 0, half) if begins else k.zero,
                    (part.stored if has_moments else part.map)(target, half),
                    summed and position > 0,
                    moments,
                )
                if has_moments:
                    for each, value in enumerate(moments.read(part.pixels())):
                        block.set_row(value, table, (number * len(sizes) + index) * 2 + each, half)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) as a dense map in channels-last layout."""
    # Asked first, since a call that changes nothing costs more.
    form = torch.channels_last
    return x if x.is_contiguous(memory_format=form) else x.contiguous(memory_format=form)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [address(each) for each in tensors] + [0] * (BRANCHES - len(tensors))


def stacked(maps: Tensor | None) -> list[int]:
    """Addresses of the maps in a stack."""
    if maps is None:
        return [0] * BRANCHES
    first, step = address(maps), maps.stride(0) * maps.element_size()
    return [first + step * index for index in range(BRANCHES)]


def _sizes(weights: Sequence[Tensor]) -> tuple:
    return tuple([tuple(each.shape[2:]) for each in weights])


def run(
    compiled: Compiled,
    x: Tensor,
    bands: Bands,
    sizes,
    passes: int,
    *arguments: int,
    further: Sequence[int] = (),
) -> None:
    """Run a kernel whose arguments end with `SHAPE`, and ``further`` ones.

    Args:
        x: (N, C, H, W), the map or one of its shape.
        sizes: Rows and columns of the kernels.
        passes: Times that every tap of theirs is used.
    """
    n, c, height, width = x.shape
    parts = n * bands.row_bands * bands.column_bands
    cost = passes * x.numel() * sum([min(kh, 2 * height) * min(kw, 2 * width) for kh, kw in sizes])
    compiled(
        -(-c // LANES) * -(-parts // bands.group),
        cost,
        *arguments,
        c,
        height,
        width,
        parts,
        bands.group,
        bands.room,
        *bands[:4],
        *further,
    )


def bands_of(x: Tensor, sizes) -> Bands:
    """How a map (N, C, H, W) is divided for kernels of these sizes."""
    n, c, height, width = x.shape
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
    x, sizes = channels_last(x), _sizes(weights)
    y, bands = torch.empty_like(x), bands_of(x, sizes)
    compiled = _forward(
        sizes=sizes,
        tiles=bands.tiles,
        has_bias=bias is not None,
        summed=True,
        has_moments=False,
        lanes=lanes(),
    )
    run(
        compiled,
        x,
        bands,
        sizes,
        1,
        address(x),
        *_addresses(weights),
        address(bias),
        0,
        further=[address(y)],
    )
    return y


def apart(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Each of the map's convolutions, zero padded by ``k // 2``.

    Args:
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.

    Returns:
        (N, C, H, W) in channels-last layout for each kernel.
    """
    x = channels_last(x)
    maps, sizes = [torch.empty_like(x) for _ in weights], _sizes(weights)
    _apart(x, weights, sizes, bands_of(x, sizes), None, _addresses(maps))
    return maps


def _apart(
    x: Tensor,
    weights: Sequence[Tensor],
    sizes: tuple,
    bands: Bands,
    moments: Tensor | None,
    maps: Sequence[int],
) -> None:
    compiled = _forward(
        sizes=sizes,
        tiles=bands.tiles,
        has_bias=False,
        summed=False,
        has_moments=moments is not None,
        lanes=lanes(),
    )
    run(
        compiled,
        x,
        bands,
        sizes,
        1,
        address(x),
        *_addresses(weights),
        0,
        address(moments),
        further=maps,
    )


def with_moments(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple]:
    """As `apart`, in an order in which tasks read and write without gaps, and moments of the parts.

    Returns:
        The maps, (B, N, ceil(C / 16), H, W, 16); mean and sum of squared deviations of every part,
        (P, B, 2, C); and the first four fields of `Bands`, which say how the map was divided.
    """
    x, sizes, count = channels_last(x), _sizes(weights), len(weights)
    (n, c, height, width), bands = x.shape, bands_of(x, sizes)
    moments = x.new_empty((n * bands.row_bands * bands.column_bands, count, 2, c))
    maps = x.new_empty((count, n, -(-c // LANES), height, width, LANES))
    _apart(x, weights, sizes, bands, moments, stacked(maps))
    return maps, moments, bands[:4]


# ------------------------------------------------------------------------------------ backward


class _Gradient(NamedTuple):
    """Gradient of a branch through its norm, ``A g + B (z - mean) + C``, as a source of planes."""

    grad: planes.Map
    branch: planes.Map
    by_grad: object
    by_branch: object
    mean: object
    constant: object

    def read(self, k: Kernel, y, x, buffer):
        centred = k.b.fsub(self.branch.read(k, y, x, buffer), k.read(self.mean))
        total = k.fma(self.grad.read(k, y, x, buffer), k.read(self.by_grad), k.read(self.constant))
        return k.fma(centred, k.read(self.by_branch), total)

    def prefetch(self, k: Kernel, y, x) -> None:
        self.grad.prefetch(k, y, x)
        self.branch.prefetch(k, y, x)


@kernel(
    'x_p grad_0_p grad_1_p grad_2_p z_0_p z_1_p z_2_p table_p first_p second_p third_p out_p '
    f'taps_0_p taps_1_p taps_2_p {SHAPE}'
)
def _backward(
    k: Kernel,
    x,
    grad_0,
    grad_1,
    grad_2,
    z_0,
    z_1,
    z_2,
    table,
    first,
    second,
    third,
    out,
    taps_0,
    taps_1,
    taps_2,
    channels,
    height,
    width,
    parts,
    group,
    room,
    *bands,
    sizes,
    tiles,
    normed,
    wants_map,
    wants_taps,
):
    block = Block(k, channels, height, width, parts, group)
    branches = [index for index in range(len(sizes)) if wants_map or wants_taps[index]]
    strips = [Strip(block, *each) for each in zip(sizes, tiles)]
    memory = k.scratch(room * block.halves)
    pixels = OwnPixels(block, bands) if any(wants_taps) else None
    taps, sums = ([each.taps() for each in strips] for _ in range(2))
    numbers = [
        [block.rows_of(table, 4 * index + i) for i in range(4)] if normed else None
        for index in range(len(sizes))
    ]
    with block.each_half() as half:
        for index in branches:
            strip = strips[index]
            if wants_map:
                strip.kernels.pack(
                    half, (first, second, third)[index], strip.of_half(taps[index], half), True
                )
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
                sources = [
                    _Gradient(*each)
                    for each in zip(
                        sources, part.halves((z_0, z_1, z_2)[index], stored=True), *numbers[index]
                    )
                ]
            plane = view.fill(memory, room, sources, strip.tap_rows - 1 if wants_taps[index] else 0)
            with block.each_half() as half:
                if wants_map:
                    convolve(
                        view,
                        plane,
                        half,
                        strip.of_half(taps[index], half),
                        k.zero,
                        part.map(out, half),
                        position > 0,
                    )
                if wants_taps[index]:
                    sum_taps(view, plane, half, pixels.map(half), strip.of_half(sums[index], half))
    with block.each_half() as half:
        for index in branches:
            if wants_taps[index]:
                strip, shift = strips[index], block.number * channels * strips[index].kernels.count
                strip.kernels.unpack(
                    half,
                    strip.of_half(sums[index], half),
                    k.at((taps_0, taps_1, taps_2)[index], shift),
                )


def gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    wants_map: bool,
    wants_taps: Sequence[bool],
    maps: Tensor | None = None,
    table: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the map, summed over the branches, and of the kernels.

    Args:
        grads: (N, C, H, W) float32 for each branch, or one for all of them.
        x: (N, C, H, W) float32.
        weights: Two or three contiguous kernels (C, 1, kh, kw), sides odd.
        wants_map: Whether the map's gradient is asked for.
        wants_taps: The same of every kernel.
        maps: (B, N, ceil(C / 16), H, W, 16), dense: the branches, where their gradients are
            ``A g + B (z - mean) + C``.
        table: (B, 4, C) float32, contiguous, then: A, B, mean and C.

    Returns:
        (N, C, H, W) in channels-last layout, and a list of (C, 1, kh, kw).
    """
    x, sizes, wants_taps = channels_last(x), _sizes(weights), tuple(wants_taps)
    grads = [channels_last(each) for each in grads]
    grads *= len(weights) // len(grads)
    (n, c, _, _), bands = x.shape, bands_of(x, sizes)
    groups = -(-n * bands.row_bands * bands.column_bands // bands.group)
    out = torch.empty_like(x) if wants_map else None
    several = (groups,) if groups > 1 else ()
    taps = [
        x.new_empty((*several, c, 1, *size)) if want else None
        for size, want in zip(sizes, wants_taps)
    ]
    compiled = _backward(
        sizes=sizes,
        tiles=bands.tiles,
        normed=table is not None,
        wants_map=wants_map,
        wants_taps=wants_taps,
        lanes=lanes(),
    )
    given = [address(each) for each in (*taps, None)[:BRANCHES]]
    run(
        compiled,
        x,
        bands,
        sizes,
        2,
        address(x),
        *_addresses(grads),
        *stacked(maps),
        address(table),
        *_addresses(weights),
        address(out) if wants_map else 0,
        *given,
    )
    if groups > 1:
        taps = [None if each is None else each.sum(0) for each in taps]
    return out, taps


def refusal(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> str | None:
    """Reason why the functions here cannot or should not take a map and kernels, or None."""
    reason = jit.refusal()
    if reason is not None:
        return reason
    tensors = (x, *weights, *(() if bias is None else (bias,)))
    if not can_address(*tensors):
        return 'only plain float32 tensors on the CPU are compiled'
    if x.numel() == 0:
        return 'the map is empty'
    if any(min(each.shape[2:]) > SHORT for each in weights):
        return 'a large square kernel is faster by way of its spectrum'
    return None
