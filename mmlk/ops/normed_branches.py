"""SLaK's branches with a batch norm each, summed: one training step on a CPU as one function.

torch computes the statistics of a batch norm and its gradient in scalar double precision, plane by
plane, and reads every map several times more to add the branches. Where loops can be compiled,
`mmlk.ops.jit.branches` takes the moments with the convolutions. Elsewhere they come from the
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
from mmlk.ops.jit import branch_norms
from mmlk.ops.jit import branches as jit
from mmlk.ops.jit.batch_norm import takes
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
        if (
            type(norm) is not nn.BatchNorm2d
            or not norm.training
            or norm.weight is None
            or norm.running_mean is None
            or norm.weight.dtype != x.dtype
        ):
            return 'the norms are not plain batch norms in training'
        if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
            return 'a norm has hooks'
    return None


def normed_branches(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d]
) -> Tensor:
    """``sum over branches of norm(weight * x)`` with batch statistics, which the norms record.

    Args:
        x: (N, C, H, W).
        weights: Two or three depthwise kernels (C, 1, kh, kw), sides odd.
        norms: A batch norm in training mode for each; `refuses` has the conditions.

    Returns:
        (N, C, H, W) in the layout of ``x``.
    """
    keep_freed_memory()
    epsilons, momenta = [norm.eps for norm in norms], [_count(norm) for norm in norms]
    tensors = [(norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in norms]
    affine = [each for weight, bias, *_ in tensors for each in (weight, bias)]
    if jit.refuses(x, weights) is None and all([takes(*each) for each in tensors]):
        return _CompiledNormedBranches.apply(x, tensors, epsilons, momenta, *weights, *affine)
    y, mean, var = _NormedBranches.apply(x, epsilons, *weights, *affine)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        for index, ((_, _, running_mean, running_var), momentum) in enumerate(
            zip(tensors, momenta)
        ):
            running_mean.lerp_(mean[index], momentum)
            running_var.lerp_(var[index] * (count / (count - 1)), momentum)
    return y


def _count(norm: nn.BatchNorm2d) -> float:
    """Count the batch, as the module does; the share of it in the running statistics."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


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
        if any(wanted[:1]) or any(wanted[2 : 2 + count]):
            by_map = scales * inverse * by_scale / -(n * h * w)
            constant = scales * total / -(n * h * w) - by_map * means
            parts = [
                torch.addcmul(_per_channel(constant[i]), z, _per_channel(by_map[i])).addcmul_(
                    grad, _per_channel(scales[i])
                )
                for i, z in enumerate(maps)
            ]
            missing = (None,) * (3 - count)
            grad_x, *grad_weights = compose_backward(
                *parts,
                *missing,
                x,
                *weights,
                *missing,
                [wanted[0], *wanted[2 : 2 + count], *(False,) * (4 - count)],
            )
            grads[0] = grad_x.contiguous(memory_format=ctx.form) if wanted[0] else None
            grads[2:] = grad_weights[:count]
        for i in range(count):
            grads += [by_scale[i], total]
        return tuple(each if want else None for each, want in zip(grads, wanted))


class _CompiledNormedBranches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norms, epsilons, momenta, *parameters):
        weights = [each.contiguous() for each in parameters[: len(norms)]]
        maps, moments, bands = jit.with_moments(x, weights)
        table = branch_norms.statistics(moments, x.shape, bands, norms, epsilons, momenta)
        ctx.save_for_backward(x, table, maps, *weights)
        return _in_layout(branch_norms.affine(maps, table, x), x)

    @staticmethod
    @dispatch.first_derivative_only('LargeKernelDWConv2d')
    def backward(ctx, grad):
        x, table, maps, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        wants_map, wants_taps = wanted[0], wanted[_KERNELS : _KERNELS + len(weights)]
        sums, flows = branch_norms.totals(grad, maps, table)
        grads = [None] * (_KERNELS + len(weights))
        if wants_map or any(wants_taps):
            grad_x, grads[_KERNELS:] = jit.gradients(
                [grad], x, weights, wants_map, wants_taps, maps, flows
            )
            grads[0] = _in_layout(grad_x, x) if wants_map else None
        total, *by_scale = sums.unbind()
        for each in by_scale:
            grads += [each, total]
        return tuple([each if want else None for each, want in zip(grads, wanted)])


# Position of the kernels among the arguments of `_CompiledNormedBranches`.
_KERNELS = 4


def _in_layout(y: Tensor, x: Tensor) -> Tensor:
    """A channels-last map in the layout of ``x``."""
    form = layout(x)
    return y if form is torch.channels_last else y.contiguous(memory_format=form)
