"""Modules for the random calls of tests/ops/fuzz.py: called with drawn maps and drawn parameters.

The reference is the same module in float64 with ``MMLK_BACKEND=reference``.
"""

from __future__ import annotations

import contextlib
import copy
import os

import torch
from torch import nn
from torch.func import functional_call

from mmlk import layers, ops

NORM = dict(type='BN')


def inception(case):
    channels = case.size(8, 16, 24, 40)
    return channels, ops.InceptionDWConv2d(channels, case.size(1, 3, 5), case.size(3, 9, 11))


def large_kernel(case):
    channels, decomposed = case.size(1, 4, 17), case.size(0, 1)
    return channels, ops.LargeKernelDWConv2d(channels, case.size(7, 13, 31), 5, bool(decomposed))


def recursive(case):
    channels, mode = case.size(1, 4, 9), case.random.choice(('bilinear', 'nearest'))
    return channels, ops.RecConv2d(channels, case.size(3, 5), case.size(1, 2, 4), mode)


def depthwise(case):
    channels = case.size(1, 3, 8, 19)
    return channels, ops.DepthwiseConv2d(channels, case.size(1, 3, 7, 17), case.size(1, 2))


def expanding(case):
    channels = case.size(1, 4, 9)
    return channels, layers.ExpandingDepthwiseConv2d(channels, case.size(3, 5, 7), case.size(1, 2))


def pointwise(case):
    channels = case.size(1, 4, 11)
    return channels, ops.PointwiseConv2d(channels, case.size(1, 3, 8), 1)


def constructed(case):
    channels = case.size(1, 4)
    return channels, ops.DCLSConv2d(channels, case.size(1, 3), case.size(1, 5), case.size(3, 7))


def constructed_depthwise(case):
    channels, version = case.size(1, 4, 9), case.random.choice(('v0', 'v1', 'gauss'))
    return channels, ops.DCLSDepthwiseConv2d(channels, 5, case.size(7, 9, 17), version=version)


def layer_norm(case):
    channels = case.size(2, 7, 32)
    return channels, layers.LayerNorm2d(channels)


def conv_norm(case):
    channels = case.size(3, 8)
    return channels, layers.ConvNorm(channels, case.size(3, 16), norm_cfg=NORM)


def mlp(case):
    channels = case.size(1, 3, 16, 33)
    return channels, layers.ConvMlp(channels, case.size(1, 8, 40))


def normed_mlp(case):
    channels = case.size(3, 16, 33)
    return channels, layers.ConvNormMlp(channels, case.size(8, 40), bias=False, norm_cfg=NORM)


def attention(case):
    heads = case.size(1, 2)
    channels = heads * case.size(2, 8, 20)
    qk = heads * case.size(2, 8)
    return channels, layers.LinearAttention2d(
        channels, heads, qk_channels=qk, qk_groups=1, bias=False, norm_cfg=NORM
    )


def folded_pointwise(case):
    channels, gelu = case.size(1, 4, 33), bool(case.size(0, 1))
    return channels, layers.FoldedPointwiseConv2d(nn.Conv2d(channels, case.size(1, 8), 1), gelu)


def folded_patches(case):
    channels, patch = case.size(1, 3, 16), case.size(1, 2, 4)
    return channels, layers.FoldedPatchConv2d(nn.Conv2d(channels, case.size(1, 8), patch, patch))


MAKERS = {
    'DCLSConv2d': constructed,
    'DCLSDepthwiseConv2d': constructed_depthwise,
    'ConvMlp': mlp,
    'ConvNorm': conv_norm,
    'ConvNormMlp': normed_mlp,
    'DepthwiseConv2d': depthwise,
    'ExpandingDepthwiseConv2d': expanding,
    'FoldedPatchConv2d': folded_patches,
    'FoldedPointwiseConv2d': folded_pointwise,
    'InceptionDWConv2d': inception,
    'LargeKernelDWConv2d': large_kernel,
    'LayerNorm2d': layer_norm,
    'LinearAttention2d': attention,
    'PointwiseConv2d': pointwise,
    'RecConv2d': recursive,
}


def drawn(make):
    """Draws a module, its map and, in the order of ``named_parameters``, its parameters."""

    def draw(case):
        channels, module = make(case)
        x = case.map(channels)
        if x.numel() // channels < 8 and any(
            isinstance(each, nn.BatchNorm2d) for each in module.modules()
        ):
            x = case.tensor([2, channels, 5, 3])
        gradients = case.mode == 'grad' and not hasattr(module, 'gelu')
        module.train(gradients and case.random.random() < 0.5)
        return [x, *_parameters(case, module)], dict(module=module)

    return draw


def _parameters(case, module) -> list[torch.Tensor]:
    """Drawn values of the parameters; those of torch's own batch norms are dense.

    In the backward pass of channels-last maps torch reads a strided weight as if it were dense.
    """
    drawn = []
    for name, parameter in module.named_parameters():
        value = case.tensor(parameter.shape)
        owner = module.get_submodule(name.rpartition('.')[0])
        drawn.append(value.contiguous() if isinstance(owner, nn.BatchNorm2d) else value)
    return drawn


def call(x, *parameters, module):
    """``module`` of ``x`` with other parameters."""
    names = [name for name, _ in module.named_parameters()]
    return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))


def call_reference(x, *parameters, module):
    """As `call`, on the reference backend in the dtype of ``x``, with a copy that keeps the state."""
    with _reference_backend():
        return call(x, *parameters, module=copy.deepcopy(module).to(x.dtype))


@contextlib.contextmanager
def _reference_backend():
    before = os.environ.get('MMLK_BACKEND')
    os.environ['MMLK_BACKEND'] = 'reference'
    try:
        yield
    finally:
        if before is None:
            del os.environ['MMLK_BACKEND']
        else:
            os.environ['MMLK_BACKEND'] = before
