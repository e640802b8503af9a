"""How each family arranges the parts, what it calls them, and which it takes by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmlk.layers import ConvMlp, GRNMlp, build_norm
from mmlk.networks.base import Stage, run_blocks
from mmlk.networks.blocks import ConvNeXtBlock, MetaNeXtBlock, PatchDownsample, PatchStem
from mmlk.networks.recnext_parts import RecNeXtDownsample, RecNeXtStem
from mmlk.networks.unireplknet_parts import (
    UniRepLKNetBlock,
    UniRepLKNetDownsample,
    UniRepLKNetStem,
)
from mmlk.ops import DCLSDepthwiseConv2d

MakeMixer = Callable[[int], nn.Module]


class Template:
    """InceptionNeXt's arrangement; others state what they do in another way.

    Args:
        norm_cfg: Norm layer; None takes ``default_norm``.
        norm: Put a norm between token mixer and channel mixer.
    """

    default_norm: ClassVar[dict] = dict(type='BN')
    default_stem: ClassVar[dict] = dict(type='PatchStem')
    default_channel_mixer: ClassVar[dict] = dict(type='ConvMlp')
    layer_scale_init: ClassVar[float | None] = 1e-6
    strides: ClassVar[Sequence[int]] = (4, 8, 16, 32)
    constant_drop_path: ClassVar[bool] = False
    """Whether stochastic depth has one rate in all blocks instead of a rising one."""
    flat: ClassVar[bool] = False
    """Whether stem and downsampling stand in one list, and blocks are numbered without a name before."""
    channel_mixer: ClassVar[str] = 'mlp'
    """Name of the channel mixer in a block."""

    def __init__(self, norm_cfg: dict | None, *, norm: bool = True):
        self.norm_cfg = norm_cfg or dict(self.default_norm)
        self.norm = norm

    def family(self, mixers: Sequence[nn.Module]) -> str:
        """Family whose published files have the same names, for `mmlk.checkpoints`."""
        return 'inceptionnext'

    def downsample(
        self, before: int, after: int, stage: int, make_mixer: MakeMixer, drop_path: float
    ) -> nn.Module:
        """From one stage to the next, halving the map.

        Args:
            before: Channels of the stage before.
            after: Channels of this one.
            stage: Index of this one.
            make_mixer: Makes the stage's channel mixer from a number of channels.
            drop_path: Rate of the stage's first block.
        """
        return PatchDownsample(before, after, norm_cfg=self.norm_cfg)

    def block(
        self, channels: int, token_mixer: nn.Module, make_mixer: MakeMixer, **options: Any
    ) -> nn.Module:
        """One block.

        Args:
            channels: Channels C.
            token_mixer: Its token mixer.
            make_mixer: Makes the channel mixer from a number of channels.
            options: ``drop_path`` and ``layer_scale_init``.
        """
        norm = self.block_norm(channels)
        names = ('token_mixer', self.channel_mixer)
        return MetaNeXtBlock(
            channels, token_mixer, norm, make_mixer(channels), names=names, **options
        )

    def block_norm(self, channels: int) -> nn.Module:
        return build_norm(self.norm_cfg, channels) if self.norm else nn.Identity()

    def stage(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        return Stage(downsample, nn.ModuleList(blocks))

    def init_layer(self, module: nn.Module) -> None:
        """Truncated normal weights of std 0.02 and zero biases, depthwise kernels included."""
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _init(module)

    def init_positioned(self, module: nn.Module) -> None:
        """The same for kernels with learnt positions, which stay as they are."""
        if isinstance(module, DCLSDepthwiseConv2d):
            _init(module)


class ConvNeXtStage(nn.Sequential):
    """The blocks of a stage, which published files number without a name in between."""

    recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self, x, self.recomputes and self.training)

    def fold(self) -> None:
        """Fold every block."""
        for block in self:
            block.fold()


class ConvNeXtTemplate(Template):
    """ConvNeXt's, of SLaK and DCLS-ConvNeXt too.

    Args:
        norm_cfg: See `Template`.
        norm: See `Template`.
        mixer_name: What the state dict calls the token mixer.

    Raises:
        ValueError: If no published file has such a name.
    """

    MIXER_NAMES = ('dwconv', 'large_kernel')
    default_norm = dict(type='LN2d')
    flat = True

    def __init__(self, norm_cfg: dict | None, *, norm: bool = True, mixer_name: str = 'dwconv'):
        super().__init__(norm_cfg, norm=norm)
        if mixer_name not in self.MIXER_NAMES:
            raise ValueError(
                f'mixer_name {mixer_name!r} is not one of {", ".join(self.MIXER_NAMES)}'
            )
        self.mixer_name = mixer_name

    def family(self, mixers: Sequence[nn.Module]) -> str:
        moves = any(isinstance(mixer, DCLSDepthwiseConv2d) for mixer in mixers)
        return 'dcls_convnext' if moves else 'slak'

    def block(
        self, channels: int, token_mixer: nn.Module, make_mixer: MakeMixer, **options: Any
    ) -> nn.Module:
        norm, mlp = self.block_norm(channels), make_mixer(channels)
        if type(mlp) is ConvMlp:
            return ConvNeXtBlock(channels, token_mixer, norm, mlp, mixer=self.mixer_name, **options)
        names = (self.mixer_name, self.channel_mixer)
        return MetaNeXtBlock(channels, token_mixer, norm, mlp, names=names, **options)


class UniRepLKNetTemplate(ConvNeXtTemplate):
    """UniRepLKNet's: a layer norm behind each convolution between the stages, batch norms in blocks.

    Args:
        norm_cfg: Norm of stem, downsampling and outputs; see `Template`.
        norm: See `Template`.
        block_norm_cfg: Norm between the mixers of a block; None takes batch norm.
    """

    default_stem = dict(type='UniRepLKNetStem')
    default_channel_mixer = dict(type='GRNMlp', norm_cfg=dict(type='BN'))

    def __init__(
        self, norm_cfg: dict | None, *, norm: bool = True, block_norm_cfg: dict | None = None
    ):
        super().__init__(norm_cfg, norm=norm)
        self.block_norm_cfg = block_norm_cfg or dict(type='BN')

    def family(self, mixers: Sequence[nn.Module]) -> str:
        return 'unireplknet'

    def downsample(
        self, before: int, after: int, stage: int, make_mixer: MakeMixer, drop_path: float
    ) -> nn.Module:
        return UniRepLKNetDownsample(before, after, norm_cfg=self.norm_cfg)

    def block_norm(self, channels: int) -> nn.Module:
        return build_norm(self.block_norm_cfg, channels) if self.norm else nn.Identity()

    def block(
        self, channels: int, token_mixer: nn.Module, make_mixer: MakeMixer, **options: Any
    ) -> nn.Module:
        norm, mlp = self.block_norm(channels), make_mixer(channels)
        if type(mlp) is GRNMlp:
            return UniRepLKNetBlock(channels, token_mixer, norm, mlp, **options)
        names = (self.mixer_name, self.channel_mixer)
        return MetaNeXtBlock(channels, token_mixer, norm, mlp, names=names, **options)


class RecNeXtTemplate(Template):
    """That of RecNeXt's M and A series; weights are initialised as torch does."""

    default_stem = dict(type='RecNeXtStem')
    default_channel_mixer = dict(type='ConvNormMlp')
    layer_scale_init = None
    constant_drop_path = True
    channel_mixer = 'channel_mixer'

    def family(self, mixers: Sequence[nn.Module]) -> str:
        return 'recnext'

    def downsample(
        self, before: int, after: int, stage: int, make_mixer: MakeMixer, drop_path: float
    ) -> nn.Module:
        if after != 2 * before:
            raise ValueError(
                f'RecNeXt: dims {before} -> {after} of stage {stage}: the '
                'downsampling of the M and A series doubles the channels'
            )
        return RecNeXtDownsample(before, make_mixer, norm_cfg=self.norm_cfg)

    def init_layer(self, module: nn.Module) -> None:
        """Nothing."""

    def init_positioned(self, module: nn.Module) -> None:
        """Nothing."""


def _init(module: nn.Conv2d | nn.Linear | DCLSDepthwiseConv2d) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


TEMPLATES: Mapping[str, type[Template]] = {
    'InceptionNeXt': Template,
    'ConvNeXt': ConvNeXtTemplate,
    'RecNeXt': RecNeXtTemplate,
    'UniRepLKNet': UniRepLKNetTemplate,
}
STEMS: Mapping[str, Callable[..., nn.Module]] = {
    'PatchStem': PatchStem,
    'RecNeXtStem': RecNeXtStem,
    'UniRepLKNetStem': UniRepLKNetStem,
}
