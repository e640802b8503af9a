"""1x1 convolution as the matrix product it is.

On a channels-last map the pixels are the rows of a matrix without any copy, so the product needs no
reordering of map or kernel. torch's convolution reaches the same product by way of layouts of its
own, and on small maps spends more time there than multiplying.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.maps import channels_last
from mmlk.ops.modules import NotScriptable, pads_evenly
from mmlk.ops.reference import pointwise_conv2d_reference


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Every pixel's channels times one matrix, or a block-diagonal one.

    `pointwise_conv2d_reference` is the definition. The result has the memory layout of ``x``.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, 1, 1); the number of groups follows from the shapes.
        bias: (O,).
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, O, H, W).

    Raises:
        ValueError: if the kernel is not 1x1 or does not fit the channels.
    """
    args = _arguments(x, weight, bias)
    return dispatch.run('pointwise_conv2d', *args, backend=backend)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not torch.jit.is_tracing() and (
        x.dim() != 4
        or weight.dim() != 4
        or weight.shape[2:] != (1, 1)
        or x.shape[1] % weight.shape[1]
        or weight.shape[0] % (x.shape[1] // weight.shape[1])
    ):
        raise ValueError(
            f'pointwise_conv2d: x {tuple(x.shape)} and weight {tuple(weight.shape)} '
            'are not (N, C, H, W) and (O, C / groups, 1, 1)'
        )
    return x, weight, bias


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, matrix = x.permute(0, 2, 3, 1), weight.flatten(1)
    groups = x.shape[1] // weight.shape[1]
    if groups == 1:
        return F.linear(rows, matrix, bias).permute(0, 3, 1, 2)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    parts = [F.linear(*each) for each in zip(rows.chunk(groups, -1), matrix.chunk(groups), biases)]
    return torch.cat(parts, -1).permute(0, 3, 1, 2)


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    reason = dispatch.refusal_for_device(x, 'cpu', weight, bias)
    if reason is None and not channels_last(x):
        return 'the map is not channels-last'
    return reason


class PointwiseConv2d(NotScriptable, nn.Conv2d):
    """``nn.Conv2d`` that is computed by `pointwise_conv2d` where its kernel and stride are 1.

    The arguments are those of ``nn.Conv2d``, since libraries of adapters make layers of the same class.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.kernel_size == self.stride == (1, 1) or not pads_evenly(self):
            return super().forward(x)
        return pointwise_conv2d(x, self.weight, self.bias)


dispatch.declare('pointwise_conv2d', _arguments, pointwise_conv2d_reference)
dispatch.register('pointwise_conv2d', dispatch.Backend('cpu', _run, _refusal))
