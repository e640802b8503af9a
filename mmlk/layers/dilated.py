"""Large depthwise kernel trained beside dilated ones, and one kernel when folded (UniRepLKNet)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.layers.fold import has_affine_form, norm_affine
from mmlk.layers.norm import build_norm
from mmlk.ops import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.large_kernel.modules import normed_sum
from mmlk.ops.modules import NotScriptable, can_stand_for

BRANCHES: Mapping[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Kernel size to (side, dilation) of the kernels beside it, as published."""
_AT_ONCE = 3  # kernels that an operator takes


def dilated_kernel(weight: Tensor, dilation: int) -> Tensor:
    """The kernel with zeros between its taps, which equals it without dilation.

    Args:
        weight: (C, 1, k, k).
        dilation: Distance d of two taps.

    Returns:
        (C, 1, d (k - 1) + 1, d (k - 1) + 1).
    """
    if dilation == 1:
        return weight
    channels, _, side, _ = weight.shape
    gap, span = dilation - 1, dilation * (side - 1) + 1
    spread = F.pad(weight[:, :, :, None, :, None], (0, gap, 0, 0, 0, gap))
    return spread.reshape(channels, 1, side * dilation, side * dilation)[..., :span, :span]


class DilatedReparamConv2d(NotScriptable, nn.Module):
    """``norm(large(x)) + sum of norm(dilated(x))`` with the published parameter names.

    It is the dilated reparam block of Ding et al., CVPR 2024. ``lk_origin`` and ``origin_bn`` are the
    K x K depthwise kernel and its norm, ``dil_conv_k<k>_<d>`` and ``dil_bn_k<k>_<d>`` those of a k x k
    kernel of dilation d. Stride 1, zero padding, no biases. A dilated kernel is computed as the larger
    one without dilation that it equals, by the operators of large kernels.

    Args:
        channels: Channels C of input and output.
        kernel_size: Side K: 5, 7, 9, 11, 13, 15 or 17, those with published kernels beside them.
        norm_cfg: ``BN`` or ``SyncBN``, after each kernel.

    Raises:
        ValueError: If the kernel size is another.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 13,
        norm_cfg: dict = dict(type='BN'),  # noqa: B006  (never written to)
    ):
        super().__init__()
        if kernel_size not in BRANCHES:
            raise ValueError(
                f'DilatedReparamConv2d: kernel_size {kernel_size!r} is not one of '
                f'{", ".join(map(str, BRANCHES))}'
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.lk_origin = _convolution(channels, kernel_size, 1)
        self.origin_bn = build_norm(norm_cfg, channels)
        for side, dilation in BRANCHES[kernel_size]:
            name = f'k{side}_{dilation}'
            self.add_module(f'dil_conv_{name}', _convolution(channels, side, dilation))
            self.add_module(f'dil_bn_{name}', build_norm(norm_cfg, channels))

    def _branches(self) -> list[tuple[nn.Module, nn.Module, int]]:
        """Convolution, norm and dilation of every kernel, those with the largest extent first."""
        found = [(self.lk_origin, self.origin_bn, 1, self.kernel_size)]
        for side, dilation in BRANCHES[self.kernel_size]:
            name = f'k{side}_{dilation}'
            layers = getattr(self, f'dil_conv_{name}'), getattr(self, f'dil_bn_{name}')
            found.append((*layers, dilation, dilation * (side - 1) + 1))
        return [each[:3] for each in sorted(found, key=lambda each: -each[3])]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f'DilatedReparamConv2d: x has shape {tuple(x.shape)}, expected '
                f'(N, {self.channels}, H, W)'
            )
        branches = self._branches()
        if not all(_is_as_built(convolution, dilation) for convolution, _, dilation in branches):
            return _added([norm(convolution(x)) for convolution, norm, _ in branches])
        norms = [norm for _, norm, _ in branches]
        if _are_constants(norms):
            return depthwise_conv2d(x, *self._merged())
        kernels = [dilated_kernel(layer.weight, dilation) for layer, _, dilation in branches]
        starts = range(0, len(kernels), _AT_ONCE)
        return _added(
            [normed_sum(x, kernels[i : i + _AT_ONCE], norms[i : i + _AT_ONCE]) for i in starts]
        )

    @torch.no_grad()
    def _merged(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the depthwise K x K convolution that equals this in eval mode."""
        weight, size = self.lk_origin.weight, self.kernel_size
        kernel = weight.new_zeros(weight.shape, dtype=torch.float64)
        bias = kernel.new_zeros(self.channels)
        for convolution, norm, dilation in self._branches():
            scale, shift = norm_affine(norm)
            branch = dilated_kernel(convolution.weight.double(), dilation)
            border = (size - branch.shape[-1]) // 2
            kernel += F.pad(branch * scale.view(-1, 1, 1, 1), (border,) * 4)
            bias += shift
        return kernel.to(weight.dtype), bias.to(weight.dtype)

    def switch_to_deploy(self) -> DepthwiseConv2d:
        """The depthwise K x K convolution that equals this in eval mode.

        Raises:
            ValueError: If a norm keeps no running statistics.
        """
        folded = DepthwiseConv2d(self.channels, self.kernel_size)
        folded.weight, folded.bias = map(nn.Parameter, self._merged())
        return folded

    def extra_repr(self) -> str:
        return f'{self.channels}, kernel_size={self.kernel_size}'


def _convolution(channels: int, side: int, dilation: int) -> nn.Conv2d:
    padding = dilation * (side - 1) // 2
    return nn.Conv2d(channels, channels, side, 1, padding, dilation, groups=channels, bias=False)


def _is_as_built(layer: nn.Module, dilation: int) -> bool:
    """Whether calling a layer does what `_convolution` made it for, and nothing besides."""
    return (
        type(layer) is nn.Conv2d
        and layer.stride == (1, 1)
        and layer.dilation == (dilation, dilation)
        and layer.padding == tuple(dilation * (side - 1) // 2 for side in layer.kernel_size)
        and layer.padding_mode == 'zeros'
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.bias is None
        and can_stand_for(layer)
    )


def _are_constants(norms: list[nn.Module]) -> bool:
    """Whether norms are a scale and a shift per channel, and nothing is to learn or be exported."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and all(has_affine_form(norm) and not norm.training for norm in norms)
        and can_stand_for(*norms)
    )


def _added(maps: list[Tensor]) -> Tensor:
    """The sum of the maps, in a tensor of its own: a hook may hold the first."""
    return sum(maps[1:], maps[0])
