"""Layers with learnable spacings in the place of convolutions: elements on the largest taps.

Several layers may share positions. A tap then counts by its norm over their kernels, the choice with the
least squared error of all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlk.ops import DCLSConv2d, DCLSDepthwiseConv2d, dcls_kernel2d
from mmlk.ops.dcls import checked_window
from mmlk.ops.dcls.construct import driven_axes
from mmlk.surgery.carried import Carried, fill
from mmlk.surgery.layers import centred, dense_kernel, dilated

_NARROW = 0.01
"""Width of elements: the narrowest would be 0, where the width has no gradient."""
_ROWS = 2048
"""Kernels of one least-squares problem, which bounds its memory."""

DCLS = DCLSConv2d | DCLSDepthwiseConv2d


def make_depthwise(layer: nn.Conv2d, **options: int | str) -> DCLSDepthwiseConv2d:
    """The new layer in the place of a depthwise one."""
    return DCLSDepthwiseConv2d(
        layer.in_channels, stride=layer.stride, bias=layer.bias is not None, **options
    )


def make_dense(
    layer: nn.Conv2d,
    kernel_count: int,
    dilated_kernel_size: int | Sequence[int],
    version: str = 'v0',
) -> DCLSConv2d:
    """The new layer in the place of any convolution; it pads so that the maps keep their sizes."""
    window = checked_window('DCLSConv2d', dilated_kernel_size, 2)
    return DCLSConv2d(
        layer.in_channels,
        layer.out_channels,
        kernel_count,
        stride=layer.stride,
        padding=_padding(layer, window),
        dilated_kernel_size=window,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        version=version,
    )


def _padding(layer: nn.Conv2d, window: Sequence[int]) -> str | tuple[int, ...]:
    """Padding with which a kernel of ``window`` has its centre where that of the layer has it."""
    reach = [step * (size - 1) + 1 for size, step in zip(layer.kernel_size, layer.dilation)]
    extra = [wide - own for wide, own in zip(window, reach)]
    if any(each % 2 for each in extra):
        raise ValueError(
            f'dilated_kernel_size {tuple(window)} and the kernel of {reach[0]}x{reach[1]}, dilation '
            'included, must both be odd or both be even along an axis, to have one centre'
        )
    if layer.padding == 'same':
        return 'same'
    own = (0, 0) if isinstance(layer.padding, str) else layer.padding
    padding = tuple(before + each // 2 for before, each in zip(own, extra))
    if min(padding) < 0:
        raise ValueError(
            f'dilated_kernel_size {tuple(window)} is smaller than the kernel of {reach[0]}x{reach[1]} '
            f'by more than its padding {own}, so that the map would become larger'
        )
    return padding


@torch.no_grad()
def place(layers: Sequence[nn.Conv2d], module: DCLS) -> None:
    """Put the elements of ``module`` on the largest taps of the layers that are to share them."""
    cells = _cells(layers[0], module)
    count = min(module.kernel_count, len(cells))
    sizes = (_taps(layer, module)[..., cells].abs() for layer in layers)
    chosen = cells[functools.reduce(torch.hypot, sizes).topk(count).indices]
    height, width = module.kernel_size
    along = (chosen // width - height // 2, chosen % width - width // 2)
    for component, axis in zip(module.P, driven_axes(module.version, 2)):
        component[..., :count] = along[axis].to(component.dtype)
    if module.SIG is not None:
        nn.init.constant_(module.SIG, _NARROW)


@torch.no_grad()
def weigh(layer: nn.Conv2d, module: DCLS) -> Carried:
    """Weights of placed elements by least squares; those without a tap weigh nothing at first."""
    count = min(module.kernel_count, len(_cells(layer, module)))
    taps = _taps(layer, module).flatten(0, 1)
    weights = taps.new_zeros(len(taps), module.kernel_count)
    find = _weights_of_cells if module.version == 'v0' else _weights_of_neighbours
    weights[:, :count] = find(module, taps, count)
    weights = weights.view_as(module.weight)
    fill(module.weight, weights)
    fill(module.bias, layer.bias)
    return Carried(_construct(module, weights, module.P, module.SIG))


def _cells(layer: nn.Conv2d, module: DCLS) -> Tensor:
    """Cells of the window, counted row by row, in which the layer has taps, not the zeros between."""
    own = dilated(torch.ones(1, 1, *layer.kernel_size, device='cpu'), layer.dilation)
    return centred(own, module.kernel_size).flatten().nonzero().flatten()


def _taps(layer: nn.Conv2d, module: DCLS) -> Tensor:
    """Kernels of the layer (O, I, cells of the window) in float64."""
    return centred(dense_kernel(layer), module.kernel_size).flatten(2)


def _weights_of_cells(module: DCLS, taps: Tensor, count: int) -> Tensor:
    """Weights (B, count) of elements that fill one cell each."""
    axes = driven_axes(module.version, 2)
    height, width = module.kernel_size
    rows, columns = (module.P[axes[axis], ..., :count].flatten(0, 1).long() for axis in (0, 1))
    return taps.gather(1, ((rows + height // 2) * width + columns + width // 2))


def _weights_of_neighbours(module: DCLS, taps: Tensor, count: int) -> Tensor:
    """Weights (B, count) of elements that are scaled or reach their neighbours, by least squares."""
    found = []
    for rows in torch.arange(len(taps), device='cpu').split(_ROWS):
        positions, sigma = (
            None
            if each is None
            else each.double().flatten(1, 2)[:, rows, :count].reshape(2, -1, 1, 1)
            for each in (module.P, module.SIG)
        )
        alone = _construct(module, taps.new_ones(len(rows) * count, 1, 1), positions, sigma)
        matrix = alone.view(len(rows), count, -1).transpose(1, 2)
        found.append(torch.linalg.lstsq(matrix, taps[rows].unsqueeze(2)).solution.squeeze(2))
    return torch.cat(found)


def _construct(module: DCLS, weights: Tensor, positions: Tensor, sigma: Tensor | None) -> Tensor:
    """Kernels in float64, with the code whose memory does not grow with elements times cells."""
    return dcls_kernel2d(
        weights,
        positions.double(),
        None if sigma is None else sigma.double(),
        kernel_size=module.kernel_size,
        version=module.version,
        backend='separable',
    )
