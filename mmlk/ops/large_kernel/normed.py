"""SLaK's branches with a batch norm each, summed: one training step on a CPU as one operator.

torch computes the statistics of a batch norm and its gradient in scalar double precision, plane by
plane, and reads every map several times more to add the branches. Where loops can be compiled, the
moments are taken with the convolutions. Elsewhere they come from the vectorised moments of a group norm
with one plane per group, and each branch is read once more for the sum. The gradient of a branch
through its norm is linear in the incoming gradient and the branch, ``A g + B z + C`` with three numbers
per channel, so that one map of sums is enough to know it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import dispatch, library
from mmlk.ops.large_kernel import loops, loops_norms
from mmlk.ops.large_kernel.cpu import compute_backward, compute_branches
from mmlk.ops.maps import layout
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.norm.loops_batch_norm import can_run
from mmlk.ops.reference import large_kernel_normed_reference
from mmlk.ops.states import BatchNormState


def large_kernel_normed(
    x: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[BatchNormState],
    *,
    backend: str | None = None,
) -> Tensor:
    """``sum over branches of norm(weight * x)`` with batch statistics, which the norms record.

    `large_kernel_normed_reference` is the definition.

    Args:
        x: (N, C, H, W), at least two values per channel.
        weights: Depthwise kernels (C, 1, kh, kw), sides odd.
        norms: A batch norm for each.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W) in the layout of ``x``.

    Raises:
        ValueError: if there is not one norm for each kernel.
    """
    args = _arguments(x, weights, norms)
    return dispatch.run('large_kernel_normed', *args, backend=backend)


def _arguments(
    x: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNormState]
) -> tuple[Tensor, tuple[Tensor, ...], tuple[BatchNormState, ...]]:
    if len(weights) != len(norms):
        raise ValueError(
            f'large_kernel_normed: {len(weights)} kernels but {len(norms)} norms, '
            'expected one for each'
        )
    return x, tuple(weights), tuple(norms)


def _refusal(x: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNormState]) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile fuses the plain layers'
    tensors = [each for norm in norms for each in norm.tensors]
    reason = dispatch.refusal_for_device(x, 'cpu', *weights, *tensors)
    if reason is not None:
        return reason
    if dispatch.needs_dispatcher(x):
        return 'autocast, a dispatch mode or a subclass has to see the layers'
    if x.dtype not in (torch.float32, torch.float64):
        return f'the input is {x.dtype}'
    if len(weights) not in (2, 3) or x.numel() <= x.shape[1]:
        return 'there are not two or three branches, or only one value per channel'
    if any(each.dtype != x.dtype for each in (*weights, *tensors)):
        return 'kernels or norms have another dtype than the map'
    return None


def _run(x: Tensor, weights: Sequence[Tensor], norms: Sequence[BatchNormState]) -> Tensor:
    keep_freed_memory()
    epsilons, momenta = [norm.eps for norm in norms], [norm.record() for norm in norms]
    affine = [each for norm in norms for each in norm[:2]]
    tensors = [norm.tensors for norm in norms]
    if loops.refusal(x, weights) is None and all([can_run(*each) for each in tensors]):
        return _apply_loops(x, *weights, *affine, tensors, epsilons, momenta)
    y, mean, var = _apply(x, *weights, *affine, epsilons)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        for index, (norm, momentum) in enumerate(zip(norms, momenta)):
            norm.running_mean.lerp_(mean[index], momentum)
            norm.running_var.lerp_(var[index] * (count / (count - 1)), momentum)
    return y


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of a contiguous (N, C, H, W) map."""
    n, c, h, w = z.shape
    _, mean, rstd = torch.native_group_norm(z, None, None, n, c, h * w, c, 0.0)
    var = rstd.reciprocal_().square_()
    return mean.mean(0), var.mean(0) + mean.var(0, correction=0)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _forward(ctx, x, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    *parameters, eps = arguments
    count = len(eps)
    weights, affine = parameters[:count], parameters[count:]
    ctx.form, x = layout(x), x.contiguous()
    maps = compute_branches(x, *weights, *(None,) * (3 - count))[:count]
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


def _backward(ctx, grad: Tensor, *_) -> list[Tensor | None]:
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
    grads = [None] * (1 + count)
    if any(wanted[: 1 + count]):
        by_map = scales * inverse * by_scale / -(n * h * w)
        constant = scales * total / -(n * h * w) - by_map * means
        parts = [
            torch.addcmul(_per_channel(constant[i]), z, _per_channel(by_map[i])).addcmul_(
                grad, _per_channel(scales[i])
            )
            for i, z in enumerate(maps)
        ]
        missing = (None,) * (3 - count)
        mask = [*wanted[: 1 + count], *(False,) * (4 - count)]
        grad_x, *grad_weights = compute_backward(*parts, *missing, x, *weights, *missing, mask)
        grads = [
            grad_x.contiguous(memory_format=ctx.form) if wanted[0] else None,
            *grad_weights[:count],
        ]
    for each in by_scale:
        grads += [each, total]
    return grads


def _loop_forward(ctx, x, *arguments) -> Tensor:
    *parameters, norms, epsilons, momenta = arguments
    weights = [each.contiguous() for each in parameters[: len(norms)]]
    maps, moments, bands = loops.with_moments(x, weights)
    table = loops_norms.statistics(moments, x.shape, bands, norms, epsilons, momenta)
    ctx.save_for_backward(x, table, maps, *weights)
    return _in_layout(loops_norms.affine(maps, table, x), x)


def _loop_backward(ctx, grad: Tensor) -> list[Tensor | None]:
    x, table, maps, *weights = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    wants_map, wants_taps = wanted[0], wanted[1 : 1 + len(weights)]
    sums, flows = loops_norms.totals(grad, maps, table)
    grads = [None] * (1 + len(weights))
    if wants_map or any(wants_taps):
        grad_x, grads[1:] = loops.gradients([grad], x, weights, wants_map, wants_taps, maps, flows)
        grads[0] = _in_layout(grad_x, x) if wants_map else None
    total, *by_scale = sums.unbind()
    for each in by_scale:
        grads += [each, total]
    return grads


def _in_layout(y: Tensor, x: Tensor) -> Tensor:
    """A channels-last map in the layout of ``x``."""
    form = layout(x)
    return y if form is torch.channels_last else y.contiguous(memory_format=form)


_apply = library.node('large_kernel_normed', _forward, _backward)
_apply_loops = library.node('large_kernel_normed', _loop_forward, _loop_backward)
dispatch.declare('large_kernel_normed', _arguments, large_kernel_normed_reference)
dispatch.register('large_kernel_normed', dispatch.Backend('cpu', _run, _refusal))
