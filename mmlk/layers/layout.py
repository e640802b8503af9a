"""Memory layout of gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def _to_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)


def channels_last_gradient(x: Tensor) -> Tensor:
    """``x``, with a gradient that is turned to channels-last layout on its way back.

    The gradient of a mean or a sum has plain strides whatever the layout of the map, residual sums hand
    them on through the whole network, and torch's channels-last norms take four times as long for
    such a gradient.
    """
    if not x.requires_grad or torch.compiler.is_compiling():
        return x
    y = x.view_as(x)  # not by a function of its own, whose result could not be written in place
    y.register_hook(_to_channels_last)
    return y
