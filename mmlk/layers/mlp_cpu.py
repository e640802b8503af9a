"""CPU code of the normed channel mixer: one autograd node in training, two products when folded.

As separate layers the mixer is some twenty autograd nodes, views included, around two matrix
products. Written as one it keeps fewer intermediate maps for its gradient: the second norm's output is
computed again, and where loops can be compiled GELU and the residual ride on the norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.layers.eager_cpu import (
    as_map,
    normalise,
    normalise_gradients,
    rows,
    unobserved,
    uses_own_batch,
)
from mmlk.ops import PointwiseConv2d, dispatch, products
from mmlk.ops.blocked import BlockedWeights, eager


def trains_as_one(mixer: nn.Sequential, x: Tensor, mixed: Tensor, norm: nn.Module) -> bool:
    """Whether `train` computes what the layers would.

    Args:
        mixer: Normed convolution, GELU, normed convolution.
        x: (N, C, H, W), the residual.
        mixed: (N, C, H, W), input of ``norm``.
        norm: Batch norm in front of the mixer, or ``nn.Identity``.
    """
    first, last = mixer[0], mixer[2]
    if not torch.is_grad_enabled() or not hasattr(first, 'norm') or not eager(x, mixed):
        return False
    norms = [first.norm, last.norm] if type(norm) is nn.Identity else [norm, first.norm, last.norm]
    convolutions = first.conv, last.conv
    return (
        all(uses_own_batch(each) for each in norms)
        and all(
            type(each) is PointwiseConv2d
            and each.bias is None
            and each.groups == 1
            and each.weight.dtype == torch.float32
            for each in convolutions
        )
        and x.shape[0] * x.shape[2] * x.shape[3] > 1
        and unobserved(mixer, *mixer, norm, *norms, *convolutions)
    )


def train(mixer: nn.Sequential, x: Tensor, mixed: Tensor, norm: nn.Module) -> Tensor:
    """``x + mixer(norm(mixed))`` in training mode, as one autograd node."""
    first, last = mixer[0], mixer[2]
    norms = [None if type(norm) is nn.Identity else norm, first.norm, last.norm]
    parameters = [(None, None) if each is None else (each.weight, each.bias) for each in norms]
    return _Residual.apply(
        x,
        mixed,
        norms,
        first.conv.weight,
        last.conv.weight,
        *(value for pair in parameters for value in pair),
    )


class _Residual(torch.autograd.Function):
    """Gradient formulas of `train`; ``norms`` holds the modules, parameters follow."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        mixed: Tensor,
        norms: list,
        weight1: Tensor,
        weight2: Tensor,
        *affine: Tensor | None,
    ) -> Tensor:
        saved = []
        start = mixed
        if norms[0] is not None:
            start, *statistics = normalise(mixed, norms[0])
            saved += [mixed, *statistics]
        hidden = as_map(torch.mm(rows(start), weight1.flatten(1).t()), x)
        activated, *statistics = normalise(hidden, norms[1], gelu=True)
        saved += [rows(start), hidden, *statistics, rows(activated)]
        out = as_map(torch.mm(rows(activated), weight2.flatten(1).t()), x)
        y, *statistics = normalise(out, norms[2], residual=x)
        ctx.save_for_backward(weight1, weight2, *affine, *saved, out, *statistics)
        ctx.epsilons = [0.0 if norm is None else norm.eps for norm in norms]
        return y

    @staticmethod
    @dispatch.first_derivative_only('ConvNormMlp')
    def backward(ctx, grad: Tensor):
        weight1, weight2, *rest = ctx.saved_tensors
        scales, bias1 = rest[0:6:2], rest[3]
        *kept, start, hidden, mean1, deviation1, activated, out, mean2, deviation2 = rest[6:]
        wants = ctx.needs_input_grad
        affine = [None] * 6

        def through_norm(
            index: int, flow: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, **options
        ):
            grad_x, affine[2 * index], affine[2 * index + 1] = normalise_gradients(
                flow,
                x,
                scales[index],
                mean,
                deviation,
                ctx.epsilons[index],
                [True, wants[5 + 2 * index], wants[6 + 2 * index]],
                **options,
            )
            return grad_x

        grad = grad.contiguous(memory_format=torch.channels_last)
        flow = rows(through_norm(2, grad, out, mean2, deviation2))
        grad2 = torch.mm(flow.t(), activated).view(weight2.shape) if wants[4] else None
        flow = as_map(torch.mm(flow, weight2.flatten(1)), grad)
        flow = rows(
            through_norm(1, flow, hidden, mean1, deviation1, gelu_bias=bias1, overwrite=True)
        )
        grad1 = torch.mm(flow.t(), start).view(weight1.shape) if wants[3] else None
        grad_mixed = None
        if any(wants[index] for index in (1, 5, 6)):
            grad_mixed = as_map(torch.mm(flow, weight1.flatten(1)), grad)
            if scales[0] is not None:
                grad_mixed = through_norm(0, grad_mixed, *kept, overwrite=True)
        return (grad if wants[0] else None, grad_mixed, None, grad1, grad2, *affine)


def infers_as_two(mixer: nn.Sequential, x: Tensor, mixed: Tensor, norm: nn.Module) -> bool:
    """Whether `infer` computes what the layers would; the arguments are those of `trains_as_one`."""
    first, last = mixer[0], mixer[2]
    return (
        not torch.is_grad_enabled()
        and type(norm) is nn.Identity
        and type(first) is type(last) is PointwiseConv2d
        and eager(x, mixed)
        and all(each.groups == 1 and each.bias is not None for each in (first, last))
        and x.numel() > 0
        and products.keeps_copies(first.weight, last.weight)
        and unobserved(mixer, *mixer)
    )


def infer(mixer: nn.Sequential, blocked: BlockedWeights, x: Tensor, mixed: Tensor) -> Tensor:
    """``x + mixer(mixed)`` of a folded mixer: GELU and residual ride on the products."""
    first, last = mixer[0], mixer[2]
    hidden = products.folded_linear(
        blocked, 'first', rows(mixed), first.weight, first.bias, gelu=True
    )
    y = products.folded_linear(blocked, 'last', hidden, last.weight, last.bias, residual=rows(x))
    return as_map(y, x)
