"""SLaK (Liu et al., ICLR 2023): ConvNeXt with 51 x 51 kernels decomposed into strips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.layers import build_norm
from mmlk.networks.convnext import ConvNeXt, ConvNeXtBlock
from mmlk.ops import LargeKernelDWConv2d


class SLaKBlock(ConvNeXtBlock):
    """`ConvNeXtBlock` around SLaK's large kernel, ``large_kernel``.

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
        super().__init__(
            channels,
            'large_kernel',
            LargeKernelDWConv2d(
                channels,
                kernel_size,
                small_kernel_size,
                decomposed,
                norm=(lambda width: build_norm(norm_cfg, width)) if norm_cfg else None,
            ),
            drop_path=drop_path,
            layer_scale_init=layer_scale_init,
        )


class SLaK(ConvNeXt):
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
        frozen_stages: See :class:`~mmlk.networks.base.Network`.
        norm_eval: See :class:`~mmlk.networks.base.Network`.
        with_cp: See :class:`~mmlk.networks.base.Network`.

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
    ):
        settings = self.resolve_arch(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        depths, dims, kernel_sizes = (settings[key] for key in ('depths', 'dims', 'kernel_sizes'))
        if len(kernel_sizes) != len(dims):
            raise ValueError(f'SLaK: kernel_sizes {kernel_sizes} and dims {dims} differ in length')

        def block(stage: int, drop_path: float) -> SLaKBlock:
            return SLaKBlock(
                dims[stage],
                kernel_size=kernel_sizes[stage],
                small_kernel_size=settings['small_kernel_size'],
                decomposed=settings['decomposed'],
                drop_path=drop_path,
                layer_scale_init=layer_scale_init,
                norm_cfg=norm_cfg if settings['branch_norm'] else None,
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
        self._finish()
