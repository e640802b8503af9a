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

from collections.abc import Sequence
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
        map: The map itself, (N, C, H, W).
        data: (N, C, H, width) with unit stride along rows; columns past the map's are zero.
        strides: Elements from one image, channel and row to the next.
        width: Readable columns of a row, at least those of the map.
        vector: Elements that can be read at once; divides the strides and the width.
    """

    map: Tensor
    data: Tensor
    strides: tuple[int, int, int]
    width: int
    vector: int


def planes(*maps: Tensor) -> list[Planes]:
    """Each map, (N, C, H, W) of one shape, as planes: itself if its rows can be read in vectors,
    otherwise a padded copy. All copies are one launch, and a map given twice is copied once."""
    found = {id(x): _in_place(x) for x in maps}
    others = list({id(x): x for x in maps if found[id(x)] is None}.values())
    if others:
        padded = cdiv(others[0].shape[3], PADDING) * PADDING
        copies = [
            torch.empty((*x.shape[:3], padded), dtype=x.dtype, device=x.device) for x in others
        ]
        copy(others, copies)
        for x, data in zip(others, copies):
            found[id(x)] = Planes(x, data, data.stride()[:3], padded, PADDING)
    return [found[id(x)] for x in maps]


def _in_place(x: Tensor) -> Planes | None:
    """``x`` itself as planes, or None if vectors cannot be read from its rows."""
    strides, width = x.stride()[:3], x.shape[3]
    # Images may overlap (expanded batches); a single one has no stride that matters.
    vector = gcd(PADDING, width, x.storage_offset(), *strides)
    return Planes(x, x, strides, width, vector) if x.stride(3) == 1 and vector >= 4 else None


@jit(do_not_specialize=('channels', 'height', 'width', 'blocks', 'images'))
def copy_planes(
    targets,
    sources,
    channels,
    height,
    width,
    target_width,
    blocks,
    images,
    strides,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """CHANNELS x COLUMNS elements of one row of one image of one map, zero past the source's width.

    ``images`` and ``strides`` of a map are those of its source, then those of its target.
    """
    n = (tl.program_id(0) // height).to(tl.int64)
    h = (tl.program_id(0) % height).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w = tl.program_id(2) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    for b in tl.static_range(len(sources)):
        if tl.program_id(2) // blocks == b:
            here = sources[b] + n * images[b][0] + h * strides[b][1]
            value = tl.load(
                here + c[:, None] * strides[b][0] + w[None, :] * strides[b][2],
                mask=(c < channels)[:, None] & (w < width)[None, :],
                other=0.0,
            )
            there = targets[b] + n * images[b][1] + h * strides[b][4]
            tl.store(
                there + c[:, None] * strides[b][3] + w[None, :] * strides[b][5],
                value,
                mask=(c < channels)[:, None] & (w < target_width)[None, :],
            )


def copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy maps (N, C, H, W) of one shape to wider or narrower ones; new columns become 0."""
    n, c, h, width = targets[0].shape
    columns = min(64, max(16, power_of_2(width)))
    channels = min(2048 // columns, max(16, power_of_2(c)))
    blocks = cdiv(width, columns)
    launch(
        copy_planes,
        (n * h, cdiv(c, channels), blocks * len(sources)),
        tuple(targets),
        tuple(sources),
        c,
        h,
        min(sources[0].shape[3], width),
        width,
        blocks,
        tuple((x.stride(0), y.stride(0)) for x, y in zip(sources, targets)),
        tuple((*x.stride()[1:], *y.stride()[1:]) for x, y in zip(sources, targets)),
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
