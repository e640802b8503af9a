"""SLaK's branches with a batch norm each, summed: one training step on a CPU as one function.

torch computes the statistics of a batch norm and its gradient in scalar double precision, plane by
plane, and reads every map several times more to add the branches. Where loops can be compiled,
`mmlk.ops.jit.branches` takes the statistics with the convolutions. Elsewhere they come from the
vectorised moments of a group norm with one plane per group, and each branch is read once more for the
sum. The gradient of a branch through its norm is linear in the incoming gradient and the branch,
``A g + B z + C`` with three numbers per channel, so that one map of sums is enough to know it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.allocation import keep_freed_memory
from mmlk.ops.branches import compose_backward, compose_branches
from mmlk.ops.jit import branches as jit
from mmlk.ops.operators import layout


def refuses(x: Tensor, weights: Sequence[Tensor], norms: Sequence[nn.Module]) -> str | None:
    """Reason why `normed_branches` cannot stand for the separate modules, or None."""
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    reason = dispatch.refuses_device(x, 'cpu')
    if reason is not None:
        return reason
    if dispatch.watched(x) or x.dtype not in (torch.float32, torch.float64):
        return 'autocast, a dispatch mode or a subclass looks on, or the precision is low'
    if len(weights) not in (2, 3) or x.numel() <= x.shape[1]:
        return 'there are not two or three branches, or only one value per channel'
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d or not norm.training or norm.weight is None \
                or norm.running_mean is None or norm.weight.dtype != x.dtype:
            return 'the norms are not plain batch norms in training'
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
            return 'a norm has hooks'
    return None


def normed_branches(x: Tensor, weights: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """``sum over branches of norm(weight * x)`` with batch statistics, which the norms record.

    Args:
        x: (N, C, H, W).
        weights: Two or three depthwise kernels (C, 1, kh, kw), sides odd.
        norms: A batch norm in training mode for each; `refuses` has the conditions.

    Returns:
        (N, C, H, W) in the layout of ``x``.
    """
    keep_freed_memory()
    affine = [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
    node = _NormedBranches if jit.refuses(x, weights) else _CompiledNormedBranches
    y, mean, var = node.apply(x, [norm.eps for norm in norms], *weights, *affine)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        for index, norm in enumerate(norms):
            _record(norm, mean[index], var[index] * (count / (count - 1)))
    return y


def _record(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    """Running statistics, as the forward pass of the module updates them."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum or 0.0)
    norm.running_var.lerp_(var, momentum or 0.0)


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of a contiguous (N, C, H, W) map."""
    n, c, h, w = z.shape
    _, mean, deviation = torch.native_group_norm(z, None, None, n, c, h * w, c, 0.0)
    var = deviation.reciprocal_().square_()
    return mean.mean(0), var.mean(0) + mean.var(0, correction=0)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


class _NormedBranches(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, eps, *parameters):
        count = len(eps)
        weights, affine = parameters[:count], parameters[count:]
        ctx.form, x = layout(x), x.contiguous()
        maps = compose_branches(x, *weights, *(None,) * (3 - count))[:count]
        means, variances = (torch.stack(each) for each in zip(*map(_moments, maps)))
        inverse = (variances + variances.new_tensor(eps)[:, None]).rsqrt()
        scales = torch.stack(affine[::2]) * inverse
        shift = torch.stack(affine[1::2]).sum(0) - (scales * means).sum(0)
        y = torch.addcmul(_per_channel(shift), maps[0], _per_channel(scales[0]))
        for z, scale in zip(maps[1:], scales[1:]):
            y.addcmul_(z, _per_channel(scale))
        ctx.save_for_backward(x, means, inverse, scales, *weights, *maps)
        ctx.mark_non_differentiable(means, variances)
        return y.contiguous(memory_format=ctx.form), means, variances

    @staticmethod
    @dispatch.first_derivative_only('LargeKernelDWConv2d')
    def backward(ctx, grad, *_):
        x, means, inverse, scales, *rest = ctx.saved_tensors
        count = len(means)
        weights, maps = rest[:count], rest[count:]
        n, c, h, w = x.shape
        grad = grad.contiguous()
        total = grad.view(n, c, h * w).sum(2).sum(0)
        products, buffer = torch.empty_like(means), torch.empty_like(grad)
        for z, row in zip(maps, products):
            torch.mul(grad, z, out=buffer)
            torch.sum(buffer.view(n, c, h * w).sum(2), 0, out=row)
        by_scale = (products - means * total).mul_(inverse)
        wanted = ctx.needs_input_grad
        grads = [None, None, *(None,) * count]
        if any(wanted[:1]) or any(wanted[2:2 + count]):
            by_map = scales * inverse * by_scale / -(n * h * w)
            constant = scales * total / -(n * h * w) - by_map * means
            parts = [
                torch.addcmul(_per_channel(constant[i]), z, _per_channel(by_map[i])).addcmul_(
                    grad, _per_channel(scales[i])) for i, z in enumerate(maps)]
            missing = (None,) * (3 - count)
            grad_x, *grad_weights = compose_backward(
                *parts, *missing, x, *weights, *missing,
                [wanted[0], *wanted[2:2 + count], *(False,) * (4 - count)])
            grads[0] = grad_x.contiguous(memory_format=ctx.form) if wanted[0] else None
            grads[2:] = grad_weights[:count]
        for i in range(count):
            grads += [by_scale[i], total]
        return tuple(each if want else None for each, want in zip(grads, wanted))


class _CompiledNormedBranches(torch.autograd.Function):
    """Statistics and what follows from them are float64 numbers per channel."""

    @staticmethod
    def forward(ctx, x, eps, *parameters):
        count = len(eps)
        weights = [each.contiguous() for each in parameters[:count]]
        maps, means, variances = jit.with_statistics(x, weights)
        inverse = (variances + variances.new_tensor(eps)[:, None]).rsqrt_()
        scales = torch.stack(parameters[count::2]) * inverse
        # The maps are centred by what float32 has of the mean; the rest is part of the shift.
        centres = means.float()
        offsets = centres - means
        shift = torch.stack(parameters[count + 1::2]).sum(0) + (scales * offsets).sum(0)
        y = jit.affine(maps, centres, scales, shift)
        ctx.save_for_backward(x, centres, offsets, inverse, scales, *weights, *maps)
        means, variances = centres, variances.float()
        ctx.mark_non_differentiable(means, variances)
        return y.contiguous(memory_format=layout(x)), means, variances

    @staticmethod
    @dispatch.first_derivative_only('LargeKernelDWConv2d')
    def backward(ctx, grad, *_):
        x, centres, offsets, inverse, scales, *rest = ctx.saved_tensors
        count, wanted = len(centres), ctx.needs_input_grad
        weights, maps = rest[:count], rest[count:]
        total, *products = jit.totals(grad, maps, centres)
        by_scale = torch.addcmul(torch.stack(products), offsets, total).mul_(inverse)
        grads = [None, None, *(None,) * count]
        if wanted[0] or any(wanted[2:2 + count]):
            share = -x.shape[1] / x.numel()
            by_map = scales * inverse * by_scale * share
            constant = torch.addcmul(by_map * offsets, scales, total, value=share)
            table = torch.stack((scales, by_map, centres, constant), 1).float()
            grad_x, grads[2:] = jit.gradients(
                [grad], x, weights, wanted[0], wanted[2:2 + count], maps, table)
            grads[0] = grad_x.contiguous(memory_format=layout(x)) if wanted[0] else None
        total = total.float()
        for each in by_scale.float():
            grads += [each, total]
        return tuple(each if want else None for each, want in zip(grads, wanted))
