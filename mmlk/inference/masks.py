"""Masks of boxes, as a detector predicts them, brought to the picture."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def paste(
    masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float
) -> torch.Tensor:
    """Pixels of each object in a picture.

    The outer edge of a mask is that of its box; between the centres of the mask's cells values are
    interpolated, and outside they fall to zero, as He et al. (2017) do.

    Args:
        masks: Probabilities (n, h, w).
        boxes: Corners x1, y1, x2, y2 in pixels (n, 4).
        size: Height and width of the picture.
        threshold: Probability from which a pixel belongs to the object.

    Returns:
        (n, height, width), bool.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool)
    for mask, box, out in zip(masks, boxes.tolist(), pasted, strict=True):
        # Values fall to zero within half a cell outside the box: only that window is computed.
        grid, window = [], []
        for low, high, side, cells in zip(box[:2], box[2:], size[::-1], mask.shape[::-1]):
            margin = (high - low) / cells
            first, last = max(int(low - margin), 0), min(int(high + margin) + 1, side)
            centres = torch.arange(first, max(last, first)) + 0.5
            grid.append((centres - low) / max(high - low, 1e-6) * 2 - 1)
            window.append(slice(first, max(last, first)))
        if not grid[0].numel() or not grid[1].numel():
            continue
        y, x = torch.meshgrid(grid[1], grid[0], indexing='ij')
        places = torch.stack([x, y], dim=2)[None]
        values = F.grid_sample(mask[None, None], places, align_corners=False)
        out[window[1], window[0]] = values[0, 0] >= threshold
    return pasted
