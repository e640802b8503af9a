"""The trunk that SLaK and DCLS-ConvNeXt have in common: ConvNeXt with another token mixer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlk.layers import (
    DropPath,
    FoldedLinear,
    LayerNorm2d,
    add_normed_mlp,
    drop_path_schedule,
    fold_scale_after,
)
from mmlk.networks.base import Network, run_blocks
from mmlk.ops import PatchConv2d


class ConvNeXtBlock(nn.Module):
    """``x + drop_path(gamma * mlp(norm(token_mixer(x))))`` on (N, C, H, W) maps.

    The MLP, Linear - exact GELU - Linear with four times the channels, and its layer norm work on the
    last axis, as in ConvNeXt (Liu et al., CVPR 2022).

    Args:
        channels: Channels C.
        name: Under which the published files hold the token mixer.
        token_mixer: Maps (N, C, H, W) to the same shape.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
    """

    def __init__(
        self,
        channels: int,
        name: str,
        token_mixer: nn.Module,
        *,
        drop_path: float,
        layer_scale_init: float | None,
    ):
        super().__init__()
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init)))
            if layer_scale_init
            else None
        )
        self._mixer = name
        self.add_module(name, token_mixer)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return add_normed_mlp(
            x,
            getattr(self, self._mixer)(x),
            self.norm,
            self.pwconv1,
            self.act,
            self.pwconv2,
            self.gamma,
            self.drop_path,
        )

    def fold(self) -> None:
        """Fold the token mixer, and ``gamma`` into ``pwconv2``."""
        setattr(self, self._mixer, getattr(self, self._mixer).switch_to_deploy())
        if self.gamma is not None:
            self.pwconv2 = fold_scale_after(self.pwconv2, self.gamma)
            self.gamma = None
        self.pwconv1, self.act = FoldedLinear(self.pwconv1, gelu=True), nn.Identity()
        self.pwconv2 = FoldedLinear(self.pwconv2)


class ConvNeXtStage(nn.Sequential):
    """The blocks of a stage, which published files number without a name in between."""

    recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self, x, self.recomputes and self.training)


class ConvNeXt(Network):
    """ConvNeXt's stem, downsampling and stages under its authors' names; see `Network`.

    Args:
        depths: Blocks of the four stages.
        dims: Channels of the four stages.
        block: ``block(stage, drop_path)`` makes a block.
        drop_path_rate: Stochastic-depth rate of the last block; the first has 0.
        in_channels: Channels of the image.
        output_norm: Put ``norm0`` .. ``norm3``, layer norms over the channels, on the outputs.
        options: Further arguments of `Network`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        block: Callable[[int, float], nn.Module],
        *,
        drop_path_rate: float,
        in_channels: int,
        output_norm: bool,
        **options: Any,
    ):
        super().__init__(
            dims,
            in_channels=in_channels,
            output_norm=LayerNorm2d if output_norm else None,
            **options,
        )
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(in_channels, dims[0], 4, 4), LayerNorm2d(dims[0])),
                *(
                    nn.Sequential(LayerNorm2d(before), PatchConv2d(before, after, 2, 2))
                    for before, after in zip(dims, dims[1:])
                ),
            ]
        )
        self.stages = nn.ModuleList(
            ConvNeXtStage(*(block(stage, rate) for rate in rates))
            for stage, rates in enumerate(drop_path_schedule(drop_path_rate, depths))
        )
        self.apply(init_layer)

    def stem_modules(self) -> list[nn.Module]:
        return [self.downsample_layers[0]]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [*([self.downsample_layers[stage]] if stage else []), self.stages[stage]]

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        for module in self.stage_modules(stage):
            x = module(x)
        return x

    def _fold(self) -> None:
        for stage in self.stages:
            for block in stage:
                block.fold()


def init_layer(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases, depthwise kernels included."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
