"""Linear layer of a folded network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mmlk.ops.blocked import BlockedWeights, KeepsBlockedWeights


class FoldedLinear(KeepsBlockedWeights, nn.Linear):
    """``gelu(x W^T + b)`` or ``x W^T + b`` for inference, with the parameters of a given layer.

    On a CPU, in float32 and without gradients, oneDNN multiplies with a second copy of the weight
    in its own blocked order and applies the activation as it goes: a plain matrix product arranges the
    weight anew on every call, which costs most where images are few. The copy is made on first use
    and again after the weight has changed; it is not part of the state dict.

    Args:
        layer: Trained layer.
        gelu: Apply the exact GELU.
    """

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None,
                         device='meta')
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = gelu
        self._blocked = BlockedWeights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._takes_blocked_weight(x):
            activation = ('gelu', [], 'none') if self.gelu else ('none', [], '')

            def reorder(plain: torch.Tensor) -> torch.Tensor:
                return torch.ops.mkldnn._reorder_linear_weight(plain, x.numel() // x.shape[-1])

            return torch.ops.mkldnn._linear_pointwise(
                x, self._blocked.get('weight', self.weight, reorder), self.bias, *activation)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y

    def _takes_blocked_weight(self, x: torch.Tensor) -> bool:
        return (type(x) is torch.Tensor and x.device.type == 'cpu' and x.numel() > 0
                and x.dtype == self.weight.dtype == torch.float32
                # Without a version counter a changed weight could not be told.
                and not self.weight.is_inference()
                and not torch.is_grad_enabled() and not torch.is_autocast_enabled('cpu')
                and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
                # FLOP counters and other observers know the plain operator only.
                and torch._C._len_torch_dispatch_stack() == 0
                and torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()
                and hasattr(torch.ops.mkldnn, '_linear_pointwise'))
