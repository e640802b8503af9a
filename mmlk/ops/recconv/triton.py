"""Recursive convolution on CUDA: the whole recursion of a block of planes in one program.

Written with library calls the recursion reads and writes the full map about four times and the
coarser ones several times each. Here a program computes all levels, down and up again, of PLANES
channels of one image by itself; its intermediate maps, float32 and zero-padded (`triton_phases`), are in
scratch memory that belongs to the program, not to the channels: as many programs as a GPU holds run
through all channels in turn, so the scratch is rewritten while it still is in L2, and a barrier between
two steps is all the ordering there is. (Triton has no shared memory to index.) The scratch of a launch
is at most `SCRATCH`: lanes are given to fewer channels until that suffices.
Launches and device-memory traffic, in bytes of the full map M:

* forward: one launch; reads x, writes y: 2 M (library calls: 3L + 1 launches, 8.5 to 11 M);
* backward: one launch and one for the sums; reads x and the gradient, writes the gradient of x: 3 M.
  The forward pass saves nothing but its arguments: the coarse maps, a third of its arithmetic, are
  computed again.

The second reading of x and about 20 bytes a pixel of scratch (60 backward) are served by L1 and L2.

Maps of more than FUSED_PIXELS pixels (channels-last: SMALL_PIXELS), or so few planes that most of the
GPU would idle, take the same steps with one launch each over bands of rows, until a coarser level
fits: two launches a level forward, five backward. There the coarser maps, and in the backward pass the
gradient of the full sum, pass through device memory in float32.

Arithmetic: 25 (1 + 2/3 (1 - 4^-L)) multiplications a pixel forward, twice that and the coarse maps
backward, all in float32 on CUDA cores. The result is rounded once. Weight gradients are sums over
lanes, then over images and bands, each in an order that depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.depthwise import triton as depthwise
from mmlk.ops.maps import channels_last
from mmlk.ops.recconv import triton_kernels as kernels
from mmlk.ops.triton.runtime import Example, cdiv, launch, meta, power_of_2

ROWS = 8  # of a strip; divides the sides of most published maps
BAND = 32  # rows of a band, a multiple of ROWS
FORWARD, BACKWARD = 16, 8  # warps of a processor, as 128 and 255 registers a thread allow
PROCESSORS = 128  # of a large GPU
SCRATCH = 2**25
"""Bytes of scratch memory of a launch at most: they stay in L2, of which A100 has 40 MB, H100 50."""
FUSED_PIXELS = 160 * 128
FUSED_PROGRAMS = 64
SMALL_PIXELS = (
    64 * 64
)  # on so small a map bands are slower than one program a plane, by count of launches; not measured


class Shape(NamedTuple):
    """How the planes of a map are dealt to programs; a function of shapes only.

    Args:
        planes: Channels of a program.
        spots: Strips of a plane that it computes at a time.
        blocks: Programs that cover the channels of an image.
        last: Whether channels are contiguous.
        most: Programs that a launch has at most: as many as a GPU holds, and `SCRATCH` suffices for.
    """

    planes: int
    spots: int
    blocks: int
    last: bool
    most: int = 1

    @property
    def warps(self) -> int:
        return max(1, self.planes * self.spots // 32)

    def programs(self, work: int) -> int:
        """Programs that share ``work`` blocks."""
        return min(work, self.most)

    def constants(self) -> dict:
        return dict(
            PLANES=self.planes,
            SPOTS=self.spots,
            ROWS=ROWS,
            LAST=self.last,
            num_warps=self.warps,
            num_stages=1,
        )


def shape_of(
    images: int,
    channels: int,
    height: int,
    width: int,
    last: bool,
    floats: int,
    warps: int,
    sums: int = 0,
) -> Shape:
    """Tiles of one to 16 warps, with four to eight strips a lane at the full map.

    Lanes share the scratch memory of their planes: of channels-last maps, whose 16 channels are a
    sector of memory, a program takes fewer where the programs of a GPU would need more than `SCRATCH`.

    Args:
        images, channels, height, width: Of the map.
        last: Whether channels are contiguous.
        floats: Of scratch memory for each plane.
        warps: `FORWARD` or `BACKWARD`.
        sums: Floats of scratch memory for each lane.
    """
    strips = cdiv(height, ROWS) * width
    choices = []
    if last:
        for most in (16, 8, 4):
            planes = min(most, power_of_2(channels))
            spots = min(max(power_of_2(cdiv(strips, 8)), 32 // planes), 32 * warps // planes)
            choices.append((planes, spots))
    else:
        spots = min(max(power_of_2(cdiv(strips, 6)), min(32, power_of_2(strips))), 256)
        choices.append((min(max(1, 32 // spots), power_of_2(channels)), spots))
    for planes, spots in choices:
        shape = Shape(planes, spots, cdiv(channels, planes), last)
        resident = PROCESSORS * warps // shape.warps
        enough = SCRATCH // (4 * planes * max(1, floats + spots * sums))
        if 4 * enough >= 3 * min(resident, images * shape.blocks):  # nearly all of them
            break
    return shape._replace(most=max(1, min(resident, enough)))


def fits(images: int, channels: int, height: int, width: int, last: bool) -> bool:
    """Whether a program takes all rows of its planes, rather than a band of them."""
    pixels = height * width
    if pixels <= SMALL_PIXELS or last:  # more scratch memory than `SCRATCH` has for 4 channels
        return pixels <= SMALL_PIXELS
    blocks = shape_of(images, channels, height, width, last, 0, FORWARD).blocks
    return pixels <= FUSED_PIXELS and images * blocks >= FUSED_PROGRAMS


def _tiled_levels(x: Tensor, levels: int) -> int:
    """Number of levels, from the full one, whose maps are taken in bands."""
    n, c, h, w = x.shape
    tiled = 0
    while tiled < levels and not fits(n, c, h, w, channels_last(x)):
        tiled, h, w = tiled + 1, (h + 1) // 2, (w + 1) // 2
    return tiled


def _extent(height: int, width: int, margin: int) -> int:
    """Floats of a plane in scratch memory, as `triton_phases.extent`."""
    return (cdiv(height, ROWS) * ROWS + 2 * margin) * (width + 2 * margin)


def _extents(height: int, width: int, levels: int, margin: int) -> list[int]:
    found = []
    for _ in range(levels + 1):
        found.append(_extent(height, width, margin))
        height, width = (height + 1) // 2, (width + 1) // 2
    return found


def _margin(kernel: int) -> int:
    return max(2, kernel // 2)  # 2 for the window of `triton_phases.up_gradient`


def _scratch(x: Tensor, programs: int, size: int) -> Tensor:
    return torch.empty(programs * size, dtype=torch.float32, device=x.device)


def _slots(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (*tensors, *(tensors[-1:] * (kernels.MOST_LEVELS + 1 - len(tensors))))


def _strided(x: Tensor, last: bool) -> Tensor:
    """``x`` in strides that kernels take: channels or columns contiguous."""
    if last:
        return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
    return x if x.stride(3) == 1 else x.contiguous()


def _empty(x: Tensor, height: int, width: int, dtype: torch.dtype, last: bool) -> Tensor:
    return torch.empty(
        (*x.shape[:2], height, width),
        dtype=dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _bands(height: int) -> int:
    return cdiv(height, BAND)


def bands_of(height: int, levels: int) -> list[int]:
    """Bands of the maps of the first ``levels`` levels."""
    return [cdiv(-(-height // 2**level), BAND) for level in range(levels)]


def forward(
    x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str
) -> tuple[Tensor, list[Tensor]]:
    """`mmlk::recconv2d` for CUDA tensors; nothing is saved for the backward pass."""
    down_weight, weights = _alike(down_weight, weights)
    y = _forward(x, down_weight, weights, mode == 'nearest', _tiled_levels(x, len(weights) - 1))
    return y, []


def _alike(down_weight: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Kernels without gaps, in one dtype."""
    found = [each.contiguous() for each in (down_weight, *weights)]
    if len({each.dtype for each in found}) > 1:
        found = [each.float() for each in found]
    return found[0], found[1:]


def _forward(x: Tensor, down: Tensor, weights: list[Tensor], nearest: bool, tiled: int) -> Tensor:
    levels, last = len(weights) - 1, channels_last(x)
    if levels == 0:
        return depthwise.forward(x, weights[0], None, [1, 1])
    n, c, h, w = x.shape
    kernel = down.shape[-1]
    x = _strided(x, last)
    y = _empty(x, h, w, x.dtype, last)
    margin = _margin(kernel)
    floats = _extent(BAND, w, margin)
    if tiled == 0:
        extents = _extents(h, w, levels, margin)
        floats = sum(extents) + extents[1]
    shape = shape_of(n, c, h, w, last, floats, FORWARD)
    size, work = shape.planes * floats, n * shape.blocks
    constants = dict(K=kernel, MARGIN=margin, NEAREST=nearest, **shape.constants())
    if tiled == 0:
        programs = shape.programs(work)
        launch(
            kernels.forward_planes,
            (programs,),
            x,
            down,
            _slots(weights),
            y,
            _scratch(x, programs, size),
            size,
            n,
            c,
            h,
            w,
            levels,
            shape.blocks,
            *x.stride(),
            *y.stride(),
            **constants,
        )
        return y
    coarse = _forward(_halved(x, down, shape), down, weights[:-1], nearest, tiled - 1)
    programs = shape.programs(work * _bands(h))
    launch(
        kernels.merge_band,
        (programs,),
        x,
        coarse,
        weights[-1],
        y,
        _scratch(x, programs, size),
        size,
        n,
        c,
        h,
        w,
        shape.blocks,
        *x.stride(),
        *coarse.stride(),
        *y.stride(),
        BAND=BAND,
        **constants,
    )
    return y


def _halved(x: Tensor, down: Tensor, shape: Shape) -> Tensor:
    n, c, h, w = x.shape
    small = _empty(x, (h + 1) // 2, (w + 1) // 2, torch.float32, shape.last)
    launch(
        kernels.halve_band,
        (n * shape.blocks, _bands(h)),
        x,
        down,
        small,
        n,
        c,
        h,
        w,
        shape.blocks,
        *x.stride(),
        *small.stride(),
        K=down.shape[-1],
        BAND=BAND,
        **shape.constants(),
    )
    return small


class _Sums(NamedTuple):
    """Partial sums of the kernels' gradients: row ``e * splits + s`` is split s of kernel e.

    Rows from ``offset`` belong to the shared kernel: those of the full map first.
    """

    partial: Tensor
    splits: int
    offset: int


def backward(
    grad: Tensor,
    x: Tensor,
    down_weight: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    mode: str,
    mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`mmlk::recconv2d_backward`; ``saved`` is empty, the coarse maps are computed again."""
    levels, taps = len(weights) - 1, down_weight[0].numel()
    down, same = _alike(down_weight, weights)
    grads = [
        torch.empty_like(each, memory_format=torch.contiguous_format) for each in (down, *same)
    ]
    if x.numel() == 0 or levels == 0:
        grads[0].zero_()
    n, c, h, _ = x.shape
    tiled = _tiled_levels(x, levels)
    splits = n * _bands(h) if tiled else n
    rows = (levels + 1) * splits + n * (sum(bands_of(h, tiled)) + levels - tiled)
    sums = _Sums(
        torch.empty(rows, taps, c, dtype=torch.float32, device=x.device),
        splits,
        (levels + 1) * splits,
    )
    grad_x = _backward(grad, x, down, same, grads[1:], mode == 'nearest', tiled, sums, sums.offset)
    if levels:
        first = int(tiled == levels)  # the coarsest kernel then is an ordinary convolution's
        launch(
            kernels.add_splits,
            (cdiv(c, 32), taps, levels + 2 - first),
            sums.partial,
            grads[0],
            _slots(grads[1:]),
            n,
            c,
            h,
            levels,
            tiled,
            splits,
            sums.offset,
            first,
            TAPS=taps,
            BAND=BAND,
            ROWS=64,
            CHANNELS=32,
            num_warps=2,
        )
    found = [each.to(weight.dtype) for each, weight in zip(grads, (down_weight, *weights))]
    return (
        grad_x if mask[0] else x.new_empty(0),
        found[0] if mask[1] else down.new_empty(0),
        found[1:] if mask[2] else [each.new_empty(0) for each in weights],
    )


def _backward(
    grad: Tensor,
    x: Tensor,
    down: Tensor,
    weights: list[Tensor],
    grad_weights: list[Tensor],
    nearest: bool,
    tiled: int,
    sums: _Sums,
    offset: int,
) -> Tensor:
    """Gradient of ``x``; those of the kernels go to ``sums``, of an only one to ``grad_weights``."""
    levels, last = len(weights) - 1, channels_last(x)
    if levels == 0:
        grad_x, grad_weight, _ = depthwise.backward(
            grad, x, weights[0], [1, 1], [True, True, False]
        )
        grad_weights[0].copy_(grad_weight)
        return grad_x
    n, c, h, w = x.shape
    kernel = down.shape[-1]
    x, grad = _strided(x, last), _strided(grad, last)
    grad_x = _empty(x, h, w, x.dtype, last)
    margin, floats = _margin(kernel), 0
    if tiled == 0:
        extents = _extents(h, w, levels, margin)
        floats = extents[0] + 4 * sum(extents[1:]) + extents[1]
    shape = shape_of(n, c, h, w, last, floats, BACKWARD, kernel * kernel)
    taps = dict(K=kernel, PADDED=power_of_2(kernel * kernel), **shape.constants())
    lanes, work = shape.planes * shape.spots * kernel * kernel, n * shape.blocks
    if tiled == 0:
        size = shape.planes * floats + lanes
        programs = shape.programs(work)
        launch(
            kernels.backward_planes,
            (programs,),
            grad,
            x,
            down,
            _slots(weights),
            grad_x,
            sums.partial,
            _scratch(x, programs, size),
            size,
            n,
            c,
            h,
            w,
            levels,
            shape.blocks,
            sums.splits,
            offset,
            *grad.stride(),
            *x.stride(),
            *grad_x.stride(),
            MARGIN=margin,
            NEAREST=nearest,
            **taps,
        )
        return grad_x
    small = _halved(x, down, shape)
    coarse = _forward(small, down, weights[:-1], nearest, tiled - 1)
    programs = shape.programs(work * _bands(h))
    area = _scratch(x, programs, lanes)
    flow, down_flow = _empty(x, h, w, torch.float32, last), torch.empty_like(small)
    launch(
        kernels.merge_gradient_band,
        (programs,),
        grad,
        x,
        coarse,
        weights[-1],
        flow,
        sums.partial,
        area,
        n,
        c,
        h,
        w,
        shape.blocks,
        levels * sums.splits,
        *grad.stride(),
        *x.stride(),
        *coarse.stride(),
        *flow.stride(),
        BAND=BAND,
        NEAREST=nearest,
        **taps,
    )
    launch(
        kernels.up_gradient_band,
        (work, _bands(h)),
        flow,
        down_flow,
        n,
        c,
        h,
        w,
        shape.blocks,
        *flow.stride(),
        *down_flow.stride(),
        BAND=BAND,
        NEAREST=nearest,
        **shape.constants(),
    )
    down_flow = _backward(
        down_flow,
        small,
        down,
        weights[:-1],
        grad_weights[:-1],
        nearest,
        tiled - 1,
        sums,
        offset + n * _bands(h),
    )
    launch(
        kernels.halve_gradient_band,
        (programs,),
        down_flow,
        x,
        flow,
        down,
        grad_x,
        sums.partial,
        area,
        n,
        c,
        h,
        w,
        shape.blocks,
        offset,
        *down_flow.stride(),
        *x.stride(),
        *flow.stride(),
        *grad_x.stride(),
        BAND=BAND,
        **taps,
    )
    return grad_x


def _published(last: bool, dtype: torch.dtype, shape=(64, 64, 56, 56), levels: int = 4):
    """Arguments of the first block of RecNeXt-M3."""
    weight = meta(shape[1], 1, 5, 5, dtype=torch.float32)
    return meta(*shape, dtype=dtype, last=last), weight, [weight] * (levels + 1)


def _run_forward(*arguments):
    x, down, weights = _published(*arguments)
    forward(x, down, weights, 'bilinear')


def _run_backward(*arguments):
    x, down, weights = _published(*arguments)
    backward(x, x, down, weights, [], 'bilinear', [True] * 3)


_LARGE = (2, 64, 200, 336)

EXAMPLES = (
    Example(
        'forward-plain-bf16',
        lambda: _run_forward(False, torch.bfloat16),
        'forward_planes',
        registers=(128, 128),
        ffma=0.45,
        slow=True,
    ),
    Example(
        'forward-last-bf16',
        lambda: _run_forward(True, torch.bfloat16),
        'forward_planes',
        registers=(128, 128),
        ffma=0.45,
        slow=True,
    ),
    Example(
        'backward-plain-bf16',
        lambda: _run_backward(False, torch.bfloat16),
        'backward_planes',
        ffma=0.3,
        slow=True,
    ),
    Example(
        'backward-last-bf16',
        lambda: _run_backward(True, torch.bfloat16),
        'backward_planes',
        ffma=0.27,
        slow=True,
    ),
    Example(
        'sums', lambda: _run_backward(False, torch.bfloat16), 'add_splits', registers=(128, 128)
    ),
    Example(
        'bands-halve',
        lambda: _run_forward(False, torch.bfloat16, _LARGE),
        'halve_band',
        registers=(96, 96),
    ),
    Example(
        'bands-merge',
        lambda: _run_forward(False, torch.bfloat16, _LARGE),
        'merge_band',
        registers=(128, 128),
        ffma=0.4,
        slow=True,
    ),
    Example(
        'bands-merge-gradient',
        lambda: _run_backward(False, torch.bfloat16, _LARGE),
        'merge_gradient_band',
        ffma=0.3,
        slow=True,
    ),
    Example(
        'bands-up-gradient',
        lambda: _run_backward(False, torch.bfloat16, _LARGE),
        'up_gradient_band',
        registers=(96, 96),
    ),
    Example(
        'bands-halve-gradient',
        lambda: _run_backward(False, torch.bfloat16, _LARGE),
        'halve_gradient_band',
        ffma=0.25,
        slow=True,
    ),
)
