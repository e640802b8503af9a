"""Matrix product ``[residual +] act(x W^T + b)`` with a packed weight.

Vectors run over output features: a tile of up to 6 rows by 16 features stays in registers while the
depth K is summed, so that each 16 weights loaded serve 6 rows and each float of ``x`` a whole vector.
The weight lies in panels of 16 features, in the order in which it is read. Every output is one sum
in the order of K, however rows and features are divided among tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit.gelu import gelu as gelu_of
from mmlk.ops.jit.gelu import slope as gelu_slope
from mmlk.ops.jit.kernel import LANES, kernel

# Rows of a tile: on AVX2 twelve of the sixteen registers hold sums.
TILE_ROWS = 6
UNROLL = 4

# Rows of ``x`` that a task goes through for each panel, from its core's cache.
TASK_ROWS = 96
# Tasks per thread, so that one held up does not hold up the others; and the fewest multiplications
# that are worth a task, some 50 microseconds.
TASKS_PER_THREAD = 8
TASK_COST = 2_000_000


class Panels(NamedTuple):
    """A weight (N, K) in the order in which it is read.

    Attributes:
        panels: (ceil(N / 16), K, 16); what stands beyond N does not matter.
        features: N.
    """

    panels: Tensor
    features: int


@kernel('weight_p panels_p features depth stride')
def _pack(k, weight, panels, features, depth, stride, *, transposed):
    """Task ``t`` writes panel ``t``."""
    column = k.task * LANES
    panel = k.at(panels, column * depth)
    if transposed:
        slot, left = k.variable(k.zero), features - column
        with k.loop(0, depth) as i:
            k.store(k.load_some(weight, i * stride + column, left, slot), panel, i * LANES)
        return
    # Beyond the last row the last one is read again.
    lines = [k.at(weight, k.min(column + r, features - 1) * stride) for r in range(LANES)]
    whole = depth - depth % 4
    with k.loop(0, whole, 4) as i:
        for offset, vector in enumerate(_columns(k, [k.load_four(line, i) for line in lines])):
            k.store(vector, panel, (i + offset) * LANES)
    with k.loop(whole, depth) as i:
        for r, line in enumerate(lines):
            k.copy_float(k.at(line, i), k.at(panel, i * LANES + r))


def _columns(k, fours):
    """The four columns, 16 floats each, of 16 rows of four floats."""
    # Four rows at a time: their first floats, their second, third and fourth.
    by_column = [4 * row + column for column in range(4) for row in range(4)]
    quarters = [k.shuffle(*(k.shuffle(*fours[r:r + 2], range(8)) for r in (first, first + 2)), by_column)
                for first in range(0, LANES, 4)]
    for column in range(4):
        lanes = [*range(4 * column, 4 * column + 4), *range(16 + 4 * column, 20 + 4 * column)]
        yield k.shuffle(k.shuffle(*quarters[:2], lanes), k.shuffle(*quarters[2:], lanes), range(16))


def pack(weight: Tensor) -> Panels:
    """Panels of a float32 weight (N, K); fast if its rows or its columns are contiguous."""
    features, depth = weight.shape
    transposed = weight.stride(0) == 1 and features > 1
    if not transposed and weight.stride(1) != 1:
        weight = weight.contiguous()
    count = -(-features // LANES)
    panels = weight.new_empty(count, depth, LANES)
    _pack(transposed=transposed)(
        count, 8 * weight.numel(), weight.data_ptr(), panels.data_ptr(), features, depth,
        weight.stride(1 if transposed else 0))
    return Panels(panels, features)


@kernel('x_p panels_p bias_p residual_p before_p y_p rows features depth x_stride residual_stride '
        'y_stride block groups task_rows task_panels')
def _product(k, x, panels, bias, residual, before, y, rows, features, depth, x_stride,
             residual_stride, y_stride, block, groups, task_rows, task_panels, *, biased, gelu, keep,
             slope, add):
    """Task ``t`` computes row block ``t / groups`` of panel group ``t % groups``.

    Every ``block`` features see the next ``depth`` columns of ``x``.
    """
    top = k.task // groups * task_rows
    rows = k.min(task_rows, rows - top)
    first = k.task % groups * task_panels
    last = k.min(first + task_panels, (features + (LANES - 1)) // LANES)
    tiles = (rows + (TILE_ROWS - 1)) // TILE_ROWS
    slot = k.variable(k.zero)
    done = k.scratch(TILE_ROWS)
    with k.loop(first, last) as panel:
        column = panel * LANES
        left = features - column
        weights = k.at(panels, column * depth)
        seen = k.at(x, column // block * depth)
        start = k.load_some(bias, column, left, slot) if biased else k.zero
        with k.loop(0, tiles) as tile:
            # Tiles of nearly equal height: 50 rows are not eight tiles of 6 and a slow one of 2.
            row = tile * rows // tiles
            height = (tile + 1) * rows // tiles - row
            row = row + top
            for each in range(TILE_ROWS, 0, -1):
                with k.when(height.compare('==', each)):
                    _sums(k, each, start, k.at(seen, row * x_stride), x_stride, weights, depth, done)
            with k.loop(0, height) as r:
                value, place = k.load(done, r * LANES), (row + r) * y_stride + column
                if keep:
                    k.store_some(value, before, place, left, slot)
                if gelu:
                    value = gelu_of(k, value)
                if slope:
                    value = k.b.fmul(value, gelu_slope(k, k.load_some(before, place, left, slot)))
                if add:
                    other = (row + r) * residual_stride + column
                    value = k.b.fadd(value, k.load_some(residual, other, left, slot))
                k.store_some(value, y, place, left, slot)


def _sums(k, height, start, x, x_stride, weights, depth, done):
    """``done[r] = start + sum_i x[r, i] weights[i]`` for ``height`` rows r."""
    sums = [k.variable(start) for _ in range(height)]
    lines = [k.at(x, x_stride * r) for r in range(height)]

    def step(i, offset):
        weight = k.load(k.at(weights, i * LANES), offset * LANES)
        for total, line in zip(sums, lines, strict=True):
            k.add_product(total, k.load_splat(k.at(line, i), offset), weight)

    whole = depth - depth % UNROLL
    with k.loop(0, whole, UNROLL) as i:
        for offset in range(UNROLL):
            step(i, offset)
    with k.loop(whole, depth) as i:
        step(i, 0)
    for r, total in enumerate(sums):
        k.store(k.read(total), done, r * LANES)


def _division(rows: int, count: int, depth: int, threads: int) -> tuple[int, int]:
    """Rows and panels of a task."""
    wanted = min(TASKS_PER_THREAD * threads, rows * count * LANES * depth // TASK_COST)
    blocks = -(-rows // TASK_ROWS)
    if blocks >= wanted:
        # As many for one thread as for the other.
        blocks = -(-blocks // threads) * threads
        return -(-rows // blocks), count
    return -(-rows // blocks), -(-count * blocks // wanted)


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not (x.shape == shape and x.dtype == torch.float32 and x.is_cpu
            and (x.stride(-1) == 1 or shape[-1] == 1)):
        raise ValueError(
            f'linear: {name} {tuple(x.shape)} with strides {x.stride()}, {x.dtype} on {x.device}, '
            f'is not {shape} with contiguous rows in float32 on the CPU')


def linear(x: Tensor, weight: Panels, bias: Tensor | None = None, *, gelu: bool = False,
           residual: Tensor | None = None, out: Tensor | None = None,
           before: Tensor | None = None, slope: bool = False, blocks: int = 1) -> Tensor:
    """``[residual +] act(x W^T + b)`` in float32, without gradients.

    Args:
        x: (M, K), or (M, blocks K), rows contiguous.
        weight: `pack` of (N, K).
        bias: (N,), contiguous.
        gelu: Apply the exact GELU.
        residual: (M, N), rows contiguous.
        out: (M, N), rows contiguous, to write to; it may be ``residual``, and must not overlap ``x``.
        before: (M, N) with the strides of the result: takes ``x W^T + b``, the value before ``gelu``.
        slope: Multiply with the derivative of GELU at ``before``, which is read instead.
        blocks: Number of blocks on the diagonal of W: every N / blocks features, a multiple of 16,
            see K columns of their own. K stands for the depth of one block.

    Returns:
        (M, N), contiguous, or ``out``.

    Raises:
        ValueError: if shapes do not fit, or an operand is not float32 on the CPU in the order said.
    """
    panels, features = weight
    rows, depth = x.shape[0], panels.shape[1]
    _check('x', x, (rows, blocks * depth))
    if blocks > 1 and features % (blocks * LANES):
        raise ValueError(f'linear: {features} features are not {blocks} blocks of whole vectors')
    if bias is not None:
        _check('bias', bias, (features,))
    if residual is not None:
        _check('residual', residual, (rows, features))
    if out is None:
        out = x.new_empty(rows, features)
    else:
        _check('out', out, (rows, features))
    if before is not None:
        _check('before', before, (rows, features))
        if before.stride() != out.stride():
            raise ValueError(f'linear: strides {before.stride()} of before are not {out.stride()}')
    if rows == 0:
        return out
    count, threads = panels.shape[0], torch.get_num_threads()
    task_rows, task_panels = _division(rows, count, depth, threads)
    groups = -(-count // task_panels)
    other = out if residual is None else residual
    _product(biased=bias is not None, gelu=gelu, keep=before is not None and not slope, slope=slope,
             add=residual is not None)(
        groups * -(-rows // task_rows), rows * features * depth,
        x.data_ptr(), panels.data_ptr(), 0 if bias is None else bias.data_ptr(), other.data_ptr(),
        0 if before is None else before.data_ptr(), out.data_ptr(), rows, features, depth,
        x.stride(0), other.stride(0), out.stride(0), features // blocks, groups, task_rows,
        task_panels)
    return out
