"""The second half of ConvNeXt-like blocks in training on a CPU, as one autograd node.

``x + drop_path(scale * mlp(norm(mixed)))``: the residual rides on the last product, and the layers
between need neither views nor nodes of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.layers.drop import DropPath
from mmlk.layers.eager_cpu import as_map, rows, unobserved
from mmlk.layers.norm import LayerNorm
from mmlk.ops import dispatch, jit
from mmlk.ops.allocation import keep_freed_memory
from mmlk.ops.blocked import eager
from mmlk.ops.channel_mlp import Mlp, mlp_backward, mlp_forward
from mmlk.ops.jit import layer_norm


def trains_as_one(
    x: Tensor,
    mixed: Tensor,
    norm: nn.Module,
    first: nn.Module,
    act: nn.Module,
    second: nn.Module,
    scale: Tensor | None,
    drop_path: DropPath,
) -> bool:
    """Whether `train` computes what the layers would; the arguments are those of `add_normed_mlp`."""
    if not (
        torch.is_grad_enabled()
        and eager(x, mixed)
        and type(norm) is LayerNorm
        and type(act) is nn.GELU
        and type(first) is type(second) is nn.Linear
        and act.approximate == 'none'
        and jit.unavailable() is None
        and x.numel() > 0
        and layer_norm.takes(mixed.shape[1])
        and unobserved(norm, first, act, second, drop_path)
    ):
        return False
    parameters = norm.weight, norm.bias, first.weight, first.bias, second.weight, second.bias
    return all(
        type(each) is nn.Parameter
        and each.dtype == torch.float32
        and each.is_cpu
        and each.is_contiguous()
        for each in (*parameters, *([] if scale is None else [scale]))
    )


def train(
    x: Tensor,
    mixed: Tensor,
    norm: nn.Module,
    first: nn.Module,
    second: nn.Module,
    scale: Tensor | None,
    drop_path: DropPath,
) -> Tensor:
    """The sum, channels-last; the arguments are those of `add_normed_mlp`."""
    keep_freed_memory()
    return _NormedMlp.apply(
        x,
        mixed,
        norm.weight,
        norm.bias,
        first.weight,
        first.bias,
        second.weight,
        second.bias,
        scale,
        norm.eps,
        drop_path.draw(x),
    )


class _NormedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, mixed, norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale, eps, factors
    ):
        start = rows(mixed)
        normed, *statistics = layer_norm.forward(start, norm_weight, norm_bias, eps, keep=True)
        out, kept = mlp_forward(
            normed, weight1, bias1, weight2, bias2, scale, rows(x) if factors is None else None
        )
        out = as_map(out, x)
        ctx.factors = factors
        ctx.save_for_backward(start, norm_weight, *statistics, *kept)
        return out if factors is None else torch.addcmul(x, out, factors)

    @staticmethod
    @dispatch.first_derivative_only('add_normed_mlp')
    def backward(ctx, grad):
        start, norm_weight, mean, deviation, *kept = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        flow = grad if ctx.factors is None else grad * ctx.factors
        through_norm = any(wants[1:4])
        gradients = mlp_backward(rows(flow), Mlp(*kept), (through_norm, *wants[4:9]))
        by_norm = None, None, None
        if through_norm:
            by_norm = layer_norm.backward(gradients[0], start, norm_weight, mean, deviation)
            by_norm = as_map(by_norm[0], grad), *by_norm[1:]
        found = *by_norm, *gradients[1:], None, None
        return grad if wants[0] else None, *(
            each if wanted else None for each, wanted in zip(found, wants[1:])
        )
