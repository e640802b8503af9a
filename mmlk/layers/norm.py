"""Normalisation layers shared by the backbones."""

from __future__ import annotations

import torch
from torch import nn

from mmlk.ops import layer_norm
from mmlk.ops.modules import NotScriptable


class LayerNorm(NotScriptable, nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis, computed by `mmlk.ops.layer_norm`.

    Args:
        channels: Size C of the last axis.
        eps: Added to the variance.
        elementwise_affine: Have a weight and a bias.
    """

    def __init__(self, channels: int, eps: float = 1e-5, elementwise_affine: bool = True):
        super().__init__(channels, eps, elementwise_affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class LayerNorm2d(LayerNorm):
    """Layer normalisation over the channels of an (N, C, H, W) map, with biased variance.

    It derives from ``nn.LayerNorm``, so optimizer constructors that treat norms apart recognise it.
    The memory format of the input is kept.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
            return y.contiguous()
        return y


_NORMS = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'LN2d': LayerNorm2d,
}


def build_norm(cfg: dict, channels: int) -> nn.Module:
    """Norm layer for an (N, C, H, W) map from an OpenMMLab ``norm_cfg``.

    Args:
        cfg: ``type`` is one of ``'BN'``, ``'SyncBN'`` and ``'LN2d'``; ``requires_grad`` (default
            true) freezes the affine parameters; the rest goes to the layer's constructor.
        channels: Number of channels C.

    Raises:
        ValueError: If the type is missing or unknown.
    """
    options = dict(cfg)
    kind = options.pop('type', None)
    if kind not in _NORMS:
        raise ValueError(f'build_norm: type {kind!r} is not one of {", ".join(_NORMS)}')
    requires_grad = options.pop('requires_grad', True)
    norm = _NORMS[kind](channels, **options)
    for parameter in norm.parameters():
        parameter.requires_grad_(requires_grad)
    return norm
