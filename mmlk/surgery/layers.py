"""Convolutions of a network, under all their names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

PLAIN = ('torch.nn.modules.conv.Conv2d', 'mmcv.cnn.bricks.wrappers.Conv2d')
"""Classes whose call is a convolution and nothing besides; MMCV's adds old versions of torch."""


def convolutions(model: nn.Module) -> dict[nn.Conv2d, tuple[str, ...]]:
    """Two-dimensional convolutions, each with all its names.

    A module that a network has at several places is one layer with several names.
    """
    found: dict[nn.Conv2d, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            found[module] = (*found.get(module, ()), name)
    return found


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Whether it has one group per input channel, and more than one."""
    return layer.groups == layer.in_channels > 1


def depthwise_layers(model: nn.Module) -> dict[nn.Conv2d, tuple[str, ...]]:
    """The depthwise ones of `convolutions`."""
    return {layer: names for layer, names in convolutions(model).items() if is_depthwise(layer)}


def described(layer: nn.Conv2d) -> str:
    """Kernel, stride and dilation in words: ``7x7, stride 2``."""
    rows, columns = layer.kernel_size
    words = [f'{rows}x{columns}']
    for name, value in (('stride', layer.stride), ('dilation', layer.dilation)):
        if value != (1, 1):
            words.append(f'{name} {value[0] if value[0] == value[1] else value}')
    return ', '.join(words)


def refusal_of_kind(layer: nn.Conv2d, others: tuple[type, ...] = ()) -> str | None:
    """Reason why a call of ``layer`` may be another one than of nn.Conv2d or ``others``, or None."""
    if parametrize.is_parametrized(layer):
        return 'its parameters are parametrised'
    name = f'{type(layer).__module__}.{type(layer).__qualname__}'
    if name not in PLAIN and type(layer) not in others:
        return f'it is a {name}, whose call may differ from that of nn.Conv2d'
    if 'forward' in layer.__dict__:
        return 'its forward was replaced'
    return None


def refusal_of_geometry(layer: nn.Conv2d, expands: bool = False) -> str | None:
    """Reason why ``layer`` is no convolution of each channel with zeros around the map, or None.

    With ``expands`` a channel may make several.
    """
    if layer.out_channels != layer.in_channels and not expands:
        return f'it makes {layer.out_channels} channels of {layer.in_channels}'
    if layer.padding_mode != 'zeros':
        return f'its padding_mode is {layer.padding_mode!r}'
    if not all(size % 2 for size in layer.kernel_size):
        return f'its kernel {layer.kernel_size} is even'
    same = tuple(step * (size // 2) for size, step in zip(layer.kernel_size, layer.dilation))
    if layer.padding not in ('same', same):
        return f'its padding is {layer.padding!r}, {same} would keep the size of the map'
    return None


def dense_kernel(layer: nn.Conv2d) -> Tensor:
    """Kernel (O, I, kh, kw) in float64 on the CPU, with the zeros that dilation means."""
    return dilated(layer.weight.detach().to('cpu', torch.float64), layer.dilation)


def dilated(kernel: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """``kernel`` (O, I, kh, kw) with ``dilation - 1`` zeros between taps, in rows and columns."""
    kh, kw = ((size - 1) * step + 1 for size, step in zip(kernel.shape[2:], dilation))
    spread = kernel.new_zeros(*kernel.shape[:2], kh, kw)
    spread[:, :, :: dilation[0], :: dilation[1]] = kernel
    return spread


def centred(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """``kernel`` (O, I, kh, kw) in the centre of ``size``: zeros added or taps cut off around it."""
    rows, columns = ((side - old) // 2 for side, old in zip(size, kernel.shape[2:]))
    return F.pad(kernel, (columns, columns, rows, rows))
