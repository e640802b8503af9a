"""Copies of maps: a part of their channels, their patches, or all of them in the other layout.

torch copies such maps float by float in its general loop, unless they are large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel
from mmlk.ops.jit.tile import columns_of

FLOAT_COST = 4
"""Multiplications that take as long as copying a float, which waits for memory."""

TASK_ROWS = 64
"""Rows that a task transposes: four blocks of 16, so that taking a task costs little beside it."""


@kernel(
    'source_p target_p lines parts length source_image source_line source_pixel source_part '
    'target_image target_line target_pixel target_part pixels'
)
def _copy(
    k,
    source,
    target,
    lines,
    parts,
    length,
    source_image,
    source_line,
    source_pixel,
    source_part,
    target_image,
    target_line,
    target_pixel,
    target_part,
    pixels,
):
    """Task ``t`` copies line ``t % lines`` of image ``t / lines``."""
    image, line = k.task // lines, k.task % lines
    begin = k.at(source, image * source_image + line * source_line)
    end = k.at(target, image * target_image + line * target_line)
    whole = length - length % LANES
    with k.loop(0, pixels) as pixel, k.loop(0, parts) as part:
        read = k.at(begin, pixel * source_pixel + part * source_part)
        write = k.at(end, pixel * target_pixel + part * target_part)
        with k.loop(0, whole, LANES) as i:
            k.store(k.load(read, i), write, i)
        k.copy_some(k.at(read, whole), k.at(write, whole), length - whole)


@kernel('source_p target_p blocks rows columns')
def _transpose(k, source, target, blocks, rows, columns):
    """Task ``t`` writes `TASK_ROWS` rows of matrix ``t / blocks`` as columns."""
    matrix, top = k.task // blocks, k.task % blocks * TASK_ROWS
    bottom = k.min(top + TASK_ROWS, rows)
    source = k.at(source, matrix * (rows * columns))
    target = k.at(target, matrix * (rows * columns))

    def one_by_one(first, end, left):
        with k.loop(first, end) as row, k.loop(left, columns) as column:
            k.copy_float(k.at(source, row * columns + column), k.at(target, column * rows + row))

    whole, fours = top + (bottom - top) // LANES * LANES, columns - columns % 4
    with k.loop(top, whole, LANES) as row:
        lines = [k.at(source, (row + r) * columns) for r in range(LANES)]
        with k.loop(0, fours, 4) as column:
            read = [k.load_four(line, column) for line in lines]
            for offset, vector in enumerate(columns_of(k, read)):
                k.store(vector, target, (column + offset) * rows + row)
        one_by_one(row, row + LANES, fours)
    one_by_one(whole, bottom, k.int(0))


def copy_channels(x: Tensor, out: Tensor) -> None:
    """Write ``x`` to ``out``.

    Args:
        x: (N, C, H, W) float32 on the CPU, stride 1 along C.
        out: The same, and it must not overlap ``x``.

    Raises:
        ValueError: If an operand is another one, or shapes differ.
    """
    _check('copy_channels', x, out)
    if x.shape != out.shape:
        raise ValueError(f'copy_channels: x {tuple(x.shape)} is not of shape {tuple(out.shape)}')
    n, c, height, width = x.shape
    (image, _, line, pixel), (out_image, _, out_line, out_pixel) = x.stride(), out.stride()
    steps = (image, line, pixel, 0), (out_image, out_line, out_pixel, 0)
    _run(x, out, n, height, width, 1, c, *steps)


def patches(x: Tensor, kh: int, kw: int) -> Tensor:
    """The patches of a map as rows, each in the order rows, columns, channels.

    Args:
        x: (N, C, H, W) float32 on the CPU, channels-last without gaps between pixels.
        kh: Height of a patch.
        kw: Its width.

    Returns:
        (N * (H // kh) * (W // kw), kh * kw * C); what fills no patch is left out.

    Raises:
        ValueError: If the map is another one.
    """
    n, c, height, width = x.shape
    h, w, row = height // kh, width // kw, kh * kw * c
    out = x.new_empty(n * h * w, row)
    _check('patches', x, x)
    image, _, line, pixel = x.stride()
    if pixel != c:
        raise ValueError(f'patches: strides {x.stride()} of x leave gaps between its pixels')
    steps = (image, kh * line, kw * c, line), (h * w * row, w * row, row, kw * c)
    _run(x, out, n, h, w, kh, kw * c, *steps)
    return out


def transposed(x: Tensor) -> Tensor:
    """The transposed matrices (N, R, K) to (N, K, R), in float32 on the CPU and contiguous.

    Raises:
        ValueError: If they are others.
    """
    if x.dim() != 3 or x.dtype != torch.float32 or not x.is_cpu or not x.is_contiguous():
        raise ValueError(
            f'transposed: x {tuple(x.shape)} with strides {x.stride()}, {x.dtype} on {x.device}, is '
            'not (N, R, K), contiguous, in float32 on the CPU'
        )
    n, rows, columns = x.shape
    out = x.new_empty(n, columns, rows)
    blocks = -(-rows // TASK_ROWS)
    args = n * blocks, FLOAT_COST * x.numel(), address(x), address(out), blocks, rows, columns
    if x.numel():
        _transpose()(*args)
    return out


def _check(name: str, *maps: Tensor) -> None:
    for each in maps:
        if each.dtype != torch.float32 or not each.is_cpu or each.stride(1) != 1:
            raise ValueError(
                f'{name}: a map {tuple(each.shape)} with strides {each.stride()}, {each.dtype} on '
                f'{each.device}, is not float32 on the CPU with stride 1 along its channels'
            )


def _run(
    x: Tensor,
    out: Tensor,
    images: int,
    lines: int,
    pixels: int,
    parts: int,
    length: int,
    steps: tuple[int, ...],
    out_steps: tuple[int, ...],
) -> None:
    _copy()(
        images * lines,
        FLOAT_COST * images * lines * pixels * parts * length,
        address(x),
        address(out),
        lines,
        parts,
        length,
        *steps,
        *out_steps,
        pixels,
    )
