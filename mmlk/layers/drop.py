"""Stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class DropPath(nn.Module):
    """Zeroes whole samples of a residual branch and scales the others by ``1 / (1 - rate)``.

    Stochastic depth (Huang et al., 2016), drawn per sample; the identity in eval mode.

    Args:
        rate: Probability of dropping a sample, in [0, 1).

    Raises:
        ValueError: If the rate lies outside [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f'DropPath: rate {rate} is outside [0, 1)')
        self.rate = rate

    def draw(self, x: torch.Tensor) -> torch.Tensor | None:
        """New factors (N, 1, ...) for the samples of ``x``; None where all are kept."""
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        return x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = self.draw(x)
        return x if factors is None else x * factors

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


def drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates rising linearly from 0 in the first block to ``rate`` in the last, grouped by stage.

    Raises:
        ValueError: If ``rate`` lies outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f'drop_path_rate {rate} is outside [0, 1)')
    last = max(sum(depths) - 1, 1)
    blocks = iter(range(sum(depths)))
    return [[rate * next(blocks) / last for _ in range(depth)] for depth in depths]
