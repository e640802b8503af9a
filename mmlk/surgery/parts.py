"""What `convert` can put in the place of a depthwise convolution, and how weights are carried over.

A kernel is linear in the weights of every part here, so that weights are those of least squares: they
make the kernel of the part as close to the kernel of the layer as the part can come. What is left is
the residual, the norm of the difference over the norm of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlk.ops import (
    DCLSDepthwiseConv2d,
    DepthwiseConv2d,
    InceptionDWConv2d,
    LargeKernelDWConv2d,
    RecConv2d,
    dcls_kernel2d,
)
from mmlk.ops.dcls.construct import driven_axes
from mmlk.ops.maps import pair
from mmlk.surgery.layers import centred, dense_kernel, dilated

_ROUNDING = 1e-12
_NARROW = 0.01
"""Width of elements: the narrowest would be 0, where the width has no gradient."""


class Carried(NamedTuple):
    """A layer in the place of another.

    Args:
        module: The new layer.
        kernel: The kernel (C, 1, kh, kw) in float64 that it convolves with.
        note: What else was lost, '' for nothing.
    """

    module: nn.Module
    kernel: Tensor
    note: str = ''


class Part(NamedTuple):
    """One operator that can replace a depthwise convolution.

    Args:
        build: From the layer and the options to the new one with its weights.
        options: Names of the options, which are the constructor's.
        strides: Whether it can take steps.
        biases: Whether it can have a bias.
    """

    build: Callable[..., Carried]
    options: tuple[str, ...]
    strides: bool
    biases: bool


def residual(kernel: Tensor, carried: Tensor) -> float:
    """Norm of the difference of two kernels (C, 1, kh, kw) over that of the first; rounding is 0."""
    size = tuple(max(sides) for sides in zip(kernel.shape[2:], carried.shape[2:]))
    difference = torch.linalg.vector_norm(centred(kernel, size) - centred(carried, size))
    scale = torch.linalg.vector_norm(kernel)
    share = float(difference / scale if scale > 0 else difference)
    return share if share > _ROUNDING else 0.0


def shares(kernel: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Kernels of ``sizes`` around one centre whose sum comes closest to ``kernel``.

    A tap is summed over the kernels that reach it, so all taps of their union are met exactly. Of all
    solutions it is the one of least norm: a tap is shared evenly.
    """
    window = tuple(max(side) for side in zip(*sizes))
    reach = [centred(kernel.new_ones(1, 1, *size), window) for size in sizes]
    share = centred(kernel, window) / torch.stack(reach).sum(0).clamp_min(1)
    return [centred(share, size) for size in sizes]


def _larger(layer: nn.Conv2d, kernel_size: int | tuple[int, int]) -> Carried:
    if any(size < 1 or size % 2 == 0 for size in pair(kernel_size)):
        raise ValueError(f'DepthwiseConv2d: kernel_size {kernel_size} must be odd and positive')
    module = DepthwiseConv2d(
        layer.in_channels, kernel_size, layer.stride, bias=layer.bias is not None
    ).to(layer.weight.dtype)
    kernel = centred(dense_kernel(layer), module.kernel_size)
    _copy(module.weight, kernel)
    _copy(module.bias, layer.bias)
    return Carried(module, kernel)


def _strips(layer: nn.Conv2d, **options: int | bool) -> Carried:
    module = LargeKernelDWConv2d(layer.in_channels, norm=None, **options).to(layer.weight.dtype)
    convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    kernels = shares(dense_kernel(layer), [each.kernel_size for each in convolutions])
    for convolution, kernel in zip(convolutions, kernels):
        _copy(convolution.weight, kernel)
    if layer.bias is not None:
        convolutions[0].bias = nn.Parameter(layer.bias.detach().clone())
    window = (module.kernel_size, module.kernel_size)
    return Carried(module, torch.stack([centred(each, window) for each in kernels]).sum(0))


def _bands(layer: nn.Conv2d, **options: int | float) -> Carried:
    module = InceptionDWConv2d(layer.in_channels, **options).to(layer.weight.dtype)
    kernel = dense_kernel(layer)
    rest = layer.in_channels - 3 * module.branch_channels
    convolutions = (module.dwconv_hw, module.dwconv_w, module.dwconv_h)
    side = max(max(each.kernel_size) for each in convolutions)
    made = [centred(kernel.new_ones(rest, 1, 1, 1), (side, side))]
    parts = kernel[rest:].split(module.branch_channels)
    biases = (None,) * 3 if layer.bias is None else layer.bias[rest:].split(module.branch_channels)
    for convolution, part, bias in zip(convolutions, parts, biases):
        carried = centred(part, convolution.kernel_size)
        _copy(convolution.weight, carried)
        _copy(convolution.bias, torch.zeros(()) if bias is None else bias)
        made.append(centred(carried, (side, side)))
    note = f'{rest} channels are handed on as they are' if rest else ''
    if rest and layer.bias is not None:
        note += ', without their bias'
    return Carried(module, torch.cat(made), note)


def _recursive(layer: nn.Conv2d, **options: int | str) -> Carried:
    module = RecConv2d(layer.in_channels, **options).to(layer.weight.dtype)
    *coarser, finest = module.convs
    kernel = centred(dense_kernel(layer), finest.kernel_size)
    _copy(finest.weight, kernel)
    if coarser:  # what comes from below is zero at first, and learns
        nn.init.zeros_(coarser[-1].weight)
    return Carried(module, kernel)


@torch.no_grad()
def _elements(layer: nn.Conv2d, **options: int | str) -> Carried:
    """Elements on the largest taps of each channel; further elements weigh nothing at first."""
    module = DCLSDepthwiseConv2d(
        layer.in_channels, stride=layer.stride, bias=layer.bias is not None, **options
    ).to(layer.weight.dtype)
    kernel = centred(dense_kernel(layer), module.kernel_size)
    channels, _, height, width = kernel.shape
    taps = kernel.flatten(1)
    own = dilated(kernel.new_ones(1, 1, *layer.kernel_size), layer.dilation)
    own = centred(own, module.kernel_size).flatten() > 0
    count = min(module.kernel_count, int(own.sum()))
    # Not on the zeros of a dilated or larger kernel, even where a tap of the layer is zero.
    chosen = torch.where(own, taps.abs(), -1.0).topk(count, 1).indices
    cells = (chosen // width - height // 2, chosen % width - width // 2)
    for component, axis in zip(module.P, driven_axes(module.version, 2)):
        component[:, 0, :count] = cells[axis].to(component.dtype)
    if module.SIG is not None:
        nn.init.constant_(module.SIG, _NARROW)
    weights = module.weight.new_zeros(channels, module.kernel_count, dtype=torch.float64)
    weights[:, :count] = taps.gather(1, chosen)
    if module.version != 'v0':
        weights[:, :count] = _spread_weights(module, taps, count)
    _copy(module.weight, weights.unsqueeze(1))
    _copy(module.bias, layer.bias)
    sigma = None if module.SIG is None else module.SIG.double()
    made = dcls_kernel2d(
        weights.unsqueeze(1),
        module.P.double(),
        sigma,
        kernel_size=module.kernel_size,
        version=module.version,
        backend='reference',
    )
    return Carried(module, made)


def _spread_weights(module: DCLSDepthwiseConv2d, taps: Tensor, count: int) -> Tensor:
    """Weights (C, count) of elements that are scaled or reach their neighbours, by least squares."""
    channels = taps.shape[0]

    def apart(each: Tensor) -> Tensor:
        return each.double()[:, :, 0, :count].reshape(2, channels * count, 1, 1)

    alone = dcls_kernel2d(
        taps.new_ones(channels * count, 1, 1),
        apart(module.P),
        None if module.SIG is None else apart(module.SIG),
        kernel_size=module.kernel_size,
        version=module.version,
        backend='reference',
    )
    matrix = alone.view(channels, count, -1).transpose(1, 2)
    return torch.linalg.lstsq(matrix, taps.unsqueeze(2)).solution.squeeze(2)


@torch.no_grad()
def _copy(target: Tensor | None, source: Tensor | None) -> None:
    if target is not None:
        target.copy_(source)


PARTS = {
    'DepthwiseConv2d': Part(_larger, ('kernel_size',), strides=True, biases=True),
    'LargeKernelDWConv2d': Part(
        _strips, ('kernel_size', 'small_kernel_size', 'decomposed'), strides=False, biases=True
    ),
    'DCLSDepthwiseConv2d': Part(
        _elements, ('kernel_count', 'kernel_size', 'version'), strides=True, biases=True
    ),
    'InceptionDWConv2d': Part(
        _bands,
        ('square_kernel_size', 'band_kernel_size', 'branch_ratio'),
        strides=False,
        biases=True,
    ),
    'RecConv2d': Part(_recursive, ('kernel_size', 'level', 'mode'), strides=False, biases=False),
}
"""By the name of the class; the configs' prefix ``mmlk.`` may stand before it."""
