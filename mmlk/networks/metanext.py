"""Any token mixer in any of the families' arrangements; the published networks are settings of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmlk.networks.assembly import Assembled
from mmlk.networks.dcls_convnext import DCLSConvNeXt
from mmlk.networks.inceptionnext import InceptionNeXt
from mmlk.networks.recnext import RecNeXt
from mmlk.networks.slak import SLaK
from mmlk.networks.unireplknet import UniRepLKNet

_PARTS = ('block', 'stem', 'token_mixer', 'channel_mixer', 'norm_cfg', 'layer_scale_init')
"""What an arch may hold beside ``depths`` and ``dims``; an argument of the network replaces it."""


def _archs() -> dict[str, dict]:
    found = {}
    for kind in (InceptionNeXt, SLaK, DCLSConvNeXt, RecNeXt, UniRepLKNet):
        for name, settings in kind.arch_settings.items():
            if not settings.get('series', '').startswith('stride8'):
                parts = kind.parts(settings)
                found[f'{kind.family}_{name}'] = {**dict.fromkeys(_PARTS), **parts}
    return found


class MetaNeXt(Assembled):
    """Stem, block template, token mixers, norm and channel mixers, each an entry of a config.

    ``MetaNeXt('inceptionnext_tiny')`` is InceptionNeXt-T, key by key and number by number;
    ``MetaNeXt('inceptionnext_tiny', token_mixer=dict(type='mmlk.RecConv2d', level=3))`` is the same
    network with another token mixer. The names in state dicts are the template's, so files of a family
    load where all parts are that family's, and are refused elsewhere.

    Args:
        arch: ``inceptionnext_tiny``, ``slak_small``, ``dcls_convnext_base``, ``recnext_m3``,
            ``unireplknet_t`` .. (every published network but RepLKNet, whose blocks come in pairs, and
            RecNeXt-T, S and B, whose blocks hand attention on), or a dict with ``depths`` and ``dims``
            and, optionally, the parts below.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate, of the last block if the template has it rise from 0, of
            all blocks in RecNeXt's.
        layer_scale_init: Initial layer scale; None takes that of the arch or template, 0 leaves it out.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: ``BN``, ``SyncBN`` or ``LN2d``, for stem, downsampling, blocks, channel mixers and
            outputs; None takes that of the arch or template. Token mixers have norms of their own.
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.
        block: Template: ``dict(type='InceptionNeXt')``, ``dict(type='ConvNeXt')``,
            ``dict(type='RecNeXt')`` or ``dict(type='UniRepLKNet')``; with ``norm=False`` there is no
            norm between the mixers.
        stem: ``dict(type='PatchStem')``, ``dict(type='RecNeXtStem')`` or
            ``dict(type='UniRepLKNetStem')``.
        token_mixer: One entry, a list with one per stage, or with one list per stage and one entry per
            block. Types are ``mmlk.InceptionDWConv2d``, ``mmlk.LargeKernelDWConv2d``,
            ``mmlk.DCLSDepthwiseConv2d``, ``mmlk.RecConv2d``, ``mmlk.RecAttn2d``,
            ``mmlk.DilatedReparamConv2d``, ``mmlk.DepthwiseConv2d``, ``mmlk.Pooling``,
            ``mmlk.Identity``, a class, or with `mmlk.backbones` what MMEngine's registries know.
        channel_mixer: ``dict(type='mmlk.ConvMlp', ratio=4)``,
            ``dict(type='mmlk.ConvNormMlp', ratio=2)`` or ``dict(type='mmlk.GRNMlp', ratio=4)``, one or a
            list, as for token mixers.
        share_positions: Whether DCLS mixers of a stage that have equal entries share positions.

    Raises:
        ValueError: If a part is unknown, does not fit, or an argument is out of range; the message names
            the accepted values.
    """

    arch_settings = _archs()

    def __init__(
        self,
        arch: str | Mapping = 'inceptionnext_tiny',
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        norm_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        block: Mapping | None = None,
        stem: Mapping | None = None,
        token_mixer: Any = None,
        channel_mixer: Any = None,
        share_positions: bool = True,
    ):
        settings = self.resolve_arch(arch)
        given = dict(
            block=block,
            stem=stem,
            token_mixer=token_mixer,
            channel_mixer=channel_mixer,
            norm_cfg=norm_cfg,
            layer_scale_init=layer_scale_init,
        )
        settings.update({name: value for name, value in given.items() if value is not None})
        if settings['token_mixer'] is None:
            raise ValueError(
                'MetaNeXt: token_mixer is missing in arch and arguments; give one, such as '
                "dict(type='mmlk.DepthwiseConv2d', kernel_size=7)"
            )
        super().__init__(
            **settings,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            share_positions=share_positions,
            out_indices=out_indices,
            output_norm=output_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings

    @classmethod
    def common_settings(cls) -> dict:
        return {
            **dict.fromkeys(('depths', 'dims', *_PARTS)),
            'block': dict(type='InceptionNeXt'),
        }
