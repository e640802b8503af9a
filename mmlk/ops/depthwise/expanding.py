"""Depthwise convolution in which every channel makes several adjacent output channels."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch
from mmlk.ops.depthwise import depthwise_conv2d
from mmlk.ops.maps import channels_last, pair
from mmlk.ops.reference import expanding_depthwise_conv2d_reference


def expanding_depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Output channel ``c * m + i`` is channel c convolved with its i-th kernel, zero padded.

    `expanding_depthwise_conv2d_reference` is the definition.

    Args:
        x: (N, C, H, W).
        weight: (C m, 1, kh, kw), sides odd.
        bias: (C m,).
        stride: Step in rows and columns.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C m, ceil(H / sh), ceil(W / sw)).

    Raises:
        ValueError: if the channels do not divide the kernels.
    """
    args = _arguments(x, weight, bias, stride)
    return dispatch.run('expanding_depthwise_conv2d', *args, backend=backend)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | tuple[int, int] = 1
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int]]:
    if not torch.jit.is_tracing() and (x.dim() != 4 or weight.shape[0] % x.shape[1]):
        raise ValueError(
            f'expanding_depthwise_conv2d: x {tuple(x.shape)} and weight {tuple(weight.shape)} are '
            'not (N, C, H, W) and (C m, 1, kh, kw)'
        )
    return x, weight, bias, pair(stride)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """One depthwise convolution per i: a grouped convolution that adds channels has no fast code."""
    m = weight.shape[0] // x.shape[1]
    parts = [
        depthwise_conv2d(x, weight[i::m], None if bias is None else bias[i::m], stride)
        for i in range(m)
    ]
    return (
        torch.stack([each.permute(0, 2, 3, 1) for each in parts], -1).flatten(3).permute(0, 3, 1, 2)
    )


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None, _stride) -> str | None:
    return dispatch.refusal_for_device(x, 'cpu', weight, bias)


def _refusal_to_gain(x: Tensor, weight: Tensor, _bias, _stride) -> str | None:
    """Reason why torch's own convolution is as fast, or None."""
    if not channels_last(x) and weight.shape[2] * weight.shape[3] < 25:
        return "torch's own convolution is as fast for this map and kernel"
    return None


dispatch.declare('expanding_depthwise_conv2d', _arguments, expanding_depthwise_conv2d_reference)
dispatch.register(
    'expanding_depthwise_conv2d',
    dispatch.Backend('cpu', _run, _refusal, refusal_to_gain=_refusal_to_gain),
)
