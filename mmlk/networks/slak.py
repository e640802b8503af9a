"""SLaK (Liu et al., ICLR 2023): ConvNeXt with 51 x 51 kernels decomposed into strips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmlk.networks.assembly import Assembled


class SLaK(Assembled):
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
        """The arguments of `Assembled` that a variant stands for, with a norm in the large kernels."""
        norm_cfg = norm_cfg or dict(type='BN')
        dims, kernel_sizes = settings['dims'], settings['kernel_sizes']
        if len(kernel_sizes) != len(dims):
            raise ValueError(f'SLaK: kernel_sizes {kernel_sizes} and dims {dims} differ in length')
        return dict(
            depths=settings['depths'],
            dims=dims,
            block=dict(type='ConvNeXt', mixer_name='large_kernel'),
            token_mixer=[
                dict(
                    type='LargeKernelDWConv2d',
                    kernel_size=kernel_size,
                    small_kernel_size=settings['small_kernel_size'],
                    decomposed=settings['decomposed'],
                    norm_cfg=norm_cfg if settings['branch_norm'] else None,
                )
                for kernel_size in kernel_sizes
            ],
        )
