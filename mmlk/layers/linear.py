"""Linear layers of a folded network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import dispatch, products
from mmlk.ops.blocked import BlockedWeights, KeepsBlockedWeights


class _Folded(KeepsBlockedWeights):
    """What the layers have in common."""

    def _adopt(self, layer: nn.Module, gelu: bool) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = gelu
        self._blocked = BlockedWeights()

    def _with_copy(self, x: Tensor, residual: Tensor | None) -> Tensor:
        # One in another order of memory would have to be copied first.
        rides = residual is not None and residual.stride(-1) == 1
        y = products.folded_linear(
            self._blocked,
            'weight',
            x,
            self.weight,
            self.bias,
            gelu=self.gelu,
            residual=residual if rides else None,
        )
        return y if rides or residual is None else residual + y

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        y = F.gelu(y) if self.gelu else y
        return y if residual is None else residual + y

    def _takes_copy(self, x: Tensor, residual: Tensor | None) -> bool:
        return (
            not torch.is_grad_enabled()
            and x.numel() > 0
            and all(
                not dispatch.watched(each) and each.dtype == torch.float32
                for each in (x, residual)
                if each is not None
            )
            and dispatch.refuses_device(x, 'cpu') is None
            and products.keeps_copies(self.weight)
        )


class FoldedLinear(_Folded, nn.Linear):
    """``[residual +] gelu(x W^T + b)``, or without GELU, with the parameters of a given layer.

    On a CPU, in float32 and without gradients, a second copy of the weight is multiplied with, in the
    order in which it is read, and activation and residual are applied on the way: a plain matrix
    product arranges the weight anew on every call, which costs most where images are few. The copy is
    made on first use and again after the weight has changed; it is not part of the state dict.

    Args:
        layer: Trained layer.
        gelu: Apply the exact GELU.
    """

    def __init__(self, layer: nn.Linear, gelu: bool = False):
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device='meta'
        )
        self._adopt(layer, gelu)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., K), and a residual (..., N), to (..., N)."""
        if self._takes_copy(x, residual):
            return self._with_copy(x, residual)
        return self._finish(F.linear(x, self.weight, self.bias), residual)


class FoldedPointwiseConv2d(_Folded, nn.Conv2d):
    """As `FoldedLinear`, for the channels of a map: a 1x1 convolution of stride 1 in one group.

    Args:
        layer: Trained layer.
        gelu: Apply the exact GELU.
    """

    def __init__(self, layer: nn.Conv2d, gelu: bool = False):
        super().__init__(
            layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device='meta'
        )
        self._adopt(layer, gelu)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and a residual (N, O, H, W), to (N, O, H, W)."""
        if self._takes_copy(x, residual):
            residual = None if residual is None else residual.permute(0, 2, 3, 1)
            return self._with_copy(x.permute(0, 2, 3, 1), residual).permute(0, 3, 1, 2)
        return self._finish(F.conv2d(x, self.weight, self.bias), residual)
