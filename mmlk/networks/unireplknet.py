"""UniRepLKNet (Ding et al., CVPR 2024): 13 x 13 kernels trained beside dilated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.networks.assembly import Assembled

_EVERY = ((3,), (13,), (13,), (13,))
_EVERY_SECOND = ((3,), (13,), (13, 3), (13,))
_EVERY_THIRD = ((3,), (13,), (13, 3, 3), (13,))
_DILATED_FROM = 7
"""Smallest kernel that has dilated ones beside it; smaller ones are plain convolutions."""


class UniRepLKNet(Assembled):
    """UniRepLKNet trunk for dense prediction.

    As in the authors' segmentation code the classifier's norm and head are gone, and each stage output
    passes a new channels-first layer norm.

    Args:
        arch: ``a``, ``f``, ``p``, ``n``, ``t``, ``s``, ``b``, ``l`` or ``xl``, or a dict with ``depths``
            and ``dims`` and, optionally, ``kernel_sizes``: for every stage those of its blocks, from
            the first again after the last, so that ``(13, 3, 3)`` has a large kernel in every third
            block. 3 and 5 are plain depthwise convolutions.
        in_channels: Channels of the image.
        drop_path_rate: Stochastic-depth rate of the last block; the first has 0.
        layer_scale_init: Initial layer scale; None or 0 leaves it out.
        out_indices: Stages whose outputs are returned.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        norm_cfg: ``BN`` or ``SyncBN``, in blocks; stem, downsampling and outputs have layer norms. The
            authors use SyncBN for dense prediction.
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.

    Note:
        Maps have sides ``ceil(n / stride)`` for any image size.
    """

    arch_settings = {
        name: dict(depths=depths, dims=tuple(width * 2**i for i in range(4)), kernel_sizes=kernels)
        for name, width, depths, kernels in (
            ('a', 40, (2, 2, 6, 2), _EVERY),
            ('f', 48, (2, 2, 6, 2), _EVERY),
            ('p', 64, (2, 2, 6, 2), _EVERY),
            ('n', 80, (2, 2, 8, 2), _EVERY),
            ('t', 80, (3, 3, 18, 3), _EVERY_SECOND),
            ('s', 96, (3, 3, 27, 3), _EVERY_THIRD),
            ('b', 128, (3, 3, 27, 3), _EVERY_THIRD),
            ('l', 192, (3, 3, 27, 3), _EVERY_THIRD),
            ('xl', 256, (3, 3, 27, 3), _EVERY_THIRD),
        )
    }
    family = 'unireplknet'

    def __init__(
        self,
        arch: str | Mapping = 't',
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
            **self.parts(settings, norm_cfg),
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            layer_scale_init=layer_scale_init or 0.0,
            out_indices=out_indices,
            output_norm=output_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
        )
        self.arch = settings

    @staticmethod
    def parts(settings: Mapping, norm_cfg: dict | None = None) -> dict:
        """The arguments of `Assembled` that a variant stands for, with a norm in the blocks."""
        norm_cfg = norm_cfg or dict(type='BN')
        depths, kernel_sizes = settings['depths'], settings['kernel_sizes']
        if len(kernel_sizes) != len(depths) or not all(kernel_sizes):
            raise ValueError(
                f'UniRepLKNet: kernel_sizes {kernel_sizes} must hold one or more sizes for each of '
                f'{len(depths)} stages'
            )

        def mixer(size: int) -> dict:
            if size < _DILATED_FROM:
                return dict(type='DepthwiseConv2d', kernel_size=size, bias=False)
            return dict(type='DilatedReparamConv2d', kernel_size=size, norm_cfg=norm_cfg)

        return dict(
            depths=depths,
            dims=settings['dims'],
            block=dict(type='UniRepLKNet', block_norm_cfg=norm_cfg),
            token_mixer=[
                [mixer(sizes[i % len(sizes)]) for i in range(depth)]
                for depth, sizes in zip(depths, kernel_sizes)
            ],
            channel_mixer=dict(type='GRNMlp', norm_cfg=norm_cfg),
        )
