"""The recursion as one autograd node, for the kernels of any device.

Autograd through a registered operator with tensor lists costs about a millisecond a call in Python,
more than the arithmetic of most blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmlk.ops import library


def node(forward: Callable, backward: Callable) -> Callable:
    """``apply(x, down_weight, *weights, mode)`` from the computations of ``mmlk::recconv2d``."""

    def run(ctx, x: Tensor, down_weight: Tensor, *rest) -> Tensor:
        *weights, mode = rest
        y, saved = forward(x, down_weight, weights, mode)
        ctx.save_for_backward(x, down_weight, *weights, *saved)
        ctx.count, ctx.mode = len(weights), mode
        return y

    def gradients(ctx, grad: Tensor) -> list[Tensor]:
        x, down_weight, *rest = ctx.saved_tensors
        wants = ctx.needs_input_grad
        mask = [wants[0], wants[1], any(wants[2:])]
        grad_x, grad_down, grad_weights = backward(
            grad, x, down_weight, rest[: ctx.count], rest[ctx.count :], ctx.mode, mask
        )
        return [grad_x, grad_down, *grad_weights]

    return library.node('recconv2d', run, gradients)
