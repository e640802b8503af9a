"""The definition of every operator in plain torch, written to be read; also the export path.

A function here has the signature of its public twin. ``backend`` is accepted for that reason only:
there is nothing to choose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """``value`` for both axes, unless it already is a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None,
                               stride: int | tuple[int, int] = 1, *,
                               backend: str | None = None) -> Tensor:
    """Each channel convolved with its own kernel, zero padded by ``k // 2`` per axis.

    ``y[n, c, i, j] = bias[c] + sum over (a, b) of
    weight[c, 0, a, b] * x[n, c, i * sh + a - kh // 2, j * sw + b - kw // 2]``, x being zero outside
    the map. At stride 1 the output has the input's size, otherwise ``ceil(size / stride)``.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw), kh and kw odd.
        bias: (C,).
        stride: Step in rows and columns.

    Returns:
        (N, C, ceil(H / sh), ceil(W / sw)).
    """
    kernel = weight.shape[2:]
    return F.conv2d(x, weight, bias, pair(stride), (kernel[0] // 2, kernel[1] // 2), 1, x.shape[1])


def inception_dwconv2d_reference(x: Tensor, weight_hw: Tensor, bias_hw: Tensor | None,
                                 weight_w: Tensor, bias_w: Tensor | None, weight_h: Tensor,
                                 bias_h: Tensor | None, *, backend: str | None = None) -> Tensor:
    """Identity, square, horizontal and vertical depthwise branches on a split of the channels.

    The channels are split in the order identity (C - 3g), square (g), horizontal band (g), vertical
    band (g) and come out in the same order. This is the order of the authors' code; the formula
    printed in the paper has the identity last. Neither bias nor kernel touches the identity part,
    which may be empty.

    Args:
        x: (N, C, H, W) with C >= 3g.
        weight_hw: (g, 1, k, k).
        bias_hw: (g,).
        weight_w: (g, 1, 1, b), along the width.
        bias_w: (g,).
        weight_h: (g, 1, b, 1), along the height.
        bias_h: (g,).

    Returns:
        (N, C, H, W).
    """
    g = weight_hw.shape[0]
    identity, square, wide, tall = torch.split(x, (x.shape[1] - 3 * g, g, g, g), dim=1)
    return torch.cat((
        identity,
        depthwise_conv2d_reference(square, weight_hw, bias_hw),
        depthwise_conv2d_reference(wide, weight_w, bias_w),
        depthwise_conv2d_reference(tall, weight_h, bias_h),
    ), dim=1)
