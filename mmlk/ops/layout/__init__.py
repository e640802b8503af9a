"""A map in a memory layout; `loops` also copies channels and patches for other operators."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch
from mmlk.ops.reference import contiguous_map_reference


def contiguous_map(
    x: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x`` in a memory layout: itself if it has that layout, or a copy.

    `contiguous_map_reference` is the definition.

    Args:
        x: (N, C, H, W).
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: If it is no map, or the layout is another one.
    """
    args = _arguments(x, memory_format)
    return dispatch.run('contiguous_map', *args, backend=backend)


def _arguments(
    x: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, torch.memory_format]:
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f'contiguous_map: memory_format {memory_format} is not torch.contiguous_format or '
            'torch.channels_last'
        )
    if not torch.jit.is_tracing() and x.dim() != 4:
        raise ValueError(f'contiguous_map: x {tuple(x.shape)} is not (N, C, H, W)')
    return x, memory_format


dispatch.declare('contiguous_map', _arguments, contiguous_map_reference)
