"""SLaK (Liu et al., ICLR 2023): ConvNeXt with 51 x 51 kernels decomposed into strips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mmlk.backbones.base import Backbone
from mmlk.layers import (
    DropPath,
    FoldedLinear,
    LayerNorm,
    LayerNorm2d,
    add_normed_mlp,
    build_norm,
    drop_path_schedule,
    fold_scale_after,
)
from mmlk.ops import LargeKernelDWConv2d, PatchConv2d
from mmlk.registry import MODELS


class SLaKBlock(nn.Module):
    """``x + drop_path(gamma * mlp(norm(large_kernel(x))))`` on (N, C, H, W) maps.

    The MLP, Linear - exact GELU - Linear with four times the channels, and its layer norm work on the
    last axis, as in ConvNeXt.

    Args:
        channels: Channels C.
        kernel_size: Long side of the depthwise kernels.
        small_kernel_size: Their short side.
        decomposed: Strips instead of a full kernel.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
        norm_cfg: Batch norm after each branch of the kernel; None leaves it out.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int,
        small_kernel_size: int,
        decomposed: bool,
        drop_path: float,
        layer_scale_init: float | None,
        norm_cfg: dict | None,
    ):
        super().__init__()
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init)))
            if layer_scale_init
            else None
        )
        self.large_kernel = LargeKernelDWConv2d(
            channels,
            kernel_size,
            small_kernel_size,
            decomposed,
            norm=(lambda width: build_norm(norm_cfg, width)) if norm_cfg else None,
        )
        self.norm = LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_normed_mlp(
            x,
            self.large_kernel(x),
            self.norm,
            self.pwconv1,
            self.act,
            self.pwconv2,
            self.gamma,
            self.drop_path,
        )

    def fold(self) -> None:
        """Fold the kernels into two strips and ``gamma`` into ``pwconv2``."""
        self.large_kernel.switch_to_deploy()
        if self.gamma is not None:
            self.pwconv2 = fold_scale_after(self.pwconv2, self.gamma)
            self.gamma = None
        self.pwconv1, self.act = FoldedLinear(self.pwconv1, gelu=True), nn.Identity()
        self.pwconv2 = FoldedLinear(self.pwconv2)


@MODELS.register_module()
class SLaK(Backbone):
    """SLaK trunk for dense prediction.

    As in the authors' segmentation code the classifier's norm and head are gone, and each stage
    output passes a new channels-first layer norm. Odd sizes floor at every strided convolution. The
    widths are those of the released networks: ConvNeXt's times 1.3, rounded down. Sparse weights are
    stored as zeros; ``mmlk.SparseMaskHook`` keeps them at zero in training.

    Args:
        arch: ``tiny``, ``small``, ``base``, ``tiny_31`` or ``tiny_61``, or a dict with ``depths``
            and ``dims`` and, optionally, ``kernel_sizes`` (one per stage), ``small_kernel_size``,
            ``decomposed`` and ``branch_norm``. The distilled ConvNeXt students are
            ``decomposed=False, kernel_sizes=(7, 7, 7, 7), small_kernel_size=100``. Kernel sizes of
            ``tiny_61`` follow the pattern of the others; no source states them.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate of the last block; the first has 0.
        layer_scale_init: Initial layer scale; None or 0 leaves it out. The authors start dense
            fine-tuning from 1.0 and overwrite it with the checkpoint's.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: ``BN`` or ``SyncBN``, after each branch of the large kernels; the authors use SyncBN.
        frozen_stages: See :class:`~mmlk.backbones.base.Backbone`.
        norm_eval: See :class:`~mmlk.backbones.base.Backbone`.
        with_cp: See :class:`~mmlk.backbones.base.Backbone`.
        init_cfg: See :class:`~mmlk.backbones.base.Backbone`.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.
    """

    arch_settings = {
        name: dict(
            depths=depths,
            dims=dims,
            kernel_sizes=kernel_sizes,
            small_kernel_size=5,
            decomposed=True,
            branch_norm=True,
        )
        for name, depths, dims, kernel_sizes in (
            ('tiny', (3, 3, 9, 3), (124, 249, 499, 998), (51, 49, 47, 13)),
            ('small', (3, 3, 27, 3), (124, 249, 499, 998), (51, 49, 47, 13)),
            ('base', (3, 3, 27, 3), (166, 332, 665, 1331), (51, 49, 47, 13)),
            ('tiny_31', (3, 3, 9, 3), (124, 249, 499, 998), (31, 29, 27, 13)),
            ('tiny_61', (3, 3, 9, 3), (124, 249, 499, 998), (61, 59, 57, 13)),
        )
    }
    family = 'slak'
    required_hooks = dict(
        sparse_mask=dict(
            type='mmlk.SparseMaskHook', init='from_weights', update_interval=0, allow_dense=True
        )
    )

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
        init_cfg: dict | list[dict] | None = None,
    ):
        settings = self.resolve_arch(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        depths, dims, kernel_sizes = (settings[key] for key in ('depths', 'dims', 'kernel_sizes'))
        if len(kernel_sizes) != len(dims):
            raise ValueError(f'SLaK: kernel_sizes {kernel_sizes} and dims {dims} differ in length')
        super().__init__(
            dims,
            in_channels=in_channels,
            out_indices=out_indices,
            output_norm=LayerNorm2d if output_norm else None,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.arch = settings
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(in_channels, dims[0], 4, 4), LayerNorm2d(dims[0])),
                *(
                    nn.Sequential(LayerNorm2d(dims[i - 1]), PatchConv2d(dims[i - 1], dims[i], 2))
                    for i in range(1, len(dims))
                ),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    SLaKBlock(
                        dims[i],
                        kernel_size=kernel_sizes[i],
                        small_kernel_size=settings['small_kernel_size'],
                        decomposed=settings['decomposed'],
                        drop_path=rate,
                        layer_scale_init=layer_scale_init,
                        norm_cfg=norm_cfg if settings['branch_norm'] else None,
                    )
                    for rate in rates
                )
            )
            for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths))
        )
        self.apply(_init_layer)
        self._finish()

    def stem_modules(self) -> list[nn.Module]:
        return [self.downsample_layers[0]]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [*([self.downsample_layers[stage]] if stage else []), self.stages[stage]]

    def stage_blocks(self, stage: int) -> Sequence[nn.Module]:
        return self.stages[stage]

    def stage_downsample(self, stage: int) -> nn.Module:
        return self.downsample_layers[stage] if stage else nn.Identity()

    def _fold(self) -> None:
        for stage in self.stages:
            for block in stage:
                block.fold()


def _init_layer(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases, depthwise kernels included."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
