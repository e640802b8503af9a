"""Depthwise convolution with any odd kernel: the primitive the other operators stand on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.maps import pair
from mmlk.ops.modules import NotScriptable, pads_evenly
from mmlk.ops.reference import depthwise_conv2d_reference


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Each channel convolved with its own kernel, zero padded by ``k // 2`` per axis.

    `depthwise_conv2d_reference` is the definition. The result has the memory layout of ``x``,
    contiguous or channels-last, whatever the layout of ``weight``.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw), kh and kw odd; may be larger than the map.
        bias: (C,).
        stride: Step in rows and columns.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, ceil(H / sh), ceil(W / sw)) in the dtype of ``x``, or of autocast.

    Raises:
        ValueError: if shapes, dtypes or the stride do not fit.

    Note:
        Deterministic. Gradients of gradients are available from the reference backend only.
    """
    args = _arguments(x, weight, bias, stride)
    return dispatch.run('depthwise_conv2d', *args, backend=backend)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, ...] = 1
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int]]:
    stride = pair(stride)
    if torch.jit.is_tracing():
        return x, weight, bias, stride
    if x.dim() != 4:
        raise ValueError(f'depthwise_conv2d: x has shape {tuple(x.shape)}, expected (N, C, H, W)')
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
        raise ValueError(
            f'depthwise_conv2d: weight has shape {tuple(weight.shape)}, expected '
            f'({channels}, 1, kh, kw) for {channels} channels'
        )
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(
            f'depthwise_conv2d: kernel {tuple(weight.shape[2:])} is even, both sides must be odd'
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f'depthwise_conv2d: bias has shape {tuple(bias.shape)}, expected ({channels},)'
        )
    if stride[0] < 1 or stride[1] < 1:
        raise ValueError(f'depthwise_conv2d: stride {stride} must be positive')
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f'depthwise_conv2d: x is {x.dtype} but weight is {weight.dtype}, '
            'cast one of them or use autocast'
        )
    return x, weight, bias, stride


class DepthwiseConv2d(NotScriptable, nn.Conv2d):
    """Depthwise ``nn.Conv2d`` with "same" zero padding, computed by `depthwise_conv2d`.

    Networks with large kernels fold to it; torch's own routine is slow for such kernels on CPU.

    Args:
        channels: Channels C; ``weight`` is (C, 1, kh, kw).
        kernel_size: Odd size, or (rows, columns).
        stride: Step in rows and columns.
        bias: Whether to add a bias per channel.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        bias: bool = True,
    ):
        kh, kw = pair(kernel_size)
        super().__init__(
            channels, channels, (kh, kw), stride, (kh // 2, kw // 2), groups=channels, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        if not pads_evenly(self):
            return super().forward(x)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride)


dispatch.declare('depthwise_conv2d', _arguments, depthwise_conv2d_reference)
