"""Gradient ``g^T x`` of a linear layer's weight, and those of its bias and of a scale behind it.

Some rows at a time, both maps are copied to panels of 16 columns, in which each row is one line of the
cache. A tile of the result is up to 6 columns of ``g`` by 16 of ``x``. Long sums are cut to spans whose
panels fit the core's nearest cache. The sums of spans are added in order: nothing depends on the number
of threads, and rounding errors of thousands of rows do not pile up in one sum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel
from mmlk.ops.jit.tile import ROWS, add_products

# As in `mmlk.ops.dense.loops`, sizes follow from the caches of current processors.
SPAN = 400
"""Rows of a span, at most: a panel is 25 KB then and fits the first cache."""

CHUNK = 1_000_000
"""Floats that are copied to panels before they are multiplied: 4 MB, which a last cache holds."""

COPIED_TOGETHER = 4
"""Panels that a task copies side by side, four neighbouring lines of the cache."""

AHEAD = 4
"""Rows from one being copied to one being fetched: the time that memory takes to answer."""

TASK_PANELS = 12
"""Panels of ``g`` that a task keeps in its core's second cache, at most: 300 KB."""

TASKS_PER_THREAD, TASK_COST = 8, 2_000_000
"""As in `mmlk.ops.dense.loops`."""


@kernel(
    'g_p g_panels_p y_p sums_p g_width g_stride x_p x_panels_p x_width x_stride rows span before'
)
def _pack(
    k,
    g,
    g_panels,
    y,
    sums,
    g_width,
    g_stride,
    x,
    x_panels,
    x_width,
    x_stride,
    rows,
    span,
    before,
    *,
    summed,
    multiplied,
):
    """The first tasks write `COPIED_TOGETHER` panels of ``g`` each and their sums, the others of ``x``.

    Behind the sums of ``g`` stand those of ``g y``.
    """
    together = COPIED_TOGETHER * LANES
    count = (g_width + (together - 1)) // together
    is_g = k.task < count
    source, panels = k.choose(is_g, g, x), k.choose(is_g, g_panels, x_panels)
    width, stride = k.choose(is_g, g_width, x_width), k.choose(is_g, g_stride, x_stride)
    first = (k.task - k.choose(is_g, 0, count)) * together
    last = k.min(first + together, width)
    whole = last - last % LANES
    buffer = k.variable(k.zero)
    parts, by_y = k.scratch(COPIED_TOGETHER), k.scratch(COPIED_TOGETHER)

    with k.loop(0, rows, span) as start:
        with k.loop(0, COPIED_TOGETHER) as each:
            k.store(k.zero, parts, each * LANES)
            k.store(k.zero, by_y, each * LANES)

        def keep(row, column, load):
            vector = load(k.at(source, row * stride + column))
            k.store(vector, panels, column * rows + row * LANES)
            place = column - first
            if summed:
                k.store(k.b.fadd(vector, k.load(parts, place)), parts, place)
            if multiplied:
                with k.when(is_g):
                    other = load(k.at(y, row * stride + column))
                    k.store(k.fma(vector, other, k.load(by_y, place)), by_y, place)

        with k.loop(start, k.min(start + span, rows)) as row:
            with k.loop(first, whole, LANES) as column:
                k.prefetch(source, (row + AHEAD) * stride + column)
                keep(row, column, k.load)
            with k.when(last > whole):
                keep(row, whole, lambda place: k.load_some(place, 0, last - whole, buffer))
        for wanted, kept, offset in ((summed, parts, 0), (multiplied, by_y, width)):
            if wanted:
                with k.when(is_g), k.loop(first, last, LANES) as column:
                    total = k.variable(k.load(kept, column - first))
                    with k.when(start + before > 0):
                        k.write(
                            total,
                            k.b.fadd(
                                k.read(total),
                                k.load_some(sums, offset + column, last - column, buffer),
                            ),
                        )
                    k.store_some(k.read(total), sums, offset + column, last - column, buffer)


@kernel('g_p x_p factors_p y_p depth rows columns span before groups task_rows task_columns')
def _product(
    k,
    g,
    x,
    factors,
    y,
    depth,
    rows,
    columns,
    span,
    before,
    groups,
    task_rows,
    task_columns,
    *,
    scaled,
):
    """Task ``t``: row panels of block ``t / groups`` by column panels of block ``t % groups``."""
    top, first = k.task // groups * task_rows, k.task % groups * task_columns
    bottom = k.min(top + task_rows, (rows + (LANES - 1)) // LANES)
    last = k.min(first + task_columns, (columns + (LANES - 1)) // LANES)
    buffer, done = k.variable(k.zero), k.scratch(ROWS)
    with k.loop(0, depth, span) as start, k.loop(first, last) as right, k.loop(top, bottom) as left:
        count, later = k.min(span, depth - start), start + before > 0
        ours = k.at(g, (left * depth + start) * LANES)
        theirs = k.at(x, (right * depth + start) * LANES)
        column = right * LANES

        def tile(offset, height):
            row = left * LANES + offset
            corner = k.at(y, row * columns + column)
            # Places of the next tile, which are seldom in the cache: their first and last floats.
            for r in range(ROWS, ROWS + height):
                k.prefetch(corner, columns * r, write=True)
                k.prefetch(corner, columns * r + (LANES - 1), write=True)
            sums = [k.variable(k.zero) for _ in range(height)]
            add_products(
                k,
                sums,
                [k.at(ours, offset + r) for r in range(height)],
                LANES,
                theirs,
                LANES,
                count,
            )
            with k.either(k.both(columns - column >= LANES, rows - row >= height)) as (whole, part):
                with whole:
                    if scaled:
                        for r, total in enumerate(sums):
                            k.write(total, k.b.fmul(k.read(total), k.load_splat(factors, row + r)))
                    with k.when(later):
                        for r, total in enumerate(sums):
                            k.write(total, k.b.fadd(k.read(total), k.load(corner, columns * r)))
                    for r, total in enumerate(sums):
                        k.store(k.read(total), corner, columns * r)
                with part:
                    for r, total in enumerate(sums):
                        k.store(k.read(total), done, r * LANES)
                    with k.loop(0, k.min(height, rows - row)) as r:
                        total = k.variable(k.load(done, r * LANES))
                        if scaled:
                            k.write(total, k.b.fmul(k.read(total), k.load_splat(factors, row + r)))
                        with k.when(later):
                            k.write(
                                total,
                                k.b.fadd(
                                    k.read(total),
                                    k.load_some(corner, columns * r, columns - column, buffer),
                                ),
                            )
                        k.store_some(k.read(total), corner, columns * r, columns - column, buffer)

        tile(k.int(0), ROWS)
        with k.loop(ROWS, LANES, ROWS - 1) as offset:
            tile(offset, ROWS - 1)


def _parts(count: int, size: int) -> int:
    return -(-count // size)


def _division(rows: int, columns: int, cost: int, threads: int) -> tuple[int, int]:
    """Panels of ``g`` and of ``x`` of a task, about as many of each: every panel is read less often."""
    wanted = max(1, min(TASKS_PER_THREAD * threads, cost // TASK_COST))
    pairs = _parts(rows * columns, wanted)
    blocks = _parts(rows, min(TASK_PANELS, max(math.isqrt(pairs), _parts(pairs, columns))))
    groups = _parts(columns, _parts(pairs, _parts(rows, blocks)))
    return _parts(rows, blocks), _parts(columns, groups)


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    *,
    bias: bool = False,
    factors: Tensor | None = None,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``(factors * g)^T x``, ``factors * sum_m g[m]`` and ``sum_m g[m] y[m]``, in float32.

    Args:
        grad: (M, N), rows contiguous, M >= 1.
        x: (M, K), rows contiguous.
        bias: Whether the first sum is wanted.
        factors: (N,), contiguous; one without them.
        y: (M, N) with the strides of ``grad``; without it the second sum is None.

    Returns:
        (N, K), (N,) and (N,), contiguous.

    Raises:
        ValueError: if shapes do not fit, or an operand is not float32 on the CPU in the order said.
    """
    (depth, rows), columns = grad.shape, x.shape[1]
    for name, each, shape in (
        ('grad', grad, grad.shape),
        ('x', x, (depth, columns)),
        ('factors', factors, (rows,)),
        ('y', y, grad.shape),
    ):
        if each is not None and not (
            each.shape == shape
            and each.numel() > 0
            and each.dtype == torch.float32
            and each.is_cpu
            and (each.stride(-1) == 1 or shape[-1] == 1)
        ):
            raise ValueError(
                f'weight_gradient: {name} {tuple(each.shape)} with strides {each.stride()}, '
                f'{each.dtype} on {each.device}, is not {tuple(shape)}, not empty, with contiguous '
                'rows in float32 on the CPU'
            )
    if y is not None and y.stride() != grad.stride():
        raise ValueError(f'weight_gradient: strides {y.stride()} of y are not {grad.stride()}')
    chunk = _parts(depth, _parts(depth * (rows + columns), CHUNK))
    left, right = (grad.new_empty(_parts(each, LANES), chunk, LANES) for each in (rows, columns))
    result, sums = grad.new_empty(rows, columns), grad.new_empty(2, rows)
    task_rows, task_columns = _division(
        len(left), len(right), chunk * rows * columns, torch.get_num_threads()
    )
    groups = _parts(len(right), task_columns)
    copies = sum(_parts(each, LANES * COPIED_TOGETHER) for each in (rows, columns))
    for before in range(0, depth, chunk):
        count = min(chunk, depth - before)
        span = _parts(count, _parts(count, SPAN))
        _pack(summed=bias, multiplied=y is not None)(
            copies,
            4 * count * (rows + columns),
            _row(grad, before),
            address(left),
            0 if y is None else _row(y, before),
            address(sums),
            rows,
            grad.stride(0),
            _row(x, before),
            address(right),
            columns,
            x.stride(0),
            count,
            span,
            before,
        )
        _product(scaled=factors is not None)(
            _parts(len(left), task_rows) * groups,
            count * rows * columns,
            address(left),
            address(right),
            address(factors),
            address(result),
            count,
            rows,
            columns,
            span,
            before,
            groups,
            task_rows,
            task_columns,
        )
    total, by_y = sums.unbind()
    if factors is not None:
        total.mul_(factors)
    return result, total if bias else None, None if y is None else by_y


def _row(x: Tensor, number: int) -> int:
    """Address of a row."""
    return address(x) + 4 * number * x.stride(0)
