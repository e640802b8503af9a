"""Inception depthwise convolution of InceptionNeXt (Yu et al., CVPR 2024, Sec. 3.2).

The channels are split into an identity part and three equal branches: a small square kernel, a
horizontal and a vertical band. The identity part comes first in the authors' code and published
weights, unlike in the paper's formula. It is most of the map and needs no arithmetic, so a good
implementation moves it once and never through a framework's split and cat on top of that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.modules import NotScriptable, are_depthwise
from mmlk.ops.reference import inception_dwconv2d_reference


def inception_dwconv2d(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Identity, square, horizontal and vertical depthwise branches on a split of the channels.

    `inception_dwconv2d_reference` is the definition. The result has the memory layout of ``x``.

    Args:
        x: (N, C, H, W) with C >= 3g, channels in the order identity, square, horizontal, vertical.
        weight_hw: (g, 1, k, k), k odd.
        bias_hw: (g,).
        weight_w: (g, 1, 1, b), b odd.
        bias_w: (g,).
        weight_h: (g, 1, b, 1), b odd.
        bias_h: (g,).
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W) in the dtype of ``x``, or of autocast.

    Raises:
        ValueError: if shapes or dtypes do not fit.
    """
    args = _arguments(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h)
    return dispatch.run('inception_dwconv2d', *args, backend=backend)


def _arguments(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> tuple[Tensor | None, ...]:
    args = x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h
    if torch.jit.is_tracing():
        return args
    g = weight_hw.shape[0]
    if x.dim() != 4 or x.shape[1] < 3 * g:
        raise ValueError(
            f'inception_dwconv2d: x has shape {tuple(x.shape)}, '
            f'expected (N, C, H, W) with C >= {3 * g}'
        )
    for name, weight, bias, fixed in (
        ('hw', weight_hw, bias_hw, None),
        ('w', weight_w, bias_w, 2),
        ('h', weight_h, bias_h, 3),
    ):
        if (
            weight.dim() != 4
            or weight.shape[0] != g
            or weight.shape[1] != 1
            or (fixed is not None and weight.shape[fixed] != 1)
        ):
            raise ValueError(
                f'inception_dwconv2d: weight_{name} has shape {tuple(weight.shape)}, '
                f'which is no depthwise kernel of {g} channels in that direction'
            )
        if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ValueError(
                f'inception_dwconv2d: weight_{name} has the even kernel '
                f'{tuple(weight.shape[2:])}, both sides must be odd'
            )
        if bias is not None and bias.shape != (g,):
            raise ValueError(
                f'inception_dwconv2d: bias_{name} has shape {tuple(bias.shape)}, expected ({g},)'
            )
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f'inception_dwconv2d: x is {x.dtype} but weight_{name} is '
                f'{weight.dtype}, cast one of them or use autocast'
            )
    return args


class InceptionDWConv2d(NotScriptable, nn.Module):
    """`inception_dwconv2d` with its parameters under the published names.

    Args:
        in_channels: Channels C of input and output.
        square_kernel_size: Side of the square kernel, odd.
        band_kernel_size: Length of the two bands, odd.
        branch_ratio: Share of the channels in each branch: ``g = int(C * branch_ratio)``.

    Raises:
        ValueError: if a kernel is even or the branches get no channel or more than all.
    """

    def __init__(
        self,
        in_channels: int,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
    ):
        super().__init__()
        if square_kernel_size % 2 == 0 or band_kernel_size % 2 == 0:
            raise ValueError(
                f'InceptionDWConv2d: kernel sizes {square_kernel_size} and '
                f'{band_kernel_size} must both be odd'
            )
        g = int(in_channels * branch_ratio)
        if g < 1 or 3 * g > in_channels:
            raise ValueError(
                f'InceptionDWConv2d: branch_ratio {branch_ratio} of {in_channels} '
                f'channels gives branches of {g}; it must give between 1 and '
                f'{in_channels // 3}'
            )
        square, band = square_kernel_size, band_kernel_size
        self.in_channels = in_channels
        self.branch_channels = g
        self.dwconv_hw = nn.Conv2d(g, g, square, padding=square // 2, groups=g)
        self.dwconv_w = nn.Conv2d(g, g, (1, band), padding=(0, band // 2), groups=g)
        self.dwconv_h = nn.Conv2d(g, g, (band, 1), padding=(band // 2, 0), groups=g)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and x.shape[1] != self.in_channels:
            raise ValueError(
                f'InceptionDWConv2d: x has shape {tuple(x.shape)}, expected '
                f'{self.in_channels} channels'
            )
        hw, w, h = convolutions = self.dwconv_hw, self.dwconv_w, self.dwconv_h
        if not are_depthwise(*convolutions):
            g = self.branch_channels
            rest, *parts = x.split((self.in_channels - 3 * g, g, g, g), 1)
            return torch.cat((rest, *(conv(part) for conv, part in zip(convolutions, parts))), 1)
        return inception_dwconv2d(x, hw.weight, hw.bias, w.weight, w.bias, h.weight, h.bias)

    def extra_repr(self) -> str:
        g = self.branch_channels
        return f'split=({self.in_channels - 3 * g}, {g}, {g}, {g})'


dispatch.declare('inception_dwconv2d', _arguments, inception_dwconv2d_reference)
