"""Exact algebra that folds norms and scales into the convolutions beside them.

Statistics are those of eval mode. Sums are taken in float64 and rounded once to the weights' dtype.
Every function returns a new convolution and leaves its arguments as they are.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def has_affine_form(norm: nn.Module) -> bool:
    """Whether ``norm`` keeps running statistics, so that it is a scale and a shift in eval mode."""
    return getattr(norm, 'running_var', None) is not None


def norm_affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) in float64 that an eval-mode batch norm applies per channel.

    Raises:
        ValueError: If ``norm`` keeps no running statistics and so has no fixed affine form.
    """
    if not has_affine_form(norm):
        raise ValueError(f'norm_affine: {type(norm).__name__} keeps no running statistics to fold')
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def fold_norm_after(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Convolution equal to ``norm(conv(x))``."""
    scale, shift = norm_affine(norm)
    weight = conv.weight.detach().double()
    bias = shift if conv.bias is None else shift + conv.bias.detach().double() * scale
    return _with_parameters(conv, weight * _per_output(scale, weight), bias)


def fold_norm_before(norm: nn.Module, conv: nn.Module) -> nn.Module:
    """Convolution equal to ``conv(norm(x))``.

    Raises:
        ValueError: If the convolution pads: padding inserts zeros after the norm, which no constant
            bias can express.
    """
    if any(conv.padding):
        raise ValueError(f'fold_norm_before: padding {conv.padding} makes the fold inexact')
    scale, shift = norm_affine(norm)
    weight = conv.weight.detach().double()
    # Input channel of each (output channel, column) pair of a grouped convolution.
    outputs, columns = weight.shape[:2]
    group = torch.arange(outputs, device=weight.device) // (outputs // conv.groups)
    source = group[:, None] * columns + torch.arange(columns, device=weight.device)
    expand = (...,) + (None,) * (weight.ndim - 2)
    bias = (weight * shift[source][expand]).flatten(1).sum(1)
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double()
    return _with_parameters(conv, weight * scale[source][expand], bias)


def fold_scale_after(conv: nn.Module, scale: torch.Tensor) -> nn.Module:
    """Convolution equal to ``scale * conv(x)`` with a per-channel ``scale`` (C,)."""
    scale = scale.detach().double()
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double() * scale
    return _with_parameters(conv, weight * _per_output(scale, weight), bias)


def _per_output(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scale.reshape((-1,) + (1,) * (weight.ndim - 1))


def _with_parameters(conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    folded = copy.deepcopy(conv)
    dtype = conv.weight.dtype
    folded.weight = nn.Parameter(weight.to(dtype))
    folded.bias = None if bias is None else nn.Parameter(bias.to(dtype))
    return folded
