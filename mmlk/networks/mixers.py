"""The parts of a network by the names that configs use, and how an entry of a config becomes a module.

An entry is ``dict(type=..., **options)``. ``type`` is a name of a table below, with or without
``mmlk.``, a name that the network can find elsewhere (`mmlk.backbones` asks MMEngine's registries),
or a class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from mmlk.layers import (
    BRANCHES,
    ConvMlp,
    ConvNormMlp,
    DilatedReparamConv2d,
    GRNMlp,
    PartialInceptionDWConv2d,
    RecAttn2d,
    build_norm,
)
from mmlk.ops import (
    DCLSDepthwiseConv2d,
    DepthwiseConv2d,
    InceptionDWConv2d,
    LargeKernelDWConv2d,
    RecConv2d,
)
from mmlk.ops.maps import pair

Part = Callable[..., Any]
Find = Callable[[str], 'Part | None']


def inception(
    channels: int,
    square_kernel_size: int = 3,
    band_kernel_size: int = 11,
    branch_ratio: float = 0.125,
    branches: Sequence[str] = tuple(BRANCHES),
) -> InceptionDWConv2d | PartialInceptionDWConv2d:
    """InceptionNeXt's mixer, whole or, for ablations, without some of its branches.

    Args:
        channels: Channels C.
        square_kernel_size: Side of the square kernel, odd.
        band_kernel_size: Length of the two bands, odd.
        branch_ratio: Share of the channels in each branch.
        branches: Those that it has, of ``square``, ``horizontal`` and ``vertical``; the channels of
            others pass unchanged.
    """
    options = dict(
        square_kernel_size=square_kernel_size,
        band_kernel_size=band_kernel_size,
        branch_ratio=branch_ratio,
    )
    if set(branches) == set(BRANCHES):
        return InceptionDWConv2d(channels, **options)
    return PartialInceptionDWConv2d(channels, branches, **options)


def large_kernel(
    channels: int,
    kernel_size: int = 51,
    small_kernel_size: int = 5,
    decomposed: bool = True,
    norm_cfg: dict | None = dict(type='BN'),  # noqa: B006  (never written to)
) -> LargeKernelDWConv2d:
    """SLaK's kernel: two strips and a small square, or the full kernel and the small square.

    Args:
        channels: Channels C.
        kernel_size: Long side of the depthwise kernels.
        small_kernel_size: Their short side, and that of the square, which exists only if it is smaller.
        decomposed: Strips instead of a full kernel; the full one is RepLKNet's.
        norm_cfg: Norm after each branch; None leaves it out.
    """
    return LargeKernelDWConv2d(
        channels,
        kernel_size,
        small_kernel_size,
        decomposed,
        norm=(lambda width: build_norm(norm_cfg, width)) if norm_cfg else None,
    )


def depthwise(
    channels: int, kernel_size: int | tuple[int, int] = 7, bias: bool = True
) -> DepthwiseConv2d:
    """Plain depthwise convolution, ConvNeXt's mixer at 7x7.

    Args:
        channels: Channels C.
        kernel_size: Odd side, or (rows, columns).
        bias: Whether to add a bias per channel.

    Raises:
        ValueError: If a side is even or not positive.
    """
    size = pair(kernel_size)
    _check_odd('DepthwiseConv2d', size)
    return DepthwiseConv2d(channels, size, bias=bias)


def pooling(channels: int, kernel_size: int = 3) -> nn.AvgPool2d:
    """Mean over a window, of the pixels inside the map.

    Args:
        channels: Channels C.
        kernel_size: Odd side of the window.

    Raises:
        ValueError: If the side is even or not positive.
    """
    _check_odd('Pooling', (kernel_size,))
    return nn.AvgPool2d(kernel_size, 1, kernel_size // 2, count_include_pad=False)


def identity(channels: int) -> nn.Identity:
    """No mixing of pixels."""
    return nn.Identity()


def conv_mlp(channels: int, ratio: float = 4) -> ConvMlp:
    """1x1 convolution, GELU, 1x1 convolution: that of InceptionNeXt and ConvNeXt.

    Args:
        channels: Channels C.
        ratio: Hidden channels per channel.
    """
    return ConvMlp(channels, int(ratio * channels))


def conv_norm_mlp(
    channels: int, ratio: float = 2, bias: bool = False, *, norm_cfg: dict
) -> ConvNormMlp:
    """The same with a norm after each convolution: RecNeXt's.

    Args:
        channels: Channels C.
        ratio: Hidden channels per channel.
        bias: Whether the convolutions have a bias in front of the norm's.
        norm_cfg: Norm; the network's where an entry names none.
    """
    return ConvNormMlp(channels, int(channels * ratio), bias=bias, norm_cfg=norm_cfg)


def grn_mlp(
    channels: int, ratio: float = 4, squeeze_ratio: float = 0.25, *, norm_cfg: dict
) -> GRNMlp:
    """Squeeze-excitation, and an MLP with a global response norm: UniRepLKNet's.

    Args:
        channels: Channels C.
        ratio: Hidden channels per channel.
        squeeze_ratio: Channels inside the squeeze-excitation per channel.
        norm_cfg: Norm after the last layer; the network's where an entry names none.
    """
    return GRNMlp(channels, int(ratio * channels), int(squeeze_ratio * channels), norm_cfg=norm_cfg)


TOKEN_MIXERS: Mapping[str, Part] = {
    'InceptionDWConv2d': inception,
    'LargeKernelDWConv2d': large_kernel,
    'DCLSDepthwiseConv2d': DCLSDepthwiseConv2d,
    'RecConv2d': RecConv2d,
    'RecAttn2d': RecAttn2d,
    'DilatedReparamConv2d': DilatedReparamConv2d,
    'DepthwiseConv2d': depthwise,
    'Pooling': pooling,
    'Identity': identity,
}
CHANNEL_MIXERS: Mapping[str, Part] = {
    'ConvMlp': conv_mlp,
    'ConvNormMlp': conv_norm_mlp,
    'GRNMlp': grn_mlp,
}


def spread(role: str, entry: Any, depths: Sequence[int]) -> list[list[Any]]:
    """Entries of every block, stage by stage; a stage without blocks has one all the same.

    Args:
        role: Name of the part, for messages.
        entry: One entry for all, or a list with one item per stage: an entry, or a list with one
            per block.
        depths: Blocks of the stages.

    Raises:
        ValueError: If a list has another length.
    """
    stages = list(entry) if _is_list(entry) else [entry] * len(depths)
    if len(stages) != len(depths):
        raise ValueError(
            f'{role} is a list of {len(stages)}; give one dict for all blocks, or a list of '
            f'{len(depths)}, one item per stage'
        )
    spreaded = []
    for stage, (each, depth) in enumerate(zip(stages, depths)):
        blocks = list(each) if _is_list(each) else [each] * max(depth, 1)
        if _is_list(each) and len(blocks) != depth:
            raise ValueError(
                f'{role} of stage {stage} is a list of {len(blocks)}; give one dict for the stage, or '
                f'a list of {depth}, one per block'
            )
        spreaded.append(blocks)
    return spreaded


def _resolve(
    role: str, entry: Any, table: Mapping[str, Part], find: Find | None
) -> tuple[str, Part, dict]:
    """Name, what it stands for, and the options of an entry."""
    if not isinstance(entry, Mapping) or 'type' not in entry:
        raise ValueError(
            f'{role}: {entry!r} is no dict with a type, such as dict(type={next(iter(table))!r})'
        )
    options = dict(entry)
    kind = options.pop('type')
    if callable(kind):
        return getattr(kind, '__name__', str(kind)), kind, options
    name = str(kind)
    made = table.get(name.removeprefix('mmlk.')) or (find(name) if find else None)
    if made is None:
        own = (
            "; register one of your own in MMEngine's or MMPretrain's MODELS (mmlk.backbones finds it), "
            'or pass its class as type'
            if find
            else ''
        )
        raise ValueError(f'{role}: type {kind!r} is not one of {", ".join(table)}{own}')
    return name, made, options


def make_part(
    role: str,
    entry: Any,
    arguments: Sequence[Any],
    table: Mapping[str, Part],
    find: Find | None,
    **defaults: Any,
) -> Any:
    """The part that an entry describes.

    Args:
        role: Name and place of the part, for messages.
        entry: The entry.
        arguments: Leading arguments, such as the channels.
        table: Parts of this package by name.
        find: Looks a name up that the table does not have, None if there is no such thing; None for
            parts that are not looked up.
        defaults: Options for those that take them and whose entry does not set them.

    Raises:
        ValueError: If nothing has the name, an option is unknown, or the part refuses its arguments.
    """
    kind, made, options = _resolve(role, entry, table, find)
    names = list(inspect.signature(made).parameters.values())
    known = [each.name for each in names if each.kind is not each.VAR_KEYWORD][len(arguments) :]
    unknown = sorted(set(options) - set(known))
    if unknown and len(known) + len(arguments) == len(names):
        raise ValueError(
            f'{role}: {kind} has no option {", ".join(unknown)}; it takes '
            f'{", ".join(known) or "none"}'
        )
    for name, value in defaults.items():
        if name in known:
            options.setdefault(name, value)
    try:
        return made(*arguments, **options)
    except ValueError as error:
        raise ValueError(f'{role}: {kind} does not take {dict(entry)}: {error}') from error


def _is_list(entry: Any) -> bool:
    return isinstance(entry, Sequence) and not isinstance(entry, str)


def _check_odd(name: str, size: Sequence[int]) -> None:
    if any(side < 1 or side % 2 == 0 for side in size):
        raise ValueError(f'{name}: kernel_size {tuple(size)} must be odd and positive')
