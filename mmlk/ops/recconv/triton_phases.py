"""The steps of the recursion on one block of channels, shared by all kernels of `triton_kernels`.

One program owns PLANES channels of one image and works with LANES = PLANES x SPOTS threads' worth of
tile. A lane computes a *strip*: one column of a map, ROWS consecutive rows of it, for one channel.
A strip of a k x k convolution reads (ROWS + k - 1) x k values for ROWS results, each value once into
a register, so the multiplications of a value need no further load. Lanes run along the
contiguous axis of memory: columns (contiguous maps) or channels (``LAST``, channels-last).

Tiles are (PLANES, SPOTS), for channels-last (SPOTS, PLANES); a plane's number is a column (row) of
that shape and its strip's number a row (column).

A *map* is given by four numbers: pointer to pixel (0, 0) of the first plane, strides of planes, rows
and columns. Maps in scratch memory are float32 with a margin of MARGIN zeros on every side and rows
filled up to a multiple of ROWS, so windows are read without any mask; margins are zeroed once per
program and no step writes them. Maps of callers are read with masks (``MASKED``).

Lanes without a strip, or of planes from ``count`` on, repeat the last one and write nothing.

Steps are real functions of the compiled code (``noinline``) with scalar arguments: a step that occurs
at several levels exists once, and Triton's layout passes, whose time grows with the square of the
memory operations of a function, take seconds instead of minutes.
"""

from __future__ import annotations

import triton.language as tl
from triton import constexpr_function

from mmlk.ops.triton.runtime import jit


@jit
def lanes(PLANES: tl.constexpr, SPOTS: tl.constexpr, LAST: tl.constexpr):
    """Numbers of the planes and of the strips, in the shape of tiles."""
    if LAST:
        plane = tl.arange(0, PLANES)[None, :]
        spot = tl.arange(0, SPOTS)[:, None]
    else:
        plane = tl.arange(0, PLANES)[:, None]
        spot = tl.arange(0, SPOTS)[None, :]
    return plane, spot


@jit
def halved(size, level):
    """Side of the map ``level`` steps down: ``ceil(size / 2 ** level)``."""
    return (size + (1 << level) - 1) >> level


@jit
def own(plane, count):
    """Which planes exist, and for the others the last one that does."""
    return plane < count, tl.minimum(plane, count - 1)


@jit
def extent(height, width, PLANES: tl.constexpr, ROWS: tl.constexpr, MARGIN: tl.constexpr):
    """Elements of a scratch map."""
    return PLANES * (tl.cdiv(height, ROWS) * ROWS + 2 * MARGIN) * (width + 2 * MARGIN)


@jit
def begin(height, width, level, PLANES: tl.constexpr, ROWS: tl.constexpr, MARGIN: tl.constexpr):
    """Elements of the scratch maps of the levels from 1 up to ``level``, without it."""
    total = 0
    for each in range(1, level):
        total += extent(halved(height, each), halved(width, each), PLANES, ROWS, MARGIN)
    return total


@jit
def corner(
    height,
    width,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
):
    """Place of pixel (0, 0) in a scratch map, plane and row stride; columns are PLANES or 1 apart."""
    pitch = width + 2 * MARGIN
    if LAST:
        place = (MARGIN * pitch + MARGIN) * PLANES
        plane = pitch * 0 + 1
        row = pitch * PLANES
    else:
        place = MARGIN * pitch + MARGIN
        plane = (tl.cdiv(height, ROWS) * ROWS + 2 * MARGIN) * pitch
        row = pitch
    return place, plane, row


@jit
def scratch_map(
    base,
    height,
    width,
    PLANES: tl.constexpr,
    ROWS: tl.constexpr,
    MARGIN: tl.constexpr,
    LAST: tl.constexpr,
):
    """The scratch map at ``base``: pointer to pixel (0, 0), plane and row stride."""
    place, plane, row = corner(height, width, PLANES, ROWS, MARGIN, LAST)
    return base + place, plane, row


@jit(noinline=True)
def clear(base, size, LANES: tl.constexpr):
    """Zero ``size`` elements of scratch memory."""
    lane = tl.arange(0, LANES)
    for start in range(0, size, LANES):
        tl.store(base + start + lane, tl.zeros((LANES,), tl.float32), mask=start + lane < size)


@jit
def taps(kernel, plane, K: tl.constexpr, FLIPPED: tl.constexpr):
    """The K * K weights of every plane, in the order of the kernel or the reverse one."""
    values = ()
    for t in tl.static_range(K * K):
        value = tl.load(kernel + plane * (K * K) + (K * K - 1 - t if FLIPPED else t))
        values = values + (value.to(tl.float32),)
    return values


@jit
def zeros(plane, spot, COUNT: tl.constexpr):
    """Accumulators."""
    zero = (plane * spot * 0).to(tl.float32)
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (zero,)
    return values


@jit
def strip(start, spot, top, bottom, width, ROWS: tl.constexpr):
    """First row and column of the strips from number ``start``, and which of them exist.

    Strips cover the rows from ``top`` up to ``bottom``; columns vary fastest.
    """
    count = tl.cdiv(bottom - top, ROWS) * width
    number = tl.minimum(start + spot, count - 1)
    group = number // width
    return top + group * ROWS, number - group * width, start + spot < count


@jit
def position(index, small, large, NEAREST: tl.constexpr):
    """Where index ``index`` of ``large`` reads in ``small = ceil(large / 2)``.

    Returns the lower and upper index and the share of the upper one. The position
    ``(index + 0.5) * small / large - 0.5`` is split into half the index, exact in integers, and a
    rest below one, so that the share is exact to float32 on maps of any size.
    """
    half = index // 2
    if NEAREST:
        lower = half
        share = half.to(tl.float32) * 0.0
    else:
        skew = tl.where(large % 2 == 1, 0.5 / large, 0.0)
        rest = (index - 2 * half) * 0.5 - 0.25 + (index + 0.5) * skew
        below = rest < 0.0
        lower = half - below.to(tl.int32)
        share = tl.where(lower < 0, 0.0, rest + below.to(tl.float32))
        lower = tl.maximum(lower, 0)
    return lower, tl.minimum(lower + 1, small - 1), share


@jit
def interpolate(at, row, column, height_at, width_at, NEAREST: tl.constexpr):
    """Values of a coarse map at a `position` in rows and one in columns.

    Weighted sums rather than differences: next to each other, two infinite values have an infinite mean.
    """
    low, high, down = height_at
    left, right, across = width_at
    upper = at + low * row
    if NEAREST:
        value = tl.load(upper + left * column)
    else:
        lower = at + high * row
        a = tl.load(upper + left * column)
        b = tl.load(upper + right * column)
        c = tl.load(lower + left * column)
        d = tl.load(lower + right * column)
        first = a * (1.0 - across) + b * across
        second = c * (1.0 - across) + d * across
        value = first * (1.0 - down) + second * down
    return value


@jit
def share_of(step, index, small, large, NEAREST: tl.constexpr):
    """Weight with which pixel ``2 * index + step`` of ``large`` reads pixel ``index`` of ``small``.

    The tent around ``index``; beyond the outermost pixels positions are drawn in.
    """
    if NEAREST:
        weight = (index * 0).to(tl.float32) + (1.0 if step == 0 or step == 1 else 0.0)
    else:
        skew = tl.where(large % 2 == 1, 0.5 / large, 0.0)
        away = 0.5 * step - 0.25 + (2 * index + step + 0.5) * skew
        away = tl.where(index == 0, tl.maximum(away, 0.0), away)
        away = tl.where(index == small - 1, tl.minimum(away, 0.0), away)
        weight = tl.maximum(1.0 - tl.abs(away), 0.0)
    return weight


@jit
def store_sums(
    sums,
    area,
    partial,
    channels,
    count,
    K: tl.constexpr,
    FLIPPED: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Add the K * K accumulators over the lanes of a plane; rows of ``channels`` in ``partial``.

    They are exchanged through scratch memory ``area`` at once, rather than by a reduction with
    barriers for each; PADDED is K * K rounded up to a power of two.
    """
    plane, spot = lanes(PLANES, SPOTS, LAST)
    for t in tl.static_range(K * K):
        tl.store(area + (t * PLANES + plane) * SPOTS + spot, sums[t])
    tl.debug_barrier()
    tap = tl.arange(0, PADDED)[:, None, None]
    owner = tl.arange(0, PLANES)[None, :, None]
    lane = tl.arange(0, SPOTS)[None, None, :]
    total = tl.sum(
        tl.load(area + (tap * PLANES + owner) * SPOTS + lane, mask=tap < K * K, other=0.0), axis=2
    )
    tap = tl.arange(0, PADDED)[:, None]
    owner = tl.arange(0, PLANES)[None, :]
    tl.store(
        partial + (K * K - 1 - tap if FLIPPED else tap) * channels + owner,
        total,
        mask=(tap < K * K) & (owner < count),
    )


@jit(noinline=True)
def merge(
    fine,
    f_plane,
    f_row,
    f_column,
    coarse,
    c_plane,
    c_row,
    c_column,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    height,
    width,
    count,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """``target = fine + up(coarse)``, rows from ``top`` to ``bottom`` of a height x width map."""
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    fine += plane * f_plane
    coarse += plane * c_plane
    target += plane * t_plane
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    for start in range(0, tl.cdiv(bottom - top, ROWS) * width, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, width, ROWS)
        across = position(w, small_w, width, NEAREST)
        for r in tl.static_range(ROWS):
            within = inside & ok & (h + r < bottom)
            row = tl.minimum(h + r, bottom - 1)
            value = tl.load(fine + row * f_row + w * f_column, mask=within, other=0.0)
            up = interpolate(
                coarse,
                c_row,
                c_column,
                position(row, small_h, height, NEAREST),
                across,
                NEAREST,
            )
            tl.store(target + row * t_row + w * t_column, value.to(tl.float32) + up, mask=within)


@jit(noinline=True)
def convolve(
    source,
    s_plane,
    s_row,
    s_column,
    kernel,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    width,
    count,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
):
    """K x K convolution of a scratch map at stride 1."""
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    source += plane * s_plane
    target += plane * t_plane
    weights = taps(kernel, plane, K, False)
    for start in range(0, tl.cdiv(bottom - top, ROWS) * width, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, width, ROWS)
        at = source + h * s_row + w * s_column
        acc = zeros(plane, spot, ROWS)
        for i in tl.static_range(ROWS + K - 1):
            line = at + (i - K // 2) * s_row
            for b in tl.static_range(K):
                value = tl.load(line + (b - K // 2) * s_column)
                for r in tl.static_range(ROWS):
                    if i - r >= 0 and i - r < K:
                        acc = acc[:r] + (acc[r] + value * weights[(i - r) * K + b],) + acc[r + 1 :]
        out = target + h * t_row + w * t_column
        for r in tl.static_range(ROWS):
            tl.store(
                out + r * t_row,
                acc[r].to(target.dtype.element_ty),
                mask=inside & ok & (h + r < bottom),
            )


@jit
def window(at, row_ok, column, width, MASKED: tl.constexpr):
    """One value of a map of the caller (masked) or of scratch memory."""
    if MASKED:
        value = tl.load(at, mask=row_ok & (column >= 0) & (column < width), other=0.0)
    else:
        value = tl.load(at)
    return value.to(tl.float32)


@jit(noinline=True)
def halve(
    source,
    s_plane,
    s_row,
    s_column,
    kernel,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    height,
    width,
    count,
    K: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    MASKED: tl.constexpr,
):
    """K x K convolution at stride 2 of a height x width map, result rows ``top`` to ``bottom``.

    Half as many rows a strip as elsewhere, so that the rows read stay inside scratch margins.
    """
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    source += plane * s_plane
    target += plane * t_plane
    weights = taps(kernel, plane, K, False)
    HALF: tl.constexpr = ROWS // 2
    small_w = (width + 1) // 2
    for start in range(0, tl.cdiv(bottom - top, HALF) * small_w, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, small_w, HALF)
        at = source + 2 * h * s_row + 2 * w * s_column
        acc = zeros(plane, spot, HALF)
        for i in tl.static_range(2 * HALF + K - 2):
            line = at + (i - K // 2) * s_row
            row = 2 * h + (i - K // 2)
            row_ok = ok & (row >= 0) & (row < height)
            for b in tl.static_range(K):
                value = window(
                    line + (b - K // 2) * s_column, row_ok, 2 * w + (b - K // 2), width, MASKED
                )
                for r in tl.static_range(HALF):
                    if i - 2 * r >= 0 and i - 2 * r < K:
                        acc = (
                            acc[:r]
                            + (acc[r] + value * weights[(i - 2 * r) * K + b],)
                            + acc[r + 1 :]
                        )
        out = target + h * t_row + w * t_column
        for r in tl.static_range(HALF):
            tl.store(out + r * t_row, acc[r], mask=inside & ok & (h + r < bottom))


@jit(noinline=True)
def convolve_gradient(
    grad,
    g_plane,
    g_row,
    g_column,
    kernel,
    centre,
    c_plane,
    c_row,
    c_column,
    coarse,
    u_plane,
    u_row,
    u_column,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    height,
    width,
    count,
    area,
    partial,
    channels,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    MASKED: tl.constexpr,
    UP: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Both gradients of `convolve`: ``target`` for its map, a row of ``partial`` for its kernel.

    One window of ``grad`` serves both: with flipped taps it gives the gradient of the map, and
    multiplied by the map's value in the centre a term of every tap's gradient. So the map,
    ``centre + up(coarse)`` (``UP``) or ``centre``, is read once, without neighbours.
    """
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    grad += plane * g_plane
    centre += plane * c_plane
    coarse += plane * u_plane
    target += plane * t_plane
    weights = taps(kernel, plane, K, True)
    sums = zeros(plane, spot, K * K)
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    for start in range(0, tl.cdiv(bottom - top, ROWS) * width, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, width, ROWS)
        across = position(w, small_w, width, NEAREST)
        values = ()
        for r in tl.static_range(ROWS):
            within = inside & ok & (h + r < bottom)
            row = tl.minimum(h + r, bottom - 1)
            value = tl.load(centre + row * c_row + w * c_column, mask=within, other=0.0)
            value = value.to(tl.float32)
            if UP:
                value += interpolate(
                    coarse,
                    u_row,
                    u_column,
                    position(row, small_h, height, NEAREST),
                    across,
                    NEAREST,
                )
                value = tl.where(within, value, 0.0)
            values = values + (value,)
        at = grad + h * g_row + w * g_column
        acc = zeros(plane, spot, ROWS)
        for i in tl.static_range(ROWS + K - 1):
            line = at + (i - K // 2) * g_row
            row = h + (i - K // 2)
            row_ok = ok & (row >= 0) & (row < height)
            for b in tl.static_range(K):
                value = window(
                    line + (b - K // 2) * g_column, row_ok, w + (b - K // 2), width, MASKED
                )
                for r in tl.static_range(ROWS):
                    if i - r >= 0 and i - r < K:
                        acc = acc[:r] + (acc[r] + value * weights[(i - r) * K + b],) + acc[r + 1 :]
                        sums = (
                            sums[: (i - r) * K + b]
                            + (sums[(i - r) * K + b] + value * values[r],)
                            + sums[(i - r) * K + b + 1 :]
                        )
        out = target + h * t_row + w * t_column
        for r in tl.static_range(ROWS):
            tl.store(out + r * t_row, acc[r], mask=inside & ok & (h + r < bottom))
    store_sums(sums, area, partial, channels, count, K, True, PADDED, PLANES, SPOTS, LAST)


@jit(noinline=True)
def up_gradient(
    grad,
    g_plane,
    g_row,
    g_column,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    height,
    width,
    count,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    MASKED: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Gradient of the interpolation to a height x width map, coarse rows ``top`` to ``bottom``.

    Pixel i of the coarse map is read by pixels 2i - 2 .. 2i + 2 of the fine one at most.
    """
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    grad += plane * g_plane
    target += plane * t_plane
    HALF: tl.constexpr = ROWS // 2
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    for start in range(0, tl.cdiv(bottom - top, HALF) * small_w, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, small_w, HALF)
        shares = ()
        for step in tl.static_range(5):
            shares = shares + (share_of(step - 2, w, small_w, width, NEAREST),)
        at = grad + 2 * h * g_row + 2 * w * g_column
        acc = zeros(plane, spot, HALF)
        for i in tl.static_range(2 * HALF + 3):
            row = 2 * h + (i - 2)
            row_ok = ok & (row >= 0) & (row < height)
            total = zeros(plane, spot, 1)[0]
            for step in tl.static_range(5):
                value = window(
                    at + (i - 2) * g_row + (step - 2) * g_column,
                    row_ok,
                    2 * w + (step - 2),
                    width,
                    MASKED,
                )
                total += value * shares[step]
            for r in tl.static_range(HALF):
                if i - 2 * r >= 0 and i - 2 * r < 5:
                    part = total * share_of(i - 2 * r - 2, h + r, small_h, height, NEAREST)
                    acc = acc[:r] + (acc[r] + part,) + acc[r + 1 :]
        out = target + h * t_row + w * t_column
        for r in tl.static_range(HALF):
            tl.store(out + r * t_row, acc[r], mask=inside & ok & (h + r < bottom))


@constexpr_function
def pixel_of(m, a, b, k):
    """Number of the pixel, of the two columns over coarse row m, that tap (a, b) reads for it.

    Tap a reads row 2i + a - k // 2 for coarse row i: one of parity a + k // 2.
    """
    return 2 * (2 * m + (a + k // 2) % 2) + (b + k // 2) % 2


@constexpr_function
def neighbour_of(m, a, b, k):
    """Number of the coarse pixel, in the window around row m, for which tap (a, b) reads it."""
    before, wide = k // 2 // 2, k // 2 // 2 + (k // 2 + 1) // 2 + 1
    row, column = (((each + k // 2) % 2 + k // 2 - each) // 2 + before for each in (a, b))
    return (m + row) * wide + column


@jit(noinline=True)
def halve_gradient(
    grad,
    g_plane,
    g_row,
    g_column,
    kernel,
    centre,
    c_plane,
    c_row,
    c_column,
    direct,
    d_plane,
    d_row,
    d_column,
    target,
    t_plane,
    t_row,
    t_column,
    top,
    bottom,
    height,
    width,
    count,
    area,
    partial,
    channels,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    PLANES: tl.constexpr,
    SPOTS: tl.constexpr,
    ROWS: tl.constexpr,
    LAST: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Both gradients of `halve`, the map's added to what reaches it on the direct way.

    ``target = direct + transposed convolution of grad``, rows ``top`` (even) to ``bottom`` of a
    height x width map, of which ``centre`` has the values. As in `convolve_gradient` one window of
    ``grad`` serves both gradients. A strip is two columns wide: the four pixels over one coarse
    pixel use every tap once.
    """
    plane, spot = lanes(PLANES, SPOTS, LAST)
    ok, plane = own(plane, count)
    grad += plane * g_plane
    centre += plane * c_plane
    direct += plane * d_plane
    target += plane * t_plane
    weights = taps(kernel, plane, K, False)
    sums = zeros(plane, spot, K * K)
    HALF: tl.constexpr = ROWS // 2
    BEFORE: tl.constexpr = K // 2 // 2
    AFTER: tl.constexpr = (K // 2 + 1) // 2
    small_h = (height + 1) // 2
    small_w = (width + 1) // 2
    for start in range(0, tl.cdiv(bottom - top, ROWS) * small_w, SPOTS):
        h, w, inside = strip(start, spot, top, bottom, small_w, ROWS)
        values = ()
        acc = ()
        for r in tl.static_range(ROWS):
            for f in tl.static_range(2):
                within = inside & ok & (h + r < bottom) & (2 * w + f < width)
                value = tl.load(
                    centre + (h + r) * c_row + (2 * w + f) * c_column, mask=within, other=0.0
                )
                values = values + (value.to(tl.float32),)
                acc = acc + (
                    tl.load(
                        direct + (h + r) * d_row + (2 * w + f) * d_column, mask=within, other=0.0
                    ),
                )
        at = grad + (h // 2) * g_row + w * g_column
        near = ()
        for i in tl.static_range(HALF + BEFORE + AFTER):
            row = h // 2 + (i - BEFORE)
            row_ok = ok & (row >= 0) & (row < small_h)
            for j in tl.static_range(1 + BEFORE + AFTER):
                near = near + (
                    window(
                        at + (i - BEFORE) * g_row + (j - BEFORE) * g_column,
                        row_ok,
                        w + (j - BEFORE),
                        small_w,
                        MASKED,
                    ),
                )
        for m in tl.static_range(HALF):
            for a in tl.static_range(K):
                for b in tl.static_range(K):
                    value = near[neighbour_of(m, a, b, K)]
                    acc = (
                        acc[: pixel_of(m, a, b, K)]
                        + (acc[pixel_of(m, a, b, K)] + value * weights[a * K + b],)
                        + acc[pixel_of(m, a, b, K) + 1 :]
                    )
                    sums = (
                        sums[: a * K + b]
                        + (sums[a * K + b] + value * values[pixel_of(m, a, b, K)],)
                        + sums[a * K + b + 1 :]
                    )
        for r in tl.static_range(ROWS):
            for f in tl.static_range(2):
                tl.store(
                    target + (h + r) * t_row + (2 * w + f) * t_column,
                    acc[2 * r + f].to(target.dtype.element_ty),
                    mask=inside & ok & (h + r < bottom) & (2 * w + f < width),
                )
    store_sums(sums, area, partial, channels, count, K, False, PADDED, PLANES, SPOTS, LAST)
