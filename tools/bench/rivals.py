"""Networks as their authors compute them, for ``tools/bench/benchmark_models.py --rival rivals:...``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rival_dcls import PlainBlock, dcls_convnext  # noqa: E402, F401
from rival_recnext import recnext  # noqa: E402, F401

from mmlk.backbones import SLaK  # noqa: E402
from mmlk.layers import LayerNorm2d  # noqa: E402
from mmlk.networks.blocks import ConvNeXtBlock  # noqa: E402
from mmlk.ops import LargeKernelDWConv2d, PatchConv2d  # noqa: E402


class _TorchLargeKernel(LargeKernelDWConv2d):
    """The three branches by torch's own convolution, which the authors use without their extension."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        y = first(x)
        for branch in others:
            y += branch(x)
        return y


class _ChannelsFirstNorm(LayerNorm2d):
    """ConvNeXt's channels-first norm, spelled out in moments."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


def slak(**options) -> nn.Module:
    """SLaK with torch's own convolutions in the authors' formulation, never folded."""
    model = SLaK(**options)
    plain = {
        LargeKernelDWConv2d: _TorchLargeKernel,
        ConvNeXtBlock: PlainBlock,
        PatchConv2d: nn.Conv2d,
        LayerNorm2d: _ChannelsFirstNorm,
    }
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
    return model
