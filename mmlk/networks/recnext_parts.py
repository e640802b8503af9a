"""Stem and downsampling of RecNeXt's M and A series."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmlk.layers import (
    GELU,
    ConvNorm,
    ExpandingDepthwiseConv2d,
    add_conv_norm_mlp,
    build_norm,
    fold_conv_norms,
    fold_norm_after,
    has_affine_form,
)
from mmlk.networks.base import folded


class RecNeXtStem(nn.Module):
    """3x3 convolutions of stride 2 with GELU in between.

    Args:
        in_channels: Channels of the image.
        channels: Channels C of the last convolution; each one before has half as many.
        convolutions: How many; stride 2 each.
        last_activation: Whether a GELU follows the last convolution too.
        bias: Whether convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        convolutions: int = 2,
        last_activation: bool = False,
        bias: bool = False,
        norm_cfg: dict,
    ):
        super().__init__()
        layers = []
        for halvings in reversed(range(convolutions)):
            width = channels // 2**halvings
            layers += [ConvNorm(in_channels, width, 3, 2, bias=bias, norm_cfg=norm_cfg), GELU()]
            in_channels = width
        self.stem = nn.Sequential(*(layers if last_activation else layers[:-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


class RecNeXtDownsample(nn.Module):
    """``t + channel_mixer(t)`` with ``t = norm(conv(x))``, a 7x7 depthwise convolution of stride 2.

    Each channel makes two adjacent output channels. Odd sides are rounded up.

    Args:
        channels: Input channels C; the output has 2C.
        make_mixer: Makes the channel mixer from 2C.
        norm_cfg: Norm layer.
    """

    def __init__(self, channels: int, make_mixer: Callable[[int], nn.Module], *, norm_cfg: dict):
        super().__init__()
        self.token_mixer = ExpandingDepthwiseConv2d(channels, 7, stride=2)
        self.norm = build_norm(norm_cfg, 2 * channels)
        self.channel_mixer = make_mixer(2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.token_mixer(x))
        return add_conv_norm_mlp(x, x, self.channel_mixer)

    def fold(self) -> None:
        """Fold every norm; the first goes into the depthwise convolution."""
        fold_conv_norms(self)
        if has_affine_form(self.norm):
            self.token_mixer = fold_norm_after(self.token_mixer, self.norm)
            self.norm = nn.Identity()
        self.channel_mixer = folded(self.channel_mixer)
