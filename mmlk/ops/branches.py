"""Two or three depthwise kernels on one map: the branches of SLaK's large kernel as one operator.

In training every branch has a norm of its own and the outputs stay apart (`large_kernel_branches`);
folded they are summed (`large_kernel_sum`). As one operator the branches can share what they read,
and the gradient of the map is written once instead of once per branch and then summed. On a CPU that
is the work of `mmlk.ops.jit.branches`; where it refuses, both are a composition of `depthwise_conv2d`.

The registered operators take up to three kernels as separate arguments rather than a list, which
autograd of registered operators handles an order of magnitude slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import cpu, dispatch
from mmlk.ops.allocation import keep_freed_memory
from mmlk.ops.jit import branches as jit
from mmlk.ops.operators import layout
from mmlk.ops.reference import large_kernel_branches_reference, large_kernel_sum_reference


def large_kernel_branches(
    x: Tensor, weights: Sequence[Tensor], *, backend: str | None = None
) -> tuple[Tensor, ...]:
    """The map convolved with each of two or three depthwise kernels.

    `large_kernel_branches_reference` is the definition. The results have the memory layout of ``x``.

    Args:
        x: (N, C, H, W).
        weights: Two or three kernels (C, 1, kh, kw), sides odd.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        As many maps (N, C, H, W) as there are kernels, in the dtype of ``x``, or of autocast.

    Raises:
        ValueError: if shapes or dtypes do not fit.
    """
    weights = tuple(weights)
    if not torch.jit.is_tracing():
        _check('large_kernel_branches', x, weights, None)
    args = (x, *weights, *(None,) * (3 - len(weights)))
    parts = dispatch.choose('large_kernel_branches', *args, backend=backend)(*args)
    return tuple(parts[: len(weights)])


def large_kernel_sum(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """The sum of the map's convolutions with two or three depthwise kernels.

    `large_kernel_sum_reference` is the definition. The result has the memory layout of ``x``.

    Args:
        x: (N, C, H, W).
        weights: Two or three kernels (C, 1, kh, kw), sides odd.
        bias: (C,), added once.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W) in the dtype of ``x``, or of autocast.

    Raises:
        ValueError: if shapes or dtypes do not fit.
    """
    weights = tuple(weights)
    if not torch.jit.is_tracing():
        _check('large_kernel_sum', x, weights, bias)
    args = (x, *weights, *(None,) * (3 - len(weights)), bias)
    return dispatch.choose('large_kernel_sum', *args, backend=backend)(*args)


def _check(name: str, x: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None) -> None:
    if len(weights) not in (2, 3):
        raise ValueError(f'{name}: got {len(weights)} kernels, expected 2 or 3')
    if x.dim() != 4:
        raise ValueError(f'{name}: x has shape {tuple(x.shape)}, expected (N, C, H, W)')
    channels = x.shape[1]
    for index, weight in enumerate(weights):
        if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
            raise ValueError(
                f'{name}: weights[{index}] has shape {tuple(weight.shape)}, expected '
                f'({channels}, 1, kh, kw) for {channels} channels'
            )
        if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ValueError(
                f'{name}: weights[{index}] has the even kernel '
                f'{tuple(weight.shape[2:])}, both sides must be odd'
            )
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f'{name}: x is {x.dtype} but weights[{index}] is {weight.dtype}, cast '
                'one of them or use autocast'
            )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f'{name}: bias has shape {tuple(bias.shape)}, expected ({channels},)')


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


# --------------------------------------------------------------------------------- operators


def _branches_fake(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    form = layout(x)
    return (
        torch.empty_like(x, memory_format=form),
        torch.empty_like(x, memory_format=form),
        x.new_empty(0) if third is None else torch.empty_like(x, memory_format=form),
    )


def _sum_fake(x: Tensor, *parameters: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


def _backward_fake(
    grad_first: Tensor,
    grad_second: Tensor,
    grad_third: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = [torch.empty_like(x, memory_format=layout(x)) if mask[0] else x.new_empty(0)]
    for weight, wanted in zip((first, second, third), mask[1:4]):
        gradients.append(
            torch.empty_like(weight, memory_format=torch.contiguous_format)
            if wanted
            else first.new_empty(0)
        )
    return *gradients, first.new_empty(first.shape[0] if mask[4] else 0)


def _setup(ctx, inputs, output) -> None:
    x, first, second, third = inputs[:4]
    ctx.save_for_backward(x, first, second, third)


def _gradients(ctx, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    mask = [*wanted[:4], len(wanted) > 4 and wanted[4]]
    results = torch.ops.mmlk.large_kernel_backward(*grads, *ctx.saved_tensors, mask)
    return tuple(each if want else None for each, want in zip(results, mask))


def _branches_gradient(ctx, *grads: Tensor):
    return _gradients(ctx, grads)[:4]


def _sum_gradient(ctx, grad: Tensor):
    return _gradients(ctx, (grad, grad, grad))


dispatch.define(
    'large_kernel_backward',
    '(Tensor grad_first, Tensor grad_second, Tensor grad_third, Tensor x, Tensor first, '
    'Tensor second, Tensor? third, bool[5] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    fake=_backward_fake,
)
branches_operator = dispatch.define(
    'large_kernel_branches',
    '(Tensor x, Tensor first, Tensor second, Tensor? third) -> (Tensor, Tensor, Tensor)',
    fake=_branches_fake,
    setup_context=_setup,
    backward=_branches_gradient,
)
sum_operator = dispatch.define(
    'large_kernel_sum',
    '(Tensor x, Tensor first, Tensor second, Tensor? third, Tensor? bias) -> Tensor',
    fake=_sum_fake,
    setup_context=_setup,
    backward=_sum_gradient,
)


# --------------------------------------------------------------------------------- torch on any device


def _prepared(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Map and kernels in the type that is computed in, the kernels in plain strides."""
    keep_freed_memory()
    work = cpu._working(x)
    return work, [each.to(work.dtype).contiguous() for each in _given(*weights)]


def _compiled_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    work: Tensor,
    weights: list[Tensor],
    mask: list[bool],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Gradients of the map and of three kernels of ``dtype``, empty where they are not wanted."""
    # Those of a sum are one gradient.
    grads = grads[:1] if grads[0] is grads[1] else grads[: len(weights)]
    grad_x, taps = jit.gradients(
        [cpu._working(each) for each in grads], work, weights, mask[0], mask[1 : 1 + len(weights)]
    )
    return [
        x.new_empty(0)
        if grad_x is None
        else grad_x.to(x.dtype).contiguous(memory_format=layout(x)),
        *(
            x.new_empty(0, dtype=dtype) if each is None else each.to(dtype)
            for each in [*taps, *(None,) * (3 - len(taps))]
        ),
    ]


def compose_branches(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_branches`; 16-bit types are rounded once."""
    work, weights = _prepared(x, first, second, third)
    if jit.refuses(work, weights) is None:
        parts = [
            each.to(x.dtype).contiguous(memory_format=layout(x))
            for each in jit.apart(work, weights)
        ]
        return *parts[:2], parts[2] if third is not None else x.new_empty(0)
    parts = [cpu._depthwise(x, weight, None, [1, 1]) for weight in _given(first, second, third)]
    return *parts[:2], parts[2] if third is not None else x.new_empty(0)


def compose_sum(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None, bias: Tensor | None
) -> Tensor:
    """`mmlk::large_kernel_sum`; 16-bit types are rounded once."""
    work, weights = _prepared(x, first, second, third)
    work_bias = None if bias is None else bias.to(work.dtype).contiguous()
    if jit.refuses(work, weights, work_bias) is None:
        y = jit.summed(work, weights, work_bias)
        return y.to(x.dtype).contiguous(memory_format=layout(x))
    y = cpu._depthwise(work, first, bias, [1, 1])
    for weight in _given(second, third):
        y += cpu._depthwise(work, weight, None, [1, 1])
    return y.to(x.dtype)


def compose_backward(
    grad_first: Tensor,
    grad_second: Tensor,
    grad_third: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor,
    third: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`mmlk::large_kernel_backward`; 16-bit types are rounded once."""
    grads = (grad_first, grad_second, grad_third)
    bias = (
        cpu._working(grad_first).sum((0, 2, 3)).to(first.dtype) if mask[4] else first.new_empty(0)
    )
    work, weights = _prepared(x, first, second, third)
    if jit.refuses(work, weights) is None:
        return *_compiled_backward(grads, x, work, weights, mask, first.dtype), bias
    results = []
    grad_x = None
    for grad, weight, wanted in zip(grads, (first, second, third), mask[1:4]):
        if weight is None:
            results.append(first.new_empty(0))
            continue
        part, grad_weight, _ = cpu._depthwise_backward(
            cpu._working(grad), work, weight, [1, 1], [mask[0], wanted, False]
        )
        results.append(grad_weight)
        if mask[0]:
            grad_x = part if grad_x is None else grad_x.add_(part)
    return grad_x.to(x.dtype) if mask[0] else x.new_empty(0), *results, bias


class _Branches(torch.autograd.Function):
    """The kernels of the registered operator for calls that nothing watches."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup(ctx, inputs, None)
        return compose_branches(*inputs)

    backward = staticmethod(_branches_gradient)


class _Sum(torch.autograd.Function):
    """The same of the sum."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup(ctx, inputs, None)
        return compose_sum(*inputs)

    backward = staticmethod(lambda ctx, grad: (*_sum_gradient(ctx, grad),))


def _run_branches(x: Tensor, *weights: Tensor | None) -> Sequence[Tensor]:
    if dispatch.watched(x):
        return branches_operator(x, *weights)
    return _Branches.apply(x, *weights)


def _run_sum(x: Tensor, *parameters: Tensor | None) -> Tensor:
    if dispatch.watched(x):
        return sum_operator(x, *parameters)
    return _Sum.apply(x, *parameters)


def _refuses(x: Tensor, *_args) -> str | None:
    return dispatch.refuses_device(x, 'cpu')


def _reference_branches(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    return large_kernel_branches_reference(x, _given(*weights))


def _reference_sum(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None, bias: Tensor | None
) -> Tensor:
    return large_kernel_sum_reference(x, _given(first, second, third), bias)


dispatch.implement('large_kernel_branches', 'CPU', compose_branches)
dispatch.implement('large_kernel_sum', 'CPU', compose_sum)
dispatch.implement('large_kernel_backward', 'CPU', compose_backward)
dispatch.register('large_kernel_branches', dispatch.Backend('cpu', _run_branches, _refuses))
dispatch.register('large_kernel_sum', dispatch.Backend('cpu', _run_sum, _refuses))
dispatch.register(
    'large_kernel_branches',
    dispatch.Backend('reference', _reference_branches, dispatch.never_refuses),
)
dispatch.register(
    'large_kernel_sum', dispatch.Backend('reference', _reference_sum, dispatch.never_refuses)
)
