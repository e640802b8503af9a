"""Linear layers of a folded network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import dispatch, folded_linear, patch_conv2d
from mmlk.ops.packed_weights import HoldsPackedWeights, PackedWeights


class FoldedLinear(HoldsPackedWeights, nn.Linear):
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
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = gelu
        self._packed = PackedWeights()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., K), and a residual (..., N), to (..., N)."""
        return folded_linear(
            x, self.weight, self.bias, residual, gelu=self.gelu, copies=self._packed
        )


class FoldedPointwiseConv2d(HoldsPackedWeights, nn.Conv2d):
    """As `FoldedLinear`, for the channels of a map: a 1x1 convolution of stride 1 in one group.

    Args:
        layer: Trained layer.
        gelu: Apply the exact GELU.
    """

    def __init__(self, layer: nn.Conv2d, gelu: bool = False):
        super().__init__(
            layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device='meta'
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = gelu
        self._packed = PackedWeights()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, H, W), and a residual (N, O, H, W), to (N, O, H, W)."""
        pixels = x.permute(0, 2, 3, 1)
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        args = pixels, self.weight, self.bias, added, self.gelu, self._packed
        run = dispatch.accelerated('folded_linear', *args)
        if run is not None:
            return run(*args).permute(0, 3, 1, 2)
        # Elsewhere a convolution spares a contiguous map two transpositions.
        y = F.conv2d(x, self.weight, self.bias)
        y = F.gelu(y) if self.gelu else y
        return y if residual is None else residual + y


class FoldedPatchConv2d(HoldsPackedWeights, nn.Conv2d):
    """As `FoldedLinear`, for patches that do not overlap: a convolution whose stride is its kernel size.

    Args:
        layer: Trained layer, without padding, dilation and groups.
    """

    def __init__(self, layer: nn.Conv2d):
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            bias=layer.bias is not None,
            device='meta',
        )
        self.weight, self.bias = layer.weight, layer.bias
        self._packed = PackedWeights()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H // k, W // l)."""
        return patch_conv2d(x, self.weight, self.bias, copies=self._packed)


def fold_patches(layer: nn.Module) -> nn.Module:
    """`FoldedPatchConv2d` of a convolution whose patches do not overlap; any other layer as it is."""
    if (
        isinstance(layer, nn.Conv2d)
        and layer.stride == layer.kernel_size
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    ):
        return FoldedPatchConv2d(layer)
    return layer
