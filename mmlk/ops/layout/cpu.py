"""CPU backend: matrices of channels and pixels are transposed, 16 rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlk.ops import dispatch, jit
from mmlk.ops.jit.address import can_address
from mmlk.ops.layout.loops import transposed
from mmlk.ops.memory import keep_freed_memory


def _run(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    keep_freed_memory()
    n, c, h, w = x.shape
    if memory_format == torch.channels_last:
        return transposed(x.view(n, c, h * w)).view(n, h, w, c).permute(0, 3, 1, 2)
    return transposed(x.permute(0, 2, 3, 1).view(n, h * w, c)).view(n, c, h, w)


def _refusal(x: Tensor, memory_format: torch.memory_format) -> str | None:
    if torch.is_grad_enabled():
        return 'gradients may be asked for'
    reason = dispatch.refusal_for_device(x, 'cpu')
    if reason is not None:
        return reason
    if dispatch.needs_dispatcher(x):
        return 'a compiler, autocast, a dispatch mode or a subclass has to see the copy'
    if not can_address(x) or x.numel() == 0:
        return 'only plain float32 maps that are not empty are copied'
    if x.is_contiguous(memory_format=memory_format):
        return 'the map has that layout'
    plain = memory_format == torch.contiguous_format
    other = torch.channels_last if plain else torch.contiguous_format
    if not x.is_contiguous(memory_format=other):
        return 'the map has neither layout'
    return jit.refusal()


dispatch.register('contiguous_map', dispatch.Backend('cpu', _run, _refusal))
