"""Recursive convolution of RecNeXt (arXiv 2412.19628): a large field from small kernels.

The map is halved L times by one shared stride-2 kernel, each level is convolved with a kernel of
its own, and the levels are summed from coarse to fine. The field grows to about k * 2^L while the
multiplications stay below 5/3 of one k x k depthwise convolution. Written as a chain of library
calls it is 2L + 1 convolutions, L interpolations and L sums, most of them on maps so small that the
calls cost more than the arithmetic; here the whole recursion is one operator with one gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.modules import NotScriptable, are_depthwise
from mmlk.ops.reference import recconv2d_reference

MODES = ('bilinear', 'nearest')


def recconv2d(
    x: Tensor,
    down_weight: Tensor,
    weights: Sequence[Tensor],
    *,
    mode: str = 'bilinear',
    backend: str | None = None,
) -> Tensor:
    """Pyramid of depthwise convolutions, summed from coarse to fine.

    `recconv2d_reference` is the definition. The result has the memory layout of ``x``.

    Args:
        x: (N, C, H, W), any H and W from 1.
        down_weight: (C, 1, k, k) with k odd, the stride-2 kernel shared by all levels; unused where
            ``weights`` holds one kernel.
        weights: L + 1 kernels (C, 1, k, k), from the coarsest map to the full one.
        mode: Interpolation on the way up, 'bilinear' (published weights) or 'nearest'.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W) in the dtype of ``x``, or of autocast.

    Raises:
        ValueError: if the mode is unknown or shapes or dtypes do not fit.

    Note:
        The sum over levels can leave the range of float16 (largest value 65504); bfloat16 has the
        range of float32. The CPU and CUDA kernels sum 16-bit maps in float32 and round once.
    """
    args = _arguments(x, down_weight, weights, mode=mode)
    return dispatch.run('recconv2d', *args, backend=backend)


def _arguments(
    x: Tensor, down_weight: Tensor, weights: Sequence[Tensor], *, mode: str = 'bilinear'
) -> tuple[Tensor, Tensor, list[Tensor], str]:
    weights = list(weights)
    if not torch.jit.is_tracing():
        _check(x, down_weight, weights, mode)
    return x, down_weight, weights, mode


def _check(x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f'recconv2d: mode {mode!r} is not one of {", ".join(MODES)}')
    if not weights:
        raise ValueError(
            'recconv2d: weights is empty, expected L + 1 kernels for L levels (at least one)'
        )
    if x.dim() != 4:
        raise ValueError(f'recconv2d: x has shape {tuple(x.shape)}, expected (N, C, H, W)')
    channels = x.shape[1]
    names = ['down_weight', *(f'weights[{i}]' for i in range(len(weights)))]
    for name, weight in zip(names, (down_weight, *weights)):
        if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
            raise ValueError(
                f'recconv2d: {name} has shape {tuple(weight.shape)}, expected '
                f'({channels}, 1, k, k) for {channels} channels'
            )
        if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ValueError(
                f'recconv2d: {name} has the even kernel {tuple(weight.shape[2:])}, '
                'both sides must be odd'
            )
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f'recconv2d: x is {x.dtype} but {name} is {weight.dtype}, cast one '
                'of them or use autocast'
            )


def _reference(x: Tensor, down_weight: Tensor, weights: list[Tensor], mode: str) -> Tensor:
    return recconv2d_reference(x, down_weight, weights, mode=mode)


class RecConv2d(NotScriptable, nn.Module):
    """`recconv2d` with its parameters under the published names ``down`` and ``convs``.

    Args:
        in_channels: Channels C of input and output.
        kernel_size: Side k of all kernels, odd.
        level: Times L that the map is halved; 0 leaves one k x k convolution.
        mode: 'bilinear' or 'nearest'.

    Raises:
        ValueError: if the kernel is even, the level negative or the mode unknown.

    Note:
        A float16 result that is not finite is reported, once per module, on the ``mmlk`` logger.
    """

    def __init__(
        self, in_channels: int, kernel_size: int = 5, level: int = 1, mode: str = 'bilinear'
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'RecConv2d: kernel_size {kernel_size} must be odd and positive')
        if level < 0:
            raise ValueError(f'RecConv2d: level {level} must not be below 0')
        if mode not in MODES:
            raise ValueError(f'RecConv2d: mode {mode!r} is not one of {", ".join(MODES)}')
        self.level = level
        self.mode = mode
        self.overflow_reported = False

        def depthwise(stride: int) -> nn.Conv2d:
            return nn.Conv2d(
                in_channels,
                in_channels,
                kernel_size,
                stride,
                kernel_size // 2,
                groups=in_channels,
                bias=False,
            )

        self.down = depthwise(2)
        self.convs = nn.ModuleList(depthwise(1) for _ in range(level + 1))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.convs) != self.level + 1:
            raise ValueError(
                f'RecConv2d: {len(self.convs)} kernels for {self.level} levels, '
                f'expected {self.level + 1}'
            )
        if are_depthwise(self.down, stride=2) and are_depthwise(*self.convs):
            weights: list[Tensor] = [conv.weight for conv in self.convs]  # type: ignore[misc]  # Tensor | Module
            y = recconv2d(x, self.down.weight, weights, mode=self.mode)
        else:
            y = self._by_layers(x)
        if y.dtype == torch.float16 and not self.overflow_reported:
            self._report_overflow(x, y)
        return y

    def _by_layers(self, x: Tensor) -> Tensor:
        maps = [x]
        for _ in range(self.level):
            maps.append(self.down(maps[-1]))
        coarsest, *others = self.convs
        y = coarsest(maps.pop())
        for conv in others:
            finer = maps.pop()
            y = conv(finer + F.interpolate(y, size=finer.shape[2:], mode=self.mode))
        return y

    def _report_overflow(self, x: Tensor, y: Tensor) -> None:
        if (
            torch.compiler.is_compiling()
            or dispatch.refusal_for_export()
            or y.is_meta
            or (y.is_cuda and torch.cuda.is_current_stream_capturing())
        ):
            return
        if not torch.isfinite(y).all() and torch.isfinite(x).all():
            self.overflow_reported = True
            logging.getLogger('mmlk').warning(
                'RecConv2d: the sum over %d levels of %d channels is not finite in float16 for '
                'finite input of magnitude up to %.3g; use bfloat16 or float32',
                self.level,
                x.shape[1],
                x.abs().max().item(),
            )

    def extra_repr(self) -> str:
        return f'level={self.level}, mode={self.mode}'


dispatch.declare('recconv2d', _arguments, _reference)
