"""Depthwise convolution on CUDA cores with register tiles (channels-last)."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from mmlk.ops.triton.runtime import cdiv, jit, launch


@jit(do_not_specialize=('height', 'width', 'out_height', 'out_width'))
def forward_last(x, weight, bias, y, height, width, out_height, out_width, channels,
                 x_image, x_row, x_column, w_channel, w_row, w_column,
                 STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KH: tl.constexpr,
                 KW: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
                 CHANNELS: tl.constexpr):
    """COLUMNS x ROWS outputs of CHANNELS channels."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    c_ok = c < channels
    tiles = tl.cdiv(out_width, COLUMNS)
    h = (tl.program_id(1) // tiles) * ROWS + tl.arange(0, ROWS)
    w_first = (tl.program_id(1) % tiles) * COLUMNS
    n = tl.program_id(2).to(tl.int64)
    image = x + n * x_image
    acc = ()
    for _ in tl.static_range(COLUMNS):
        acc = acc + (tl.zeros((ROWS, CHANNELS), tl.float32),)
    for kh in range(KH):
        row = h * STRIDE_H + kh - KH // 2
        row_ok = ((row >= 0) & (row < height))[:, None] & c_ok[None, :]
        taps = ()
        for kw in tl.static_range(KW):
            tap = tl.load(weight + c * w_channel + kh * w_row + kw * w_column, mask=c_ok, other=0.0)
            taps = taps + (tap.to(tl.float32),)
        source = image + row[:, None] * x_row + c[None, :]
        for j in tl.static_range((COLUMNS - 1) * STRIDE_W + KW):
            column = w_first * STRIDE_W + j - KW // 2
            value = tl.load(source + column * x_column,
                            mask=row_ok & (column >= 0) & (column < width), other=0.0)
            value = value.to(tl.float32)
            for r in tl.static_range(COLUMNS):
                if j - r * STRIDE_W >= 0 and j - r * STRIDE_W < KW:
                    acc = (acc[:r] + (acc[r] + value * taps[j - r * STRIDE_W][None, :],)
                           + acc[r + 1:])
    offset = tl.zeros((CHANNELS,), tl.float32)
    if bias is not None:
        offset = tl.load(bias + c, mask=c_ok, other=0.0).to(tl.float32)
    target = y + (n * out_height * out_width + h[:, None] * out_width) * channels + c[None, :]
    for r in tl.static_range(COLUMNS):
        w = w_first + r
        tl.store(target + w * channels, (acc[r] + offset[None, :]).to(y.dtype.element_ty),
                 mask=(h < out_height)[:, None] & c_ok[None, :] & (w < out_width))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    n, c, h, w = x.shape
    out_h, out_w = cdiv(h, stride[0]), cdiv(w, stride[1])
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty((n, c, out_h, out_w), dtype=x.dtype, device=x.device,
                    memory_format=torch.channels_last)
    columns, rows, channels = 7, 4, 64
    launch(forward_last, (cdiv(c, channels), cdiv(out_h, rows) * cdiv(out_w, columns), n),
           x, weight, bias, y, h, w, out_h, out_w, c, x.stride(0), x.stride(2), x.stride(3),
           weight.stride(0), weight.stride(2), weight.stride(3), STRIDE_H=stride[0],
           STRIDE_W=stride[1], KH=weight.shape[2], KW=weight.shape[3], COLUMNS=columns, ROWS=rows,
           CHANNELS=channels, num_warps=1)
    return y
