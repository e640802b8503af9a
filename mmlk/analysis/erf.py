"""Effective receptive fields: which pixels the centre of a feature map depends on, and how much.

The definition is that of RepLKNet (arXiv 2203.06717), which SLaK uses too: the gradient of the central
position of the last map, summed over its channels, with respect to the image; its negative part removed,
summed over the colours and averaged over images. Areas are taken from log10(score + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""Shares of the whole that the papers give areas for."""


class Area(NamedTuple):
    """The smallest centred square that holds more than a share of all scores.

    Attributes:
        threshold: The share, 0 to 1.
        side: Its side in pixels, an odd number.
        ratio: Its area as a share of the image's.
    """

    threshold: float
    side: int
    ratio: float


def contribution_scores(model: nn.Module, images: Iterable[Tensor], index: int = -1) -> Tensor:
    """Mean contribution of every pixel to the centre of a feature map.

    Args:
        model: Gives a map (N, C, H, W), or a sequence of maps, in eval mode.
        images: Batches (N, 3, H, W), all of one size, normalised as the model wants them.
        index: Map of the sequence; the last by default.

    Returns:
        Scores (H, W), float64, none negative.

    Raises:
        ValueError: If there is no image.
        RuntimeError: If a gradient is not finite.
    """
    total, count = None, 0
    for batch in images:
        batch = batch.detach().requires_grad_()
        maps = model(batch)
        output = maps if isinstance(maps, Tensor) else maps[index]
        centre = output[:, :, output.shape[2] // 2, output.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(centre, batch)
        if not gradient.isfinite().all():
            raise RuntimeError('contribution_scores: a gradient is not finite; check the weights')
        scores = gradient.clamp(min=0).sum((0, 1), dtype=torch.float64)
        total = scores if total is None else total + scores
        count += len(batch)
    if total is None:
        raise ValueError('contribution_scores: no image was given')
    return total / count


def logarithmic(scores: Tensor) -> Tensor:
    """log10(score + 1) as a share of the largest, as the papers draw and measure it.

    Args:
        scores: (H, W), none negative.

    Raises:
        ValueError: If all are 0.
    """
    values = (scores + 1).log10()
    if values.max() <= 0:
        raise ValueError('logarithmic: all contribution scores are 0: the map is constant')
    return values / values.max()


def areas(scores: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[Area]:
    """The smallest centred squares that hold more than the given shares of the scores.

    Args:
        scores: (H, W), none negative; the centre is pixel (H // 2, W // 2).
        thresholds: Shares, each above 0 and below 1.

    Raises:
        ValueError: If a share is outside, or not reached by the largest square in the image.
    """
    height, width = scores.shape
    y, x = height // 2, width // 2
    reach = min(y, x, height - 1 - y, width - 1 - x)
    # cumulative sums over both axes, with a border of zeros: a square is a sum of four of them
    table = nn.functional.pad(scores.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    radius = torch.arange(reach + 1)
    bottom, top, right, left = y + radius + 1, y - radius, x + radius + 1, x - radius
    sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    found = []
    for threshold in thresholds:
        if not 0 < threshold < 1:
            raise ValueError(f'areas: threshold {threshold} is not between 0 and 1')
        enough = (sums > threshold * table[-1, -1]).nonzero()
        if not len(enough):
            raise ValueError(
                f'areas: the largest centred square, {2 * reach + 1} pixels wide, holds no more than '
                f'{100 * (sums[-1] / table[-1, -1]).item():.1f} % of the scores; threshold '
                f'{threshold} needs a larger image'
            )
        side = 2 * int(enough[0]) + 1
        found.append(Area(threshold, side, side * side / (height * width)))
    return found
