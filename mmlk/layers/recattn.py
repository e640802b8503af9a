"""Recursive attention of RecNeXt (arXiv 2412.19628): linear attention on a halved map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers.conv import ConvNorm
from mmlk.ops import DepthwiseConv2d, PointwiseConv2d, dispatch
from mmlk.ops.modules import NotScriptable, can_stand_for, own_batch, pads_evenly
from mmlk.ops.packed_weights import HoldsPackedWeights, PackedWeights
from mmlk.ops.reference import attention2d

_EPSILON = 1e-6


def _conv_and_norm(layer: nn.Module, kind: type) -> tuple | None:
    """Weight, bias and batch norm of a normed or folded convolution that an operator may stand for."""
    if _as_built(layer, kind) and can_stand_for(layer):
        return layer.weight, layer.bias, None
    if type(layer) is not ConvNorm or not _as_built(layer.conv, kind):
        return None
    state = own_batch(layer.norm)
    if state is None or not can_stand_for(layer, layer.conv, layer.norm):
        return None
    return layer.conv.weight, layer.conv.bias, state


def _as_built(convolution: nn.Module, kind: type) -> bool:
    return (
        type(convolution) is kind
        and pads_evenly(convolution)
        and (kind is DepthwiseConv2d or convolution.stride == (1, 1))
    )


def add_depthwise(
    x: Tensor, layer: nn.Module, *, coarse: Tensor | None = None, onto: Tensor | None = None
) -> Tensor:
    """``onto + layer(x + up(coarse))``, interpolated to the nearest pixel.

    Args:
        x: (N, C, H, W).
        layer: Depthwise convolution, normed or folded.
        coarse: (N, C, h, w).
        onto: Map of the result's shape; without gradients it may be overwritten.
    """
    parts = _conv_and_norm(layer, DepthwiseConv2d)
    if parts is not None:
        stride = (layer if parts[2] is None else layer.conv).stride
        run = dispatch.accelerated('depthwise_sum', x, *parts, stride, coarse, onto)
        if run is not None:
            return run(x, *parts, stride, coarse, onto)
    if coarse is not None:
        x = x + F.interpolate(coarse, size=x.shape[2:], mode='nearest')
        return add_depthwise(x, layer, onto=onto)
    return layer(x) if onto is None else layer(x) + onto


class LinearAttention2d(HoldsPackedWeights, nn.Module):
    """Linear attention over the pixels of a map, plus a depthwise 3x3 convolution of it.

    Query and key are ``elu + 1`` of a normed 1x1 convolution ``qk``, the value is the map itself.
    Channels are split into heads contiguously.

    Args:
        channels: Channels C.
        num_heads: Heads h.
        qk_channels: Channels of query and of key, together twice that.
        qk_groups: Groups of ``qk``: with 2, queries see the first half of the channels and keys the
            second.
        bias: Whether convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer.

    Raises:
        ValueError: if heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qk_channels: int,
        qk_groups: int,
        bias: bool,
        norm_cfg: dict,
    ):
        super().__init__()
        if channels % num_heads or qk_channels % num_heads:
            raise ValueError(
                f'LinearAttention2d: {num_heads} heads do not divide {channels} '
                f'channels and {qk_channels} query channels'
            )
        self.num_heads = num_heads
        options = dict(bias=bias, norm_cfg=norm_cfg)
        self.qk = ConvNorm(channels, 2 * qk_channels, groups=qk_groups, **options)
        self.pe = ConvNorm(channels, channels, 3, groups=channels, **options)
        self._packed = PackedWeights()

    def forward(self, x: Tensor) -> Tensor:
        parts = _conv_and_norm(self.qk, PointwiseConv2d)
        if parts is not None:
            args = x, *parts, self.num_heads, _EPSILON, self._packed
            run = dispatch.accelerated('linear_attention2d', *args)
            if run is not None:
                return add_depthwise(x, self.pe, onto=run(*args))
        return add_depthwise(x, self.pe, onto=attention2d(x, self.qk(x), self.num_heads, _EPSILON))


class RecAttn2d(NotScriptable, nn.Module):
    """``conv(x + up(attention(down(x))))``: one level down by 5x5, nearest interpolation up.

    ``down`` and ``conv`` are depthwise and normed, so blocks need no norm of their own.

    Args:
        in_channels: Channels C.
        num_heads: Heads of the attention.
        kernel_size: Side of both depthwise kernels, odd.
        bias: Whether convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer; plain batch norm by default.

    Raises:
        ValueError: if the kernel is even or heads do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        kernel_size: int = 5,
        *,
        bias: bool = False,
        norm_cfg: dict | None = None,
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'RecAttn2d: kernel_size {kernel_size} must be odd and positive')
        options = dict(bias=bias, norm_cfg=norm_cfg or dict(type='BN'))
        self.down = nn.Sequential(
            ConvNorm(in_channels, in_channels, kernel_size, 2, in_channels, **options),
            LinearAttention2d(
                in_channels, num_heads, qk_channels=in_channels, qk_groups=2, **options
            ),
        )
        self.conv = ConvNorm(in_channels, in_channels, kernel_size, 1, in_channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down
        if type(down) is nn.Sequential and len(down) == 2 and can_stand_for(down):
            coarse = down[1](add_depthwise(x, down[0]))
        else:
            coarse = down(x)
        return add_depthwise(x, self.conv, coarse=coarse)
