"""Recursive convolution and its gradients: the whole recursion of 16 channels of an image as one task.

A task copies its channels of the map into a plane, halves it level by level, and returns to the full
size: convolve, interpolate, add. The planes stay in the caches of the core that runs the task; nothing
but the result is written to memory. The backward pass computes the planes again, a sixth of its time,
and runs the recursion in the other direction; gradients of the kernels are summed over pixels by each
task and over images by torch, in fixed order.

Interpolations are tables of pairs (position, weight): two pairs for each row and column of the finer
map, and for the gradient four pairs for each of the coarser one.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit import planes, recording
from mmlk.ops.jit.address import address, pointer
from mmlk.ops.jit.language import LANES, Int, Kernel, kernel
from mmlk.ops.recconv.loops_steps import DOWN, Steps

KERNEL_TO = 7
"""Side of the largest kernel: the taps of one row are summed in registers."""

FIELDS = (
    'height',
    'width',
    'row',
    'map',
    'merged',
    'flow',
    'grad',
    'up_rows',
    'up_columns',
    'down_rows',
    'down_columns',
)
"""What a plan says of a level: sizes, floats of a plane's row, places of planes and tables."""


class Plan(NamedTuple):
    """Sizes and places of one recursion's planes.

    Args:
        levels: One row of `FIELDS` per level, from the full map down, int64. Places are floats
            from the beginning of the scratch memory, or numbers of pairs.
        places: Positions of the interpolations' pairs in floats, int64.
        weights: Their weights.
        line: Place of a buffer for one row.
        spare: Place of a full plane, where channels do not fill a block.
        size: Floats of scratch memory.
    """

    levels: Tensor
    places: Tensor
    weights: Tensor
    line: int
    spare: int
    size: int


def _pairs(coarse: int, fine: int, mode: str) -> list[list[tuple[int, float]]]:
    """Positions in the coarse axis, and their weights, for each position of the fine one."""
    table = []
    for position in range(fine):
        if mode == 'nearest':
            place = position * coarse // fine
            table.append([(place, 1.0), (place, 0.0)])
        else:
            source = max((position + 0.5) * coarse / fine - 0.5, 0.0)
            left = int(source)
            table.append([(left, 1 - (source - left)), (min(left + 1, coarse - 1), source - left)])
    return table


def _transposed(table: list, coarse: int) -> list[list[tuple[int, float]]]:
    """The same weights listed for each position of the coarse axis."""
    reverse = [[] for _ in range(coarse)]
    for position, pairs in enumerate(table):
        for place, weight in pairs:
            if weight:
                reverse[place].append((position, weight))
    return [pairs + [(0, 0.0)] * (DOWN - len(pairs)) for pairs in reverse]


@functools.lru_cache(maxsize=512)
def _plan(height: int, width: int, levels: int, side: int, mode: str, backward: bool) -> Plan:
    sizes = [(height, width)]
    for _ in range(levels):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    rows = [(w + side - 1) * LANES for _, w in sizes]
    used = 0

    def reserve(level: int) -> int:
        nonlocal used
        used += sizes[level][0] * rows[level]
        return used - sizes[level][0] * rows[level]

    places, weights = [], []

    def write(table: list, unit: int) -> int:
        first = len(places)
        for pairs in table:
            places.extend(place * unit for place, _ in pairs)
            weights.extend(weight for _, weight in pairs)
        return first

    table = []
    for level, (h, w) in enumerate(sizes):
        own = reserve(level)
        merged = reserve(level) if backward and 0 < level < levels else own
        flow = reserve(level) if backward or level == 1 else table[1][5] if level else 0
        grad = reserve(level) if backward else 0
        tables = [0] * 4
        if level < levels:
            coarse = sizes[level + 1]
            vertical, across = _pairs(coarse[0], h, mode), _pairs(coarse[1], w, mode)
            tables = [write(vertical, rows[level + 1]), write(across, LANES)]
            tables += (
                [
                    write(_transposed(vertical, coarse[0]), rows[level]),
                    write(_transposed(across, coarse[1]), LANES),
                ]
                if backward
                else [0, 0]
            )
        table.append([h, w, rows[level], own, merged, flow, grad, *tables])
    line = used
    used += width * LANES
    spare = used if not backward else table[0][6]
    used += 0 if backward else height * rows[0]
    return Plan(
        torch.tensor(table),
        torch.tensor(places, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float32),
        line,
        spare,
        used,
    )


class _Level:
    """Numbers and planes of one level in a task."""

    def __init__(self, k: Kernel, levels, scratch, number):
        self._read = lambda name: k.load_int(levels, number * len(FIELDS) + FIELDS.index(name))
        self.number = number
        self.height, self.width, self.row = (self._read(name) for name in FIELDS[:3])
        self._at = lambda name: k.at(scratch, self._read(name))

    def plane(self, name: str):
        """Address of one of the level's planes, its border of zeros included."""
        return self._at(name)

    def table(self, name: str) -> Int:
        """Number of a table's first pair."""
        return self._read(name)


class _Task:
    """One task's block of channels, planes and kernels, and the way down and up again.

    Args:
        levels, places, weights: The plan's tables.
        scratch: Memory of the worker.
        last: Number of the coarsest level.
    """

    def __init__(self, k: Kernel, steps: Steps, tables, scratch, line, channels, blocks, last):
        self.k, self.steps, self.last = k, steps, last
        self.levels, self.places, self.weights = tables
        self.scratch, self.line = scratch, k.at(scratch, line)
        self.image, self.channel = k.task // blocks, (k.task % blocks) * LANES
        self.count = channels - self.channel
        self.inside = steps.radius * LANES
        self.buffer = k.variable(k.zero)
        self.taps_size = steps.side**2 * LANES
        self.full = self.level(0)

    def level(self, number) -> _Level:
        return _Level(self.k, self.levels, self.scratch, number)

    def within(self, plane):
        """First pixel of a plane."""
        return self.k.at(plane, self.inside)

    def map(self, pointer, channels) -> planes.Map:
        full = self.full
        return planes.Map(
            pointer,
            self.image * full.height * full.width * channels + self.channel,
            full.width * channels,
            channels,
            self.count,
        )

    def read_map(self, plane, source: planes.Map) -> None:
        full, side = self.full, self.steps.side
        planes.fill(
            self.k,
            plane,
            source,
            (self.k.int(0), full.height),
            (self.k.int(-(side // 2)), full.width + (side - 1)),
            (full.height, full.width),
            self.buffer,
        )

    def write_map(self, plane, target: planes.Map) -> None:
        k, full = self.k, self.full
        with k.loop(0, full.height) as y, k.loop(0, full.width) as x:
            value = k.load(plane, y * full.row + x * LANES + self.inside)
            k.store_some(value, target.pointer, target.pixel(y, x), self.count, self.buffer)

    def pack_kernels(self, taps, count) -> None:
        """The shared kernel first, then those of the levels from the coarsest on."""
        k = self.k
        with k.loop(0, count) as index:
            source = k.at(k.further(index), self.channel * self.steps.side**2)
            self.steps.pack(source, self.count, k.at(taps, index * self.taps_size))

    def kernel(self, taps, level: _Level):
        return self.k.at(taps, (self.last - level.number + 1) * self.taps_size)

    def reduce_levels(self, taps) -> None:
        """Maps of all levels from the full one."""
        with self.k.loop(0, self.last) as number:
            fine, coarse = self.level(number), self.level(number + 1)
            target = coarse.plane('map')
            self.steps.border(target, coarse.row, coarse.height, coarse.width)
            self.steps.halve(
                fine.plane('map'),
                fine.row,
                fine.height,
                taps,
                self.within(target),
                coarse.row,
                LANES,
                coarse.height,
                coarse.width,
            )

    def combine_levels(self, taps) -> None:
        """Merged maps of all levels, from the coarsest, whose merged map is its map."""
        with self.k.loop(0, self.last) as index:
            number = self.last - 1 - index
            fine, coarse = self.level(number), self.level(number + 1)
            flow = self.within(coarse.plane('flow'))
            self.steps.convolve(
                coarse.plane('merged'),
                coarse.row,
                coarse.height,
                self.kernel(taps, coarse),
                flow,
                coarse.row,
                LANES,
                coarse.height,
                coarse.width,
            )
            self.steps.add_up(
                flow,
                self.within(fine.plane('map')),
                self.places,
                self.weights,
                fine.table('up_rows'),
                fine.table('up_columns'),
                self.line,
                self.within(fine.plane('merged')),
                fine.row,
                fine.height,
                fine.width,
                coarse.width,
            )


_COMMON = 'levels_p places_p weights_p scratch_p size line spare channels blocks last'


@kernel(f'x_p y_p {_COMMON}')
def _forward(
    k: Kernel,
    x,
    y,
    levels,
    places,
    weights,
    scratch,
    size,
    line,
    spare,
    channels,
    blocks,
    last,
    *,
    side,
):
    steps = Steps(k, side)
    scratch = k.at(scratch, k.worker * size)
    taps = k.at(scratch, size - (last + 2) * (side**2 * LANES))
    task = _Task(k, steps, (levels, places, weights), scratch, line, channels, blocks, last)
    full = task.full
    task.pack_kernels(taps, last + 2)
    task.read_map(full.plane('map'), task.map(x, channels))
    task.reduce_levels(taps)
    task.combine_levels(taps)
    result = task.map(y, channels)
    whole = task.count >= LANES

    def finish(target, row, column):
        steps.convolve(
            full.plane('merged'),
            full.row,
            full.height,
            task.kernel(taps, full),
            target,
            row,
            column,
            full.height,
            full.width,
        )

    with k.either(whole) as (all_, some):
        with all_:
            finish(k.at(y, result.offset), result.row, result.column)
        with some:
            finish(task.within(k.at(scratch, spare)), full.row, LANES)
            task.write_map(k.at(scratch, spare), result)


@kernel(f'x_p grad_p out_p sums_p {_COMMON} wants_x wants_down wants_weights')
def _backward(
    k: Kernel,
    x,
    grad,
    out,
    sums,
    levels,
    places,
    weights,
    scratch,
    size,
    line,
    spare,
    channels,
    blocks,
    last,
    wants_x,
    wants_down,
    wants_weights,
    *,
    side,
):
    steps = Steps(k, side)
    steps.write_gradients()
    scratch = k.at(scratch, k.worker * size)
    task = _Task(k, steps, (levels, places, weights), scratch, line, channels, blocks, last)
    full, kernels = task.full, last + 2
    flipped = k.at(scratch, size - task.taps_size)
    totals = k.at(scratch, size - (kernels + 1) * task.taps_size)
    taps = k.at(scratch, size - (kernels * 2 + 1) * task.taps_size)
    task.pack_kernels(taps, kernels)
    with k.loop(0, kernels * side**2) as tap:
        k.store(k.zero, totals, tap * LANES)
    task.read_map(full.plane('map'), task.map(x, channels))
    task.reduce_levels(taps)
    with k.loop(1, last) as number:
        level = task.level(number)
        steps.border(level.plane('merged'), level.row, level.height, level.width)
    task.combine_levels(taps)

    # Back through the combination, from the full map to the coarsest: ``flow`` belongs to a
    # convolution's result, ``grad`` to its argument.
    task.read_map(full.plane('flow'), task.map(grad, channels))
    with k.loop(0, last + 1) as number:
        level = task.level(number)
        flow, inner = level.plane('flow'), task.within(level.plane('grad'))
        own = task.kernel(taps, level)
        with k.when(wants_weights >= 1):
            steps.weigh(
                level.plane('merged'),
                level.row,
                level.height,
                task.within(flow),
                level.row,
                task.kernel(totals, level),
                level.height,
                level.width,
                1,
            )
        steps.flip(own, flipped)
        steps.border(level.plane('grad'), level.row, level.height, level.width)
        steps.convolve(
            flow,
            level.row,
            level.height,
            flipped,
            inner,
            level.row,
            LANES,
            level.height,
            level.width,
        )
        with k.when(number < last):
            coarse = task.level(number + 1)
            target = coarse.plane('flow')
            steps.border(target, coarse.row, coarse.height, coarse.width)
            steps.fold(
                inner,
                places,
                weights,
                level.table('down_rows'),
                level.table('down_columns'),
                task.line,
                task.within(target),
                coarse.row,
                coarse.height,
                coarse.width,
                level.width,
            )

    # Back through the reduction, from the coarsest map to the full one, whose plane the combination
    # has changed.
    with k.when(wants_down >= 1):
        task.read_map(full.plane('map'), task.map(x, channels))
    with k.loop(0, last) as index:
        fine, coarse = task.level(last - 1 - index), task.level(last - index)
        flow = coarse.plane('grad')
        with k.when(wants_down >= 1):
            steps.weigh(
                fine.plane('map'),
                fine.row,
                fine.height,
                task.within(flow),
                coarse.row,
                totals,
                coarse.height,
                coarse.width,
                2,
            )
        with k.when(fine.number + wants_x >= 1):
            steps.spread(
                flow,
                coarse.row,
                coarse.height,
                taps,
                task.within(fine.plane('grad')),
                fine.row,
                fine.height,
                fine.width,
            )
    with k.when(wants_x >= 1):
        task.write_map(full.plane('grad'), task.map(out, channels))
    with k.when(wants_down + wants_weights >= 1), k.loop(0, kernels) as index:
        place = (task.image * kernels + index) * channels + task.channel
        steps.unpack(k.at(totals, index * task.taps_size), task.count, k.at(sums, place * side**2))


def refusal(down_weight: Tensor, weights: list[Tensor]) -> str | None:
    """Reason why the recursion cannot be compiled for kernels of these shapes, or None."""
    side = down_weight.shape[2]
    if any(weight.shape[2:] != (side, side) for weight in (down_weight, *weights)):
        return 'the kernels are not of one side'
    return f'the kernels are wider than {KERNEL_TO}' if side > KERNEL_TO else None


def _launch(
    compiled,
    plan: Plan,
    x: Tensor,
    weights: list[Tensor],
    share: int,
    extra: int,
    tensors: tuple,
    flags: tuple,
) -> None:
    n, c, h, w = x.shape
    blocks, taps = -(-c // LANES), weights[0][0].numel()
    size = plan.size + extra * taps * LANES
    tasks, cost = n * blocks, share * x.numel() * taps
    scratch = x.new_empty(compiled.threads(tasks, cost) * size)
    recording.keep(plan.levels, plan.places, plan.weights)
    compiled(
        tasks,
        cost,
        *(address(each) for each in tensors),
        pointer(plan.levels),
        pointer(plan.places),
        address(plan.weights),
        address(scratch),
        size,
        plan.line,
        plan.spare,
        c,
        blocks,
        len(weights) - 2,
        *flags,
        *(address(weight) for weight in weights),
    )


def forward(x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    """The recursion; arguments as of `mmlk.ops.recconv2d`.

    Args:
        x: (N, C, H, W) float32, dense and channels-last.
        down_weight: (C, 1, k, k) contiguous.
        weights: L + 1 of the same.

    Returns:
        (N, C, H, W), channels-last.
    """
    n, c, h, w = x.shape
    side = down_weight.shape[2]
    y = x.new_empty((n, h, w, c)).permute(0, 3, 1, 2)
    plan = _plan(h, w, len(weights) - 1, side, mode, False)
    _launch(_forward(side=side), plan, x, [down_weight, *weights], 2, len(weights) + 1, (x, y), ())
    return y


def backward(
    grad: Tensor, x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the map and of all kernels.

    Args:
        grad: (N, C, H, W) float32, dense and channels-last, as is ``x``.
        mask: Whether gradients of x, of the shared kernel and of the others are wanted.

    Returns:
        (N, C, H, W), channels-last, and (L + 2, C, 1, k, k), the shared kernel's first; None where not
        wanted.
    """
    n, c, h, w = x.shape
    side, kernels = down_weight.shape[2], len(weights) + 1
    out = x.new_empty((n, h, w, c)).permute(0, 3, 1, 2) if mask[0] else None
    sums = x.new_empty((n, kernels, c, 1, side, side)) if mask[1] or mask[2] else None
    plan = _plan(h, w, len(weights) - 1, side, mode, True)
    _launch(
        _backward(side=side),
        plan,
        x,
        [down_weight, *weights],
        5,
        2 * kernels + 1,
        (x, grad, x if out is None else out, x if sums is None else sums),
        tuple(mask),
    )
    if sums is not None:
        sums = sums[0] if n == 1 else sums.sum(0)
    return out, sums
