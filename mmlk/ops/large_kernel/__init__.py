"""Two or three depthwise kernels on one map: the branches of SLaK's large kernel as one operator.

In training every branch has a norm of its own and the outputs stay apart (`large_kernel_branches`);
folded they are summed (`large_kernel_sum`). As one operator the branches can share what they read,
and the gradient of the map is written once instead of once per branch and then summed. On a CPU that
is the work of the compiled loops (``loops.py``); where they refuse, both are a composition of
`depthwise_conv2d`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import dispatch
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
    args = _branches_arguments(x, weights)
    parts = dispatch.run('large_kernel_branches', *args, backend=backend)
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
    args = _sum_arguments(x, weights, bias)
    return dispatch.run('large_kernel_sum', *args, backend=backend)


def _branches_arguments(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return x, *_three('large_kernel_branches', x, weights, None)


def _sum_arguments(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    return x, *_three('large_kernel_sum', x, weights, bias), bias


def _three(
    name: str, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Two or three kernels as three, the last of which may be None."""
    weights = tuple(weights)
    if not torch.jit.is_tracing():
        _check(name, x, weights, bias)
    return *weights, *(None,) * (3 - len(weights))


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


def _branches_reference(x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    return large_kernel_branches_reference(x, _given(*weights))


def _sum_reference(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor | None, bias: Tensor | None
) -> Tensor:
    return large_kernel_sum_reference(x, _given(first, second, third), bias)


dispatch.declare('large_kernel_branches', _branches_arguments, _branches_reference)
dispatch.declare('large_kernel_sum', _sum_arguments, _sum_reference)
