"""Stem, blocks and downsampling of RecNeXt's M and A series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmlk.layers import (
    GELU,
    ConvNorm,
    ConvNormMlp,
    DropPath,
    ExpandingDepthwiseConv2d,
    RecAttn2d,
    add_conv_norm_mlp,
    build_norm,
    fold_conv_norms,
    fold_norm_after,
    fold_norm_before,
)
from mmlk.networks.base import Stage
from mmlk.ops import RecConv2d


class RecNeXtStem(nn.Module):
    """3x3 convolutions of stride 2 with GELU in between.

    Args:
        in_channels: Channels of the image.
        widths: Output channels of each convolution.
        last_activation: Whether a GELU follows the last convolution too.
        bias: Whether convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        last_activation: bool = False,
        bias: bool = False,
        norm_cfg: dict,
    ):
        super().__init__()
        layers = []
        for channels in widths:
            layers += [ConvNorm(in_channels, channels, 3, 2, bias=bias, norm_cfg=norm_cfg), GELU()]
            in_channels = channels
        self.stem = nn.Sequential(*(layers if last_activation else layers[:-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


class RecNeXtBlock(nn.Module):
    """``x + drop_path(channel_mixer(norm(token_mixer(x))))`` on (N, C, H, W) maps.

    Args:
        channels: Channels C.
        stage: Index of the stage; it sets the recursion, 4 - stage levels in the M series, and the
            heads, 2^(stage + 1) in the A series, whose attention carries its own norms.
        series: 'm' or 'a'.
        mlp_ratio: Hidden channels of the channel mixer per channel.
        drop_path: Probability of dropping a sample's residual.
        norm_cfg: Norm layer.
    """

    def __init__(
        self,
        channels: int,
        *,
        stage: int,
        series: str,
        mlp_ratio: float,
        drop_path: float,
        norm_cfg: dict,
    ):
        super().__init__()
        if series == 'm':
            self.token_mixer = RecConv2d(channels, 5, level=4 - stage)
            self.norm = build_norm(norm_cfg, channels)
        else:
            self.token_mixer = RecAttn2d(channels, 2 ** (stage + 1), norm_cfg=norm_cfg)
            self.norm = nn.Identity()
        self.channel_mixer = ConvNormMlp(
            channels, int(channels * mlp_ratio), bias=False, norm_cfg=norm_cfg
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_conv_norm_mlp(
            x, self.token_mixer(x), self.channel_mixer, self.norm, self.drop_path
        )

    def fold(self) -> None:
        """Fold every norm; the one between the mixers goes into the 1x1 convolution behind it."""
        fold_conv_norms(self)
        if not isinstance(self.norm, nn.Identity):
            self.channel_mixer[0] = fold_norm_before(self.norm, self.channel_mixer[0])
            self.norm = nn.Identity()
        self.channel_mixer.fold()


class RecNeXtDownsample(nn.Module):
    """``t + channel_mixer(t)`` with ``t = norm(conv(x))``, a 7x7 depthwise convolution of stride 2.

    Each channel makes two adjacent output channels. Odd sides are rounded up.

    Args:
        channels: Input channels C; the output has 2C.
        mlp_ratio: Hidden channels of the channel mixer per output channel.
        norm_cfg: Norm layer.
    """

    def __init__(self, channels: int, *, mlp_ratio: float, norm_cfg: dict):
        super().__init__()
        self.token_mixer = ExpandingDepthwiseConv2d(channels, 7, stride=2)
        self.norm = build_norm(norm_cfg, 2 * channels)
        self.channel_mixer = ConvNormMlp(
            2 * channels, int(2 * channels * mlp_ratio), bias=False, norm_cfg=norm_cfg
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.token_mixer(x))
        return add_conv_norm_mlp(x, x, self.channel_mixer)

    def fold(self) -> None:
        """Fold every norm; the first goes into the depthwise convolution."""
        fold_conv_norms(self)
        self.token_mixer = fold_norm_after(self.token_mixer, self.norm)
        self.norm = nn.Identity()
        self.channel_mixer.fold()


class RecNeXtStage(Stage):
    """Downsampling (absent in the first stage), then blocks."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stage: int,
        series: str,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        norm_cfg: dict,
    ):
        if stage and channels != 2 * in_channels:
            raise ValueError(
                f'RecNeXt: dims {in_channels} -> {channels} of stage {stage}: the '
                'downsampling of the M and A series doubles the channels'
            )
        downsample = (
            RecNeXtDownsample(in_channels, mlp_ratio=mlp_ratio, norm_cfg=norm_cfg)
            if stage
            else nn.Identity()
        )
        blocks = nn.ModuleList(
            RecNeXtBlock(
                channels,
                stage=stage,
                series=series,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                norm_cfg=norm_cfg,
            )
            for rate in drop_paths
        )
        super().__init__(downsample, blocks)

    def fold(self) -> None:
        """Fold the downsampling and every block."""
        for module in (self.downsample, *self.blocks):
            if not isinstance(module, nn.Identity):
                module.fold()
