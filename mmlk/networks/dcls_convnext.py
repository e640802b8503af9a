"""ConvNeXt with learnable spacings: every depthwise 7x7 becomes a large, sparse, learnt kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlk.networks.convnext import ConvNeXt, ConvNeXtBlock
from mmlk.ops import DCLSDepthwiseConv2d, compat, library


class DCLSConvNeXtBlock(ConvNeXtBlock):
    """`ConvNeXtBlock` around a convolution with learnt positions, ``dwconv``.

    Args:
        channels: Channels C.
        kernel_count: Elements per kernel.
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
        super().__init__(
            channels,
            'dwconv',
            DCLSDepthwiseConv2d(channels, kernel_count, kernel_size, version=version),
            drop_path=drop_path,
            layer_scale_init=layer_scale_init,
        )

    def fold(self) -> None:
        """Fix the kernel, and absorb the norm's affine part and ``gamma`` into the two layers."""
        first = self.pwconv1
        weight = first.weight.double()
        first.bias = _like(first.bias.double() + weight @ self.norm.bias.double(), first.bias)
        first.weight = _like(weight * self.norm.weight.double(), first.weight)
        self.norm = nn.LayerNorm(
            self.norm.normalized_shape, self.norm.eps, elementwise_affine=False
        )
        super().fold()


class DCLSConvNeXt(ConvNeXt):
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
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.

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
    ):
        settings = self.resolve_arch(arch)
        if norm_cfg not in (None, dict(type='LN2d')):
            raise ValueError(
                f"DCLSConvNeXt: norm_cfg {norm_cfg} must be None or dict(type='LN2d'); "
                'the network normalises over channels everywhere'
            )
        depths, dims = settings['depths'], settings['dims']
        settings_of_block = {
            key: settings[key] for key in ('kernel_count', 'kernel_size', 'version')
        }

        def block(stage: int, drop_path: float) -> DCLSConvNeXtBlock:
            return DCLSConvNeXtBlock(
                dims[stage],
                drop_path=drop_path,
                layer_scale_init=layer_scale_init,
                **settings_of_block,
            )

        super().__init__(
            depths,
            dims,
            block,
            drop_path_rate=drop_path_rate,
            in_channels=in_channels,
            out_indices=out_indices,
            output_norm=output_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings
        self.share_positions = share_positions
        self.checkpoint_options = dict(
            window=settings['kernel_size'], shared_positions=share_positions
        )
        self.apply(_init_kernel)
        for stage in self.stages if share_positions else ():
            for follower in stage[1:]:
                follower.dwconv.share_positions(stage[0].dwconv)
        self._register_load_state_dict_pre_hook(_complete_positions, with_module=True)
        self._load_state_dict_pre_hooks.move_to_end(
            next(reversed(self._load_state_dict_pre_hooks)), last=False
        )
        self._finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.training:
            if not torch.compiler.is_compiling() and compat.top_transform() is None:
                # Offloaded values come when a layer is called, too late for this.
                positions = [
                    module.P for module in self.modules() if isinstance(module, DCLSDepthwiseConv2d)
                ]
                library.check_memory(f'{type(self).__name__} in training', (x, *positions))
            self.clamp_parameters()
        return super().forward(x)

    def clamp_parameters(self) -> None:
        """Move positions that left the window back to its border."""
        for module in self.modules():
            if isinstance(module, DCLSDepthwiseConv2d):
                module.clamp_parameters()


def _complete_positions(module: DCLSConvNeXt, state_dict: dict, prefix: str, *_: Any) -> None:
    """Before a load: a stage's positions given under one key only count for all of its blocks."""
    for i, stage in enumerate(module.stages if module.share_positions else ()):
        for name in ('P', 'SIG'):
            keys = [f'{prefix}stages.{i}.{j}.dwconv.{name}' for j in range(len(stage))]
            known = [key for key in keys if key in state_dict]
            for key in keys if known else ():
                state_dict.setdefault(key, state_dict[known[-1]])


def _init_kernel(module: nn.Module) -> None:
    """Truncated normal weights of std 0.02 and zero biases; positions stay as they are."""
    if isinstance(module, DCLSDepthwiseConv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _like(value: torch.Tensor, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.to(parameter.dtype))
