"""Weights of matrix products in the order in which they are read: panels of 16 features.

A panel holds 16 features of every input one after the other. Weights that several blocks of rows need
are packed once; otherwise each task of the product packs the piece of a panel that it is about to use,
while it is in the nearest cache anyway, and fetches the next piece as it multiplies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel
from mmlk.ops.jit.tile import columns_of

AHEAD = 8
"""Rows from one being copied to one being fetched: the time that memory takes to answer."""


class Panels(NamedTuple):
    """A packed weight (N, K).

    Attributes:
        panels: (ceil(N / 16), K, 16); what stands beyond N does not matter.
        features: N.
    """

    panels: Tensor
    features: int


class Plain(NamedTuple):
    """A weight (N, K) as it is.

    Attributes:
        matrix: (N, K), rows or columns contiguous.
        factors: (K,), contiguous, to multiply the columns with.
    """

    matrix: Tensor
    factors: Tensor | None = None

    @property
    def transposed(self) -> bool:
        """Whether columns are contiguous."""
        down, along = self.matrix.stride()
        # A single row may have any stride down its one element, 1 too.
        return down == 1 and (self.matrix.shape[0] > 1 or along != 1)

    @property
    def stride(self) -> int:
        """Floats from one contiguous line to the next."""
        return self.matrix.stride(1 if self.transposed else 0)


def fill(
    k,
    panel,
    weight,
    factors,
    column,
    features,
    start,
    count,
    stride,
    buffer,
    *,
    transposed: bool,
    scaled: bool,
) -> None:
    """Write to ``panel`` the inputs from ``start`` on, ``count`` of them, of 16 features.

    Args:
        panel: Address of 16 ``count`` floats.
        weight: Address of the plain weight.
        factors: Address of the factors, if ``scaled``.
        column: The first of the features.
        features: N.
        start: The first input.
        count: Number of inputs.
        stride: `Plain.stride`.
        buffer: Variable for vectors of which a part is read or written.
        transposed: `Plain.transposed`.
        scaled: Whether there are factors.
    """

    def times_factor(vector, i):
        return k.b.fmul(vector, k.load_splat(factors, start + i)) if scaled else vector

    if transposed:
        left, corner = features - column, k.at(weight, start * stride + column)
        with k.loop(0, count) as i:
            k.prefetch(corner, (i + AHEAD) * stride)
            k.prefetch(corner, (i + AHEAD) * stride + (LANES - 1))
            k.store(
                times_factor(k.load_some(corner, i * stride, left, buffer), i), panel, i * LANES
            )
        return
    # Beyond the last row the last one is read again.
    lines = [k.at(weight, k.min(column + r, features - 1) * stride + start) for r in range(LANES)]
    whole = count - count % 4
    with k.loop(0, whole, 4) as i:
        for offset, vector in enumerate(columns_of(k, [k.load_four(line, i) for line in lines])):
            k.store(times_factor(vector, i + offset), panel, (i + offset) * LANES)
    with k.loop(whole, count) as i:
        for r, line in enumerate(lines):
            k.copy_float(k.at(line, i), k.at(panel, i * LANES + r))
        if scaled:
            k.store(times_factor(k.load(panel, i * LANES), i), panel, i * LANES)


def fetch(k, weight, column, features, start, stride, first, end, *, transposed: bool) -> None:
    """Bring lines ``first`` to ``end`` of those that `fill` will read closer.

    The arguments are those of `fill`; it reads about as many lines as it copies inputs.
    """
    with k.loop(first, end) as each:
        if transposed:
            k.prefetch(weight, (start + each) * stride + column + (LANES - 1))
        else:
            row = k.min(column + each % LANES, features - 1)
            k.prefetch(weight, row * stride + start + each // LANES * LANES)


@kernel('weight_p factors_p panels_p features depth stride')
def _pack(k, weight, factors, panels, features, depth, stride, *, transposed, scaled):
    """Task ``t`` writes panel ``t``."""
    column = k.task * LANES
    fill(
        k,
        k.at(panels, column * depth),
        weight,
        factors,
        column,
        features,
        k.int(0),
        depth,
        stride,
        k.variable(k.zero),
        transposed=transposed,
        scaled=scaled,
    )


def plain(weight: Tensor, factors: Tensor | None = None) -> Plain:
    """A float32 weight (N, K) as it is, where its rows or its columns are contiguous.

    Args:
        weight: (N, K).
        factors: (K,), contiguous, to multiply the columns of the weight with.

    Raises:
        ValueError: if an operand is not float32 on the CPU, or the factors do not fit.
    """
    for name, each in (('weight', weight), ('factors', factors)):
        if each is not None and not (each.dtype == torch.float32 and each.is_cpu):
            raise ValueError(
                f'plain: {name} {tuple(each.shape)}, {each.dtype} on {each.device}, is not '
                'float32 on the CPU'
            )
    if factors is not None and (factors.shape != weight.shape[1:] or not factors.is_contiguous()):
        raise ValueError(
            f'plain: factors {tuple(factors.shape)} with strides {factors.stride()} are '
            f'not {weight.shape[1]} contiguous numbers'
        )
    if weight.stride(1) != 1 and weight.stride(0) != 1:
        weight = weight.contiguous()
    return Plain(weight, factors)


def pack(weight: Tensor, factors: Tensor | None = None) -> Panels:
    """The panels of a weight; arguments and errors are those of `plain`."""
    source = plain(weight, factors)
    features, depth = weight.shape
    count = -(-features // LANES)
    panels = weight.new_empty(count, depth, LANES)
    _pack(transposed=source.transposed, scaled=factors is not None)(
        count,
        8 * weight.numel(),
        address(source.matrix),
        address(factors),
        address(panels),
        features,
        depth,
        source.stride,
    )
    return Panels(panels, features)
