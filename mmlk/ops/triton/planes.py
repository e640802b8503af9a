"""Maps as planes whose rows can be read in vectors, and the copies that make them so.

The tensor-core kernels read and write a map plane by plane, (N, C, H, W) with adjacent columns adjacent
in memory, in pieces of 8 or 16 bytes. A contiguous map with whole pieces in every row is used where
it is. Any other map (channels-last, rows that are no multiple of 4, some slices) is first copied to
planes with rows padded by zeros, and results are copied back: two passes over the map each. That is
4 extra passes for a convolution whose floor is 2, so these kernels then only take kernels whose
arithmetic outweighs it (`toeplitz.takes`). Transposing inside the convolution would need a slab of 16
or more channels of a whole window in shared memory, which Triton cannot slice; storing odd rows
directly is a scattered store per element, which spills registers.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from mmlk.ops.triton.runtime import Example, cdiv, jit, launch, meta, power_of_2

PADDING = 8
"""Copies have rows of a multiple of this many elements: 16 bytes of the narrowest type."""


class Planes(NamedTuple):
    """A map to be read in vectors.

    Args:
        data: (N, C, H, width) with unit stride along rows; columns past the map's are zero.
        strides: Elements from one image, channel and row to the next.
        width: Readable columns of a row, at least those of the map.
        vector: Elements that can be read at once; divides the strides and the width.
    """

    data: Tensor
    strides: tuple[int, int, int]
    width: int
    vector: int


def planes(x: Tensor) -> Planes:
    """``x`` itself if its rows can be read in vectors, otherwise a padded copy."""
    strides, width = x.stride()[:3], x.shape[3]
    # Images may overlap (expanded batches); a single one has no stride that matters.
    vector = gcd(PADDING, width, x.storage_offset(), *strides)
    if x.stride(3) == 1 and vector >= 4:
        return Planes(x, strides, width, vector)
    padded = cdiv(width, PADDING) * PADDING
    data = torch.empty((*x.shape[:3], padded), dtype=x.dtype, device=x.device)
    copy(x, data)
    return Planes(data, data.stride()[:3], padded, PADDING)


@jit(do_not_specialize=('height', 'width', 'channels', 'source_image', 'target_image'))
def copy_planes(
    target,
    source,
    channels,
    height,
    width,
    target_width,
    source_image,
    source_channel,
    source_row,
    source_column,
    target_image,
    target_channel,
    target_row,
    target_column,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """CHANNELS x COLUMNS elements of one row of one image, zero past the source's width."""
    n = (tl.program_id(0) // height).to(tl.int64)
    h = (tl.program_id(0) % height).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    here = source + n * source_image + h * source_row
    value = tl.load(
        here + c[:, None] * source_channel + w[None, :] * source_column,
        mask=(c < channels)[:, None] & (w < width)[None, :],
        other=0.0,
    )
    there = target + n * target_image + h * target_row
    tl.store(
        there + c[:, None] * target_channel + w[None, :] * target_column,
        value,
        mask=(c < channels)[:, None] & (w < target_width)[None, :],
    )


def copy(source: Tensor, target: Tensor) -> None:
    """Copy a map (N, C, H, W) to one that may be wider or narrower; new columns become 0."""
    n, c, h, width = target.shape
    columns = min(64, max(16, power_of_2(width)))
    channels = min(2048 // columns, max(16, power_of_2(c)))
    launch(
        copy_planes,
        (n * h, cdiv(c, channels), cdiv(width, columns)),
        target,
        source,
        c,
        h,
        min(source.shape[3], width),
        width,
        *source.stride(),
        *target.stride(),
        CHANNELS=channels,
        COLUMNS=columns,
        num_warps=4,
    )


EXAMPLES = (
    Example(
        'from-last-bf16',
        lambda: planes(meta(64, 96, 56, 56, last=True)),
        kernel='copy_planes',
        registers=(64, 64),
    ),
    Example(
        'from-odd-rows-bf16',
        lambda: planes(meta(64, 96, 25, 25)),
        kernel='copy_planes',
        registers=(64, 64),
    ),
)
