"""InceptionNeXt (Yu et al., CVPR 2024): blocks around an Inception depthwise convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.networks.assembly import Assembled


class InceptionNeXt(Assembled):
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
        super().__init__(
            **self.parts(settings),
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            layer_scale_init=layer_scale_init or 0.0,
            out_indices=out_indices,
            output_norm=output_norm,
            norm_cfg=norm_cfg,
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
            block=dict(type='InceptionNeXt'),
            token_mixer=dict(
                type='InceptionDWConv2d',
                band_kernel_size=settings['band_kernel_size'],
                branch_ratio=settings['branch_ratio'],
            ),
            channel_mixer=[dict(type='ConvMlp', ratio=ratio) for ratio in settings['mlp_ratios']],
        )
