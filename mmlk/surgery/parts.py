"""What `convert` can put in the place of a convolution, and how weights are carried over.

A kernel is linear in the weights of every part here, so that weights are those of least squares: they
make the kernel of the part as close to the kernel of the layer as the part can come. What is left is
the residual, the norm of the difference over the norm of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, InceptionDWConv2d, LargeKernelDWConv2d, RecConv2d
from mmlk.ops.maps import pair
from mmlk.surgery import elements
from mmlk.surgery.carried import Carried, fill
from mmlk.surgery.layers import centred, dense_kernel


class Part(NamedTuple):
    """One operator that can replace a convolution.

    Args:
        make: From the layer and the options to the new one, as its class initialises it.
        carry: Gives the new layer the weights of the old one.
        options: Names of the options, which are the constructor's.
        strides: Whether it can take steps.
        biases: Whether it can have a bias.
        depthwise: Whether it stands for depthwise convolutions that keep the size of the map alone.
        place: Chooses, before weights are carried, positions that several layers may share; None for
            parts without positions.
    """

    make: Callable[..., nn.Module]
    carry: Callable[..., Carried]
    options: tuple[str, ...]
    strides: bool
    biases: bool
    depthwise: bool = True
    place: Callable[..., None] | None = None


def shares(kernel: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Kernels of ``sizes`` around one centre whose sum comes closest to ``kernel``.

    A tap is summed over the kernels that reach it, so all taps of their union are met exactly. Of all
    solutions it is the one of least norm: a tap is shared evenly.
    """
    window = tuple(max(side) for side in zip(*sizes))
    reach = [centred(kernel.new_ones(1, 1, *size), window) for size in sizes]
    share = centred(kernel, window) / torch.stack(reach).sum(0).clamp_min(1)
    return [centred(share, size) for size in sizes]


def _make_larger(layer: nn.Conv2d, kernel_size: int | tuple[int, int]) -> DepthwiseConv2d:
    if any(size < 1 or size % 2 == 0 for size in pair(kernel_size)):
        raise ValueError(f'DepthwiseConv2d: kernel_size {kernel_size} must be odd and positive')
    return DepthwiseConv2d(
        layer.in_channels, kernel_size, layer.stride, bias=layer.bias is not None
    )


def _carry_larger(layer: nn.Conv2d, module: DepthwiseConv2d) -> Carried:
    kernel = centred(dense_kernel(layer), module.kernel_size)
    fill(module.weight, kernel)
    fill(module.bias, layer.bias)
    return Carried(kernel)


def _make_strips(layer: nn.Conv2d, **options: int | bool) -> LargeKernelDWConv2d:
    module = LargeKernelDWConv2d(layer.in_channels, norm=None, **options)
    if layer.bias is not None:
        _convolutions(module)[0].bias = nn.Parameter(torch.zeros(layer.in_channels))
    return module


def _carry_strips(layer: nn.Conv2d, module: LargeKernelDWConv2d) -> Carried:
    convolutions = _convolutions(module)
    kernels = shares(dense_kernel(layer), [each.kernel_size for each in convolutions])
    for convolution, kernel in zip(convolutions, kernels):
        fill(convolution.weight, kernel)
    fill(convolutions[0].bias, layer.bias)
    window = (module.kernel_size, module.kernel_size)
    return Carried(torch.stack([centred(each, window) for each in kernels]).sum(0))


def _convolutions(module: LargeKernelDWConv2d) -> list[nn.Conv2d]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]


def _make_bands(layer: nn.Conv2d, **options: int | float) -> InceptionDWConv2d:
    return InceptionDWConv2d(layer.in_channels, **options)


def _carry_bands(layer: nn.Conv2d, module: InceptionDWConv2d) -> Carried:
    kernel = dense_kernel(layer)
    rest = layer.in_channels - 3 * module.branch_channels
    convolutions = (module.dwconv_hw, module.dwconv_w, module.dwconv_h)
    side = max(max(each.kernel_size) for each in convolutions)
    made = [centred(kernel.new_ones(rest, 1, 1, 1), (side, side))]
    parts = kernel[rest:].split(module.branch_channels)
    biases = (None,) * 3 if layer.bias is None else layer.bias[rest:].split(module.branch_channels)
    for convolution, part, bias in zip(convolutions, parts, biases):
        carried = centred(part, convolution.kernel_size)
        fill(convolution.weight, carried)
        fill(convolution.bias, torch.zeros((), device='cpu') if bias is None else bias)
        made.append(centred(carried, (side, side)))
    note = f'{rest} channels are handed on as they are' if rest else ''
    if rest and layer.bias is not None:
        note += ', without their bias'
    return Carried(torch.cat(made), note)


def _make_recursive(layer: nn.Conv2d, **options: int | str) -> RecConv2d:
    return RecConv2d(layer.in_channels, **options)


def _carry_recursive(layer: nn.Conv2d, module: RecConv2d) -> Carried:
    *coarser, finest = module.convs
    kernel = centred(dense_kernel(layer), finest.kernel_size)
    fill(finest.weight, kernel)
    if coarser:  # what comes from below is zero at first, and learns
        nn.init.zeros_(coarser[-1].weight)
    return Carried(kernel)


PARTS = {
    'DepthwiseConv2d': Part(
        _make_larger, _carry_larger, ('kernel_size',), strides=True, biases=True
    ),
    'LargeKernelDWConv2d': Part(
        _make_strips,
        _carry_strips,
        ('kernel_size', 'small_kernel_size', 'decomposed'),
        strides=False,
        biases=True,
    ),
    'DCLSDepthwiseConv2d': Part(
        elements.make_depthwise,
        elements.weigh,
        ('kernel_count', 'kernel_size', 'version'),
        strides=True,
        biases=True,
        place=elements.place,
    ),
    'DCLSConv2d': Part(
        elements.make_dense,
        elements.weigh,
        ('kernel_count', 'dilated_kernel_size', 'version'),
        strides=True,
        biases=True,
        depthwise=False,
        place=elements.place,
    ),
    'InceptionDWConv2d': Part(
        _make_bands,
        _carry_bands,
        ('square_kernel_size', 'band_kernel_size', 'branch_ratio'),
        strides=False,
        biases=True,
    ),
    'RecConv2d': Part(
        _make_recursive,
        _carry_recursive,
        ('kernel_size', 'level', 'mode'),
        strides=False,
        biases=False,
    ),
}
"""By the name of the class; the configs' prefix ``mmlk.`` may stand before it."""
