"""Normalised linear attention on float32 rows of pixels, and its gradients.

One task is one head of one image. It goes through the pixels in chunks that stay in the first cache,
copied to planes of whole vectors with zeros behind the head's last channel, and multiplies them with
the head's d x d summary ``S = K^T V`` in tiles whose sums stay in registers. Queries and keys are
``elu + 1`` of what is passed, applied while copying.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, Kernel, bits, kernel
from mmlk.ops.jit.maths import exponential
from mmlk.ops.jit.tile import add_products

# Sums in registers, as in `mmlk.ops.jit.tile`; and tiles of pixels in a chunk.
_TILE, _TILES = 6, 8
_DEEPEST = 64
"""Channels of a head: its matrices and the planes of a chunk stay in the first cache."""


class _Head:
    """The task's head of an image.

    Attributes:
        wide: Vectors of a pixel.
        row: Floats of a pixel in a plane.
        ends: Vectors that are 1 in lanes of the head's channels and 0 behind, one for each of a pixel.

    Args:
        depth: Channels of the head, known while compiling.
        tile: Pixels of a tile.
    """

    def __init__(self, k: Kernel, heads, length, depth: int, tile: int):
        self.k, self.heads, self.length, self.depth, self.tile = k, heads, length, depth, tile
        self.wide = -(-depth // LANES)
        self.row = self.wide * LANES
        self.first, self.channel = k.task // heads * length, k.task % heads * depth
        self.channels = heads * depth
        self.buffer = k.variable(k.zero)
        self.chunk = tile * _TILES
        self.done = k.scratch(tile * self.wide)

    def counts(self) -> list:
        return [self.k.int(self.depth - c * LANES) for c in range(self.wide)]

    def plane(self):
        return self.k.scratch(self.chunk * self.wide)

    def matrix(self):
        """Scratch for a d x d matrix, panels of 16 columns one after the other."""
        return self.k.scratch(self.depth * self.wide)

    def each_chunk(self, write: Callable) -> None:
        """``write(first pixel of the image's rows, pixels)`` for every chunk."""
        k = self.k
        with k.loop(0, self.length, self.chunk) as begin:
            write(self.first + begin, k.min(self.length - begin, self.chunk))

    def read(self, pointer, place) -> list:
        """The head's vectors of the pixel at ``place``, zero behind its channels."""
        return [
            self.k.load_some(pointer, place + c * LANES, count, self.buffer)
            for c, count in enumerate(self.counts())
        ]

    def store(self, vectors: list, pointer, place) -> None:
        for c, (vector, count) in enumerate(zip(vectors, self.counts(), strict=True)):
            self.k.store_some(vector, pointer, place + c * LANES, count, self.buffer)

    def load(self, pointer, place=0) -> list:
        """The vectors of a plane's pixel, or of the head's vector at ``pointer``."""
        return [self.k.load(pointer, place + c * LANES) for c in range(self.wide)]

    def keep(self, vectors: list, pointer, place=0) -> None:
        for c, vector in enumerate(vectors):
            self.k.store(vector, pointer, place + c * LANES)

    def positive(self, vectors: list) -> list:
        """``elu + 1``, and zero behind the head's channels."""
        k, b = self.k, self.k.b
        result = []
        for c, x in enumerate(vectors):
            above = k.compare('>', x, k.zero)
            value = b.select(
                above, b.fadd(x, k.splat(1.0)), exponential(k, b.select(above, k.zero, x))
            )
            here = min(LANES, self.depth - c * LANES)
            inside = k.lanes([1.0] * here + [0.0] * (LANES - here))
            result.append(value if here == LANES else b.fmul(value, inside))
        return result

    def sum(self, left: list, right: list):
        """The scalar product of two pixels, in all lanes."""
        k, total = self.k, self.k.zero
        for pair in zip(left, right, strict=True):
            total = k.fma(*pair, total)
        return k.sum_of_lanes(total)

    def summarise(self, matrix, rows, columns, count) -> None:
        """``matrix += rows^T columns`` over ``count`` pixels of two planes."""
        k = self.k
        whole = self.depth - self.depth % _TILE
        with k.loop(0, self.wide) as c:

            def add(a, height):
                line = k.at(matrix, (a + c * self.depth) * LANES)
                sums = [k.variable(k.load(line, r * LANES)) for r in range(height)]
                lines = [k.at(rows, a + r) for r in range(height)]
                add_products(k, sums, lines, self.row, k.at(columns, c * LANES), self.row, count)
                for r, each in enumerate(sums):
                    k.store(k.read(each), line, r * LANES)

            with k.loop(0, whole, _TILE) as a:
                add(a, _TILE)
            if whole < self.depth:
                add(k.int(whole), self.depth - whole)

    def multiply(self, plane, matrix, count, write: Callable) -> None:
        """``write(pixel, vectors)`` of every pixel of a plane times the matrix.

        Tiles are whole; what is computed behind the last pixel is not written.
        """
        k = self.k
        with k.loop(0, count, self.tile) as first:
            lines = [k.at(plane, (first + r) * self.row) for r in range(self.tile)]
            with k.loop(0, self.wide) as c:
                sums = [k.variable(k.zero) for _ in lines]
                add_products(
                    k, sums, lines, 1, k.at(matrix, c * (self.depth * LANES)), LANES, self.depth
                )
                for r, each in enumerate(sums):
                    k.store(k.read(each), self.done, (c + r * self.wide) * LANES)
            with k.loop(0, k.min(self.tile, count - first)) as r:
                write(first + r, self.load(self.done, r * self.row))

    def transpose(self, source, target) -> None:
        k = self.k
        self.clear(target)
        with k.loop(0, self.depth) as a, k.loop(0, self.depth) as v:
            k.copy_float(
                k.at(source, ((v // LANES) * self.depth + a) * LANES + v % LANES),
                k.at(target, ((a // LANES) * self.depth + v) * LANES + a % LANES),
            )

    def clear(self, matrix, vectors: int | None = None) -> None:
        k = self.k
        with k.loop(0, self.depth * self.wide if vectors is None else vectors) as each:
            k.store(k.zero, matrix, each * LANES)

    def total(self, query: list, weights, epsilon):
        """Sum of a pixel's attention to all, the epsilon of each included, in all lanes."""
        k = self.k
        return k.fma(k.float_of_bits(epsilon), k.number(self.length), self.sum(query, weights))


@kernel('x_p scores_p out_p summary_p heads length epsilon')
def _attend(k: Kernel, x, scores, out, summary, heads, length, epsilon, *, depth, tile):
    """The summaries (d + 1 rows of each head, the last one the sum of the keys) and the output."""
    head = _Head(k, heads, length, depth, tile)
    both, channels = head.channels * 2, head.channels
    matrix = k.at(summary, k.task * ((depth + 1) * head.row))
    weights = k.at(matrix, depth * head.row)
    head.clear(matrix, (depth + 1) * head.wide)
    keys, values = head.plane(), head.plane()

    def summarise(first, count):
        with k.loop(0, count) as pixel:
            place = (first + pixel) * both + channels + head.channel
            key = head.positive(head.read(scores, place))
            head.keep(key, keys, pixel * head.row)
            head.keep([k.b.fadd(*pair) for pair in zip(head.load(weights), key)], weights)
            head.keep(
                head.read(x, (first + pixel) * channels + head.channel), values, pixel * head.row
            )
        head.summarise(matrix, keys, values, count)

    def answer(first, count):
        with k.loop(0, count) as pixel:
            place = (first + pixel) * both + head.channel
            head.keep(head.positive(head.read(scores, place)), keys, pixel * head.row)

        def write(pixel, mixed):
            total = head.total(head.load(keys, pixel * head.row), head.load(weights), epsilon)
            head.store(
                [k.b.fdiv(each, total) for each in mixed],
                out,
                (first + pixel) * channels + head.channel,
            )

        head.multiply(keys, matrix, count, write)

    head.each_chunk(summarise)
    head.each_chunk(answer)


@kernel('grad_p x_p scores_p out_p summary_p grad_scores_p grad_x_p heads length epsilon')
def _gradient(
    k: Kernel,
    grad,
    x,
    scores,
    out,
    summary,
    grad_scores,
    grad_x,
    heads,
    length,
    epsilon,
    *,
    depth,
    tile,
):
    """Gradients of the scores and of the values."""
    head = _Head(k, heads, length, depth, tile)
    both, channels, b = head.channels * 2, head.channels, k.b
    matrix = k.at(summary, k.task * ((depth + 1) * head.row))
    weights = k.at(matrix, depth * head.row)
    turned, collected, collected_weights = head.matrix(), head.matrix(), k.scratch(head.wide)
    head.transpose(matrix, turned)
    head.clear(collected)
    head.clear(collected_weights, head.wide)
    left, right, lost = head.plane(), head.plane(), k.scratch(head.chunk)

    def through_elu(positive, flow):
        """The derivative of elu(a) + 1 is 1 above zero and the function itself below."""
        one = k.splat(1.0)
        return [
            b.fmul(f, b.select(k.compare('>', p, one), one, p))
            for p, f in zip(positive, flow, strict=True)
        ]

    def queries(first, count):
        with k.loop(0, count) as pixel:
            place = (first + pixel) * channels + head.channel
            query = head.positive(head.read(scores, (first + pixel) * both + head.channel))
            total = head.total(query, head.load(weights), epsilon)
            given = head.read(grad, place)
            less = b.fneg(b.fdiv(head.sum(given, head.read(out, place)), total))
            head.keep(query, left, pixel * head.row)
            head.keep([b.fdiv(each, total) for each in given], right, pixel * head.row)
            k.store(less, lost, pixel * LANES)
            head.keep(
                [k.fma(q, less, c) for q, c in zip(query, head.load(collected_weights))],
                collected_weights,
            )
        head.summarise(collected, left, right, count)

        def write(pixel, flow):
            less = k.load(lost, pixel * LANES)
            flow = [k.fma(less, w, f) for w, f in zip(head.load(weights), flow)]
            head.store(
                through_elu(head.load(left, pixel * head.row), flow),
                grad_scores,
                (first + pixel) * both + head.channel,
            )

        head.multiply(right, turned, count, write)

    def keys(first, count):
        with k.loop(0, count) as pixel:
            place = (first + pixel) * both + channels + head.channel
            head.keep(head.positive(head.read(scores, place)), left, pixel * head.row)
            head.keep(
                head.read(x, (first + pixel) * channels + head.channel), right, pixel * head.row
            )

        def write_value(pixel, flow):
            head.store(flow, grad_x, (first + pixel) * channels + head.channel)

        def write_key(pixel, flow):
            flow = [b.fadd(*pair) for pair in zip(head.load(collected_weights), flow)]
            head.store(
                through_elu(head.load(left, pixel * head.row), flow),
                grad_scores,
                (first + pixel) * both + channels + head.channel,
            )

        head.multiply(left, collected, count, write_value)
        head.multiply(right, turned, count, write_key)

    head.each_chunk(queries)
    head.transpose(collected, turned)
    head.each_chunk(keys)


def can_run(depth: int, *maps: Tensor) -> bool:
    """Whether heads of that many channels fit, and all maps are float32 on a CPU."""
    return depth <= _DEEPEST and all(
        each.dtype == torch.float32 and each.device.type == 'cpu' for each in maps
    )


def _options(length: int, depth: int) -> dict:
    """Compile-time parameters; tiles have the height with which the fewest results are dropped."""
    tile = min((6, 5, 4), key=lambda each: -(-length // each) * (each + 0.7))
    return dict(depth=depth, tile=tile)


def _check(name: str, pixels: Tensor, shape: tuple[int, ...]) -> None:
    if pixels.shape != shape or not pixels.is_contiguous() or pixels.dtype != torch.float32:
        raise ValueError(
            f'attention: {name} {tuple(pixels.shape)}, {pixels.dtype}, strides '
            f'{pixels.stride()}, is not {shape} in float32, contiguous'
        )


def forward(x: Tensor, scores: Tensor, heads: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """``o_i = sum_j (q_i . k_j) v_j / sum_j (q_i . k_j + epsilon)`` in every head of every image.

    Args:
        x: (N, L, C), the values v of ``heads`` heads side by side, as in `can_run`.
        scores: (N, L, 2C), queries and behind them keys, before ``elu + 1``.
        heads: Number of heads.
        epsilon: Added to every weight in the divisor.

    Returns:
        (N, L, C), and the summaries that `backward` takes.

    Raises:
        ValueError: if a shape does not fit or an operand is not dense.
    """
    n, length, channels = x.shape
    depth = channels // heads
    _check('x', x, (n, length, heads * depth))
    _check('scores', scores, (n, length, 2 * channels))
    out = torch.empty_like(x)
    summary = x.new_empty(n, heads, depth + 1, -(-depth // LANES) * LANES)
    _attend(**_options(length, depth))(
        n * heads,
        3 * x.numel() * depth,
        address(x),
        address(scores),
        address(out),
        address(summary),
        heads,
        length,
        bits(epsilon),
    )
    return out, summary


def backward(
    grad: Tensor,
    x: Tensor,
    scores: Tensor,
    out: Tensor,
    summary: Tensor,
    heads: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of scores and values; the arguments are those and the results of `forward`.

    Args:
        grad: (N, L, C), contiguous.

    Returns:
        (N, L, 2C) and (N, L, C).
    """
    n, length, channels = x.shape
    depth = channels // heads
    _check('grad', grad, x.shape)
    grad_scores, grad_x = torch.empty_like(scores), torch.empty_like(x)
    _gradient(**_options(length, depth))(
        n * heads,
        6 * x.numel() * depth,
        address(grad),
        address(x),
        address(scores),
        address(out),
        address(summary),
        address(grad_scores),
        address(grad_x),
        heads,
        length,
        bits(epsilon),
    )
    return grad_scores, grad_x
