"""Construction of two-dimensional DCLS kernels and its gradients.

One task is 16 channel pairs. The profiles of all elements along both axes are computed once into
scratch; the kernel is the sum over elements of their outer products, the gradients of the profiles are
two such sums the other way. `mmlk.ops.dcls.construct` has the formulas and the conventions at
integers; arithmetic is float32.
"""

from __future__ import annotations

from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, Kernel, kernel
from mmlk.ops.jit.maths import exponential

_EPSILON = 1e-7
# Cells of the window summed in registers at a time, over elements.
_ROWS, _COLUMNS = 2, 3
_TILE = 6


def _at_least(k: Kernel, x, least: float):
    """The larger of both; what is not a number stays so."""
    least = k.splat(least)
    return k.b.select(k.compare('<', x, least), least, x)


def _gather(k: Kernel, target, source, row, rows, elements) -> None:
    """Copy (B, m) transposed: one vector of 16 rows for each element."""
    with k.loop(0, elements) as element:
        k.store(k.zero, target, element * LANES)
    with k.loop(0, rows) as lane:
        with k.loop(0, elements) as element:
            k.copy_float(
                k.at(source, (row + lane) * elements + element),
                k.at(target, element * LANES + lane),
            )


def _scatter(k: Kernel, source, target, row, rows, elements) -> None:
    """The way back of `_gather`."""
    with k.loop(0, rows) as lane:
        with k.loop(0, elements) as element:
            k.copy_float(
                k.at(source, element * LANES + lane),
                k.at(target, (row + lane) * elements + element),
            )


def _distance(k: Kernel, positions, element, cell, size):
    """Cell minus position, counted from the first cell."""
    place = k.b.fadd(k.load(positions, element * LANES), k.number(size // 2))
    return k.b.fsub(k.number(cell), place)


def _profile(k: Kernel, version: str, distance, width):
    """Value of a profile, and the distance as the slopes need it."""
    if version == 'gauss':
        distance = k.b.fdiv(distance, width)
        return exponential(k, k.b.fmul(k.b.fmul(distance, distance), k.splat(-0.5))), distance
    top = width if version == 'max' else k.splat(1.0)
    height = k.b.fsub(top, k.intrinsic('llvm.fabs', distance))
    return _at_least(k, height, 0.0), distance


class _Axis:
    """Profiles (cells, elements) along one axis with their masses, and where they come from."""

    def __init__(self, k: Kernel, version, positions, widths, row, rows, elements, size):
        self.k, self.version, self.size, self.elements = k, version, size, elements
        self.positions, self.masses = k.scratch(elements), k.scratch(elements)
        _gather(k, self.positions, positions, row, rows, elements)
        self.widths = None
        if version in ('max', 'gauss'):
            self.widths = k.scratch(elements)
            _gather(k, self.widths, widths, row, rows, elements)
        self.values = k.scratch(size * elements)
        with k.loop(0, elements) as element:
            mass = k.variable(k.zero)
            with k.loop(0, size) as cell:
                value, _ = self.at(element, cell)
                k.write(mass, k.b.fadd(k.read(mass), value))
                k.store(value, self.values, (cell * elements + element) * LANES)
            k.store(k.read(mass), self.masses, element * LANES)

    def width(self, element):
        return self.k.load(self.widths, element * LANES) if self.widths is not None else None

    def at(self, element, cell):
        distance = _distance(self.k, self.positions, element, cell, self.size)
        return _profile(self.k, self.version, distance, self.width(element))

    def mass(self, element):
        return self.k.load(self.masses, element * LANES)


def _block(k: Kernel, channels):
    row = k.task * LANES
    return row, k.min(channels - row, LANES)


@kernel(
    'weight_p first_p second_p first_width_p second_width_p out_p channels elements height width'
)
def _construct(
    k: Kernel,
    weight,
    first,
    second,
    first_width,
    second_width,
    out,
    channels,
    elements,
    height,
    width,
    *,
    version,
):
    row, rows = _block(k, channels)
    vertical = _Axis(k, version, first, first_width, row, rows, elements, height)
    horizontal = _Axis(k, version, second, second_width, row, rows, elements, width)
    scales = k.scratch(elements)
    _gather(k, scales, weight, row, rows, elements)
    if version != 'v0':
        with k.loop(0, elements) as element:
            mass = k.b.fadd(
                k.b.fmul(vertical.mass(element), horizontal.mass(element)), k.splat(_EPSILON)
            )
            k.store(k.b.fdiv(k.load(scales, element * LANES), mass), scales, element * LANES)
    # The scale goes into the vertical profiles.
    with k.loop(0, height) as y:
        with k.loop(0, elements) as element:
            place = (y * elements + element) * LANES
            k.store(
                k.b.fmul(k.load(vertical.values, place), k.load(scales, element * LANES)),
                vertical.values,
                place,
            )
    cells = k.scratch(height * width)
    _sum_products(k, vertical.values, horizontal.values, cells, height, width, elements)
    _scatter(k, cells, out, row, rows, height * width)


def _sum_products(k: Kernel, rows, columns, out, height, width, depth) -> None:
    """``out[y, x] = sum over d of rows[y, d] * columns[x, d]``."""

    def tile(y, high, x, wide):
        sums = [[k.variable(k.zero) for _ in range(wide)] for _ in range(high)]
        with k.loop(0, depth) as d:
            left = [k.load(rows, ((y + i) * depth + d) * LANES) for i in range(high)]
            for j in range(wide):
                right = k.load(columns, ((x + j) * depth + d) * LANES)
                for i in range(high):
                    k.add_product(sums[i][j], left[i], right)
        for i in range(high):
            for j in range(wide):
                k.store(k.read(sums[i][j]), out, ((y + i) * width + x + j) * LANES)

    def line(y, high):
        with k.loop(0, width - width % _COLUMNS, _COLUMNS) as x:
            tile(y, high, x, _COLUMNS)
        with k.loop(width - width % _COLUMNS, width) as x:
            tile(y, high, x, 1)

    with k.loop(0, height - height % _ROWS, _ROWS) as y:
        line(y, _ROWS)
    with k.loop(height - height % _ROWS, height) as y:
        line(y, 1)


@kernel(
    'grad_p weight_p first_p second_p first_width_p second_width_p by_weight_p by_first_p '
    'by_second_p by_first_width_p by_second_width_p channels elements height width'
)
def _gradients(
    k: Kernel,
    grad,
    weight,
    first,
    second,
    first_width,
    second_width,
    by_weight,
    by_first,
    by_second,
    by_first_width,
    by_second_width,
    channels,
    elements,
    height,
    width,
    *,
    version,
):
    row, rows = _block(k, channels)
    vertical = _Axis(k, version, first, first_width, row, rows, elements, height)
    horizontal = _Axis(k, version, second, second_width, row, rows, elements, width)
    weights = k.scratch(elements)
    _gather(k, weights, weight, row, rows, elements)
    # The incoming gradient as (y, x) and as (x, y), so that both sums run along the second index.
    cells, turned = k.scratch(height * width), k.scratch(height * width)
    _gather(k, cells, grad, row, rows, height * width)
    with k.loop(0, height) as y:
        with k.loop(0, width) as x:
            k.store(k.load(cells, (y * width + x) * LANES), turned, (x * height + y) * LANES)
    along_y, along_x = k.scratch(height * elements), k.scratch(width * elements)
    _sum_lines(k, cells, horizontal.values, along_y, height, elements, width)
    _sum_lines(k, turned, vertical.values, along_x, width, elements, height)

    results = [k.scratch(elements) for _ in range(5)]
    with k.loop(0, elements) as element:
        lane = element * LANES
        total = k.variable(k.zero)
        with k.loop(0, height) as y:
            place = (y * elements + element) * LANES
            k.add_product(total, k.load(along_y, place), k.load(vertical.values, place))
        scale, by_scale = k.load(weights, lane), k.read(total)
        shift = None
        if version != 'v0':
            mass = k.fma(vertical.mass(element), horizontal.mass(element), k.splat(_EPSILON))
            scale, by_scale = k.b.fdiv(scale, mass), k.b.fdiv(by_scale, mass)
            shift = k.b.fmul(k.b.fmul(by_scale, scale), k.splat(-1.0))
        k.store(by_scale, results[0], lane)
        for index, (axis, other, along) in enumerate(
            ((vertical, horizontal, along_y), (horizontal, vertical, along_x))
        ):
            moved, widened = k.variable(k.zero), k.variable(k.zero)
            offset = k.zero if shift is None else k.b.fmul(shift, other.mass(element))
            with k.loop(0, axis.size) as cell:
                place = (cell * elements + element) * LANES
                slope = k.fma(k.load(along, place), scale, offset)
                value, distance = axis.at(element, cell)
                _add_slopes(k, version, slope, value, distance, moved, widened)
            by_position, by_width = k.read(moved), k.read(widened)
            if version == 'gauss':
                by_position = k.b.fdiv(by_position, axis.width(element))
                by_width = k.b.fdiv(by_width, axis.width(element))
            k.store(by_position, results[1 + index], lane)
            k.store(by_width, results[3 + index], lane)
    wanted = 5 if version in ('max', 'gauss') else 3
    for source, target in zip(
        results[:wanted], (by_weight, by_first, by_second, by_first_width, by_second_width)
    ):
        _scatter(k, source, target, row, rows, elements)


def _sum_lines(k: Kernel, lines, profiles, out, count, elements, depth) -> None:
    """``out[y, m] = sum over x of lines[y, x] * profiles[x, m]``."""

    def tile(y, m, wide):
        sums = [k.variable(k.zero) for _ in range(wide)]
        with k.loop(0, depth) as x:
            factor = k.load(lines, (y * depth + x) * LANES)
            for j, each in enumerate(sums):
                k.add_product(each, factor, k.load(profiles, (x * elements + m + j) * LANES))
        for j, each in enumerate(sums):
            k.store(k.read(each), out, (y * elements + m + j) * LANES)

    with k.loop(0, count) as y:
        with k.loop(0, elements - elements % _TILE, _TILE) as m:
            tile(y, m, _TILE)
        with k.loop(elements - elements % _TILE, elements) as m:
            tile(y, m, 1)


def _add_slopes(k: Kernel, version: str, slope, value, distance, moved, widened) -> None:
    """Add a cell's part to the gradients of position and width."""
    if version == 'gauss':
        part = k.b.fmul(k.b.fmul(slope, value), distance)
        k.write(moved, k.b.fadd(k.read(moved), part))
        k.add_product(widened, part, distance)
        return
    if version == 'v0':
        # The slope is the right-hand one: cell floor(p) falls and the next one rises.
        rising = k.both(k.compare('>', distance, k.zero), k.compare('<=', distance, k.splat(1.0)))
        falling = k.both(k.compare('>', distance, k.splat(-1.0)), k.compare('<=', distance, k.zero))
    else:
        inside = k.compare('>', value, k.zero)
        rising = k.both(inside, k.compare('>', distance, k.zero))
        falling = k.both(inside, k.compare('<', distance, k.zero))
        k.write(widened, k.b.fadd(k.read(widened), k.b.select(inside, slope, k.zero)))
    k.write(moved, k.b.fadd(k.read(moved), k.b.select(rising, slope, k.zero)))
    k.write(moved, k.b.fsub(k.read(moved), k.b.select(falling, slope, k.zero)))


_LIMIT = 16_384
"""Vectors of scratch, 1 MB: what a core's second cache holds. Beyond it the way of torch is taken."""


def refusal(elements: int, height: int, width: int) -> str | None:
    """Reason why windows of that size are not taken, or None."""
    if 2 * height * width + 2 * elements * (height + width) + 16 * elements > _LIMIT:
        return f'{elements} elements in a window of {height}x{width} exceed the cache'
    return None


def construct(
    weight: Tensor,
    positions: tuple[Tensor, Tensor],
    widths: tuple[Tensor, Tensor] | None,
    size: tuple[int, int],
    version: str,
) -> Tensor:
    """Kernels (B, height, width).

    Args:
        weight: (B, m) float32, contiguous like all others.
        positions: From the centre, along rows and along columns, (B, m) each.
        widths: Along rows and along columns, (B, m) each; for 'max' and 'gauss'.
        size: Height and width of the window.
        version: 'v0', 'v1', 'max' or 'gauss'.
    """
    channels, elements = weight.shape
    height, width = size
    out = weight.new_empty((channels, height, width))
    widths = widths or (None, None)
    _construct(version=version)(
        -(-channels // LANES),
        channels * elements * height * width,
        *map(address, (weight, *positions, *widths, out)),
        channels,
        elements,
        height,
        width,
    )
    return out


def gradients(
    grad: Tensor,
    weight: Tensor,
    positions: tuple[Tensor, Tensor],
    widths: tuple[Tensor, Tensor] | None,
    version: str,
) -> list[Tensor]:
    """Gradients (B, m) of weight, positions along rows and columns, and widths if there are.

    Args:
        grad: (B, height, width); the others as for `construct`.
    """
    channels, elements = weight.shape
    height, width = grad.shape[1:]
    results = [weight.new_empty(weight.shape) for _ in range(3 if widths is None else 5)]
    targets = [*results, None, None][:5]
    widths = widths or (None, None)
    _gradients(version=version)(
        -(-channels // LANES),
        2 * channels * elements * height * width,
        *map(address, (grad, weight, *positions, *widths, *targets)),
        channels,
        elements,
        height,
        width,
    )
    return results
