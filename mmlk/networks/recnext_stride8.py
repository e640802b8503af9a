"""Blocks and stages of RecNeXt's stride-8 networks T, S and B, with and without shared channels.

Their stem has stride 8. Blocks mix locally with a depthwise 3x3 that absorbs its 1x1 and identity
branches when folded, and attend on a quarter of the channels only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers import (
    ConvNorm,
    DropPath,
    LinearAttention2d,
    RecAttn2d,
    add_conv_norm_mlp,
    fold_conv_norms,
)
from mmlk.networks.base import Stage, run_blocks
from mmlk.networks.templates import MakeMixer, RecNeXtTemplate

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


class SharedAttention(nn.Module):
    """Adds what earlier blocks attended, four maps of C / 4 channels, instead of attending.

    Args:
        channels: Channels C.
    """

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor, attended: tuple[Tensor, ...]) -> Tensor:
        return x + torch.cat(attended, 1)


class Stride8Block(nn.Module):
    """``y + drop_path(channel_mixer(token_mixer(y)))`` with ``y = rep_mixer(x)``.

    Args:
        channels: Channels C.
        token_mixer: `PartialAttention` or `SharedAttention`.
        channel_mixer: Maps (N, C, H, W) to the same shape.
        drop_path: Probability of dropping a sample's residual.
        norm_cfg: Norm layer.
    """

    mixer_name = 'token_mixer'

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        channel_mixer: nn.Module,
        *,
        drop_path: float,
        norm_cfg: dict,
    ):
        super().__init__()
        self.rep_mixer = RepMixer(channels, norm_cfg)
        self.token_mixer = token_mixer
        self.shares = isinstance(token_mixer, SharedAttention)
        self.channel_mixer = channel_mixer
        self.drop_path = DropPath(drop_path)

    @property
    def mixer(self) -> nn.Module:
        """The token mixer."""
        return self.token_mixer

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
            mixed, attended = self.token_mixer(x, attended), ()
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
        self,
        in_channels: int,
        channels: int,
        channel_mixer: nn.Module,
        *,
        drop_path: float,
        norm_cfg: dict,
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
        self.channel_mixer = channel_mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return add_conv_norm_mlp(x, x, self.channel_mixer, drop_path=self.drop_path)

    def fold(self) -> None:
        """Fold every norm."""
        fold_conv_norms(self)
        self.channel_mixer.fold()


class Stride8Stage(Stage):
    """A stage in some of whose blocks, every `SHARED_PERIOD`-th, the attention before is reused."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        runs = [
            _SharingBlocks(self.blocks[start : start + SHARED_PERIOD])
            for start in range(0, len(self.blocks), SHARED_PERIOD)
        ]
        return run_blocks(runs, x, self.recomputes and self.training)


class Stride8Template(RecNeXtTemplate):
    """T, S and B: stride 8, attention on a quarter of the channels, by every block or shared."""

    strides = (8, 16, 32, 64)
    constant_drop_path = False

    def downsample(
        self, before: int, after: int, stage: int, make_mixer: MakeMixer, drop_path: float
    ) -> nn.Module:
        mixer = make_mixer(after)
        return Stride8Downsample(before, after, mixer, drop_path=drop_path, norm_cfg=self.norm_cfg)

    def block(
        self, channels: int, token_mixer: nn.Module, make_mixer: MakeMixer, **options: Any
    ) -> nn.Module:
        return Stride8Block(
            channels,
            token_mixer,
            make_mixer(channels),
            drop_path=options['drop_path'],
            norm_cfg=self.norm_cfg,
        )

    def stage(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        shares = any(block.shares for block in blocks)
        return (Stride8Stage if shares else Stage)(downsample, nn.ModuleList(blocks))


def attention(series: str, depths: Sequence[int], norm_cfg: dict) -> list[list[dict]]:
    """Entries of the token mixers of every block.

    The last stage attends at full resolution. With shared channels so does the third, and every
    `SHARED_PERIOD`-th block of the last one reuses attention.

    Args:
        series: 'stride8' or 'stride8_shared'.
        depths: Blocks of the stages.
        norm_cfg: Norm layer.
    """
    shared = series == 'stride8_shared'

    def entry(stage: int, block: int) -> dict:
        if shared and stage == 3 and block % SHARED_PERIOD == SHARED_PERIOD - 1:
            return dict(type=SharedAttention)
        full = stage == 3 or (shared and stage == 2)
        return dict(type=PartialAttention, full=full, norm_cfg=norm_cfg)

    return [[entry(stage, block) for block in range(depth)] for stage, depth in enumerate(depths)]
