"""Kernels of `recconv.triton`: the recursion of a block of planes, and its steps over bands of rows.

Every program owns scratch memory of ``scratch_size`` floats and takes blocks of planes (or bands of
them) in turn. Images are indexed with int64, everything inside an image with int32.
"""

from __future__ import annotations

import triton.language as tl

from mmlk.ops.recconv import triton_phases as phases
from mmlk.ops.triton.runtime import jit

MOST_LEVELS = 7
"""A launch has this many arguments for kernels, plus one, so that any depth runs the same code."""

_SIZES = (
    'scratch_size',
    'images',
    'channels',
    'height',
    'width',
    'levels',
    'blocks',
    'x_image',
    'x_channel',
    'x_row',
    'x_column',
    'y_image',
    'y_channel',
    'y_row',
    'y_column',
    'g_image',
    'g_channel',
    'g_row',
    'g_column',
    'c_image',
    'c_channel',
    'c_row',
    'c_column',
    't_image',
    't_channel',
    't_row',
    't_column',
    'splits',
    'offset',
    'tiled',
    'first',
)


@jit
def _kernel_argument(kernels, index):
    """Pointer number ``index`` of a tuple."""
    chosen = kernels[0]
    for each in tl.static_range(1, 8):
        chosen = tl.where(index == each, kernels[each], chosen)
    return chosen


@jit
def _down(
    x,
    x_plane,
    x_row,
    x_column,
    down,
    pyramid,
    height,
    width,
    levels,
    count,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
):
    """Maps 1 .. levels of the pyramid, into scratch memory."""
    COLUMN: tl.constexpr = PLANES if LAST else 1
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    to, to_plane, to_row = phases.scratch_map(pyramid, small_h, small_w, PLANES, ROWS, MARGIN, LAST)
    phases.halve(
        x,
        x_plane,
        x_row,
        x_column,
        down,
        to,
        to_plane,
        to_row,
        COLUMN,
        0,
        small_h,
        height,
        width,
        count,
        K,
        PLANES,
        SPOTS,
        ROWS,
        LAST,
        True,
    )
    for level in range(2, levels + 1):
        tl.debug_barrier()
        fine_h = phases.halved(height, level - 1)
        fine_w = phases.halved(width, level - 1)
        small_h = (fine_h + 1) // 2
        small_w = (fine_w + 1) // 2
        begin = phases.begin(height, width, level - 1, PLANES, ROWS, MARGIN)
        end = begin + phases.extent(fine_h, fine_w, PLANES, ROWS, MARGIN)
        at, plane, row = phases.scratch_map(
            pyramid + begin, fine_h, fine_w, PLANES, ROWS, MARGIN, LAST
        )
        to, to_plane, to_row = phases.scratch_map(
            pyramid + end, small_h, small_w, PLANES, ROWS, MARGIN, LAST
        )
        phases.halve(
            at,
            plane,
            row,
            COLUMN,
            down,
            to,
            to_plane,
            to_row,
            COLUMN,
            0,
            small_h,
            fine_h,
            fine_w,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            False,
        )


@jit
def _up(
    kernels,
    shift,
    pyramid,
    sums,
    coarse,
    height,
    width,
    levels,
    count,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """From the coarsest level to level 1, whose convolved map is left in ``coarse``.

    The sum of map and interpolated coarser result of level j < levels goes to ``sums``, laid out
    like the pyramid (or the pyramid itself).
    """
    COLUMN: tl.constexpr = PLANES if LAST else 1
    for step in range(0, levels):
        level = levels - step
        map_h = phases.halved(height, level)
        map_w = phases.halved(width, level)
        begin = phases.begin(height, width, level, PLANES, ROWS, MARGIN)
        base = sums + begin
        if step == 0:
            base = pyramid + begin
        at, plane, row = phases.scratch_map(base, map_h, map_w, PLANES, ROWS, MARGIN, LAST)
        to, to_plane, to_row = phases.scratch_map(coarse, map_h, map_w, PLANES, ROWS, MARGIN, LAST)
        tl.debug_barrier()
        phases.convolve(
            at,
            plane,
            row,
            COLUMN,
            _kernel_argument(kernels, step) + shift,
            to,
            to_plane,
            to_row,
            COLUMN,
            0,
            map_h,
            map_w,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
        )
        tl.debug_barrier()
        if level > 1:
            fine_h = phases.halved(height, level - 1)
            fine_w = phases.halved(width, level - 1)
            before = begin - phases.extent(fine_h, fine_w, PLANES, ROWS, MARGIN)
            corner, fine_plane, fine_row = phases.corner(fine_h, fine_w, PLANES, ROWS, MARGIN, LAST)
            phases.merge(
                pyramid + before + corner,
                fine_plane,
                fine_row,
                COLUMN,
                to,
                to_plane,
                to_row,
                COLUMN,
                sums + before + corner,
                fine_plane,
                fine_row,
                COLUMN,
                0,
                fine_h,
                fine_h,
                fine_w,
                count,
                PLANES,
                SPOTS,
                ROWS,
                LAST,
                NEAREST,
            )


@jit(do_not_specialize=_SIZES)
def forward_planes(
    x,
    down,
    kernels,
    y,
    scratch,
    scratch_size,
    images,
    channels,
    height,
    width,
    levels,
    blocks,
    x_image,
    x_channel,
    x_row,
    x_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """The whole recursion with at least one level.

    Scratch memory: full map, maps of the levels from 1, convolved coarse map.
    """
    COLUMN: tl.constexpr = PLANES if LAST else 1
    full = scratch + tl.program_id(0).to(tl.int64) * scratch_size
    phases.clear(full, scratch_size, PLANES * SPOTS)
    pyramid = full + phases.extent(height, width, PLANES, ROWS, MARGIN)
    coarse = pyramid + phases.begin(height, width, levels + 1, PLANES, ROWS, MARGIN)
    small, small_plane, small_row = phases.scratch_map(
        coarse, (height + 1) // 2, (width + 1) // 2, PLANES, ROWS, MARGIN, LAST
    )
    at, plane, row = phases.scratch_map(full, height, width, PLANES, ROWS, MARGIN, LAST)
    for work in range(tl.program_id(0), images * blocks, tl.num_programs(0)):
        tl.debug_barrier()
        n = (work // blocks).to(tl.int64)
        first = work % blocks * PLANES
        shift = first * (K * K)
        count = tl.minimum(channels - first, PLANES)
        source = x + n * x_image + first * x_channel
        _down(
            source,
            x_channel,
            x_row,
            x_column if LAST else 1,
            down + shift,
            pyramid,
            height,
            width,
            levels,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
        )
        _up(
            kernels,
            shift,
            pyramid,
            pyramid,
            coarse,
            height,
            width,
            levels,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
            NEAREST,
        )
        phases.merge(
            source,
            x_channel,
            x_row,
            x_column if LAST else 1,
            small,
            small_plane,
            small_row,
            COLUMN,
            at,
            plane,
            row,
            COLUMN,
            0,
            height,
            height,
            width,
            count,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            NEAREST,
        )
        tl.debug_barrier()
        phases.convolve(
            at,
            plane,
            row,
            COLUMN,
            _kernel_argument(kernels, levels) + shift,
            y + n * y_image + first * y_channel,
            y_channel,
            y_row,
            y_column if LAST else 1,
            0,
            height,
            width,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
        )


@jit
def _gradients_down(
    kernels,
    shift,
    full,
    pyramid,
    sums,
    convolved,
    merged,
    area,
    partial,
    split,
    channels,
    height,
    width,
    levels,
    count,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Gradients of the sums and of the kernels of the levels from 1, from the full sum's."""
    COLUMN: tl.constexpr = PLANES if LAST else 1
    above = full
    for level in range(1, levels + 1):
        tl.debug_barrier()
        fine_h = phases.halved(height, level - 1)
        fine_w = phases.halved(width, level - 1)
        map_h = (fine_h + 1) // 2
        map_w = (fine_w + 1) // 2
        begin = phases.begin(height, width, level, PLANES, ROWS, MARGIN)
        fine, fine_plane, fine_row = phases.scratch_map(
            above, fine_h, fine_w, PLANES, ROWS, MARGIN, LAST
        )
        corner, plane, row = phases.corner(map_h, map_w, PLANES, ROWS, MARGIN, LAST)
        at = begin + corner
        phases.up_gradient(
            fine,
            fine_plane,
            fine_row,
            COLUMN,
            convolved + at,
            plane,
            row,
            COLUMN,
            0,
            map_h,
            fine_h,
            fine_w,
            count,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            False,
            NEAREST,
        )
        tl.debug_barrier()
        above = merged + begin
        centre = sums + at
        if level == levels:
            centre = pyramid + at
        phases.convolve_gradient(
            convolved + at,
            plane,
            row,
            COLUMN,
            _kernel_argument(kernels, levels - level) + shift,
            centre,
            plane,
            row,
            COLUMN,
            centre,
            plane,
            row,
            COLUMN,
            merged + at,
            plane,
            row,
            COLUMN,
            0,
            map_h,
            map_h,
            map_w,
            count,
            area,
            partial + split * (levels - level),
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            False,
            False,
            NEAREST,
        )


@jit
def _gradients_up(
    down,
    pyramid,
    merged,
    area,
    partial,
    taps_size,
    channels,
    height,
    width,
    levels,
    count,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
):
    """Gradients of the maps of the levels from 1, in place of the sums', and of the shared kernel."""
    COLUMN: tl.constexpr = PLANES if LAST else 1
    for step in range(0, levels - 1):
        tl.debug_barrier()
        level = levels - 1 - step
        map_h = phases.halved(height, level)
        map_w = phases.halved(width, level)
        begin = phases.begin(height, width, level, PLANES, ROWS, MARGIN)
        end = begin + phases.extent(map_h, map_w, PLANES, ROWS, MARGIN)
        flow, flow_plane, flow_row = phases.scratch_map(
            merged + end, (map_h + 1) // 2, (map_w + 1) // 2, PLANES, ROWS, MARGIN, LAST
        )
        corner, plane, row = phases.corner(map_h, map_w, PLANES, ROWS, MARGIN, LAST)
        at = merged + begin + corner
        phases.halve_gradient(
            flow,
            flow_plane,
            flow_row,
            COLUMN,
            down,
            pyramid + begin + corner,
            plane,
            row,
            COLUMN,
            at,
            plane,
            row,
            COLUMN,
            at,
            plane,
            row,
            COLUMN,
            0,
            map_h,
            map_h,
            map_w,
            count,
            area,
            partial + taps_size * level,
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            False,
        )


@jit(do_not_specialize=_SIZES)
def backward_planes(
    g,
    x,
    down,
    kernels,
    y,
    partial,
    scratch,
    scratch_size,
    images,
    channels,
    height,
    width,
    levels,
    blocks,
    splits,
    offset,
    g_image,
    g_channel,
    g_row,
    g_column,
    x_image,
    x_channel,
    x_row,
    x_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Gradients ``y`` of the map and ``partial`` of the kernels, one split per image.

    Scratch memory: gradient of the full sum, then for the levels from 1 the maps, the sums, the
    gradients of convolved maps and of sums, then the convolved coarse map and the lanes' sums.
    Split s of kernel e is row ``e * splits + s`` of ``partial``; the shared kernel has a split per
    image and level from row ``offset``.
    """
    COLUMN: tl.constexpr = PLANES if LAST else 1
    full = scratch + tl.program_id(0).to(tl.int64) * scratch_size
    phases.clear(full, scratch_size, PLANES * SPOTS)
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    stack = phases.begin(height, width, levels + 1, PLANES, ROWS, MARGIN)
    pyramid = full + phases.extent(height, width, PLANES, ROWS, MARGIN)
    sums = pyramid + stack
    convolved = sums + stack
    merged = convolved + stack
    coarse = merged + stack
    area = coarse + phases.extent(small_h, small_w, PLANES, ROWS, MARGIN)
    small, small_plane, small_row = phases.scratch_map(
        coarse, small_h, small_w, PLANES, ROWS, MARGIN, LAST
    )
    at, plane, row = phases.scratch_map(full, height, width, PLANES, ROWS, MARGIN, LAST)
    taps_size = channels * (K * K)
    split = splits.to(tl.int64) * taps_size
    for work in range(tl.program_id(0), images * blocks, tl.num_programs(0)):
        tl.debug_barrier()
        n = (work // blocks).to(tl.int64)
        first = work % blocks * PLANES
        shift = first * (K * K)
        count = tl.minimum(channels - first, PLANES)
        source = x + n * x_image + first * x_channel
        _down(
            source,
            x_channel,
            x_row,
            x_column if LAST else 1,
            down + shift,
            pyramid,
            height,
            width,
            levels,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
        )
        _up(
            kernels,
            shift,
            pyramid,
            sums,
            coarse,
            height,
            width,
            levels,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
            NEAREST,
        )
        phases.convolve_gradient(
            g + n * g_image + first * g_channel,
            g_channel,
            g_row,
            g_column if LAST else 1,
            _kernel_argument(kernels, levels) + shift,
            source,
            x_channel,
            x_row,
            x_column if LAST else 1,
            small,
            small_plane,
            small_row,
            COLUMN,
            at,
            plane,
            row,
            COLUMN,
            0,
            height,
            height,
            width,
            count,
            area,
            partial + split * levels + n * taps_size + first,
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            True,
            True,
            NEAREST,
        )
        _gradients_down(
            kernels,
            shift,
            full,
            pyramid,
            sums,
            convolved,
            merged,
            area,
            partial + n * taps_size + first,
            split,
            channels,
            height,
            width,
            levels,
            count,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
            NEAREST,
        )
        shared = partial + (offset + n * levels) * taps_size + first
        _gradients_up(
            down + shift,
            pyramid,
            merged,
            area,
            shared,
            taps_size,
            channels,
            height,
            width,
            levels,
            count,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            MARGIN,
            LAST,
        )
        tl.debug_barrier()
        flow, flow_plane, flow_row = phases.scratch_map(
            merged, small_h, small_w, PLANES, ROWS, MARGIN, LAST
        )
        phases.halve_gradient(
            flow,
            flow_plane,
            flow_row,
            COLUMN,
            down + shift,
            source,
            x_channel,
            x_row,
            x_column if LAST else 1,
            at,
            plane,
            row,
            COLUMN,
            y + n * y_image + first * y_channel,
            y_channel,
            y_row,
            y_column if LAST else 1,
            0,
            height,
            height,
            width,
            count,
            area,
            shared,
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            False,
        )


@jit(do_not_specialize=_SIZES)
def add_splits(
    partial,
    down,
    kernels,
    images,
    channels,
    height,
    levels,
    tiled,
    splits,
    offset,
    first,
    TAPS: tl.constexpr,
    BAND: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of all kernels from the rows of ``partial``: one tap of CHANNELS channels.

    The levels below ``tiled`` have a split per image and band of BAND rows, the one at ``tiled`` and
    those beyond it one per image; the shared kernel has those of all levels but the last.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tap = tl.program_id(1)
    index = tl.program_id(2) + first
    count = 0
    start = offset
    if index <= levels:
        start = index * splits
        level = levels - index
        count = images
        if level < tiled:
            count = images * tl.cdiv(phases.halved(height, level), BAND)
    else:
        for level in range(0, tiled):
            count += images * tl.cdiv(phases.halved(height, level), BAND)
        count += images * (levels - tiled)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for begin in range(0, count, ROWS):
        split = begin + tl.arange(0, ROWS)
        at = ((start + split).to(tl.int64)[:, None] * TAPS + tap) * channels + channel[None, :]
        total += tl.load(
            partial + at, mask=(split < count)[:, None] & (channel < channels)[None, :], other=0.0
        )
    target = _kernel_argument(kernels, index)
    target = tl.where(index > levels, down, target)
    tl.store(
        target + channel * TAPS + tap,
        tl.sum(total, 0).to(down.dtype.element_ty),
        mask=channel < channels,
    )


# ------------------------------------------------------------------------------ bands of rows


@jit(do_not_specialize=_SIZES)
def halve_band(
    x,
    down,
    y,
    images,
    channels,
    height,
    width,
    blocks,
    x_image,
    x_channel,
    x_row,
    x_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BAND: tl.constexpr,
    LAST: tl.constexpr,
):
    """Map 1 of the pyramid: BAND // 2 of its rows."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * PLANES
    top = tl.program_id(1) * (BAND // 2)
    phases.halve(
        x + n * x_image + first * x_channel,
        x_channel,
        x_row,
        x_column if LAST else 1,
        down + first * (K * K),
        y + n * y_image + first * y_channel,
        y_channel,
        y_row,
        y_column if LAST else 1,
        top,
        tl.minimum(top + BAND // 2, (height + 1) // 2),
        height,
        width,
        tl.minimum(channels - first, PLANES),
        K,
        PLANES,
        SPOTS,
        ROWS,
        LAST,
        True,
    )


@jit(do_not_specialize=_SIZES)
def merge_band(
    x,
    c,
    kernel,
    y,
    scratch,
    scratch_size,
    images,
    channels,
    height,
    width,
    blocks,
    x_image,
    x_channel,
    x_row,
    x_column,
    c_image,
    c_channel,
    c_row,
    c_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BAND: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """BAND rows of ``kernel * (x + up(c))``; the sum passes through scratch memory."""
    COLUMN: tl.constexpr = PLANES if LAST else 1
    own = scratch + tl.program_id(0).to(tl.int64) * scratch_size
    bands = tl.cdiv(height, BAND)
    for work in range(tl.program_id(0), images * blocks * bands, tl.num_programs(0)):
        tl.debug_barrier()
        phases.clear(own, scratch_size, PLANES * SPOTS)
        tl.debug_barrier()
        n = (work // bands // blocks).to(tl.int64)
        first = work // bands % blocks * PLANES
        count = tl.minimum(channels - first, PLANES)
        top = work % bands * BAND
        bottom = tl.minimum(top + BAND, height)
        at, plane, row = phases.scratch_map(own, BAND, width, PLANES, ROWS, MARGIN, LAST)
        at = at - top * row
        phases.merge(
            x + n * x_image + first * x_channel,
            x_channel,
            x_row,
            x_column if LAST else 1,
            c + n * c_image + first * c_channel,
            c_channel,
            c_row,
            c_column if LAST else 1,
            at,
            plane,
            row,
            COLUMN,
            tl.maximum(top - K // 2, 0),
            tl.minimum(bottom + K // 2, height),
            height,
            width,
            count,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            NEAREST,
        )
        tl.debug_barrier()
        phases.convolve(
            at,
            plane,
            row,
            COLUMN,
            kernel + first * (K * K),
            y + n * y_image + first * y_channel,
            y_channel,
            y_row,
            y_column if LAST else 1,
            top,
            bottom,
            width,
            count,
            K,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
        )


@jit(do_not_specialize=_SIZES)
def merge_gradient_band(
    g,
    x,
    c,
    kernel,
    y,
    partial,
    scratch,
    images,
    channels,
    height,
    width,
    blocks,
    offset,
    g_image,
    g_channel,
    g_row,
    g_column,
    x_image,
    x_channel,
    x_row,
    x_column,
    c_image,
    c_channel,
    c_row,
    c_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BAND: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Gradients of `merge_band` with respect to the sum (``y``) and the kernel (``partial``)."""
    bands = tl.cdiv(height, BAND)
    area = scratch + tl.program_id(0).to(tl.int64) * (K * K * PLANES * SPOTS)
    for work in range(tl.program_id(0), images * blocks * bands, tl.num_programs(0)):
        tl.debug_barrier()
        image = work // bands // blocks
        n = image.to(tl.int64)
        first = work // bands % blocks * PLANES
        top = work % bands * BAND
        split = (offset + image * bands + work % bands).to(tl.int64)
        phases.convolve_gradient(
            g + n * g_image + first * g_channel,
            g_channel,
            g_row,
            g_column if LAST else 1,
            kernel + first * (K * K),
            x + n * x_image + first * x_channel,
            x_channel,
            x_row,
            x_column if LAST else 1,
            c + n * c_image + first * c_channel,
            c_channel,
            c_row,
            c_column if LAST else 1,
            y + n * y_image + first * y_channel,
            y_channel,
            y_row,
            y_column if LAST else 1,
            top,
            tl.minimum(top + BAND, height),
            height,
            width,
            tl.minimum(channels - first, PLANES),
            area,
            partial + split * (channels * (K * K)) + first,
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            True,
            True,
            NEAREST,
        )


@jit(do_not_specialize=_SIZES)
def up_gradient_band(
    g,
    y,
    images,
    channels,
    height,
    width,
    blocks,
    g_image,
    g_channel,
    g_row,
    g_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BAND: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Gradient of the interpolated map: BAND // 2 of its rows."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * PLANES
    top = tl.program_id(1) * (BAND // 2)
    phases.up_gradient(
        g + n * g_image + first * g_channel,
        g_channel,
        g_row,
        g_column if LAST else 1,
        y + n * y_image + first * y_channel,
        y_channel,
        y_row,
        y_column if LAST else 1,
        top,
        tl.minimum(top + BAND // 2, (height + 1) // 2),
        height,
        width,
        tl.minimum(channels - first, PLANES),
        PLANES,
        SPOTS,
        ROWS,
        LAST,
        True,
        NEAREST,
    )


@jit(do_not_specialize=_SIZES)
def halve_gradient_band(
    g,
    x,
    t,
    down,
    y,
    partial,
    scratch,
    images,
    channels,
    height,
    width,
    blocks,
    offset,
    g_image,
    g_channel,
    g_row,
    g_column,
    x_image,
    x_channel,
    x_row,
    x_column,
    t_image,
    t_channel,
    t_row,
    t_column,
    y_image,
    y_channel,
    y_row,
    y_column,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BAND: tl.constexpr,
    LAST: tl.constexpr,
):
    """``y = t + transposed convolution of g`` at stride 2, and the shared kernel's ``partial``."""
    bands = tl.cdiv(height, BAND)
    area = scratch + tl.program_id(0).to(tl.int64) * (K * K * PLANES * SPOTS)
    for work in range(tl.program_id(0), images * blocks * bands, tl.num_programs(0)):
        tl.debug_barrier()
        image = work // bands // blocks
        n = image.to(tl.int64)
        first = work // bands % blocks * PLANES
        top = work % bands * BAND
        split = (offset + image * bands + work % bands).to(tl.int64)
        phases.halve_gradient(
            g + n * g_image + first * g_channel,
            g_channel,
            g_row,
            g_column if LAST else 1,
            down + first * (K * K),
            x + n * x_image + first * x_channel,
            x_channel,
            x_row,
            x_column if LAST else 1,
            t + n * t_image + first * t_channel,
            t_channel,
            t_row,
            t_column if LAST else 1,
            y + n * y_image + first * y_channel,
            y_channel,
            y_row,
            y_column if LAST else 1,
            top,
            tl.minimum(top + BAND, height),
            height,
            width,
            tl.minimum(channels - first, PLANES),
            area,
            partial + split * (channels * (K * K)) + first,
            channels,
            K,
            PADDED,
            PLANES,
            SPOTS,
            ROWS,
            LAST,
            True,
        )
