"""Shapes, memory layouts and dtypes of maps (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether the strides of ``x`` order its axes N, H, W, C (slices of such maps included)."""
    _, c, h, w = x.shape
    sn, sc, sh, sw = x.stride()
    return bool(c > 1 and sc == 1 and h * w > 1 and sw >= c and (h == 1 or sh >= sw * w))


def layout(x: Tensor) -> torch.memory_format:
    """Memory format in which a result computed from ``x`` is given."""
    return torch.channels_last if channels_last(x) else torch.contiguous_format


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """``value`` for both axes, unless it already is a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def rows(x: Tensor) -> Tensor:
    """A channels-last map as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(pixels: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, O) as the channels-last map (N, O, H, W), sizes as in ``like``."""
    n, _, h, w = like.shape
    return pixels.view(n, h, w, -1).permute(0, 3, 1, 2)


def in_compute_dtype(x: Tensor) -> Tensor:
    """``x`` in the type that a CPU computes it in: 16-bit types are widened to float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
