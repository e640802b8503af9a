"""Matrix product ``[residual +] factors * act(x W^T + b)`` with a packed weight.

Vectors run over output features: a tile of up to 6 rows by 16 features stays in registers while the
depth K is summed, so that each 16 weights loaded serve 6 rows and each float of ``x`` a whole vector.
The weight is read in panels of 16 features (`mmlk.ops.dense.loops_panels`). Every output is one sum in
the order of K, with a stop every `SPAN` products, however rows and features are divided among tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.dense.loops_panels import Panels, Plain, fetch, fill
from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel
from mmlk.ops.jit.maths import gelu as gelu_of
from mmlk.ops.jit.maths import gelu_slope
from mmlk.ops.jit.tile import ROWS, add_products

# Sizes follow from the caches of current processors (32 KB and 1 MB a core) rather than from one
# measurement. To try others, time `linear` on the shapes in tools/bench.
SPAN = 512
"""Products that are summed before they are added to the result: a panel of 16 features is 32 KB
then, and rounding errors do not grow in one long sum."""

TASK_ROWS = 96
"""Rows of ``x`` that a task goes through for each panel: they stay in the second cache while the panels
change. More rows read the weight less often, fewer leave more tasks to share among threads."""

TASKS_PER_THREAD = 8
"""A thread that is interrupted delays one task of eight. With more tasks each
does less for what it prepares."""

TASK_COST = 2_000_000
"""Fewest multiplications of a task, some 50 microseconds: taking a task takes far less."""

PLAIN_ROWS = 256
"""Rows, at most, of a task that packs the weight itself: more rows pack less often, and leave
fewer tasks."""


@kernel(
    'x_p weight_p weight_factors_p bias_p factors_p residual_p before_p y_p rows features depth '
    'span weight_stride x_stride residual_stride y_stride block blocks task_rows task_panels'
)
def _product(
    k,
    x,
    weight,
    weight_factors,
    bias,
    factors,
    residual,
    before,
    y,
    rows,
    features,
    depth,
    span,
    weight_stride,
    x_stride,
    residual_stride,
    y_stride,
    block,
    blocks,
    task_rows,
    task_panels,
    *,
    packed,
    transposed,
    scaled,
    biased,
    gelu,
    keep,
    slope,
    scale,
    add,
):
    """Task ``t`` computes row block ``t % blocks`` of panel group ``t / blocks``: the group stays in the
    second cache while the rows change.

    The weight is packed already, or its pieces are packed here. Every ``block`` features see the next
    ``depth`` columns of ``x``. Sums of ``span`` products are added
    up in ``y``; what follows the product is applied with the last.
    """
    top = k.task % blocks * task_rows
    rows = k.min(task_rows, rows - top)
    first = k.task // blocks * task_panels
    last = k.min(first + task_panels, (features + (LANES - 1)) // LANES)
    # Tiles of nearly equal height: 50 rows are not eight tiles of 6 and a slow one of 2.
    tiles = (rows + (ROWS - 1)) // ROWS
    tall = (rows + tiles - 1) // tiles
    many = rows - tiles * (tall - 1)
    buffer, done, nothing = k.variable(k.zero), k.scratch(ROWS), k.scratch(1)
    k.store(k.zero, nothing)
    near = None if packed else k.scratch(span)
    plain = not (gelu or keep or slope or scale)

    with k.loop(0, k.max(depth, 1), span) as start, k.loop(first, last) as panel:
        count, final = k.min(span, depth - start), start + span >= depth
        column = panel * LANES
        left = features - column
        if packed:
            weights = k.at(weight, column * depth + start * LANES)
        else:
            weights = near
            fill(
                k,
                near,
                weight,
                weight_factors,
                column,
                features,
                start,
                count,
                weight_stride,
                buffer,
                transposed=transposed,
                scaled=scaled,
            )
            share = (count + (tiles - 1)) // tiles
        seen = k.at(x, column // block * depth + start)
        # What the sums are added to: bias, or the earlier spans.
        begins = start.compare('==', 0)
        earlier = k.choose(begins, k.at(bias, column) if biased else nothing, k.at(y, column))
        earlier_stride = k.choose(begins, 0, y_stride)

        def finish(row, height, sums):
            def direct():
                for r, total in enumerate(sums):
                    place = (row + r) * y_stride + column
                    k.write(
                        total, k.b.fadd(k.read(total), k.load(earlier, (row + r) * earlier_stride))
                    )
                    if add:
                        with k.when(final):
                            k.write(
                                total,
                                k.b.fadd(
                                    k.read(total),
                                    k.load(residual, (row + r) * residual_stride + column),
                                ),
                            )
                    k.store(k.read(total), y, place)

            def one_by_one():
                for r, total in enumerate(sums):
                    k.store(k.read(total), done, r * LANES)
                with k.loop(0, height) as r:
                    place = (row + r) * y_stride + column
                    value = k.variable(
                        k.b.fadd(
                            k.load(done, r * LANES),
                            k.load_some(earlier, (row + r) * earlier_stride, left, buffer),
                        )
                    )
                    with k.when(final):
                        if keep:
                            k.store_some(k.read(value), before, place, left, buffer)
                        if gelu:
                            k.write(value, gelu_of(k, k.read(value)))
                        if slope:
                            k.write(
                                value,
                                k.b.fmul(
                                    k.read(value),
                                    gelu_slope(k, k.load_some(before, place, left, buffer)),
                                ),
                            )
                        if scale:
                            k.write(
                                value,
                                k.b.fmul(k.read(value), k.load_some(factors, column, left, buffer)),
                            )
                        if add:
                            k.write(
                                value,
                                k.b.fadd(
                                    k.read(value),
                                    k.load_some(
                                        residual, (row + r) * residual_stride + column, left, buffer
                                    ),
                                ),
                            )
                    k.store_some(k.read(value), y, place, left, buffer)

            whole = left >= LANES
            with k.either(whole if plain else k.both(whole, k.b.not_(final))) as (then, otherwise):
                with then:
                    direct()
                with otherwise:
                    one_by_one()

        for height in range(ROWS, 0, -1):
            others = k.choose(tall.compare('==', height), 0, many)
            begin = others * tall
            number = k.choose(
                tall.compare('==', height),
                many,
                k.choose(tall.compare('==', height + 1), tiles - many, 0),
            )
            with k.loop(0, number) as tile:
                row = top + begin + tile * height
                if not packed:
                    line = (others + tile) * share
                    fetch(
                        k,
                        weight,
                        column + LANES,
                        features,
                        start,
                        weight_stride,
                        line,
                        line + share,
                        transposed=transposed,
                    )
                # Places of the next tile, which are seldom in the cache: their first and last floats.
                for r in range(height, 2 * height):
                    for place in (0, LANES - 1):
                        place = (row + r) * y_stride + column + place
                        k.prefetch(y, place, write=True)
                        if keep or slope:
                            k.prefetch(before, place, write=keep)
                sums = [k.variable(k.zero) for _ in range(height)]
                lines = [k.at(seen, (row + r) * x_stride) for r in range(height)]
                add_products(k, sums, lines, 1, weights, LANES, count)
                finish(row, height, sums)


def _division(rows: int, count: int, depth: int, packed: bool) -> tuple[int, int]:
    """Rows and panels of a task."""
    threads = torch.get_num_threads()
    work = rows * count * LANES * depth // TASK_COST
    if not packed:
        # Every block of rows packs the weight again.
        blocks = -(-rows // PLAIN_ROWS)
        return -(-rows // blocks), -(
            -count * blocks // max(1, min(TASKS_PER_THREAD * threads, work))
        )
    wanted = min(TASKS_PER_THREAD * threads, work)
    blocks = -(-rows // TASK_ROWS)
    if blocks >= wanted:
        # As many for one thread as for the other.
        blocks = -(-blocks // threads) * threads
        return -(-rows // blocks), count
    return -(-rows // blocks), -(-count * blocks // wanted)


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not (
        x.shape == shape
        and x.dtype == torch.float32
        and x.is_cpu
        and (x.stride(-1) == 1 or shape[-1] == 1)
    ):
        raise ValueError(
            f'linear: {name} {tuple(x.shape)} with strides {x.stride()}, {x.dtype} on {x.device}, '
            f'is not {shape} with contiguous rows in float32 on the CPU'
        )


def linear(
    x: Tensor,
    weight: Panels | Plain,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    before: Tensor | None = None,
    slope: bool = False,
    factors: Tensor | None = None,
    blocks: int = 1,
) -> Tensor:
    """``[residual +] factors * act(x W^T + b)`` in float32, without gradients.

    Args:
        x: (M, K), or (M, blocks K), rows contiguous.
        weight: (N, K), as `mmlk.ops.dense.loops_panels.pack` or `plain` give it.
        bias: (N,), contiguous.
        gelu: Apply the exact GELU.
        residual: (M, N), rows contiguous.
        out: (M, N), rows contiguous, to write to; it may be ``residual``, and must not overlap ``x``.
        before: (M, N) with the strides of the result: takes ``x W^T + b``, the value before all else.
        slope: Multiply with the derivative of GELU at ``before``, which is read instead.
        factors: (N,), contiguous; one without them.
        blocks: Number of blocks on the diagonal of W: every N / blocks features, a multiple of 16,
            see K columns of their own. K stands for the depth of one block.

    Returns:
        (M, N), contiguous, or ``out``.

    Raises:
        ValueError: if shapes do not fit, or an operand is not float32 on the CPU in the order said.
    """
    packed = isinstance(weight, Panels)
    matrix = weight[0]
    features, depth = (weight.features if packed else matrix.shape[0]), matrix.shape[1]
    rows = x.shape[0]
    _check('x', x, (rows, blocks * depth))
    if blocks > 1 and features % (blocks * LANES):
        raise ValueError(f'linear: {features} features are not {blocks} blocks of whole vectors')
    for name, each in (('bias', bias), ('factors', factors)):
        if each is not None:
            _check(name, each, (features,))
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
    count = -(-features // LANES)
    task_rows, task_panels = _division(rows, count, depth, packed)
    row_blocks = -(-rows // task_rows)
    other = out if residual is None else residual
    # A residual that lies in the result must be there to the end.
    spans = 1 if other is out and residual is not None else -(-depth // SPAN)
    span = -(-depth // max(spans, 1)) or 1
    order = (
        dict(packed=True, transposed=False, scaled=False)
        if packed
        else dict(packed=False, transposed=weight.transposed, scaled=weight.factors is not None)
    )
    _product(
        **order,
        biased=bias is not None,
        gelu=gelu,
        keep=before is not None and not slope,
        slope=slope,
        scale=factors is not None,
        add=residual is not None,
    )(
        row_blocks * -(-count // task_panels),
        rows * features * depth,
        address(x),
        address(matrix),
        address(weight.factors if order['scaled'] else None),
        address(bias),
        address(factors),
        address(other),
        address(before),
        address(out),
        rows,
        features,
        depth,
        span,
        0 if packed else weight.stride,
        x.stride(0),
        other.stride(0),
        out.stride(0),
        features // blocks,
        row_blocks,
        task_rows,
        task_panels,
    )
    return out
