"""Convolutions of resized maps without the resized maps.

A convolution is a sum over its taps of a matrix product per pixel, and resizing mixes pixels of each
channel alone, so the two can change places: the products are computed on the small map, and their
results resized, shifted by the tap and summed, all by matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_GAIN = 2
"""How many times the pixels of a map a resized one must have, for that order to be faster."""


def gains(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether maps (N, C, H, W) are so much smaller than ``size`` that resizing last is faster."""
    return size[0] * size[1] >= _GAIN * x.shape[2] * x.shape[3]


def add_convolved(
    total: Tensor, x: Tensor, weight: Tensor, mode: str, align_corners: bool | None
) -> Tensor:
    """Add, in place, the "same" convolution of ``x`` resized to the size of ``total``.

    Args:
        total: (N, O, H, W), contiguous.
        x: (N, C, h, w).
        weight: (O, C, kh, kw), sides odd, for zeros around the resized map.
        mode: ``bilinear`` or ``nearest``, of ``F.interpolate``.
        align_corners: Of ``F.interpolate``.

    Returns:
        ``total``.
    """
    out, _, taps_down, taps_across = weight.shape
    height, width = x.shape[2:]
    down = _shifts(height, total.shape[2], taps_down, mode, align_corners, total)
    across = _shifts(width, total.shape[3], taps_across, mode, align_corners, total)
    down = down.transpose(0, 1).flatten(1).expand(out, -1, -1)  # (O, H, kh h)
    columns = weight.permute(3, 0, 2, 1).flatten(1, 2)  # (kw, O kh, C)
    for pixels, target in zip(x.flatten(2), total):
        widened = pixels.new_zeros(out * taps_down * height, total.shape[3])
        for each, shift in zip(columns, across):
            widened.addmm_((each @ pixels).view(-1, width), shift.T)
        target.baddbmm_(down, widened.view(out, taps_down * height, -1))
    return total


def _shifts(
    length: int, size: int, taps: int, mode: str, align_corners: bool | None, like: Tensor
) -> Tensor:
    """Matrices (taps, size, length) that resize a row of pixels and shift it by each tap."""
    mode = 'linear' if mode == 'bilinear' else mode
    unit = torch.eye(length, dtype=like.dtype)[None]
    resized = F.interpolate(unit, size=size, mode=mode, align_corners=align_corners)[0].T
    padded = F.pad(resized, (0, 0, taps // 2, taps // 2))
    return torch.stack([padded[tap : tap + size] for tap in range(taps)])
