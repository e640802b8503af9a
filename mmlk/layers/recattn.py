"""Recursive attention of RecNeXt (arXiv 2412.19628): linear attention on a halved map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers import recattn_cpu
from mmlk.layers.conv import ConvNorm
from mmlk.layers.recattn_cpu import normed_depthwise, normed_depthwise_of_sum
from mmlk.ops.blocked import BlockedWeights, KeepsBlockedWeights
from mmlk.ops.operators import channels_last

_EPSILON = 1e-6


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Normalised attention without softmax, in the cheaper of its two orders of multiplication.

    ``o_i = mean over j of (q_i . k_j) v_j / (mean over j of (q_i . k_j) + 1e-6)``. With positive
    entries in query and key the weights are positive and sum to one. ``q (k^T v)`` costs a d x e
    matrix per head, ``(q k^T) v`` an L x L one; the results differ by rounding only.

    Args:
        query: (..., L, d), positive.
        key: (..., L, d), positive.
        value: (..., L, e).

    Returns:
        (..., L, e).
    """
    length, width, depth = query.shape[-2], query.shape[-1], value.shape[-1]
    scale = length**-0.5
    if length * (width + depth) < 2 * width * depth:
        weights = (query * scale) @ (key * scale).transpose(-1, -2)
        return (weights @ value) / (weights.sum(-1, keepdim=True) + _EPSILON)
    total = query @ key.mean(-2, keepdim=True).transpose(-1, -2)
    summary = (key * scale).transpose(-1, -2) @ (value * scale)
    return (query @ summary) / (total + _EPSILON)


class LinearAttention2d(KeepsBlockedWeights, nn.Module):
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
        self._blocked = BlockedWeights()

    def forward(self, x: Tensor) -> Tensor:
        if recattn_cpu.attends_as_one(x, self.qk):
            out = recattn_cpu.attention(x, self.qk, self._blocked, self.num_heads, _EPSILON)
            return normed_depthwise(x, self.pe, self._blocked, 'pe', onto=out)
        query, key = (F.elu(self.qk(x)) + 1).chunk(2, 1)
        out = linear_attention(*(self._tokens(each) for each in (query, key, x)))
        if channels_last(x):
            out = out.transpose(1, 2).reshape(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        else:
            out = out.transpose(2, 3).reshape(x.shape)
        return self.pe(x) + out

    def _tokens(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as (N, heads, H * W, C / heads)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)


class RecAttn2d(KeepsBlockedWeights, nn.Module):
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
        self._blocked = BlockedWeights()

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.down[1](normed_depthwise(x, self.down[0], self._blocked, 'down'))
        return normed_depthwise_of_sum(x, coarse, self.conv, self._blocked, 'conv')
