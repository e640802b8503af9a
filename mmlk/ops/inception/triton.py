"""The Inception operator on CUDA: one launch forward, two backward.

Forward, every element of the map is read and written once (plus halos, which the caches hold), for
about four multiply-adds an element on average: memory bounds it. Backward, the first launch leaves
partial gradients of the weights and biases, of which it reads the three branches only; the second
computes the gradient of the input, by the forward kernel with reversed taps, and adds the partial
gradients up. Partial sums are float32, their number follows from shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops.depthwise.triton import arranged
from mmlk.ops.depthwise.triton_direct import (
    TAP_SUMS,
    lanes_plain,
    least_padded,
    strides,
    tap_block,
    taps_at_once,
    vector,
)
from mmlk.ops.inception.triton_kernels import (
    inception_last,
    inception_plain,
    inception_taps_last,
    inception_taps_plain,
)
from mmlk.ops.maps import channels_last
from mmlk.ops.triton.runtime import Example, cdiv, launch, meta, splits

STRIP = 7  # outputs per thread and channel; more would cost the occupancy that memory needs
COPIED = 2048  # elements of a contiguous map that one program copies
REGISTERS = 144  # cap that lets 14 warps share a processor, the least without spills
TOGETHER = 8  # partial sums read at once


def forward(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    """`mmlk::inception_dwconv2d` for CUDA tensors (or CPU tensors in the interpreter)."""
    last = channels_last(x)
    y = _like(x, last)
    weights = [each.contiguous() for each in (weight_hw, weight_w, weight_h)]
    _convolve(_dense(x, last), weights, (bias_hw, bias_w, bias_h), y, last, flip=False)
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight_hw: Tensor,
    weight_w: Tensor,
    weight_h: Tensor,
    mask: Sequence[bool],
) -> list[Tensor]:
    """`mmlk::inception_dwconv2d_backward`: gradients of map, weights and biases ``mask`` asks for."""
    last = channels_last(x)
    weights = [each.contiguous() for each in (weight_hw, weight_w, weight_h)]
    grad, partial, gradients = _dense(grad, last), None, (None,) * 6
    if any(mask[1:]):
        partial = (_tap_sums_last if last else _tap_sums_plain)(grad, _dense(x, last), weights)
        gradients = [
            weight.new_empty(shape)
            for weight in weights
            for shape in (weight.shape, weight.shape[:1])
        ]
    grad_x = _like(x, last) if mask[0] else None
    _convolve(grad, weights, (None,) * 3, grad_x, last, True, partial, gradients)
    results = [grad_x if mask[0] else x.new_empty(0)]
    for index, wanted in enumerate(mask[1:]):
        results.append(gradients[index] if wanted else weights[index // 2].new_empty(0))
    return results


def _like(x: Tensor, last: bool) -> Tensor:
    return torch.empty(
        x.shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _dense(x: Tensor, last: bool) -> Tensor:
    """``x`` with channels contiguous, or with dense planes; a slice of channels is not copied."""
    x = arranged(x, last)
    h, w = x.shape[2:]
    fits = last or (h == 1 or x.stride(2) == w) and (x.shape[1] == 1 or x.stride(1) == h * w)
    return x if fits else x.contiguous()


def _convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    y: Tensor | None,
    last: bool,
    flip: bool,
    partial: Tensor | None = None,
    gradients: Sequence[Tensor | None] = (None,) * 6,
) -> None:
    """Fill ``y`` from ``x``, with reversed taps if ``flip``, and ``gradients`` from ``partial``.

    Either may be missing.
    """
    if y is None and partial is None:
        return
    n, c, h, w = x.shape
    branch, side, band = weights[0].shape[0], weights[0].shape[2], weights[1].shape[3]
    parts, additions = (0, 0) if partial is None else (partial.shape[0], cdiv(partial.shape[1], 32))
    images = 0 if y is None else n
    y = x if y is None else y
    arguments = [x]
    for pair in zip(weights, biases):
        arguments += pair
    arguments += [y, partial, *gradients, h, w, parts, additions, c, branch, side, band]
    if last:
        channels, copied, rows = _lanes_last(branch)
        tiles = max(cdiv(a, STRIP) * cdiv(b, rows) for a, b in ((w, h), (h, w)))
        roles = cdiv(c - 3 * branch, copied) + 3 * cdiv(branch, channels)
        launch(
            inception_last,
            (additions + images * tiles * roles,),
            *arguments,
            x.stride(0),
            x.stride(2),
            y.stride(0),
            y.stride(2),
            X_COLUMN=x.stride(3),
            Y_COLUMN=y.stride(3),
            FLIP=int(flip),
            SIDE_TAPS=taps_at_once(side),
            BAND_TAPS=taps_at_once(band),
            COLUMNS=STRIP,
            ROWS=rows,
            CHANNELS=channels,
            COPIED=copied,
            VECTOR=vector(c, branch, *strides(x), *strides(y)),
            SPLITS=TOGETHER,
            num_warps=1,
            maxnreg=REGISTERS,
        )
        return
    width, planes = lanes_plain(w, branch, 64)
    roles = cdiv((c - 3 * branch) * h * w, COPIED) + 3 * cdiv(branch, planes) * cdiv(
        w, width
    ) * cdiv(h, STRIP)
    launch(
        inception_plain,
        (additions + images * roles,),
        *arguments,
        x.stride(0),
        y.stride(0),
        FLIP=int(flip),
        SIDE_TAPS=taps_at_once(side),
        BAND_TAPS=taps_at_once(band),
        ROWS=STRIP,
        WIDTH=width,
        PLANES=planes,
        COPIED=COPIED,
        SPLITS=TOGETHER,
        num_warps=1,
        maxnreg=REGISTERS,
    )


def _lanes_last(branch: int) -> tuple[int, int, int]:
    """Channels of a branch and untouched channels per program, and rows: 4 and 8 elements a lane."""
    channels = least_padded(branch, (64, 32, 16))
    rows = 128 // channels
    return channels, 256 // rows, rows


def _partial(x: Tensor, weights: Sequence[Tensor], parts: int) -> Tensor:
    taps = sum(each.shape[2] * each.shape[3] + 1 for each in weights)
    return x.new_empty((parts, taps * weights[0].shape[0]), dtype=torch.float32)


def _tap_sums_last(grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    n, c, h, w = x.shape
    branch, side, band = weights[0].shape[0], weights[0].shape[2], weights[1].shape[3]
    channels = least_padded(branch, (64, 32, 16))
    warps = 4 if n * min(h, w) >= 64 else 1
    rows = warps * 128 // channels
    side_rows, side_taps = tap_block((side, side), TAP_SUMS)
    band_taps = taps_at_once(band)
    roles = cdiv(side, side_rows) * cdiv(side, side_taps) + 2 * cdiv(band, band_taps)
    programs = roles * cdiv(branch, channels)
    parts = splits(n * min(h, w), programs, 2 * rows)
    partial = _partial(x, weights, parts)
    launch(
        inception_taps_last,
        (programs, parts),
        x,
        grad,
        partial,
        n,
        h,
        w,
        c,
        branch,
        side,
        band,
        x.stride(0),
        x.stride(2),
        grad.stride(0),
        grad.stride(2),
        X_COLUMN=x.stride(3),
        G_COLUMN=grad.stride(3),
        SIDE_ROWS=side_rows,
        SIDE_TAPS=side_taps,
        BAND_TAPS=band_taps,
        COLUMNS=STRIP,
        ROWS=rows,
        CHANNELS=channels,
        VECTOR=vector(c, branch, *strides(x), *strides(grad)),
        num_warps=warps,
    )
    return partial


def _tap_sums_plain(grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    n, c, h, w = x.shape
    branch, side, band = weights[0].shape[0], weights[0].shape[2], weights[1].shape[3]
    width, planes = lanes_plain(w, branch, 32)
    side_columns, side_taps = tap_block((side, side), TAP_SUMS)
    band_taps = taps_at_once(band)
    roles = cdiv(side, side_taps) * cdiv(side, side_columns) + 2 * cdiv(band, band_taps)
    programs = roles * cdiv(branch, planes)
    parts = splits(n * cdiv(h, STRIP), programs, 2)
    partial = _partial(x, weights, parts)
    launch(
        inception_taps_plain,
        (programs, parts),
        x,
        grad,
        partial,
        n,
        h,
        w,
        c,
        branch,
        side,
        band,
        x.stride(0),
        grad.stride(0),
        SIDE_COLUMNS=side_columns,
        SIDE_TAPS=side_taps,
        BAND_TAPS=band_taps,
        ROWS=STRIP,
        WIDTH=width,
        PLANES=planes,
        num_warps=1,
    )
    return partial


def _example(name: str, kernel: str, dtype: torch.dtype, last: bool, **expectations) -> Example:
    """One launch of the operator of InceptionNeXt-T's first stage."""
    g, names = 12, ((3, 3), (1, 11), (11, 1))

    def call():
        x = meta(64, 96, 56, 56, dtype=dtype, last=last)
        weights = [meta(g, 1, *size, dtype=torch.float32) for size in names]
        bias = meta(g, dtype=torch.float32)
        if name.startswith('forward'):
            forward(x, weights[0], bias, weights[1], bias, weights[2], bias)
        else:
            backward(x, x, *weights, [True] * 7)

    return Example(name, call, kernel, **expectations)


EXAMPLES = (
    _example(
        'forward-last-bf16',
        'inception_last',
        torch.bfloat16,
        True,
        registers=(144, 144),
        ffma=0.4,
        slow=True,
    ),
    _example(
        'gradient-last-bf16',
        'inception_last',
        torch.bfloat16,
        True,
        registers=(144, 144),
        ffma=0.4,
        slow=True,
    ),
    _example(
        'taps-last-bf16',
        'inception_taps_last',
        torch.bfloat16,
        True,
        registers=(248, 248),
        ffma=0.5,
        slow=True,
    ),
    _example(
        'forward-plain-fp16',
        'inception_plain',
        torch.float16,
        False,
        registers=(152, 152),
        ffma=0.33,
        slow=True,
    ),
    _example(
        'gradient-plain-bf16',
        'inception_plain',
        torch.bfloat16,
        False,
        registers=(152, 152),
        ffma=0.33,
        slow=True,
    ),
    _example(
        'taps-plain-fp32',
        'inception_taps_plain',
        torch.float32,
        False,
        registers=(176, 176),
        ffma=0.33,
        slow=True,
    ),
)
