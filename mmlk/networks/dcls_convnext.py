"""ConvNeXt with learnable spacings: every depthwise 7x7 becomes a large, sparse, learnt kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.networks.assembly import Assembled
from mmlk.ops import DCLSDepthwiseConv2d


class DCLSConvNeXt(Assembled):
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
    required_hooks = DCLSDepthwiseConv2d.required_hooks

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
        super().__init__(
            **self.parts(settings),
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            layer_scale_init=layer_scale_init or 0.0,
            out_indices=out_indices,
            output_norm=output_norm,
            share_positions=share_positions,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings

    @staticmethod
    def parts(settings: Mapping) -> dict:
        """The arguments of `Assembled` that a variant stands for."""
        return dict(
            depths=settings['depths'],
            dims=settings['dims'],
            block=dict(type='ConvNeXt'),
            token_mixer=dict(
                type='DCLSDepthwiseConv2d',
                kernel_count=settings['kernel_count'],
                kernel_size=settings['kernel_size'],
                version=settings['version'],
            ),
        )
