"""InceptionNeXt (Yu et al., CVPR 2024): blocks around an Inception depthwise convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmlk.layers import (
    ConvMlp,
    DropPath,
    add_conv_mlp,
    build_norm,
    drop_path_schedule,
    fold_norm_after,
    fold_norm_before,
    fold_scale_after,
)
from mmlk.networks.base import Network, Stage
from mmlk.ops import InceptionDWConv2d, PatchConv2d


class InceptionNeXtBlock(nn.Module):
    """``x + drop_path(gamma * mlp(norm(token_mixer(x))))`` on (N, C, H, W) maps (paper, Sec. 3.1).

    Args:
        channels: Channels C.
        mlp_ratio: Hidden channels of the MLP per channel.
        band_kernel_size: Length of the two band kernels.
        branch_ratio: Share of the channels that each of the three branches convolves.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
        norm_cfg: Batch norm, plain or synchronised.
    """

    def __init__(
        self,
        channels: int,
        *,
        mlp_ratio: float,
        band_kernel_size: int,
        branch_ratio: float,
        drop_path: float,
        layer_scale_init: float | None,
        norm_cfg: dict,
    ):
        super().__init__()
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init)))
            if layer_scale_init
            else None
        )
        self.token_mixer = InceptionDWConv2d(
            channels, band_kernel_size=band_kernel_size, branch_ratio=branch_ratio
        )
        self.norm = build_norm(norm_cfg, channels)
        self.mlp = ConvMlp(channels, int(mlp_ratio * channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_conv_mlp(x, self.norm(self.token_mixer(x)), self.mlp, self.gamma, self.drop_path)

    def fold(self) -> None:
        """Absorb the norm into ``fc1`` and ``gamma`` into ``fc2``; exact, since both are 1x1."""
        self.mlp.fc1 = fold_norm_before(self.norm, self.mlp.fc1)
        self.norm = nn.Identity()
        if self.gamma is not None:
            self.mlp.fc2 = fold_scale_after(self.mlp.fc2, self.gamma)
            self.gamma = None
        self.mlp.fold()


class InceptionNeXtStage(Stage):
    """Norm and 2x2 convolution with stride 2 (absent in the first stage), then blocks."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        drop_paths: Sequence[float],
        downsample: bool,
        norm_cfg: dict,
        **block: Any,
    ):
        norm_and_convolution = (
            (build_norm(norm_cfg, in_channels), PatchConv2d(in_channels, channels, 2, 2))
            if downsample
            else ()
        )
        super().__init__(
            nn.Sequential(*norm_and_convolution) if downsample else nn.Identity(),
            nn.ModuleList(
                InceptionNeXtBlock(channels, drop_path=rate, norm_cfg=norm_cfg, **block)
                for rate in drop_paths
            ),
        )

    def fold(self) -> None:
        """Absorb the norm into the unpadded downsampling convolution, and fold every block."""
        if isinstance(self.downsample, nn.Sequential):
            self.downsample = fold_norm_before(*self.downsample)
        for block in self.blocks:
            block.fold()


class InceptionNeXt(Network):
    """InceptionNeXt trunk for dense prediction.

    It differs from the classifier in two ways that the author states (issues 10 and 11 of
    sail-sg/inceptionnext): the MLP head is gone, and each stage output passes a new norm of the
    ``norm_cfg`` type, which the published results synchronise across GPUs. Odd sizes floor at every
    strided convolution.

    Args:
        arch: ``atto``, ``tiny``, ``small`` or ``base``, or a dict with ``depths`` and ``dims`` and,
            optionally, ``mlp_ratios``, ``band_kernel_size`` and ``branch_ratio``.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate of the last block; the first has 0.
        layer_scale_init: Initial layer scale; None or 0 leaves it out.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: ``BN`` or ``SyncBN``, for the trunk and the outputs.
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.
    """

    # Atto's widths follow the released network; Table 3 of the paper prints others.
    arch_settings = {
        'atto': dict(
            depths=(2, 2, 6, 2),
            dims=(40, 80, 160, 320),
            mlp_ratios=(4, 4, 4, 3),
            band_kernel_size=9,
            branch_ratio=0.25,
        ),
        'tiny': dict(
            depths=(3, 3, 9, 3),
            dims=(96, 192, 384, 768),
            mlp_ratios=(4, 4, 4, 3),
            band_kernel_size=11,
            branch_ratio=0.125,
        ),
        'small': dict(
            depths=(3, 3, 27, 3),
            dims=(96, 192, 384, 768),
            mlp_ratios=(4, 4, 4, 3),
            band_kernel_size=11,
            branch_ratio=0.125,
        ),
        'base': dict(
            depths=(3, 3, 27, 3),
            dims=(128, 256, 512, 1024),
            mlp_ratios=(4, 4, 4, 3),
            band_kernel_size=11,
            branch_ratio=0.125,
        ),
    }
    family = 'inceptionnext'

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        norm_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
    ):
        settings = self.resolve_arch(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        depths, dims = settings['depths'], settings['dims']
        super().__init__(
            dims,
            in_channels=in_channels,
            out_indices=out_indices,
            output_norm=(lambda channels: build_norm(norm_cfg, channels)) if output_norm else None,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, dims[0], 4, 4), build_norm(norm_cfg, dims[0])
        )
        drop_paths = drop_path_schedule(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            InceptionNeXtStage(
                dims[max(i - 1, 0)],
                dims[i],
                downsample=i > 0,
                drop_paths=drop_paths[i],
                mlp_ratio=settings['mlp_ratios'][i],
                band_kernel_size=settings['band_kernel_size'],
                branch_ratio=settings['branch_ratio'],
                layer_scale_init=layer_scale_init,
                norm_cfg=norm_cfg,
            )
            for i in range(len(dims))
        )
        self.apply(_init_convolution)
        self._finish()

    def _fold(self) -> None:
        self.stem = fold_norm_after(*self.stem)
        for stage in self.stages:
            stage.fold()


def _init_convolution(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases, depthwise kernels included."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
