"""Construction of 2-D DCLS kernels on CUDA, forward and backward in one launch each.

An element spreads over its window as a product of one profile per axis, so it needs the
kh + kw values of its profiles, never the kh x kw x elements grid of the definition.

* Forward: one program holds one kernel (kh, kw) in registers and adds the outer product of the
  elements' profiles, one element after the other.
* Backward: one program holds the gradient of one kernel and takes ELEMENTS of its elements: products
  with the profile of one axis give the gradient of the other's, which the profile's slopes turn
  into gradients of position and width.

Bytes: weight, positions and widths once, the kernel once (backward: its gradient once per ELEMENTS
elements, from L2); at 768 channels of 34 elements and 17 x 17 cells 0.4 MB and 0.9 MB, so a launch
takes longer than the memory. About kh * kw multiplications an element forward and three times that
backward. Everything is float32 and summed inside one program in fixed order; no atomics.

Conventions are those of `mmlk.ops.dcls.construct`: at an integer position the slope of ``v0`` is the
right-hand one, that of ``v1`` and ``max`` zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from mmlk.ops.triton.runtime import Example, cdiv, jit, launch, meta, power_of_2

ELEMENTS = 4  # of a backward program: 4 x 32 x 32 products are 32 values a thread of four warps
SIZES = ('kernels', 'count')

_EPSILON = tl.constexpr(1e-7)


@jit
def _profile(cell, position, width, SIDE: tl.constexpr, VERSION: tl.constexpr):
    """Profile of an element, zero outside the window of SIDE cells; not finite where it is not."""
    if VERSION == 'v0':
        lower = tl.floor(position)
        part = position - lower
        value = (1.0 - part) * (cell == lower).to(tl.float32) + part * (cell == lower + 1.0).to(
            tl.float32
        )
    elif VERSION == 'gauss':
        away = (cell - position) / width
        value = tl.exp(-0.5 * away * away)
    else:
        value = width - tl.abs(cell - position)
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(cell < SIDE, value, 0.0)


@jit
def _slopes(cell, position, width, profile, VERSION: tl.constexpr):
    """Derivatives of a profile with respect to position and width."""
    if VERSION == 'v0':
        lower = tl.floor(position)
        by_position = (cell == lower + 1.0).to(tl.float32) - (cell == lower).to(tl.float32)
        by_width = profile * 0.0
    elif VERSION == 'gauss':
        away = (cell - position) / width
        by_position = profile * away / width
        by_width = by_position * away
    else:
        by_width = (profile > 0.0).to(tl.float32)
        by_position = by_width * (
            (cell > position).to(tl.float32) - (cell < position).to(tl.float32)
        )
    return by_position, by_width


@jit
def _element(positions, sigma, at, step, ok, SIDE: tl.constexpr, VERSION: tl.constexpr):
    """Position from the first cell along an axis, and width, of elements ``at`` of a component."""
    position = tl.load(positions + step + at, mask=ok, other=0.0).to(tl.float32) + SIDE // 2
    width = (at * 0).to(tl.float32) + 1.0
    if VERSION == 'max' or VERSION == 'gauss':
        width = tl.abs(tl.load(sigma + step + at, mask=ok, other=0.0).to(tl.float32))
        width += 1.0 if VERSION == 'max' else 0.27
    return position, width


@jit(do_not_specialize=SIZES)
def build(
    weight,
    positions,
    sigma,
    kernel,
    kernels,
    count,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VERSION: tl.constexpr,
):
    """One kernel. Component 0 of the positions moves along rows for ``v0``, else along columns."""
    pid = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    component = kernels.to(tl.int64) * count
    by_row = 0 if VERSION == 'v0' else component
    by_column = component if VERSION == 'v0' else 0
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for element in range(0, count):
        at = pid * count + element
        share = tl.load(weight + at).to(tl.float32)
        p, s = _element(positions, sigma, at, by_row, True, KH, VERSION)
        tall = _profile(row.to(tl.float32), p, s, KH, VERSION)
        p, s = _element(positions, sigma, at, by_column, True, KW, VERSION)
        wide = _profile(column.to(tl.float32), p, s, KW, VERSION)
        if VERSION != 'v0':
            share = share / (tl.sum(tall, 0) * tl.sum(wide, 0) + _EPSILON)
        total += (tall * share)[:, None] * wide[None, :]
    tl.store(
        kernel + pid * (KH * KW) + row[:, None] * KW + column[None, :],
        total,
        mask=(row < KH)[:, None] & (column < KW)[None, :],
    )


@jit(do_not_specialize=SIZES)
def build_gradient(
    grad,
    weight,
    positions,
    sigma,
    grad_weight,
    grad_positions,
    grad_sigma,
    kernels,
    count,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ELEMENTS: tl.constexpr,
    VERSION: tl.constexpr,
):
    """Gradients of ELEMENTS elements of one kernel."""
    pid = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    ok = element < count
    at = pid * count + element
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    component = kernels.to(tl.int64) * count
    by_row = 0 if VERSION == 'v0' else component
    by_column = component if VERSION == 'v0' else 0
    g = tl.load(
        grad + pid * (KH * KW) + row[:, None] * KW + column[None, :],
        mask=(row < KH)[:, None] & (column < KW)[None, :],
        other=0.0,
    ).to(tl.float32)
    share = tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    p, s = _element(positions, sigma, at, by_row, ok, KH, VERSION)
    q, t = _element(positions, sigma, at, by_column, ok, KW, VERSION)
    rows = row.to(tl.float32)[None, :]
    columns = column.to(tl.float32)[None, :]
    tall = _profile(rows, p[:, None], s[:, None], KH, VERSION)
    wide = _profile(columns, q[:, None], t[:, None], KW, VERSION)
    by_tall = tl.sum(g[None, :, :] * wide[:, None, :], 2)
    by_wide = tl.sum(g[None, :, :] * tall[:, :, None], 1)
    inside = tl.sum(by_tall * tall, 1)
    if VERSION == 'v0':
        tl.store(grad_weight + at, inside.to(grad_weight.dtype.element_ty), mask=ok)
        by_tall = by_tall * share[:, None]
        by_wide = by_wide * share[:, None]
    else:
        height = tl.sum(tall, 1)
        length = tl.sum(wide, 1)
        mass = height * length + _EPSILON
        tl.store(grad_weight + at, (inside / mass).to(grad_weight.dtype.element_ty), mask=ok)
        scale = share / mass
        loss = inside * scale / mass
        by_tall = by_tall * scale[:, None] - (loss * length)[:, None]
        by_wide = by_wide * scale[:, None] - (loss * height)[:, None]
    # Filling cells beyond the window have no gradient, as their profiles are constant.
    by_tall = tl.where(rows < KH, by_tall, 0.0)
    by_wide = tl.where(columns < KW, by_wide, 0.0)
    moved, widened = _slopes(rows, p[:, None], s[:, None], tall, VERSION)
    _store(
        grad_positions,
        grad_sigma,
        sigma,
        at,
        by_row,
        ok,
        tl.sum(by_tall * moved, 1),
        tl.sum(by_tall * widened, 1),
        VERSION,
    )
    moved, widened = _slopes(columns, q[:, None], t[:, None], wide, VERSION)
    _store(
        grad_positions,
        grad_sigma,
        sigma,
        at,
        by_column,
        ok,
        tl.sum(by_wide * moved, 1),
        tl.sum(by_wide * widened, 1),
        VERSION,
    )


@jit
def _store(grad_positions, grad_sigma, sigma, at, step, ok, moved, widened, VERSION: tl.constexpr):
    """Gradients of one component of positions and, through the magnitude, of sigma."""
    tl.store(grad_positions + step + at, moved.to(grad_positions.dtype.element_ty), mask=ok)
    if VERSION == 'max' or VERSION == 'gauss':
        sign = tl.load(sigma + step + at, mask=ok, other=0.0).to(tl.float32)
        widened = widened * ((sign > 0.0).to(tl.float32) - (sign < 0.0).to(tl.float32))
        tl.store(grad_sigma + step + at, widened.to(grad_sigma.dtype.element_ty), mask=ok)


def _window(kernel_size: Sequence[int], version: str) -> dict:
    """Constants of both kernels: sides, and the powers of two that hold them."""
    kh, kw = kernel_size
    rows, columns = power_of_2(kh), power_of_2(kw)
    return dict(KH=kh, KW=kw, ROWS=rows, COLUMNS=columns, VERSION=version)


def forward(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    version: str,
) -> Tensor:
    """`mmlk::dcls_kernel` of two axes: (O, I, kh, kw) in float32."""
    weight, positions = weight.contiguous(), positions.contiguous()
    sigma = None if sigma is None else sigma.contiguous()
    count = weight.shape[-1]
    kernels = weight.numel() // count
    kernel = torch.empty(
        (*weight.shape[:2], *kernel_size), dtype=torch.float32, device=weight.device
    )
    constants = _window(kernel_size, version)
    launch(
        build,
        (kernels,),
        weight,
        positions,
        sigma,
        kernel,
        kernels,
        count,
        num_warps=max(1, constants['ROWS'] * constants['COLUMNS'] // 1024),
        **constants,
    )
    return kernel


def backward(
    grad: Tensor,
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    version: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::dcls_kernel_backward`: gradients of weight, positions and sigma in their dtypes."""
    grad, weight, positions = grad.contiguous(), weight.contiguous(), positions.contiguous()
    sigma = None if sigma is None else sigma.contiguous()
    count = weight.shape[-1]
    kernels = weight.numel() // count
    grads = [torch.empty_like(each) for each in (weight, positions)]
    grad_sigma = weight.new_empty(0) if sigma is None else torch.empty_like(sigma)
    constants = _window(kernel_size, version)
    large = constants['ROWS'] * constants['COLUMNS'] > 1024
    elements = 1 if large else ELEMENTS
    launch(
        build_gradient,
        (kernels, cdiv(count, elements)),
        grad,
        weight,
        positions,
        sigma,
        *grads,
        grad_sigma,
        kernels,
        count,
        ELEMENTS=elements,
        num_warps=4,
        **constants,
    )
    return *grads, grad_sigma


def _published(version: str):
    """Arguments of a stage 3 layer of ConvNeXt-T-dcls."""
    weight, positions = (meta(*shape, 384, 1, 34, dtype=torch.float32) for shape in ((), (2,)))
    return weight, positions, None if version in ('v0', 'v1') else positions, (17, 17), version


def _gradient(version: str):
    return backward(meta(384, 1, 17, 17, dtype=torch.float32), *_published(version))


EXAMPLES = tuple(
    example
    for version in ('v0', 'gauss')
    for example in (
        Example(
            f'forward-{version}',
            lambda version=version: forward(*_published(version)),
            kernel='build',
            registers=(80, 80),
        ),
        Example(
            f'backward-{version}',
            lambda version=version: _gradient(version),
            kernel='build_gradient',
            registers=(80, 80),
        ),
    )
)
