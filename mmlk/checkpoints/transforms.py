"""Changes of value, not of name, that a family's published files need before they are loaded.

Each transformation takes the mapped state, and leaves a note in the report for what it changed or a
problem for what it cannot accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mmlk.checkpoints.report import Report
from mmlk.compat import storage_identity

_SHARED = re.compile(r'stages\.(\d)\.\d+\.dwconv\.(P|SIG)$')


def transform(
    family: str,
    state: Mapping[str, Tensor],
    own_state: Mapping[str, Tensor],
    options: Mapping,
    report: Report,
) -> dict[str, Tensor]:
    """State to load, with the family's changes of value applied.

    Args:
        family: Name of the family; most have nothing to change.
        state: Own key to tensor.
        own_state: The backbone's ``state_dict()``, which shows what it shares between blocks.
        options: ``window``, the edge of the DCLS kernel, if positions are to be brought inside;
            ``shared_positions``, true where the backbone shares them although its state dict holds
            copies; ``lenient``, to note a contradiction among copies instead of refusing it.
        report: Receives notes and problems.
    """
    state = dict(state)
    if family == 'dcls_convnext':
        _share_positions(state, own_state, options, report)
        if options.get('window'):
            _clamp_positions(state, options['window'] // 2, report)
    return state


def adapt_channels(weight: Tensor, channels: int, how: str) -> Tensor:
    """The weight of a first convolution for images with another number of channels.

    Both ways are those of timm (``adapt_input_conv``). An image whose channels are equal gives the
    response that it gave before under ``'sum'``, and under ``'repeat'`` where ``channels`` is a
    multiple of the old number.

    Args:
        weight: (O, I, H, W).
        channels: New number of input channels, N.
        how: ``'repeat'``: the I slices in turn, times I / N. ``'sum'``: their sum, for N = 1.

    Returns:
        (O, N, H, W) in the same dtype; ``weight`` itself if I = N.

    Raises:
        ValueError: If ``how`` is unknown, or is ``'sum'`` for more than one channel.
    """
    if how not in ('sum', 'repeat'):
        raise ValueError(f"adapt_stem {how!r} is not one of 'sum', 'repeat'")
    old = weight.shape[1]
    if old == channels:
        return weight
    values = weight.detach().float()
    if how == 'sum':
        if channels != 1:
            raise ValueError(
                f"adapt_stem 'sum' is for one channel, the module takes {channels}; use 'repeat'"
            )
        return values.sum(1, keepdim=True).to(weight.dtype)
    repeated = values.repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return (repeated * (old / channels)).to(weight.dtype)


def _share_positions(state: dict, own_state: Mapping, options: Mapping, report: Report) -> None:
    """One tensor for the copies of a stage's positions, where the backbone holds one.

    Files list the positions of a stage once per block although the authors train a single tensor.
    A parameter is put in their place, because ``load_state_dict(assign=True)`` would otherwise make
    one of each copy.
    """
    groups: dict[int | tuple, list[str]] = {}
    for key in state:
        found = _SHARED.match(key)
        if found:
            group = (
                found.groups()
                if options.get('shared_positions')
                else storage_identity(own_state[key])
            )
            groups.setdefault(group, []).append(key)
    for keys in groups.values():
        first, *others = keys
        different = [
            key
            for key in others
            if state[key] is not state[first] and not state[key].equal(state[first])
        ]
        if different and options.get('lenient'):
            report.notes.append(
                f'{different[0]} differs from {first}, though the module has one '
                f'tensor for the stage: {keys[-1]} counts'
            )
        elif different:
            report.problems.append(
                f'{different[0]} differs from {first}: this file has positions per block, the '
                'module one tensor per stage; build the backbone without sharing'
            )
        elif others:
            shared = state[first]
            if not isinstance(shared, nn.Parameter):
                shared = nn.Parameter(shared.detach())
            state.update(dict.fromkeys(keys, shared))


def _clamp_positions(state: dict, limit: int, report: Report) -> None:
    """Bring positions to within ``limit`` cells of the kernel's centre.

    The code that trained the published dense networks saturated positions at the border of the
    window in its forward pass and stored them as they were, so clamping them gives the network its
    authors evaluated (exactly, for an odd window).
    """
    clamped: dict[int, Tensor] = {}
    for key in [key for key in state if key.endswith('.dwconv.P')]:
        value = state[key]
        if id(value) not in clamped:
            outside = int((value.detach().abs() > limit).sum())
            clamped[id(value)] = value
            if outside:
                inside = value.detach().clamp(-limit, limit)
                clamped[id(value)] = (
                    nn.Parameter(inside) if isinstance(value, nn.Parameter) else inside
                )
                report.notes.append(
                    f'{key}: {outside} of {value.numel()} positions clamped to '
                    f'+-{limit}, as the code that trained the file saturates them'
                )
        state[key] = clamped[id(value)]
