"""RecNeXt (Zhao et al., arXiv 2412.19628): MetaNeXt blocks around recursive token mixers.

The M series mixes by recursive convolution, the A series by one level of recursion with linear
attention at half resolution. T, S and B are separate networks of stride 8 for classification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.networks.assembly import Assembled
from mmlk.networks.recnext_stride8 import Stride8Template, attention

SERIES = ('m', 'a', 'stride8', 'stride8_shared')

_SIZES = (
    dict(dims=(40, 80, 160, 320), depths=(2, 2, 9, 1)),
    dict(dims=(48, 96, 192, 384), depths=(3, 3, 15, 2)),
    dict(dims=(56, 112, 224, 448), depths=(3, 3, 15, 2)),
    dict(dims=(64, 128, 256, 512), depths=(3, 3, 13, 2)),
    dict(dims=(64, 128, 256, 512), depths=(5, 5, 25, 4)),
    dict(dims=(80, 160, 320, 640), depths=(7, 7, 35, 2)),
)
_STRIDE8_SIZES = {
    't': dict(dims=(64, 128, 256, 512), depths=(0, 2, 8, 10)),
    's': dict(dims=(128, 256, 384, 512), depths=(0, 2, 8, 10)),
    'b': dict(dims=(128, 256, 384, 512), depths=(2, 8, 8, 12)),
}


def _archs() -> dict[str, dict]:
    archs = {}
    for i, size in enumerate(_SIZES):
        archs[f'm{i}'] = dict(size, mlp_ratios=(2, 2, 2, 2), series='m')
    for i, size in enumerate(_SIZES):
        ratio = 2 if i < 3 else 1.875
        archs[f'a{i}'] = dict(size, mlp_ratios=(ratio,) * 4, series='a')
    for name, size in _STRIDE8_SIZES.items():
        ratios = (2, 2, 2, 1.5)
        archs[name] = dict(size, mlp_ratios=ratios, series='stride8')
        archs[f'{name}_share_channel'] = dict(size, mlp_ratios=ratios, series='stride8_shared')
    return archs


class RecNeXt(Assembled):
    """RecNeXt without its classification head, as the authors use it for dense prediction.

    Parameters have the authors' names, so their classification and dense checkpoints load. The
    authors' dense networks take the raw stage outputs (no output norms) and train with updated batch
    statistics synchronised over GPUs, ``norm_cfg=dict(type='SyncBN')``.

    Args:
        arch: 'm0' .. 'm5' (recursive convolution), 'a0' .. 'a5' (recursive attention), 't', 's',
            'b' and 't_share_channel' .. (stride 8, ImageNet weights only), or a dict with ``dims``,
            ``depths`` and optionally ``mlp_ratios`` and ``series``.
        in_channels: Channels of the image.
        drop_path_rate: Probability of dropping a block's residual: constant over depth in the M and
            A series, rising linearly from 0 in T, S and B. The published dense networks use 0.
        layer_scale_init: Must be None: the network has no layer scale.
        out_indices: Stages whose outputs are returned.
        output_norm: Add ``norm0`` .. ``norm3`` on the outputs, which the authors do not.
        norm_cfg: Norm layer; plain batch norm by default.
        frozen_stages: As in `Network`.
        norm_eval: Keep batch norms in eval mode. The authors meant to and did not (their test for
            batch norms misses synchronised ones), so published results need False.
        with_cp: Recompute blocks in the backward pass.

    Note:
        Maps have sides ``ceil(n / stride)`` for any image size, strides 4 to 32, or 8 to 64 for T,
        S and B. On a CPU the network runs in channels-last layout; the maps it returns have the
        layout of the image.
    """

    arch_settings = _archs()
    family = 'recnext'

    def __init__(
        self,
        arch: str | Mapping = 'm3',
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
        if layer_scale_init is not None:
            raise ValueError(
                f'RecNeXt: layer_scale_init {layer_scale_init} must be None, the '
                'network has no layer scale'
            )
        super().__init__(
            **self.parts(settings, norm_cfg),
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            output_norm=output_norm,
            norm_cfg=norm_cfg,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings

    @staticmethod
    def parts(settings: Mapping, norm_cfg: dict | None = None) -> dict:
        """The arguments of `Assembled` that a variant stands for, with a norm in the attention.

        Recursion goes one level less deep from stage to stage; heads double. Attention carries norms of
        its own, so blocks around it have none.
        """
        norm_cfg = norm_cfg or dict(type='BN')
        depths, series = settings['depths'], settings['series']
        stages, ratios = range(len(depths)), settings['mlp_ratios']
        mixers = [dict(type='ConvNormMlp', ratio=ratio) for ratio in ratios]
        parts = dict(
            depths=depths,
            dims=settings['dims'],
            block=dict(type='RecNeXt', norm=series == 'm'),
            channel_mixer=mixers,
        )
        if series == 'm':
            return parts | dict(
                token_mixer=[dict(type='RecConv2d', level=4 - stage) for stage in stages]
            )
        if series == 'a':
            heads = [2 ** (stage + 1) for stage in stages]
            return parts | dict(
                token_mixer=[
                    dict(type='RecAttn2d', num_heads=each, norm_cfg=norm_cfg) for each in heads
                ]
            )
        if series not in SERIES:
            raise ValueError(f'RecNeXt: series {series!r} is not one of {", ".join(SERIES)}')
        return parts | dict(
            block=dict(type=Stride8Template),
            stem=dict(
                type='RecNeXtStem', convolutions=3, last_activation=depths[0] == 0, bias=True
            ),
            token_mixer=attention(series, depths, norm_cfg),
            channel_mixer=[dict(each, bias=True) for each in mixers],
        )
