"""ConvNeXt with learnable spacings: every depthwise 7x7 becomes a large, sparse, learnt kernel."""

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
    drop_path_schedule,
)
from mmlk.ops import DCLSDepthwiseConv2d, PatchConv2d, dispatch
from mmlk.ops.maps import layout
from mmlk.registry import MODELS


class DCLSConvNeXtBlock(nn.Module):
    """``x + drop_path(gamma * mlp(norm(dwconv(x))))``; the MLP works on the last axis.

    Args:
        channels: Channels C.
        kernel_count: Elements per channel of the depthwise kernel.
        kernel_size: Window in which they move.
        version: Interpolation, see :func:`mmlk.ops.dcls_kernel2d`.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_count: int,
        kernel_size: int,
        version: str,
        drop_path: float,
        layer_scale_init: float | None,
    ):
        super().__init__()
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init)))
            if layer_scale_init
            else None
        )
        self.dwconv = DCLSDepthwiseConv2d(channels, kernel_count, kernel_size, version=version)
        self.norm = LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_normed_mlp(
            x,
            self.dwconv(x),
            self.norm,
            self.pwconv1,
            self.act,
            self.pwconv2,
            self.gamma,
            self.drop_path,
        )

    def fold(self) -> None:
        """Fix the kernel, and absorb the norm's affine part and ``gamma`` into the two layers."""
        self.dwconv = self.dwconv.switch_to_deploy()
        first, second = self.pwconv1, self.pwconv2
        weight = first.weight.double()
        first.bias = _like(first.bias.double() + weight @ self.norm.bias.double(), first.bias)
        first.weight = _like(weight * self.norm.weight.double(), first.weight)
        self.norm = LayerNorm(self.norm.normalized_shape, self.norm.eps, elementwise_affine=False)
        if self.gamma is not None:
            gamma = self.gamma.double()
            second.weight = _like(gamma[:, None] * second.weight.double(), second.weight)
            second.bias = _like(gamma * second.bias.double(), second.bias)
            self.gamma = None
        self.pwconv1, self.act = FoldedLinear(first, gelu=True), nn.Identity()
        self.pwconv2 = FoldedLinear(second)


@MODELS.register_module()
class DCLSConvNeXt(Backbone):
    """ConvNeXt-dcls trunk for dense prediction (Khalfaoui-Hassani et al., ICLR 2023).

    All blocks of a stage use one set of positions, a parameter of the stage's first block. Each
    block still has its own ``dwconv.P`` key in the state dict, as in the published files; of
    different values under those keys the last one loaded counts. Odd sizes floor at every strided
    convolution. As in the dense-prediction code of the authors, the norms on the outputs are new:
    classifier weights leave ``norm0`` .. ``norm3`` at one and zero.

    Positions are moved back into the window at the start of every training forward pass, whatever
    trains the network; :class:`~mmlk.engine.dcls.DCLSClampHook` does it after every step, so that
    checkpoints and averages hold clamped positions too.

    Args:
        arch: ``tiny``, ``small``, ``base`` (version ``v0``, 17x17) or ``tiny_gauss`` (``gauss``,
            23x23), or a dict with ``depths`` and ``dims`` and, optionally, ``kernel_count``,
            ``kernel_size`` and ``version``.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate of the last block; the first has 0.
        layer_scale_init: Initial layer scale; None or 0 leaves it out.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: Only ``dict(type='LN2d')``, which is also the default; the network has no other.
        share_positions: Whether the blocks of a stage share positions, as published.
        frozen_stages: See :class:`~mmlk.backbones.base.Backbone`.
        norm_eval: See :class:`~mmlk.backbones.base.Backbone`.
        with_cp: See :class:`~mmlk.backbones.base.Backbone`.
        init_cfg: See :class:`~mmlk.backbones.base.Backbone`.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.
    """

    arch_settings = {
        'tiny': dict(
            depths=(3, 3, 9, 3),
            dims=(96, 192, 384, 768),
            kernel_count=34,
            kernel_size=17,
            version='v0',
        ),
        'small': dict(
            depths=(3, 3, 27, 3),
            dims=(96, 192, 384, 768),
            kernel_count=40,
            kernel_size=17,
            version='v0',
        ),
        'base': dict(
            depths=(3, 3, 27, 3),
            dims=(128, 256, 512, 1024),
            kernel_count=40,
            kernel_size=17,
            version='v0',
        ),
        'tiny_gauss': dict(
            depths=(3, 3, 9, 3),
            dims=(96, 192, 384, 768),
            kernel_count=26,
            kernel_size=23,
            version='gauss',
        ),
    }
    family = 'dcls_convnext'
    no_weight_decay = ('.P', '.SIG')
    """Suffixes of parameters that layer-wise optimizer settings do not decay."""
    required_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        norm_cfg: dict | None = None,
        share_positions: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        settings = self.resolve_arch(arch)
        if norm_cfg not in (None, dict(type='LN2d')):
            raise ValueError(
                f"DCLSConvNeXt: norm_cfg {norm_cfg} must be None or dict(type='LN2d'); "
                'the network normalises over channels everywhere'
            )
        depths, dims = settings['depths'], settings['dims']
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
        self.share_positions = share_positions
        self.checkpoint_options = dict(
            window=settings['kernel_size'], shared_positions=share_positions
        )
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(in_channels, dims[0], 4, 4), LayerNorm2d(dims[0])),
                *(
                    nn.Sequential(LayerNorm2d(dims[i - 1]), PatchConv2d(dims[i - 1], dims[i], 2))
                    for i in range(1, len(dims))
                ),
            ]
        )
        block = {key: settings[key] for key in ('kernel_count', 'kernel_size', 'version')}
        drop_paths = drop_path_schedule(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    DCLSConvNeXtBlock(
                        dim, drop_path=rate, layer_scale_init=layer_scale_init, **block
                    )
                    for rate in rates
                )
            )
            for dim, rates in zip(dims, drop_paths, strict=True)
        )
        self.apply(_init_weights)
        for stage in self.stages if share_positions else ():
            for follower in stage[1:]:
                follower.dwconv.share_positions(stage[0].dwconv)
        self._register_load_state_dict_pre_hook(_complete_positions, with_module=True)
        self._load_state_dict_pre_hooks.move_to_end(
            next(reversed(self._load_state_dict_pre_hooks)), last=False
        )
        self._finish()

    def stem_modules(self) -> list[nn.Module]:
        return [self.downsample_layers[0]]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        return [*([self.downsample_layers[stage]] if stage else []), self.stages[stage]]

    def stage_blocks(self, stage: int) -> Sequence[nn.Module]:
        return self.stages[stage]

    def stage_downsample(self, stage: int) -> nn.Module:
        return self.downsample_layers[stage] if stage else nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps of ``out_indices`` in the layout of ``x``; computed channels-last on a CPU.

        Norms and linear layers work on the last axis, so that layout spares two transpositions per
        block.
        """
        self._check_input(x)
        if self.training:
            self.clamp_parameters()
        if dispatch.refusal_for_device(x, 'cpu') is not None:
            return super().forward(x)
        maps = super().forward(x.contiguous(memory_format=torch.channels_last))
        return tuple(y.contiguous(memory_format=layout(x)) for y in maps)

    def clamp_parameters(self) -> None:
        """Move positions that left the window back to its border."""
        for module in self.modules():
            if isinstance(module, DCLSDepthwiseConv2d):
                module.clamp_parameters()

    def _fold(self) -> None:
        for stage in self.stages:
            for block in stage:
                block.fold()


def _complete_positions(module: DCLSConvNeXt, state_dict: dict, prefix: str, *_) -> None:
    """Before a load: a stage's positions given under one key only count for all of its blocks."""
    for i, stage in enumerate(module.stages if module.share_positions else ()):
        for name in ('P', 'SIG'):
            keys = [f'{prefix}stages.{i}.{j}.dwconv.{name}' for j in range(len(stage))]
            known = [key for key in keys if key in state_dict]
            for key in keys if known else ():
                state_dict.setdefault(key, state_dict[known[-1]])


def _init_weights(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases; positions stay as they are."""
    if isinstance(module, (nn.Conv2d, nn.Linear, DCLSDepthwiseConv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _like(value: torch.Tensor, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.to(parameter.dtype))
