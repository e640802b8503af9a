"""RepLKNet (Ding et al., CVPR 2022): kernels of 31 x 31, re-parameterised with 5 x 5 ones."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmlk.layers import (
    GELU,
    ConvNorm,
    DropPath,
    FoldedPointwiseConv2d,
    build_norm,
    drop_path_schedule,
    fold_norm_after,
    fold_norm_before,
    has_affine_form,
)
from mmlk.networks.base import LayerLocation, Network, Stage, folded
from mmlk.ops import LargeKernelDWConv2d

_TRANSITION = re.compile(r'transitions\.(\d)\.')


class ConvBN(nn.Sequential):
    """Convolution, norm and ReLU under the names ``conv``, ``bn`` and ``nonlinear``.

    Args:
        in_channels: Input channels.
        channels: Output channels.
        kernel_size: Side k, odd; padding is ``k // 2``.
        stride: Step in rows and columns.
        groups: Groups of the convolution.
        relu: Whether the ReLU is there.
        norm_cfg: Norm layer, as for `build_norm`.
    """

    conv: nn.Module
    bn: nn.Module

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        relu: bool = True,
        norm_cfg: dict,
    ):
        made = ConvNorm(in_channels, channels, kernel_size, stride, groups, norm_cfg=norm_cfg)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=made.conv, bn=made.norm)
        if relu:
            layers['nonlinear'] = nn.ReLU()
        super().__init__(layers)

    def fold(self) -> None:
        """Fold the norm into the convolution, if constants do what it does."""
        if has_affine_form(self.bn):
            self.conv = fold_norm_after(self.conv, self.bn)
            self.bn = nn.Identity()


def _fold_before(norm: nn.Module, first: ConvBN) -> nn.Module:
    """Fold ``norm`` into the convolution behind it, itself folded; what stands in the norm's place."""
    first.fold()
    if not has_affine_form(norm):
        return norm
    first.conv = fold_norm_before(norm, first.conv)
    return nn.Identity()


class RepLKBlock(nn.Module):
    """``x + drop_path(pw2(relu(large_kernel(pw1(norm(x))))))`` on (N, C, H, W) maps.

    Args:
        channels: Channels C.
        hidden_channels: Channels of the large kernel.
        kernel_size: Side of the large kernel, odd.
        small_kernel_size: Side of the kernel beside it; None for none.
        drop_path: Probability of dropping a sample's residual.
        norm_cfg: Norm layer.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        kernel_size: int,
        small_kernel_size: int | None,
        *,
        drop_path: float,
        norm_cfg: dict,
    ):
        super().__init__()
        self.prelkb_bn = build_norm(norm_cfg, channels)
        self.pw1 = ConvBN(channels, hidden_channels, norm_cfg=norm_cfg)
        self.large_kernel = LargeKernelDWConv2d(
            hidden_channels,
            kernel_size,
            kernel_size if small_kernel_size is None else small_kernel_size,
            decomposed=False,
            norm=lambda width: build_norm(norm_cfg, width),
        )
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = ConvBN(hidden_channels, channels, relu=False, norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw1(self.prelkb_bn(x))
        y = self.pw2(self.lk_nonlinear(self.large_kernel(y)))
        return x + self.drop_path(y)

    def fold(self) -> None:
        """Fold the norms and the small kernel."""
        self.prelkb_bn = _fold_before(self.prelkb_bn, self.pw1)
        self.large_kernel = folded(self.large_kernel)
        self.pw2.fold()


class ConvFFN(nn.Module):
    """``x + drop_path(pw2(gelu(pw1(norm(x)))))`` on (N, C, H, W) maps.

    Args:
        channels: Channels C.
        hidden_channels: Channels between the two convolutions.
        drop_path: Probability of dropping a sample's residual.
        norm_cfg: Norm layer.
    """

    def __init__(self, channels: int, hidden_channels: int, *, drop_path: float, norm_cfg: dict):
        super().__init__()
        self.preffn_bn = build_norm(norm_cfg, channels)
        self.pw1 = ConvBN(channels, hidden_channels, relu=False, norm_cfg=norm_cfg)
        self.nonlinear = GELU()
        self.pw2 = ConvBN(hidden_channels, channels, relu=False, norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x))))
        return x + self.drop_path(y)

    def fold(self) -> None:
        """Fold the norms, and prepare the products for inference."""
        self.preffn_bn = _fold_before(self.preffn_bn, self.pw1)
        self.pw2.fold()
        if isinstance(self.pw1.bn, nn.Identity):
            self.pw1.conv, self.nonlinear = (
                FoldedPointwiseConv2d(self.pw1.conv, gelu=True),
                nn.Identity(),
            )
            self.pw2.conv = FoldedPointwiseConv2d(self.pw2.conv)


def _stem(in_channels: int, channels: int, norm_cfg: dict) -> nn.Sequential:
    """Images to a quarter of their sides: 3x3 of stride 2, depthwise 3x3, 1x1, depthwise of stride 2."""
    return nn.Sequential(
        ConvBN(in_channels, channels, 3, 2, norm_cfg=norm_cfg),
        ConvBN(channels, channels, 3, groups=channels, norm_cfg=norm_cfg),
        ConvBN(channels, channels, norm_cfg=norm_cfg),
        ConvBN(channels, channels, 3, 2, channels, norm_cfg=norm_cfg),
    )


def _transition(before: int, after: int, norm_cfg: dict) -> nn.Sequential:
    """From one stage to the next: 1x1 convolution, depthwise 3x3 of stride 2."""
    return nn.Sequential(
        ConvBN(before, after, norm_cfg=norm_cfg),
        ConvBN(after, after, 3, 2, after, norm_cfg=norm_cfg),
    )


class RepLKNet(Network):
    """RepLKNet without its classification head.

    Parameters have the authors' names. Blocks alternate: a large kernel between two 1x1 convolutions,
    then a feed-forward block; ``depths`` counts such pairs. The authors' dense networks take the raw
    stage outputs, but for XL, whose outputs pass a norm each (``output_norm=True``; their files call
    them ``stages.<i>.norm``).

    Args:
        arch: ``31b``, ``31l`` or ``xl``, or a dict with ``depths`` and ``dims`` and, optionally,
            ``kernel_sizes`` (one per stage), ``small_kernel_size`` (None for none), ``mixer_ratio``
            (channels of the large kernels per channel) and ``mlp_ratio``.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate of the last pair of blocks; the first has 0.
        layer_scale_init: Must be None: the network has no layer scale.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: ``BN`` or ``SyncBN``; the authors use SyncBN.
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.

    Note:
        Maps have sides ``ceil(n / stride)`` for any image size.
    """

    arch_settings = {
        name: dict(
            depths=(2, 2, 18, 2),
            dims=dims,
            kernel_sizes=kernel_sizes,
            small_kernel_size=small_kernel_size,
            mixer_ratio=mixer_ratio,
            mlp_ratio=4,
        )
        for name, dims, kernel_sizes, small_kernel_size, mixer_ratio in (
            ('31b', (128, 256, 512, 1024), (31, 29, 27, 13), 5, 1),
            ('31l', (192, 384, 768, 1536), (31, 29, 27, 13), 5, 1),
            ('xl', (256, 512, 1024, 2048), (27, 27, 27, 13), None, 1.5),
        )
    }
    family = 'replknet'

    def __init__(
        self,
        arch: str | Mapping = '31b',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = False,
        norm_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
    ):
        settings = self.resolve_arch(arch)
        depths, dims, kernel_sizes = (settings[key] for key in ('depths', 'dims', 'kernel_sizes'))
        norm_cfg = norm_cfg or dict(type='BN')
        if layer_scale_init is not None:
            raise ValueError(
                f'RepLKNet: layer_scale_init {layer_scale_init} must be None, the '
                'network has no layer scale'
            )
        if len(kernel_sizes) != len(dims):
            raise ValueError(
                f'RepLKNet: kernel_sizes {kernel_sizes} and dims {dims} differ in length'
            )
        super().__init__(
            dims,
            in_channels=in_channels,
            out_indices=out_indices,
            output_norm=(lambda width: build_norm(norm_cfg, width)) if output_norm else None,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        rates = drop_path_schedule(drop_path_rate, depths)

        def make_blocks(stage: int) -> nn.ModuleList:
            width, blocks = dims[stage], nn.ModuleList()
            for rate in rates[stage]:
                options = dict(drop_path=rate, norm_cfg=norm_cfg)
                hidden = int(width * settings['mixer_ratio'])
                sizes = kernel_sizes[stage], settings['small_kernel_size']
                blocks.append(RepLKBlock(width, hidden, *sizes, **options))
                blocks.append(ConvFFN(width, int(width * settings['mlp_ratio']), **options))
            return blocks

        self.stem = _stem(in_channels, dims[0], norm_cfg)
        self.stages = nn.ModuleList(Stage(nn.Identity(), make_blocks(i)) for i in range(len(dims)))
        self.transitions = nn.ModuleList(
            _transition(before, after, norm_cfg) for before, after in zip(dims, dims[1:])
        )
        self.arch = settings
        self._finish()

    def stage_modules(self, stage: int) -> list[nn.Module]:
        before = [self.transitions[stage - 1]] if stage else []
        return [*before, self.stages[stage]]

    def layer_location(self, name: str) -> LayerLocation:
        """Location of the parameter ``name``; a block and the feed-forward block behind it are one.

        Raises:
            ValueError: If no part of the backbone owns such a name.
        """
        found = _TRANSITION.match(name)
        if found:
            return LayerLocation('downsample', int(found[1]) + 1, 0)
        location = super().layer_location(name)
        return location._replace(block=location.block // 2)

    def _fold(self) -> None:
        for part in (self.stem, *self.transitions):
            for layer in part:
                layer.fold()
        for stage in self.stages:
            stage.fold()
