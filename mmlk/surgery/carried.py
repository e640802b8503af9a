"""What became of the weights of a layer that another one replaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlk.surgery.layers import centred

_ROUNDING = 1e-12


class Carried(NamedTuple):
    """Weights of a layer in the one that takes its place.

    Args:
        kernel: The kernel (O, I, kh, kw) in float64 that the new layer convolves with.
        note: What else was lost, '' for nothing.
    """

    kernel: Tensor
    note: str = ''


def residual(kernel: Tensor, carried: Tensor) -> float:
    """Norm of the difference of two kernels (O, I, kh, kw) over that of the first; rounding is 0."""
    size = tuple(max(sides) for sides in zip(kernel.shape[2:], carried.shape[2:]))
    difference = torch.linalg.vector_norm(centred(kernel, size) - centred(carried, size))
    scale = torch.linalg.vector_norm(kernel)
    share = float(difference / scale if scale > 0 else difference)
    return share if share > _ROUNDING else 0.0


@torch.no_grad()
def fill(target: Tensor | None, source: Tensor | None) -> None:
    """Copy ``source`` into ``target``, where there is a target."""
    if target is not None:
        target.copy_(source)
