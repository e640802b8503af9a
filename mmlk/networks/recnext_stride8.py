"""Blocks and stages of RecNeXt's stride-8 networks T, S and B, with and without shared channels.

Their stem has stride 8. Blocks mix locally with a depthwise 3x3 that absorbs its 1x1 and identity
branches when folded, and attend on a quarter of the channels only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers import (
    ConvNorm,
    ConvNormMlp,
    DropPath,
    LinearAttention2d,
    RecAttn2d,
    add_conv_norm_mlp,
    fold_conv_norms,
)
from mmlk.networks.base import Stage, run_blocks

SHARED_PERIOD = 5
"""With shared channels, every fifth block of the last stage reuses the attention before it."""


class RepMixer(nn.Module):
    """``lk(x) + sk(x) + x``: depthwise 3x3, depthwise 1x1 and identity, one 3x3 when folded."""

    def __init__(self, channels: int, norm_cfg: dict):
        super().__init__()
        self.lk = ConvNorm(channels, channels, 3, groups=channels, bias=True, norm_cfg=norm_cfg)
        self.sk = ConvNorm(channels, channels, 1, groups=channels, bias=True, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.lk(x) + self.sk(x) + x

    def fold(self) -> nn.Module:
        """The depthwise 3x3 convolution that equals this in eval mode."""
        conv, point = self.lk.fold(), self.sk.fold()
        conv.weight += F.pad(point.weight + 1, (1, 1, 1, 1))
        conv.bias += point.bias
        return conv


class PartialAttention(nn.Module):
    """Attention on the first channels, the others passed through.

    Args:
        channels: Channels C.
        full: Attend at full resolution, with queries half as wide as values, not recursively.
        norm_cfg: Norm layer.
    """

    def __init__(self, channels: int, *, full: bool, norm_cfg: dict):
        super().__init__()
        self.channels = channels // 4
        if full:
            self.attn = LinearAttention2d(
                self.channels,
                1,
                qk_channels=self.channels // 2,
                qk_groups=1,
                bias=True,
                norm_cfg=norm_cfg,
            )
        else:
            self.attn = RecAttn2d(self.channels, 1, bias=True, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed map, and its attended channels alone."""
        attended = self.attn(x[:, : self.channels])
        return torch.cat((attended, x[:, self.channels :]), 1), attended


class Stride8Block(nn.Module):
    """``y + drop_path(channel_mixer(token_mixer(y)))`` with ``y = rep_mixer(x)``.

    Args:
        channels: Channels C.
        attention: 'recursive', 'full', or 'shared': add what earlier blocks attended, four maps of
            C / 4 channels, instead of attending.
        mlp_ratio: Hidden channels of the channel mixer per channel.
        drop_path: Probability of dropping a sample's residual.
        norm_cfg: Norm layer.
    """

    def __init__(
        self, channels: int, *, attention: str, mlp_ratio: float, drop_path: float, norm_cfg: dict
    ):
        super().__init__()
        self.rep_mixer = RepMixer(channels, norm_cfg)
        self.shares = attention == 'shared'
        if not self.shares:
            self.token_mixer = PartialAttention(
                channels, full=attention == 'full', norm_cfg=norm_cfg
            )
        self.channel_mixer = ConvNormMlp(
            channels, int(channels * mlp_ratio), bias=True, norm_cfg=norm_cfg
        )
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, attended: tuple[Tensor, ...] | None = None
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """The block's output; with ``attended``, also what the next block is to get.

        Args:
            x: (N, C, H, W).
            attended: What the blocks before have attended, (N, C / 4, H, W) each; None where no later
                block adds it.

        Returns:
            (N, C, H, W), and ``attended`` with this block's own, or empty once it has been added.
            Nothing is handed on by a write to an argument: offloading and data-parallel libraries
            copy the arguments of a call.
        """
        x = self.rep_mixer(x)
        if self.shares:
            mixed, attended = x + torch.cat(attended, 1), ()
        else:
            mixed, latest = self.token_mixer(x)
            attended = None if attended is None else (*attended, latest)
        y = add_conv_norm_mlp(x, mixed, self.channel_mixer, drop_path=self.drop_path)
        return y if attended is None else (y, attended)

    def fold(self) -> None:
        """Fold every norm and the three local branches."""
        self.rep_mixer = self.rep_mixer.fold()
        fold_conv_norms(self)
        self.channel_mixer.fold()


class _SharingBlocks(nn.Module):
    """A run of blocks that share attention; the unit of recomputation."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        attended: tuple[Tensor, ...] = ()
        for block in self.blocks:
            x, attended = block(x, attended)
        return x


class Stride8Downsample(nn.Module):
    """``t + drop_path(channel_mixer(t))``, ``t`` a normed, grouped 5x5 convolution of stride 2."""

    def __init__(
        self, in_channels: int, channels: int, *, mlp_ratio: float, drop_path: float, norm_cfg: dict
    ):
        super().__init__()
        self.token_mixer = ConvNorm(
            in_channels,
            channels,
            5,
            2,
            math.gcd(in_channels, channels),
            bias=True,
            norm_cfg=norm_cfg,
        )
        self.channel_mixer = ConvNormMlp(
            channels, int(channels * mlp_ratio), bias=True, norm_cfg=norm_cfg
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return add_conv_norm_mlp(x, x, self.channel_mixer, drop_path=self.drop_path)

    def fold(self) -> None:
        """Fold every norm."""
        fold_conv_norms(self)
        self.channel_mixer.fold()


class Stride8Stage(Stage):
    """Downsampling (absent in the first stage), then blocks.

    The last stage attends at full resolution. With shared channels so does the third, and every
    `SHARED_PERIOD`-th block of the last one reuses attention.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stage: int,
        shared: bool,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        norm_cfg: dict,
    ):
        downsample = (
            Stride8Downsample(
                in_channels,
                channels,
                mlp_ratio=mlp_ratio,
                drop_path=drop_paths[0],
                norm_cfg=norm_cfg,
            )
            if stage
            else nn.Identity()
        )
        plain = 'full' if stage == 3 or (shared and stage == 2) else 'recursive'
        sharing = shared and stage == 3

        def attention(index: int) -> str:
            reuses = sharing and index % SHARED_PERIOD == SHARED_PERIOD - 1
            return 'shared' if reuses else plain

        blocks = nn.ModuleList(
            Stride8Block(
                channels,
                attention=attention(i),
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                norm_cfg=norm_cfg,
            )
            for i, rate in enumerate(drop_paths)
        )

        super().__init__(downsample, blocks)
        self.sharing = sharing

    def forward(self, x: Tensor) -> Tensor:
        if not self.sharing:
            return super().forward(x)
        x = self.downsample(x)
        runs = [
            _SharingBlocks(self.blocks[start : start + SHARED_PERIOD])
            for start in range(0, len(self.blocks), SHARED_PERIOD)
        ]
        return run_blocks(runs, x, self.recomputes and self.training)

    def fold(self) -> None:
        """Fold the downsampling and every block."""
        for module in (self.downsample, *self.blocks):
            if not isinstance(module, nn.Identity):
                module.fold()
