"""Convolutions on the package's operators, with the parameters of ``nn.Conv2d``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers.fold import fold_norm_after, has_affine_form
from mmlk.layers.norm import build_norm
from mmlk.ops import DepthwiseConv2d, PointwiseConv2d, expanding_depthwise_conv2d
from mmlk.ops.maps import channels_last
from mmlk.ops.modules import NotScriptable, pads_evenly


class ExpandingDepthwiseConv2d(NotScriptable, nn.Conv2d):
    """Depthwise convolution in which each channel makes ``multiplier`` adjacent output channels.

    Output channel ``c * multiplier + i`` is channel c convolved with its i-th kernel, as in a
    grouped ``nn.Conv2d``; computed by `expanding_depthwise_conv2d`.

    Args:
        channels: Input channels C.
        kernel_size: Side k, odd; padding is ``k // 2``.
        stride: Step in rows and columns.
        multiplier: Outputs per channel.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, multiplier: int = 2):
        super().__init__(
            channels, channels * multiplier, kernel_size, stride, kernel_size // 2, groups=channels
        )
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        if not pads_evenly(self):
            return super().forward(x)
        return expanding_depthwise_conv2d(x, self.weight, self.bias, self.stride)


class GELU(nn.GELU):
    """Exact GELU; torch gets a channels-last map as a view that is contiguous.

    torch's vectorised code asks for plain strides and takes half as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and channels_last(x):
            return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.gelu(x)


class ConvNorm(nn.Module):
    """Convolution and norm under the names ``conv`` and ``norm``.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Side k, odd; padding is ``k // 2``.
        stride: Step in rows and columns.
        groups: Groups of the convolution.
        bias: Whether the convolution has a bias in front of the norm's.
        norm_cfg: Norm layer, as for `build_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        bias: bool = False,
        norm_cfg: dict,
    ):
        super().__init__()
        if kernel_size == 1 and stride == 1 and groups < in_channels:
            self.conv = PointwiseConv2d(in_channels, out_channels, 1, groups=groups, bias=bias)
        elif groups == in_channels == out_channels:
            self.conv = DepthwiseConv2d(in_channels, kernel_size, stride, bias=bias)
        else:
            self.conv = nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                kernel_size // 2,
                groups=groups,
                bias=bias,
            )
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self) -> nn.Module:
        """The convolution that equals this in eval mode; this itself where no constants do."""
        return fold_norm_after(self.conv, self.norm) if has_affine_form(self.norm) else self


def fold_conv_norms(module: nn.Module) -> None:
    """Replace, in place, every `ConvNorm` below ``module`` by its folded convolution."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, child.fold())
        else:
            fold_conv_norms(child)
