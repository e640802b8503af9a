"""The one way from a tensor to an address that compiled loops may read or write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmlk.ops.jit import checks
from mmlk.ops.library import PLAIN

pointer: Callable[[Tensor], int] = checks.Range.of if checks.ENABLED else Tensor.data_ptr
"""Address of the first element of any tensor on the CPU; compiled loops are told its memory, too,
where they check what they touch (`mmlk.ops.jit.checks`)."""


def address(x: Tensor | None) -> int:
    """Address of the first element of a float32 tensor on the CPU; 0 for None.

    Raises:
        RuntimeError: If the memory is not what the loops take it for: another device or dtype, freed
            storage, or elements that are kept negated.
    """
    if x is None:
        return 0
    place = pointer(x) if x.is_cpu and x.dtype is torch.float32 and not x.is_neg() else 0
    if place == 0 and x.numel() > 0:
        raise RuntimeError(f'compiled loops cannot address this tensor: {_description(x)}')
    return place


def addresses(*tensors: Tensor | None) -> list[int]:
    """`address` of each."""
    found = []
    for x in tensors:  # written out: a call for each costs as much as the loops on a small map
        if x is None:
            found.append(0)
            continue
        place = pointer(x) if x.is_cpu and x.dtype is torch.float32 and not x.is_neg() else 0
        found.append(place or address(x))
    return found


def can_address(*tensors: Tensor | None) -> bool:
    """Whether `address` takes all tensors, and no subclass wants to know of it."""
    for x in tensors:
        if x is None:
            continue
        if (
            type(x) not in PLAIN
            or not x.is_cpu
            or x.dtype is not torch.float32
            or x.is_neg()
            or (x.numel() > 0 and x.data_ptr() == 0)
        ):
            return False
    return True


def are_dense(*tensors: Tensor | None) -> bool:
    """Whether all are `can_address` and without gaps: libraries read a strided vector as a dense one."""
    return can_address(*tensors) and all(each is None or each.is_contiguous() for each in tensors)


def _description(x: Tensor) -> str:
    kept = ', elements kept negated' if x.is_neg() else ''
    freed = ', storage freed' if x.is_cpu and x.numel() and x.data_ptr() == 0 else ''
    return f'{x.dtype} {tuple(x.shape)} on {x.device}{kept}{freed}'
