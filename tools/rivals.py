"""Networks as their authors compute them, for ``tools/benchmark_models.py --rival rivals:...``."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rival_dcls import dcls_convnext  # noqa: E402, F401
from rival_recnext import recnext  # noqa: E402, F401

from mmlk.backbones import SLaK  # noqa: E402
from mmlk.ops import LargeKernelDWConv2d  # noqa: E402


class _TorchLargeKernel(LargeKernelDWConv2d):
    """The three branches by torch's own convolution, which the authors use without their extension."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.children()
        y = first(x)
        for branch in others:
            y += branch(x)
        return y


def slak(**options) -> nn.Module:
    """SLaK with torch's own convolutions in the authors' formulation, never folded."""
    model = SLaK(**options)
    for module in model.modules():
        if isinstance(module, LargeKernelDWConv2d):
            module.__class__ = _TorchLargeKernel
    return model
